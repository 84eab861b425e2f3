"""Time products, copies, kernel launches and collectives on this machine, for `parlaunch.calibrate.from_microbenchmarks`.

Under torchrun every rank calls `measure` and the collectives run over all of them: those of one node for NVLink, those of
one local rank for the fabric. Alone, one process a GPU is started for the NVLink part and there is no fabric to time.
Nothing here is kept on: about a minute on one node.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from parlaunch.errors import ParlaunchError

PRODUCTS = ((8192, 8192, 8192), (8192, 14336, 4096), (4096, 4096, 16384), (16384, 8192, 4096))
"""(m, n, k) of the products to time: layers of dense models of 8 to 70 billion parameters."""
SMALL_PRODUCTS = ((256, 256, 256), (512, 256, 128))
COLLECTIVES = (16 * 2**20, 128 * 2**20, 512 * 2**20)
"""Bytes of the gathered tensor."""
SMALL_COLLECTIVES = (2**16, 2**18)
SECONDS = 1.5
"""How long each product repeats, so that clocks settle under the power limit."""

Progress = Callable[[str], None]


def measure(*, progress: Progress | None = None, device: str = "cuda") -> dict[str, Any]:
    """What this machine reaches. `device` "cpu" runs the same steps in small, over gloo: to try, not to calibrate by.

    Raises `ParlaunchError` without torch or, for "cuda", without a GPU.
    """
    torch = _torch()
    say = progress or (lambda text: None)
    if device == "cuda" and not torch.cuda.is_available():
        raise ParlaunchError(
            "no GPU to measure",
            hint="run this on the machine to calibrate, or calibrate from measured rows: parlaunch calibrate FILE",
        )
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    local = int(os.environ.get("LOCAL_RANK", "0")) if distributed else 0
    if device == "cuda":
        torch.cuda.set_device(local)
    say("products")
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(local) if device == "cuda" else "cpu",
        "gemm": _products(torch, device),
    }
    say("copies")
    results["stream"] = [_copy(torch, device)]
    results["launch"] = [{"seconds": _launch(torch, device)}]
    say("collectives")
    if distributed:
        results |= _collectives(torch, device, local)
    else:
        count = torch.cuda.device_count() if device == "cuda" else 2
        results["nvlink"] = _spawned(torch, device, count) if count > 1 else []
        results["fabric"] = []
    return results


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ParlaunchError(
            "torch is not installed here",
            hint="measure where the training runs, or calibrate from measured rows: parlaunch calibrate FILE",
        ) from error
    return torch


def _wait(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(torch: Any, device: str, work: Callable[[], object], *, seconds: float) -> float:
    """Seconds of one call, over repeats that fill `seconds`; the first calls are not counted."""
    work()
    _wait(torch, device)
    start = time.perf_counter()
    work()
    _wait(torch, device)
    repeats = max(3, min(10_000, int(seconds / max(time.perf_counter() - start, 1e-7))))
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(torch, device)
    return (time.perf_counter() - start) / repeats


def _products(torch: Any, device: str) -> list[dict[str, Any]]:
    """Products in bf16 and, where torch multiplies it on this GPU, in FP8. Operands are random: zeros draw no power."""
    rows = []
    shapes, seconds = (PRODUCTS, SECONDS) if device == "cuda" else (SMALL_PRODUCTS, 0.02)
    fp8 = device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)
    for m, n, k in shapes:
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        wide = _timed(torch, device, partial(torch.matmul, a, b.t()), seconds=seconds)
        rows.append({"m": m, "n": n, "k": k, "format": "bf16", "seconds": wide})
        if fp8:
            one = torch.ones((), device=device)
            narrow_a, narrow_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)

            def product(x: Any = narrow_a, y: Any = narrow_b, scale: Any = one) -> object:
                return torch._scaled_mm(x, y.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

            rows.append(
                {"m": m, "n": n, "k": k, "format": "fp8", "seconds": _timed(torch, device, product, seconds=seconds)}
            )
    return rows


def _copy(torch: Any, device: str) -> dict[str, Any]:
    """Bytes read and written by a copy that no cache holds."""
    count = 2**30 if device == "cuda" else 2**20
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _timed(torch, device, lambda: target.copy_(source), seconds=0.3 if device == "cuda" else 0.02)
    return {"bytes": 2 * count, "seconds": seconds}


def _launch(torch: Any, device: str) -> float:
    """CPU seconds to issue one small kernel, many in a row so that the GPU is never waited for."""
    x = torch.zeros(1, device=device)
    count = 2000
    x.add_(1)
    _wait(torch, device)
    start = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    seconds = (time.perf_counter() - start) / count
    _wait(torch, device)
    return seconds


def _gathered(torch: Any, device: str, group: Any, ranks: int) -> list[dict[str, Any]]:
    import torch.distributed as dist

    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    rows = []
    for size in COLLECTIVES if device == "cuda" else SMALL_COLLECTIVES:
        part = torch.ones(max(1, size // ranks), dtype=torch.uint8, device=device)
        whole = torch.empty(part.numel() * ranks, dtype=torch.uint8, device=device)
        dist.barrier(group=group)
        # A fixed number of repeats: a number chosen by the clock could differ between ranks, and they would hang.
        for _ in range(3):
            gather(whole, part, group=group)
        _wait(torch, device)
        repeats = 10
        start = time.perf_counter()
        for _ in range(repeats):
            gather(whole, part, group=group)
        _wait(torch, device)
        seconds = (time.perf_counter() - start) / repeats
        rows.append({"operation": "all_gather", "bytes": whole.numel(), "ranks": ranks, "seconds": seconds})
    return rows


def _collectives(torch: Any, device: str, local: int) -> dict[str, Any]:
    """All-gathers among the ranks of this node, and among the ranks of this local rank, one a node."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    inside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = world // inside
    # Every rank must make every group, in the same order.
    within = [dist.new_group(list(range(n * inside, (n + 1) * inside))) for n in range(nodes)]
    across = [dist.new_group(list(range(i, world, inside))) for i in range(inside)]
    return {
        "nvlink": _gathered(torch, device, within[rank // inside], inside) if inside > 1 else [],
        "fabric": _gathered(torch, device, across[local], nodes) if nodes > 1 else [],
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _worker(rank: int, count: int, port: int, device: str, queue: Any) -> None:
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count
    )
    rows = _gathered(torch, device, dist.group.WORLD, count)
    if rank == 0:
        queue.put(rows)
    dist.barrier()
    dist.destroy_process_group()


def _spawned(torch: Any, device: str, count: int) -> Sequence[dict[str, Any]]:
    """All-gathers among this node's GPUs, one new process each."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(_worker, args=(count, _free_port(), device, queue), nprocs=count, join=True)
    rows: Sequence[dict[str, Any]] = queue.get()
    return rows

"""Time products, attention, copies, kernel launches and collectives on this machine, for `parlaunch.check.calibrate.from_microbenchmarks`.

Under torchrun every rank calls `measure` and the collectives run over all of them: those of one node for NVLink, those of
one local rank for the fabric. Alone, one process a GPU is started for the NVLink part and there is no fabric to time.
Nothing here is kept on: about a minute on one node. With a plan's shapes it is these that are timed, the largest first, each product
forward and in both its backward passes as the plan has them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing.shapes import Shapes

PRODUCTS = ((8192, 8192, 8192), (8192, 14336, 4096), (4096, 4096, 16384), (16384, 8192, 4096))
"""(m, n, k) of the products to time: layers of dense models of 8 to 70 billion parameters."""
SMALL_PRODUCTS = ((256, 256, 256), (512, 256, 128))
COLLECTIVES = (16 * 2**20, 128 * 2**20, 512 * 2**20)
"""Bytes of the gathered tensor."""
SMALL_COLLECTIVES = (2**16, 2**18)
SECONDS = 1.5
"""How long each product repeats, so that clocks settle under the power limit."""
HEADS = ((8192, 32, 128, 128), (4096, 64, 128, 128))
"""(tokens, heads, size of a head, of its values) of the attention to time: dense models of 8 and 70 billion parameters."""
SMALL_HEADS = ((128, 2, 64, 64),)
MOST = {"products": 24, "attention": 4, "collectives": 12}
"""Shapes of a plan that are timed, the largest of each: half a minute of products."""
SMALLER = {"products": 16, "attention": 4, "collectives": 8}
"""By how much a dimension shrinks on the CPU, where the steps are tried and nothing is learnt."""

Progress = Callable[[str], None]


def measure(
    *,
    progress: Progress | None = None,
    device: str = "cuda",
    shapes: Shapes | None = None,
    failed: list[str] | None = None,
) -> dict[str, Any]:
    """What this machine reaches. `shapes`: those of a plan, in place of what models have in common. `device` "cpu" runs the same
    steps in small, over gloo: to try, not to calibrate by. `failed`: takes a sentence of each part that cannot be timed, whose rows are
    then missing; without it the first failure is raised.

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
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(local) if device == "cuda" else "cpu"}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "products": lambda: {"gemm": _products(torch, device, shapes)},
        "attention": lambda: {"attention": _attention(torch, device, shapes)},
        "copies": lambda: {"stream": [_copy(torch, device)]},
        "launches": lambda: {"launch": [{"seconds": _launch(torch, device)}]},
        "collectives": lambda: (
            _collectives(torch, device, local, shapes) if distributed else _alone(torch, device, shapes)
        ),
    }
    for name, part in parts.items():
        say(name)
        try:
            results |= part()
        except Exception as error:  # an operator that this torch or this GPU has not
            if failed is None:
                raise
            failed.append(f"{name}: {next(iter(str(error).splitlines()), type(error).__name__)}")
    return results


def _alone(torch: Any, device: str, asked: Shapes | None) -> dict[str, Any]:
    """Collectives of the GPUs that this process sees, and no fabric."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    return {"nvlink": _spawned(torch, device, count, asked) if count > 1 else [], "fabric": []}


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


def _products(torch: Any, device: str, asked: Shapes | None) -> list[dict[str, Any]]:
    """Products in bf16 and, where torch multiplies it on this GPU, in FP8. Operands are random: zeros draw no power."""
    fp8 = device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)
    if asked is None:
        shapes, seconds = (PRODUCTS, SECONDS) if device == "cuda" else (SMALL_PRODUCTS, 0.02)
        wanted = [(*shape, fmt) for shape in shapes for fmt in (("bf16", "fp8") if fp8 else ("bf16",))]
    else:
        seconds = 0.5 if device == "cuda" else 0.005
        wanted = _plans_products(asked, fp8=fp8, smaller=1 if device == "cuda" else SMALLER["products"])
    rows = []
    for m, n, k, fmt in wanted:
        work = product(torch, device, m, n, k, fmt)
        row = {"m": m, "n": n, "k": k, "format": fmt, "seconds": _timed(torch, device, work, seconds=seconds)}
        rows.append(row)
    return rows


def _plans_products(asked: Shapes, *, fp8: bool, smaller: int) -> list[tuple[int, int, int, str]]:
    """The largest products of a plan, in 16 bits where torch does not multiply their own format."""
    formats = {
        "bf16": "bf16",
        "fp16": "bf16",
        "fp8": "fp8" if fp8 else "bf16",
        "mx": "bf16",
        "fp4": "bf16",
        "fp32": "bf16",
    }
    known = [p for p in asked.products if p.format in formats]
    shrunken = ((max(16, p.m // smaller), max(16, p.n // smaller), max(16, p.k // smaller)) for p in known)
    wanted = [(*shape, formats[p.format]) for p, shape in zip(known, shrunken, strict=True)]
    # FP8 needs rows and columns that are whole 16 bytes.
    whole = [w for w in wanted if w[3] != "fp8" or not any(size % 16 for size in w[:3])]
    return list(dict.fromkeys(whole))[: MOST["products"]]


def product(torch: Any, device: str, m: int, n: int, k: int, fmt: str) -> Callable[[], object]:
    """One product of [m, k] by [k, n], to be timed; `fmt` "fp8" with one scale a tensor."""
    a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
    if fmt != "fp8":
        return partial(torch.matmul, a, b.t())
    one = torch.ones((), device=device)
    narrow_a, narrow_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    return partial(torch._scaled_mm, narrow_a, narrow_b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _attention(torch: Any, device: str, asked: Shapes | None) -> list[dict[str, Any]]:
    """Causal attention forward and backward, in whichever fused kernel torch takes."""
    seconds = 0.5 if device == "cuda" else 0.01
    if asked is None:
        wanted = list(HEADS if device == "cuda" else SMALL_HEADS)
    else:
        smaller = 1 if device == "cuda" else SMALLER["attention"]
        sizes = [
            (max(64, a.sequence // smaller), max(1, a.heads // smaller), a.head_dim, a.value_dim)
            for a in asked.attention
        ]
        wanted = list(dict.fromkeys(sizes))[: MOST["attention"]]
    rows = []
    for sequence, heads, head_dim, value_dim in wanted:
        forward, both = attention(torch, device, sequence, heads, head_dim, value_dim)
        ahead = _timed(torch, device, forward, seconds=seconds)
        whole = _timed(torch, device, both, seconds=seconds)
        shape = {"sequence": sequence, "heads": heads, "head_dim": head_dim, "value_dim": value_dim}
        rows.append(shape | {"backward": False, "seconds": ahead})
        rows.append(shape | {"backward": True, "seconds": max(whole - ahead, 1e-9)})
    return rows


def attention(
    torch: Any, device: str, sequence: int, heads: int, head_dim: int, value_dim: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Causal attention of one sequence in 16 bits, to be timed: forward, and forward with backward."""
    q, k = (torch.randn(1, heads, sequence, head_dim, device=device, dtype=torch.bfloat16) for _ in range(2))
    v = torch.randn(1, heads, sequence, value_dim, device=device, dtype=torch.bfloat16)
    for tensor in (q, k, v):
        tensor.requires_grad_(True)
    core = torch.nn.functional.scaled_dot_product_attention
    gradient = torch.randn(1, heads, sequence, value_dim, device=device, dtype=torch.bfloat16)

    def both() -> object:
        return torch.autograd.grad(core(q, k, v, is_causal=True), (q, k, v), gradient)

    return partial(core, q, k, v, is_causal=True), both


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


def _carried(torch: Any, device: str, group: Any, ranks: int, asked: Shapes | None) -> list[dict[str, Any]]:
    """Collectives among all ranks of a group: those that the plan has among so many, else gathers of three sizes."""
    import torch.distributed as dist

    if asked is None:
        wanted = [("all_gather", size) for size in (COLLECTIVES if device == "cuda" else SMALL_COLLECTIVES)]
    else:
        smaller = 1 if device == "cuda" else 2 ** SMALLER["collectives"]
        wanted = [(c.operation, c.bytes // smaller) for c in asked.collectives if c.ranks == ranks][
            : MOST["collectives"]
        ]
    rows = []
    for operation, size in wanted:
        work, moved = _collective(torch, device, group, ranks, operation, size)
        dist.barrier(group=group)
        # A fixed number of repeats: a number chosen by the clock could differ between ranks, and they would hang.
        for _ in range(3):
            work()
        _wait(torch, device)
        repeats = 10
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(torch, device)
        seconds = (time.perf_counter() - start) / repeats
        rows.append({"operation": operation, "bytes": moved, "ranks": ranks, "seconds": seconds})
    return rows


def _collective(
    torch: Any, device: str, group: Any, ranks: int, operation: str, size: int
) -> tuple[Callable[[], object], int]:
    """One collective, to be timed, and the bytes of its whole tensor."""
    import torch.distributed as dist

    part = torch.ones(max(1, size // ranks // 2), dtype=torch.bfloat16, device=device)
    whole = torch.ones(part.numel() * ranks, dtype=torch.bfloat16, device=device)
    moved = whole.numel() * 2
    if operation == "all_reduce":
        return partial(dist.all_reduce, whole, group=group), moved
    if operation == "alltoall":
        return partial(dist.all_to_all_single, torch.empty_like(whole), whole, group=group), moved
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    return partial(gather, whole, part, group=group), moved


def _collectives(torch: Any, device: str, local: int, asked: Shapes | None) -> dict[str, Any]:
    """Collectives inside this node, and among the ranks of this local rank, one a node.

    Inside, a plan's groups have their own sizes: of each the first ranks of the node work and the others wait.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    inside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = world // inside
    # Every rank must make every group, in the same order.
    within = [dist.new_group(list(range(n * inside, (n + 1) * inside))) for n in range(nodes)]
    across = [dist.new_group(list(range(i, world, inside))) for i in range(inside)]
    near = _carried(torch, device, within[rank // inside], inside, asked) if inside > 1 else []
    for size in _sizes(asked, inside):
        parts = [dist.new_group(list(range(n * inside, n * inside + size))) for n in range(nodes)]
        if rank % inside < size:
            near += _carried(torch, device, parts[rank // inside], size, asked)
        dist.barrier()
    return {"nvlink": near, "fabric": _carried(torch, device, across[local], nodes, asked) if nodes > 1 else []}


def _sizes(asked: Shapes | None, count: int) -> list[int]:
    """Sizes of a plan's groups that are smaller than this one."""
    return sorted({c.ranks for c in asked.collectives if c.ranks < count}) if asked else []


def _worker(rank: int, count: int, store: str, device: str, asked: Shapes | None, queue: Any) -> None:
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=dist.FileStore(store, count), rank=rank, world_size=count
    )
    rows = _carried(torch, device, dist.group.WORLD, count, asked)
    for size in _sizes(asked, count):
        part = dist.new_group(list(range(size)))
        if rank < size:
            rows += _carried(torch, device, part, size, asked)
        dist.barrier()
    if rank == 0:
        queue.put(rows)
    dist.barrier()
    dist.destroy_process_group()


def _spawned(torch: Any, device: str, count: int, asked: Shapes | None) -> Sequence[dict[str, Any]]:
    """Collectives among this node's GPUs, one new process each."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    # They meet at a file: a port that is free now may be taken when all of them have imported torch.
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(count, str(Path(folder, "store")), device, asked, queue), nprocs=count, join=True)
    rows: Sequence[dict[str, Any]] = queue.get()
    return rows

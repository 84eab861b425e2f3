"""Time products, attention, copies, kernel launches and collectives on this machine, for `parlaunch.check.calibrate.from_microbenchmarks`.

Under torchrun every rank calls `measure` and the collectives run over all of them: those of one node for NVLink, those of
one local rank for the fabric. Alone, one process a GPU is started for the NVLink part and there is no fabric to time.
Nothing here is kept on: about a minute on one node. With a plan's shapes it is these that are timed, the largest first: each product
forward and in both its backward passes, in its own format, and collectives in groups as the plan has them, as far as these GPUs make such.
What cannot be timed is named in `unmeasured`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing.shapes import Collective, Product, Shapes
from parlaunch_launch.products import product

PRODUCTS = ((8192, 8192, 8192), (8192, 14336, 4096), (4096, 4096, 16384), (16384, 8192, 4096))
"""(m, n, k) of the products to time: layers of dense models of 8 to 70 billion parameters."""
SMALL_PRODUCTS = ((256, 256, 256), (512, 256, 128))
COLLECTIVES = (16 * 2**20, 128 * 2**20, 512 * 2**20)
"""Bytes of the gathered tensor."""
GATHERS = ("all_gather", "reduce_scatter")
SMALL_COLLECTIVES = (2**16, 2**18)
LARGEST = 2**30
"""Bytes from which on a collective only takes longer: a plan's larger ones are timed with as many."""
SECONDS = 1.5
"""How long each product repeats, so that clocks settle under the power limit."""
HEADS = ((8192, 32, 128, 128), (4096, 64, 128, 128))
"""(tokens, heads, size of a head, of its values) of the attention to time: dense models of 8 and 70 billion parameters."""
SMALL_HEADS = ((128, 2, 64, 64),)
MOST = {"products": 24, "attention": 4, "collectives": 4}
"""Shapes of a plan that are timed, the largest of each (of collectives, in each group and by each operation): half a minute of products."""
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
    then missing; without it the first failure is raised. `unmeasured` of the result has a sentence of each single shape of the plan that
    could not be timed here.

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
    missing: list[str] = []
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "products": lambda: {"gemm": _products(torch, device, shapes, missing)},
        "attention": lambda: {"attention": _attention(torch, device, shapes)},
        "copies": lambda: {"stream": [_copy(torch, device)]},
        "launches": lambda: {"launch": [{"seconds": _launch(torch, device)}]},
        "collectives": lambda: (
            _collectives(torch, device, shapes, missing) if distributed else _alone(torch, device, shapes, missing)
        ),
    }
    for name, part in parts.items():
        say(name)
        try:
            results |= part()
        except Exception as error:  # an operator that this torch or this GPU has not
            if failed is None:
                raise
            failed.append(f"{name}: {_said(error)}")
    return results | {"unmeasured": list(dict.fromkeys(missing))}


def _said(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _alone(torch: Any, device: str, asked: Shapes | None, missing: list[str]) -> dict[str, Any]:
    """Collectives of the GPUs that this process sees, and no fabric."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    groups = _groups(asked, device, count, 1, missing)
    return _spawned(torch, device, count, groups) if groups else {"nvlink": [], "fabric": []}


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


def _products(torch: Any, device: str, asked: Shapes | None, missing: list[str]) -> list[dict[str, Any]]:
    """Products in 16 bits and in FP8, or in the formats of a plan; `missing` takes why there are none in one of them."""
    seconds = 0.02 if device == "cpu" else SECONDS if asked is None else 0.5
    rows: list[dict[str, Any]] = []
    error: Exception | None = None
    for one in _wanted_products(asked, device):
        try:
            work = product(torch, device, one.m, one.n, one.k, one.format, accumulate=one.accumulate)
            rows.append(one._asdict() | {"seconds": _timed(torch, device, work, seconds=seconds)})
        except (
            Exception
        ) as caught:  # a format that this torch, Transformer Engine or GPU has not, or a size that does not fit it
            error = caught
            missing.append(f"products in {one.format}{' that are added to fp32' * one.accumulate}: {_said(caught)}")
        if len(rows) == MOST["products"]:
            break
    if error is not None and not rows:
        raise error
    return rows


def _wanted_products(asked: Shapes | None, device: str) -> list[Product]:
    """The products of a plan, the largest first, or those that models have in common."""
    if asked is None or not asked.products:
        shapes = PRODUCTS if device == "cuda" else SMALL_PRODUCTS
        return [Product(*shape, fmt) for shape in shapes for fmt in ("bf16", "fp8")]
    smaller = 1 if device == "cuda" else SMALLER["products"]
    shrunken = (
        p._replace(m=max(16, p.m // smaller), n=max(16, p.n // smaller), k=max(16, p.k // smaller))
        for p in asked.products
    )
    return list(dict.fromkeys(shrunken))


def _attention(torch: Any, device: str, asked: Shapes | None) -> list[dict[str, Any]]:
    """Causal attention forward and backward, in whichever fused kernel torch takes."""
    seconds = 0.5 if device == "cuda" else 0.01
    if asked is None or not asked.attention:
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


class _Group(NamedTuple):
    """Ranks, so many of them in each node, and what they send: (operation, bytes)."""

    link: str  # nvlink | fabric
    ranks: int
    inside: int
    sent: tuple[tuple[str, int], ...]


def _groups(asked: Shapes | None, device: str, local: int, nodes: int, missing: list[str]) -> list[_Group]:
    """The groups of a plan that `nodes` nodes with `local` ranks each make; `missing` takes a sentence of each that they do not.

    Over a link on which none of them gathers, all ranks gather what they do without a plan: those of a node, or one of each.
    """
    found: dict[tuple[str, int, int], list[Collective]] = {}
    for c in asked.collectives if asked else ():
        if c.inside <= local and c.ranks % c.inside == 0 and c.ranks // c.inside <= nodes:
            found.setdefault(("nvlink" if c.inside == c.ranks else "fabric", c.ranks, c.inside), []).append(c)
        else:
            where = (
                "in one NVLink domain or node" if c.inside == c.ranks else f"{c.inside} in each NVLink domain or node"
            )
            missing.append(
                f"{c.operation} among {c.ranks} GPUs, {where}: here {'are' if nodes > 1 else 'is'} {nodes} node{'s' * (nodes > 1)} with {local}"
            )
    sizes = COLLECTIVES if device == "cuda" else SMALL_COLLECTIVES
    for link, ranks, inside in (("nvlink", local, local), ("fabric", nodes, 1)):
        gathers = [c for at, many in found.items() for c in many if at[0] == link and c.operation in GATHERS]
        if ranks > 1 and not gathers:
            more = [Collective("all_gather", size, ranks, inside) for size in sizes]
            found[link, ranks, inside] = found.get((link, ranks, inside), []) + more
    smaller = 2 ** SMALLER["collectives"] if asked and device == "cpu" else 1
    return [_Group(*at, _largest(many, smaller)) for at, many in found.items()]


def _largest(many: Sequence[Collective], smaller: int) -> tuple[tuple[str, int], ...]:
    """The largest of each operation, none larger than teaches anything."""
    sizes: dict[str, list[int]] = {}
    for c in many:
        sizes.setdefault(c.operation, []).append(min(c.bytes, LARGEST) // smaller)
    kept = {operation: list(dict.fromkeys(found))[: MOST["collectives"]] for operation, found in sizes.items()}
    return tuple((operation, size) for operation, found in kept.items() for size in found)


def _members(group: _Group, local: int, nodes: int) -> Iterator[list[int]]:
    """The ranks of each group like this one: together they have every node, and as much of it as they can."""
    span = group.ranks // group.inside
    for first in range(0, nodes - span + 1, span):
        for start in range(0, local - group.inside + 1, group.inside):
            yield [(first + node) * local + start + i for node in range(span) for i in range(group.inside)]


def _sent(torch: Any, device: str, groups: Sequence[_Group], local: int) -> dict[str, Any]:
    """What each group takes, of those that this rank is in, by link; groups of a kind work at the same time."""
    import torch.distributed as dist

    rows: dict[str, list[dict[str, Any]]] = {"nvlink": [], "fabric": []}
    for group in groups:
        own = None
        for members in _members(group, local, dist.get_world_size() // local):
            made = dist.new_group(members)  # every rank must make every group, in the same order
            own = made if dist.get_rank() in members else own
        if own is not None:
            rows[group.link] += _carried(torch, device, own, group)
        dist.barrier()
    return rows


def _carried(torch: Any, device: str, made: Any, group: _Group) -> list[dict[str, Any]]:
    """Collectives among all ranks of a group."""
    import torch.distributed as dist

    rows = []
    for operation, size in group.sent:
        work, moved = _collective(torch, device, made, group.ranks, operation, size)
        dist.barrier(group=made)
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
        shape = {"operation": operation, "bytes": moved, "ranks": group.ranks, "inside": group.inside}
        rows.append(shape | {"seconds": seconds})
    return rows


def _collective(
    torch: Any, device: str, group: Any, ranks: int, operation: str, size: int
) -> tuple[Callable[[], object], int]:
    """One collective, to be timed, and the bytes of its whole tensor, or of the one message."""
    import torch.distributed as dist

    part = torch.ones(max(1, size // ranks // 2), dtype=torch.bfloat16, device=device)
    whole = torch.ones(part.numel() * ranks, dtype=torch.bfloat16, device=device)
    received = torch.empty_like(whole)
    # Both renamed in torch 2.13.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    work = {
        "all_gather": lambda: gather(whole, part, group=group),
        "reduce_scatter": lambda: scatter(part, whole, group=group),
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "alltoall": lambda: dist.all_to_all_single(received, whole, group=group),
        "send": lambda: _passed_on(whole, received, group),
    }[operation]
    return work, whole.numel() * 2


def _passed_on(message: Any, received: Any, group: Any) -> None:
    """Every rank sends to the next and has from the one before."""
    import torch.distributed as dist

    members, own = dist.get_process_group_ranks(group), dist.get_rank(group)
    ahead = dist.P2POp(dist.isend, message, members[(own + 1) % len(members)], group)
    behind = dist.P2POp(dist.irecv, received, members[own - 1], group)
    for request in dist.batch_isend_irecv([ahead, behind]):
        request.wait()


def _collectives(torch: Any, device: str, asked: Shapes | None, missing: list[str]) -> dict[str, Any]:
    """Collectives among the ranks of torchrun; those of the first, which is in a group of every kind, are all ranks' answer."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    groups = _groups(asked, device, local, dist.get_world_size() // local, missing)
    shared = [_sent(torch, device, groups, local)]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def _worker(rank: int, count: int, store: str, device: str, groups: Sequence[_Group], queue: Any) -> None:
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=dist.FileStore(store, count), rank=rank, world_size=count
    )
    rows = _sent(torch, device, groups, count)
    if rank == 0:
        queue.put(rows)
    dist.barrier()
    dist.destroy_process_group()


def _spawned(torch: Any, device: str, count: int, groups: Sequence[_Group]) -> dict[str, Any]:
    """Collectives among this node's GPUs, one new process each."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    # They meet at a file: a port that is free now may be taken when all of them have imported torch.
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(count, str(Path(folder, "store")), device, groups, queue), nprocs=count, join=True)
    rows: dict[str, Any] = queue.get()
    return rows

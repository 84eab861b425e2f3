"""How much of what torch's caching allocator reserves stays empty, by replaying a training's allocations into a model of the allocator.

    python scripts/bench/segments.py [--layers 4] [--vocabulary 16000] [--scale 64] [--recompute]

Trains a small model of Megatron Core's on the CPU (`parlaunch_launch.one_gpu`), notes every tensor that comes and goes in an iteration, and
replays them, `--scale` times as large, with segments of fixed size and with growing ones (`expandable_segments`). Prints both as
shares of the largest tensor that comes and goes and of all of them. Gradients and optimizer are there from the start; an optimizer's
temporaries and what gloo copies, which no GPU has, are left out. Needs torch and megatron-core.
"""

from __future__ import annotations

import argparse
import bisect
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

MIB = 2**20
SMALL = MIB
"""Tensors up to this size have segments of their own (`kSmallSize`, torch c10/cuda/CUDACachingAllocator.cpp)."""


class Event(NamedTuple):
    """A tensor that comes (bytes above 0) or goes."""

    at: int  # ns
    pointer: int
    size: int


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, with its neighbours."""

    segment: int
    offset: int
    size: int
    small: bool
    free: bool = True
    before: Block | None = None
    behind: Block | None = None

    def order(self) -> tuple[int, int, int]:
        return self.size, self.segment, self.offset


class Segments:
    """torch's caching allocator on one stream: the smallest free block that fits, split and merged; growing segments or fixed ones."""

    def __init__(self, *, growing: bool) -> None:
        self.growing = growing
        self.free: dict[bool, list[Block]] = {True: [], False: []}
        self.last: dict[bool, Block | None] = {True: None, False: None}  # at the end of the segment that grows
        self.live: dict[int, Block] = {}
        self.segments = self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0

    def come(self, pointer: int, size: int) -> None:
        size = max(512, -(-size // 512) * 512)
        block = self._fitting(size, small=size <= SMALL)
        rest = block.size - size
        if rest >= 512 if block.small or self.growing else rest > SMALL:
            behind = Block(block.segment, block.offset + size, rest, block.small, True, block, block.behind)
            if behind.behind is not None:
                behind.behind.before = behind
            block.size, block.behind = size, behind
            if self.last[block.small] is block:
                self.last[block.small] = behind
            self._put(behind)
        block.free = False
        self.live[pointer] = block
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        self.most_reserved = max(self.most_reserved, self.reserved)

    def go(self, pointer: int) -> None:
        block = self.live.pop(pointer, None)
        if block is None:
            return
        self.allocated -= block.size
        if block.behind is not None and block.behind.free:
            block = self._joined(block, block.behind, taken=block.behind)
        if block.before is not None and block.before.free:
            block = self._joined(block.before, block, taken=block.before)
        block.free = True
        self._put(block)

    def _joined(self, first: Block, second: Block, *, taken: Block) -> Block:
        """Two neighbours as one; `taken` is the one that was free."""
        self.free[taken.small].remove(taken)
        first.size += second.size
        first.behind = second.behind
        if first.behind is not None:
            first.behind.before = first
        if self.last[first.small] is second:
            self.last[first.small] = first
        return first

    def _put(self, block: Block) -> None:
        bisect.insort(self.free[block.small], block, key=Block.order)

    def _fitting(self, size: int, *, small: bool) -> Block:
        free = self.free[small]
        at = bisect.bisect_left(free, (size, -1, -1), key=Block.order)
        if at < len(free):
            return free.pop(at)
        return self._grown(size, small=small) if self.growing else self._made(size, small=small)

    def _made(self, size: int, *, small: bool) -> Block:
        """A new segment: 2 MiB for what is small, 20 MiB below 10 MiB, else as large as it is asked for."""
        whole = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        self.reserved += whole
        self.segments += 1
        return Block(self.segments, 0, whole, small)

    def _grown(self, size: int, *, small: bool) -> Block:
        """The one segment of its kind longer by whole pages, 2 MiB or 20: what is free at its end counts."""
        page, last = (2 if small else 20) * MIB, self.last[small]
        if last is not None and last.free:
            self.free[small].remove(last)
            more = -(-(size - last.size) // page) * page
            last.size += more
            self.reserved += more
            return last
        more = -(-size // page) * page
        self.reserved += more
        block = Block(int(small), last.offset + last.size if last else 0, more, small, True, last)
        if last is not None:
            last.behind = block
        self.last[small] = block
        return block


def replayed(stays: Iterable[Event], events: Iterable[Event], scale: float, *, growing: bool) -> Segments:
    segments = Segments(growing=growing)
    for event in stays:
        segments.come(event.pointer, int(event.size * scale))
    for event in events:
        if event.size > 0:
            segments.come(event.pointer, int(event.size * scale))
        else:
            segments.go(event.pointer)
    return segments


def traced(row: dict[str, Any]) -> tuple[list[Event], list[Event]]:
    """What stands when the second iteration begins, and what comes and goes from there to the end of the last."""
    import torch

    from parlaunch_launch import one_gpu

    marks: list[int] = []
    made = one_gpu._prepared

    def prepared(*given: Any) -> tuple[Any, Any]:
        model, optimizer = made(*given)
        step, steps = optimizer.step, iter((True,))
        optimizer.step = lambda: step() if next(steps, False) else None  # the first makes the moments
        return model, optimizer

    one_gpu._prepared, one_gpu._wait = prepared, lambda _: marks.append(time.time_ns())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        one_gpu.train(row, "cpu")
    events: list[Event] = []
    waiting = list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        node = waiting.pop()
        if node.tag == torch._C._profiler._EventType.Allocation:
            events.append(Event(node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
        waiting += node.children
    events.sort()
    start, end = marks[2], marks[-1]
    live: dict[int, Event] = {}
    for event in events:
        if event.at < start:
            live[event.pointer] = event
            if event.size < 0:
                del live[event.pointer]
    inside = [event for event in events if start <= event.at <= end]
    whole = max(event.size for event in live.values())  # gradients in one piece: gloo copies them
    return list(live.values()), [event for event in inside if abs(event.size) < whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--scale", type=float, default=64.0)
    parser.add_argument("--recompute", action="store_true", help="every layer computed again")
    asked = parser.parse_args()
    arch = {
        "num_layers": asked.layers, "hidden_size": 512, "ffn_hidden_size": 1792, "num_attention_heads": 8, "num_query_groups": 2,
        "kv_channels": 64, "vocab_size": asked.vocabulary, "gated_linear_unit": True, "activation_func": "silu",
        "normalization": "RMSNorm",
    }  # fmt: skip
    recompute = {"granularity": "full", "method": "uniform", "num_layers": 1} if asked.recompute else None
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stays, events = traced(
        {"arch": arch, "seq": 512, "mbs": 1, "gbs": 2, "precision": "bf16", "iterations": 3, "recompute": recompute}
    )
    largest = asked.scale * max(event.size for event in events)
    standing = asked.scale * sum(event.size for event in stays)
    for name, growing in (("fixed", False), ("growing", True)):
        found = replayed(stays, events, asked.scale, growing=growing)
        empty = found.most_reserved - found.most_allocated
        print(
            f"{name} segments: {found.most_allocated / 2**30:.1f} GiB allocated, {empty / 2**30:.2f} empty: {empty / largest:.2f} of the "
            f"largest tensor, {empty / (found.most_allocated - standing):.1%} of what comes and goes"
        )


if __name__ == "__main__":
    sys.exit(main())

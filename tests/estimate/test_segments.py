"""The model of torch's caching allocator that `scripts/bench/segments.py` replays trainings into."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

PATH = Path(__file__).parents[2] / "scripts" / "bench" / "segments.py"
MIB = 2**20


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("segments", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["segments"] = module
    spec.loader.exec_module(module)
    return module


SEGMENTS = load()


def after(steps: list[tuple[int, float]], *, growing: bool) -> tuple[float, float]:
    """MiB allocated and reserved at most, after tensors came (a number, MiB) or went (its negative, whatever)."""
    segments = SEGMENTS.Segments(growing=growing)
    for number, size in steps:
        if number > 0:
            segments.come(number, int(size * MIB))
        else:
            segments.go(-number)
    return segments.most_allocated / MIB, segments.most_reserved / MIB


@pytest.mark.parametrize(
    ("steps", "fixed", "growing"),
    [
        ([(1, 0.5)], 2, 2),
        ([(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5)], 2, 2),
        ([(1, 4), (2, 4)], 20, 20),
        ([(1, 11)], 12, 20),
        ([(1, 40), (-1, 0), (2, 30)], 40, 40),
        # What is left of a block is split off where it is larger than 1 MiB, and serves what fits.
        ([(1, 40), (-1, 0), (2, 30), (3, 10)], 40, 40),
        # A hole of 40 holds no 60: a fixed segment is new, a growing one is longer by whole pages of 20.
        ([(1, 40), (2, 40), (-1, 0), (3, 60)], 140, 140),
        # What is free at the end of a growing segment counts, that of a fixed one stays empty.
        ([(1, 40), (2, 40), (-2, 0), (3, 60)], 140, 100),
        # Neighbours are one hole again.
        ([(1, 10), (2, 10), (3, 10), (-1, 0), (-2, 0), (4, 20)], 50, 40),
    ],
)
def test_segments_are_torchs(steps: list[tuple[int, float]], fixed: float, growing: float) -> None:
    assert after(steps, growing=False)[1] == fixed
    assert after(steps, growing=True)[1] == growing


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0.001, 64)), max_size=60), st.booleans())
def test_what_is_reserved_is_what_lives_and_what_is_free(steps: list[tuple[int, float]], growing: bool) -> None:
    segments = SEGMENTS.Segments(growing=growing)
    for number, size in steps:
        if number in segments.live:
            segments.go(number)
        else:
            segments.come(number, int(size * MIB))
        free = sum(block.size for blocks in segments.free.values() for block in blocks)
        assert segments.reserved == segments.allocated + free
        spans = sorted((b.segment, b.small, b.offset, b.size) for b in segments.live.values())
        for (one, kind, at, length), (other, other_kind, later, _) in pairwise(spans):
            assert (one, kind) != (other, other_kind) or at + length <= later
    for number in list(segments.live):
        segments.go(number)
    assert segments.allocated == 0
    assert all(block.before is None and block.behind is None for blocks in segments.free.values() for block in blocks)

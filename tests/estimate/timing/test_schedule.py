"""Pipeline schedules: the simulation against first principles, the closed form against the simulation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.estimate.timing.schedule import Operation, operations, pipeline_time, timeline

sizes = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(1, 4))


def closed(forward: list[float], backward: list[float], *, pp: int, vp: int, microbatches: int) -> float:
    """The closed form, from the times of virtual stages."""
    each = [[sum(times[s::pp]) for s in range(pp)] for times in (forward, backward)]
    return pipeline_time(*each, vp=vp, microbatches=microbatches)


def simulate(
    forward: list[float], backward: list[float], *, pp: int, vp: int, microbatches: int, send: float = 0.0
) -> float:
    """Seconds until the last operation has ended."""
    return max(s.end for s in timeline(forward, backward, pp=pp, vp=vp, microbatches=microbatches, send=send))


@given(sizes)
def test_every_rank_does_each_micro_batch_of_each_chunk_once_forward_and_once_backward(
    size: tuple[int, int, int],
) -> None:
    pp, vp, rounds = size
    for rank in range(pp):
        order = operations(rank, pp, vp, pp * rounds)
        assert len(order) == len(set(order)) == 2 * vp * pp * rounds
        for i in range(pp * rounds):
            for chunk in range(vp):
                assert order.index(Operation(True, i, chunk)) < order.index(Operation(False, i, chunk))


@given(sizes, st.floats(0.1, 10.0), st.floats(0.1, 10.0))
@settings(max_examples=60)
def test_the_closed_form_is_exact_for_even_stages(size: tuple[int, int, int], f: float, b: float) -> None:
    pp, vp, rounds = size
    forward, backward = [f] * (pp * vp), [b] * (pp * vp)
    played = simulate(forward, backward, pp=pp, vp=vp, microbatches=pp * rounds)
    assert closed(forward, backward, pp=pp, vp=vp, microbatches=pp * rounds) == pytest.approx(played)


@given(st.integers(2, 6), st.integers(1, 6), st.lists(st.floats(0.7, 1.4), min_size=6, max_size=6))
@settings(max_examples=100)
def test_the_closed_form_is_near_the_simulation_for_uneven_stages(pp: int, rounds: int, weights: list[float]) -> None:
    forward, backward = [1.0 * w for w in weights[:pp]], [2.0 * w for w in weights[:pp]]
    played = simulate(forward, backward, pp=pp, vp=1, microbatches=pp * rounds)
    found = closed(forward, backward, pp=pp, vp=1, microbatches=pp * rounds)
    assert found == pytest.approx(played, rel=0.1)
    even = (sum(forward) + sum(backward)) / pp
    assert found >= even * (pp * rounds + pp - 1) * (1 - 1e-9)


@pytest.mark.parametrize("vp", [1, 2, 4])
def test_a_heavy_last_chunk_makes_its_stage_the_pace(vp: int) -> None:
    """Loss and output layer: the last chunk works half as long again."""
    pp, microbatches = 4, 32
    forward, backward = [1.0] * (pp * vp - 1) + [1.5], [2.0] * (pp * vp - 1) + [3.0]
    played = simulate(forward, backward, pp=pp, vp=vp, microbatches=microbatches)
    found = closed(forward, backward, pp=pp, vp=vp, microbatches=microbatches)
    assert found == pytest.approx(played, rel=0.05)
    assert found > microbatches * (3.0 * vp + 1.5)


def test_interleaving_divides_the_bubble() -> None:
    forward, backward = [4.0] * 4, [8.0] * 4
    plain = pipeline_time(forward, backward, vp=1, microbatches=8) - 8 * 12.0
    assert pipeline_time(forward, backward, vp=3, microbatches=8) - 8 * 12.0 == pytest.approx(plain / 3)


def test_one_stage_has_no_bubble() -> None:
    assert simulate([1.0], [2.0], pp=1, vp=1, microbatches=5) == pytest.approx(15.0)
    assert pipeline_time([1.0], [2.0], vp=1, microbatches=5) == pytest.approx(15.0)


@given(st.integers(2, 5), st.integers(1, 3), st.floats(0.0, 0.5))
@settings(max_examples=40)
def test_slower_links_never_make_a_pipeline_faster(pp: int, vp: int, send: float) -> None:
    forward, backward = [1.0] * (pp * vp), [2.0] * (pp * vp)
    quick = simulate(forward, backward, pp=pp, vp=vp, microbatches=2 * pp, send=0.0)
    assert simulate(forward, backward, pp=pp, vp=vp, microbatches=2 * pp, send=send) >= quick - 1e-9

"""Sick nodes stop the launch by name, or are left out where there are spares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.errors import ParlaunchError
from parlaunch.hardware.spares import healthy


def node(name: str, *, sick: int = 0, warned: int = 0) -> dict[str, Any]:
    return {"agreement": {"hostname": name}, "sick": [f"fault {i}" for i in range(sick)], "warned": ["w"] * warned}


def names(kept: list[Any]) -> list[str]:
    return [mine["agreement"]["hostname"] for mine in kept]


def test_a_sick_node_without_a_spare_is_named_with_its_fault() -> None:
    with pytest.raises(ParlaunchError, match=r"gpu-2 cannot run this job: gpu-2: fault 0") as caught:
        healthy([node("gpu-1"), node("gpu-2", sick=1)], nnodes=2, spares=0)
    assert "--spares" in caught.value.hint


def test_force_launches_on_a_sick_node() -> None:
    assert names(healthy([node("a"), node("b", sick=1)], nnodes=2, spares=0, force=True)) == ["a", "b"]


def test_the_sick_node_is_the_spare_then_the_one_with_warnings_then_the_last() -> None:
    came = [node("a", warned=1), node("b", sick=1), node("c"), node("d")]
    assert names(healthy(came, nnodes=4, spares=1)) == ["a", "c", "d"]
    assert names(healthy(came, nnodes=4, spares=2)) == ["c", "d"]
    assert names(healthy(came, nnodes=4, spares=3)) == ["c"]


def test_a_node_that_did_not_come_uses_up_a_spare() -> None:
    assert names(healthy([node("a"), node("b")], nnodes=3, spares=1)) == ["a", "b"]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 12))
def test_no_node_that_is_left_out_is_healthier_than_one_that_is_kept(
    faults: list[tuple[int, int]], spares: int
) -> None:
    came = [node(f"n{i}", sick=s, warned=w) for i, (s, w) in enumerate(faults)]
    kept = healthy(came, nnodes=len(came), spares=spares, force=True)
    badness = {f"n{i}": f for i, f in enumerate(faults)}
    out = [n for n in badness if n not in names(kept)]
    assert names(kept) == sorted(names(kept), key=lambda n: int(n[1:]))
    assert not out or min(badness[n] for n in out) >= max(badness[n] for n in names(kept))

"""Whose turn it is among the plans that wait to be measured."""

from __future__ import annotations

from dataclasses import replace

from parlaunch.check.turns import Turns
from parlaunch.planning.plan import Candidate
from tests.check.test_verdict import CANDIDATE, GIB


def needing(gib: int) -> Candidate:
    return replace(CANDIDATE, memory=replace(CANDIDATE.memory, activations=gib * GIB))


def turns(*plans: Candidate, top: int = 1, retries: int = 0) -> Turns[Candidate]:
    return Turns(plans, top=top, retries=retries, candidate=lambda each: each)


def test_the_best_are_measured_whatever_becomes_of_them() -> None:
    large, small = needing(9), needing(1)
    t = turns(large, small, top=2)
    for each in (large, small):
        assert t.take() == each
        t.ended(each, "nan")
    assert t.take() is None


def test_after_out_of_memory_what_needs_less_comes_first() -> None:
    failed, larger, smaller = needing(5), needing(9), needing(1)
    t = turns(failed, larger, smaller, retries=2)
    assert t.take() == failed
    t.ended(failed, "oom")
    assert t.take() == smaller
    t.ended(smaller, "oom")
    assert t.take() == larger
    t.ended(larger, "oom")
    assert t.take() is None


def test_retries_are_not_spent_on_what_no_other_plan_mends() -> None:
    first, second = needing(5), needing(4)
    for status in ("ok", "nan", "hang", "gpu", "interrupted", "gone"):
        t = turns(first, second, retries=3)
        t.take()
        t.ended(first, status)
        assert t.take() is None, status


def test_without_a_switch_all_that_wait_are_made_anew_and_a_second_one_may_be_dropped() -> None:
    first, second, anew, again = needing(5), needing(4), needing(3), needing(2)
    t = turns(first, second, top=2, retries=2)
    t.take()
    t.ended(first, "switch", without=lambda: [anew, second])
    assert t.take() == anew
    t.ended(anew, "switch", without=lambda: [again, second])
    assert [t.take(), t.take(), t.take()] == [again, second, None]


def test_a_switch_is_dropped_only_where_retries_are_left() -> None:
    first, second = needing(5), needing(4)
    t = turns(first, second, top=2)
    t.take()
    t.ended(first, "switch", without=lambda: [needing(1)])
    assert t.take() == second

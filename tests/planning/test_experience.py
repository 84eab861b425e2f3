"""Runs of one's own as evidence: what worked is taken within the error bar, what failed is avoided, and both are said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from parlaunch.check.remembered import row
from parlaunch.check.verdict import Failure, Iteration, Measured, judge
from parlaunch.hardware.datasheet import preset
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Candidate, Plan, Wishes
from parlaunch.planning.planner import plan

CLUSTER, RECIPE, WISHES = preset("dgx-h100", 1), recipe("llama3_8b_pretrain_config"), Wishes(evidence=True, top=8)


@cache
def fresh() -> Plan:
    return plan(CLUSTER, RECIPE, WISHES)


def ran(
    candidate: Candidate, *, seconds: float | None = None, failed: str | None = None, when: str = "2026-02-03"
) -> dict[str, Any]:
    """A row of the history for a layout of the plan."""
    took = tuple(Iteration(number=n, of=5, seconds=seconds or 1.0, loss=5.0) for n in range(1, 6)) if seconds else ()
    failures = (Failure(kind=failed, sentence="it failed"),) if failed else ()
    measured = Measured(iterations=took, failures=failures)
    verdict = judge(candidate, measured, returncode=1 if failed else 0, iterations=5)
    return row(replace(fresh(), chosen=candidate), measured, verdict, when=f"{when}T10:00:00+00:00")


def close() -> Candidate:
    """A runner-up that the model cannot tell from the chosen layout."""
    chosen = fresh().chosen
    bar = chosen.estimate.error_band
    return next(
        c for c in fresh().alternatives if c.estimate.iteration_time_s < chosen.estimate.iteration_time_s * (1 + bar)
    )


def test_a_layout_that_ran_here_is_taken_within_the_error_bar_and_the_plan_says_so() -> None:
    made = plan(CLUSTER, RECIPE, WISHES, history=[ran(close(), seconds=3.0)])
    assert made.layout == close().layout
    assert made.because[0].startswith("Proven here on 2026-02-03: 3.00 s an iteration")
    assert (made.evidence[0]["source"], made.evidence[0]["name"]) == ("history", ran(close(), seconds=3.0)["id"])


def test_of_two_layouts_that_ran_here_the_faster_one_is_taken_whatever_is_predicted() -> None:
    slow = max(fresh().alternatives, key=lambda c: c.estimate.iteration_time_s)
    chosen = fresh().chosen
    assert slow.estimate.iteration_time_s > chosen.estimate.iteration_time_s * (1 + chosen.estimate.error_band)
    assert plan(CLUSTER, RECIPE, WISHES, history=[ran(slow, seconds=3.0)]).layout == chosen.layout
    made = plan(CLUSTER, RECIPE, WISHES, history=[ran(slow, seconds=3.0), ran(chosen, seconds=4.0)])
    assert made.layout == slow.layout
    assert made.because[0] == (
        f"Proven here on 2026-02-03: 3.00 s an iteration; {chosen.layout}, predicted best, took 4.00 s on 2026-02-03."
    )
    again = plan(CLUSTER, RECIPE, WISHES, history=[ran(slow, seconds=5.0), ran(chosen, seconds=4.0)])
    assert again.layout == chosen.layout


def test_without_evidence_no_run_counts() -> None:
    made = plan(CLUSTER, RECIPE, replace(WISHES, evidence=False), history=[ran(close(), seconds=3.0)])
    assert not any("here on" in sentence for sentence in made.because)
    assert not made.evidence


def test_runs_of_another_training_or_machine_are_no_evidence() -> None:
    rows = [ran(close(), seconds=3.0)]
    assert (
        plan(preset("dgx-b200", 1), RECIPE, WISHES, history=rows).evidence
        == plan(preset("dgx-b200", 1), RECIPE, WISHES).evidence
    )
    longer = replace(RECIPE, seq_length=RECIPE.seq_length * 2)
    assert "history" not in {e["source"] for e in plan(CLUSTER, longer, WISHES, history=rows).evidence}


def test_a_layout_that_ran_out_of_memory_here_is_avoided_with_all_that_need_as_much() -> None:
    made = plan(CLUSTER, RECIPE, WISHES, history=[ran(fresh().chosen, failed="oom")])
    assert made.layout != fresh().layout
    assert made.chosen.memory.peak < fresh().chosen.memory.peak
    assert any(s.startswith(f"Avoided: {fresh().layout} failed here on 2026-02-03 (oom)") for s in made.because)


def test_a_nan_is_no_fault_of_the_layout() -> None:
    assert plan(CLUSTER, RECIPE, WISHES, history=[ran(fresh().chosen, failed="nan")]).layout == fresh().layout


def test_a_later_run_speaks_louder() -> None:
    rows = [ran(fresh().chosen, failed="oom"), ran(fresh().chosen, seconds=3.0, when="2026-03-04")]
    made = plan(CLUSTER, RECIPE, WISHES, history=rows)
    assert made.layout == fresh().layout
    assert "It ran here on 2026-03-04: 3.00 s an iteration." in made.because


def test_a_history_that_nobody_can_read_is_no_evidence_and_no_error() -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"planned": 3},
        {"gpus": 8, "seq": RECIPE.seq_length, "gbs": RECIPE.global_batch_size, "planned": {}},
    ]
    assert plan(CLUSTER, RECIPE, WISHES, history=rows) == fresh()

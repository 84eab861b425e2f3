"""A plan held against its first iterations: what passes, what fails, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.check.verdict import (
    FailedRank,
    Failure,
    Iteration,
    Measured,
    OutOfMemory,
    Verdict,
    judge,
    underestimated,
)
from parlaunch.estimate.values import Breakdown, Estimate, Memory
from parlaunch.model.layout import FULL_RECOMPUTE, Layout
from parlaunch.planning.plan import Candidate

GIB = 2**30
LAYOUT = Layout(world=8, tp=2, pp=2, global_batch_size=16)
CANDIDATE = Candidate(
    layout=LAYOUT,
    memory=Memory(
        weights=10 * GIB, gradients=10 * GIB, optimizer=20 * GIB, activations=15 * GIB, logits=2 * GIB, buffers=1 * GIB,
        runtime=4 * GIB, capacity=80 * GIB, limit=74 * GIB,
    ),
    estimate=Estimate(
        iteration_time_s=2.0, error_band=0.2, tokens_per_s_per_gpu=1e4, model_tflops_per_gpu=400.0, mfu=0.4,
        breakdown=Breakdown(compute_s=2.0),
    ),
)  # fmt: skip
GOOD = Measured(
    layout={"world": 8, "tp": 2, "pp": 2, "dp": 2},
    iterations=tuple(
        Iteration(number=n, of=5, seconds=s, loss=12.0 - n)
        for n, s in ((1, 30.0), (2, 4.0), (3, 2.2), (4, 2.1), (5, 2.3))
    ),
    peak_allocated=60 * GIB,
)


def verdict(measured: Measured = GOOD, **given: Any) -> Verdict:
    return judge(CANDIDATE, measured, **{"returncode": 0, "iterations": 5, **given})


def check(v: Verdict, name: str) -> Any:
    return next(c for c in v.compared if c.name == name)


def test_a_good_run_passes_every_check() -> None:
    v = verdict()
    assert v.ok
    assert all(c.ok for c in v.compared)
    assert v.sentences == ()


def test_time_is_the_median_after_the_warm_up_beside_the_prediction() -> None:
    c = check(verdict(), "iteration time")
    assert (c.predicted, c.measured) == ("2.00 s ± 20%", "2.20 s (+10%)")


def test_a_time_outside_the_band_is_reported_and_fails_nothing() -> None:
    slow = replace(GOOD, iterations=tuple(replace(i, seconds=3.0) for i in GOOD.iterations))
    v = verdict(slow)
    assert v.ok
    assert check(v, "iteration time").ok is False
    assert check(v, "iteration time").measured == "3.00 s (+50%)"


def test_memory_is_compared_as_each_source_counts_it() -> None:
    v = verdict(replace(GOOD, peak_reserved=63 * GIB), sampled_peak=62 * GIB)
    assert check(v, "peak memory, allocated").measured == "60.0 GiB (+3%)"
    assert check(v, "peak memory, reserved").found == 63 * GIB
    assert (check(v, "peak memory, in use").measured, check(v, "peak memory, in use").ok) == ("62.0 GiB (+0%)", True)
    assert check(verdict(replace(GOOD, peak_allocated=None)), "peak memory").ok is None


def test_memory_printed_before_the_optimizer_stepped_is_a_lower_bound() -> None:
    early = replace(GOOD, peak_allocated=None, early_allocated=30 * GIB)
    assert check(verdict(early), "peak memory, allocated").ok is None
    assert "at least 30.0 GiB" in check(verdict(early), "peak memory, allocated").measured
    above = replace(early, early_allocated=70 * GIB)
    assert check(verdict(above), "peak memory, allocated").ok is False
    assert verdict(above).ok


def test_on_cpu_nothing_is_predicted_and_layout_and_loss_are_still_checked() -> None:
    v = verdict(replace(GOOD, host_peak=GIB), device="cpu")
    assert v.ok
    assert check(v, "iteration time").ok is None
    assert check(v, "layout").ok is True
    assert "resident" in check(v, "peak memory").measured


def test_another_layout_than_planned_fails_and_says_which_size() -> None:
    v = verdict(replace(GOOD, layout={"tp": 4, "pp": 2}))
    assert v.status == "layout"
    c = check(v, "layout: tensor parallel")
    assert (c.predicted, c.measured, c.ok) == ("2", "4", False)


def test_groups_of_experts_are_compared_only_where_there_are_experts() -> None:
    assert verdict(replace(GOOD, layout={"tp": 2, "etp": 2, "edp": 1})).ok
    assert verdict(replace(GOOD, layout={"tp": 2, "ep": 2, "etp": 2})).status == "layout"


def test_a_loss_that_is_not_a_number_fails_although_the_run_ended_well() -> None:
    broken = replace(GOOD, iterations=(*GOOD.iterations[:-1], replace(GOOD.iterations[-1], loss=None, nans=1)))
    assert verdict(broken).status == "nan"


def test_iterations_that_were_skipped_need_no_loss() -> None:
    fp16 = replace(GOOD, iterations=(replace(GOOD.iterations[0], loss=None, skipped=1), *GOOD.iterations[1:]))
    assert verdict(fp16).ok


def test_a_training_that_logs_nothing_is_told_what_is_missing() -> None:
    v = verdict(Measured())
    assert (v.status, check(v, "finished").ok) == ("error", False)
    assert "logged no iteration" in v.sentences[0]


def test_a_bad_end_behind_the_last_iteration_is_not_called_early() -> None:
    v = verdict(returncode=7)
    assert v.sentences == ("it ended badly: exit code 7 after 5",)


def test_a_run_whose_every_iteration_was_skipped_has_not_trained() -> None:
    never = replace(GOOD, iterations=tuple(replace(i, loss=None, skipped=1) for i in GOOD.iterations))
    v = verdict(never)
    assert v.status == "skipped"
    assert check(v, "optimizer steps").measured == "0 of 5"
    assert "every iteration was skipped" in v.sentences[0]


def test_a_line_speaks_of_all_iterations_since_the_line_before() -> None:
    lines = tuple(Iteration(number=n, of=30, seconds=1.0, loss=5.0, skipped=k) for n, k in ((10, 3), (20, 0), (30, 10)))
    assert Measured(iterations=lines).steps == 7 + 10
    assert Measured(iterations=lines).loss_is_finite


@pytest.mark.parametrize("trailing", [1, 0])
def test_a_loss_that_was_finite_and_is_not_at_the_end_fails(trailing: int) -> None:
    last = replace(GOOD.iterations[-1], loss=None, nans=trailing, skipped=trailing)
    assert verdict(replace(GOOD, iterations=(*GOOD.iterations[:-1], last))).status == "nan"


def test_the_batch_and_the_precision_are_those_that_were_planned() -> None:
    batch = tuple(replace(i, global_batch=32) for i in GOOD.iterations)
    assert verdict(replace(GOOD, iterations=batch)).status == "batch"
    assert verdict(replace(GOOD, micro_batch=4)).status == "batch"
    assert verdict(replace(GOOD, precision="bf16"), precision="fp8mx").status == "precision"
    assert verdict(replace(GOOD, precision="bf16+fp8"), precision="fp8mx").ok
    assert verdict(replace(GOOD, precision="fp32"), precision="bf16", device="cpu").ok


def test_other_recomputation_than_planned_fails() -> None:
    again = verdict(replace(GOOD, recompute=FULL_RECOMPUTE))
    assert again.status == "recompute"
    assert any("computed other parts again" in sentence for sentence in again.sentences)
    same = verdict(replace(GOOD, recompute=CANDIDATE.layout.recompute))
    assert same.ok
    assert next(c for c in same.compared if c.name == "recompute").ok
    assert not [c for c in verdict(GOOD).compared if c.name == "recompute"]


def test_with_a_tolerance_time_and_memory_count() -> None:
    slow = replace(GOOD, iterations=tuple(replace(i, seconds=3.0) for i in GOOD.iterations))
    assert verdict(slow, tolerance=0.4).status == "time"
    assert verdict(slow, tolerance=0.6).ok
    assert verdict(replace(GOOD, peak_allocated=80 * GIB), tolerance=0.2).status == "memory"
    # What the GPU shows decides only where torch did not say.
    assert verdict(GOOD, tolerance=0.2, sampled_peak=90 * GIB).ok
    assert verdict(replace(GOOD, peak_allocated=None), tolerance=0.2, sampled_peak=90 * GIB).status == "memory"


def test_a_failure_that_nobody_knows_shows_the_last_lines_and_the_rank() -> None:
    odd = Measured(
        last_lines=("something", "strange"), failed_rank=FailedRank(rank=3, local_rank=3, host="n1", status=-11)
    )
    v = verdict(odd, returncode=139)
    assert v.status == "error"
    assert v.last_lines == ("something", "strange")
    assert "rank 3 on n1 failed first, ended by SIGSEGV" in v.sentences


def test_too_few_iterations_fail_although_the_exit_code_is_0() -> None:
    v = verdict(replace(GOOD, iterations=GOOD.iterations[:2]))
    assert v.status == "error"
    assert check(v, "finished").measured == "exit code 0 after 2"


def test_the_first_failure_names_the_status_and_is_explained() -> None:
    failed = replace(GOOD, failures=(Failure(kind="nccl", sentence="NCCL failed", todo="look there"),))
    v = verdict(failed, returncode=1)
    assert v.status == "nccl"
    assert v.sentences == ("NCCL failed; look there",)
    assert verdict(failed).ok  # a warning in the log of a run that ended well


def test_of_a_run_that_we_ended_no_rank_failed_first() -> None:
    """Ranks that are asked where they stand die of the question."""
    aborted = Measured(failed_rank=FailedRank(rank=1, local_rank=0, host="n1", status=-6))
    assert any("rank 1 on n1 failed first" in s for s in verdict(aborted, returncode=1).sentences)
    for ended in ("hang", "interrupted"):
        assert not any("failed first" in s for s in verdict(aborted, returncode=None, ended=ended).sentences)


def test_a_run_that_we_ended_hung() -> None:
    v = verdict(Measured(), returncode=None, ended="hang")
    assert v.status == "hang"
    assert check(v, "finished").measured == "still running, ended by us after 0"


@pytest.mark.parametrize(
    ("oom", "said"),
    [
        (OutOfMemory(tried=3 * GIB, allocated=74 * GIB, component="optimizer"), "more than the predicted 20.0 GiB of them"),
        (OutOfMemory(tried=3 * GIB, allocated=74 * GIB, component="optimizer"), "torch needed at least 77.0 GiB, predicted were 58.0 GiB"),
        (OutOfMemory(tried=GIB, allocated=50 * GIB, unallocated=20 * GIB), "lie in fragments"),
        (OutOfMemory(tried=GIB, allocated=50 * GIB, unallocated=GIB // 2, capacity=80 * GIB, free=GIB // 4), "29.2 GiB of the GPU belong to others"),
        (OutOfMemory(component="logits"), "logits were being made"),
        (OutOfMemory(), "does not tell which part"),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_part_that_was_underestimated(oom: OutOfMemory, said: str) -> None:
    assert said in underestimated(CANDIDATE.memory, oom)


def test_out_of_memory_is_explained_in_the_verdict() -> None:
    oom = OutOfMemory(tried=3 * GIB, allocated=74 * GIB, component="activations")
    failed = Measured(failures=(Failure(kind="oom", sentence="a GPU ran out of memory"),), out_of_memory=oom)
    v = verdict(failed, returncode=1)
    assert v.status == "oom"
    assert "activations were being made" in v.sentences[-1]

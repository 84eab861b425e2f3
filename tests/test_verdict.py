"""A plan held against its first iterations: what passes, what fails, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.catalog import recipe
from parlaunch.cpu import with_cpu_ranks
from parlaunch.datasheet import preset
from parlaunch.layout import Layout
from parlaunch.machine import Cluster, Node
from parlaunch.measured import Machines, run_of
from parlaunch.plan import Breakdown, Candidate, Estimate, Memory, Plan
from parlaunch.verdict import (
    Failure,
    Iteration,
    Measured,
    OutOfMemory,
    Verdict,
    judge,
    preset_like,
    row,
    underestimated,
)

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
    return next(c for c in v.checks if c.name == name)


def test_a_good_run_passes_every_check() -> None:
    v = verdict()
    assert v.ok
    assert all(c.ok for c in v.checks)
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


def test_memory_prefers_what_torch_allocated_to_what_the_gpu_showed() -> None:
    assert check(verdict(), "peak memory").measured == "60.0 GiB (+3%)"
    seen = replace(GOOD, peak_allocated=None)
    c = check(verdict(seen, sampled_peak=62 * GIB), "peak memory")
    assert (c.measured, c.ok) == ("62.0 GiB (+0%)", True)
    assert check(verdict(seen), "peak memory").ok is None


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


def test_a_run_that_we_ended_hung() -> None:
    v = verdict(Measured(), returncode=None, hung=True)
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


def test_a_row_of_the_history_is_read_by_validate() -> None:
    cluster = replace(preset("dgx-h100", 1), source="this machine")
    plan = Plan(recipe=recipe("llama3_8b_pretrain_config"), cluster=cluster, chosen=CANDIDATE)
    run = run_of(row(plan, GOOD, verdict(), when="2026-01-01T00:00:00"), Machines())
    assert (run.layout.tp, run.layout.pp, run.layout.world, run.layout.global_batch_size) == (2, 2, 8, 16)
    assert run.recipe.architecture == plan.recipe.architecture
    assert run.measured["iteration_time_s"] == 2.2
    assert run.measured["peak_memory_gb"] * run.memory_unit == 60 * GIB
    assert run.memory_kind == "allocated"


def test_a_row_of_a_run_that_failed_says_how_and_claims_no_time() -> None:
    plan = Plan(recipe=recipe("llama3_8b_pretrain_config"), cluster=preset("dgx-h100", 1), chosen=CANDIDATE)
    failed = replace(GOOD, failures=(Failure(kind="oom", sentence="out of memory"),))
    written = row(plan, failed, verdict(failed, returncode=1), when="2026-01-01T00:00:00")
    assert (written["status"], written["iteration_time_s"]) == ("oom", None)


@pytest.mark.parametrize("name", ["dgx-h100", "dgx-a100-80g", "gb200-nvl72", "l40s-pcie-8"])
def test_a_probed_machine_is_known_by_the_preset_it_is_like(name: str) -> None:
    found = preset_like(replace(preset(name, 1), source="this machine"))
    assert found is not None
    assert preset(found, 1).gpu.name == preset(name, 1).gpu.name
    assert preset(found, 1).gpus_per_node == preset(name, 1).gpus_per_node


def test_cpu_ranks_are_like_no_preset() -> None:
    host = Cluster(nodes=(Node(hostname="here", memory_bytes=2**35),), source="test")
    assert preset_like(with_cpu_ranks(host, 4)) is None

"""Rows of the history: read back, they give exactly the prediction of the plan that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.check.calibrate import from_runs
from parlaunch.check.measured import Machines, memory_of, run_of
from parlaunch.check.remembered import preset_like, row
from parlaunch.check.validate import validate
from parlaunch.check.verdict import Failure, Measured
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.cluster import Cluster, Node
from parlaunch.hardware.cpu import with_cpu_ranks
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model.catalog import recipe, recipe_names
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.planning.as_written import evaluated, own_layout
from parlaunch.planning.experience import failed_switches, runs_like
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.planning.planner import plan as make_plan
from parlaunch.switches.wanted import Wanted
from tests.check.test_verdict import CANDIDATE, GIB, GOOD, verdict


def planned(name: str, machine: str, nodes: int) -> Plan | None:
    """A plan, or None where the machine is too small for the recipe or a count does not go with it."""
    try:
        return make_plan(preset(machine, nodes), recipe(name), Wishes(top=0, switches=Wanted(auto=True)))
    except ParlaunchError:
        return None


def holds(made: Plan) -> None:
    written = json.loads(json.dumps(row(made, GOOD, verdict(), when="2026-01-01T00:00:00")))
    run = run_of(written, Machines())
    assert (run.recipe, run.layout, run.rates) == (made.configured, made.layout, made.rates), made.recipe.name
    assert estimate_time(run.recipe, run.layout, run.rates) == made.chosen.estimate
    memory = memory_of(run)
    assert (memory.peak, memory.allocated, memory.reserved) == (
        made.chosen.memory.peak, made.chosen.memory.allocated, made.chosen.memory.reserved,
    )  # fmt: skip


PARTS = 16
MACHINES = ("dgx-h100", "gb200-nvl72", "dgx-a100-80g", "dgx-b200", "l40s-pcie-8")
SWITCHED: tuple[dict[str, Any], ...] = (
    {},
    {"cuda_graph": "transformer_engine", "cuda_graph_scope": ("attn", "mlp")},
    {"tp_overlap": True, "nccl_ub": True, "grad_reduce_fp32": True},
    {"precision_aware_optimizer": True, "moments": "bfloat16", "master": "float16", "optimizer_offload": 0.5},
    {"offload_modules": ("core_attn", "mlp"), "cross_entropy": "te_wide", "fp8_param_gather": True},
    {"adapter_rank": 8, "adapter_targets": ("linear_qkv",), "adapter_dropout": True},
    {"dispatcher": "hybridep", "ep_overlap": True, "router_padding": True, "paged_stash": True},
)
RECOMPUTED = (NO_RECOMPUTE, FULL_RECOMPUTE, Recompute(granularity="selective", modules=("core_attn", "mlp")))


def as_somebody_runs_it(i: int, name: str) -> Plan:
    """The `i`-th recipe in its own layout or another, on one machine or another, with something of each kind that a plan may
    change: switches, recomputation, uneven stages, exchange of context, sharding, a machine file."""
    found, machine = recipe(name), MACHINES[i % len(MACHINES)]
    nodes = max(1, (found.gpus or 64) // preset(machine, 1).gpus_per_node)
    cluster = preset(machine, nodes)
    file = {
        "schema": "parlaunch.machine/1",
        "gpu": rates_of(cluster).product.name,
        "measured": {"hbm": 0.8, "host": 3e-6},
    }
    rates = rates_of(cluster, machine_file=file) if i % 4 == 1 else rates_of(cluster)
    layout = own_layout(found, rates) or Layout(world=rates.world_size, global_batch_size=found.global_batch_size)
    layers = len(found.architecture.layers())
    if layout.world % layout.model_parallel:  # made for more GPUs than a node of these has
        layout = Layout(world=layout.world, global_batch_size=layout.global_batch_size)
    if i % 3 == 1 and layers > 2 and layout.world % (2 * layout.tp * layout.cp) == 0:
        layout = replace(layout, pp=2, vp=None, layers_per_chunk=(layers // 2 + 1, layers - layers // 2 - 1))
    if i % 3 == 2 and layout.world % (2 * layout.tp * layout.pp) == 0:
        layout = replace(layout, cp=2, cp_comm_type=("a2a", "all_gather", "p2p")[i // 3 % 3])
    if i % 5 == 4:
        layout = replace(layout, fsdp=True)
    layout = replace(layout, recompute=RECOMPUTED[i // 2 % len(RECOMPUTED)])
    chosen = replace(found.features, **SWITCHED[i % len(SWITCHED)], fsdp=layout.fsdp)
    made = evaluated(replace(found, features=chosen), layout, rates)
    return Plan(recipe=found, cluster=cluster, rates=rates, chosen=replace(made, features=chosen))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_row_of_any_recipe_read_back_gives_exactly_the_prediction_of_its_plan(part: int) -> None:
    names = [(i, name) for i, name in enumerate(recipe_names()) if i % PARTS == part]
    assert len(names) > 40
    for i, name in names:
        holds(as_somebody_runs_it(i, name))


@settings(max_examples=4)
@given(
    st.sampled_from(recipe_names()),
    st.sampled_from(["dgx-b200", "gb200-nvl72", "dgx-a100-80g"]),
    st.sampled_from([2, 16, 64]),
)
def test_a_row_of_a_plan_with_chosen_switches_is_faithful(name: str, machine: str, nodes: int) -> None:
    if (made := planned(name, machine, nodes)) is not None:
        holds(made)


def test_rates_that_were_measured_are_part_of_the_row() -> None:
    file = {
        "schema": "parlaunch.machine/1",
        "gpu": rates_of(preset("dgx-h100", 1)).product.name,
        "measured": {"hbm": 0.8},
    }
    cluster = preset("dgx-h100", 1)
    holds(make_plan(cluster, recipe("llama3_8b_pretrain_config"), Wishes(), rates=rates_of(cluster, machine_file=file)))


def test_a_row_says_what_it_ran_with() -> None:
    made = planned("llama3_8b_pretrain_config", "dgx-h100", 1)
    assert made is not None
    said: dict[str, Any] = row(
        made, Measured(), verdict(Measured(), returncode=1), when="now", software={"torch": "2.9"}, site="eos"
    )
    assert (said["software"], said["site"], said["gpu"], len(said["nodes"])) == (
        {"torch": "2.9"},
        "eos",
        made.cluster.gpu.name,
        1,
    )


def test_a_row_of_the_history_is_read_by_validate() -> None:
    cluster = replace(preset("dgx-h100", 1), source="this machine")
    plan = Plan(recipe=recipe("llama3_8b_pretrain_config"), cluster=cluster, rates=rates_of(cluster), chosen=CANDIDATE)
    run = run_of(row(plan, GOOD, verdict(), when="2026-01-01T00:00:00"), Machines())
    assert (run.layout.tp, run.layout.pp, run.layout.world, run.layout.global_batch_size) == (2, 2, 8, 16)
    assert run.recipe.architecture == plan.recipe.architecture
    assert run.measured["iteration_time_s"] == 2.2
    assert run.measured["peak_memory_gb"] * run.memory_unit == 60 * GIB
    assert run.memory_kind == "allocated"


def test_a_row_of_a_run_that_failed_says_how_and_claims_no_time() -> None:
    cluster = preset("dgx-h100", 1)
    plan = Plan(recipe=recipe("llama3_8b_pretrain_config"), cluster=cluster, rates=rates_of(cluster), chosen=CANDIDATE)
    failed = replace(GOOD, failures=(Failure(kind="oom", sentence="out of memory"),))
    written = row(plan, failed, verdict(failed, returncode=1), when="2026-01-01T00:00:00", sampled_peak=79 * GIB)
    assert (written["status"], written["iteration_time_s"], written["peak_memory_gb"]) == ("oom", None, None)
    assert written["why"] == "out of memory"
    assert run_of(written, Machines()).oom


@pytest.mark.parametrize("name", ["dgx-h100", "dgx-a100-80g", "gb200-nvl72", "l40s-pcie-8"])
def test_a_probed_machine_is_known_by_the_preset_it_is_like(name: str) -> None:
    found = preset_like(replace(preset(name, 1), source="this machine"))
    assert found is not None
    assert preset(found, 1).gpu.name == preset(name, 1).gpu.name
    assert preset(found, 1).gpus_per_node == preset(name, 1).gpus_per_node


def test_cpu_ranks_are_like_no_preset() -> None:
    host = Cluster(nodes=(Node(hostname="here", memory_bytes=2**35),), source="test")
    assert preset_like(with_cpu_ranks(host, 4)) is None


NONSENSE: tuple[Any, ...] = (None, "x", -1, 0, [], {}, float("nan"))


def spoilt(good: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row with one field after the other of another kind: by hand, by another release, by a disk."""
    for value in NONSENSE:
        yield from (good | {name: value} for name in good)
        for part, fields in good["planned"].items():
            for name in fields:
                yield good | {"planned": good["planned"] | {part: fields | {name: value}}}


def test_a_spoilt_row_costs_no_other() -> None:
    made = planned("llama3_8b_pretrain_config", "dgx-h100", 1)
    assert made is not None
    good = json.loads(json.dumps(row(made, GOOD, verdict(), when="2026-01-01T00:00:00")))
    every = [good, *spoilt(good)]
    assert len(every) > 500
    assert runs_like(every, made.configured, made.rates)
    assert failed_switches(every, made.rates) == {}
    said = validate(every)
    assert len(said["rows"]) == len(every)
    assert said["rows"][0]["predicted"]
    assert any(entry["note"] and not entry["predicted"] for entry in said["rows"])
    assert from_runs(every)["fit"]["rows"] >= 1

"""The choice of switches: nothing lost beside a search for each combination, nothing turned on for less than its error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch import front
from parlaunch.check import remembered
from parlaunch.check.symptoms import symptom_of
from parlaunch.check.verdict import Failure, Measured
from parlaunch.cli.choices import without
from parlaunch.cli.job import job_of, planned
from parlaunch.cli.launch import situation_of
from parlaunch.cli.request import Request
from parlaunch.environment.user_overrides import with_precision
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.hardware.cluster import Cluster, Node
from parlaunch.hardware.cpu import with_cpu_ranks
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.installed import Installed, newest
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.tiny import shrink
from parlaunch.planning.as_written import as_recipe
from parlaunch.planning.plan import Plan, Switched, Wishes, plan_from_json, plan_to_json
from parlaunch.planning.planner import plan, why_not_switched, with_candidate
from parlaunch.planning.search import Search
from parlaunch.planning.switching import Chooser
from parlaunch.rules import why_not
from parlaunch.switches.never import NEVER
from parlaunch.switches.switch import Switch
from parlaunch.switches.table import SWITCHES, problem, stopped, switch
from parlaunch.switches.wanted import Wanted, wanted_from
from tests.check.test_verdict import verdict

EXPERTS = ("qwen3_30b_a3b_pretrain_config", "deepseek_v2_lite_pretrain_config", "olmoe_7b_pretrain_config")
AUTO = Wanted(auto=True)


def auto(recipe: Recipe, cluster: Cluster, **wishes: object) -> Plan:
    return plan(cluster, recipe, Wishes(switches=AUTO, **wishes))  # type: ignore[arg-type]


def chosen(made: Plan) -> list[Switched]:
    """The plan's switches that are rows of the table: binding is none of Bridge's."""
    return [s for s in made.switches if switch(s.name) is not None]


def forbidden(keys: Iterable[str]) -> tuple[str, ...]:
    """Those of the keys that no plan may change."""
    kept = [k for row in NEVER for k in row.keys]
    return tuple(key for key in keys if any(key == k or (k[-1] == "." and key.startswith(k)) for k in kept))


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("machine", ["dgx-h100:1", "gb200-nvl72:2", "dgx-b300:2", "p5.48xlarge:2"])
def test_the_staged_search_loses_nothing_beside_one_for_each_combination(name: str, machine: str) -> None:
    kind, _, nodes = machine.partition(":")
    cluster, recipe = preset(kind, int(nodes)), catalog.recipe(name)
    rates, wishes = rates_of(cluster), Wishes(switches=AUTO, evidence=False)
    chooser = Chooser(recipe, rates, newest(), AUTO)
    least = float("inf")
    for values in chooser.variants():
        variant = chooser.with_(values)
        for c in Search(variant, rates, wishes).run(keep=40).ranked:
            if problem(c.layout, variant, chooser.place) is None:
                least = min(least, c.estimate.iteration_time_s * (1 + chooser.margin(variant.features, c.layout)))
    search = Search(chooser.fullest, rates, wishes, at=chooser.at, forbids=chooser.forbids)
    staged = chooser.together(search, search.run(keep=30).ranked, wishes)
    assert min(c.estimate.iteration_time_s * (1 + chooser.charged(c)) for c in staged) <= least * 1.001


@settings(max_examples=25)
@given(
    name=st.sampled_from(
        (*EXPERTS, "llama3_8b_pretrain_config", "gpt_oss_20b_pretrain_config", "kimi_k2_pretrain_config")
    ),
    kind=st.sampled_from(("dgx-a100-80g", "dgx-h100", "gb200-nvl72", "dgx-b200", "p5.48xlarge", "l40s-pcie-8")),
    nodes=st.sampled_from((1, 2, 4, 32)),
    missing=st.sets(st.sampled_from(("deep_ep", "hybrid_ep", "transformer_engine"))),
)
def test_whatever_is_turned_on_is_legal_and_touches_nothing_of_convergence(
    name: str, kind: str, nodes: int, missing: set[str]
) -> None:
    cluster, recipe = preset(kind, nodes), catalog.recipe(name)
    there = Installed(versions=tuple((package, None) for package in sorted(missing)), source="a test")
    chooser = Chooser(recipe, rates_of(cluster), there, AUTO)
    search = Search(chooser.fullest, chooser.rates, Wishes(), at=chooser.at)
    for found in search.run(keep=3).ranked:
        best = chooser.best(found, headroom=Wishes().headroom)
        mine = replace(recipe, features=best.features or recipe.features)
        assert chooser.problem(best.layout, mine) is None
        assert why_not(best.layout, mine, chooser.rates) is None
        said = [key for row in SWITCHES if (value := row.read(mine.features)) for key in row.keys(mine, value)]
        assert not forbidden(said)


def test_no_row_of_the_table_sets_what_is_never_touched() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    for row in SWITCHES:
        for value in row.values:
            taken = row.accepts(value)
            assert taken is not None
            mine = replace(recipe, features=row.put(recipe.features, taken))
            assert not forbidden(row.keys(mine, taken)), row.name


@pytest.mark.parametrize("row", SWITCHES, ids=lambda r: r.name)
def test_every_row_says_what_it_does_to_the_numbers_and_where_that_is_written(row: Switch) -> None:
    assert all((row.numerics, row.source, row.what, row.user_keys))
    assert row.error[""] > 0


def test_recipe_switches_give_the_plan_that_was_always_made() -> None:
    cluster, recipe = preset("dgx-h100", 2), catalog.recipe("qwen3_30b_a3b_pretrain_config")
    kept = plan(cluster, recipe, Wishes())
    assert kept.switches == ()
    assert kept.chosen.features is None
    assert kept.configured is recipe


def test_a_dispatcher_that_the_gpu_cannot_run_is_replaced_and_the_plan_says_why() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    recipe = replace(recipe, features=replace(recipe.features, dispatcher="deepep"))
    made = auto(recipe, preset("gb200-nvl72", 4))
    row = next(s for s in made.switches if s.name == "dispatcher")
    assert (row.recipe_value, row.value != "deepep") == ("deepep", True)
    assert "DeepEP does not run on" in row.reason


STASHED = "qwen3_30b_a3b_pretrain_8gpu_vr200_fp8mx_config"


@pytest.mark.parametrize("machine", ["l40s-pcie-8", "dgx-a100-80g"])
def test_a_paged_stash_keeps_its_dispatcher_where_another_would_be_faster(machine: str) -> None:
    """Megatron has it with HybridEP alone, and it is never ours to turn off."""
    made = auto(with_precision(catalog.recipe(STASHED), "bf16"), preset(machine, 4))
    assert made.configured.features.dispatcher == "hybridep"
    assert "dispatcher" not in {s.name for s in made.switches}


def test_a_paged_stash_without_its_dispatcher_says_how_to_train_without() -> None:
    with pytest.raises(ParlaunchError, match=r"needs the hybridep dispatcher; model\.moe_paged_stash=False"):
        auto(with_precision(catalog.recipe(STASHED), "bf16"), preset("dgx-spark", 16))


def test_no_dispatcher_crosses_a_network_that_gpus_cannot_drive() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    recipe = replace(recipe, features=replace(recipe.features, dispatcher="deepep"))
    chooser = Chooser(recipe, rates_of(preset("p5.48xlarge", 8)), newest(), AUTO)
    made = auto(recipe, preset("p5.48xlarge", 8), ep=64)
    assert chooser.problem(made.layout, made.configured) is None
    assert made.configured.features.dispatcher == "alltoall"


def test_what_is_missing_on_the_machine_is_not_chosen() -> None:
    recipe = catalog.recipe("olmoe_7b_pretrain_config")
    there = Installed(versions=(("deep_ep", None), ("hybrid_ep", None)), source="probe")
    made = plan(preset("dgx-h100", 4), recipe, Wishes(switches=AUTO), software=there)
    assert made.configured.features.dispatcher in ("alltoall", "allgather", None)


def test_a_fixed_switch_stays_and_the_plan_is_estimated_with_it() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    fixed = wanted_from("dispatcher=alltoall,graphs=off,permute_fusion=on")
    made = plan(preset("dgx-h100", 2), recipe, Wishes(switches=fixed))
    features = made.configured.features
    assert (features.dispatcher, features.cuda_graph) == ("alltoall", None)
    rows = {s.name: s for s in made.switches}
    assert dict(rows["permute_fusion"].keys) == {"model.moe_permute_fusion": True}
    assert rows["permute_fusion"].seconds is None
    assert "dispatcher=alltoall" in why_not_switched(made, "dispatcher", "alltoall", Wishes())


@pytest.mark.parametrize(
    ("said", "sizes", "sentence"),
    [
        ("gather_in_step=on", {"vp": 1}, "gather_in_step=on: it needs VP"),
        ("deferred_embedding=on", {"pp": 1}, "deferred_embedding=on: it hides in the pipeline's bubble, and PP is 1"),
        ("fsdp_unit=100000", {}, "fsdp_unit=100000: it is Megatron-FSDP's"),
        ("fp8_gather=on", {}, "fp8_gather=on: weights in bf16 have no FP8 form"),
        ("dispatcher_sms=20", {}, "dispatcher_sms=20: alltoall sends tokens with NCCL"),
        ("dispatcher_sms=20", {"tp": 1, "pp": 1, "cp": 1, "micro_batch_size": 16}, "dispatcher_sms=20: alltoall sends"),
        ("router_fusion=on", {}, "router_fusion=on: the model has no experts"),
    ],
)
def test_a_switch_that_was_asked_for_where_it_cannot_be_is_refused_with_the_reason(
    said: str, sizes: dict[str, int], sentence: str
) -> None:
    wishes = Wishes(switches=wanted_from(said), **sizes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=re.escape(sentence)):
        plan(preset("dgx-h100", 1), catalog.recipe("llama3_8b_pretrain_config"), wishes)


@pytest.mark.parametrize(
    ("asked", "layout", "changes", "sentence"),
    [
        ("gather_in_step=on", {}, {}, None),
        ("gather_in_step=on", {"fsdp": True}, {}, "Megatron-FSDP gathers a unit's weights"),
        ("gather_in_step=on", {}, {"optimizer": "muon"}, "Muon's step does not go by chunks"),
        ("nccl_registration=off", {"fsdp": True}, {}, None),
        ("nccl_registration=off", {"fsdp": True}, {"features": Features(nccl_ub=True)}, "registers Megatron-FSDP's buffers by hand"),
    ],
)  # fmt: skip
def test_what_bridge_would_have_otherwise_is_refused(
    asked: str, layout: dict[str, Any], changes: dict[str, Any], sentence: str | None
) -> None:
    recipe = replace(catalog.recipe("llama3_8b_pretrain_config"), **changes)
    name, _, value = asked.partition("=")
    said = stopped(Layout(world=8, pp=2, vp=2, global_batch_size=512, **layout), recipe, {name: value})
    assert said is None if sentence is None else sentence in str(said)


def test_gathering_in_the_step_brings_the_overlap_that_it_starts() -> None:
    recipe = catalog.recipe("llama3_8b_pretrain_config")
    keys = dict.fromkeys(
        ("overlap_grad_reduce", "overlap_param_gather", "overlap_param_gather_with_optimizer_step"), True
    )
    row = next(row for row in SWITCHES if row.name == "gather_in_step")
    assert row.keys(recipe, "on") == {f"comm_overlap.{key}": value for key, value in keys.items()}
    both = stopped(
        Layout(world=8, pp=2, vp=2, global_batch_size=512), recipe, {"dp_overlap": "off", "gather_in_step": "on"}
    )
    assert "dp_overlap=off" in str(both)


def test_what_unfused_sums_of_gradients_cost_is_answered() -> None:
    made = plan(preset("dgx-h100", 1), catalog.recipe("llama3_8b_pretrain_config"), Wishes(evidence=False, top=0))
    sentence = why_not_switched(made, "gradient_fusion", "off", Wishes(evidence=False, top=0))
    assert sentence.startswith("gradient_fusion=off runs and fits, and is ")
    assert "slower" in sentence


def test_without_gradient_fusion_nothing_is_deferred_or_delayed_that_needs_it() -> None:
    row = next(row for row in SWITCHES if row.name == "gradient_fusion")
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    fused, deferred, delayed = (
        "model.gradient_accumulation_fusion", "comm_overlap.defer_embedding_wgrad_compute", "comm_overlap.delay_wgrad_compute",
    )  # fmt: skip
    assert row.keys(recipe, "on") == {fused: True}
    assert row.keys(recipe, "off") == {fused: False, deferred: False, delayed: False}


def test_levels_of_context_parallelism_reach_bridge_with_how_they_exchange() -> None:
    made = front.plan(
        "llama3_8b_pretrain_config", "dgx-h100:2", seq_length=131072, cp=16, switches="recipe,cp_exchange=a2a+p2p"
    )
    assert {"model.cp_comm_type=a2a+p2p", "model.hierarchical_context_parallel_sizes=[8,2]"} <= set(made.overrides)


def test_a_switch_that_failed_here_is_avoided_until_it_runs_and_the_plan_says_so() -> None:
    wanted, cluster = catalog.recipe("olmoe_7b_pretrain_config"), preset("gb200-nvl72", 4)
    made = auto(wanted, cluster)
    name, value = next((s.name, s.value) for s in made.switches if s.name in ("dispatcher", "graphs"))
    line = {
        "dispatcher": "RuntimeError: DeepEP error: timeout (dispatch CPU)",
        "graphs": "operation not permitted when stream is capturing",
    }[name]
    found = symptom_of(line)
    assert found is not None
    broken = Measured(failures=(Failure(kind="switch", sentence=line, switch=found[0].switch),))
    failed = remembered.row(made, broken, verdict(broken, returncode=1), when="2026-01-02T03:04:05")
    assert failed["failed_switch"] == {"name": name, "value": value}
    again = plan(cluster, wanted, Wishes(switches=AUTO), history=[failed])
    assert (name, value) not in {(s.name, s.value) for s in again.switches}
    assert any(f"{name}={value} failed here on 2026-01-02" in why for why in again.because)
    asked = plan(cluster, wanted, Wishes(switches=wanted_from(f"auto,{name}={value}")), history=[failed])
    assert (name, value) in {(s.name, s.value) for s in asked.switches}
    since = remembered.row(made, Measured(), verdict(Measured(), returncode=0), when="2026-02-01T00:00:00") | {
        "status": "ok"
    }
    assert plan(cluster, wanted, Wishes(switches=AUTO), history=[failed, since]).switches == made.switches


def test_a_plan_with_switches_survives_being_saved() -> None:
    made = auto(catalog.recipe("olmoe_7b_pretrain_config"), preset("gb200-nvl72", 4))
    assert plan_from_json(plan_to_json(made, version="0"), where="a test") == made


def test_a_switch_is_turned_on_only_for_more_than_its_error() -> None:
    for name in EXPERTS:
        for machine in ("dgx-h100", "gb200-nvl72", "dgx-a100-80g"):
            made = auto(catalog.recipe(name), preset(machine, 2))
            for s in chosen(made):
                row = next(r for r in SWITCHES if r.name == s.name)
                if s.seconds is not None:
                    gain = s.seconds / made.chosen.estimate.iteration_time_s
                    near = made.layout.ep <= made.rates.nvlink_domain
                    assert gain > row.margin(s.value, near=near) * 0.999, (name, machine, s)


def test_a_recipe_for_reproducible_runs_keeps_its_switches() -> None:
    recipe = catalog.recipe("olmoe_7b_pretrain_config")
    cluster = preset("gb200-nvl72", 4)
    assert chosen(auto(recipe, cluster))
    assert not chosen(auto(replace(recipe, env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}), cluster))


def test_verify_goes_on_without_the_switch_that_failed() -> None:
    request = Request(command="plan", recipe="olmoe_7b_pretrain_config", hardware="gb200-nvl72:4")
    job = job_of(request, situation_of(request))
    made = planned(job)
    name = next(s.name for s in made.switches)
    known = switch(name)
    found = without(job, made, made.chosen, name)
    assert known is not None
    assert found is not None
    job, again = found
    assert known.read(again.configured.features) == known.known_off
    assert without(job, again, again.chosen, name) is None  # it is off: something else is wrong
    other = next(s.name for s in chosen(again) if s.name != name and s.value != "off")
    found = without(job, again, again.chosen, other)
    assert found is not None
    assert known.read(found[1].configured.features) == known.known_off  # the first one stays dropped


def test_a_switch_that_was_asked_for_is_not_dropped() -> None:
    request = Request(
        command="plan", recipe="olmoe_7b_pretrain_config", hardware="gb200-nvl72:4", switches="dispatcher=hybridep"
    )
    job = job_of(request, situation_of(request))
    made = planned(job)
    assert without(job, made, made.chosen, "dispatcher") is None


def test_a_dispatcher_for_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ParlaunchError, match="a dispatcher sends tokens to experts, and llama3_70b has none"):
        front.plan(
            "llama3_70b_pretrain_64gpu_b300_fp8mx_config",
            "gb300-nvl72:16",
            switches="recipe,dispatcher=deepep",
            evidence=False,
        )


# --- What Megatron Bridge would refuse --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "machine", "switches", "more", "sentence"),
    [
        ("llama3_8b_pretrain_config", "dgx-h100:1", "fp8_gather=off", {"precision": "fp8cs"}, "name of a preset"),
        ("gpt_oss_20b_pretrain_config", "dgx-h100:2", "rope_fusion=on", {}, "plain rotary embeddings"),
        ("llama3_8b_pretrain_config", "dgx-h100:2", "offload=moe_act", {}, "a module of experts"),
        ("llama3_8b_pretrain_config", "dgx-h100:2", "deferred_embedding=on,gradient_fusion=off", {"pp": 2, "vp": 1},
         "gradient_accumulation_fusion to False, and deferred_embedding=on to True"),
        ("qwen3_30b_a3b_pretrain_config", "dgx-h100:2", "graphs=attn+moe", {}, "fixed number of tokens"),
        ("qwen3_30b_a3b_pretrain_config", "dgx-h100:2", "graphs=attn+mlp", {}, "needs dense layers"),
    ],
)  # fmt: skip
def test_what_bridge_would_refuse_of_a_switch_is_refused_with_the_sentence(
    name: str, machine: str, switches: str, more: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ParlaunchError, match=re.escape(sentence)):
        front.plan(name, machine, switches=f"recipe,{switches}", **more)  # type: ignore[arg-type]
    assert front.plan(name, machine, switches="recipe", **more).layout  # type: ignore[arg-type]


def test_a_switch_comes_with_what_bridge_asks_of_it() -> None:
    made = front.plan("qwen3_30b_a3b_pretrain_config", "dgx-h100:2", switches="deferred_embedding=on", pp=2, vp=1)
    assert "model.gradient_accumulation_fusion=True" in made.overrides
    made = front.plan("llama3_8b_pretrain_config", "dgx-h100:2", switches="recipe,graphs=full,offload=core_attn")
    assert made.overrides.count("model.fine_grained_offloading_max_inflight_offloads=1") == 1
    unit = "mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=False"
    recipe = catalog.recipe("llama3_70b_pretrain_64gpu_gb200_fp8mx_config")
    assert (recipe.precision, recipe.features.fp8_param_gather) == ("fp8mx", True)
    for fsdp in (True, False):
        made = front.plan(recipe.name, "gb200-nvl72:16", switches="recipe,fp8_gather=off", fsdp=fsdp)
        assert {unit, "mixed_precision.fp8_param_gather=False"} <= set(made.overrides)


def test_latent_queries_and_keys_made_by_one_kernel_come_with_megatrons_experimental_features() -> None:
    """Core before 0.16 refuses the kernel without them; grouped queries have another one, sparse attention has none."""
    row, experimental = switch("rope_fusion"), "dist.enable_megatron_core_experimental"
    assert row is not None
    alone = Layout(world=8)
    latent, grouped, sparse = (
        catalog.recipe(name)
        for name in (
            "moonlight_16b_pretrain_config",
            "qwen3_8b_pretrain_config",
            "glm52_pretrain_192gpu_gb200_bf16_config",
        )
    )
    assert row.keys(latent, "on").get(experimental) is True
    assert experimental not in {**row.keys(latent, "off"), **row.keys(grouped, "on")}
    assert [row.stops(alone, r, "on") is None for r in (latent, grouped, sparse)] == [True, True, False]
    sizes = {"tp": 2, "pp": 1, "ep": 8, "micro_batch_size": 1, "evidence": False}
    asked = (
        {"switches": "recipe,rope_fusion=on"},
        {"switches": "recipe", "overrides": ("model.apply_rope_fusion=True",)},
    )
    without, *made = (
        front.plan(latent.name, "dgx-h100:2", **sizes | said) for said in ({"switches": "recipe"}, *asked)
    )
    for plan_of in made:
        assert {"model.apply_rope_fusion=True", f"{experimental}=True"} <= set(plan_of.overrides)
        assert plan_of.chosen.estimate.iteration_time_s < 0.99 * without.chosen.estimate.iteration_time_s


def test_weights_packed_in_fp4_are_gathered_so_but_under_fsdp() -> None:
    """Megatron-FSDP has no buffers for them: Bridge's own recipe turns it off there (perf_recipes/nemotronh/common.py)."""
    name, off = "llama3_70b_pretrain_64gpu_gb200_nvfp4_config", "mixed_precision.fp4_param_gather=False"
    assert catalog.recipe(name).features.fp4_param_gather
    assert off not in front.plan(name, "gb200-nvl72:16", switches="recipe", fsdp=False).overrides
    assert off in front.plan(name, "gb200-nvl72:16", switches="recipe", fsdp=True).overrides
    assert not catalog.recipe("nemotron_3_super_pretrain_64gpu_gb200_nvfp4_config").features.fp4_param_gather


def test_a_switch_of_the_recipe_falls_where_the_layout_excludes_it_and_excludes_no_layout() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    recipe = replace(recipe, features=replace(recipe.features, tp_overlap=True))
    for wanted in (AUTO, Wanted(fixed=(("rope_fusion", "off"),))):
        made = plan(preset("dgx-h100", 2), recipe, Wishes(switches=wanted, tp=1, evidence=False))
        assert made.layout.tp == 1
    asked = Wanted(fixed=(("tp_overlap", "on"),))
    with pytest.raises(UsageError, match="needs TP above 1"):
        plan(preset("dgx-h100", 2), recipe, Wishes(switches=asked, tp=1, evidence=False))


@pytest.mark.parametrize("precision", ["bf16", "nvfp4"])
def test_a_recipe_whose_overlap_needs_tensor_parallelism_is_planned_without_it_too(precision: str) -> None:
    recipe = with_precision(catalog.recipe("llama3_70b_pretrain_32gpu_h100_bf16_config"), precision)
    assert recipe.features.tp_overlap
    cluster, wishes = preset("gb200-nvl72", 16), Wishes(switches=AUTO, tp=1)
    made = plan(cluster, recipe, wishes)
    assert made.layout.tp == 1
    assert (
        plan(cluster, recipe, Wishes(switches=AUTO)).chosen.estimate.iteration_time_s
        <= made.chosen.estimate.iteration_time_s
    )
    with pytest.raises(UsageError, match="TP above 1"):
        plan(cluster, recipe, replace(wishes, switches=wanted_from("tp_overlap=on")))


def test_user_buffers_asked_for_in_a_format_that_they_cannot_gather_are_refused_with_the_reason() -> None:
    recipe = with_precision(catalog.recipe("llama3_70b_pretrain_32gpu_h100_bf16_config"), "nvfp4")
    with pytest.raises(UsageError, match="not nvfp4"):
        plan(preset("gb200-nvl72", 16), recipe, Wishes(switches=wanted_from("tp_overlap=on"), tp=2))


def test_a_switch_of_the_recipe_s_that_falls_is_not_said_to_be_on() -> None:
    recipe = with_precision(catalog.recipe("llama3_70b_pretrain_32gpu_h100_bf16_config"), "nvfp4")
    made = auto(recipe, preset("gb200-nvl72", 16), tp=2)
    assert "not nvfp4" in why_not_switched(made, "tp_overlap", "on", Wishes())


def test_frozen_weights_in_fp8_need_no_optimizer_that_shards_them() -> None:
    recipe = with_precision(catalog.recipe("llama3_70b_peft_config"), "fp8cs")
    made = auto(recipe, preset("dgx-b200", 1))
    assert problem(made.layout, made.configured, Chooser(recipe, made.rates, newest(), AUTO).place) is None


def test_a_run_with_switches_of_ours_is_evidence_for_the_recipe_that_has_them_off() -> None:
    cluster, recipe = preset("gb200-nvl72", 4), catalog.recipe("olmoe_7b_pretrain_config")
    made = auto(recipe, cluster)
    assert made.switches
    ran = remembered.row(made, Measured(), verdict(Measured(), returncode=0), when="2026-02-01T00:00:00") | {
        "status": "ok", "iteration_time_s": 1.5,
    }  # fmt: skip
    again = plan(cluster, recipe, Wishes(switches=AUTO), history=[ran])
    assert any("ran here on 2026-02-01: 1.50 s" in sentence for sentence in again.because), again.because
    # As the recipe has them, it was another training.
    kept = plan(cluster, recipe, Wishes(), history=[ran])
    assert not any("ran here" in sentence or "Proven here" in sentence for sentence in kept.because)
    failed = ran | {"status": "oom", "iteration_time_s": None}
    avoided = plan(cluster, recipe, Wishes(switches=AUTO), history=[failed])
    assert avoided.layout != made.layout


def on_cpu(switches: str, **wishes: int) -> Plan:
    ranks = with_cpu_ranks(Cluster(nodes=(Node(hostname="here", memory_bytes=2**35),), source="test"), 4)
    recipe = shrink(catalog.recipe("qwen3_30b_a3b_pretrain_config"), 4, keep=wishes)
    return plan(ranks, recipe, Wishes(switches=wanted_from(switches), **wishes))  # type: ignore[arg-type]


def test_cpu_ranks_are_told_switches_where_their_runners_hear_them() -> None:
    made = on_cpu("dp_overlap=on,dp_bucket=20000,p2p_overlap=on,graphs=off", pp=2, vp=2)
    assert dict(pair for s in made.switches for pair in s.keys) == {
        "ddp.overlap_grad_reduce": True, "ddp.overlap_param_gather": True, "optimizer.overlap_param_gather": True,
        "ddp.bucket_size": 20000, "model.overlap_p2p_comm": True, "model.batch_p2p_comm": False,
    }  # fmt: skip


def test_on_cpu_ranks_nothing_is_on_of_itself() -> None:
    assert on_cpu("auto").switches == ()


@pytest.mark.parametrize(
    "asked", ["dispatcher=alltoall", "graphs=attn", "tp_overlap=on", "optimizer_offload=0.5", "offload=core_attn", "rope_fusion=on",
              "p2p_overlap=off", "fsdp=on"]
)  # fmt: skip
def test_cpu_ranks_refuse_a_switch_that_needs_cuda(asked: str) -> None:
    with pytest.raises(UsageError, match=f"--switches {asked} does not run on CPU ranks"):
        on_cpu(f"bias_fusion=on,{asked}")


def test_how_many_layers_are_recomputed_is_nothing_to_a_switch() -> None:
    """`Chooser` remembers by layout what is on, and leaves that out."""
    recipe, rates = catalog.recipe("deepseek_v3_pretrain_config"), rates_of(preset("dgx-h100", 16))
    chooser = Chooser(recipe, rates, newest(), AUTO)
    again = [FULL_RECOMPUTE, *(Recompute(granularity="full", method="block", num_layers=n) for n in (1, 5))]
    for row in SWITCHES:
        for layout in (Layout(world=128, ep=8), Layout(world=128, pp=4, vp=2, ep=16), Layout(world=128, tp=2, pp=4)):
            found = {row.refused(replace(layout, recompute=r), chooser.fullest, chooser.place) for r in again}
            assert len(found) == 1, (row.name, layout)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("graphs", "attn", "graphs=attn does not run on CPU ranks: they have no CUDA kernels, no streams and no NCCL; of graphs they take off."),
        ("dispatcher", "deepep", "they run with dispatcher=allgather."),
        ("tp_overlap", "on", "does not run on CPU ranks"),
        ("optimizer_offload", "0.5", "of optimizer_offload they take 0."),
        ("graphs", "off", "this is the plan: graphs=off."),
        ("dp_overlap", "on", "this is the plan: dp_overlap=on."),
        ("bias_fusion", "off", "this is the plan: bias_fusion=off."),
        ("bias_fusion", "on", "less than the 5.0% that such a prediction may be wrong by."),
        ("p2p_overlap", "on", "it needs VP"),
    ],
)  # fmt: skip
def test_why_not_answers_for_what_runs_on_cpu_ranks(name: str, value: str, sentence: str) -> None:
    made = on_cpu("dp_overlap=on")
    assert sentence in why_not_switched(made, name, value, Wishes())


@pytest.mark.parametrize(
    ("recipe", "machine", "name", "value", "why"),
    [
        ("llama3_70b_sft_config", "dgx-h100:4", "tp_overlap", "on", "no measured pair says how far off"),
        ("qwen3_vl_30b_a3b_pretrain_mock_config", "dgx-b200:1", "graphs", "moe_router+moe_preprocess", "captured for one shape"),
        ("olmoe_7b_pretrain_config", "dgx-h100:1", "graphs", "moe_router+moe_preprocess", "of graphs parlaunch chooses among off, attn"),
    ],
)  # fmt: skip
def test_a_gain_that_is_left_to_the_user_is_said_to_be(
    recipe: str, machine: str, name: str, value: str, why: str
) -> None:
    kind, _, nodes = machine.partition(":")
    wished = catalog.recipe(recipe)
    row = switch(name)
    chooser = Chooser(wished, rates_of(preset(kind, int(nodes))), newest(), AUTO)
    assert row is not None
    assert why in (row.unasked(value, wished, chooser.place) or "")


def test_overlapping_experts_inside_an_nvlink_domain_has_to_gain_more() -> None:
    row = switch("ep_overlap")
    assert row is not None
    assert row.margin("on", near=True) > row.margin("on", near=False)
    chooser = Chooser(catalog.recipe("qwen3_30b_a3b_pretrain_config"), rates_of(preset("dgx-h100", 2)), newest(), AUTO)
    x = Layout(world=16, ep=8, global_batch_size=16)
    near, far = (chooser.least_gain(row, "on", replace(x, ep=ep)) for ep in (8, 16))
    assert near > far


# --- Ranks beside their GPU -------------------------------------------------------------------------------------------


def test_binding_is_among_the_switches_where_bridge_s_script_binds_nothing_and_it_saves_something() -> None:
    cluster, recipe = preset("gb200-nvl72", 4), catalog.recipe("olmoe_7b_pretrain_config")
    made = auto(recipe, cluster)
    row = next(s for s in made.switches if s.name == "numa")
    assert (row.value, row.recipe_value, row.bytes, row.keys) == ("on", "off", 0, ())
    assert 0.02 < (row.seconds or 0) / made.chosen.estimate.iteration_time_s < 0.2
    assert made.as_recipe is not None
    started = replace(recipe, benchmark=True)
    assert (made.as_recipe.iteration_time_s or 0) > (as_recipe(started, made.rates) or made.as_recipe).iteration_time_s  # type: ignore[operator]
    assert with_candidate(made, made.alternatives[0]).switches[-1].name == "numa"
    assert not any(s.name == "numa" for s in auto(started, cluster).switches)  # NVIDIA's script starts it under numactl
    one = replace(cluster, nodes=tuple(replace(n, sockets=1) for n in cluster.nodes))
    assert not any(s.name == "numa" for s in auto(recipe, one).switches)
    # Launches hide behind large products.
    assert not any(
        s.name == "numa" for s in auto(catalog.recipe("llama3_8b_pretrain_config"), preset("dgx-h100", 1)).switches
    )


@pytest.mark.parametrize("numa", [True, False])
def test_ranks_that_roam_are_timed_so_and_the_plan_says_what_that_costs(numa: bool) -> None:
    request = Request(command="plan", recipe="olmoe_7b_pretrain_config", hardware="gb200-nvl72:4", numa=numa)
    made = planned(job_of(request, situation_of(request)))
    said = [w for w in made.warnings if w.startswith("ranks roam")]
    assert (made.rates.roaming is None, len(said)) == (numa, int(not numa))
    assert any(s.name == "numa" for s in made.switches) == numa
    assert all("not wanted (--no-numa)" in w and "of the iteration" in w for w in said)


def test_a_switch_whose_value_can_never_be_is_wrong_usage() -> None:
    wishes = Wishes(switches=wanted_from("offload=attn_proj"))
    with pytest.raises(UsageError, match="offloading attn_proj needs core_attn offloaded too"):
        plan(preset("dgx-h100"), catalog.recipe("llama3_8b_pretrain_config"), wishes)


def test_a_switch_without_a_value_is_told_its_values() -> None:
    with pytest.raises(UsageError, match="'tp_overlap' has no value") as caught:
        wanted_from("recipe,tp_overlap")
    assert caught.value.hint == "tp_overlap= and one of: on, off"

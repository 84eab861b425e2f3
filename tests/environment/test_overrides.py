"""Overrides: ours make Megatron run one layout and nothing else; the user's are read and pinned."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.environment.override_grammar import hydra
from parlaunch.environment.overrides import (
    account_flags,
    overrides,
    pipeline_layout,
)
from parlaunch.environment.user_overrides import changed, pins_from, read_overrides, with_precision
from parlaunch.errors import UsageError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.front import plan
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.launching import Start
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.planning.plan import plan_to_json
from parlaunch.rules import RULES, violations
from parlaunch.rules.switches import legal_features
from parlaunch.show.screen import as_text
from tests.conftest import HANGS_S, bridge_python, need

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}:{ROOT / 'probes'}",
    "PATH": os.environ.get("PATH", ""),
    "HOME": os.environ.get("HOME", "/"),
}
DENSE = catalog.recipe("llama32_1b_pretrain_config")
MOE = catalog.recipe("qwen3_30b_a3b_pretrain_config")


def lines(recipe: Any = DENSE, device: str = "cuda", machine: str | None = None, **sizes: Any) -> dict[str, str]:
    x = Layout(**({"world": 8, "global_batch_size": recipe.global_batch_size} | sizes))
    cluster = preset(machine) if machine else None
    return {o.key: o.value for o in overrides(recipe, x, device=device, cluster=cluster)}


def why(recipe: Any, x: Layout, key: str, cluster: Any = None) -> str:
    return next(o.reason for o in overrides(recipe, x, cluster=cluster) if o.key == key)


def with_features(recipe: Any, **features: Any) -> Any:
    return replace(recipe, features=replace(recipe.features, **features))


# --- Ours -------------------------------------------------------------------------------------------------------------


def test_every_size_is_said_even_where_it_is_one() -> None:
    made = lines()
    assert {k.removeprefix("model."): v for k, v in made.items() if k.startswith("model.") and "size" in k} == {
        "tensor_model_parallel_size": "1", "pipeline_model_parallel_size": "1",
        "virtual_pipeline_model_parallel_size": "null", "context_parallel_size": "1",
        "expert_model_parallel_size": "1", "expert_tensor_parallel_size": "1",
    }  # fmt: skip
    assert made["train.micro_batch_size"] == "1"
    assert made["model.sequence_parallel"] == "False"


def test_batch_and_sequence_are_said_even_where_they_are_the_recipes_own() -> None:
    for name in catalog.recipe_names():
        recipe = catalog.recipe(name)
        made = lines(recipe, tp=2, pp=2, micro_batch_size=2)
        assert made["train.global_batch_size"] == str(recipe.global_batch_size)
        if recipe.architecture.kind != "diffusion":  # theirs is a placeholder
            assert made["model.seq_length"] == made["dataset.seq_length"] == str(recipe.seq_length)
    assert lines(DENSE, global_batch_size=96)["train.global_batch_size"] == "96"


def test_nothing_else_of_convergence_is_touched() -> None:
    allowed = {"model", "train", "dist", "ddp", "comm_overlap", "checkpoint", "dataset", "mixed_precision"}
    for name in catalog.recipe_names():
        made = lines(catalog.recipe(name), tp=2, pp=2, micro_batch_size=2)
        assert {k.split(".")[0] for k in made} <= allowed
        assert not {"train.train_iters", "optimizer.lr", "mixed_precision"} & set(made)


def test_a_precision_asked_for_by_option_is_said_with_what_it_switches() -> None:
    made = with_precision(DENSE, "fp8cs")
    assert made.spoken == ("mixed_precision=bf16_with_fp8_current_scaling_mixed",)
    assert (made.precision, made.features.fp8_param_gather, made.features.grad_reduce_fp32) == ("fp8cs", True, True)
    assert with_precision(DENSE, DENSE.precision) is DENSE  # the recipe's own needs no word
    assert "optimizer.bf16=False" in with_precision(DENSE, "fp32").spoken
    assert "model.fp8_param=False" in with_precision(replace(DENSE, precision="fp8mx"), "fp32").spoken
    assert "model.fp8_param=False" not in with_precision(DENSE, "fp32").spoken


def test_recomputation_is_said_whole() -> None:
    def of(recompute: Recompute) -> dict[str, str]:
        return {
            k.removeprefix("model.recompute_"): v for k, v in lines(recompute=recompute).items() if "recompute" in k
        }

    assert of(NO_RECOMPUTE) == {"granularity": "null", "method": "null", "num_layers": "null", "modules": "[core_attn]"}
    assert of(FULL_RECOMPUTE) == {
        "granularity": "full",
        "method": "uniform",
        "num_layers": "1",
        "modules": "[core_attn]",
    }
    some = Recompute(granularity="selective", modules=("layernorm", "mlp"))
    assert of(some) == {
        "granularity": "selective",
        "method": "null",
        "num_layers": "null",
        "modules": "[layernorm,mlp]",
    }


@pytest.mark.parametrize(
    ("chunks", "layout", "embedding", "loss"),
    [
        ((8, 8), "null", "False", "False"),
        ((8, 7), "null", "False", "True"),
        ((7, 8, 8, 7), "null", "True", "True"),
        ((9, 7), "Et*9|t*7L", "False", "False"),
        ((1, 15), "Et|t*15L", "False", "False"),
        ((8, 8, 0), "Et*8|t*8|L", "False", "False"),
    ],
)
def test_stages_are_flags_where_flags_say_it_and_a_layout_elsewhere(
    chunks: tuple[int, ...], layout: str, embedding: str, loss: str
) -> None:
    made = lines(pp=len(chunks), world=len(chunks), layers_per_chunk=chunks)
    assert made["model.pipeline_model_parallel_layout"] == layout
    assert made["model.account_for_embedding_in_pipeline_split"] == embedding
    assert made["model.account_for_loss_in_pipeline_split"] == loss


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_the_layouts_letters_are_the_layers(chunks: list[int]) -> None:
    text = pipeline_layout(chunks, mtp_layers=1)
    parts = text.split("|")
    assert text.startswith("E")
    assert text.endswith("mL")
    counts = [int(p.split("t*")[1].rstrip("mL")) if "t*" in p else p.count("t") for p in parts]
    assert counts == chunks


@given(st.integers(1, 8), st.integers(3, 8), st.booleans(), st.booleans())
def test_flags_stand_for_exactly_one_layer_each(layers: int, count: int, embedding: bool, loss: bool) -> None:
    chunks = [layers] * count
    chunks[0] -= embedding
    chunks[-1] -= loss
    assert account_flags(chunks) == (embedding, loss)


def test_an_expert_overlap_that_the_layout_forbids_is_off_and_says_why() -> None:
    busy = with_features(MOE, ep_overlap=True)
    assert "comm_overlap.overlap_moe_expert_parallel_comm" not in lines(busy, ep=8)
    for sizes, reason in (
        ({"ep": 1}, "needs EP above 1"),
        ({"ep": 4, "pp": 2}, "needs VP when PP is 2"),
        ({"ep": 4, "recompute": FULL_RECOMPUTE}, "full recomputation"),
        ({"ep": 4, "recompute": Recompute(granularity="selective", modules=("moe",))}, "excludes recomputing moe"),
    ):
        x = Layout(**({"world": 8, "global_batch_size": MOE.global_batch_size} | sizes))
        assert reason in why(busy, x, "comm_overlap.overlap_moe_expert_parallel_comm")
        assert lines(busy, **sizes)["comm_overlap.delay_wgrad_compute"] == "False"
        assert not legal_features(busy, x).ep_overlap


SWITCHES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("ep-overlap", {"ep_overlap": True}, {"ep": 1}, "comm_overlap.overlap_moe_expert_parallel_comm"),
    ("cg-recompute", {"cuda_graph": "local"}, {"ep": 8, "recompute": FULL_RECOMPUTE}, "model.cuda_graph_impl"),
    ("off-cpu", {"cpu_offload_layers": 4}, {"ep": 4, "pp": 2}, "model.cpu_offloading"),
    (
        "off-fine",
        {"offload_modules": ("expert_fc1",)},
        {"ep": 8, "recompute": Recompute(granularity="selective", modules=("moe",))},
        "model.fine_grained_activation_offloading",
    ),
    ("ep-deepep-size", {"dispatcher": "deepep"}, {"ep": 1}, "model.moe_token_dispatcher_type"),
    ("ep-deepep-gpu", {"dispatcher": "deepep"}, {"ep": 4, "world": 4}, "model.moe_token_dispatcher_type"),
]
"""A rule, switches that break it, the sizes that do, and the key that takes the switch back."""


@pytest.mark.parametrize(("rule", "on", "sizes", "key"), SWITCHES, ids=[row[0] for row in SWITCHES])
def test_a_rule_and_the_override_that_gives_way_to_it_say_one_sentence(
    rule: str, on: dict[str, Any], sizes: dict[str, Any], key: str
) -> None:
    recipe, machine = with_features(MOE, **on), preset("gb200-nvl72", 2)
    layout = Layout(**({"world": 8, "global_batch_size": MOE.global_batch_size} | sizes))
    sentences = {one.id: said for one, said in violations(layout, recipe, rates_of(machine))}
    assert sentences[rule] in why(recipe, layout, key, machine)
    assert next(one for one in RULES if one.id == rule).source


def test_recomputing_shared_experts_leaves_the_expert_overlap_alone() -> None:
    again = Recompute(granularity="selective", modules=("shared_experts",))
    made = lines(with_features(MOE, ep_overlap=True), ep=8, recompute=again)
    assert "comm_overlap.overlap_moe_expert_parallel_comm" not in made
    assert made["model.moe_shared_expert_overlap"] == "False"


@pytest.mark.parametrize("precision", ["nvfp4", "fp8sc"])
def test_user_buffers_fall_where_they_cannot_gather_the_operands(precision: str) -> None:
    busy = replace(with_features(DENSE, tp_overlap=True), precision=precision)
    x = Layout(world=8, tp=2, global_batch_size=busy.global_batch_size)
    assert lines(busy, tp=2)["model.tp_comm_overlap"] == "False"
    assert f"not {precision}" in why(busy, x, "model.tp_comm_overlap")
    assert not legal_features(busy, x).tp_overlap
    plain = replace(busy, features=replace(busy.features, tp_overlap=False))
    machine = rates_of(preset("dgx-b200"))
    assert estimate_time(busy, x, machine).iteration_time_s == estimate_time(plain, x, machine).iteration_time_s
    mx = replace(busy, precision="fp8mx")
    assert "model.tp_comm_overlap" not in lines(mx, tp=2)
    assert legal_features(mx, x).tp_overlap


def test_switches_fall_with_what_they_need() -> None:
    assert lines(with_features(DENSE, tp_overlap=True))["model.tp_comm_overlap"] == "False"
    graphs = with_features(DENSE, cuda_graph="transformer_engine", cuda_graph_scope=("attn",))
    assert lines(graphs, recompute=FULL_RECOMPUTE)["model.cuda_graph_impl"] == "none"
    assert "model.cuda_graph_impl" not in lines(graphs)
    assert lines(with_features(DENSE, cpu_offload_layers=4), pp=2)["model.cpu_offloading"] == "False"
    assert (
        lines(recompute=Recompute(granularity="selective", modules=("shared_experts",)))[
            "model.moe_shared_expert_overlap"
        ]
        == "False"
    )


@pytest.mark.parametrize(
    ("kind", "machine", "sizes", "replaced"),
    [
        ("deepep", "dgx-h100", {"ep": 8}, False),
        ("deepep", "dgx-b200", {"ep": 8}, False),
        ("deepep", "gb200-nvl72", {"ep": 4, "world": 4}, True),
        ("deepep", "dgx-h100", {"ep": 1}, True),
        ("hybridep", "gb200-nvl72", {"ep": 4, "world": 4}, False),
        ("hybridep", "dgx1-v100", {"ep": 8}, True),
    ],
)
def test_a_dispatcher_that_this_gpu_cannot_run_is_replaced(
    kind: str, machine: str, sizes: dict[str, Any], replaced: bool
) -> None:
    made = lines(with_features(MOE, dispatcher=kind), machine=machine, **sizes)
    assert (made.get("model.moe_token_dispatcher_type") == "alltoall") is replaced


def test_megatron_fsdp_comes_and_goes_with_its_checkpoints() -> None:
    on = lines(fsdp=True)
    assert on["dist.use_megatron_fsdp"] == on["ddp.use_megatron_fsdp"] == "True"
    assert on["checkpoint.ckpt_format"] == "fsdp_dtensor"
    off = lines(with_features(DENSE, fsdp=True))
    assert off["ddp.use_megatron_fsdp"] == "False"
    assert off["checkpoint.ckpt_format"] == "torch_dist"
    assert not any("fsdp" in k for k in lines())


def test_user_buffers_of_a_recipe_that_are_taken_back_are_not_registered() -> None:
    recipe = catalog.recipe("llama3_70b_pretrain_64gpu_vr200_bf16_config")
    said, off = "ddp.fsdp_manual_registration=False", replace(recipe, features=replace(recipe.features, nccl_ub=False))
    layout = Layout(world=64, global_batch_size=256, fsdp=True)
    assert recipe.features.nccl_ub
    assert said in map(str, overrides(off, layout))
    assert said not in map(str, overrides(recipe, layout))
    assert said not in map(str, overrides(off, replace(layout, fsdp=False)))


def test_gathering_in_the_step_falls_where_the_layout_excludes_it() -> None:
    recipe = catalog.recipe("llama3_70b_pretrain_64gpu_h100_bf16_config")  # Bridge 0.7 has it on
    off, layout = (
        "comm_overlap.overlap_param_gather_with_optimizer_step=False",
        Layout(world=64, pp=4, vp=5, global_batch_size=256),
    )
    assert off not in map(str, overrides(recipe, layout))
    assert off in map(str, overrides(recipe, replace(layout, vp=None)))
    assert off in map(str, overrides(recipe, replace(layout, fsdp=True)))
    on = replace(recipe, features=replace(recipe.features, gather_in_step=True))
    assert legal_features(on, layout).gather_in_step
    assert not legal_features(on, replace(layout, vp=None)).gather_in_step


def test_masked_tokens_with_context_parallelism_are_averaged_by_token() -> None:
    tuning = replace(DENSE, task="sft")
    assert lines(tuning, cp=2)["model.calculate_per_token_loss"] == "True"
    assert "model.calculate_per_token_loss" not in lines(cp=2)
    assert "model.calculate_per_token_loss" not in lines(tuning)


def test_cpu_ranks_hear_only_of_the_model_and_the_batch() -> None:
    made = lines(with_features(MOE, ep_overlap=True), device="cpu", tp=2, pp=2, fsdp=True)
    assert {k.split(".")[0] for k in made} == {"model", "train"}


def test_every_override_has_a_reason_and_no_key_comes_twice() -> None:
    for name in catalog.recipe_names()[::7]:
        recipe = catalog.recipe(name)
        made = overrides(recipe, Layout(world=16, tp=2, pp=2, cp=2, global_batch_size=recipe.global_batch_size))
        assert all(len(o.reason) > 8 for o in made)
        assert len({o.key for o in made}) == len(made)


# --- The user's -------------------------------------------------------------------------------------------------------


def test_overrides_that_name_a_planned_size_are_pins() -> None:
    given_ = (
        "model.tensor_model_parallel_size=2", "+model.pipeline_model_parallel_size=4", "++model.context_parallel_size=1_0",
        "model.virtual_pipeline_model_parallel_size=null", "train.micro_batch_size=2", "train.global_batch_size=512",
        "dataset.seq_length=8192", "optimizer.lr=3e-4", "~checkpoint.save", "model.sequence_parallel=true",
        "dist.use_megatron_fsdp=False", "model.expert_tensor_parallel_size=null",
    )  # fmt: skip
    assert pins_from(given_) == {
        "tp": 2, "pp": 4, "cp": 10, "vp": 1, "micro_batch_size": 2, "global_batch_size": 512, "seq_length": 8192,
        "sequence_parallel": True, "fsdp": False,
    }  # fmt: skip
    assert read_overrides(given_).pairs == given_


def test_the_last_of_a_repeated_key_counts() -> None:
    assert pins_from(["model.tensor_model_parallel_size=2", "model.tensor_model_parallel_size=4"]) == {"tp": 4}


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        (["model.recompute_granularity=null"], NO_RECOMPUTE),
        (["model.recompute_granularity=full"], FULL_RECOMPUTE),
        (["model.recompute_method=block", "model.recompute_num_layers=3"], Recompute(granularity="full", method="block", num_layers=3)),
        (["model.recompute_modules=[mlp, layernorm]"], Recompute(granularity="selective", modules=("mlp", "layernorm"))),
        (["model.recompute_granularity=selective"], Recompute(granularity="selective", modules=("core_attn",))),
    ],
)  # fmt: skip
def test_recomputation_is_pinned_as_one(pairs: list[str], wanted: Recompute) -> None:
    assert pins_from(pairs) == {"recompute": wanted}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("model.tensor_model_parallel_size=two", "'two' is not a whole number of 1 or more"),
        ("model.tensor_model_parallel_size=2.0", "'2.0' is not a whole number"),
        ("model.tensor_model_parallel_size=0", "'0' is not a whole number"),
        ("model.pipeline_model_parallel_size=null", "'null' is not a whole number"),
        ("train.micro_batch_size=-1", "'-1' is not"),
        ("train.micro_batch_size='2'", "is not a whole number"),  # text, to Hydra and so to Bridge
        ("train.global_batch_size=", "'' is not"),
        ("model.sequence_parallel=2", "'2' is not True or False"),
        ("model.recompute_granularity=some", "'some' is not full, selective or null"),
        ("model.recompute_modules=mlp", "'mlp' is not a list"),
        ("--tp", "'--tp' is no KEY=VALUE override"),
        ("=3", "'=3' is no KEY=VALUE override"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_was_expected(pair: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        pins_from([pair])
    assert said in caught.value.problem
    assert caught.value.exit_code == 2
    assert pair.split("=")[0] in caught.value.problem
    assert caught.value.hint


def test_two_keys_for_one_size_must_agree() -> None:
    assert pins_from(["model.seq_length=4096", "dataset.seq_length=4096"]) == {"seq_length": 4096}
    with pytest.raises(UsageError, match="contradict"):
        pins_from(["model.seq_length=4096", "dataset.seq_length=8192"])
    with pytest.raises(UsageError, match="neither"):
        pins_from(["model.recompute_granularity=selective", "model.recompute_method=block"])


@given(st.lists(st.text(max_size=30), max_size=4))
def test_odd_text_is_a_usage_error_or_handed_on(pairs: list[str]) -> None:
    try:
        assert read_overrides(pairs).pairs == tuple(pairs)
    except UsageError:
        return


VALUES = (None, True, 8, "torch.bfloat16", "Et*4|t*3mL", ("core_attn", "mlp"), "a b", "it's", "")
READ = """
import json, sys
from hydra.core.override_parser.overrides_parser import OverridesParser
print(json.dumps([OverridesParser.create().parse_override("key=" + text).value() for text in json.load(sys.stdin)], default=str))
"""


@pytest.mark.bridge
def test_hydra_reads_what_we_write() -> None:
    written = json.dumps([hydra(v) for v in VALUES])
    done = subprocess.run([bridge_python(), "-c", READ], input=written, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [list(v) if isinstance(v, tuple) else v for v in VALUES]


# --- Megatron itself --------------------------------------------------------------------------------------------------


def fuzz(python: str, *more: str, script: str = "overrides.py") -> str:
    """A script of scripts/fuzz in a process of its own: Megatron is patched there for want of a GPU."""
    done = subprocess.run(
        [python, "-W", "ignore", str(ROOT / "scripts" / "fuzz" / script), *more],
        capture_output=True, text=True, timeout=HANGS_S, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_megatron_core_accepts_random_plans() -> None:
    need(importlib.util.find_spec("megatron") and importlib.util.find_spec("torch"), "megatron-core")
    assert "300 cases" in fuzz(sys.executable, "--cases", "300", "--seed", "3")


@pytest.mark.bridge
def test_megatron_bridge_builds_what_is_planned(tmp_path: Path) -> None:
    python = bridge_python()
    hub = [python, str(ROOT / "scripts" / "fuzz" / "bridge_hub.py"), str(tmp_path)]
    subprocess.run(hub, check=True, capture_output=True, timeout=HANGS_S, env=ENVIRONMENT)
    said = fuzz(python, "--hub", str(tmp_path), "--cases", "400", "--seed", "5", script="bridge.py")
    compared = int(said.split("s: ")[1].split()[0])
    assert compared > 200, said
    few = ("--only", "qwen3_30b_a3b_pretrain_config", "--kinds", "planned", "--share", "0.3", "--jobs", "1")
    said = fuzz(python, "--hub", str(tmp_path), *few, script="keys.py")
    assert " 0 wrong" in said, said


def test_adapters_are_planned_as_the_user_has_them() -> None:
    """Fewer targets and a lower rank hold less memory; a fraction of the weights stays a fraction."""
    plain = catalog.recipe("llama3_8b_peft_config")
    said = read_overrides(["peft.dim=16", "peft.target_modules=[linear_qkv,linear_proj]", "peft.dropout=0.1"])
    small = changed(plain, said)
    assert (small.features.adapter_rank, small.features.adapter_targets) == (16, ("linear_qkv", "linear_proj"))
    assert small.features.adapter_dropout
    layout = Layout(world=8, global_batch_size=plain.global_batch_size)
    rates = rates_of(preset("dgx-h100"))
    assert estimate_memory(small, layout, rates).allocated < estimate_memory(plain, layout, rates).allocated


def test_sequence_parallelism_without_tp_is_left_to_bridge_which_turns_it_off() -> None:
    asked = ("model.sequence_parallel=True",)
    made = plan("llama3_8b_pretrain_config", "dgx-h100:1", overrides=asked, tp=1, evidence=False)
    assert [o for o in made.overrides if "sequence_parallel" in o] == list(asked)
    assert any("does nothing at TP 1" in w for w in made.warnings)
    made = plan("llama3_8b_pretrain_config", "dgx-h100:1", overrides=asked, tp=2, evidence=False)
    assert made.layout.sequence_parallel
    assert not any("TP 1" in w for w in made.warnings)
    with pytest.raises(UsageError, match="needs TP above 1"):
        plan("llama3_8b_pretrain_config", "dgx-h100:1", overrides=asked, tp=1, start=Start(bridge=(0, 3, 1)))


def test_sequence_parallelism_that_the_user_turns_off_is_nowhere_said_to_be_on() -> None:
    made = plan("llama3_8b_pretrain_config", "dgx-h100:1", tp=2, overrides=("model.sequence_parallel=False",))
    said = plan_to_json(made, version="0")
    assert not any(c["layout"]["sequence_parallel"] for c in (said, *said["alternatives"], *said["rejected"]))
    assert "sequence parallel" not in as_text(made, verbose=True)

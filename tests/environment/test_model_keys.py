"""Keys about how a model computes: what is said beside them, what they change in the plan, and what they exclude."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.environment.override_keys import shipped_keys
from parlaunch.environment.user_overrides import changed, read_overrides
from parlaunch.errors import UsageError
from parlaunch.front import plan
from parlaunch.model import catalog
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.rules.switches import legal_features

DENSE = "llama3_8b_pretrain_config"
MOE = "qwen3_30b_a3b_pretrain_config"
PADDED = "deepseek_v4_flash_pretrain_64gpu_gb200_fp8mx_config"  # pads each expert's tokens
UNDROPPED = "deepseek_v4_flash_pretrain_config"  # balances its experts by a bias
DROPS = "nemotron_3_super_pretrain_config"  # gives its experts a capacity
SHIFTED = "gpt_oss_120b_pretrain_config"  # shifts what its activation gates
REPEATS = "llama3_70b_pretrain_32gpu_h100_bf16_deterministic_config"
CACHED = "gpt_oss_20b_pretrain_8gpu_b300_fp8mx_config"  # reads its data through a cache
OVERLAPPED = "llama3_70b_pretrain_64gpu_h100_bf16_config"  # overlaps TP's traffic

FP8, QUANTIZED = "model.moe_router_padding_for_fp8", "model.moe_router_padding_for_quantization"
UNJOINED = "model.bias_activation_fusion=False"


def made_of(name: str, *pairs: str) -> Recipe:
    return changed(catalog.recipe(name), read_overrides(pairs))


@pytest.mark.parametrize(
    ("name", "pairs", "beside"),
    [
        (PADDED, (f"{FP8}=False",), {f"{QUANTIZED}=False"}),
        (PADDED, (f"{QUANTIZED}=False",), {f"{FP8}=False"}),
        (PADDED, (f"{FP8}=True",), set()),
        (DENSE, ("model.variable_seq_lengths=True",), {"model.moe_token_dispatcher_type=alltoall"}),
        (DENSE, ("model.variable_seq_lengths=False",), set()),
        (MOE, ("model.variable_seq_lengths=True",), set()),
        (DENSE, ("model.activation_func=squared_relu",), {UNJOINED}),
        (DENSE, ("model.activation_func=torch.nn.functional.silu",), set()),
        (DENSE, ("model.activation_func=gelu",), set()),
        (DENSE, ("model.activation_func=gelu", "model.gated_linear_unit=False"), {UNJOINED}),
        (DENSE, ("model.activation_func=gelu", "model.gated_linear_unit=False", "model.add_bias_linear=True"), set()),
        (SHIFTED, ("model.activation_func=silu",), {UNJOINED}),
        (SHIFTED, ("model.activation_func=quick_gelu",), set()),
        (
            OVERLAPPED, ("model.deterministic_mode=True",),
            {"model.cross_entropy_loss_fusion=False", "comm_overlap.tp_comm_overlap=False"},
        ),
        (DENSE, ("model.deterministic_mode=False",), set()),
        (
            REPEATS, ("model.deterministic_mode=False", "model.cross_entropy_loss_fusion=True"),
            {"model.cross_entropy_fusion_impl=native"},
        ),
        (DROPS, ("model.moe_expert_capacity_factor=null",), {"model.moe_pad_expert_input_to_capacity=False"}),
        (DROPS, ("model.moe_pad_expert_input_to_capacity=True",), set()),
        (MOE, ("model.moe_expert_capacity_factor=null",), set()),
        (UNDROPPED, ("model.moe_expert_capacity_factor=1.0", "model.moe_router_load_balancing_type=none"), set()),
    ],
)  # fmt: skip
def test_what_a_key_needs_is_said_beside_it(name: str, pairs: tuple[str, ...], beside: set[str]) -> None:
    assert set(made_of(name, *pairs).spoken) == beside
    assert {pair.partition("=")[0] for pair in beside} <= shipped_keys()


@pytest.mark.parametrize(
    ("name", "pairs", "said", "hint"),
    [
        (DENSE, (f"{FP8}=True",), "has no experts", "leave it out"),
        (PADDED, (f"{FP8}=True", "model.moe_token_dispatcher_type=allgather"), "takes one of the two", f"or {FP8}"),
        (MOE, ("model.variable_seq_lengths=True", "model.moe_token_dispatcher_type=allgather"), "one of the two", "leave"),
        (DENSE, ("model.activation_func=swiglu",), "no such function", "silu, "),
        (DENSE, ("model.activation_func=relu", "model.bias_activation_fusion=True"), "one of the two", "leave"),
        (DENSE, ("model.deterministic_mode=True", "model.cross_entropy_loss_fusion=True"), "one of the two", "leave"),
        (REPEATS, ("model.cross_entropy_loss_fusion=True",), "deterministic_mode", "add model.deterministic_mode=False"),
        (UNDROPPED, ("model.moe_expert_capacity_factor=1.0",), "balances by noaux_tc", "add model.moe_router_load_balancing_type=none"),
        (DROPS, ("model.moe_router_load_balancing_type=sinkhorn",), "balances by sinkhorn", "say model.moe_router_load_balancing_type=none"),
        (MOE, ("model.moe_pad_expert_input_to_capacity=True",), "no capacity", "add model.moe_expert_capacity_factor=1.0"),
        (DENSE, ("profiling.use_nsys_profiler=True", "profiling.use_pytorch_profiler=True"), "one of the two", "leave"),
    ],
)  # fmt: skip
def test_what_it_excludes_is_an_error_whose_hint_works(name: str, pairs: tuple[str, ...], said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        made_of(name, *pairs)
    assert hint in caught.value.hint
    if caught.value.hint.startswith("add "):
        made_of(name, *pairs, caught.value.hint.removeprefix("add "))


def test_what_repeats_itself_overlaps_no_tp_traffic() -> None:
    with pytest.raises(UsageError, match="repeat itself"):
        plan(DENSE, "dgx-h100:1", overrides=("model.deterministic_mode=True",), tp=2, switches="tp_overlap=on")


def test_experts_of_an_allgather_recipe_want_another_dispatcher() -> None:
    recipe = replace(catalog.recipe(MOE), features=Features(dispatcher="allgather"))
    for key in ("model.variable_seq_lengths", FP8):
        with pytest.raises(UsageError, match="allgather dispatcher excludes it"):
            changed(recipe, read_overrides((f"{key}=True",)))


@pytest.mark.parametrize(
    ("name", "pairs", "features"),
    [
        (MOE, (f"{FP8}=True",), {"router_padding": True}),
        (MOE, (f"{QUANTIZED}=True",), {"router_padding": True}),
        (PADDED, (f"{QUANTIZED}=False",), {"router_padding": False}),
        (PADDED, (f"{FP8}=True", f"{QUANTIZED}=False"), {"router_padding": True}),
        (OVERLAPPED, ("model.deterministic_mode=True",), {"cross_entropy": "unfused", "tp_overlap": False}),
    ],
)
def test_it_is_planned_with(name: str, pairs: tuple[str, ...], features: dict[str, Any]) -> None:
    made = made_of(name, *pairs).features
    assert {field: getattr(made, field) for field in features} == features


def test_an_activation_is_the_model_s() -> None:
    assert made_of(DENSE, "model.activation_func=relu2").architecture.activation_func == "squared_relu"
    assert Architecture.__dataclass_fields__["activation_func"].default == "gelu"


def test_numbers_that_repeat_come_with_the_variables_that_make_them() -> None:
    made = plan(DENSE, "dgx-h100:1", overrides=("model.deterministic_mode=True",), evidence=False)
    values = {v.name: v.value for v in made.environment}
    assert values["NCCL_ALGO"] == "Ring"
    assert values["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"
    assert values["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "NCCL_ALGO" not in {v.name for v in plan(DENSE, "dgx-h100:1", evidence=False).environment}


def test_padding_for_fp8_in_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="refused in another precision"):
        plan(MOE, "dgx-h100:4", overrides=(f"{FP8}=True",), evidence=False)


def test_recomputing_moe_act_takes_grouped_products() -> None:
    loose = ("model.moe_grouped_gemm=False",)
    assert "moe_act" not in plan(MOE, "dgx-h100:4", overrides=loose, evidence=False).layout.recompute.modules
    with pytest.raises(UsageError, match="needs moe_grouped_gemm, which is off"):
        plan(MOE, "dgx-h100:4", overrides=loose, recompute="moe_act")


@pytest.mark.parametrize(
    ("pairs", "graphed"),
    [
        (("model.moe_expert_capacity_factor=1.0",), False),
        (("model.moe_expert_capacity_factor=1.0", "model.moe_pad_expert_input_to_capacity=True"), True),
        (("model.moe_expert_capacity_factor=null",), True),
    ],
)
def test_no_graph_is_of_what_counts_the_tokens_beyond_a_capacity(pairs: tuple[str, ...], graphed: bool) -> None:
    recipe = made_of(MOE, *pairs, "model.moe_token_dispatcher_type=alltoall")
    assert "moe_preprocess" in recipe.features.cuda_graph_scope
    assert (legal_features(recipe, Layout(world=8)).cuda_graph is not None) is graphed


def test_saved_activations_are_distributed_without_sequence_parallelism() -> None:
    spread = ("model.distribute_saved_activations=True",)
    with pytest.raises(UsageError, match="excludes sequence parallelism"):
        plan(DENSE, "dgx-h100:1", overrides=spread, tp=2, recompute="core_attn")
    plan(DENSE, "dgx-h100:1", overrides=(*spread, "model.sequence_parallel=False"), tp=2, recompute="core_attn")


def test_what_excludes_the_overlap_of_the_all_to_all_is_named_whatever_the_layout() -> None:
    with pytest.raises(UsageError, match="excludes moe_shared_expert_overlap"):
        plan(MOE, "dgx-h100:4", overrides=("model.moe_shared_expert_overlap=True",), switches="ep_overlap=on")


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ((), "say dataset.path_to_cache=FOLDER, or dataset.fast_cache_load=False dataset.defer_npy_index_mmap=False"),
        (("dataset.fast_cache_load=False",), "say dataset.path_to_cache=FOLDER, or dataset.defer_npy_index_mmap=False"),
        (("dataset.path_to_cache=/cache",), None),
        (("dataset.fast_cache_load=False", "dataset.defer_npy_index_mmap=False"), None),
    ],
)
def test_a_cache_that_the_recipe_reads_is_asked_for(pairs: tuple[str, ...], says: str | None) -> None:
    minds = [w for w in plan(CACHED, "dgx-b300:1", overrides=pairs, evidence=False).warnings if "cache" in w]
    assert [w.endswith(says or "") for w in minds] == [True] * (says is not None)

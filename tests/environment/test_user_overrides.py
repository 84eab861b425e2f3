"""What a user types after the options: read as Hydra reads it, planned with, left aside, or named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.environment.bridge_versions import WRONG, check_version, heard, known_wrong, name_in
from parlaunch.environment.override_grammar import LONGEST, hydra, pairs_of, value
from parlaunch.environment.override_keys import check_keys, not_planned_for, overruled, shipped_keys
from parlaunch.environment.overrides import overrides
from parlaunch.environment.runner_options import OPTIONS, overrides_in
from parlaunch.environment.user_overrides import changed, planned_keys, read_overrides
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.front import plan
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import total_params
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import PRECISION, places

DENSE = catalog.recipe("llama3_8b_pretrain_config")
MOE = catalog.recipe("qwen3_30b_a3b_pretrain_config")


def as_changed(recipe: Recipe, *pairs: str) -> Recipe:
    return changed(recipe, read_overrides(pairs))


LARGEST = 10**LONGEST - 1
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.text(alphabet="abcXYZ_/. '\"\\=[]{}", min_size=1, max_size=12),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(values)
def test_what_is_written_is_read_back(written: Any) -> None:
    if isinstance(written, str) and written.strip().lower() in ("null", "true", "false"):
        return  # words that mean something else when they are not quoted
    assert value(hydra(written)) == written or str(written).strip() != str(written)


@pytest.mark.parametrize("text", ["'open", "[a,b", "{a:1"])
def test_a_text_that_hydra_cannot_read_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="does not end"):
        value(text)


@pytest.mark.parametrize(
    "key", ["model.transformer_impl", "model.hybrid_layer_pattern", "model.cross_entropy_fusion_impl"]
)
def test_where_a_word_is_wanted_the_example_is_one(key: str) -> None:
    with pytest.raises(UsageError, match="is not a word") as wrong:
        as_changed(DENSE, f"{key}=null")
    assert f"for example {key}=" in wrong.value.hint
    assert not wrong.value.hint[-1].isdecimal()


# --- The planned recipe is the one that is trained --------------------------------------------------------------------


def test_a_changed_shape_is_the_planned_model() -> None:
    made = as_changed(DENSE, "model.num_layers=16", "model.hidden_size=2048", "model.ffn_hidden_size=8192")
    assert (made.architecture.num_layers, made.architecture.hidden_size) == (16, 2048)
    assert total_params(made.architecture) < total_params(DENSE.architecture) / 3
    assert as_changed(MOE, "model.num_moe_experts=64").architecture.num_moe_experts == 64


@pytest.mark.parametrize(
    ("recipe", "pair", "sizes"),
    [
        ("gemma3_1b_pretrain_config", "model.hidden_size=2048", {"kv_channels": 256}),  # its provider has a number of its own
        ("llama3_8b_pretrain_config", "model.hidden_size=2048", {"kv_channels": 128}),  # so has its config.json
        ("olmoe_7b_pretrain_config", "model.hidden_size=4096", {"kv_channels": 128, "num_query_groups": 16}),
        ("qwen25_7b_pretrain_config", "model.hidden_size=7168", {"kv_channels": 256, "num_query_groups": 4}),
        ("nemotronh_8b_pretrain_config", "model.num_attention_heads=64", {"kv_channels": 64, "num_query_groups": 8}),
        ("gpt3_175b_pretrain_32gpu_h100_bf16_config", "model.num_attention_heads=64", {"kv_channels": 192, "num_query_groups": 64}),
        ("gpt3_175b_pretrain_32gpu_h100_bf16_config", "model.kv_channels=64", {"kv_channels": 64, "num_query_groups": 96}),
    ],
)  # fmt: skip
def test_a_size_follows_another_only_where_the_provider_leaves_it_out(
    recipe: str, pair: str, sizes: dict[str, int]
) -> None:
    made = as_changed(catalog.recipe(recipe), pair).architecture
    assert {name: getattr(made, name) for name in sizes} == sizes


def test_overlap_of_data_parallel_traffic_is_said_to_whom_it_is_for_where_the_section_hands_nothing_on() -> None:
    recipe, key = catalog.recipe("minimax_m3_sft_config"), "comm_overlap.overlap_param_gather"
    there = ("ddp.overlap_param_gather", "optimizer.overlap_param_gather")
    assert places(key, recipe) == there
    assert places(key, as_changed(recipe, "ddp.use_distributed_optimizer=True")) == (key,)
    assert places(key, as_changed(MOE, "ddp.use_distributed_optimizer=False")) == there
    assert places("comm_overlap.tp_comm_overlap", recipe) == ("comm_overlap.tp_comm_overlap",)
    assert overruled([key], recipe) == (
        f"{key} does nothing where ddp.use_distributed_optimizer is off; say {' and '.join(there)}, or ddp.use_distributed_optimizer=True",
    )
    assert overruled(there, recipe) == ()
    assert not_planned_for([key], recipe) == ()
    assert not_planned_for([key], MOE) == ()


def test_adapters_of_a_recipe_without_them_are_an_error_with_or_without_bridge() -> None:
    for own in (None, frozenset({"peft", "model", "model.num_layers"})):
        with pytest.raises(UsageError, match="has no adapters") as caught:
            check_keys(("peft.dim=16",), DENSE, own)
        assert "--task peft" in caught.value.hint
    check_keys(("peft.dim=16",), catalog.recipe("llama3_8b_peft_config"))


def test_a_changed_model_reaches_the_plan_and_what_bridge_hears_of_its_stages() -> None:
    small = plan("llama3_8b_pretrain_config", "dgx-h100:1", pp=2, overrides=("model.num_layers=6",))
    whole = plan("llama3_8b_pretrain_config", "dgx-h100:1", pp=2)
    assert len(small.recipe.architecture.layers()) == 6
    assert small.chosen.memory.weights < whole.chosen.memory.weights
    assert "model.num_layers=6" in small.overrides


@pytest.mark.parametrize(
    "name", ["gemma2_9b_peft_1gpu_h100_bf16_config", "qwen35_text_9b_pretrain_8gpu_gb200_bf16_config"]
)
def test_fewer_layers_attend_as_the_first_ones_do(name: str) -> None:
    recipe = catalog.recipe(name)
    assert as_changed(recipe, "model.num_layers=6").architecture.layers() == recipe.architecture.layers()[:6]
    with pytest.raises(UsageError, match="says of each of its"):
        as_changed(recipe, f"model.num_layers={recipe.architecture.num_layers + 2}")


def test_what_is_listed_layer_by_layer_is_not_cut() -> None:
    with pytest.raises(UsageError, match="says of each of its 64 layers how it attends"):
        as_changed(catalog.recipe("exaone45_vl_33b_peft_4gpu_h100_bf16_config"), "model.num_layers=8")


@pytest.mark.parametrize(
    ("recipe", "pairs", "said"),
    [
        ("deepseek_v3_pretrain_config", ("model.num_layers=8",), "moe_layer_freq"),
        ("nemotronh_8b_pretrain_config", ("model.num_layers=8",), "hybrid_layer_pattern"),
        ("llama3_8b_pretrain_config", ("model.num_moe_experts=8",), "is dense"),
        ("llama3_8b_pretrain_config", ("model.num_layers=many",), "whole number"),
        ("llama3_8b_pretrain_config", ("mixed_precision=bf17_mixed",), "no mixed precision of that name"),
        ("llama3_8b_pretrain_config", ("model.pipeline_model_parallel_layout=Ex|L",), "no pipeline layout"),
    ],
)
def test_a_shape_that_contradicts_itself_is_refused_with_what_works(
    recipe: str, pairs: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(recipe, "dgx-h100:16", overrides=pairs)
    assert said in str(caught.value)
    assert caught.value.hint


def test_the_hint_about_expert_layers_works_when_it_is_followed() -> None:
    recipe = catalog.recipe("deepseek_v3_pretrain_config")
    with pytest.raises(UsageError) as caught:
        as_changed(recipe, "model.num_layers=8")
    made = as_changed(recipe, "model.num_layers=8", caught.value.hint.removeprefix("add '").removesuffix("'"))
    assert [kind.mlp for kind in made.architecture.layers()] == ["dense"] * 3 + ["moe"] * 5


@pytest.mark.parametrize(
    ("pairs", "features"),
    [
        (("model.moe_token_dispatcher_type=flex", "model.moe_flex_dispatcher_backend=hybridep"), {"dispatcher": "hybridep"}),
        (("comm_overlap.tp_comm_overlap=True",), {"tp_overlap": True}),
        (("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_scope=[attn]"),
         {"cuda_graph": "transformer_engine", "cuda_graph_scope": ("attn",)}),
        (("optimizer.optimizer_cpu_offload=True", "optimizer.optimizer_offload_fraction=0.5"), {"optimizer_offload": 0.5}),
        (("optimizer.optimizer_cpu_offload=True",), {"optimizer_offload": 0.0}),
        (("ddp.use_distributed_optimizer=False", "optimizer.use_distributed_optimizer=False"), {"distributed_optimizer": False}),
        (("ddp.use_distributed_optimizer=False",), {"distributed_optimizer": True}),
        (("model.moe_expert_capacity_factor=1.25", "model.moe_pad_expert_input_to_capacity=True"), {"expert_capacity": 1.25}),
        (("model.moe_expert_capacity_factor=1.25",), {"expert_capacity": 0.0}),  # dropped and not filled up: counts differ
        (("model.moe_expert_capacity_factor=-1.0", "model.moe_pad_expert_input_to_capacity=True"), {"expert_capacity": 0.0}),
        (("mixed_precision=fp16_mixed",), {"grad_reduce_fp32": False}),
        (("mixed_precision=bf16_with_mxfp8_mixed",), {"fp8_param_gather": True, "fp4_param_gather": False}),
        (("mixed_precision=bf16_with_nvfp4_mixed",), {"fp8_param_gather": False, "fp4_param_gather": True}),
        (("mixed_precision=bf16_with_nvfp4_mixed", "mixed_precision.fp4_param_gather=False"), {"fp4_param_gather": False}),
    ],
)  # fmt: skip
def test_switches_are_planned_with(pairs: tuple[str, ...], features: dict[str, Any]) -> None:
    made = as_changed(MOE, *pairs).features
    assert {name: getattr(made, name) for name in features} == features


def test_precision_by_override_is_planned_and_contradicts_another_by_option() -> None:
    assert as_changed(DENSE, "mixed_precision=bf16_with_fp8_current_scaling_mixed").precision == "fp8cs"
    with pytest.raises(UsageError, match="contradicts"):
        plan("llama3_8b_pretrain_config", "dgx-h100:1", precision="fp8cs", overrides=("mixed_precision=bf16_mixed",))


def test_a_key_that_would_undo_an_option_contradicts_it() -> None:
    with pytest.raises(UsageError, match=r"contradicts --precision fp32, which needs ddp\.grad_reduce_in_fp32=True"):
        plan("llama3_8b_pretrain_config", "dgx-h100:1", precision="fp32", overrides=("ddp.grad_reduce_in_fp32=False",))


@pytest.mark.parametrize(
    ("pairs", "pp", "chunks"),
    [
        (("model.pipeline_model_parallel_layout=Et*20|t*12L",), 2, (20, 12)),
        (("model.num_layers_in_first_pipeline_stage=2",), 4, (2, 10, 10, 10)),
    ],
)
def test_the_user_s_own_stages_are_the_plan_s(pairs: tuple[str, ...], pp: int, chunks: tuple[int, ...]) -> None:
    made = plan("llama3_8b_pretrain_config", "dgx-h100:2", pp=pp, vp=1, overrides=pairs)
    assert made.layout.layers_per_chunk == chunks
    for pair in pairs:
        key = pair.partition("=")[0]
        assert {p for p in made.overrides if p.startswith(f"{key}=")} == {pair}


def test_an_override_that_would_undo_the_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="contradicts the plan"):
        overrides(DENSE, Layout(world=8, pp=2, global_batch_size=512), said=("model.pipeline_dtype=torch.float32",))


@pytest.mark.parametrize(
    ("recipe", "pair", "said", "hint"),
    [
        ("llama3_8b_pretrain_config", "model.num_query_groups=3", "32 attention heads cannot share 3", "model.num_query_groups=1,"),
        ("llama3_8b_pretrain_config", "model.num_attention_heads=12", "12 attention heads cannot share 8", "model.num_query_groups=4,"),
        ("qwen3_30b_a3b_pretrain_config", "model.moe_router_topk=200", "200 experts a token of 128", "model.moe_router_topk=128"),
        ("qwen3_30b_a3b_pretrain_config", "model.num_moe_experts=4", "8 experts a token of 4", "model.moe_router_topk=4"),
    ],
)  # fmt: skip
def test_heads_and_experts_that_cannot_be_shared_out_are_refused(recipe: str, pair: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        plan(recipe, "dgx-h100:1", overrides=(pair,))
    assert caught.value.hint.startswith(hint)
    plan(
        recipe,
        "dgx-h100:2",
        overrides=(pair, caught.value.hint.split(",")[0].split()[0]),
        objective="memory",
        evidence=False,
    )


# --- Planned with, left aside, or named -------------------------------------------------------------------------------


def test_every_planned_key_is_one_that_bridge_has() -> None:
    assert planned_keys(DENSE) | planned_keys(MOE) <= shipped_keys()


def test_what_is_neither_planned_with_nor_harmless_is_named_once_in_order() -> None:
    keys = [
        "logger.log_interval",
        "ddp.bucket_size",
        "optimizer.lr",
        "model.num_layers",
        "ddp.bucket_size",
        "env_vars.X",
        "model.fp8",
    ]
    assert not_planned_for(keys, DENSE) == ("ddp.bucket_size", "env_vars.X")
    made = plan(
        "llama3_8b_pretrain_config",
        "dgx-h100:1",
        overrides=("ddp.bucket_size=1000000", "ddp.grad_reduce_in_fp32=False"),
    )
    assert made.not_planned_for == ("ddp.bucket_size",)
    assert "not planned for: ddp.bucket_size" in made.warnings
    assert any("mixed_precision sets it last" in w for w in made.warnings)


@pytest.mark.parametrize(
    ("pair", "near"),
    [
        ("train.global_batch_sise=8", "train.global_batch_size"),
        ("model.use_megatron_fsdp=True", "ddp.use_megatron_fsdp"),
        ("trian.train_iters=8", "train.train_iters"),
        ("xyz=1", "sections are"),
    ],
)
def test_a_key_that_bridge_lacks_is_an_error_with_the_nearest(pair: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_keys([pair], MOE)
    assert near in caught.value.hint


def test_the_configuration_s_own_keys_are_stricter_than_those_of_all() -> None:
    own = {"mixed_precision", "train", "train.train_iters"}  # of a version without FP4
    check_keys(
        ["mixed_precision.fp4=e2m1", "dataset.dataset_kwargs.x=1", "++anything.at.all=1", "~checkpoint.save"], MOE
    )
    with pytest.raises(UsageError, match="this recipe's configuration"):
        check_keys(["mixed_precision.fp4=e2m1", "train.nothing=1"], MOE, own)
    with pytest.raises(UsageError, match="is there already"):
        check_keys(["+train.train_iters=5"], MOE, own)


# --- Sections that a recipe leaves empty ------------------------------------------------------------------------------


def test_a_key_of_an_empty_section_is_an_error_that_says_where_it_is_heard() -> None:
    with pytest.raises(UsageError, match="leaves it empty") as caught:
        check_keys(["comm_overlap.overlap_param_gather=True"], DENSE)
    check_keys(caught.value.hint.removeprefix("say ").split(), DENSE)
    check_keys(["comm_overlap.overlap_param_gather=True", "++comm_overlap.anything=1"], MOE)


def test_a_preset_of_precision_has_no_parts() -> None:
    check_keys(["mixed_precision.grad_reduce_in_fp32=False"], MOE)
    named = as_changed(MOE, "mixed_precision=bf16_mixed")
    with pytest.raises(UsageError, match="preset's name"):
        check_keys(["mixed_precision.grad_reduce_in_fp32=False"], named)
    with pytest.raises(UsageError, match="preset's name"):
        plan(
            "qwen3_30b_a3b_pretrain_config", "dgx-h100:2", precision="fp8cs",
            overrides=("mixed_precision.fp8_param_gather=False",),
        )  # fmt: skip


def test_what_is_said_of_a_key_that_precision_sets_last_works_when_followed() -> None:
    """A preset has no parts to say it by."""
    for recipe in (MOE, as_changed(MOE, "mixed_precision=bf16_mixed")):
        (said,) = overruled(["ddp.grad_reduce_in_fp32"], recipe)
        parts = "say mixed_precision.grad_reduce_in_fp32" in said
        assert parts is not (PRECISION in recipe.bare)
        if parts:
            check_keys(["mixed_precision.grad_reduce_in_fp32=False"], recipe)
        assert "--precision" in said


def test_overlap_is_planned_with_where_the_recipe_s_configuration_hears_it() -> None:
    assert MOE.features.tp_overlap
    assert not as_changed(MOE, "comm_overlap.tp_comm_overlap=False").features.tp_overlap
    assert as_changed(MOE, "model.tp_comm_overlap=False").features.tp_overlap
    assert as_changed(DENSE, "model.tp_comm_overlap=True").features.tp_overlap
    assert "comm_overlap sets it last; say comm_overlap.tp_comm_overlap" in overruled(["model.tp_comm_overlap"], MOE)[0]
    assert overruled(["model.tp_comm_overlap"], DENSE) == ()
    assert not_planned_for(["model.tp_comm_overlap"], DENSE) == not_planned_for(["model.tp_comm_overlap"], MOE) == ()


@pytest.mark.parametrize("name", ["llama3_8b_pretrain_config", "qwen3_next_80b_a3b_pretrain_config"])
@pytest.mark.parametrize("switches", ["auto,dp_overlap=off,p2p_overlap=off", "recipe,dp_bucket=1000000", "auto"])
def test_a_recipe_with_an_empty_section_is_never_told_of_it(name: str, switches: str) -> None:
    made = plan(name, "dgx-h200:8", switches=switches)
    assert not [pair for pair in made.overrides if pair.startswith("comm_overlap.")]
    if "dp_overlap" in switches:
        assert {"ddp.overlap_param_gather=False", "optimizer.overlap_param_gather=False"} <= set(made.overrides)


# --- The runner's options, and versions -------------------------------------------------------------------------------


def test_options_behind_the_dashes_are_overrides_too() -> None:
    assert {o.key for o in OPTIONS} <= shipped_keys()
    assert overrides_in(("-tp", "2", "--own", "7", "-sl=4096")) == (
        "model.tensor_model_parallel_size=2",
        "dataset.seq_length=4096",
    )
    with pytest.raises(UsageError, match="has no value"):
        overrides_in(("-tp",))


def test_each_version_is_spoken_to_as_it_wants() -> None:
    said = ("model.num_layers=4", "dataset.seq_length=8", "train.train_iters=1")
    x = Layout(world=8)
    assert heard(None, DENSE, x, said) == heard((0, 6, 2), DENSE, x, said) == said
    assert heard((0, 7, 0), DENSE, x, said) == ("++model.num_layers=4", *said[1:])
    assert heard((0, 5, 1), DENSE, x, said) == (said[0], "++dataset.seq_length=8", said[2])


@pytest.mark.parametrize(
    ("said", "then"),
    [
        (("cuda_graph_impl=transformer_engine", "cuda_graph_modules=[attn]", "cuda_graph_scope=null"),
         ("cuda_graph_impl=transformer_engine", "cuda_graph_scope=[attn]")),
        (("cuda_graph_scope=[attn]", "cuda_graph_modules=null"), ("cuda_graph_scope=[attn]",)),
        (("cuda_graph_impl=full_iteration", "cuda_graph_modules=[]", "cuda_graph_scope=null"),
         ("cuda_graph_impl=local", "cuda_graph_scope=[full_iteration]")),
        (("cuda_graph_impl=none",), ("cuda_graph_impl=none",)),
        ((), ()),
    ],
)  # fmt: skip
def test_what_graphs_capture_is_said_to_older_versions_under_their_key(
    said: tuple[str, ...], then: tuple[str, ...]
) -> None:
    x, pairs = Layout(world=8), (*(f"model.{pair}" for pair in said), "train.train_iters=5")
    assert heard((0, 4, 2), DENSE, x, pairs) == ("train.train_iters=5", *(f"model.{pair}" for pair in then))
    assert heard((0, 5, 1), DENSE, x, pairs) == pairs


def test_packs_of_old_versions_get_the_padding_that_context_parallelism_needs() -> None:
    packed = catalog.recipe("llama3_8b_sft_config")
    x = Layout(world=8, cp=4, tp=2)
    assert packed.packing == "offline"
    assert heard((0, 5, 1), packed, x, ())[0] == "dataset.packed_sequence_specs.pad_seq_to_mult=8"
    assert heard((0, 6, 0), packed, x, ()) == ()


def test_results_that_a_version_gets_wrong_are_said_with_the_version_that_mends_them() -> None:
    packed = catalog.recipe("llama3_8b_sft_config")
    assert "mended in 0.5.0" in known_wrong((0, 4, 2), packed, Layout(world=8, pp=4))[0]
    assert known_wrong((0, 4, 2), packed, Layout(world=8, pp=2)) == ()
    assert known_wrong((0, 5, 0), packed, Layout(world=8, pp=4)) == ()
    assert known_wrong(None, packed, Layout(world=8, pp=4)) == ()
    assert all("#" in row.source and row.sentence[0].islower() for row in WRONG)
    with pytest.raises(ParlaunchError, match=r"older than 0\.3\.0"):
        check_version((0, 2, 2))


def test_the_listed_versions_are_those_that_were_asked() -> None:
    table = load("bridge_fields.json")
    assert {v for has in table["keys"].values() for v in has} <= set(table["versions"])


@pytest.mark.parametrize(
    ("old", "now", "last"),
    [
        ("qwen2_audio_7b_finetune_config", "qwen2_audio_7b_sft_config", (0, 5, 1)),
        ("qwen3_omni_30b_a3b_sft_preloaded_config", "qwen3_omni_30b_a3b_sft_hf_json_config", (0, 5, 1)),
        ("gemma3_vl_4b_finetune_config", "gemma3_vl_4b_sft_config", (0, 3, 1)),
    ],
)
def test_a_recipe_that_is_gone_since_is_planned_and_called_as_each_version_calls_it(
    old: str, now: str, last: tuple[int, int, int]
) -> None:
    assert catalog.recipe(old).architecture == catalog.recipe(now).architecture
    assert name_in(last, old) == old
    assert name_in((0, 6, 2), old) == name_in(None, old) == now
    assert name_in((0, 6, 2), now) == now


def test_every_name_that_is_gone_leads_to_one_that_is_there() -> None:
    table = load("recipes.json")
    there = {row["name"] for row in table["recipes"]} | set(table["aliases"])
    assert {gone["name"] for gone in table["renamed"].values()} <= there
    assert not there & set(table["renamed"])


def test_a_deletion_takes_back_what_was_said_before_it() -> None:
    assert pairs_of(["model.hidden_size=2048", "ddp.bucket_size=1", "~model.hidden_size"]) == {"ddp.bucket_size": "1"}
    assert pairs_of(["model.hidden_size=2048", "models.x=1", "~model", "model.num_layers=4"]) == {
        "models.x": "1",
        "model.num_layers": "4",
    }

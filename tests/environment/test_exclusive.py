"""Keys that Megatron takes one of: what goes beside a user's own, and what cannot be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.environment.exclusive import check_beside
from parlaunch.environment.override_keys import shipped_keys
from parlaunch.environment.overrides import overrides
from parlaunch.environment.user_overrides import changed, read_overrides
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.front import plan
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.rules.switches import legal_features

ULTRA = "nemotron_3_ultra_pretrain_256gpu_gb200_fp8mx_config"  # has a number of buckets, and no comm_overlap
SIZED = "gpt_oss_20b_pretrain_8gpu_b300_nvfp4_config"  # has a size of buckets
DENSE = "llama3_8b_pretrain_config"  # has no comm_overlap
OVERLAPPED = "llama3_70b_pretrain_64gpu_h100_bf16_config"
GRAPHED = "deepseek_v3_pretrain_256gpu_gb200_bf16_config"
BIASED = "gpt_oss_120b_pretrain_64gpu_gb200_bf16_config"
MXFP8 = "deepseek_v3_pretrain_256gpu_gb200_fp8mx_config"
NEWER = "nemotron_3_nano_pretrain_8gpu_h100_bf16_config"  # names its graphs' modules under the newer key
PADDED = "deepseek_v4_flash_pretrain_64gpu_gb200_fp8mx_config"  # pads each expert's tokens
SPARSE = "deepseek_v4_flash_pretrain_config"
TUNED = "llama3_8b_sft_config"
WHOLE_ITERATION = "llama3_70b_pretrain_64gpu_b200_bf16_config"  # graphs of the whole iteration, under the older key
READY = (
    "qwen35_vl_122b_a10b_pretrain_32gpu_gb200_bf16_config"  # modules named for graphs that are off, in some releases
)

TRACKED = ("model.use_te_rng_tracker=True", "rng.te_rng_tracker=True")
WHOLE_LAYERS = ("model.cuda_graph_modules=[]", "model.cuda_graph_scope=null")
BEFORE_EXPERTS = ("model.cuda_graph_modules=[attn,moe_router,moe_preprocess]", "model.cuda_graph_scope=null")


def spoken(name: str, *pairs: str) -> set[str]:
    """What is said beside the user's own."""
    return set(changed(catalog.recipe(name), read_overrides(pairs)).spoken)


@pytest.mark.parametrize(
    ("name", "pairs", "beside"),
    [
        (ULTRA, ("ddp.bucket_size=1000000",), {"ddp.num_buckets=null"}),
        (ULTRA, ("ddp.num_buckets=3",), set()),
        (ULTRA, ("ddp.num_buckets=null", "ddp.bucket_size=8"), set()),
        (SIZED, ("ddp.bucket_size=8",), set()),
        (SIZED, ("ddp.num_buckets=3",), {"ddp.bucket_size=null"}),
        (DENSE, ("ddp.bucket_size=8",), set()),
        (DENSE, ("ddp.num_buckets=8",), set()),
        (GRAPHED, ("model.cuda_graph_modules=[attn]", "rng.te_rng_tracker=True"), {"model.cuda_graph_scope=null", "model.use_te_rng_tracker=True"}),
        (NEWER, ("model.cuda_graph_scope=[attn]",), {"model.cuda_graph_modules=null", "model.use_te_rng_tracker=True", "rng.te_rng_tracker=True"}),
        (DENSE, ("model.cuda_graph_scope=[attn]",), set()),
        (GRAPHED, ("model.cuda_graph_modules=[]",), {"model.cuda_graph_scope=null", *TRACKED}),
        (
            DENSE, ("model.cuda_graph_impl=full_iteration",),
            {*WHOLE_LAYERS, *TRACKED, "rerun_state_machine.check_for_nan_in_loss=False"},
        ),
        (DENSE, ("model.cuda_graph_impl=transformer_engine",), {*WHOLE_LAYERS, *TRACKED}),
        (SPARSE, ("model.cuda_graph_impl=transformer_engine",), {*BEFORE_EXPERTS, *TRACKED}),
        (WHOLE_ITERATION, ("model.cuda_graph_impl=transformer_engine",), {*WHOLE_LAYERS, *TRACKED}),
        (READY, ("model.cuda_graph_impl=transformer_engine",), {*BEFORE_EXPERTS, *TRACKED}),
        (READY, ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_modules=[attn]"), {"model.cuda_graph_scope=null", *TRACKED}),
        (DENSE, ("model.cuda_graph_impl=none",), set()),
        (DENSE, ("model.gradient_accumulation_fusion=True",), set()),
        (
            DENSE, ("model.gradient_accumulation_fusion=False",),
            {"model.defer_embedding_wgrad_compute=False", "model.delay_wgrad_compute=False"},
        ),
        (
            OVERLAPPED, ("model.gradient_accumulation_fusion=False",),
            {"comm_overlap.defer_embedding_wgrad_compute=False", "comm_overlap.delay_wgrad_compute=False"},
        ),
        (GRAPHED, ("model.moe_token_dispatcher_type=allgather",), {"model.moe_shared_expert_overlap=False"}),
        (GRAPHED, ("model.moe_token_dispatcher_type=alltoall",), set()),
        (
            PADDED, ("model.moe_token_dispatcher_type=allgather",),
            {f"model.{k}=False" for k in ("moe_router_padding_for_quantization", "moe_router_padding_for_fp8", "moe_shared_expert_overlap")},
        ),
        (PADDED, ("model.moe_token_dispatcher_type=alltoall",), set()),
        (MXFP8, ("mixed_precision.fp8_param_gather=False",), {"mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=False"}),
        (
            MXFP8, ("mixed_precision.fp8_recipe=delayed",),
            {"mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=False", "mixed_precision.first_last_layers_bf16=False"},
        ),
        (MXFP8, ("mixed_precision.fp8_recipe=mxfp8",), {"mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=True"}),
        (DENSE, ("ddp.overlap_param_gather=True",), set()),
        (
            GRAPHED, ("mixed_precision.fp8=null",),
            {f"mixed_precision.{k}=False" for k in ("fp8_param", "fp8_param_gather", "reuse_grad_buf_for_mxfp8_param_ag")},
        ),
    ],
)  # fmt: skip
def test_what_the_recipe_has_of_the_other_kind_is_taken_back(
    name: str, pairs: tuple[str, ...], beside: set[str]
) -> None:
    assert spoken(name, *pairs) == beside
    assert {pair.partition("=")[0] for pair in beside} <= shipped_keys()


@pytest.mark.parametrize(
    ("name", "pairs", "said", "hint"),
    [
        (ULTRA, ("ddp.num_buckets=3", "ddp.bucket_size=8"), "takes one of the two", "leave ddp.num_buckets out, or ddp.bucket_size"),
        (OVERLAPPED, ("ddp.num_buckets=3",), "gives buckets a size", "say comm_overlap.bucket_size"),
        (DENSE, ("model.cuda_graph_scope=[attn]", "model.cuda_graph_modules=[attn]"), "takes one", "leave"),
        (DENSE, ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_scope=[full_iteration]"), "single modules", "full_iteration"),
        (DENSE, ("model.external_cuda_graph=True",), "another switch", "say model.cuda_graph_impl=transformer_engine"),
        (GRAPHED, ("model.moe_enable_deepep=True",), "another switch", "moe_flex_dispatcher_backend=deepep"),
        (DENSE, ("train.train_samples=1000",), "takes one of", "add train.train_iters=null"),
        (DENSE, ("train.train_samples=1000", "train.train_iters=5"), "takes one of the two", "leave"),
        (DENSE, ("scheduler.lr_warmup_fraction=0.1",), "one way", "add scheduler.lr_warmup_iters=0"),
        (TUNED, ("dataset.enable_offline_packing=False",), "asks for packs", "add dataset.offline_packing_specs=null"),
        (TUNED, ("dataset.offline_packing_specs=null",), "asks for it", "add dataset.enable_offline_packing=False"),
        (DENSE, ("model.transformer_impl=inference_optimized",), "only transformer_engine and local train", "one of the two"),
        (SPARSE, ("model.transformer_impl=local",), "Transformer Engine's alone", "leave it out"),
        (
            DENSE, ("model.defer_embedding_wgrad_compute=True", "model.gradient_accumulation_fusion=False"), "summed by the product",
            "leave model.defer_embedding_wgrad_compute out",
        ),
        (DENSE, ("model.moe_ffn_hidden_size=1536",), "has no experts", "leave it out"),
        (OVERLAPPED, ("checkpoint.async_save=True",), "saves nothing", "add checkpoint.save=FOLDER"),
        (DENSE, ("checkpoint.async_save=True", "checkpoint.save=null"), "saves nothing", "say checkpoint.save=FOLDER"),
        (DENSE, ("model.pipeline_model_parallel_layout=Et*16|t*16mL",), "the model 0", "end it with L"),
        (DENSE, ("model.pipeline_model_parallel_layout=t*16|Et*16L",), "the first stage has the embedding", "E…|…L"),
        (DENSE, ("dist.use_decentralized_pg=True",), "NCCL's alone", "add dist.use_gloo_process_groups=False"),
        (
            MXFP8, ("mixed_precision.fp8_recipe=delayed", "mixed_precision.first_last_layers_bf16=True"), "takes one of the two",
            "leave mixed_precision.fp8_recipe out, or mixed_precision.first_last_layers_bf16",
        ),
        (
            PADDED, ("model.moe_token_dispatcher_type=allgather", "model.moe_router_padding_for_fp8=True"), "takes one of the two",
            "or model.moe_router_padding_for_fp8",
        ),
        (GRAPHED, ("mixed_precision.fp4=nvfp4",), "FP8 or FP4", "--precision nvfp4"),
        (DENSE, ("mixed_precision=null",), "each of them says", "say --precision"),
        (DENSE, ("model.fine_grained_activation_offloading=True",), "names nothing", "add 'model.offload_modules=[core_attn]'"),
        (DENSE, ("checkpoint.async_save=True", "checkpoint.ckpt_format=torch"), "not written", "leave checkpoint.ckpt_format out"),
    ],
)  # fmt: skip
def test_what_excludes_another_key_is_an_error_that_says_which(
    name: str, pairs: tuple[str, ...], said: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        spoken(name, *pairs)
    assert hint in caught.value.hint
    if caught.value.hint.startswith("add "):
        spoken(name, *pairs, caught.value.hint.removeprefix("add ").strip("'"))


@pytest.mark.parametrize(
    ("pairs", "fsdp", "said", "hint"),
    [
        (("checkpoint.ckpt_format=torch_dist",), True, "nothing else", "--no-fsdp"),
        (("checkpoint.ckpt_format=fsdp_dtensor",), False, "which is off", "--fsdp"),
        (("dist.use_torch_fsdp2=True",), True, "one of the two", "--no-fsdp"),
        (("dist.use_tp_pp_dp_mapping=True",), True, "order of ranks", "--no-fsdp"),
        (("ddp.fsdp_manual_registration=True",), True, "user buffers", "add ddp.nccl_ub=True"),
        (("validation.eval_global_batch_size=70",), False, "70 samples", "say validation.eval_global_batch_size=64"),
        (("validation.eval_global_batch_size=7",), False, "7 samples", "say validation.eval_global_batch_size=16"),
        (("validation.eval_micro_batch_size=3",), False, "micro batch 3", "say validation.eval_global_batch_size=480"),
        (("dist.eval_context_parallel_size=3",), False, "does not divide", "validation has CP 1"),
        (("model.hierarchical_context_parallel_sizes=[2,2]",), False, "their product is CP, which is 1", "--cp 4"),
    ],
)
def test_what_a_layout_excludes_is_an_error(pairs: tuple[str, ...], fsdp: bool, said: str, hint: str) -> None:
    recipe = catalog.recipe(DENSE)
    x = Layout(world=16, global_batch_size=512, fsdp=fsdp)
    with pytest.raises(UsageError, match=said) as caught:
        overrides(recipe, x, said=pairs)
    assert hint in caught.value.hint
    if hint.startswith("say v"):
        check_beside(recipe, x, read_overrides((*pairs, hint.removeprefix("say "))).given)


def test_what_a_layout_allows_is_let_pass() -> None:
    pairs = (
        "checkpoint.ckpt_format=fsdp_dtensor", "ddp.fsdp_manual_registration=True", "ddp.nccl_ub=True",
        "validation.eval_global_batch_size=32",
    )  # fmt: skip
    recipe = changed(catalog.recipe(DENSE), read_overrides(pairs))
    check_beside(recipe, Layout(world=16, global_batch_size=512, fsdp=True), read_overrides(pairs).given)


def test_a_size_of_buckets_that_is_asked_for_takes_the_recipe_s_number_back() -> None:
    made = plan(ULTRA, "dgx-b300:16", switches="recipe,dp_bucket=128000000")
    assert {"ddp.num_buckets=null", "ddp.bucket_size=128000000"} <= set(made.overrides)
    plain = plan(DENSE, "dgx-h100:1", switches="recipe,dp_bucket=128000000")
    assert not [pair for pair in plain.overrides if pair.startswith("ddp.num_buckets")]
    with pytest.raises(UsageError, match="the same switch"):
        plan(ULTRA, "dgx-b300:16", switches="recipe,dp_bucket=128000000", overrides=("ddp.num_buckets=3",))


def test_a_section_that_is_taken_out_overlaps_nothing() -> None:
    recipe = catalog.recipe(OVERLAPPED)
    assert recipe.features.tp_overlap
    out = changed(recipe, read_overrides(("comm_overlap=null", "model.tp_comm_overlap=False")))
    assert not out.features.tp_overlap
    assert "comm_overlap" in out.bare


def test_samples_that_are_no_longer_packed_take_larger_micro_batches() -> None:
    recipe = catalog.recipe(TUNED)
    assert recipe.packing == "offline"
    off = ("dataset.enable_offline_packing=False", "dataset.offline_packing_specs=null")
    assert changed(recipe, read_overrides(off)).packing is None
    assert changed(recipe, read_overrides(("dataset.enable_in_batch_packing=True",))).packing == "in_batch"
    seeing = catalog.recipe("qwen3_vl_8b_sft_config")
    assert changed(seeing, read_overrides(("dataset.enable_in_batch_packing=True",))).packing == "in_batch"
    made = plan(TUNED, "dgx-h100:1", overrides=(*off, "train.micro_batch_size=2"))
    assert (made.layout.micro_batch_size, made.not_planned_for) == (2, ())


def test_the_conditions_of_another_optimizer_are_its_own_and_its_memory_is_not_planned() -> None:
    with pytest.raises(ParlaunchError, match="Muon does not run with Megatron-FSDP"):
        plan(DENSE, "dgx-h100:1", overrides=("optimizer.optimizer=muon",), fsdp=True)
    made = plan(DENSE, "dgx-h100:1", overrides=("optimizer.optimizer=muon",))
    assert made.not_planned_for == ("optimizer.optimizer",)
    assert (
        changed(catalog.recipe("kimi_k2_pretrain_config"), read_overrides(("optimizer.optimizer=adam",))).optimizer
        == "adam"
    )


def test_a_type_may_be_called_as_bridge_calls_it() -> None:
    for text, name in (("bf16", "bfloat16"), ("torch.bfloat16", "bfloat16"), ("fp8", "float8_e4m3fn")):
        said = ("optimizer.use_precision_aware_optimizer=True", f"optimizer.exp_avg_dtype={text}")
        assert changed(catalog.recipe(DENSE), read_overrides(said)).features.moments == name


def test_how_many_layers_go_to_one_with_experts_may_be_a_number() -> None:
    recipe = catalog.recipe("qwen3_30b_a3b_pretrain_config")
    a = changed(recipe, read_overrides(("model.moe_layer_freq=2",))).architecture
    assert [kind.mlp for kind in a.layers()][:3] == ["moe", "dense", "moe"]


# --- A switch as KEY=VALUE --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pairs", "sizes", "said"),
    [
        (DENSE, ("model.delay_wgrad_compute=True",), {}, "model.delay_wgrad_compute=True: it needs the overlap of the expert all-to-all"),
        (OVERLAPPED, ("comm_overlap.delay_wgrad_compute=True",), {}, "comm_overlap.delay_wgrad_compute=True: it needs the overlap"),
        (DENSE, ("model.defer_embedding_wgrad_compute=True",), {"pp": 1}, "it hides in the pipeline's bubble, and PP is 1"),
        (DENSE, ("mixed_precision=bf16_mixed", "ddp.suggested_communication_unit_size=9"), {"fsdp": False}, "it is Megatron-FSDP's"),
        (DENSE, ("model.moe_permute_fusion=True",), {}, "model.moe_permute_fusion=True: the model has no experts"),
        (TUNED, ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_modules=[attn]"), {}, r"model.cuda_graph_modules=\[attn\]: packs"),
    ],
)  # fmt: skip
def test_a_key_has_the_conditions_of_its_switch(
    name: str, pairs: tuple[str, ...], sizes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plan(name, "dgx-h100:8", overrides=pairs, **sizes)


@pytest.mark.parametrize(
    ("name", "switches", "said"),
    [
        (BIASED, "ep_overlap=on,graphs=attn,delay_wgrad=on", "graphs=off, or graphs without attn"),
        (GRAPHED, "ep_overlap=on,graphs=attn,delay_wgrad=on,gradient_fusion=off", "gradient_fusion=on, or graphs=off"),
    ],
)
def test_weight_gradients_that_wait_inside_a_graph_have_no_biases_and_no_sums_apart(
    name: str, switches: str, said: str
) -> None:
    with pytest.raises(ParlaunchError, match=said):
        plan(name, "gb200-nvl72:64", switches=switches)


def test_weight_gradients_wait_beside_a_graph_of_what_has_no_biases() -> None:
    made = plan(BIASED, "gb200-nvl72:16", switches="ep_overlap=on,graphs=moe_router,delay_wgrad=on")
    assert "comm_overlap.delay_wgrad_compute=True" in made.overrides


def test_a_layout_is_chosen_in_which_the_user_s_key_can_be() -> None:
    made = plan(DENSE, "dgx-h100:2", overrides=("model.defer_embedding_wgrad_compute=True",))
    assert made.layout.pp > 1
    assert {"model.wgrad_deferral_limit=22", "model.gradient_accumulation_fusion=True"} <= set(made.overrides)


def test_what_layers_are_called_is_planned_with() -> None:
    made = plan(DENSE, "dgx-h100:1", overrides=("model.transformer_impl=local",))
    assert made.not_planned_for == ()
    assert any("builds no other layers" in w for w in made.warnings)
    with pytest.raises(ParlaunchError, match="modules are offloaded of Transformer Engine's layers alone") as caught:
        plan(DENSE, "dgx-h100:1", overrides=("model.transformer_impl=local",), switches="offload=core_attn")
    assert "--switches offload=off" in caught.value.hint


@pytest.mark.parametrize(
    "how", [{"overrides": ("model.gradient_accumulation_fusion=False",)}, {"switches": "recipe,gradient_fusion=off"}]
)
def test_sums_of_gradients_that_are_not_fused_take_longer_and_hold_one_gradient_at_a_time(how: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"tp": 1, "pp": 2, "vp": 1, "micro_batch_size": 1, "recompute": "none"}
    fused, apart = (
        plan(DENSE, "dgx-h100:2", **sizes, **more) for more in ({"switches": "recipe"}, {"switches": "recipe"} | how)
    )
    assert apart.not_planned_for == ()
    assert 1.01 < apart.chosen.estimate.iteration_time_s / fused.chosen.estimate.iteration_time_s < 1.06
    assert apart.chosen.memory.peak < fused.chosen.memory.peak


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("llama3_8b_peft_config", {}, "adapters need the weights"),
        ("llama3_70b_peft_8gpu_h100_bf16_config", {}, "adapters need the weights"),
        ("llama3_8b_peft_config", {"overrides": ("checkpoint.pretrained_checkpoint=/w",)}, None),
        (TUNED, {}, "nothing says which weights are tuned"),
        (TUNED, {"overrides": ("checkpoint.load=/w",)}, None),
        ("llama3_70b_sft_32gpu_h100_bf16_config", {}, None),
        (DENSE, {}, None),
    ],
)
def test_a_tuning_of_nothing_is_said(name: str, more: dict[str, Any], said: str | None) -> None:
    made = plan(name, "dgx-h100:4", objective="memory", **more)
    found = [w for w in made.warnings if "checkpoint.pretrained_checkpoint=FOLDER" in w]
    assert bool(found) is bool(said)
    assert (said or "") in "".join(found)


def test_what_is_deferred_is_summed_by_the_product_whatever_the_recipe_has() -> None:
    apart = "llama3_70b_pretrain_64gpu_b300_fp8cs_config"
    assert not catalog.recipe(apart).features.fused_accumulation
    typed = changed(catalog.recipe(apart), read_overrides(("comm_overlap.defer_embedding_wgrad_compute=True",)))
    assert typed.features.fused_accumulation
    made = plan(apart, "dgx-b300:8", switches="recipe,deferred_embedding=on", pp=2)
    assert made.configured.features.fused_accumulation
    assert "model.gradient_accumulation_fusion=True" in made.overrides


EXTERNAL = "qwen3_30b_a3b_pretrain_16gpu_gb200_fp8mx_partial_cg_dev_config"  # captured by Megatron's older switch


@pytest.mark.parametrize(
    "how",
    [
        {"switches": "recipe,graphs=attn"},
        {"switches": "recipe,graphs=off"},
        {"overrides": ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_scope=[moe_router]")},
        {"overrides": ("model.cuda_graph_impl=none",)},
    ],
)
def test_an_older_switch_falls_where_graphs_are_asked_for_by_today_s(how: dict[str, Any]) -> None:
    made = plan(EXTERNAL, "gb200-nvl72:4", objective="memory", evidence=False, **how)
    assert "model.external_cuda_graph=False" in made.overrides
    assert not made.configured.features.external_cuda_graph


@pytest.mark.parametrize(
    ("name", "captured"),
    [
        (DENSE, ()),
        (WHOLE_ITERATION, ()),
        (READY, ("attn", "moe_router", "moe_preprocess")),
        ("qwen3_30b_a3b_pretrain_config", ("moe_router", "moe_preprocess")),
        (EXTERNAL, ("attn", "moe_router", "moe_preprocess")),
    ],
)
def test_a_way_of_capturing_without_modules_captures_what_is_said_beside_it(
    name: str, captured: tuple[str, ...]
) -> None:
    made = changed(catalog.recipe(name), read_overrides(("model.cuda_graph_impl=transformer_engine",)))
    assert (made.features.cuda_graph, made.features.cuda_graph_scope) == ("transformer_engine", captured)
    assert f"model.cuda_graph_modules=[{','.join(captured)}]" in made.spoken


def test_dropout_is_not_recomputed_inside_a_graph() -> None:
    said = ("model.hidden_dropout=0.1", "model.cuda_graph_impl=transformer_engine", "model.cuda_graph_modules=[mlp]")
    plan(DENSE, "dgx-h100:1", overrides=said, recompute="core_attn")
    plan(DENSE, "dgx-h100:1", overrides=("model.hidden_dropout=0.0", *said[1:]), recompute="mlp", objective="memory")
    with pytest.raises(ParlaunchError, match="hidden_dropout excludes recomputing mlp inside a CUDA graph"):
        plan(DENSE, "dgx-h100:1", overrides=said, recompute="mlp")


@pytest.mark.parametrize(("precision", "on"), [("fp8mx", True), ("bf16", False), ("nvfp4", False), ("fp8cs", False)])
def test_an_output_layer_in_mxfp8_is_planned_in_mxfp8_alone(precision: str, on: bool) -> None:
    recipe = catalog.recipe("gpt_oss_120b_pretrain_64gpu_gb300_fp8mx_config")
    recipe = replace(recipe, precision=precision, features=replace(recipe.features, fp8_output=True))
    assert legal_features(recipe, Layout(world=8)).fp8_output is on


def test_padding_that_a_dispatcher_excludes_is_not_planned() -> None:
    recipe = catalog.recipe(PADDED)
    assert recipe.features.router_padding
    assert not changed(recipe, read_overrides(("model.moe_token_dispatcher_type=allgather",))).features.router_padding


@pytest.mark.parametrize(
    ("pairs", "share", "beside"),
    [
        (("optimizer.optimizer_cpu_offload=True",), 1.0, True),
        (("optimizer.optimizer_cpu_offload=True", "optimizer.optimizer_offload_fraction=0.5"), 0.5, False),
        (("optimizer.optimizer_cpu_offload=False",), 0.0, False),
        (("optimizer.optimizer_offload_fraction=0.5",), 0.0, False),
    ],
)
def test_a_share_that_the_recipe_has_ready_is_what_offloading_moves(
    pairs: tuple[str, ...], share: float, beside: bool
) -> None:
    recipe = replace(catalog.recipe(DENSE), unsettled=("optimizer_offload_fraction",))
    made = changed(recipe, read_overrides(pairs))
    assert made.features.optimizer_offload == share
    assert ("optimizer.optimizer_offload_fraction=1.0" in made.spoken) is beside

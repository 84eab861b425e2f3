"""Keys that Megatron takes only beside another value: the error says which, and what it says to add is taken."""

from __future__ import annotations

import pytest

from parlaunch.environment.needed import NEEDS, check_data
from parlaunch.environment.override_keys import harmless, left_on, overruled, shipped_keys
from parlaunch.environment.user_overrides import changed, planned_keys, read_overrides
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.front import plan
from parlaunch.model import catalog
from parlaunch.model.recipe import Recipe

DENSE = "llama3_8b_pretrain_config"
MOE = "qwen3_30b_a3b_pretrain_config"
MLA = "deepseek_v3_pretrain_config"
LINEAR = "qwen3_next_80b_a3b_pretrain_config"
WHOLE = "deepseek_v3_pretrain_256gpu_gb200_fp8mx_config"  # a graph of the whole iteration
GRAPHED = "deepseek_v3_pretrain_256gpu_gb200_bf16_config"
STASHED = "qwen3_30b_a3b_pretrain_16gpu_gb200_fp8mx_paged_stash_dev_config"
OFFLOADED = "deepseek_v3_pretrain_64gpu_gb300_fp8mx_fsdp_config"
QUICK = "gpt_oss_20b_pretrain_config"
GELU = "wan_1_3b_pretrain_config"
LOW = "nemotron_3_nano_pretrain_16gpu_h100_bf16_config"  # its optimizer is precision-aware; hybrid; squared ReLU

SINGLE = ("model.moe_single_grouped_weight=True", "model.use_transformer_engine_op_fuser=True")

ADAPTED = "llama3_70b_peft_config"  # its optimizer is whole
ADDING = "glm52_pretrain_192gpu_gb200_bf16_config"  # predicts a token further than its model


def made(name: str, *pairs: str) -> Recipe:
    return changed(catalog.recipe(name), read_overrides(pairs))


@pytest.mark.parametrize(
    ("name", "pairs", "said", "hint"),
    [
        (DENSE, ("checkpoint.load_main_params_from_ckpt=True",), "in the optimizer's place", "add checkpoint.load_optim=False"),
        (DENSE, ("scheduler.use_checkpoint_opt_param_scheduler=True",), "own schedule", "add scheduler.override_opt_param_scheduler=False"),
        (DENSE, ("dataset.fast_cache_load=True",), "where the cache is", "add dataset.path_to_cache=FOLDER"),
        (DENSE, ("logger.mlflow_experiment=runs",), "no name", "add logger.mlflow_run_name=NAME"),
        (DENSE, ("model.cpu_offloading=True",), "how many layers", "add model.cpu_offloading_num_layers=1"),
        (MOE, ("model.moe_paged_stash=True",), "how many tokens", "add model.moe_expert_rank_capacity_factor=1.5 model.use_t"),
        (MOE, ("mixed_precision.fp4_param_gather=True",), "in nvfp4, and this is in bf16", "--precision nvfp4"),
        (DENSE, ("model.fp8_output_proj=True", "mixed_precision.fp8=hybrid", "mixed_precision.fp8_recipe=tensorwise"), "in fp8cs", "fp8mx"),
        (DENSE, ("mixed_precision.fp8_recipe=current",), "no scaling", "one of: tensorwise, delayed, blockwise, mxfp8"),
        (LOW, ("model.activation_func_fp8_input_store=True",), "SwiGLU", "leave it out"),
        (MOE, ("model.moe_flex_dispatcher_backend=ncclep",), "not known", "say deepep or hybridep"),
        (DENSE, ("model.moe_flex_dispatcher_backend=ncclep",), "not known", "say deepep or hybridep"),
        (LOW, ("optimizer.use_distributed_optimizer=False",), "is distributed", "add optimizer.use_precision_aware_optimizer=False"),
        (DENSE, ("scheduler.max_steps=100",), "end before", "say train.train_iters=100 too"),
        (DENSE, ("scheduler.start_weight_decay=0.5",), "is constant", "add scheduler.end_weight_decay=0.5"),
        (DENSE, ("scheduler.end_weight_decay=0.0",), "is constant", "add scheduler.start_weight_decay=0.0"),
        (DENSE, ("scheduler.start_weight_decay=0.5", "scheduler.end_weight_decay=0.1"), "is constant", "give both the same"),
        (DENSE, ("scheduler.lr_warmup_fraction=0.0",), "one way", "add scheduler.lr_warmup_iters=0"),
        (DENSE, ("train.train_iters=null",), "how long", "add train.train_samples=NUMBER"),
        (DENSE, ("profiling.profile_step_start=20",), "is behind", "add profiling.profile_step_end=20"),
        (DENSE, ("profiling.profile_step_end=5",), "is behind", "add profiling.profile_step_start=5"),
        (DENSE, ("model.inference_fuse_tp_communication=True",), "do not train", "leave it out"),
        (MOE, ("model.moe_router_group_topk=2",), "num_groups is not said", "add model.moe_router_num_groups=8"),
        (DENSE, ("model.moe_router_group_topk=2",), "no experts", "leave it out"),
        (WHOLE, ("model.cuda_graph_modules=[attn]",), "of the whole iteration", "add model.cuda_graph_impl=transformer_engine"),
        (DENSE, ("model.cuda_graph_impl=full_iteration", "model.cuda_graph_scope=[attn]"), "of the whole", "leave model.cuda_graph_scope out"),
        (GRAPHED, ("model.cuda_graph_scope=[full_iteration_inference]",), "no graph of training", "leave it out"),
        (STASHED, ("model.offload_modules=[moe_act]",), "holds moe_act already", "leave them out"),
        (OFFLOADED, ("model.offload_modules=[fused_group_mlp]",), "a fused kernel's", "add model.use_transformer_engine_op_fuser=True"),
        (OFFLOADED, ("model.offload_modules=null",), "no module is named", "say model.fine_grained_activation_offloading=False"),
        (DENSE, ("mixed_precision.fp16=True",), "what else that sets", "say --precision bf16, fp16 or fp32"),
        (DENSE, ("mixed_precision.bf16=False",), "what else that sets", "say --precision bf16, fp16 or fp32"),
        (MOE, ("mixed_precision.reuse_grad_buf_for_mxfp8_param_ag=True",), "in fp8mx", "--precision fp8mx"),
        (DENSE, ("model.use_te_activation_func=True",), "another's", "add model.bias_activation_fusion=False"),
        (DENSE, ("model.glu_linear_offset=1.0",), "without one", "add model.bias_activation_fusion=False"),
        (MOE, ("model.moe_expert_rank_capacity_factor=1.5",), "fused kernel", "add model.use_transformer_engine_op_fuser=True"),
        (MOE, ("model.moe_router_load_balancing_type=[aux_loss,seq_aux_loss]",), "as many", "add model.moe_aux_loss_coeff=[0.01,0.01]"),
        (DENSE, ("model.no_rope_freq=[1]",), "speaks of 1 layers", "a 0 or 1 for each"),
        (LOW, ("optimizer.optimizer=sgd",), "which is Adam's", "add optimizer.use_precision_aware_optimizer=False"),
        (DENSE, ("optimizer.exp_avg_sq_dtype=bf16",), "keeps it so", "add optimizer.use_precision_aware_optimizer=True"),
        (MOE, ("model.num_moe_experts=null",), "stand", "choose a recipe whose model is dense"),
        (MLA, ("model.moe_router_num_groups=3",), "groups are equal", "a divisor of 256"),
        (MLA, ("model.attention_output_gate=True",), "has no gate", "leave it out"),
        (LINEAR, ("model.linear_num_value_heads=2",), "no multiple of its 16", "model.linear_num_value_heads=16"),
        (LINEAR, ("model.linear_num_value_heads=null",), "not a whole number", "for example"),
        (QUICK, ("model.gated_linear_unit=False",), "a bias that is not there", "add model.bias_activation_fusion=False"),
        (GELU, ("model.add_bias_linear=False",), "a bias that is not there", "add model.bias_activation_fusion=False"),
        (DENSE, ("model.hidden_size=2",), "fewer than the 32 attention heads", "model.num_attention_heads=2"),
        (DENSE, ("model.inference_cuda_graph_scope=block",), "exclude such of inference", "leave it out"),
        (MOE, ("model.moe_single_grouped_weight=True",), "fused kernels", "add model.use_transformer_engine_op_fuser=True"),
        (DENSE, (*SINGLE,), "has no experts", "leave it out"),
        (MOE, (*SINGLE, "model.moe_grouped_gemm=False"), "one by one", "leave model.moe_grouped_gemm out"),
        (MOE, (*SINGLE, "mixed_precision=bf16_with_fp8_current_scaling_mixed"), "in fp8cs", "--precision bf16, fp8mx or nvfp4"),
        (MOE, ("model.moe_single_grouped_bias=True",), "has no biases", "leave it out"),
        (DENSE, ("checkpoint.ckpt_step=100", "checkpoint.load=null"), "where the checkpoint is", "say checkpoint.load=FOLDER"),
        (DENSE, ("model.batch_invariant_mode=True",), "asks for model.attention_backend=flash", "leave it out"),
        (DENSE, ("model.moe_layer_freq=[1]",), "speaks of 1 layers, and the model has 32", "a 0 or 1 for each"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_said_and_taken(name: str, pairs: tuple[str, ...], said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        made(name, *pairs)
    assert hint in caught.value.hint
    if caught.value.hint.startswith("add "):
        added = caught.value.hint.removeprefix("add ").partition(":")[0].replace("NUMBER", "4096").split()
        made(name, *pairs, *added)
    elif caught.value.hint.startswith("say train"):
        made(name, *pairs, caught.value.hint.split()[1])


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (MOE, (*SINGLE, "mixed_precision=bf16_with_mxfp8_mixed")), (QUICK, ("model.moe_single_grouped_bias=True",)),
        (DENSE, ("checkpoint.ckpt_step=100", "checkpoint.async_save=True")), (WHOLE, ("checkpoint.async_save=False",)), (WHOLE, ("checkpoint.ckpt_step=100",)),
        (DENSE, ("model.batch_invariant_mode=False",)),
    ],
)  # fmt: skip
def test_what_lacks_nothing_is_taken(name: str, pairs: tuple[str, ...]) -> None:
    made(name, *pairs)


def test_what_a_need_names_is_there() -> None:
    keys = shipped_keys()
    for need in NEEDS:
        assert {need.key, *(pair.partition("=")[0] for pair in need.add.split())} <= keys


def test_main_weights_below_fp32_need_the_precision_aware_optimizer() -> None:
    with pytest.raises(ParlaunchError, match="main weights in bfloat16 need the precision-aware optimizer"):
        plan(DENSE, "dgx-h100:1", overrides=("optimizer.main_params_dtype=bf16",))


def test_one_expert_a_token_is_chosen_by_scores_of_all() -> None:
    assert "model.moe_router_pre_softmax=True" in made(MOE, "model.moe_router_topk=1").spoken
    assert made(MOE, "model.moe_router_topk=1", "model.moe_router_pre_softmax=False").spoken == ()


def test_sizes_that_are_left_to_megatron_follow_from_the_others() -> None:
    said = (f"model.{name}=null" for name in ("ffn_hidden_size", "kv_channels", "num_query_groups"))
    a = made(DENSE, "model.hidden_size=2048", *said).architecture
    assert (a.ffn_hidden_size, a.kv_channels, a.num_query_groups) == (8192, 64, 32)
    assert made(DENSE, "model.num_query_groups=null").architecture.num_query_groups == 32


def test_decay_of_weights_may_grow_where_that_is_said() -> None:
    made(DENSE, "scheduler.weight_decay_incr_style=linear", "scheduler.end_weight_decay=0.2")


@pytest.mark.parametrize("decay", ["0.033", "0.1"])
def test_a_decay_that_recipes_have_may_be_said_again(decay: str) -> None:
    made(DENSE, f"scheduler.end_weight_decay={decay}")
    made(DENSE, f"scheduler.start_weight_decay={decay}")


def test_one_of_two_switches_of_the_distributed_optimizer_does_nothing() -> None:
    ddp, own = "ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"
    recipe = made(DENSE, f"{own}=False")
    assert recipe.features.distributed_optimizer
    assert left_on({own: "False"}, recipe) == (f"{own}=False does nothing: {ddp} turns it on again; add {ddp}=False",)
    assert left_on({ddp: "False"}, recipe) == (f"{ddp}=False does nothing: {own} turns it on again; add {own}=False",)
    assert left_on({own: "True"}, recipe) == ()
    whole = made(DENSE, f"{own}=False", f"{ddp}=False")
    assert left_on({own: "False", ddp: "False"}, whole) == ()
    assert left_on({own: "False"}, made(ADAPTED, f"{own}=False")) == ()


def test_none_of_what_is_counted_is_zero_too() -> None:
    assert not made(MLA, "model.mtp_num_layers=0").architecture.mtp_num_layers
    assert made(ADDING, "model.mtp_num_layers=0").added_mtp_layers == 0
    assert made(DENSE, "model.cpu_offloading_num_layers=0").features.cpu_offload_layers == 0


def test_one_and_zero_are_true_and_false() -> None:
    assert read_overrides(["model.sequence_parallel=1"]).pins == {"sequence_parallel": True}
    assert made(DENSE, "mixed_precision.grad_reduce_in_fp32=0").features.grad_reduce_fp32 is False


def test_letters_of_no_layer_are_named() -> None:
    with pytest.raises(UsageError, match=r"P, x is no kind of layer") as caught:
        made(LOW, "model.hybrid_layer_pattern=MPx-")
    assert caught.value.hint == "layers are M G * + D - E; | stands between stages, / before further tokens"


def test_experts_without_a_size_of_their_own_have_that_of_dense_layers() -> None:
    a = made(MOE, "model.moe_ffn_hidden_size=null").architecture
    assert a.moe_ffn_hidden_size == a.ffn_hidden_size


def test_a_key_that_is_overwritten_by_its_twin_is_said_to_do_nothing() -> None:
    recipe, key = catalog.recipe(MOE), "mixed_precision.fp8_param"
    assert key not in planned_keys(recipe)
    assert not harmless(key)
    assert overruled([key], recipe) == (
        "mixed_precision.fp8_param does nothing: mixed_precision.fp8_param_gather is set behind it; say that",
    )


TUNED, SEEING = "llama3_8b_sft_config", "gemma3_vl_12b_sft_config"


@pytest.mark.parametrize(
    ("name", "pairs", "said", "hint"),
    [
        (TUNED, ("dataset.dataset_root=/data",), "one of the two", "add dataset.hf_dataset=null dataset.hf_validation_proportion=null"),
        (TUNED, ("dataset.hf_dataset.path_or_dataset=our/data",), "one of Megatron Bridge's own", "add dataset.hf_dataset.dataset_name=null"),
        (TUNED, ("dataset.hf_dataset.dataset_name=null",), "no data", "add dataset.hf_dataset.path_or_dataset=NAME"),
        (TUNED, ("dataset.do_validation=False",), "asks for it", "add dataset.hf_validation_proportion=null"),
        (SEEING, ("dataset.source.path_or_dataset=our/data",), "one of Megatron Bridge's own", "add dataset.source.dataset_name=null"),
    ],
)  # fmt: skip
def test_data_of_one_s_own_take_the_place_of_the_recipe_s(
    name: str, pairs: tuple[str, ...], said: str, hint: str
) -> None:
    recipe = catalog.recipe(name)
    with pytest.raises(UsageError, match=said) as caught:
        check_data(read_overrides(pairs).given, recipe, None)
    assert hint == caught.value.hint
    check_data(read_overrides((*pairs, *hint.removeprefix("add ").split())).given, recipe, (0, 7, 0))
    check_data(read_overrides(pairs).given, recipe, (0, 5, 1))
    with pytest.raises(UsageError, match=said):
        plan(name, "dgx-h100:1", overrides=pairs, objective="memory")


def test_a_kind_of_fused_loss_does_not_fuse_it() -> None:
    recipe = catalog.recipe(GELU)
    assert recipe.features.cross_entropy == "unfused"
    assert made(GELU, "model.cross_entropy_fusion_impl=te").features.cross_entropy == "unfused"
    both = made(GELU, "model.cross_entropy_fusion_impl=te", "model.cross_entropy_loss_fusion=True")
    assert both.features.cross_entropy == "te"


def test_attention_in_fp8_has_two_switches() -> None:
    for name in ("fp8_dot_product_attention", "fp8_multi_head_attention"):
        assert made(MOE, f"mixed_precision.{name}=True").features.fp8_attention
    recipe = next(r for r in map(catalog.recipe, catalog.recipe_names()) if r.features.fp8_attention)
    assert made(recipe.name, "mixed_precision.fp8_multi_head_attention=False").features.fp8_attention
    assert not made(recipe.name, "mixed_precision.fp8_dot_product_attention=False").features.fp8_attention

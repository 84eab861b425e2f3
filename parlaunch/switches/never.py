"""What no plan changes: settings that decide what is computed, not how fast.

Named by their key in Megatron Bridge's configuration, with why and where that is written; a name that ends in a dot is a whole
section. What a recipe or a user says about them stands; a test holds every plan's switches against them.
"""

from __future__ import annotations

from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Never:
    """One thing that stays as the recipe has it."""

    what: str
    keys: tuple[str, ...]
    why: str
    source: str


FORMATS = (
    "bf16", "fp16", "fp32", "fp8", "fp8_recipe", "fp8_margin", "fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_wgrad",
    "fp8_dot_product_attention", "fp8_multi_head_attention", "fp4", "fp4_recipe", "params_dtype", "autocast_dtype",
    "first_last_layers_bf16", "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16", "grad_reduce_in_fp32", "loss_scale",
)  # fmt: skip
"""Of a mixed precision, what decides the numbers; the rest of that section is how they are kept and moved."""

NEVER: tuple[Never, ...] = (
    Never(
        "number formats",
        ("mixed_precision", *(f"mixed_precision.{field}" for field in FORMATS), "model.fp8", "model.fp4", "model.params_dtype",
         "model.moe_dispatch_fwd_dtype"),
        "other rounding in every product", "megatron/core/transformer/transformer_config.py:566",
    ),
    Never(
        "gradients summed in fp32", ("ddp.grad_reduce_in_fp32", "model.grad_reduce_in_fp32"),
        "bf16 sums of many ranks lose small gradients",
        "megatron/core/distributed/distributed_data_parallel_config.py:15",
    ),
    Never(
        "precision-aware optimizer and its formats",
        ("optimizer.use_precision_aware_optimizer", "optimizer.main_grads_dtype", "optimizer.main_params_dtype",
         "optimizer.exp_avg_dtype", "optimizer.exp_avg_sq_dtype"),
        "moments below fp32 are not comparable in convergence", "megatron/core/optimizer/optimizer_config.py:197",
    ),
    Never(
        "forced balance of the router", ("model.moe_router_force_load_balancing", "model.moe_router_force_biased"),
        "random routing: for benchmarks, never for training", "megatron/core/transformer/transformer_config.py:812",
    ),
    Never(
        "capacity and dropping of tokens",
        ("model.moe_expert_capacity_factor", "model.moe_pad_expert_input_to_capacity", "model.moe_token_drop_policy",
         "model.moe_expert_rank_capacity_factor", "model.moe_paged_stash"),
        "tokens beyond the capacity are dropped; the paged stash, and with it graphs of whole iterations with experts, needs a budget",
        "megatron/core/transformer/transformer_config.py:888, :977, :1907",
    ),
    Never(
        "the router's arithmetic", ("model.moe_router_dtype", "model.moe_router_load_balancing_type", "model.moe_aux_loss_coeff"),
        "other routing", "megatron/core/transformer/transformer_config.py:790",
    ),
    Never(
        "how the loss is averaged", ("model.calculate_per_token_loss", "ddp.average_in_collective"),
        "another mean where micro batches differ in tokens", "megatron/core/distributed/distributed_data_parallel_config.py:74",
    ),
    Never(
        "the loss's kernel", ("model.cross_entropy_loss_fusion", "model.cross_entropy_fusion_impl"),
        "Megatron-LM refuses Transformer Engine's for stability, and no fused one is deterministic",
        "megatron/training/arguments.py:1642, megatron/core/model_parallel_config.py:536",
    ),
    Never(
        "batch, sequence, schedule and data",
        ("train.global_batch_size", "model.seq_length", "dataset.", "scheduler.", "optimizer.lr", "optimizer.weight_decay",
         "optimizer.clip_grad", "model.mtp_num_layers"),
        "another run", "Megatron Bridge's recipes",
    ),
)  # fmt: skip

"""A recipe's model shrunken until a few gloo ranks on one CPU train it in seconds, with the parts of its family.

What makes the family stays: grouped-query attention, multi-latent attention, a gated MLP, the norm, biases, tied
embeddings, experts with a shared one beside them. What only costs (depth, width, vocabulary) or has no CPU kernel
(state-space and linear attention, sliding windows, multi-token prediction, the vision encoder) goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.model.architecture import Architecture
from parlaunch.model.parameters import total_params
from parlaunch.model.recipe import Defaults, Features, Recipe

SEQ_LENGTH = 64
GLOBAL_BATCH_SIZE = 8
TRAIN_ITERS = 10
"""Iterations unless the user says otherwise: enough to see the loss fall, a few seconds on two cores."""

HIDDEN, FFN, EXPERT_FFN, HEAD, VOCAB = 64, 128, 64, 16, 1024


def shrink(recipe: Recipe, nproc: int, *, keep: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with a tiny model of its family, which `nproc` ranks can share in any layout they can form.

    `keep` are the user's pins: a pinned sequence length or batch stays, and layers, heads and experts divide by the
    pinned sizes. Raises ParlaunchError for a diffusion model, which has no decoder to shrink.
    """
    pins = dict(keep or {})
    if recipe.architecture.kind == "diffusion":
        raise ParlaunchError(
            f"--device cpu trains language models, and {recipe.name} is a diffusion transformer",
            hint="plan it for GPUs: --hardware dgx-h100:1",
        )
    return replace(
        recipe,
        model=f"tiny {recipe.model}",
        architecture=_architecture(recipe.architecture, nproc, pins),
        seq_length=pins.get("seq_length") or SEQ_LENGTH,
        # Every rank may be a replica: the batch divides by all of them.
        global_batch_size=pins.get("global_batch_size")
        or _divisible(GLOBAL_BATCH_SIZE, nproc * (pins.get("micro_batch_size") or 1)),
        precision="fp32" if recipe.precision == "fp32" else "bf16",
        gpus=None,
        hardware=None,
        defaults=Defaults(),
        features=Features(
            dispatcher="allgather" if recipe.architecture.num_moe_experts else None,
            activation_fusion=False,
            reduce_overlap=False,
            gather_overlap=False,
        ),
        benchmark=False,
        feasible=True,
        env={},
    )


def _divisible(least: int, *divisors: int | None) -> int:
    """The smallest number from `least` on that every divisor divides."""
    unit = math.lcm(*(d or 1 for d in divisors))
    return unit * math.ceil(least / unit)


def _architecture(a: Architecture, nproc: int, pins: Mapping[str, Any]) -> Architecture:
    width = 1 << (min(nproc, 8) - 1).bit_length()  # ranks that may share heads or experts: a power of two
    stages = (pins.get("pp") or 1) * (pins.get("vp") or 1)
    groups = _divisible(max(4, width), pins.get("tp"))
    grouped = a.num_query_groups < a.num_attention_heads and not a.multi_latent_attention
    layers = _divisible(max(4, width), stages)
    moe = bool(a.num_moe_experts)
    dense = min(a.first_k_dense or 0, 1) if moe else 0
    ffn = _divisible(FFN, pins.get("tp"))
    expert_ffn = _divisible(EXPERT_FFN, pins.get("tp"), pins.get("etp"))
    return Architecture(
        num_layers=layers,
        hidden_size=HIDDEN,
        ffn_hidden_size=ffn,
        num_attention_heads=2 * groups if grouped else groups,
        num_query_groups=groups,
        kv_channels=HEAD,
        vocab_size=VOCAB,
        gated_linear_unit=a.gated_linear_unit,
        activation_func=a.activation_func,
        normalization=a.normalization,
        add_bias_linear=a.add_bias_linear,
        add_qkv_bias=a.add_qkv_bias,
        qk_layernorm=a.qk_layernorm,
        max_position_embeddings=max(SEQ_LENGTH, pins.get("seq_length") or 0),
        share_embeddings_and_output_weights=a.share_embeddings_and_output_weights,
        num_moe_experts=_divisible(max(4, width), pins.get("ep")) if moe else None,
        moe_ffn_hidden_size=expert_ffn if moe else None,
        moe_router_topk=min(a.moe_router_topk, 2),
        moe_shared_expert_intermediate_size=expert_ffn if moe and a.moe_shared_expert_intermediate_size else None,
        first_k_dense=dense or None,
        multi_latent_attention=a.multi_latent_attention,
        q_lora_rank=32 if a.multi_latent_attention and a.q_lora_rank else None,
        kv_lora_rank=32 if a.multi_latent_attention else None,
        qk_head_dim=HEAD if a.multi_latent_attention else None,
        qk_pos_emb_head_dim=HEAD // 2 if a.multi_latent_attention else None,
        v_head_dim=HEAD if a.multi_latent_attention else None,
    )


def sentence(original: Recipe, tiny: Recipe) -> str:
    """What was done to the model, for the screen."""
    a, b = original.architecture, tiny.architecture
    experts = f", {b.num_moe_experts} experts instead of {a.num_moe_experts}" if a.num_moe_experts else ""
    left = [
        name
        for name, there in (
            ("the vision encoder", a.kind == "multimodal"),
            ("state-space or linear-attention layers", a.hybrid_layer_pattern or a.linear_attention_pattern),
            ("sliding windows", a.sliding_window or a.window_size),
            ("sparse attention", a.experimental_attention_variant in ("dsa", "dsv4_hybrid")),
            ("multi-token prediction", a.mtp_num_layers),
        )
        if there
    ]
    without = f", without {' and '.join(left)}" if left else ""
    return (
        f"a tiny model of {original.name}'s family, sized for CPU: {b.num_layers} layers of {b.hidden_size} instead of "
        f"{a.num_layers} of {a.hidden_size}{experts}{without}; {total_params(b):,} parameters, "
        f"sequences of {tiny.seq_length}"
    )


def tiny_overrides(recipe: Recipe) -> tuple[str, ...]:
    """KEY=VALUE that make either runner for CPU train this shrunken recipe, for a few iterations and without files.

    They come first: what the user says later about the same keys wins.
    """
    return tuple(f"{key}={_text(value)}" for key, value in _pairs(recipe).items())


def _pairs(recipe: Recipe) -> dict[str, object]:
    a = recipe.architecture
    pairs: dict[str, object] = {
        name: getattr(a, name)
        for name in (
            "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
            "vocab_size", "gated_linear_unit", "normalization", "add_bias_linear", "add_qkv_bias", "qk_layernorm",
            "share_embeddings_and_output_weights",
        )
    }  # fmt: skip
    if a.num_moe_experts:
        pairs |= {
            "num_moe_experts": a.num_moe_experts, "moe_router_topk": a.moe_router_topk,
            "moe_ffn_hidden_size": a.moe_ffn_hidden_size,
            "moe_shared_expert_intermediate_size": a.moe_shared_expert_intermediate_size,
            "moe_router_num_groups": None,
            "moe_router_group_topk": None,
            "moe_layer_freq": [int(i >= (a.first_k_dense or 0)) for i in range(a.num_layers)],
        }  # fmt: skip
    if a.multi_latent_attention:
        names = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
        pairs |= {"multi_latent_attention": True, **{name: getattr(a, name) for name in names}}
    return {f"model.{name}": value for name, value in pairs.items()} | {
        "dataset.seq_length": recipe.seq_length,
        "train.train_iters": TRAIN_ITERS,
        "train.global_batch_size": recipe.global_batch_size,
        "scheduler.lr_warmup_iters": 0,
        "validation.eval_iters": 0,
        "validation.eval_interval": 0,
        "checkpoint.save_interval": 0,
        "checkpoint.save": None,
        "checkpoint.load": None,
        "logger.tensorboard_dir": None,
        "logger.log_interval": 1,
    }


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value)

"""A Hugging Face config.json as an `Architecture`.

Most models are one decoder with a few choices; `FAMILIES` says per `model_type` what the file itself leaves unsaid
(the class in transformers decides it). Sizes are found under the names that configurations give them; a multimodal file
keeps its language model in `text_config` or a relative of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import ENCODER_NAMES, Architecture, architecture_from_json, encoder_from_json, flaw
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import OVERLAP, PRECISION

NAMES: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_query_groups": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "ffn_hidden_size": ("intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "kv_channels": ("head_dim", "attention_head_dim", "kv_channels"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"),
    "num_moe_experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "moe_router_topk": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
    "moe_ffn_hidden_size": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "moe_latent_size": ("moe_latent_size",),
    "first_k_dense": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "moe_router_num_groups": ("n_group",),
    "moe_router_group_topk": ("topk_group",),
    "mtp_num_layers": ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_head_dim": ("qk_nope_head_dim",),
    "qk_pos_emb_head_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
    "sliding_window": ("sliding_window", "sliding_window_size"),
    "linear_num_key_heads": ("linear_num_key_heads",),
    "linear_key_head_dim": ("linear_key_head_dim",),
    "linear_num_value_heads": ("linear_num_value_heads",),
    "linear_value_head_dim": ("linear_value_head_dim",),
    "linear_conv_kernel_dim": ("linear_conv_kernel_dim",),
    "mamba_num_heads": ("mamba_num_heads",),
    "mamba_head_dim": ("mamba_head_dim",),
    "mamba_state_dim": ("ssm_state_size",),
    "mamba_num_groups": ("n_groups",),
    "dsa_indexer_n_heads": ("index_n_heads",),
    "dsa_indexer_head_dim": ("index_head_dim",),
    "dsa_indexer_topk": ("index_topk",),
    "global_head_dim": ("global_head_dim",),
    "num_global_query_groups": ("num_global_key_value_heads",),
    "num_kv_shared_layers": ("num_kv_shared_layers",),
    "per_layer_embed_dim": ("hidden_size_per_layer_input",),
    "per_layer_embed_vocab_size": ("vocab_size_per_layer_input",),
    "num_residual_streams": ("hc_mult",),
    "o_groups": ("o_groups",),
    "o_lora_rank": ("o_lora_rank",),
}
"""Megatron's name of a size, and the names configurations give it; the first that is there counts."""

PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a multimodal configuration keeps its language model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a `model_type` implies, where its configuration does not say otherwise."""

    gated: bool = True
    qkv_bias: bool = False
    bias: bool = False  # on every linear layer
    qk_norm: bool = False
    post_norms: bool = False
    output_gate: bool = False
    norm: str = "RMSNorm"
    tied: bool = False
    positions: str = "rope"
    shared_gate: bool = False
    experts_use_ffn: bool = False  # routed experts are `intermediate_size` wide
    defaults: Mapping[str, Any] = field(default_factory=dict)  # sizes that files of this family leave out
    experts_beside: str | None = None  # the size of the dense part beside the routed experts, where it is no option


LLAMA = Family()
QWEN2 = Family(qkv_bias=True)
QWEN3 = Family(qk_norm=True)
GATED_DELTA = Family(qk_norm=True, output_gate=True, shared_gate=True)
DEEPSEEK = Family()
PLAIN = Family(gated=False, bias=True, norm="LayerNorm")
GEMMA = Family(tied=True)
GEMMA3 = Family(
    tied=True, post_norms=True, qk_norm=True,
    defaults={
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA, "mistral": Family(), "ministral": Family(), "ministral3": Family(), "seed_oss": LLAMA,
    "smollm3": Family(tied=True), "arcee": Family(gated=False), "helium": Family(), "granite": LLAMA,
    "mixtral": Family(experts_use_ffn=True), "granitemoe": Family(experts_use_ffn=True),
    "qwen2": QWEN2, "qwen2_vl": QWEN2, "qwen2_5_vl": QWEN2, "qwen2_audio": QWEN2, "qwen2_vl_text": QWEN2,
    "qwen2_5_vl_text": QWEN2, "qwen2_moe": Family(qkv_bias=True, shared_gate=True),
    "qwen3": QWEN3, "qwen3_moe": QWEN3, "qwen3_vl": QWEN3, "qwen3_vl_text": QWEN3, "qwen3_vl_moe": QWEN3,
    "qwen3_vl_moe_text": QWEN3, "qwen3_omni_moe_text": QWEN3, "qwen3_omni_moe": QWEN3,
    "qwen3_next": GATED_DELTA, "qwen3_5": GATED_DELTA, "qwen3_5_text": GATED_DELTA, "qwen3_5_moe": GATED_DELTA,
    "qwen3_5_moe_text": GATED_DELTA,
    "deepseek_v2": DEEPSEEK, "deepseek_v3": DEEPSEEK, "deepseek_v32": DEEPSEEK, "kimi_k2": DEEPSEEK, "kimi_k25": DEEPSEEK,
    "glm_moe_dsa": DEEPSEEK, "glm4_moe_lite": DEEPSEEK, "deepseek_v4": DEEPSEEK,
    "gemma": GEMMA, "gemma2": Family(tied=True, post_norms=True), "gemma3": GEMMA3,
    "gemma3_text": GEMMA3,
    "gemma4": Family(tied=True, post_norms=True, qk_norm=True, experts_beside="intermediate_size"),
    "gemma4_text": Family(tied=True, post_norms=True, qk_norm=True, experts_beside="intermediate_size"),
    "gpt_oss": Family(bias=True, qkv_bias=True, experts_use_ffn=True),
    "glm": Family(qkv_bias=True), "glm4": Family(qkv_bias=True, post_norms=True), "glm4_moe": Family(),
    "glm4v_moe": Family(qkv_bias=True), "glm4v_moe_text": Family(qkv_bias=True),
    "nemotron": Family(gated=False, norm="LayerNorm"), "nemotron_h": Family(gated=False),
    "phi": PLAIN, "phi3": Family(), "phimoe": Family(experts_use_ffn=True, norm="LayerNorm"),
    "gpt2": Family(gated=False, bias=True, norm="LayerNorm", tied=True, positions="learned_absolute"),
    "opt": Family(gated=False, bias=True, norm="LayerNorm", tied=True, positions="learned_absolute"),
    "gpt_neox": PLAIN, "bloom": Family(gated=False, bias=True, norm="LayerNorm", tied=True, positions="none"),
    "falcon": Family(gated=False, norm="LayerNorm", tied=True),
    "starcoder2": Family(gated=False, bias=True, norm="LayerNorm", tied=True),
    "stablelm": Family(norm="LayerNorm"), "olmo": Family(), "olmo2": Family(qk_norm=True), "olmo3": Family(qk_norm=True),
    "olmoe": Family(qk_norm=True, experts_use_ffn=True),
    "exaone4": QWEN3, "exaone4_5": QWEN3, "exaone4_5_text": QWEN3, "exaone_moe": QWEN3, "minimax_m2": Family(qk_norm=True, experts_use_ffn=True),
    "ernie4_5": Family(tied=True), "ernie4_5_moe": Family(tied=True),
    "llama4": Family(experts_use_ffn=True, experts_beside="intermediate_size"), "llama4_text": Family(experts_use_ffn=True, experts_beside="intermediate_size"),
    "cohere": Family(tied=True, norm="LayerNorm"), "cohere2": Family(tied=True, norm="LayerNorm"),
    "apertus": Family(gated=False, qk_norm=True), "hy_v3": QWEN3, "solar_open": Family(), "dots1": QWEN3,
    "hunyuan_v1_dense": QWEN3, "internlm2": Family(), "internlm3": Family(),
    "chatglm": QWEN2, "youtu": Family(tied=True),
}  # fmt: skip


HEADS_FOLLOW = (
    "ernie4_5_moe", "exaone4", "exaone4_5", "exaone_moe", "glm4_moe", "glm4v_moe", "glm4v_moe_text", "olmoe", "qwen2", "qwen2_5_vl",
    "qwen2_5_vl_text", "qwen2_audio", "qwen3_moe", "qwen3_omni_moe", "qwen3_omni_moe_text",
)  # fmt: skip
"""Families for which transformers keeps no head size where the file has none: Megatron makes it of width and heads, changed ones too."""


def architecture_from_hf(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config.json describes.

    Raises `UsageError` for a `model_type` that is not in `FAMILIES`, and for a file without the sizes of a language model.
    """
    text, outer = _language_part(config)
    kind = str(text.get("model_type") or outer.get("model_type") or "")
    family = FAMILIES.get(kind) or FAMILIES.get(str(outer.get("model_type")))
    if family is None:
        near = difflib.get_close_matches(kind, FAMILIES, n=4, cutoff=0.5)
        raise UsageError(
            f"model_type {kind!r} is not one that parlaunch can read"
            if kind
            else "this is no model's config.json: it has no model_type",
            hint=("nearest: " + ", ".join(near)) if near else "known: " + ", ".join(sorted(FAMILIES)),
        )
    text = {**family.defaults, **{k: v for k, v in text.items() if v is not None}}
    found = {ours: value for ours, names in NAMES.items() if (value := _first(text, names)) is not None}
    for ours in found:
        name = next(n for n in NAMES[ours] if text.get(n) is not None)
        found[ours] = _size(name, found[ours], least=1 if ours in ESSENTIAL else 0)
    _there(tuple(_needed(text, found, family)), text, found, kind)
    found.update(_layers(text, found, kind))
    _there(tuple(_scanned(found)), text, found, kind)
    heads, groups = found["num_attention_heads"], found.get("num_query_groups") or found["num_attention_heads"]
    if heads % groups:
        raise UsageError(
            f"{groups} key/value heads do not divide the {heads} attention heads",
            hint="set num_key_value_heads to a divisor",
        )
    found.update(_traits(text, family))
    found.update(_attention(text, found, kind))
    found.update(_experts(text, found, family))
    vision = _part(outer, "vision_config") or _part(outer, "audio_config")
    if vision:
        found["kind"] = "multimodal"
    found["model_type"] = str(config.get("model_type") or kind)
    if "kv_channels" not in found and kind in HEADS_FOLLOW:
        found["derived"] = ("kv_channels",)
    if vision:
        said = [n for names in ENCODER_NAMES.values() for n in names if vision.get(n) is not None]
        vision = {**vision, **{n: _size(n, vision[n], least=1) for n in said}}
    made = replace(architecture_from_json(found), encoder=encoder_from_json(vision) if vision else None)
    if not made.kv_channels:
        raise UsageError(
            f"hidden_size {made.hidden_size} is less than its {heads} attention heads", hint="set head_dim beside them"
        )
    if (wrong := flaw(made)) is not None:
        raise ValueError(wrong)
    return made


def _there(names: Sequence[str], text: Mapping[str, Any], found: Mapping[str, Any], kind: str) -> None:
    """Raise `UsageError` where one of the sizes is missing, or is none."""
    if missing := [n for n in names if n not in found]:
        raise UsageError(
            f"the {kind} configuration says nothing of " + ", ".join(NAMES[n][0] for n in missing),
            hint="give the config.json that stands beside the model's weights",
        )
    for ours in names:
        _size(next(n for n in NAMES[ours] if text.get(n) is not None), found[ours], least=1)


def _needed(text: Mapping[str, Any], found: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Sizes without which such a model is another one: what its class would fall back on is no model's."""
    yield from ("hidden_size", "num_attention_heads", "vocab_size")
    if "moe" in str(text.get("model_type")) and not family.experts_beside:
        yield "num_moe_experts"
    if found.get("num_moe_experts"):
        yield "moe_router_topk"
        yield "ffn_hidden_size" if family.experts_use_ffn else "moe_ffn_hidden_size"
    if family.gated and (found.get("first_k_dense") or not found.get("num_moe_experts")):
        yield "ffn_hidden_size"
    if found.get("kv_lora_rank") or (family is DEEPSEEK and text.get("model_type") != "deepseek_v4"):
        yield from ("kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
    if found.get("dsa_indexer_n_heads"):
        yield from ("dsa_indexer_head_dim", "dsa_indexer_topk")


def _scanned(found: Mapping[str, Any]) -> Iterator[str]:
    """The same of layers that scan."""
    pattern = str(found.get("hybrid_layer_pattern"))
    if "M" in pattern:
        yield from ("mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups")
    if "G" in pattern or found.get("linear_attention_pattern"):
        yield from ("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim")


ESSENTIAL = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "vocab_size",
    "kv_channels",
    "ffn_hidden_size",
)
LARGEST = 10**9
"""No size of a model is larger: what is, was not meant."""


def _size(name: str, value: Any, least: int) -> int:
    """The value as a whole number; a list of one and the same, a layer each, is that. Raises `UsageError`."""
    parts = value if isinstance(value, list) and value else [value]
    if any(not isinstance(v, int) or isinstance(v, bool) or not least <= v <= LARGEST for v in parts):
        raise UsageError(
            f"{name} is {value!r}, and must be a whole number from {least} to {LARGEST:,}",
            hint="give the file as the model's makers have it",
        )
    if len(set(parts)) > 1:
        raise UsageError(
            f"{name} differs from layer to layer, and parlaunch counts one size for all",
            hint="choose a recipe of the model, or a smaller model of its family",
        )
    return int(parts[0])


def _flag(text: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """What is true or false. Raises `UsageError` for what is neither: any text would count as true."""
    value = text.get(name, default)
    if value in (True, False):
        return bool(value)
    raise UsageError(f"{name} is {value!r}, and must be true or false", hint="write it without quotes")


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A section of the file; None where there is none. Raises `UsageError`."""
    value = config.get(name)
    if value is None or isinstance(value, Mapping):
        return value
    raise UsageError(f"{name} is {value!r}, and must be an object", hint="give the file as the model's makers have it")


def recipe_from_hf(config: Any, *, path: str) -> Recipe:
    """A plain pretraining of the model that a config.json describes, as our runner makes it of the same file.

    Sequences and batch are assumed until the user says theirs. Raises `UsageError` for what is no model's configuration.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"--model-config {path} is no object", hint="give a Hugging Face config.json")
    try:
        a = architecture_from_hf(config)
    except UsageError as error:
        raise UsageError(f"--model-config {path}: {error.problem}", hint=error.hint) from error
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UsageError(
            f"--model-config {path} has a value of the wrong kind: {error}",
            hint="give the file as the model's makers have it",
        ) from error
    return Recipe(
        name=path, source="hf-config", task="pretrain", model=str(config.get("_name_or_path") or config.get("model_type")),
        model_id=None, architecture=a, seq_length=ASSUMED_SEQ, global_batch_size=ASSUMED_BATCH, precision="bf16",
        features=Features(
            grad_reduce_fp32=True, dispatcher="alltoall" if a.num_moe_experts else None, rope_fusion=a.model_type in ROTATED_IN_ONE,
            activation_fusion=not a.gated_linear_unit or a.model_type in ACTIVATED_IN_ONE,
        ),
        bare=(OVERLAP, PRECISION),  # as Bridge's plain training has it (bridge/recipes/common.py:92)
    )  # fmt: skip


ASSUMED_SEQ, ASSUMED_BATCH = 4096, 256
ROTATED_IN_ONE = ("llama", "nemotron", "nemotron_h", "deepseek_v4")
"""Families that Bridge's conversion has `apply_rope_fusion` on for (bridge/models/llama/llama_bridge.py:71 and those of the others)."""
ACTIVATED_IN_ONE = (
    "llama", "nemotron-nas", "deepseek_v2", "deepseek_v3", "kimi_k2", "kimi_k25", "gpt_oss", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
    "qwen2_5_omni", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe",
)  # fmt: skip
"""Those that it has `bias_activation_fusion` on for (bridge/models/llama/llama_bridge.py:67 and those of the others)."""


def _first(config: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((config[n] for n in names if config.get(n) is not None), None)


def _language_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The language model's section, and the one that lies around it (where the vision part is)."""
    inner, outer = config, config
    for _ in range(3):
        part = next((inner[p] for p in PARTS if isinstance(inner.get(p), Mapping) and inner[p]), None)
        if part is None:
            break
        inner, outer = part, inner
    if inner is config:
        return config, outer
    # transformers ties the output matrix as the outermost section says.
    tied = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
    return {**inner, **tied}, outer


def _pattern(kinds: Sequence[str], *wanted: str) -> tuple[int, ...]:
    return tuple(int(k in wanted) for k in kinds)


ATTENTIONS = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention", "compressed_sparse_attention",
    "heavily_compressed_attention", "deepseek_sparse_attention",
)  # fmt: skip
"""What transformers calls the attention of a layer."""


def _each_layer(text: Mapping[str, Any], name: str, layers: int | None) -> Sequence[str] | None:
    """One word for each layer; None where the file has none. Raises `UsageError`."""
    kinds = text.get(name)
    if not kinds:
        return None
    if not isinstance(kinds, list) or any(not isinstance(kind, str) for kind in kinds):
        raise UsageError(f"{name} is no list of words", hint="give the file as the model's makers have it")
    if layers is not None and len(kinds) != layers:
        raise UsageError(
            f"{name} speaks of {len(kinds)} layers, and num_hidden_layers is {layers}", hint="make the two agree"
        )
    if name == "layer_types" and (strange := set(kinds) - set(ATTENTIONS)):
        raise UsageError(
            f"{name} has {', '.join(sorted(strange))}, which parlaunch cannot count",
            hint="known: " + ", ".join(ATTENTIONS),
        )
    return kinds


HYBRID = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E", "full_attention": "*", "linear_attention": "G"}


def _layers(text: Mapping[str, Any], found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Hybrid pattern, or the number of layers and which of them slide or are linear. Raises `UsageError` where neither is said."""
    out: dict[str, Any] = {}
    letters = text.get("hybrid_override_pattern")
    if blocks := text.get("layers_block_type"):
        letters = "".join(HYBRID[b] for b in blocks)
    if letters:
        pattern = str(letters)
        out |= {"hybrid_layer_pattern": pattern, "num_layers": len(pattern.split("/")[0].replace("|", ""))}
        if text.get("mtp_layers_block_type"):
            out["mtp_hybrid_override_pattern"] = "".join(HYBRID[b] for b in text["mtp_layers_block_type"])
        return out
    if not found.get("num_layers"):
        raise UsageError(
            f"the {kind} configuration does not say how many layers the model has", hint="set num_hidden_layers"
        )
    kinds = _each_layer(text, "layer_types", found["num_layers"])
    if kinds and "linear_attention" in kinds:
        out |= {
            "linear_attention_pattern": _pattern(kinds, "linear_attention"),
            "experimental_attention_variant": "gated_delta_net",
        }
    elif (every := text.get("full_attention_interval")) and found.get("linear_num_value_heads"):
        out |= {
            "linear_attention_pattern": tuple(int((i + 1) % every != 0) for i in range(found["num_layers"])),
            "experimental_attention_variant": "gated_delta_net",
        }
    if found.get("sliding_window") and _flag(text, "use_sliding_window", default=True):
        every = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
        if kinds:
            out["window_pattern"] = _pattern(kinds, "sliding_attention")
        elif isinstance(every, int):
            out["window_pattern"] = tuple(int((i + 1) % every != 0) for i in range(found["num_layers"]))
        elif text.get("model_type") in ("gemma2", "gpt_oss"):
            out["window_pattern"] = tuple(int(i % 2 == 0) for i in range(found["num_layers"]))
    else:
        out["sliding_window"] = None
    return out


def _traits(text: Mapping[str, Any], family: Family) -> dict[str, Any]:
    bias = _flag(text, "attention_bias")
    activation = str(
        _first(text, ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")) or "silu"
    )
    return {
        "gated_linear_unit": family.gated,
        "activation_func": {"relu2": "squared_relu", "gelu_pytorch_tanh": "fast_gelu"}.get(activation, activation),
        "normalization": family.norm,
        "add_bias_linear": family.bias or _flag(text, "use_bias") or _flag(text, "bias"),
        "add_qkv_bias": _flag(text, "qkv_bias", family.qkv_bias) or bias,
        "qk_layernorm": _flag(text, "use_qk_norm", family.qk_norm),
        "post_norms": family.post_norms,
        "final_logit_softcapping": text.get("final_logit_softcapping"),
        "attention_output_gate": _flag(text, "attn_output_gate", family.output_gate),
        "softmax_type": "learnable" if text.get("model_type") == "gpt_oss" else "vanilla",
        "position_embedding_type": family.positions,
        "share_embeddings_and_output_weights": _flag(text, "tie_word_embeddings", family.tied),
        "moe_shared_expert_gate": family.shared_gate,
    }


def _attention(text: Mapping[str, Any], found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if kind == "deepseek_v4":
        rates = text.get("compress_ratios")
        if rates is None:
            named = text.get("compress_rates") or {
                "compressed_sparse_attention": 4,
                "heavily_compressed_attention": 128,
            }
            rates = [named.get(t, 0) for t in text["layer_types"]]
        return {
            "multi_latent_attention": True, "experimental_attention_variant": "dsv4_hybrid", "num_query_groups": 1,
            "csa_compress_ratios": tuple(rates), "csa_window_size": text.get("sliding_window") or 128,
            "v_head_dim": text.get("head_dim"), "num_residual_streams": text.get("hc_mult"),
            "o_groups": text.get("o_groups"), "o_lora_rank": text.get("o_lora_rank"),
        }  # fmt: skip
    if not found.get("kv_lora_rank"):
        groups = (
            1 if text.get("multi_query") and not text.get("new_decoder_architecture") else found.get("num_query_groups")
        )
        return {"num_query_groups": groups} if groups else {}
    out = {"multi_latent_attention": True, "num_query_groups": found["num_attention_heads"], "qk_layernorm": True}
    if found.get("dsa_indexer_n_heads"):
        kinds = text.get("indexer_types")
        own = _pattern(kinds, "full") if kinds else (1,) * found["num_layers"]
        out |= {"experimental_attention_variant": "dsa", "dsa_indexer_layers": own}
    return out


def _counted(text: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """A number of layers or experts, under the first of its names that is there. Raises `UsageError`."""
    name = next((n for n in names if text.get(n) is not None), None)
    return None if name is None else _size(name, text[name], least=0)


def _routing(found: Mapping[str, Any], experts: int) -> None:
    """Raise `UsageError` for experts that no router can choose."""
    chosen, groups, among = (
        found.get(n) for n in ("moe_router_topk", "moe_router_num_groups", "moe_router_group_topk")
    )
    if chosen is not None and not 1 <= chosen <= experts:
        raise UsageError(
            f"{chosen} experts a token of {experts}", hint=f"set num_experts_per_tok to a number from 1 to {experts}"
        )
    if groups and experts % groups:
        raise UsageError(f"{groups} groups do not divide the {experts} experts", hint="set n_group to a divisor")
    if groups and among and among > groups:
        raise UsageError(f"topk_group {among} is more than the {groups} groups", hint=f"at most {groups}")


def _experts(text: Mapping[str, Any], found: Mapping[str, Any], family: Family) -> dict[str, Any]:
    if not found.get("num_moe_experts"):
        return {"num_moe_experts": None}
    layers, experts = found["num_layers"], found["num_moe_experts"]
    _routing(found, experts)
    out: dict[str, Any] = {}
    if family.experts_use_ffn or "moe_ffn_hidden_size" not in found:
        out["moe_ffn_hidden_size"] = text.get("intermediate_size")
    if family.experts_beside:
        out["moe_shared_expert_intermediate_size"] = text.get(family.experts_beside)
    width = found.get("moe_ffn_hidden_size") or 0
    count = _counted(text, ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"))
    shared = _counted(text, ("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size"))
    if shared or count:
        out["moe_shared_expert_intermediate_size"] = shared or (count or 0) * width
    kinds, sparse = _each_layer(text, "mlp_layer_types", layers), _counted(text, ("decoder_sparse_step",))
    if kinds:
        out["moe_layer_pattern"] = tuple(int(k != "dense") for k in kinds)
    elif (numbers := text.get("moe_layers")) is not None:
        out["moe_layer_pattern"] = tuple(int(i in numbers) for i in range(layers))
    elif every := _counted(text, ("interleave_moe_layer_step",)):
        out["moe_layer_pattern"] = tuple(int((i + 1) % every == 0) for i in range(layers))
    elif (every := _counted(text, ("moe_layer_freq",)) or 1) > 1:
        first = found.get("first_k_dense") or 0
        out["moe_layer_pattern"] = tuple(int(i >= first and i % every == 0) for i in range(layers))
    elif sparse is not None or text.get("mlp_only_layers"):
        only = text.get("mlp_only_layers") or ()
        out["moe_layer_pattern"] = tuple(int(i not in only and (i + 1) % (sparse or 1) == 0) for i in range(layers))
    out["moe_router_enable_expert_bias"] = text.get("topk_method") == "noaux_tc" or bool(text.get("use_routing_bias"))
    return out

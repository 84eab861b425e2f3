"""A Hugging Face hub cache from our own table of architectures: Bridge's recipes ask the hub for a config.json, no more.

    python scripts/fuzz/bridge_hub.py FOLDER        then HF_HOME=FOLDER HF_HUB_OFFLINE=1

For checks on a machine without a network. Left out are families whose configurations are classes of their own, kept on
the hub beside the weights, for which Hugging Face's library has none: some hybrids with vision or sound, Step, Flux.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from parlaunch.data import load

FAMILIES = (
    # beginning of the model's name, model_type, class; the first that fits
    ("meta-llama/", "llama", "LlamaForCausalLM"),
    ("Qwen/Qwen2-Audio", "qwen2_audio", "Qwen2AudioForConditionalGeneration"),
    ("Qwen/Qwen2.5-VL", "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    ("Qwen/Qwen2", "qwen2", "Qwen2ForCausalLM"),
    ("Qwen/Qwen3-Next", "qwen3_next", "Qwen3NextForCausalLM"),
    ("Qwen/Qwen3-VL-8B", "qwen3_vl", "Qwen3VLForConditionalGeneration"),
    ("Qwen/Qwen3-VL", "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
    ("Qwen/Qwen3-30B", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("Qwen/Qwen3-235B", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("Qwen/Qwen3-Omni", "qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration"),
    ("Qwen/Qwen3.5-35B", "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
    ("Qwen/Qwen3.5-122B", "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
    ("Qwen/Qwen3.5-397B", "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
    ("Qwen/Qwen3.5", "qwen3_5", "Qwen3_5ForConditionalGeneration"),
    ("Qwen/Qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("deepseek-ai/DeepSeek-V3", "deepseek_v3", "DeepseekV3ForCausalLM"),
    ("deepseek-ai/DeepSeek-V2", "deepseek_v2", "DeepseekV2ForCausalLM"),
    ("deepseek-ai/DeepSeek-V4", "deepseek_v4", "DeepseekV4ForCausalLM"),
    ("moonshotai/Moonlight", "deepseek_v3", "DeepseekV3ForCausalLM"),
    ("moonshotai/Kimi-K2-", "kimi_k2", "DeepseekV3ForCausalLM"),
    ("openai/gpt-oss", "gpt_oss", "GptOssForCausalLM"),
    ("google/gemma-2-", "gemma2", "Gemma2ForCausalLM"),
    ("google/gemma-3-1b", "gemma3_text", "Gemma3ForCausalLM"),
    ("google/gemma-3-", "gemma3", "Gemma3ForConditionalGeneration"),
    ("google/gemma-4-", "gemma4", "Gemma4ForConditionalGeneration"),
    ("zai-org/GLM-4.5V", "glm4v_moe", "Glm4vMoeForConditionalGeneration"),
    ("zai-org/GLM-5", "glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    ("zai-org/GLM-4.5", "glm4_moe", "Glm4MoeForCausalLM"),
    ("explicit:olmoe", "olmoe", "OlmoeForCausalLM"),
    ("nvidia/NVIDIA-Nemotron-3", "nemotron_h", "NemotronHForCausalLM"),
    ("LGAI-EXAONE/EXAONE-4.0", "exaone4", "Exaone4ForCausalLM"),
    ("LGAI-EXAONE/K-EXAONE", "exaone_moe", "ExaoneMoEForCausalLM"),
    ("LGAI-EXAONE/EXAONE-4.5", "exaone4_5", "Exaone4_5_ForConditionalGeneration"),
    ("mistralai/Ministral-3", "mistral3", "Mistral3ForConditionalGeneration"),
    ("MiniMaxAI/MiniMax-M3", "minimax_m3_vl", "MiniMaxM3SparseForConditionalGeneration"),
)
OTHER_NAMES = {"allenai/OLMoE-1B-7B-0125": "explicit:olmoe_7b"}
PLAIN = "0" * 40

TEXT_TYPES = {
    "qwen2_audio": "qwen2", "gemma3": "gemma3_text", "gemma4": "gemma4_text", "glm4v_moe": "glm4v_moe_text", "exaone4_5": "exaone4",
    "mistral3": "ministral3", "minimax_m3_vl": "minimax_m3_vl_text", "qwen3_omni_moe": "qwen3_omni_moe_text",
}  # fmt: skip
"""The type of the language model inside, where it is another class than the whole."""

ITS_OWN = {
    "kimi_k2": (
        "configuration_deepseek.py",
        "from transformers import DeepseekV3Config as Known\n\n\nclass DeepseekV3Config(Known):\n    model_type = 'kimi_k2'\n",
        {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    ),
}
"""Families whose configuration class is kept beside their weights: file, what it says, and how config.json names it."""


Sizes = Mapping[str, Any]  # an entry of the table
Config = dict[str, Any]  # a config.json, or a part of one

YARN = {"rope_type": "yarn", "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}


def hf_config(key: str, a: Sizes) -> Config | None:
    """A config.json for one entry of the table; None for a family that is not here."""
    _, kind, name = next((f for f in FAMILIES if key.startswith(f[0])), (None, None, None))
    if kind is None:
        return None
    text = _plain(a) | {"architectures": [name], "model_type": kind}
    for there, part in (
        ("num_moe_experts", _experts), ("multi_latent_attention", _latent), ("linear_attention_pattern", _delta_net),
        ("window_pattern", _windows), ("dsa", _indexer),
    ):  # fmt: skip
        if a.get(there):
            text |= part(a)
    if kind in OWN_PARTS:
        text |= OWN_PARTS[kind](a)
    text = {k: v for k, v in text.items() if v is not None}
    if kind in ITS_OWN:
        text["auto_map"] = ITS_OWN[kind][2]
    return text if "ForConditionalGeneration" not in str(name) else _with_more_than_text(kind, str(name), text)


def _plain(a: Sizes) -> Config:
    base, heads = a.get("rotary_base"), a["num_attention_heads"]
    return {
        "torch_dtype": "bfloat16", "hidden_act": "silu", "num_hidden_layers": a["num_layers"], "hidden_size": a["hidden_size"],
        "intermediate_size": a.get("ffn_hidden_size") or a["moe_ffn_hidden_size"],
        "num_attention_heads": heads, "num_key_value_heads": a["num_query_groups"],
        "head_dim": None if a.get("multi_latent_attention") or "kv_channels" in a.get("derived", ()) else a.get("kv_channels"),
        "vocab_size": a["vocab_size"], "rms_norm_eps": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": bool(a.get("share_embeddings_and_output_weights")),
        "max_position_embeddings": a.get("max_position_embeddings") or 8192,
        "rope_theta": float(base) if isinstance(base, int | float) else 10_000.0,
        "attention_bias": bool(a.get("add_qkv_bias")),
    }  # fmt: skip


def _experts(a: Sizes) -> Config:
    inner, experts = a["moe_ffn_hidden_size"], a["num_moe_experts"]
    pattern = a.get("moe_layer_pattern") or [1]
    dense = a["first_k_dense"] if a.get("first_k_dense") is not None else list(pattern).index(1)
    return {
        "num_experts": experts, "num_local_experts": experts, "n_routed_experts": experts,
        "num_experts_per_tok": a.get("moe_router_topk") or 2, "moe_intermediate_size": inner,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.001,
        "first_k_dense_replace": dense, "moe_layer_freq": 1, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "n_shared_experts": (a.get("moe_shared_expert_intermediate_size") or inner) // inner,
        "n_group": a.get("moe_router_num_groups") or 1, "topk_group": a.get("moe_router_group_topk") or 1,
        "topk_method": "noaux_tc", "num_nextn_predict_layers": a.get("mtp_num_layers") or 0, "aux_loss_alpha": 0.001,
        "seq_aux": True, "use_qk_norm": False, "partial_rotary_factor": 0.5,
    }  # fmt: skip


def _latent(a: Sizes) -> Config:
    return {
        "q_lora_rank": a.get("q_lora_rank"), "kv_lora_rank": a["kv_lora_rank"], "qk_nope_head_dim": a["qk_head_dim"],
        "qk_rope_head_dim": a["qk_pos_emb_head_dim"], "v_head_dim": a["v_head_dim"],
        "num_key_value_heads": a["num_attention_heads"],
        "rope_scaling": YARN | {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    }  # fmt: skip


def _delta_net(a: Sizes) -> Config:
    return {
        **{f"linear_{k}": a[f"linear_{k}"] for k in ("num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim")},
        "linear_conv_kernel_dim": a.get("linear_conv_kernel_dim") or 4, "partial_rotary_factor": 0.25,
        "layer_types": ["linear_attention" if kind else "full_attention" for kind in a["linear_attention_pattern"]],
        "shared_expert_intermediate_size": a.get("moe_shared_expert_intermediate_size"),
        "mtp_num_hidden_layers": a.get("mtp_num_layers") or 0,
    }  # fmt: skip


def _windows(a: Sizes) -> Config:
    kinds = ["sliding_attention" if local else "full_attention" for local in a["window_pattern"]]
    return {"layer_types": kinds, "sliding_window": a["sliding_window"]}


def _indexer(a: Sizes) -> Config:
    dsa = a["dsa"]
    return {
        "index_head_dim": dsa["head_dim"], "index_n_heads": dsa["n_heads"], "index_topk": dsa["topk"],
        "index_topk_freq": dsa["topk_freq"], "indexer_rope_interleave": True,
    }  # fmt: skip


def _gpt_oss(a: Sizes) -> Config:
    return {
        "rope_scaling": YARN | {"factor": 32.0, "truncate": False}, "sliding_window": 128, "swiglu_limit": 7.0,
        "layer_types": ["sliding_attention", "full_attention"] * (a["num_layers"] // 2),
    }  # fmt: skip


def _gemma(a: Sizes) -> Config:
    return {
        "query_pre_attn_scalar": 256, "sliding_window": a.get("sliding_window") or 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10_000.0,
    }  # fmt: skip


def _gemma4(a: Sizes) -> Config:
    return _gemma(a) | {
        "enable_moe_block": bool(a.get("num_moe_experts")), "top_k_experts": a.get("moe_router_topk"),
        "global_head_dim": a["global_head_dim"], "num_global_key_value_heads": a.get("num_global_query_groups"),
        "num_kv_shared_layers": a.get("num_kv_shared_layers") or 0, "attention_k_eq_v": bool(a.get("attention_k_eq_v")),
    }  # fmt: skip


def _deepseek_v4(a: Sizes) -> Config:
    return {
        "compress_ratios": list(a["csa_compress_ratios"]), "o_groups": a["o_groups"], "o_lora_rank": a["o_lora_rank"],
        "head_dim": a["kv_channels"], "sliding_window": a["csa_window_size"], "hc_mult": a["num_residual_streams"],
        "rope_scaling": YARN | {"type": "yarn", "factor": 16.0}, "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0,
        "num_key_value_heads": 1, "layer_types": None,
    }  # fmt: skip


def _nemotron_h(a: Sizes) -> Config:
    return {
        "hybrid_override_pattern": a["hybrid_layer_pattern"], "mamba_num_heads": a["mamba_num_heads"],
        "mamba_head_dim": a["mamba_head_dim"], "ssm_state_size": a["mamba_state_dim"], "n_groups": a["mamba_num_groups"],
        "moe_shared_expert_intermediate_size": a.get("moe_shared_expert_intermediate_size"),
        "moe_latent_size": a.get("moe_latent_size"), "mlp_hidden_act": "relu2",
        "mtp_hybrid_override_pattern": a.get("mtp_hybrid_override_pattern") or "*E",
    }  # fmt: skip


def _minimax_m3(a: Sizes) -> Config:
    return {
        "intermediate_size": a["moe_ffn_hidden_size"], "dense_intermediate_size": a["ffn_hidden_size"],
        "shared_intermediate_size": a["moe_shared_expert_intermediate_size"], "moe_layer_freq": list(a["moe_layer_pattern"]),
    }  # fmt: skip


OWN_PARTS: Mapping[str, Callable[[Sizes], Config]] = {
    "gpt_oss": _gpt_oss, "gemma2": _gemma, "gemma3_text": _gemma, "gemma3": _gemma, "gemma4": _gemma4, "deepseek_v4": _deepseek_v4,
    "nemotron_h": _nemotron_h, "minimax_m3_vl": _minimax_m3, "glm_moe_dsa": lambda _a: {"rope_scaling": None},
    "exaone_moe": lambda _a: {"num_shared_experts": 1},
}  # fmt: skip
"""What a family's configuration has beside, or otherwise."""


def _with_more_than_text(kind: str, name: str, text: Config) -> Config:
    """The configuration of a model that sees or hears, its language model inside; the other towers as the library has them."""
    inner = {k: v for k, v in text.items() if k not in ("architectures", "model_type")}
    if kind in TEXT_TYPES:
        inner["model_type"] = TEXT_TYPES[kind]
    outer: Config = {"architectures": [name], "model_type": kind}
    if kind == "qwen3_omni_moe":
        return outer | {"thinker_config": {"text_config": inner}}
    return outer | {"text_config": inner, "tie_word_embeddings": inner["tie_word_embeddings"]}


def bridge_source() -> tuple[set[str], set[str]]:
    """The hub names and the pinned commits that the installed Bridge's recipes mention."""
    spec = importlib.util.find_spec("megatron.bridge")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("megatron-bridge is not installed")
    texts = [
        p.read_text()
        for d in ("recipes", "perf_recipes")
        for p in Path(spec.submodule_search_locations[0], d).rglob("*.py")
    ]
    names = {n for text in texts for n in re.findall(r"[\"']([A-Za-z-]+/[A-Za-z0-9_.-]+)[\"']", text)}
    return names, {c for text in texts for c in re.findall(r"[\"']([0-9a-f]{40})[\"']", text)}


def entry(name: str, table: Iterable[str]) -> str | None:
    """The entry of the table for a hub name: itself, or its instruct, base or otherwise renamed sister."""

    def bare(text: str) -> str:
        return re.sub(r"-Instruct|-Base|-hf|Meta-", "", text)

    known = list(table)
    if name in known:
        return name
    return OTHER_NAMES.get(name) or next((k for k in known if bare(k) == bare(name)), None)


def write_hub(home: Path) -> int:
    """Lay out the cache under `home`; the number of hub names it can answer for."""
    table = load("architectures.json")
    names, commits = bridge_source()
    done = 0
    for name in sorted(names):
        key = entry(name, table)
        config = hf_config(key, table[key]) if key is not None else None
        if config is None:
            continue
        folder = home / "hub" / ("models--" + name.replace("/", "--"))
        for revision in (PLAIN, *commits):
            snapshot = folder / "snapshots" / revision
            snapshot.mkdir(parents=True, exist_ok=True)
            (snapshot / "config.json").write_text(json.dumps(config))
            if config["model_type"] in ITS_OWN:
                file, text, _ = ITS_OWN[config["model_type"]]
                (snapshot / file).write_text(text)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(PLAIN)
        done += 1
    return done


if __name__ == "__main__":
    print(f"{write_hub(Path(sys.argv[1]))} models")

"""A Hugging Face hub cache from our own table of architectures: Bridge's recipes ask the hub for a config.json, no more.

    python scripts/bridge_hub.py FOLDER        then HF_HOME=FOLDER HF_HUB_OFFLINE=1

For checks on a machine without a network. Families whose config Hugging Face's library cannot build from sizes alone
(vision, audio, hybrids whose code lives on the hub) are left out.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parlaunch.catalog import load

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
    ("Qwen/Qwen3-Omni", None, None),
    ("Qwen/Qwen3.5", None, None),
    ("Qwen/Qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("deepseek-ai/DeepSeek-V3", "deepseek_v3", "DeepseekV3ForCausalLM"),
    ("deepseek-ai/DeepSeek-V2", "deepseek_v2", "DeepseekV2ForCausalLM"),
    ("moonshotai/Moonlight", "deepseek_v3", "DeepseekV3ForCausalLM"),
    ("moonshotai/Kimi-K2-", "kimi_k2", "DeepseekV3ForCausalLM"),
    ("openai/gpt-oss", "gpt_oss", "GptOssForCausalLM"),
    ("google/gemma-2-", "gemma2", "Gemma2ForCausalLM"),
    ("google/gemma-3-1b", "gemma3_text", "Gemma3ForCausalLM"),
    ("zai-org/GLM-4.5V", None, None),
    ("zai-org/GLM-4.5", "glm4_moe", "Glm4MoeForCausalLM"),
    ("explicit:olmoe", "olmoe", "OlmoeForCausalLM"),
)
OTHER_NAMES = {"allenai/OLMoE-1B-7B-0125": "explicit:olmoe_7b"}
PLAIN = "0" * 40


def hf_config(key: str, a: Mapping[str, Any]) -> dict[str, Any] | None:
    """A config.json for one entry of the table; None for a family that is not here."""
    _, kind, name = next((f for f in FAMILIES if key.startswith(f[0])), (None, None, None))
    if kind is None:
        return None
    base = a.get("rotary_base")
    config = {
        "architectures": [name], "model_type": kind, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "num_hidden_layers": a["num_layers"], "hidden_size": a["hidden_size"], "intermediate_size": a["ffn_hidden_size"],
        "num_attention_heads": a["num_attention_heads"], "num_key_value_heads": a["num_query_groups"],
        "head_dim": a.get("kv_channels"), "vocab_size": a["vocab_size"], "rms_norm_eps": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": bool(a.get("share_embeddings_and_output_weights")),
        "max_position_embeddings": a.get("max_position_embeddings") or 8192,
        "rope_theta": float(base) if isinstance(base, int | float) else 10_000.0,
        "attention_bias": bool(a.get("add_qkv_bias")),
    }  # fmt: skip
    if experts := a.get("num_moe_experts"):
        inner = a["moe_ffn_hidden_size"]
        pattern = a.get("moe_layer_pattern") or [1]
        dense = a["first_k_dense"] if a.get("first_k_dense") is not None else list(pattern).index(1)
        config |= {
            "num_experts": experts, "num_local_experts": experts, "n_routed_experts": experts,
            "num_experts_per_tok": a.get("moe_router_topk") or 2, "moe_intermediate_size": inner,
            "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "router_aux_loss_coef": 0.001,
            "first_k_dense_replace": dense, "moe_layer_freq": 1, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
            "n_shared_experts": (a.get("moe_shared_expert_intermediate_size") or inner) // inner,
            "n_group": a.get("moe_router_num_groups") or 1, "topk_group": a.get("moe_router_group_topk") or 1,
            "topk_method": "noaux_tc", "num_nextn_predict_layers": a.get("mtp_num_layers") or 0, "aux_loss_alpha": 0.001,
            "seq_aux": True, "use_qk_norm": False, "partial_rotary_factor": 0.5,
        }  # fmt: skip
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}
    if a.get("multi_latent_attention"):
        del config["head_dim"]
        config |= {
            "q_lora_rank": a.get("q_lora_rank"), "kv_lora_rank": a["kv_lora_rank"], "qk_nope_head_dim": a["qk_head_dim"],
            "qk_rope_head_dim": a["qk_pos_emb_head_dim"], "v_head_dim": a["v_head_dim"],
            "num_key_value_heads": a["num_attention_heads"],
            "rope_scaling": yarn | {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        }  # fmt: skip
    if kind == "gpt_oss":
        config |= {
            "rope_scaling": yarn | {"factor": 32.0, "truncate": False}, "sliding_window": 128, "swiglu_limit": 7.0,
            "layer_types": ["sliding_attention", "full_attention"] * (a["num_layers"] // 2),
        }  # fmt: skip
    if kind.startswith("gemma"):
        config |= {
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10_000.0,
        }  # fmt: skip
    if "ForConditionalGeneration" in str(name):
        config = {"architectures": [name], "model_type": kind, "text_config": config}
    return config


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
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(PLAIN)
        done += 1
    return done


if __name__ == "__main__":
    print(f"{write_hub(Path(sys.argv[1]))} models")

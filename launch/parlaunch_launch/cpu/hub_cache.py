"""A Hugging Face hub cache with the config.json of one model, written from the catalog: no weights, no network, no login.

Megatron Bridge builds a recipe's model from the hub's config.json. For the tiny model of `--device cpu` only its family
matters, and the catalog knows the sizes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from parlaunch.frozen import dataclass
from parlaunch.model.architecture import Architecture

NEWEST = "0" * 40
"""The commit that `refs/main` names where the recipe pins none."""


@dataclass(frozen=True, slots=True)
class Family:
    """How Hugging Face names the parts of one family."""

    prefix: str  # of the model's name on the hub; the longest one that fits counts
    architecture: str
    model_type: str
    extra: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("meta-llama/", "LlamaForCausalLM", "llama"),
    Family("mistralai/", "MistralForCausalLM", "mistral"),
    Family("Qwen/Qwen2", "Qwen2ForCausalLM", "qwen2"),
    Family("Qwen/Qwen3", "Qwen3ForCausalLM", "qwen3"),
    Family("Qwen/Qwen3 moe", "Qwen3MoeForCausalLM", "qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": []}),
    Family("allenai/OLMoE", "OlmoeForCausalLM", "olmoe"),
    Family("deepseek-ai/DeepSeek-V2", "DeepseekV2ForCausalLM", "deepseek_v2"),
    Family("deepseek-ai/DeepSeek-V3", "DeepseekV3ForCausalLM", "deepseek_v3"),
    Family("moonshotai/Moonlight", "DeepseekV3ForCausalLM", "deepseek_v3"),
)


def family(model_id: str, architecture: Architecture) -> Family | None:
    """The row for a model; None when there is none, and its config has to come from the hub."""
    if architecture.kind != "llm" or architecture.hybrid_layer_pattern or architecture.linear_attention_pattern:
        return None
    name = model_id + (" moe" if architecture.num_moe_experts else "")
    fitting = [
        f
        for f in FAMILIES
        if name.startswith(f.prefix.removesuffix(" moe")) and name.endswith(" moe") == _expects_experts(f)
    ]
    return max(fitting, key=lambda f: len(f.prefix), default=None)


def _expects_experts(f: Family) -> bool:
    return f.prefix.endswith(" moe") or f.model_type in ("olmoe", "deepseek_v2", "deepseek_v3")


def hf_config(model_id: str, a: Architecture) -> dict[str, Any] | None:
    """The config.json that the hub has for this model, as far as Bridge reads it; None for a family not in the table."""
    f = family(model_id, a)
    if f is None:
        return None
    config: dict[str, Any] = {
        "architectures": [f.architecture], "model_type": f.model_type, "torch_dtype": "bfloat16",
        "vocab_size": a.vocab_size, "hidden_size": a.hidden_size, "intermediate_size": a.ffn_hidden_size,
        "num_hidden_layers": a.num_layers, "num_attention_heads": a.num_attention_heads,
        "num_key_value_heads": a.num_query_groups, "hidden_act": a.activation_func,
        "max_position_embeddings": a.max_position_embeddings or 4096, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
        "attention_bias": a.add_qkv_bias, "attention_dropout": 0.0, "mlp_bias": a.add_bias_linear,
        "tie_word_embeddings": a.share_embeddings_and_output_weights, "initializer_range": 0.02,
        "bos_token_id": 0, "eos_token_id": 1, "use_cache": True,
    }  # fmt: skip
    if not a.multi_latent_attention:
        config["head_dim"] = a.kv_channels
    else:
        config |= {
            "q_lora_rank": a.q_lora_rank, "kv_lora_rank": a.kv_lora_rank, "qk_nope_head_dim": a.qk_head_dim,
            "qk_rope_head_dim": a.qk_pos_emb_head_dim, "v_head_dim": a.v_head_dim,
        }  # fmt: skip
    if a.num_moe_experts:
        experts = "n_routed_experts" if a.multi_latent_attention else "num_experts"
        config |= {
            experts: a.num_moe_experts, "num_experts_per_tok": a.moe_router_topk,
            "moe_intermediate_size": a.moe_ffn_hidden_size, "decoder_sparse_step": 1, "router_aux_loss_coef": 0.001,
            "first_k_dense_replace": a.first_k_dense or 0, "moe_layer_freq": 1, "norm_topk_prob": True,
            "n_shared_experts": (a.moe_shared_expert_intermediate_size or 0) // (a.moe_ffn_hidden_size or 1),
            "n_group": a.moe_router_num_groups or 1, "topk_group": a.moe_router_group_topk or 1,
            "routed_scaling_factor": 1.0, "scoring_func": "sigmoid" if a.moe_router_enable_expert_bias else "softmax",
            "topk_method": "noaux_tc" if a.moe_router_enable_expert_bias else "greedy",
        }  # fmt: skip
    return config | dict(f.extra)


def cached(model_id: str, environ: Mapping[str, str]) -> bool:
    """Whether the user's own hub cache has this model's config.json."""
    return config_of(model_id, environ) is not None


def folder_of(environ: Mapping[str, str]) -> Path:
    """The user's own hub cache."""
    home = environ.get("HF_HOME") or str(Path(environ.get("HOME", "/"), ".cache", "huggingface"))
    return Path(environ.get("HF_HUB_CACHE") or Path(home, "hub"))


def config_of(model_id: str, environ: Mapping[str, str]) -> Path | None:
    """The config.json of a model in the user's own cache: that of its main branch, else of any commit; None without one."""
    folder = _folder(folder_of(environ), model_id)
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        main = ""
    found = sorted(folder.glob("snapshots/*/config.json"), key=lambda path: (path.parent.name != main, path))
    return found[0] if found else None


def write(hub: Path, model_id: str, config: Mapping[str, Any], revisions: Iterable[str] = ()) -> None:
    """Lay the config out as the hub's cache does, for `main` and for every pinned revision. Many ranks may do it at once."""
    pinned = list(revisions)
    folder = _folder(hub, model_id)
    for revision in pinned or [NEWEST]:
        _put(folder / "snapshots" / revision / "config.json", json.dumps(config, indent=1))
    _put(folder / "refs" / "main", pinned[0] if pinned else NEWEST)


def _folder(hub: Path, model_id: str) -> Path:
    return hub / ("models--" + model_id.replace("/", "--"))


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    mine.write_text(text, encoding="utf-8")
    mine.replace(path)

"""Writes tests/model/hf_configs.json: configurations of transformers' own classes, with the parameters those classes have.

    python scripts/make/hf_configs.py          needs torch and transformers 5

Models are built on the meta device, so this takes seconds and no memory. Configurations are the classes' defaults: the
test wants every `model_type`, not every model.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

CAUSAL = [
    "llama",
    "mistral",
    "ministral3",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "glm_moe_dsa",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "nemotron_h",
    "phi",
    "phi3",
    "phimoe",
    "gpt2",
    "gpt_neox",
    "bloom",
    "opt",
    "falcon",
    "starcoder2",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "exaone4",
    "exaone_moe",
    "granite",
    "granitemoe",
    "smollm3",
    "seed_oss",
    "ernie4_5",
    "ernie4_5_moe",
    "minimax_m2",
    "llama4_text",
    "cohere",
    "cohere2",
    "stablelm",
    "arcee",
    "apertus",
    "helium",
    "solar_open",
    "hy_v3",
    "youtu",
]
NESTED = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "llama4",
    "mistral3",
    "glm4v_moe",
    "exaone4_5",
]
NOISE = (
    "token_id", "transformers", "return_", "output_", "rope_", "rms_norm_eps", "initializer", "dropout", "id2label",
    "label2id", "chunk", "problem_type", "use_cache", "dtype", "pdrop", "aux_loss", "_name_or_path", "is_encoder",
)  # fmt: skip


def slim(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what says nothing of the model's size."""
    kept = {
        k: v
        for k, v in config.items()
        if v not in (None, [], {}) and (k.startswith("qk_") or not any(w in k for w in NOISE))
    }
    return {k: slim(v) if isinstance(v, dict) else v for k, v in kept.items()}


def main() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    out = {}
    for kind in (*CAUSAL, *NESTED):
        config = AutoConfig.for_model(kind)
        if getattr(config, "num_experts_per_tok", 0) is None:
            config.num_experts_per_tok = 1  # its class leaves it to the file
        maker = AutoModelForImageTextToText if kind in NESTED else AutoModelForCausalLM
        with torch.device("meta"):
            model = maker.from_config(config)
        parts = {id(p): (name, p.numel()) for name, p in model.named_parameters()}.values()
        vision = sum(n for name, n in parts if any(w in name for w in ("visual", "vision", "projector")))
        text = json.loads(config.to_json_string(use_diff=False))
        out[kind] = {"config": slim(text), "parameters": sum(n for _, n in parts) - vision}
        print(kind, out[kind]["parameters"], vision, flush=True)
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in out.items()]
    path = Path(__file__).parents[2] / "tests" / "model" / "hf_configs.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

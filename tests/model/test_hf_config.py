"""Hugging Face configurations: every family against the parameters its own class has, and whole files of known models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parlaunch.errors import UsageError
from parlaunch.model.catalog import architecture
from parlaunch.model.hf_config import architecture_from_hf, recipe_from_hf
from parlaunch.model.parameters import active_params, total_params

# Written by scripts/make/hf_configs.py from transformers' classes on the meta device.
COUNTED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "hf_configs.json").read_text())

# Files as their models publish them, shortened to what says something of the shape.
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "topk_method": "noaux_tc", "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
}  # fmt: skip
NEMOTRON_3_NANO = {
    "model_type": "nemotron_h", "vocab_size": 131072, "hidden_size": 2688, "intermediate_size": 1856,
    "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128,
    "num_experts_per_tok": 6, "num_hidden_layers": 52, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "mlp_hidden_act": "relu2",
    "tie_word_embeddings": False,
}  # fmt: skip
GEMMA_2_9B = {
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
KNOWN = {
    "meta-llama/Llama-3.2-1B": LLAMA_32_1B,
    "Qwen/Qwen3-30B-A3B": QWEN3_30B,
    "deepseek-ai/DeepSeek-V3": DEEPSEEK_V3,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": NEMOTRON_3_NANO,
    "google/gemma-2-9b": GEMMA_2_9B,
}


@pytest.mark.parametrize("kind", COUNTED)
def test_a_configuration_has_the_parameters_of_its_class(kind: str) -> None:
    row = COUNTED[kind]
    assert total_params(architecture_from_hf(row["config"])) == pytest.approx(row["parameters"], rel=1e-4)


@pytest.mark.parametrize("model", KNOWN)
def test_a_published_file_gives_the_catalog_entry(model: str) -> None:
    read, known = architecture_from_hf(KNOWN[model]), architecture(model)
    assert total_params(read) == total_params(known)
    assert active_params(read) == active_params(known)
    assert [(k.mixer, k.mlp, k.window) for k in read.layers()] == [(k.mixer, k.mlp, k.window) for k in known.layers()]


def test_a_vision_model_keeps_its_language_model_and_its_encoder() -> None:
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
    read = architecture_from_hf({"model_type": "qwen3_vl_moe", "text_config": QWEN3_30B, "vision_config": vision})
    assert read.kind == "multimodal"
    assert total_params(read) == total_params(architecture("Qwen/Qwen3-30B-A3B"))
    assert read.encoder is not None
    assert (read.encoder.num_layers, read.encoder.num_attention_heads) == (27, 16)


def test_sizes_that_a_file_leaves_out_are_those_of_its_class() -> None:
    """The published file of Gemma 3 4B says nothing of heads, head size and vocabulary."""
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
    }  # fmt: skip
    read, known = (
        architecture_from_hf({"model_type": "gemma3", "text_config": text}),
        architecture("google/gemma-3-4b-it"),
    )
    assert total_params(read) == total_params(known)
    assert read.layers() == known.layers()


def test_a_list_of_one_size_is_that_size_and_every_second_layer_may_have_experts() -> None:
    read = architecture_from_hf(LLAMA | MOE | {"intermediate_size": [128, 128], "moe_layer_freq": 2})
    assert read.ffn_hidden_size == 128
    assert [k.mlp for k in read.layers()] == ["moe", "dense"]


@pytest.mark.parametrize(
    "vision",
    [
        {"depth": 2, "embed_dim": 64, "hidden_size": 512, "mlp_ratio": 4, "num_heads": 4},
        {"vt_num_hidden_layers": 2, "vt_hidden_size": 64, "vt_intermediate_size": 256, "vt_num_attention_heads": 4},
        {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4},
    ],
)
def test_an_encoder_is_counted_under_each_name_its_sizes_have(vision: dict[str, Any]) -> None:
    encoder = architecture_from_hf(LLAMA | {"vision_config": vision}).encoder
    assert encoder is not None
    assert encoder.total_params == 2 * 64 * (4 * 64 + 2 * 256)


def test_the_outermost_section_says_whether_the_output_is_tied() -> None:
    tied = architecture_from_hf({"model_type": "qwen3_vl_moe", "tie_word_embeddings": True, "text_config": QWEN3_30B})
    assert tied.share_embeddings_and_output_weights


def test_an_unknown_family_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match="'llama5' is not one") as caught:
        architecture_from_hf({**LLAMA_32_1B, "model_type": "llama5"})
    assert "llama4" in caught.value.hint


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="no model_type"):
        architecture_from_hf({"train_batch_size": 8})


@pytest.mark.parametrize("size", ["hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers"])
def test_a_missing_size_is_named(size: str) -> None:
    with pytest.raises(UsageError, match=size.replace("num_hidden_", "")):
        architecture_from_hf({k: v for k, v in LLAMA_32_1B.items() if k != size})


LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip


MOE = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_hidden_layers": 10**6}, "1,000,000 layers"),
        ({"num_key_value_heads": 3}, "3 key/value heads do not divide"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"layer_types": 5}, "layer_types is no list of words"),
        ({"layer_types": ["full_attention"]}, "layer_types speaks of 1 layers, and num_hidden_layers is 2"),
        ({"layer_types": ["full_attention", "psychic_attention"]}, "layer_types has psychic_attention"),
        ({"hidden_size": [64, 32]}, "hidden_size differs from layer to layer"),
        ({"hidden_size": []}, "hidden_size is []"),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        ({"hidden_size": 10**30}, "must be a whole number"),
        ({"intermediate_size": None}, "says nothing of intermediate_size"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', and must be true or false"),
        ({"vision_config": "siglip"}, "vision_config is 'siglip', and must be an object"),
        ({"vision_config": {"depth": "24", "hidden_size": 64}}, "depth is '24'"),
        ({"vision_config": {"depth": -24, "hidden_size": 64}}, "depth is -24"),
        ({"vision_config": {"depth": 24, "num_heads": [3, 6]}}, "num_heads differs from layer to layer"),
        (MOE | {"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        (MOE | {"num_experts_per_tok": 9}, "9 experts a token of 8"),
        (MOE | {"num_experts_per_tok": None}, "says nothing of num_experts_per_tok"),
        (MOE | {"num_experts": None}, "says nothing of n_routed_experts"),
        (MOE | {"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
        (MOE | {"n_group": 3}, "3 groups do not divide the 8 experts"),
        (MOE | {"n_group": 2, "topk_group": 3}, "topk_group 3 is more than the 2 groups"),
        (MOE | {"n_shared_experts": "1"}, "n_shared_experts is '1'"),
        ({"hidden_size": 3}, "hidden_size 3 is less than its 4 attention heads"),
        ({"model_type": "gemma2", "final_logit_softcapping": "30"}, "Architecture's final_logit_softcapping cannot be"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"], "num_hidden_layers": None}, "how many layers"),
        (
            {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": [128]},
            "(128,)",
        ),
        (
            {"model_type": "nemotron_h", "hybrid_override_pattern": "M*-"},
            "says nothing of mamba_num_heads, mamba_head_dim, ssm_state_size, n_groups",
        ),
        (
            {
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 2,
            },
            "says nothing of linear_key_head_dim, linear_value_head_dim",
        ),
        ({"index_n_heads": 4}, "says nothing of index_head_dim, index_topk"),
        ({"model_type": "deepseek_v3"}, "says nothing of kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim"),
    ],
)
def test_a_value_that_cannot_be_is_one_error_that_names_the_file(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from_hf(LLAMA | wrong, path="c.json")
    assert said in caught.value.problem
    assert "c.json" in caught.value.problem
    assert caught.value.hint
    assert recipe_from_hf(LLAMA, path="c.json").architecture.num_layers == 2


def test_an_encoders_list_of_one_size_is_that_size() -> None:
    """A list would be no key of what remembers estimates."""
    made = recipe_from_hf(LLAMA | {"vision_config": {"depth": [24], "hidden_size": 64}}, path="c.json").architecture
    assert made.encoder is not None
    assert made.encoder.num_layers == 24
    assert hash(made)

"""FLOPs a token: against published pairs of TFLOP/s and tokens a second, and against the counting rules themselves."""

from __future__ import annotations

import pytest

from parlaunch.model.architecture import architecture_from_json
from parlaunch.model.catalog import architecture
from parlaunch.model.flops import model_flops_per_token
from parlaunch.model.parameters import total_params

# Model, sequence length, tokens/s and model TFLOP/s of one GPU, as Megatron Bridge's performance summary prints them.
PUBLISHED = [
    ("deepseek-ai/DeepSeek-V4-Flash", 4096, 7776, 706),
    ("Qwen/Qwen3-30B-A3B", 4096, 44544, 1029),
    ("Qwen/Qwen3-235B-A22B", 4096, 8816, 1306),
    ("explicit:nemotron_3_nano", 8192, 39936, 901),
    ("meta-llama/Meta-Llama-3-70B", 4096, 3864, 1671),
    ("meta-llama/Meta-Llama-3-70B", 4096, 1638, 710),
]
"""Sources: docs/performance-summary.md lines 53 to 80 and docs/performance-summary-archive.md lines 177 to 179."""


@pytest.mark.parametrize(("model", "seq_length", "tokens", "tflops"), PUBLISHED)
def test_tokens_and_tflops_agree_with_publication(model: str, seq_length: int, tokens: int, tflops: int) -> None:
    assert tokens * model_flops_per_token(architecture(model), seq_length) / 1e12 == pytest.approx(tflops, rel=0.02)


@pytest.mark.parametrize(("tokens", "tflops"), [(6206, 1731), (5958, 1663), (2643, 735)])
def test_adapters_on_short_sequences_agree_with_publication(tokens: int, tflops: int) -> None:
    """LoRA on SQuAD, packed to 4,096: sub-sequences are a few hundred tokens long (archive, lines 189 to 191)."""
    a = architecture("meta-llama/Meta-Llama-3-70B")
    assert tokens * model_flops_per_token(a, 256, peft=True) / 1e12 == pytest.approx(tflops, rel=0.02)


def test_a_dense_model_costs_six_times_its_weights_and_its_attention() -> None:
    a = architecture("meta-llama/Llama-2-7b-hf")
    matrices = total_params(a) - a.vocab_size * a.hidden_size - (2 * a.num_layers + 1) * a.hidden_size
    attention = 12 * a.num_layers * a.hidden_size * 4096 / 2
    assert model_flops_per_token(a, 4096) == pytest.approx(6 * matrices + attention, rel=1e-9)


def test_a_window_caps_the_cost_of_long_sequences() -> None:
    plain = {**architecture("meta-llama/Llama-2-7b-hf").shape(), "sliding_window": None}
    wide, narrow = architecture_from_json(plain), architecture_from_json({**plain, "window_size": 1024})
    assert model_flops_per_token(narrow, 1024) == model_flops_per_token(wide, 1024)
    assert model_flops_per_token(narrow, 32768) < model_flops_per_token(wide, 4096)


def test_padding_the_vocabulary_costs_and_tensor_parallelism_pads_more() -> None:
    a = architecture_from_json({**architecture("meta-llama/Llama-2-7b-hf").shape(), "vocab_size": 32001})
    assert model_flops_per_token(a, 4096, tp=8) - model_flops_per_token(a, 4096) == 6 * a.hidden_size * (32768 - 32128)

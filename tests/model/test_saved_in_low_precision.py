"""What a layer keeps in FP8, MXFP8 and NVFP4, tensor by tensor as Transformer Engine lays them out, beside the model's arithmetic.

Transformer Engine cannot be run without a GPU, so its rules are written out here, each with the place that has it (release 2.20, under
`transformer_engine/pytorch/`). The model counts bytes a token; here are whole tensors of a micro batch, with their scales and padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

import pytest

from parlaunch.model.activations import Surroundings, layer_activations
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture

TOKENS = 4096


def _up(size: float, unit: int) -> int:
    return unit * ceil(size / unit)


def _tensorwise(rows: float, columns: float) -> float:
    """One scale for all (`tensor/float8_tensor.py`)."""
    return rows * columns + 4


def _blocks(rows: float, columns: float) -> float:
    """A float32 scale for 128 rows of each column (`tensor/float8_blockwise_tensor.py`, `get_scale_shape`)."""
    return rows * columns + 4 * ceil(rows / 128) * _up(columns, 4)


def _mx(rows: float, columns: float) -> float:
    """A byte for 32 rows of each column, padded to tiles of 4 by 128 (`tensor/mxfp8_tensor.py`, `get_scale_shape`)."""
    return rows * columns + _up(rows / 32, 4) * _up(columns, 128)


def _nv(rows: float, columns: float) -> float:
    """Half a byte, a byte for 16 rows of each column, padded to tiles of 128 by 4, and the largest value (`tensor/nvfp4_tensor.py`)."""
    return rows * columns / 2 + _up(columns, 128) * _up(rows / 16, 4) + 4


def _wide(rows: float, columns: float) -> float:
    return 2 * rows * columns


QUANTIZED: Mapping[str, Callable[[float, float], float]] = {
    "bf16": _wide, "fp8ds": _tensorwise, "fp8cs": _tensorwise, "fp8sc": _blocks, "fp8mx": _mx, "nvfp4": _nv,
}  # fmt: skip
"""Bytes of the copy of an input that the weight gradient reads: column-wise alone, its row-wise half is dropped behind the forward product
(`ln_out.update_usage(rowwise_usage=False)` in `module/layernorm_linear.py`, `columnwise_usage=True` in `module/linear.py` and
`grouped_linear.py`)."""


def _attention(a: Architecture, precision: str) -> dict[str, float]:
    """Of `LayerNormLinear`, normed queries and keys, fused attention, and the output projection."""
    h, q = a.hidden_size, a.num_attention_heads * (a.kv_channels or 0)
    kv, heads = (a.num_query_groups or 0) * (a.kv_channels or 0), a.num_attention_heads
    kept = {
        "the norm's input": _wide(TOKENS, h),
        "its deviations": 4 * TOKENS,
        "the norm's output": QUANTIZED[precision](TOKENS, h),
        "queries, keys and values": _wide(TOKENS, q + 2 * kv),
        "log-sum-exp": 4 * TOKENS * heads,
        "output": _wide(TOKENS, q),
    }
    if a.qk_layernorm:
        kept |= {
            "what the norms of queries and keys got": _wide(TOKENS, q + kv),
            "theirs": 4 * TOKENS * (heads + (a.num_query_groups or 0)),
        }
    if (
        precision == "fp8ds"
    ):  # else it keeps what attention keeps: `set_save_original_input` (Megatron Core, `attention.py`)
        kept["the projection's input"] = QUANTIZED[precision](TOKENS, q)
    return kept


def _dense(a: Architecture, precision: str) -> dict[str, float]:
    return {
        "the norm's input": _wide(TOKENS, a.hidden_size),
        "its deviations": 4 * TOKENS,
        "the norm's output": QUANTIZED[precision](TOKENS, a.hidden_size),
        "what the activation gets": _wide(TOKENS, 2 * a.ffn_hidden_size),
        "what it gives": QUANTIZED[precision](TOKENS, a.ffn_hidden_size),
    }


def _experts(a: Architecture, precision: str) -> dict[str, float]:
    experts, copies, ffn = a.num_moe_experts or 0, TOKENS * a.moe_router_topk, a.moe_ffn_hidden_size or 0
    each = copies / experts  # `GroupedLinear` quantizes what each expert gets
    return {
        "the norm's input": _wide(TOKENS, a.hidden_size),
        "its deviations": 4 * TOKENS,
        "the norm's output, which the router keeps": _wide(TOKENS, a.hidden_size),
        "logits, probabilities, routing map and row map": TOKENS * experts * (4 + 4 + 1 + 8),
        "tokens as experts get them": experts * QUANTIZED[precision](each, a.hidden_size),
        "what the activations get": _wide(copies, 2 * ffn),
        "what they give": experts * QUANTIZED[precision](each, ffn),
    }  # fmt: skip


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("model", ["meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B"])
def test_a_layer_keeps_what_is_named_here(model: str, precision: str) -> None:
    a = architecture(model)
    kind = a.layers()[0]
    named = _attention(a, precision), (_experts if kind.mlp == "moe" else _dense)(a, precision)
    whole = sum(size for part in named for size in part.values())
    # Scales of whole tensors and padding are what is not counted a token.
    assert layer_activations(a, kind, Surroundings(precision=precision)).saved * TOKENS == pytest.approx(
        whole, rel=2e-4
    )


def test_low_precision_saves_what_its_format_saves_of_the_inputs_of_products_alone() -> None:
    """Llama 3 8B: inputs of three products, 4096, 4096 and 14336 wide; queries, keys, values and what the activation gets stay wide."""
    a = architecture("meta-llama/Meta-Llama-3-8B")
    kind, inputs = a.layers()[0], 4096 + 4096 + 14336
    wide = layer_activations(a, kind, Surroundings()).saved
    for precision, size in (("fp8cs", 1.0), ("fp8sc", 1 + 4 / 128), ("fp8mx", 1 + 1 / 32), ("nvfp4", 0.5 + 1 / 16)):
        assert wide - layer_activations(a, kind, Surroundings(precision=precision)).saved == pytest.approx(
            inputs * (2 - size)
        )

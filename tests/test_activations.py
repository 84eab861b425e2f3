"""What layers keep: held against autograd over Megatron Core's own modules, and rules that must hold whatever the layer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.activations import Setting, layer_activations
from parlaunch.architecture import architecture_from_json
from parlaunch.catalog import architecture
from parlaunch.layout import NO_RECOMPUTE, Recompute
from tests.conftest import need

BASE: dict[str, Any] = {
    "num_layers": 1, "hidden_size": 512, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 64,
    "ffn_hidden_size": 1024, "gated_linear_unit": True,
}  # fmt: skip
MLA = {
    "multi_latent_attention": True, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_head_dim": 32, "qk_pos_emb_head_dim": 16,
    "v_head_dim": 32, "num_query_groups": 8, "qk_layernorm": True,
}  # fmt: skip
MOE = {"num_moe_experts": 8, "moe_ffn_hidden_size": 256, "moe_router_topk": 2}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "grouped queries, gated MLP": (BASE, 1),
    "as many keys as queries": ({**BASE, "num_query_groups": 8}, 1),
    "plain MLP": ({**BASE, "gated_linear_unit": False}, 1),
    "normed queries and keys": ({**BASE, "qk_layernorm": True}, 1),
    "output gate": ({**BASE, "attention_output_gate": True}, 1),
    "two tensor ranks": (BASE, 2),
    "four tensor ranks": (BASE, 4),
    "latent attention": ({**BASE, **MLA}, 1),
    "experts": ({**BASE, **MOE}, 1),
    "shared experts": ({**BASE, **MOE, "moe_shared_expert_intermediate_size": 512}, 1),
}
RECOMPUTED: dict[str, tuple[dict[str, Any], str]] = {
    "up projections": ({**BASE, **MLA}, "mla_up_proj"),
    "experts, whole": ({**BASE, **MOE}, "moe"),
}


@pytest.fixture(scope="module")
def autograd() -> dict[str, float]:
    """For each of MODELS and RECOMPUTED, the bytes a token that autograd keeps of one layer of Megatron's modules."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "megatron-core")
    questions = [
        {**model, "world_size": 8, "tensor_model_parallel_size": tp, "sequence_parallel": tp > 1}
        for model, tp in MODELS.values()
    ] + [
        {**model, "world_size": 8, "recompute_granularity": "selective", "recompute_modules": [module]}
        for model, module in RECOMPUTED.values()
    ]
    script = Path(__file__).parent / "megatron_saved.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip((*MODELS, *RECOMPUTED), map(float, done.stdout.split()), strict=True))


def kept(model: dict[str, Any], setting: Setting) -> float:
    a = architecture_from_json({**model, "vocab_size": 128})
    return layer_activations(a, a.layers()[0], setting).saved


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_keeps_what_autograd_keeps_of_megatrons_modules(name: str, autograd: dict[str, float]) -> None:
    """Within 0.7 %: we leave out one float a row and norm; Transformer Engine's router keeps a little more than torch's."""
    model, tp = MODELS[name]
    assert kept(model, Setting(tp=tp)) == pytest.approx(autograd[name], rel=0.007)


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_modules_keep_their_input_only(name: str, autograd: dict[str, float]) -> None:
    model, module = RECOMPUTED[name]
    setting = Setting(recompute=Recompute(granularity="selective", modules=(module,)))
    assert kept(model, setting) == pytest.approx(autograd[name], rel=0.025)


def test_the_figures_of_the_paper_on_recomputation() -> None:
    """arXiv:2205.05198, section 4: s·b·h·(34 + 5·a·s/h) bytes with dropout and unfused attention; 34 when recomputed."""
    s, h, a = 2048, 6144, 64
    model = {
        "num_layers": 1, "hidden_size": h, "num_attention_heads": a, "vocab_size": 51200, "normalization": "LayerNorm",
    }  # fmt: skip
    old = Setting(dropout=True, unfused_attention=True, seq_length=s)
    assert kept(model, old) == pytest.approx(h * (34 + 5 * a * s / h))
    selective = replace(old, recompute=Recompute(granularity="selective", modules=("core_attn",)))
    assert kept(model, selective) == pytest.approx(h * 34)
    tensor = replace(selective, tp=8)
    assert kept(model, tensor) == pytest.approx(h * 34 / 8)
    without_sequence_parallelism = replace(old, tp=8, sequence_parallel=False)
    assert kept(model, without_sequence_parallelism) == pytest.approx(h * (10 + 24 / 8 + 5 * a * s / h / 8))


KNOWN = ["meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b",
         "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", "Qwen/Qwen3-Next-80B-A3B-Instruct",
         "deepseek-ai/DeepSeek-V4-Flash", "google/gemma-3-12b-it"]  # fmt: skip
MODULES = ("core_attn", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts", "mhc", "gdn_norm_out")
models, precisions = st.sampled_from(KNOWN), st.sampled_from(["bf16", "fp8cs", "fp8mx", "fp8sc", "nvfp4"])
modules = st.lists(st.sampled_from(MODULES), unique=True).map(tuple)


@given(models, precisions, modules, st.sampled_from([1, 2, 4]))
def test_recomputing_a_module_moves_bytes_and_loses_none(
    model: str, precision: str, chosen: tuple[str, ...], tp: int
) -> None:
    a = architecture(model)
    plain = Setting(tp=tp, precision=precision, recompute=NO_RECOMPUTE)
    again = replace(plain, recompute=Recompute(granularity="selective", modules=chosen))
    for kind in set(a.layers()):
        whole, part = layer_activations(a, kind, plain), layer_activations(a, kind, again)
        assert part.saved <= whole.saved
        assert part.saved + 2 * part.rerun >= whole.saved * (1 - 1e-12)
        assert part.x <= part.saved or "mhc" in chosen


def test_the_delta_rule_keeps_its_inputs_and_the_inverse_of_each_chunk() -> None:
    """What `ChunkGatedDeltaRuleFunction` of flash-linear-attention saves: q, k, v, decay, write strength and `A`."""
    a = architecture("Qwen/Qwen3-Next-80B-A3B-Instruct")
    kind = next(k._replace(mlp=None) for k in a.layers() if k.mixer == "gated_delta_net")
    h, qk, v, heads = 2048, 16 * 128, 32 * 128, 32
    projection = 2 * h + 2 * h + 2 * (2 * qk + 2 * v + 2 * heads)  # the norm's input and output, what it becomes
    convolution = 2 * (2 * qk + v)
    rule = 2 * (2 * heads * 128) + 2 * 64 * heads + (4 + 2) * heads
    output = 2 * v + 2 * v + 2 * v  # of the rule, of the gated norm, and as the output projection reads it
    assert layer_activations(a, kind, Setting()).saved == projection + convolution + rule + output


@given(models, precisions)
def test_tensor_parallelism_and_low_precision_never_keep_more(model: str, precision: str) -> None:
    a = architecture(model)
    for kind in set(a.layers()):
        one = layer_activations(a, kind, Setting(precision=precision)).saved
        two = layer_activations(a, kind, Setting(precision=precision, tp=2)).saved
        assert one / 2 * (1 - 1e-9) <= two <= one
        assert one <= layer_activations(a, kind, Setting()).saved * 1.02


def test_offloaded_modules_leave_the_gpu() -> None:
    a = architecture("meta-llama/Meta-Llama-3-8B")
    kind = a.layers()[0]
    whole = layer_activations(a, kind, Setting()).saved
    less = layer_activations(a, kind, Setting(offload=("core_attn", "attn_proj"))).saved
    assert whole - less == 2 * (4096 + 1024 + 1024) + 2 * 4096


def test_adapters_keep_inputs_unquantized() -> None:
    a = architecture("meta-llama/Meta-Llama-3-8B")
    kind = a.layers()[0]
    assert layer_activations(a, kind, Setting(precision="fp8cs", frozen=True)) == layer_activations(
        a, kind, Setting(frozen=True)
    )

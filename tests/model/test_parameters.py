"""Parameter counts: every known model against its published weights, every stage against Megatron Core's own modules."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.model.architecture import Architecture, architecture_from_json
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import Layout
from parlaunch.model.matrices import ADAPTED, ADAPTER_RANK, adapter_size
from parlaunch.model.parameters import (
    active_params,
    chunk_sizes,
    layer_weights,
    mtp_weights,
    padded_vocab,
    split_layers,
    stage_weights,
    total_params,
)
from tests.conftest import HANGS_S, need

PUBLISHED = {
    name: count
    for name, row in load("architectures.json").items()
    if (
        count := row.get("params", {}).get("hf_meta_language_model")
        or row.get("params", {}).get("formula_language_model")
    )
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_known_model_has_the_parameters_of_its_weights(model: str) -> None:
    assert total_params(architecture(model)) == pytest.approx(PUBLISHED[model], rel=1e-3)


@pytest.mark.parametrize(
    "model", [m for m in PUBLISHED if load("architectures.json")[m]["params"].get("active_language_model")]
)
def test_a_known_model_activates_the_parameters_it_says(model: str) -> None:
    active = load("architectures.json")[model]["params"]["active_language_model"]
    assert active_params(architecture(model)) == pytest.approx(active, rel=1e-3)


BASE: dict[str, Any] = {
    "num_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 64,
    "ffn_hidden_size": 1024, "vocab_size": 1000, "world_size": 64, "gated_linear_unit": True,
}  # fmt: skip
MOE = {"num_moe_experts": 8, "moe_ffn_hidden_size": 256, "moe_router_topk": 2}
MLA = {
    "multi_latent_attention": True, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_head_dim": 32, "qk_pos_emb_head_dim": 16,
    "v_head_dim": 32, "num_query_groups": 8, "qk_layernorm": True,
}  # fmt: skip
TIED = {"share_embeddings_and_output_weights": True}
PLAIN = {"gated_linear_unit": False, "add_bias_linear": True, "normalization": "LayerNorm"}
SHARED = {"moe_shared_expert_intermediate_size": 512, "moe_shared_expert_gate": True}

# Name, model, tp pp vp cp ep etp.
LAYOUTS: dict[str, tuple[dict[str, Any], tuple[int, int, int | None, int, int, int]]] = {
    "one GPU holds all": (BASE, (1, 1, None, 1, 1, 1)),
    "tensor parallel": (BASE, (4, 1, None, 1, 1, 1)),
    "more ranks than key/value heads": (BASE, (8, 1, None, 1, 1, 1)),
    "tensor and pipeline parallel": (BASE, (4, 4, None, 1, 1, 1)),
    "interleaved": (BASE, (1, 4, 2, 1, 1, 1)),
    "interleaved, tied": ({**BASE, **TIED}, (2, 4, 2, 1, 1, 1)),
    "deep pipeline, context parallel": (BASE, (1, 8, None, 4, 1, 1)),
    "biases and LayerNorm, tied": ({**BASE, **PLAIN, **TIED}, (2, 2, None, 1, 1, 1)),
    "normed queries, biased projection": ({**BASE, "qk_layernorm": True, "add_qkv_bias": True}, (2, 2, None, 1, 1, 1)),
    "output gate": ({**BASE, "attention_output_gate": True}, (2, 1, None, 1, 1, 1)),
    "experts": ({**BASE, **MOE}, (1, 1, None, 1, 8, 1)),
    "experts split over tensor ranks": ({**BASE, **MOE}, (2, 2, None, 1, 4, 2)),
    "experts whole beside tensor parallelism": ({**BASE, **MOE}, (2, 2, None, 1, 4, 1)),
    "experts, interleaved": ({**BASE, **MOE}, (1, 2, 2, 1, 8, 1)),
    "experts with biases": ({**BASE, **MOE, "add_bias_linear": True}, (1, 1, None, 1, 4, 1)),
    "experts in a smaller space": ({**BASE, **MOE, "moe_latent_size": 128}, (1, 1, None, 1, 4, 1)),
    "dense layers among experts, shared experts": (
        {**BASE, **MOE, **SHARED, "moe_layer_pattern": [0, 1, 1, 1] * 2},
        (2, 2, None, 1, 4, 1),
    ),
    "latent attention": ({**BASE, **MLA}, (2, 1, None, 1, 1, 1)),
    "latent attention without query compression": ({**BASE, **MLA, "q_lora_rank": None}, (1, 2, None, 1, 1, 1)),
    "latent attention, a dense first layer, experts": (
        {**BASE, **MLA, **MOE, "moe_layer_pattern": [0] + [1] * 7},
        (2, 4, None, 1, 4, 1),
    ),
    "multi-token prediction": ({**BASE, **MLA, **MOE, "mtp_num_layers": 1}, (1, 2, None, 1, 8, 1)),
}
SIZES = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
)  # fmt: skip


@pytest.fixture(scope="module")
def megatron() -> dict[str, list[list[int]]]:
    """For each of LAYOUTS, [all, of routed experts] that Megatron Core's modules hold on one GPU of each stage."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "megatron-core")
    questions = []
    for model, sizes in LAYOUTS.values():
        question = {**model, **{k: v for k, v in zip(SIZES, sizes, strict=True) if v is not None}}
        question["sequence_parallel"] = sizes[0] > 1
        if pattern := question.pop("moe_layer_pattern", None):
            question["moe_layer_freq"] = pattern
        questions.append(question)
    script = Path(__file__).parent / "megatron_shards.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(LAYOUTS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_stage_holds_what_megatrons_modules_hold(name: str, megatron: dict[str, list[list[int]]]) -> None:
    model, (tp, pp, vp, cp, ep, etp) = LAYOUTS[name]
    layout = Layout(world=model["world_size"], tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, etp=etp)
    stages = stage_weights(architecture_from_json(model), layout)
    assert [[s.total, s.routed] for s in stages] == megatron[name]


def test_layers_that_do_not_divide_leave_room_for_embedding_and_loss() -> None:
    """Llama 3.1 405B: 126 layers over 16 stages of 8 chunks, as NVIDIA trains it."""
    sizes = chunk_sizes(architecture("meta-llama/Meta-Llama-3.1-405B"), Layout(world=128, pp=16, vp=8))
    assert sizes == (0, *[1] * 126, 0)


@pytest.mark.parametrize(
    ("model", "pp", "vp", "expected"),
    [
        ("deepseek-ai/DeepSeek-V3", 8, None, (8,) * 7 + (5,)),
        ("deepseek-ai/DeepSeek-V3", 4, 4, (4,) * 15 + (1,)),
        ("deepseek-ai/DeepSeek-V3", 8, 4, (2,) * 30 + (1, 0)),  # MTP and loss have the last chunk to themselves
        ("meta-llama/Meta-Llama-3-8B", 5, None, (7,) * 4 + (4,)),
        ("meta-llama/Meta-Llama-3-8B", 9, None, (4,) * 5 + (3,) * 4),  # no chunk stays empty
    ],
)
def test_the_last_chunk_has_what_equal_ones_leave_over(
    model: str, pp: int, vp: int | None, expected: tuple[int, ...]
) -> None:
    layout = Layout(world=pp, pp=pp, vp=vp, micro_batch_size=1, global_batch_size=pp)
    assert chunk_sizes(architecture(model), layout) == expected


def test_an_uneven_split_is_taken_as_given() -> None:
    a = architecture("deepseek-ai/DeepSeek-V3")
    chunks = split_layers(a, 16, None, (4,) * 15 + (1,))
    assert [len(c) for c in chunks] == [4] * 15 + [1]
    assert [k.mlp for k in chunks[0]] == ["dense"] * 3 + ["moe"]


@given(st.sampled_from(sorted(PUBLISHED)), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 5]))
def test_the_stages_together_hold_the_model(model: str, tp: int, pp: int) -> None:
    a: Architecture = architecture(model)
    stages = stage_weights(a, Layout(world=tp * pp, tp=tp, pp=pp))
    copies = (
        padded_vocab(a, tp) * a.hidden_size
        if pp > 1 and (a.mtp_num_layers or a.share_embeddings_and_output_weights)
        else 0
    )
    tables = 1 if a.share_embeddings_and_output_weights else 2
    padding = (padded_vocab(a, tp) - a.vocab_size) * a.hidden_size * tables
    whole = total_params(a) + mtp_weights(a).total + copies + padding + (a.encoder.total_params if a.encoder else 0)
    held = tp * sum(s.dense for s in stages) + sum(s.routed for s in stages)
    repeated = (tp - 1) * sum(layer_weights(a, k).replicated for k in (*a.layers(), *a.mtp_layers()))
    assert whole <= held * (1 + 1e-9)
    assert held <= (whole + repeated) * 1.05 + (tp - 1) * (a.encoder.total_params if a.encoder else 0)


def test_adapters_of_a_llama_are_as_large_as_bridge_makes_them() -> None:
    """Rank 32 on qkv, proj, fc1 and fc2 of Llama 3 8B: 32 · (4096 + 6144 + 8192 + 4096 + 28672 + 14336 + 4096) a layer."""
    a = architecture("meta-llama/Meta-Llama-3-8B")
    assert adapter_size(a, a.layers()[0], ADAPTER_RANK, ADAPTED) == 32 * (
        4096 + 6144 + 2 * 4096 + 4096 + 28672 + 14336 + 4096
    )

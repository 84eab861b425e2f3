"""What layers keep: held against autograd over Megatron Core's own modules, and rules that must hold whatever the layer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.estimate.micro_batches import kept_by_predictions
from parlaunch.model.activations import Surroundings, layer_activations
from parlaunch.model.architecture import architecture_from_json
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import NO_RECOMPUTE, Recompute
from tests.conftest import HANGS_S, need

BASE: dict[str, Any] = {
    "num_layers": 1, "hidden_size": 512, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 64,
    "ffn_hidden_size": 1024, "gated_linear_unit": True,
}  # fmt: skip
MLA = {
    "multi_latent_attention": True, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_head_dim": 32, "qk_pos_emb_head_dim": 16,
    "v_head_dim": 32, "num_query_groups": 8, "qk_layernorm": True,
}  # fmt: skip
MOE = {"num_moe_experts": 8, "moe_ffn_hidden_size": 256, "moe_router_topk": 2}
GROUPED = {**MOE, "moe_grouped_gemm": True, "moe_use_legacy_grouped_gemm": True}
"""Experts whose products are one launch: the only ones whose activation is recomputed by itself (`moe_act`)."""
DELTA = {
    "experimental_attention_variant": "gated_delta_net", "linear_attention_freq": [1], "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
COPIED = 2 * (8 * 64 + 2 * 8)
"""Bytes a token of gate, write strength and decay in what the delta net projected: Core before 0.18 copies what it convolves out of it."""
SHARED = {**MOE, "moe_shared_expert_intermediate_size": 512}
GATED = {**SHARED, "moe_shared_expert_gate": True}
ROW_MAP = 8 * MOE["num_moe_experts"] + 4
"""Bytes a token of the row map that Transformer Engine's fused permutation keeps (int32, two an expert and one:
`common/triton/permutation.py`, `pytorch/permutation.py`), where torch's keeps what it indexed with, as long as the map is."""
NORMED = 2 * BASE["hidden_size"]
"""Bytes a token of a norm's output that Core without Transformer Engine hands into a recomputed module, and so keeps;
`LayerNormLinear` normalises inside (`pytorch/module/layernorm_linear.py`)."""


ONE_SET = 4 * MLA["qk_pos_emb_head_dim"] // 4
"""Bytes a token, of four that share them, of the angles that what is recomputed keeps in float32: one set for all layers."""


class Case(NamedTuple):
    """A layer of Megatron Core's and where it stands; `apart`: bytes a token that we count beyond it, and why they are named above."""

    model: dict[str, Any]
    tp: int = 1
    sequence_parallel: bool = True
    etp: int = 1
    ep: int = 1
    cp: int = 1
    modules: tuple[str, ...] = ()
    apart: int = 0
    adapters: tuple[str, ...] = ()
    adapter_dropout: bool = False
    block: str = ""
    predicting: int | None = None  # depths of multi-token prediction behind the one layer of a whole model
    method: str = ""  # of full recomputation


LAYERS: dict[str, Case] = {
    "grouped queries, gated MLP": Case(BASE),
    "as many keys as queries": Case({**BASE, "num_query_groups": 8}),
    "plain MLP": Case({**BASE, "gated_linear_unit": False}),
    "LayerNorm": Case({**BASE, "normalization": "LayerNorm"}),
    "normed queries and keys": Case({**BASE, "qk_layernorm": True}),
    "output gate": Case({**BASE, "attention_output_gate": True}),
    "two tensor ranks": Case(BASE, tp=2),
    "four tensor ranks": Case(BASE, tp=4),
    "tensor ranks without sequence parallelism": Case(BASE, tp=2, sequence_parallel=False),
    "latent attention": Case({**BASE, **MLA}),
    "latent attention without query compression": Case({**BASE, **MLA, "q_lora_rank": None}),
    "latent attention on two tensor ranks": Case({**BASE, **MLA}, tp=2),
    "latent attention without sequence parallelism": Case({**BASE, **MLA}, tp=2, sequence_parallel=False),
    "experts": Case({**BASE, **MOE}, apart=ROW_MAP),
    "shared experts": Case({**BASE, **SHARED}, apart=ROW_MAP),
    "shared experts behind a gate": Case({**BASE, **GATED}, apart=ROW_MAP),
    "shared experts behind a gate on two tensor ranks": Case({**BASE, **GATED}, tp=2, apart=ROW_MAP // 2),
    "experts behind latent attention": Case({**BASE, **MLA, **MOE}, apart=ROW_MAP),
    "attention core again": Case(BASE, modules=("core_attn",)),
    "core of as many keys as queries again": Case({**BASE, "num_query_groups": 8}, modules=("core_attn",)),
    "latent core again": Case({**BASE, **MLA}, modules=("core_attn",)),
    "up projections again": Case({**BASE, **MLA}, modules=("mla_up_proj",), apart=-ONE_SET),
    "up projections again, on two tensor ranks": Case({**BASE, **MLA}, tp=2, modules=("mla_up_proj",), apart=-ONE_SET),
    "MLP again": Case(BASE, modules=("mlp",), apart=-NORMED),
    "experts again": Case({**BASE, **MOE}, modules=("moe",)),
    "experts and shared experts again": Case({**BASE, **SHARED}, modules=("moe",)),
    "shared experts again": Case({**BASE, **SHARED}, modules=("shared_experts",), apart=ROW_MAP),
    "shared experts behind a gate again": Case({**BASE, **GATED}, modules=("shared_experts",), apart=ROW_MAP),
    "experts in a smaller space": Case({**BASE, **MOE, "moe_latent_size": 128}, apart=ROW_MAP),
    "activation of experts again": Case({**BASE, **GROUPED}, modules=("moe_act",), apart=ROW_MAP),
    "activation of experts and shared experts again": Case(
        {**BASE, **GROUPED, "moe_shared_expert_intermediate_size": 512},
        modules=("moe_act", "shared_experts"),
        apart=ROW_MAP,
    ),
    "two context ranks": Case(BASE, cp=2),
    "latent attention on two context ranks": Case({**BASE, **MLA}, cp=2),
    "context ranks beside tensor ranks": Case(BASE, tp=2, cp=2),
    "a gate in steps": Case({**BASE, "bias_activation_fusion": False}),
    "a gate in steps, in experts": Case({**BASE, **MOE, "bias_activation_fusion": False}, apart=ROW_MAP),
    "gated delta net": Case({**BASE, **DELTA}, apart=COPIED),
    "gated delta net on two tensor ranks": Case({**BASE, **DELTA}, tp=2, apart=COPIED // 2),
    "norms again, where they stand alone": Case({**BASE, **MLA, **MOE}, modules=("layernorm",), apart=ROW_MAP),
}
SPREAD: dict[str, Case] = {
    "experts over two tensor ranks": Case({**BASE, **MOE}, tp=2, etp=2),
    "shared experts over two tensor ranks": Case({**BASE, **SHARED}, tp=2, etp=2),
    "experts over two ranks": Case({**BASE, **MOE}, ep=2),
    "experts over four ranks": Case({**BASE, **MOE}, ep=4),
    "experts over ranks, beside tensor ranks": Case({**BASE, **MOE}, tp=2, ep=4),
}
"""Routed evenly over ranks that all do the same; Core's unfused permutations keep a few indices a token and expert more."""


BRIDGE = os.environ.get("BRIDGE_PYTHON", "")  # read before the tests clear what is ours
RANK = 16
ATTENTION, ALL = ("linear_qkv", "linear_proj"), ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
SORTED = 5 * MOE["num_moe_experts"]
"""Bytes a token that an unfused permutation of Core 0.19 keeps more than one of 0.16: the whole of what it sorted in int64, of which it
uses the first places, for a map and probabilities (`moe/moe_utils.py`, `permute`)."""
ADAPTED: dict[str, Case] = {
    "all": Case(BASE, adapters=ALL),
    "attention": Case(BASE, adapters=ATTENTION),
    "the output projection": Case(BASE, adapters=("linear_proj",)),
    "the second half of the MLP": Case(BASE, adapters=("linear_fc2",)),
    "attention, behind dropout": Case(BASE, adapters=ATTENTION, adapter_dropout=True),
    "all, behind dropout": Case(BASE, adapters=ALL, adapter_dropout=True),
    "all, under normed queries and keys": Case({**BASE, "qk_layernorm": True}, adapters=ALL),
    "all, on two tensor ranks": Case(BASE, tp=2, adapters=ALL),
    "all, without sequence parallelism": Case(BASE, tp=2, sequence_parallel=False, adapters=ALL),
    "all, behind dropout without sequence parallelism": Case(
        BASE, tp=2, sequence_parallel=False, adapters=ALL, adapter_dropout=True
    ),
    "queries of latent attention": Case({**BASE, **MLA}, adapters=("linear_q_up_proj", "linear_proj")),
    "attention over frozen experts": Case({**BASE, **MOE}, adapters=ATTENTION, apart=ROW_MAP - SORTED),
    "experts": Case({**BASE, **MOE}, adapters=ALL, apart=ROW_MAP - SORTED),
    "shared experts": Case({**BASE, **SHARED}, adapters=ALL, apart=ROW_MAP - SORTED),
}
"""Megatron Bridge's low-rank adapters over frozen layers."""
GEMMA4 = {**SHARED, "post_norms": True, "model_type": "gemma4"}
SCALED = 4 * 512 // 256
"""Bytes a token, of 256, of a norm's weights in float32."""
QUICK = {"activation_func": "quick_gelu", "activation_func_clamp_value": 7.0}
CLAMPED = {"bias_activation_fusion": False, "activation_func_clamp_value": 7.0, "model_type": "deepseek_v4"}
HEAD_SCALED = 4 * 64 // 256
SEQ = 64
PLAIN = {
    **BASE, "model_type": "gemma4", "post_norms": True, "qk_layernorm": True, "per_layer_embed_dim": 32, "activation_func": "fast_gelu",
    "bias_activation_fusion": False, "attention_softmax_in_fp32": False,
}  # fmt: skip
SPARSE = {
    **MLA, "experimental_attention_variant": "dsa", "dsa_indexer_n_heads": 4, "dsa_indexer_head_dim": 32, "dsa_indexer_topk": 16,
    "dsa_indexer_loss_coeff": 0.001, "dsa_indexer_use_sparse_loss": True, "dsa_kernel_backend": "cudnn",
    "dsa_indexer_rotate_activation": False,
}  # fmt: skip
VALUES_UP = 3 * 2 * 8 * 32 * 64 // 256
"""Bytes a token, of three of four samples that share it, of the values' up projection, laid out anew for each micro batch."""
CHOSEN_ANGLES = 6 * ONE_SET
"""The same of the angles of what chooses."""
LEFT_OUT = SEQ // 4
"""Bytes a token, of four samples' that share them, of what says which scores are left out: Core's kernel for 4,096 tokens needs none."""
NEWER: dict[str, Case] = {
    "gated delta net": Case({**BASE, **DELTA}),
    "gated delta net on two tensor ranks": Case({**BASE, **DELTA}, tp=2),
    "shared experts behind a gate": Case({**BASE, **GATED}, apart=ROW_MAP - SORTED),
    "second norms": Case({**BASE, "post_norms": True}),
    "second norms, on two tensor ranks": Case({**BASE, "post_norms": True}, tp=2),
    "second norms, without sequence parallelism": Case({**BASE, "post_norms": True}, tp=2, sequence_parallel=False),
    "clamped gates of experts": Case({**BASE, **MOE, **QUICK}, apart=ROW_MAP - SORTED),
    "clamped gates of experts, these again": Case({**BASE, **MOE, **QUICK}, modules=("moe",)),
    "a clamped gate in steps": Case({**BASE, **CLAMPED}),
    "clamped gates in steps, in experts": Case({**BASE, **SHARED, **CLAMPED}, apart=ROW_MAP - SORTED),
    "norms around experts": Case({**BASE, **GEMMA4}, apart=ROW_MAP - SORTED - 5 * SCALED),
    "norms around experts, on two tensor ranks": Case(
        {**BASE, **GEMMA4}, tp=2, apart=(ROW_MAP - SORTED) // 2 - 5 * SCALED
    ),
    "norms around experts, these again": Case({**BASE, **GEMMA4}, modules=("moe",), apart=-3 * SCALED),
    "norms behind alone, and Core's attention": Case(
        {**BASE, "model_type": "exaone4", "attention_softmax_in_fp32": False}, apart=-LEFT_OUT
    ),
    "norms behind alone, on two tensor ranks": Case(
        {**BASE, "model_type": "exaone4", "attention_softmax_in_fp32": False}, tp=2, apart=-LEFT_OUT
    ),
    "norms behind alone, MLP again": Case(
        {**BASE, "model_type": "exaone4", "attention_softmax_in_fp32": False}, modules=("mlp",), apart=-LEFT_OUT
    ),
    "a layer of dense Gemma 4": Case(PLAIN, apart=SEQ - LEFT_OUT - 5 * SCALED - 2 * HEAD_SCALED),
    "sparse latent attention": Case({**BASE, **SPARSE}, apart=VALUES_UP + CHOSEN_ANGLES),
    "sparse latent attention, on two tensor ranks": Case(
        {**BASE, **SPARSE}, tp=2, apart=VALUES_UP // 2 + CHOSEN_ANGLES
    ),
    "sparse latent attention, up projections again": Case(
        {**BASE, **SPARSE}, modules=("mla_up_proj",), apart=VALUES_UP + CHOSEN_ANGLES - ONE_SET
    ),
    "sparse latent attention, its core again": Case({**BASE, **SPARSE}, modules=("core_attn",)),
    "second norms, MLP again": Case({**BASE, "post_norms": True}, modules=("mlp",), apart=-NORMED),
}
"""Layers of the Core that Megatron Bridge brings, and with Bridge's norms behind attention and MLP (Gemma 2 and 3)."""
STREAM: dict[str, Any] = {
    "num_layers": 1, "hidden_size": 512, "num_attention_heads": 8, "kv_channels": 64, "ffn_hidden_size": 2048,
    "gated_linear_unit": False, "normalization": "LayerNorm", "add_bias_linear": True, "add_qkv_bias": True, "qk_layernorm": True,
}  # fmt: skip
SAMPLE = 2 * 512 // 64
"""Bytes a token of what a modulation keeps of each sample, of which one has 64 tokens here and thousands in a training."""
WORD = 4 * SAMPLE
"""The same of the text that WAN attends to, a token of it a sample: what its keys and values are made of, keys before and behind their
norm, values."""
DIFFUSION: dict[str, Case] = {
    "a joint block": Case(STREAM, block="joint", sequence_parallel=False, apart=-2 * SAMPLE),
    "a single block": Case(STREAM, block="single", sequence_parallel=False, apart=-SAMPLE),
    "a joint block on two tensor ranks": Case(STREAM, block="joint", tp=2, sequence_parallel=False, apart=-2 * SAMPLE),
    "a single block on two tensor ranks": Case(STREAM, block="single", tp=2, sequence_parallel=False, apart=-SAMPLE),
    "WAN": Case(STREAM, block="wan", sequence_parallel=False, apart=-WORD),
    "WAN on two tensor ranks": Case(STREAM, block="wan", tp=2, sequence_parallel=False, apart=-(WORD + SAMPLE) // 2),
}
"""Megatron Bridge's blocks of FLUX, a joint one over as many tokens of text as of the image, and of WAN."""
PREDICTING: dict[str, Case] = {
    "one depth": Case(BASE, predicting=1),
    "two depths": Case(BASE, predicting=2),
    "two depths on two tensor ranks": Case(BASE, tp=2, predicting=2),
    "a depth on four tensor ranks": Case(BASE, tp=4, predicting=1),
    "a depth without sequence parallelism": Case(BASE, tp=2, sequence_parallel=False, predicting=1),
    "a depth with LayerNorm": Case({**BASE, "normalization": "LayerNorm"}, predicting=1),
    "a depth again": Case(BASE, predicting=1, method="uniform"),
    "two depths again, on two tensor ranks": Case(BASE, tp=2, predicting=2, method="uniform"),
    "a depth that the method does not reach": Case(BASE, predicting=1, method="block"),
}
"""Whole models from the embedding to the losses, with and without multi-token prediction (`WITHOUT`)."""
WITHOUT = {f"{name}, without": case._replace(predicting=0) for name, case in PREDICTING.items()}


def _question(case: Case) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "world_size": 8, "tensor_model_parallel_size": case.tp, "sequence_parallel": case.tp > 1 and case.sequence_parallel,
        "expert_model_parallel_size": case.ep, "expert_tensor_parallel_size": case.etp, "context_parallel_size": case.cp,
    }  # fmt: skip
    if "num_moe_experts" in case.model:
        sizes |= {"moe_router_force_load_balancing": True, "moe_token_dispatcher_type": "alltoall"}
    if case.block:
        sizes["block"] = case.block
    if case.adapters:
        dropout = 0.1 if case.adapter_dropout else 0.0
        sizes["adapters"] = {"target_modules": list(case.adapters), "dim": RANK, "dropout": dropout}
    if case.predicting is not None:
        sizes |= {"vocab_size": 3200, "mtp_num_layers": case.predicting or None}
    if case.method:
        sizes |= {"recompute_granularity": "full", "recompute_method": case.method, "recompute_num_layers": 1}
    if case.modules:
        sizes |= {"recompute_granularity": "selective", "recompute_modules": list(case.modules)}
    return case.model | sizes


@pytest.fixture(scope="module")
def autograd() -> dict[str, float]:
    """For each of LAYERS, SPREAD and PREDICTING, the bytes a token that autograd keeps of one layer of Megatron's modules."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "megatron-core")
    return _asked(sys.executable, LAYERS | SPREAD | PREDICTING | WITHOUT)


@pytest.fixture(scope="module")
def of_bridge() -> dict[str, float]:
    """The same of ADAPTED, NEWER, DIFFUSION and PREDICTING, with Megatron Bridge's own adapters and blocks."""
    need(BRIDGE, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    return _asked(BRIDGE, PREDICTING | WITHOUT | ADAPTED | NEWER | DIFFUSION)  # adapters put dropout into the process


def _asked(python: str, cases: dict[str, Case]) -> dict[str, float]:
    done = subprocess.run(
        [python, str(Path(__file__).parent / "megatron_saved.py")],
        input=json.dumps([_question(case) for case in cases.values()]),
        capture_output=True, text=True, timeout=HANGS_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cases, map(float, done.stdout.split()), strict=True))


def kept(model: dict[str, Any], around: Surroundings) -> float:
    delta = {"linear_attention_pattern": [1]} if "linear_attention_freq" in model else {}
    delta |= {"dsa_indexer_layers": [1]} if "dsa_indexer_n_heads" in model else {}
    switches = ("bias_activation_fusion", "activation_func_clamp_value", "attention_softmax_in_fp32")
    known = {k: v for k, v in model.items() if k not in switches}
    a = architecture_from_json({"activation_func": "silu"} | known | delta | {"vocab_size": 128})
    around = replace(around, plain_activation=not model.get("bias_activation_fusion", True))
    return layer_activations(a, a.layers()[0], around).saved


def counted(case: Case) -> float:
    """Layers on the CPU are rotated in plain torch; the four samples of a micro batch share the angles."""
    recompute = Recompute(granularity="selective", modules=case.modules) if case.modules else NO_RECOMPUTE
    return kept(
        case.model,
        Surroundings(
            tp=case.tp, sequence_parallel=case.sequence_parallel, etp=case.etp, recompute=recompute,
            frozen=bool(case.adapters), adapters=case.adapters, adapter_dropout=case.adapter_dropout,
            adapter_rank=RANK if case.adapters else 0, plain_rotation=True, seq_length=SEQ,
        ),
    ) - _of_three_samples(case)  # fmt: skip


def _of_three_samples(case: Case) -> float:
    latent, again = "multi_latent_attention" in case.model, "mla_up_proj" in case.modules
    if "linear_attention_freq" in case.model or (latent and again):
        return 0.0
    return 0.75 * 8 * float(case.model["qk_pos_emb_head_dim" if latent else "kv_channels"])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_keeps_what_autograd_keeps_of_megatrons_modules(name: str, autograd: dict[str, float]) -> None:
    """To the byte, but for the differences that have a name; a recomputed core also keeps the state of a random generator, a delta
    rule a number a head whatever the tokens."""
    case = LAYERS[name]
    assert counted(case) - case.apart == pytest.approx(autograd[name], abs=0.2)


@pytest.mark.bridge
@pytest.mark.parametrize("name", ADAPTED)
def test_a_frozen_layer_keeps_what_autograd_keeps_of_it_under_bridges_adapters(
    name: str, of_bridge: dict[str, float]
) -> None:
    """To the byte. Under sequence parallelism and dropout Transformer Engine drops what it gathered, Core gathers what it dropped
    (`return_layernorm_output_gathered`), so that case is not held."""
    case = ADAPTED[name]
    assert counted(case) - case.apart == pytest.approx(of_bridge[name], abs=0.2)


@pytest.mark.bridge
@pytest.mark.parametrize("name", NEWER)
def test_a_layer_keeps_what_autograd_keeps_of_the_modules_of_bridges_core(
    name: str, of_bridge: dict[str, float]
) -> None:
    """To the byte."""
    case = NEWER[name]
    assert counted(case) - case.apart == pytest.approx(of_bridge[name], abs=0.2)


@pytest.mark.bridge
@pytest.mark.parametrize("name", DIFFUSION)
def test_a_diffusion_block_keeps_what_autograd_keeps_of_bridges(name: str, of_bridge: dict[str, float]) -> None:
    """To the byte, but for the deviations of the text's keys."""
    case = DIFFUSION[name]
    layers = {"wan": {}, "joint": {"num_joint_layers": 1}, "single": {"num_single_layers": 1}}[case.block]
    model = STREAM | layers | {"kind": "diffusion", "num_query_groups": STREAM["num_attention_heads"]}
    around = Surroundings(tp=case.tp, sequence_parallel=case.sequence_parallel)
    assert kept(model, around) - case.apart == pytest.approx(of_bridge[name], abs=0.6)


def predicted(case: Case) -> float:
    """Bytes a token of all depths with the layers in them; angles are made once for each layer."""
    a = architecture_from_json({**case.model, "vocab_size": 3200, "mtp_num_layers": case.predicting})
    again = Recompute(granularity="full", method=case.method, num_layers=1) if case.method else NO_RECOMPUTE
    around = Surroundings(tp=case.tp, sequence_parallel=case.sequence_parallel, plain_rotation=True)
    depths = case.predicting or 0
    saved, _ = kept_by_predictions(a, again, around, around)
    return saved - (depths * _of_three_samples(case) if case.method != "uniform" else 0.0)


@pytest.mark.parametrize("name", PREDICTING)
def test_multi_token_prediction_keeps_what_autograd_keeps_of_megatrons_modules(
    name: str, autograd: dict[str, float]
) -> None:
    """To the byte, beside the logits."""
    case = PREDICTING[name]
    assert predicted(case) == autograd[name] - autograd[f"{name}, without"]


@pytest.mark.bridge
@pytest.mark.parametrize("name", PREDICTING)
def test_multi_token_prediction_keeps_what_autograd_keeps_of_bridges_core(
    name: str, of_bridge: dict[str, float]
) -> None:
    assert predicted(PREDICTING[name]) == of_bridge[name] - of_bridge[f"{name}, without"]


@pytest.mark.parametrize("name", SPREAD)
def test_experts_over_ranks_keep_what_they_are_sent(name: str, autograd: dict[str, float]) -> None:
    assert counted(SPREAD[name]) == pytest.approx(autograd[name], rel=0.02)


def test_the_figures_of_the_paper_on_recomputation() -> None:
    """arXiv:2205.05198, section 4: s·b·h·(34 + 5·a·s/h) bytes with dropout and unfused attention; 34 when recomputed."""
    s, h, a = 2048, 6144, 64
    model = {
        "num_layers": 1, "hidden_size": h, "num_attention_heads": a, "vocab_size": 51200, "normalization": "LayerNorm",
    }  # fmt: skip
    old = Surroundings(dropout=True, unfused_attention=True, seq_length=s)
    statistics = 2 * 8  # mean and deviation of both norms, in float32: the paper leaves them out
    assert kept(model, old) == pytest.approx(h * (34 + 5 * a * s / h) + statistics)
    selective = replace(old, recompute=Recompute(granularity="selective", modules=("core_attn",)))
    assert kept(model, selective) == pytest.approx(h * 34 + statistics)
    tensor = replace(selective, tp=8)
    assert kept(model, tensor) == pytest.approx((h * 34 + statistics) / 8)
    without_sequence_parallelism = replace(old, tp=8, sequence_parallel=False)
    assert kept(model, without_sequence_parallelism) == pytest.approx(
        h * (10 + 24 / 8 + 5 * a * s / h / 8) + statistics
    )


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
    plain = Surroundings(tp=tp, precision=precision, recompute=NO_RECOMPUTE)
    again = replace(plain, recompute=Recompute(granularity="selective", modules=chosen))
    for kind in set(a.layers()):
        whole, part = layer_activations(a, kind, plain), layer_activations(a, kind, again)
        # A recomputed core may keep more than fused attention does: its values are a view of all that was projected.
        assert part.saved <= whole.saved or {"core_attn", "mla_up_proj"} & {*chosen}
        assert part.saved + 2 * part.rerun >= whole.saved * (1 - 1e-12)
        assert part.x <= part.saved or "mhc" in chosen


def test_the_delta_rule_keeps_its_inputs_and_the_inverse_of_each_chunk() -> None:
    """What `ChunkGatedDeltaRuleFunction` of flash-linear-attention saves: q, k, v, decay, write strength and `A`."""
    a = architecture("Qwen/Qwen3-Next-80B-A3B-Instruct")
    kind = next(k._replace(mlp=None) for k in a.layers() if k.mixer == "gated_delta_net")
    h, qk, v, heads = 2048, 16 * 128, 32 * 128, 32
    projection = 2 * h + 4 + 2 * h + 2 * (2 * qk + 2 * v + 2 * heads)  # the norm's input and output, what it becomes
    gate = 2 * v  # a copy
    convolution = 2 * (2 * qk + v)
    rule = 2 * (2 * heads * 128) + 2 * 64 * heads + (4 + 2) * heads
    output = 2 * v + 2 * v + 2 * v  # of the rule, of the gated norm, and as the output projection reads it
    floats = 4 * (2 * 16 + heads) + 4 * 2 * heads  # of the norms; the decay before and behind its softplus
    assert layer_activations(a, kind, Surroundings()).saved == projection + gate + convolution + rule + output + floats


@given(models, precisions)
def test_tensor_parallelism_and_low_precision_never_keep_more(model: str, precision: str) -> None:
    a = architecture(model)
    for kind in set(a.layers()):
        one = layer_activations(a, kind, Surroundings(precision=precision)).saved
        two = layer_activations(a, kind, Surroundings(precision=precision, tp=2)).saved
        assert one / 2 * (1 - 1e-9) <= two <= one
        assert one <= layer_activations(a, kind, Surroundings()).saved * 1.02


def test_offloaded_modules_leave_the_gpu() -> None:
    a = architecture("meta-llama/Meta-Llama-3-8B")
    kind = a.layers()[0]
    whole = layer_activations(a, kind, Surroundings()).saved
    less = layer_activations(a, kind, Surroundings(offload=("core_attn", "attn_proj"))).saved
    assert whole - less == 2 * (4096 + 1024 + 1024) + 2 * 4096


def test_hyper_connections_keep_the_streams_what_they_join_and_what_goes_back() -> None:
    """Bytes a token of DeepSeek-V4 Flash's first layer in Megatron Core's development branch (`hyper_connection.py`), its four streams of
    4,096: each half norms what the streams join and keeps what it made; without kernels the streams are kept in float32 too."""
    a = architecture("deepseek-ai/DeepSeek-V4-Flash")
    kind, one = a.layers()[0], 2 * 4096
    fused = Surroundings(fused_v4=True)
    whole, plain = (layer_activations(a, kind, s).saved for s in (fused, Surroundings()))
    # Keys as each of a window of 128 sees them, queries, and scores twice, in float32; with kernels queries, the output and what was seen.
    unfused = (4 * 512 + 9) * 128 + 64 * (4 * 512 + 8 * 128 + 20)
    assert plain - whole == 2 * 4 * 4 * 4096 + unfused - 4 * 128 - 64 * (2 * 2 * 512 + 4)
    again = Recompute(granularity="selective", modules=("mhc",))
    less = layer_activations(a, kind, replace(fused, recompute=again)).saved
    norms = 2 * one  # outputs of both, which no layer keeps where it is made again
    assert whole - less == 2 * (4 * one + one) + norms
    assert (
        layer_activations(replace(a, num_residual_streams=None), kind, fused).saved
        == whole - 2 * (4 * one + 2 * one) + 2 * one
    )


def test_compressed_attention_keeps_queries_on_both_sides_of_their_norm_and_its_output_rotated_back() -> None:
    """Core's `deepseek_v4_hybrid_attention.py` and `csa.py`: 64 heads of 512 over one of keys."""
    a = architecture("deepseek-ai/DeepSeek-V4-Flash")
    kinds = {k.compress: k._replace(mlp=None) for k in a.layers()}
    heads, s = 2 * 64 * 512, Surroundings(fused_v4=True, seq_length=4096)
    near = layer_activations(a, kinds[0], s).saved
    again = replace(s, recompute=Recompute(granularity="selective", modules=("mla_up_proj",)))
    less = layer_activations(a, kinds[0], again).saved
    assert near - less == 2 * heads + 2 * 64 + 2 * (2 * 512) + 4  # queries twice, keys twice, their deviations
    assert (
        less - 2 * heads - layer_activations(a, kinds[0]._replace(heads=0), again).saved == 4 * 64
    )  # the output twice, sums of the softmax
    far, wide = (layer_activations(a, kinds[ratio], s).saved - near for ratio in (128, 4))
    indexer = (
        8 * 2 * 128 + 2 * 128 / 4 + 2 * 64 * 128 + 2 * 128 / 4 + 4 * 64
    )  # its compressor; queries, keys and weights
    assert (far, wide) == (8 * 512 + 2 * 512 / 128 + 4 * 32, 8 * 1024 + 2 * 512 / 4 + 4 * 512 + indexer)


def test_adapters_keep_inputs_unquantized() -> None:
    a = architecture("meta-llama/Meta-Llama-3-8B")
    kind = a.layers()[0]
    assert layer_activations(a, kind, Surroundings(precision="fp8cs", frozen=True)) == layer_activations(
        a, kind, Surroundings(frozen=True)
    )


def test_heads_that_no_fused_kernel_trains_keep_their_scores() -> None:
    """Gemma 4: 16 heads of 512 over two of keys in every sixth layer. Transformer Engine repeats keys and values for every head and keeps
    the softmax in 16 bits, and no log-sum-exp; layers of heads of 256 do not."""
    a = architecture("google/gemma-4-26B-A4B-it")
    near, far = (next(k for k in a.layers() if k.head_dim == size) for size in (256, 512))
    long, short = Surroundings(seq_length=4096), Surroundings(seq_length=2048)
    assert layer_activations(a, far, long).saved - layer_activations(a, far, short).saved == 2 * 16 * 2048
    assert layer_activations(a, near, long) == layer_activations(a, near, short)
    wider = near._replace(head_dim=264)
    assert layer_activations(a, wider, long).saved - layer_activations(a, wider, short).saved == 2 * 16 * 2048
    two_streams = Surroundings(seq_length=4096, tp=2)
    assert layer_activations(a, far, two_streams).saved < 0.55 * layer_activations(a, far, long).saved
    again = replace(long, recompute=Recompute(granularity="selective", modules=("core_attn",)))
    assert layer_activations(a, far, long).saved - layer_activations(a, far, again).saved == 2 * 16 * 4096


def test_gemma_2_keeps_its_scores_capped_and_as_probabilities() -> None:
    """Bridge's `Gemma2DotProductAttention`: the tanh and the softmax in 16 bits, the softmax in float32 as well beyond 4,096 tokens."""
    a = architecture("google/gemma-2-9b")
    kind, heads = a.layers()[0], 16
    short, longer = (Surroundings(seq_length=length) for length in (2048, 4096))
    assert layer_activations(a, kind, longer).saved - layer_activations(a, kind, short).saved == 4 * heads * 2048
    far, further = (Surroundings(seq_length=length) for length in (8192, 16384))
    assert layer_activations(a, kind, further).saved - layer_activations(a, kind, far).saved == 8 * heads * 8192
    capped = layer_activations(a, kind, Surroundings(seq_length=5000)).saved
    assert capped - layer_activations(a, kind, longer).saved == heads * (8 * 5000 - 4 * 4096)
    gemma4 = architecture("google/gemma-4-26B-A4B-it")
    wide = next(k for k in gemma4.layers() if k.head_dim == 512)
    engine = [layer_activations(gemma4, wide, Surroundings(seq_length=length)).saved for length in (16384, 20000)]
    assert engine[1] - engine[0] == heads * (6 * 20000 - 2 * 16384)

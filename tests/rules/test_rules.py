"""Megatron's rules: published layouts keep them, broken ones are refused by the rule that is known to be broken."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.hardware.datasheet import preset, product, product_names
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.evidence import layout_of
from parlaunch.rules import RULES, fewest_gpus, violations, why_not
from parlaunch.rules.models import UNSLICED, UNSTAGED
from parlaunch.rules.published import mended
from tests.conftest import need

BRIDGE = os.environ.get("BRIDGE_PYTHON", "")  # read before the tests clear what is ours

LLAMA = catalog.recipe("llama3_8b_pretrain_8gpu_h100_bf16_config")
QWEN = catalog.recipe("qwen3_30b_a3b_pretrain_8gpu_gb200_bf16_config")
DEEPSEEK = catalog.recipe("deepseek_v3_pretrain_256gpu_gb200_bf16_config")
HYBRID = catalog.recipe("nemotronh_56b_pretrain_64gpu_h100_fp8cs_config")
H100 = rates_of(preset("dgx-h100", 8))
GB200 = rates_of(preset("gb200-nvl72", 64))
A100 = rates_of(preset("dgx-a100-80g", 1))
PUBLISHED: list[Mapping[str, Any]] = [r for r in load("evidence.json")["rows"] if "tokens" not in r]
PRODUCTS = {
    "H100 SXM": "h100",
    "B200": "b200",
    "B300": "b300",
    "GB200": "gb200",
    "GB300": "gb300",
    "VR200": "vr200",
    "R100": "r100",
}


def broken(layout: Layout, recipe: Recipe = LLAMA, rates: Rates = H100) -> set[str]:
    return {rule.id for rule, _ in violations(layout, recipe, rates)}


def llama(**sizes: Any) -> Layout:
    given: dict[str, Any] = {"world": 64, "global_batch_size": 128} | sizes
    return Layout(**given)


def deepseek(**sizes: Any) -> Layout:
    split = (4,) * 15 + (1,)
    given: dict[str, Any] = {
        "world": 256,
        "pp": 4,
        "vp": 4,
        "ep": 64,
        "global_batch_size": 4096,
        "layers_per_chunk": split,
    }
    return Layout(**(given | sizes))


@pytest.mark.parametrize("row", PUBLISHED, ids=[r["name"] for r in PUBLISHED])
def test_published_layouts_run_or_are_refused_by_the_rule_they_break(row: Mapping[str, Any]) -> None:
    recipe = catalog.recipe(row["name"])
    recipe = replace(
        recipe,
        global_batch_size=row["gbs"],
        seq_length=row["seq"],
        features=replace(recipe.features, fsdp=bool(row.get("fsdp"))),
    )
    cluster = preset(PRODUCTS[row["product"]], max(1, row["gpus"] // preset(PRODUCTS[row["product"]]).gpus_per_node))
    feasible = row.get("feasible", True)
    layout = layout_of(
        row["layout"] | {"equal": not feasible},
        gpus=row["gpus"],
        gbs=row["gbs"],
        a=recipe.architecture,
        fsdp=bool(row.get("fsdp")),
    )
    found = broken(layout, recipe, rates_of(cluster))
    if feasible or mended(row["violations"]):
        assert found == set()
    else:
        assert found
        assert set(row["violations"] or ()) <= found


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (llama(tp=3), "tp-heads"),
        (llama(world=48, tp=4, pp=8), "grid-dense"),
        (llama(ep=2), "ep-needs-moe"),
        (llama(etp=2), "ep-needs-moe"),
        (llama(pp=5, world=40), "pp-layers"),
        (llama(pp=4, vp=3), "vp-layers"),
        (llama(vp=2), "vp-needs-pp"),
        (llama(pp=4, vp=2, global_batch_size=32), "vp-group"),
        (llama(pp=8, vp=2, world=8, global_batch_size=12), "vp-remainder"),
        (llama(global_batch_size=100), "gbs-divides"),
        (llama(micro_batch_size=3), "gbs-divides"),
        (llama(cp=3, world=96), "cp-seq"),
        (llama(pp=2, layers_per_chunk=(16, 15)), "pp-layout-content"),
        (llama(pp=2, layers_per_chunk=(8, 8, 8, 8)), "pp-layout-len"),
        (llama(pp=4, layers_per_chunk=(16, 0, 8, 8)), "pp-layout-content"),
        (llama(recompute=Recompute(granularity="selective", modules=("mla_up_proj",))), "rc-modules"),
        (llama(recompute=Recompute(granularity="selective", modules=("nonsense",))), "rc-modules"),
        (llama(recompute=Recompute(granularity="full")), "rc-modes"),
        (llama(recompute=Recompute(granularity="some")), "rc-modes"),
        (llama(cp=2, cp_comm_type="pigeon"), "cp-comm-type"),
        (llama(cp=2, cp_comm_type="a2a+p2p"), "grid-hcp"),
        (llama(tp=8, cp=4, cp_comm_type="a2a+p2p"), "grid-hcp"),
        (llama(tp=4, cp=4, cp_comm_type="a2a"), "cp-a2a-heads"),
    ],
    ids=lambda v: v if isinstance(v, str) else str(v),
)
def test_a_dense_layout_is_refused_by_the_rule_it_breaks(layout: Layout, rule: str) -> None:
    assert rule in broken(layout)


@pytest.mark.parametrize(
    ("layout", "changes", "rule"),
    [
        (deepseek(ep=96), {}, "ep-divides"),
        (deepseek(ep=128, world=512), {"dispatcher": "hybridep"}, "ep-hybridep-domain"),
        (deepseek(world=128), {}, "grid-expert"),
        (deepseek(vp=None, layers_per_chunk=(16, 15, 15, 15)), {"ep_overlap": True}, "ep-overlap"),
        (deepseek(recompute=FULL_RECOMPUTE), {"ep_overlap": True}, "ep-overlap"),
        (deepseek(recompute=FULL_RECOMPUTE), {"cuda_graph": "transformer_engine"}, "cg-recompute"),
        (deepseek(), {"dispatcher": "deepep"}, "ep-deepep-gpu"),
        (deepseek(), {"dispatcher": "carrier"}, "ep-dispatcher"),
        (deepseek(), {"cuda_graph": "transformer_engine", "cuda_graph_scope": ("moe_preprocess",)}, "cg-scopes"),
        (deepseek(), {"paged_stash": True, "dispatcher": "alltoall"}, "ep-paged-stash"),
        (deepseek(), {"cpu_offload_layers": 4}, "off-cpu"),
        (deepseek(), {"offload_modules": ("attn_proj",)}, "off-fine"),
        (deepseek(), {"moments": "bfloat16", "precision_aware_optimizer": False}, "opt-precision"),
        (deepseek(recompute=Recompute(granularity="full", method="uniform", num_layers=2)), {}, "rc-mtp"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_an_expert_layout_is_refused_by_the_rule_it_breaks(layout: Layout, changes: dict[str, Any], rule: str) -> None:
    recipe = replace(DEEPSEEK, features=replace(Features(), **changes))
    assert rule in broken(layout, recipe, GB200)


@pytest.mark.parametrize(
    ("kind", "impl", "refused"),
    [("gemma4", "local", True), ("gemma4", "transformer_engine", False), ("falcon_h1", "transformer_engine", True)],
)
def test_layers_of_core_s_own_modules_offload_nothing(kind: str, impl: str, refused: bool) -> None:
    features = replace(LLAMA.features, transformer_impl=impl)
    recipe = replace(LLAMA, architecture=replace(LLAMA.architecture, model_type=kind), features=features)
    offloading = replace(recipe, features=replace(features, offload_modules=("core_attn",)))
    assert "off-fine" not in broken(llama(), recipe)
    assert ("off-fine" in broken(llama(), offloading)) is refused


def test_gemma_4_with_experts_offloads_no_norm_before_them() -> None:
    moe = replace(DEEPSEEK, features=Features(offload_modules=("mlp_norm",)))
    assert "off-fine" not in broken(deepseek(), moe, GB200)
    assert "off-fine" in broken(
        deepseek(), replace(moe, architecture=replace(moe.architecture, model_type="gemma4")), GB200
    )


def test_the_deepseek_layout_of_these_tests_is_legal() -> None:
    assert broken(deepseek(), replace(DEEPSEEK, features=Features()), GB200) == set()


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ({"fsdp": True}, {}),
        ({}, {"features": Features(precision_aware_optimizer=True)}),
    ],
)
def test_muon_runs_neither_with_fsdp_nor_aware_of_precision(layout: dict[str, Any], changes: dict[str, Any]) -> None:
    recipe = replace(LLAMA, **changes)
    assert "opt-muon" not in broken(llama(**layout), recipe)
    assert "opt-muon" in broken(llama(**layout), replace(recipe, optimizer="muon"))


def test_hybrid_models_are_not_interleaved() -> None:
    layout = Layout(world=64, tp=8, pp=2, vp=2, global_batch_size=192)
    assert "pp-hybrid-bridge" in broken(layout, HYBRID)


def test_fp4_needs_a_gpu_that_has_it() -> None:
    recipe = replace(LLAMA, precision="nvfp4")
    assert "prec-gpu" in broken(llama(), recipe, H100)
    assert "prec-gpu" not in broken(llama(), recipe, GB200)
    assert "prec-gpu" in broken(llama(world=8), replace(LLAMA, precision="fp8cs"), A100)


def test_bf16_needs_a_gpu_of_ampere_or_later_and_fp16_none() -> None:
    sheets = [sheet for name in product_names() if (sheet := product(name))]
    older = {s.name for s in sheets if s.compute_capability < (8, 0)}
    for precision, refused in (("bf16", older), ("fp16", set[str]())):
        recipe = replace(LLAMA, precision=precision)
        assert {s.name for s in sheets if "prec-gpu" in broken(llama(), recipe, replace(H100, product=s))} == refused


def test_muon_does_not_train_in_fp16() -> None:
    recipe = replace(LLAMA, optimizer="muon", precision="fp16")
    assert "opt-muon-fp16" in broken(llama(), recipe)
    assert "opt-muon-fp16" not in broken(llama(), replace(recipe, precision="bf16"))


def test_the_fewest_gpus_are_not_the_product_of_all_sizes() -> None:
    assert fewest_gpus(Layout(tp=2, pp=16, ep=64)) == 16 * 64
    assert fewest_gpus(Layout(tp=8, pp=4, cp=2, ep=4)) == 4 * 16


def test_every_rule_says_its_id_formula_and_source() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    assert all(rule.formula and rule.source for rule in RULES)
    assert len(RULES) >= 45


def test_the_sentence_names_the_numbers() -> None:
    assert why_not(llama(tp=3, world=48), LLAMA, H100) == "TP 3 does not divide the 32 attention heads"
    assert why_not(Layout(world=64, pp=8, ep=16, global_batch_size=64), QWEN, GB200) == (
        "64 GPUs do not divide into PP·EP·ETP = 8·16·1 = 128: the layout needs at least 128 GPUs"
    )


@given(
    tp=st.integers(1, 9), pp=st.integers(1, 9), cp=st.integers(1, 5), ep=st.integers(1, 9), vp=st.integers(1, 5),
    mbs=st.integers(1, 5), world=st.integers(1, 130), gbs=st.integers(1, 300),
)  # fmt: skip
def test_rules_answer_for_any_sizes(
    tp: int, pp: int, cp: int, ep: int, vp: int, mbs: int, world: int, gbs: int
) -> None:
    layout = Layout(
        world=world, tp=tp, pp=pp, cp=cp, ep=ep, vp=vp if vp > 1 else None, micro_batch_size=mbs, global_batch_size=gbs
    )
    for recipe in (LLAMA, QWEN, DEEPSEEK, HYBRID):
        sentence = why_not(layout, recipe, H100)
        if sentence is None:
            assert world == layout.dp * tp * pp * cp == layout.edp * pp * ep
            assert layout.num_microbatches * mbs * layout.dp == gbs
            assert world >= fewest_gpus(layout)


def test_every_product_has_rules_that_answer() -> None:
    assert product_names()
    for name in ("l40s-pcie-8", "dgx1-v100", "gh200", "dgx-b300"):
        rates = rates_of(preset(name))
        recipe = replace(LLAMA, precision="fp16")  # which all of them have
        assert violations(Layout(world=rates.world_size, global_batch_size=128), recipe, rates) == ()


# --- Models of Megatron Bridge -----------------------------------------------------------------------------------------

MODELS = (
    ("gemma3_vl_4b_sft_config", {"cp": 2}, "cp-refused"),
    ("gemma2_2b_pretrain_config", {"cp": 2}, "cp-refused"),
    ("gemma4_e4b_pretrain_config", {"cp": 2}, "cp-refused"),
    ("exaone4_1p2b_pretrain_config", {"cp": 2}, "cp-refused"),
    ("qwen25_vl_7b_sft_config", {"cp": 2}, "cp-unsliced"),
    ("glm_45v_sft_config", {"cp": 2}, "cp-unsliced"),
    ("qwen2_audio_7b_sft_config", {"cp": 2}, "cp-unsliced"),
    ("flux_12b_pretrain_config", {"cp": 2}, "cp-unsliced"),
    ("step37_sft_flickr8k_config", {"cp": 2}, "cp-unsliced"),
    ("qwen3_omni_30b_a3b_sft_config", {"cp": 2, "tp": 4, "seq_length": 4104}, "cp-omni"),
    ("nemotron_nano_v2_vl_12b_sft_config", {"pp": 2, "packing": "in_batch"}, "pack-llava"),
    ("gemma4_e4b_pretrain_config", {"pp": 2}, "pp-gemma4"),
    ("qwen3_vl_8b_sft_config", {"pp": 18}, "pp-deepstack"),
    ("qwen3_vl_8b_sft_config", {"pp": 2, "vp": 2}, "vp-unstaged"),
    ("wan_14b_pretrain_config", {"pp": 2, "vp": 2}, "vp-unstaged"),
    ("flux_12b_pretrain_config", {"pp": 2}, "pp-flux"),
    ("gemma4_vl_26b_sft_config", {"recompute": Recompute(granularity="selective", modules=("layernorm",))}, "rc-gemma4"),
    ("exaone45_vl_33b_sft_config", {"recompute": Recompute(granularity="full", method="uniform", num_layers=3)}, "rc-exaone45"),
)  # fmt: skip
"""A recipe, what of it is changed, and the rule that refuses it."""


@pytest.mark.parametrize(("name", "changes", "rule"), MODELS)
def test_a_model_is_refused_what_its_files_in_bridge_cannot_do(name: str, changes: dict[str, Any], rule: str) -> None:
    ours = {k: changes[k] for k in ("seq_length", "packing") if k in changes}
    recipe = replace(catalog.recipe(name), **ours)
    assert rule in broken(llama(**{k: v for k, v in changes.items() if k not in ours}), recipe)
    assert rule not in broken(llama(), recipe)


SAYS = {
    "models/gemma_vl/gemma3_vl_provider.py": "Gemma 3 VL does not support context parallelism",
    "models/gemma/gemma2_provider.py": "Context parallelism is only supported by TEDotProductAttention",
    "models/gemma/gemma4_provider.py": "Gemma4DenseProvider currently supports PP=1 only",
    "models/qwen_omni/qwen3_omni_step.py": "must be divisible by TP*CP*2",
    "models/qwen_vl/modelling_qwen3_vl/model.py": "the deepstack_visual_embeds should on the first pp-stage",
    "training/llava_step.py": "require pipeline_model_parallel_size=1 and context_parallel_size=1",
}
SLICES = re.compile(r"slice_batch_for_context_parallel|get_batch_on_this_cp_rank|split_data_cp_rank|_split_on_cp_rank")
MODEL_FILES = {
    "gemma4": "models/gemma_vl/modeling_gemma4_vl.py",
    "glm4v_moe": "models/glm_vl/modeling_glm_45v.py",
    "kimi_k25": "models/kimi_vl/modeling_kimi_k25_vl.py",
    "minimax_m3_vl": "models/minimax_m3/modeling_minimax_m3_vl.py",
    "mistral3": "models/ministral3/modeling_ministral3.py",
    "qwen2_5_vl": "models/qwen_vl/modeling_qwen25_vl.py",
    "qwen2_audio": "models/qwen_audio/modeling_qwen2_audio.py",
    "qwen3_vl": "models/qwen_vl/modelling_qwen3_vl/model.py",
    "step3p7": "models/stepfun/modelling_step37/model.py",
    "flux": "diffusion/models/flux/flux_model.py",
}
"""Models whose own file has to cut the sequence for context parallelism, since their step does not."""


def _says_its_stage(file: Path) -> bool:
    """Whether a provider hands the number of the virtual stage on to every model that it builds."""
    builds = [
        f for c in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(c, ast.ClassDef)
        for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "provide"
    ]  # fmt: skip
    assert builds, file
    return all(any(isinstance(n, ast.Name) and n.id == "vp_stage" for n in ast.walk(f)) for f in builds)


DROP_THE_STAGE = {
    "models/model_provider.py", "models/megatron_mimo/megatron_mimo_provider.py",  # abstract, and of its own grid
    "models/nemotron_omni/nemotron_omni_provider.py", "models/nemotron_vl/nemotron_vl_provider.py",  # hybrids: never interleaved
    "models/qwen_omni/qwen25_omni_provider.py", "models/qwen3_asr/qwen3_asr_provider.py",  # without a recipe
    "diffusion/models/flux/flux_provider.py",  # never staged
}  # fmt: skip


@pytest.mark.bridge
def test_no_other_provider_of_the_installed_bridge_drops_the_virtual_stage() -> None:
    root = _bridge()
    found = {
        str(file.relative_to(root)) for file in root.rglob("*provider.py")
        if "def provide(" in file.read_text(encoding="utf-8") and not _says_its_stage(file)
    }  # fmt: skip
    assert found - DROP_THE_STAGE == {f.removeprefix("bridge/") for f in UNSTAGED.values()}


def _bridge() -> Path:
    need(BRIDGE, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    ask = "import importlib.util as u; print(u.find_spec('megatron.bridge').submodule_search_locations[0])"
    return Path(subprocess.run([BRIDGE, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())


@pytest.mark.bridge
def test_the_installed_bridge_still_refuses_and_still_leaves_uncut_what_the_rules_say() -> None:
    root = _bridge()
    assert {f: says in (root / f).read_text(encoding="utf-8") for f, says in SAYS.items()} == dict.fromkeys(SAYS, True)
    for step in ("training/vlm_step.py", "training/audio_lm_step.py", "diffusion/models/flux/flux_step.py"):
        assert not SLICES.search((root / step).read_text(encoding="utf-8")), step
    uncut = {kind for kind, f in MODEL_FILES.items() if not SLICES.search((root / f).read_text(encoding="utf-8"))}
    assert uncut == set(UNSLICED)

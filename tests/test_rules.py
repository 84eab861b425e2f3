"""Megatron's rules: published layouts keep them, broken ones are refused by the rule that is known to be broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch import catalog
from parlaunch.datasheet import preset, product_names
from parlaunch.evidence import layout_of
from parlaunch.layout import FULL_RECOMPUTE, Layout, Recompute
from parlaunch.rates import Rates, rates_of
from parlaunch.recipe import Features, Recipe
from parlaunch.rules import RULES, fewest_gpus, violations, why_not

LLAMA = catalog.recipe("llama3_8b_pretrain_8gpu_h100_bf16_config")
QWEN = catalog.recipe("qwen3_30b_a3b_pretrain_8gpu_gb200_bf16_config")
DEEPSEEK = catalog.recipe("deepseek_v3_pretrain_256gpu_gb200_bf16_config")
HYBRID = catalog.recipe("nemotronh_56b_pretrain_64gpu_h100_fp8cs_config")
H100 = rates_of(preset("dgx-h100", 8))
GB200 = rates_of(preset("gb200-nvl72", 64))
A100 = rates_of(preset("dgx-a100-80g", 1))
PUBLISHED: list[Mapping[str, Any]] = [r for r in catalog.load("evidence.json")["rows"] if "tokens" not in r]
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
    if feasible:
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


def test_the_deepseek_layout_of_these_tests_is_legal() -> None:
    assert broken(deepseek(), replace(DEEPSEEK, features=Features()), GB200) == set()


def test_hybrid_models_are_not_interleaved() -> None:
    layout = Layout(world=64, tp=8, pp=2, vp=2, global_batch_size=192)
    assert "pp-hybrid-bridge" in broken(layout, HYBRID)


def test_fp4_needs_a_gpu_that_has_it() -> None:
    recipe = replace(LLAMA, precision="nvfp4")
    assert "prec-gpu" in broken(llama(), recipe, H100)
    assert "prec-gpu" not in broken(llama(), recipe, GB200)
    assert "prec-gpu" in broken(llama(world=8), replace(LLAMA, precision="fp8cs"), A100)


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
        assert violations(Layout(world=rates.world_size, global_batch_size=128), LLAMA, rates) == ()

"""Megatron Bridge's published guide: each of its layouts is legal, and a plan on the same machine is no worse by our estimate.

pytest tests/planning/test_guide.py -s    prints both side by side
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate, Plan, Wishes
from parlaunch.planning.planner import plan
from parlaunch.planning.preference import YIELDS
from parlaunch.planning.search import Search, kind_of
from parlaunch.rules import violations

# (row of the guide, recipe, GPUs, sizes as the guide writes them). Where it gives a range, both ends stand here.
ROWS: list[tuple[str, str, int, dict[str, int]]] = [
    ("below 1B: DP", "qwen3_600m_pretrain_1gpu_h100_bf16_config", 8, {}),
    ("1-10B: TP 2, DP", "llama3_8b_pretrain_8gpu_h100_bf16_config", 16, {"tp": 2}),
    ("1-10B: TP 4, DP", "llama3_8b_pretrain_8gpu_h100_bf16_config", 8, {"tp": 4}),
    ("10-70B: TP 4, PP 4, DP", "llama3_70b_pretrain_64gpu_h100_bf16_config", 64, {"tp": 4, "pp": 4}),
    ("10-70B: TP 8, PP 2, DP", "llama3_70b_pretrain_64gpu_h100_bf16_config", 64, {"tp": 8, "pp": 2}),
    ("70-175B: TP 8, PP 4, DP", "gpt3_175b_pretrain_32gpu_h100_bf16_config", 128, {"tp": 8, "pp": 4}),
    ("70-175B: TP 8, PP 8, DP", "gpt3_175b_pretrain_32gpu_h100_bf16_config", 256, {"tp": 8, "pp": 8}),
    ("175-500B: TP 8, PP 8, CP 2", "llama31_405b_pretrain_512gpu_h100_bf16_config", 512, {"tp": 8, "pp": 8, "cp": 2}),
    ("175-500B: TP 8, PP 16, CP 2", "llama31_405b_pretrain_1024gpu_h100_bf16_config", 1024, {"tp": 8, "pp": 16, "cp": 2}),
    ("OLMoE 7B: EP 8", "olmoe_7b_pretrain_8gpu_h100_bf16_config", 8, {"ep": 8}),
    ("Moonlight 16B: TP 2, EP 8", "moonlight_16b_pretrain_8gpu_h100_bf16_config", 8, {"tp": 2, "ep": 8}),
    ("DeepSeek-V2: PP 4, EP 32", "deepseek_v2_pretrain_128gpu_h100_bf16_config", 128, {"pp": 4, "ep": 32}),
    ("GLM-4.5 Air: PP 4, EP 8", "glm45_air_106b_pretrain_32gpu_h100_bf16_config", 32, {"pp": 4, "ep": 8}),
    ("Qwen3 30B-A3B: TP 4, PP 2, EP 4", "qwen3_30b_a3b_pretrain_8gpu_h100_bf16_config", 8, {"tp": 4, "pp": 2, "ep": 4}),
    ("GLM-4.5: TP 2, PP 8, EP 16", "glm45_355b_pretrain_128gpu_h100_bf16_config", 128, {"tp": 2, "pp": 8, "ep": 16}),
    (
        "Qwen3 235B: TP 4, PP 16, EP 8, CP 2", "qwen3_235b_a22b_pretrain_256gpu_h100_bf16_config", 256,
        {"tp": 4, "pp": 16, "ep": 8, "cp": 2},
    ),
    (
        "DeepSeek-V3: TP 2, PP 16, EP 64", "deepseek_v3_pretrain_256gpu_h100_bf16_32nodes_config", 1024,
        {"tp": 2, "pp": 16, "ep": 64},
    ),
    ("Kimi-K2: TP 2, PP 16, EP 32", "kimi_k2_pretrain_1024gpu_h100_bf16_config", 1024, {"tp": 2, "pp": 16, "ep": 32}),
]  # fmt: skip
"""The guide runs DeepSeek-V3 with these sizes on 256 GPUs, where PP 16 · EP 64 does not go (it needs 1,024)."""


@cache
def ours(name: str, gpus: int) -> Plan:
    return plan(preset("dgx-h100", gpus // 8), catalog.recipe(name), Wishes(evidence=False, top=2))


def of_the_guide(recipe: Recipe, gpus: int, sizes: dict[str, int]) -> tuple[Layout, Candidate]:
    """The guide's sizes with the micro batch, VP, split and recomputation that serve them best; in their leanest form when
    nothing makes them fit."""
    pins = {"tp": 1, "pp": 1, "cp": 1, "ep": 1} | sizes
    rates = rates_of(preset("dgx-h100", gpus // 8))
    search = Search(recipe, rates, Wishes(**pins))  # type: ignore[arg-type]
    found = search.run(keep=1, sizes=(gpus,))
    if found.ranked:
        return found.ranked[0].layout, found.ranked[0]
    leanest = search.least(keep=1, sizes=(gpus,)).closest
    assert leanest is not None, "no form of the guide's sizes is legal"
    return leanest[0], search.candidate(leanest[0])


@pytest.mark.parametrize(("row", "name", "gpus", "sizes"), ROWS, ids=[r[0] for r in ROWS])
def test_the_guide_holds(row: str, name: str, gpus: int, sizes: dict[str, int]) -> None:
    recipe = catalog.recipe(name)
    layout, theirs = of_the_guide(recipe, gpus, sizes)
    assert violations(layout, recipe, rates_of(preset("dgx-h100", gpus // 8))) == ()
    made = ours(name, gpus)
    print("\n" + "\n".join(_lines(row, gpus, theirs, made.chosen)))
    assert made.chosen.memory.fits
    if theirs.memory.fits:
        assert made.chosen.estimate.iteration_time_s <= theirs.estimate.iteration_time_s * (1 + YIELDS[kind_of(recipe)])


def _lines(row: str, gpus: int, theirs: Candidate, mine: Candidate) -> Iterator[str]:
    yield f"{row} on {gpus} H100"
    for who, c in (("guide", theirs), ("ours", mine)):
        fits = "" if c.memory.fits else ", does not fit"
        yield f"  {who:<6}{c.layout}: {c.estimate.iteration_time_s:.3g} s, {c.memory.peak / 2**30:.0f} GiB{fits}"


def test_tensor_parallelism_stays_inside_the_node() -> None:
    for _, name, gpus, _ in ROWS:
        assert ours(name, gpus).layout.tp <= 8


def test_sequence_parallelism_comes_with_tensor_parallelism() -> None:
    for _, name, gpus, _ in ROWS:
        layout = ours(name, gpus).layout
        assert layout.sequence_parallel == (layout.tp > 1)


@pytest.mark.parametrize(("seq", "most"), [(2048, 1), (4096, 4), (131072, 64)])
def test_context_parallelism_follows_the_sequence(seq: int, most: int) -> None:
    recipe = replace(catalog.recipe("llama3_8b_pretrain_8gpu_h100_bf16_config"), seq_length=seq, global_batch_size=64)
    layout = plan(preset("dgx-h100", 8), recipe, Wishes(evidence=False)).layout
    assert layout.cp <= most
    assert seq < 65536 or layout.cp > 1


def test_expert_parallelism_is_for_experts_only() -> None:
    for _, name, gpus, _ in ROWS:
        if not catalog.recipe(name).architecture.num_moe_experts:
            assert ours(name, gpus).layout.ep == 1


def test_the_sanity_check_of_the_guide_is_legal() -> None:
    recipe = replace(catalog.recipe("llama32_1b_pretrain_config"), global_batch_size=8)
    rates = rates_of(preset("hgx-a100-4"))
    layout = Layout(world=4, tp=2, pp=2, global_batch_size=8)
    assert violations(layout, recipe, rates) == ()
    assert (layout.dp, layout.sequence_parallel) == (1, True)

"""The search finds what a visit to every layout finds, and its bounds hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.paces import SplitPace
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.search import Search, grid_of
from parlaunch.planning.space import (
    cp_sizes,
    cuts,
    divisors,
    exchange,
    expert_sizes,
    interleavings,
    micro_batches,
    module_sets,
    recomputes,
    splits,
    stage_counts,
    tp_sizes,
    worlds,
)
from parlaunch.rules import why_not

LLAMA = catalog.recipe("llama3_8b_pretrain_8gpu_h100_bf16_config")
EIGHT_B_FP8 = catalog.recipe("llama3_8b_pretrain_8gpu_h100_fp8cs_config")
SMALL = replace(LLAMA, global_batch_size=16)
MOE = replace(catalog.recipe("qwen3_30b_a3b_pretrain_8gpu_gb200_bf16_config"), global_batch_size=16)
BIG = replace(catalog.recipe("llama3_70b_pretrain_64gpu_h100_bf16_config"), global_batch_size=16)
LONG = replace(catalog.recipe("glm52_sft_192gpu_gb200_bf16_128k_config"), global_batch_size=56)


@cache
def machine(name: str, nodes: int = 1) -> Rates:
    return rates_of(preset(name, nodes))


# Pins keep the space small enough to visit, and each leaves other sizes free.
SPACES = [
    ("dense, one node", SMALL, "dgx-h100", 1, Wishes()),
    ("dense, short of memory", SMALL, "dgx-a100-40g", 1, Wishes(cp=1)),
    ("dense, four nodes, TP fixed", BIG, "dgx-h100", 4, Wishes(tp=8, cp=1)),
    ("experts, one tray", MOE, "gb200-nvl72", 1, Wishes(cp=1)),
    ("experts, two boards", MOE, "dgx-h100", 2, Wishes(cp=1, tp=1)),
    ("experts, and nothing fits", MOE, "dgx-h100", 1, Wishes(cp=1, tp=1)),
    ("nothing recomputed", SMALL, "dgx-h100", 1, Wishes(recompute=Recompute())),
    ("everything recomputed", SMALL, "dgx-a100-40g", 1, Wishes(recompute=FULL_RECOMPUTE, cp=1)),
    ("the split that is leanest recomputed is not with less", LONG, "gb200-nvl72", 48, Wishes(tp=1, pp=6, cp=32, ep=32)),
    ("interleaving fixed", SMALL, "dgx-h100", 1, Wishes(vp=4)),
]  # fmt: skip


def layouts(recipe: Recipe, rates: Rates, wishes: Wishes, world: int) -> Iterator[Layout]:
    """Every legal layout of the space on `world` GPUs, one by one: millions for a large machine."""
    fsdp = recipe.features.fsdp if wishes.fsdp is None else wishes.fsdp
    gbs = recipe.global_batch_size
    for tp in tp_sizes(recipe, rates, wishes, world):
        for cp in cp_sizes(recipe, wishes, world):
            for pp in stage_counts(recipe, wishes, world, fsdp):
                if world % (tp * cp * pp):
                    continue
                dp = world // (tp * cp * pp)
                if gbs % dp:
                    continue
                for ep, etp in expert_sizes(recipe, rates, wishes, world):
                    for mbs in micro_batches(recipe, wishes, gbs // dp, recipe.seq_length // cp):
                        for vp in interleavings(recipe, wishes, pp, gbs // dp // mbs):
                            for split in cuts(recipe.architecture, wishes, pp, vp):
                                chunk = max(split) if split else len(recipe.architecture.layers()) // (pp * (vp or 1))
                                for again in recomputes(recipe, wishes, chunk):
                                    layout = Layout(
                                        world=world, tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs,
                                        global_batch_size=gbs, recompute=again, fsdp=fsdp,
                                        cp_comm_type=exchange(recipe, wishes, cp), layers_per_chunk=split,
                                    )  # fmt: skip
                                    if why_not(layout, recipe, rates) is None:
                                        yield layout


@pytest.mark.parametrize(("recipe", "name", "nodes", "wishes"), [s[1:] for s in SPACES], ids=[s[0] for s in SPACES])
def test_the_search_loses_nothing_against_a_visit_to_every_layout(
    recipe: Recipe, name: str, nodes: int, wishes: Wishes
) -> None:
    loses_nothing(recipe, machine(name, nodes), wishes)


PACES = (SplitPace(1, 2, 1, 0.8), SplitPace(1, 1, 1, 1.1), SplitPace(2, 1, 2, 1.3), SplitPace(2, 4, 1, 0.7))


@pytest.mark.parametrize("paces", [PACES, PACES[1:3]])
def test_nor_where_splits_have_paces_of_their_own(paces: tuple[SplitPace, ...]) -> None:
    loses_nothing(SMALL, replace(machine("dgx-h100"), splits=paces), Wishes(cp=1))


def loses_nothing(recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
    seen, best = 0, float("inf")
    for layout in layouts(recipe, rates, wishes, rates.world_size):
        seen += 1
        if estimate_memory(recipe, layout, rates, headroom=wishes.headroom).fits:
            best = min(best, estimate_time(recipe, layout, rates).iteration_time_s)
    found = Search(recipe, rates, wishes).run(sizes=(rates.world_size,))
    assert seen > 20
    fastest = found.ranked[0].estimate.iteration_time_s if found.ranked else float("inf")
    assert fastest == pytest.approx(best, rel=1e-9)
    # Where nothing fits, what Megatron refuses is weighed as well: it may be what fits.
    assert found.legal < seen or not found.ranked


@settings(max_examples=60)
@given(data=st.data())
def test_no_layout_beats_the_bound_of_its_sizes(data: st.DataObject) -> None:
    recipe, name, nodes = data.draw(
        st.sampled_from([(LLAMA, "dgx-h100", 2), (MOE, "gb200-nvl72", 4), (BIG, "dgx-h100", 4)])
    )
    rates = replace(machine(name, nodes), splits=data.draw(st.sampled_from([(), PACES])))
    search = Search(recipe, rates, Wishes())
    node = data.draw(st.sampled_from([n for _, n in search.nodes(rates.world_size)][::7]))
    _, base = data.draw(st.sampled_from(list(search.bases(node))))
    layout = replace(base, recompute=data.draw(st.sampled_from(_some_recomputes(recipe))))
    seconds = estimate_time(recipe, layout, rates).iteration_time_s
    assert search.bound(layout) <= seconds * (1 + 1e-9)


@settings(max_examples=60)
@given(data=st.data())
def test_recomputing_more_never_needs_more_memory_or_less_time(data: st.DataObject) -> None:
    recipe, name = data.draw(st.sampled_from([(LLAMA, "dgx-h100"), (MOE, "gb200-nvl72")]))
    rates = machine(name)
    search = Search(recipe, rates, Wishes())
    node = data.draw(st.sampled_from([n for _, n in search.nodes(rates.world_size, everything=True)][::5]))
    _, base = data.draw(st.sampled_from(list(search.bases(node))))
    sets = module_sets(recipe.architecture)
    less = data.draw(st.sampled_from(sets))
    more = data.draw(st.sampled_from([s for s in sets if set(less) <= set(s)]))
    some, all_of_it = (replace(base, recompute=Recompute(granularity="selective", modules=m)) for m in (less, more))
    # What a layer needs again while its backward pass runs grows by a hair.
    assert search.memory(all_of_it).peak <= search.memory(some).peak * 1.01
    assert search.memory(some).peak <= search.memory(base).peak * 1.01
    assert estimate_time(recipe, base, rates).iteration_time_s <= estimate_time(
        recipe, some, rates
    ).iteration_time_s * (1 + 1e-9)


def _some_recomputes(recipe: Recipe) -> list[Recompute]:
    sets = module_sets(recipe.architecture)
    return [Recompute(), FULL_RECOMPUTE, *(Recompute(granularity="selective", modules=s) for s in sets[:4])]


def test_the_same_question_gets_the_same_answer() -> None:
    rates = machine("dgx-h100", 2)
    one, other = (Search(BIG, rates, Wishes()).run() for _ in range(2))
    assert [c.layout for c in one.ranked] == [c.layout for c in other.ranked]


def test_alternatives_differ_in_more_than_details() -> None:
    found = Search(LLAMA, machine("dgx-h100", 2), Wishes()).run(keep=6)
    grids = [grid_of(c.layout) for c in found.ranked]
    assert len(set(grids)) == len(grids) == 6


def test_everything_found_is_legal_and_fits() -> None:
    for recipe, rates in ((LLAMA, machine("dgx-h100")), (MOE, machine("gb200-nvl72", 4))):
        for c in Search(recipe, rates, Wishes()).run().ranked:
            assert why_not(c.layout, recipe, rates) is None
            assert c.memory.fits


def test_the_leanest_layout_needs_no_more_than_the_fastest() -> None:
    rates = machine("dgx-h100", 4)
    fastest = Search(BIG, rates, Wishes()).run().ranked[0]
    leanest = Search(BIG, rates, Wishes()).least()
    assert leanest.ranked[0].memory.peak <= fastest.memory.peak
    peaks = [c.memory.peak for c in leanest.ranked]
    assert peaks == sorted(peaks)


def test_tensor_parallelism_stays_inside_the_nvlink_domain() -> None:
    assert tp_sizes(LLAMA, machine("dgx-h100", 4), Wishes(), 32) == (1, 2, 4, 8)
    assert tp_sizes(LLAMA, machine("gb200-nvl72", 8), Wishes(), 32)[-1] == 32
    assert tp_sizes(LLAMA, machine("l40s-pcie-8"), Wishes(), 8) == (1, 2, 4, 8)
    assert tp_sizes(LLAMA, machine("dgx-h100", 4), Wishes(tp=16), 32) == (16,)


@given(pp=st.integers(1, 16), vp=st.one_of(st.none(), st.integers(2, 8)))
def test_splits_hold_all_layers_and_megatron_takes_them(pp: int, vp: int | None) -> None:
    for recipe in (LLAMA, MOE, catalog.recipe("deepseek_v3_pretrain_256gpu_gb200_bf16_config")):
        layers = len(recipe.architecture.layers())
        for split in splits(recipe.architecture, pp, vp if pp > 1 else None):
            parts = pp * (vp or 1) if pp > 1 else 1
            if split is None:
                assert layers % parts == 0
            else:
                assert len(split) == parts
                assert sum(split) == layers
                assert min(split[1:-1], default=1) >= 1


def test_a_heavy_output_layer_may_leave_the_last_stage_with_what_equal_stages_leave_over() -> None:
    deepseek = catalog.recipe(
        "deepseek_v3_pretrain_256gpu_gb200_bf16_config"
    ).architecture  # 61 layers, MTP on the last stage
    assert (*(4,) * 15, 1) in splits(deepseek, 16, None)


def test_embedding_and_output_layer_may_be_virtual_stages_of_their_own() -> None:
    """NVIDIA's layout of Llama 3.1 405B: 126 layers and these two in 128 virtual stages."""
    recipe = catalog.recipe("llama31_405b_pretrain_256gpu_gb200_fp8mx_config")
    assert interleavings(recipe, Wishes(), 16, 384)[-1] == 8
    assert splits(recipe.architecture, 16, 8) == ((0, *(1,) * 126, 0),)
    (found,) = Search(recipe, machine("gb200-nvl72", 64), Wishes(tp=4, pp=16, cp=1)).run(keep=1).ranked
    assert found.layout.vp == 8
    assert found.memory.fits


def test_a_block_recomputes_no_layer_more_than_it_must() -> None:
    """NVIDIA recomputes five of the 32 layers here."""
    rates = machine("dgx-h100")
    wishes = Wishes(tp=1, pp=1, cp=1, micro_batch_size=1)
    (found,) = Search(EIGHT_B_FP8, rates, wishes).run(keep=1).ranked
    assert found.layout.recompute.method == "block"
    assert found.memory.fits
    n = found.layout.recompute.num_layers or 0
    less = replace(found.layout, recompute=Recompute(granularity="full", method="block", num_layers=n - 1))
    assert not estimate_memory(EIGHT_B_FP8, less, rates, headroom=wishes.headroom).fits


def test_worlds_are_whole_nodes_and_the_whole_allocation_comes_first() -> None:
    assert worlds(machine("dgx-h100")) == (8, 7, 6, 5, 4, 3, 2, 1)
    four = worlds(machine("dgx-h100", 4))
    assert four[:4] == (32, 24, 16, 8)
    large = worlds(replace(machine("gb200-nvl72", 16), world_size=4 * 4096))
    assert large[0] == 16384
    assert len(large) < 80


def test_divisors_are_all_of_them() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(1) == (1,)


def test_fewer_gpus_are_used_when_a_batch_does_not_spread_over_all() -> None:
    recipe = replace(LLAMA, global_batch_size=4, seq_length=2048)
    found = Search(recipe, machine("dgx-h100"), Wishes(tp=1, pp=1, cp=1)).run()
    assert found.ranked[0].layout == Layout(
        world=4, global_batch_size=4, micro_batch_size=1, recompute=found.ranked[0].layout.recompute
    )

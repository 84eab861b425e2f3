"""What a plan answers: the layout, the reasons, the refusals, and errors that say what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import frontier, plan, why_not
from parlaunch.planning.preference import YIELDS
from parlaunch.planning.reasons import LOW_MFU
from parlaunch.planning.search import Search, nearest_worlds
from parlaunch.rules import why_not as rule_broken
from parlaunch.switches.wanted import Wanted

ONE_B = catalog.recipe("llama32_1b_pretrain_config")
EIGHT_B = catalog.recipe("llama3_8b_pretrain_8gpu_h100_bf16_config")
SEVENTY_B = catalog.recipe("llama3_70b_pretrain_64gpu_h100_bf16_config")
DEEPSEEK = catalog.recipe("deepseek_v3_pretrain_256gpu_gb200_bf16_config")
QWEN = catalog.recipe("qwen3_30b_a3b_pretrain_config")
H100 = preset("dgx-h100", 1)
EIGHT_H100 = preset("dgx-h100", 8)


def refused(cluster: Cluster, recipe: Recipe, **wishes: Any) -> ParlaunchError:
    with pytest.raises(ParlaunchError) as caught:
        plan(cluster, recipe, Wishes(**wishes))
    return caught.value


@pytest.mark.parametrize(
    ("recipe", "cluster"),
    [(ONE_B, H100), (EIGHT_B, H100), (SEVENTY_B, EIGHT_H100), (DEEPSEEK, preset("gb200-nvl72", 64))],
    ids=["1B", "8B", "70B", "DeepSeek-V3"],
)  # fmt: skip
def test_a_plan_is_legal_fits_and_gives_three_to_six_reasons_with_numbers(recipe: Recipe, cluster: Cluster) -> None:
    made = plan(cluster, recipe, Wishes())
    assert rule_broken(made.layout, recipe, rates_of(cluster)) is None
    assert made.chosen.memory.fits
    assert 3 <= len(made.because) <= 7
    assert all(any(c.isdigit() for c in sentence) and sentence.endswith(".") for sentence in made.because)
    assert 1 <= len(made.alternatives) <= 5
    for other in made.alternatives:
        assert other.layout != made.layout
        assert rule_broken(other.layout, recipe, rates_of(cluster)) is None
    assert (made.argv, made.overrides) == ((), ())
    assert not made.environment


@pytest.mark.parametrize(
    ("recipe", "machine", "changes", "pins", "said"),
    [
        (SEVENTY_B, "dgx-h100:16", {"global_batch_size": 16}, {"pp": 16, "vp": 1, "cp": 1, "tp": 4}, "a batch of 16 on 128 GPUs leaves 8 micro batches for 16 stages"),
        (QWEN, "dgx-h100:2", {}, {}, "with experts 768 wide"),
        (ONE_B, "dgx-h100:32", {"global_batch_size": 512, "seq_length": 1024}, {"tp": 1, "pp": 1}, "2,048 tokens at a time"),
        (EIGHT_B, "l40s-pcie-8:4", {"global_batch_size": 32}, {"tp": 8, "pp": 1}, "TP communication takes"),
        (EIGHT_B, "l40s-pcie-8:16", {"global_batch_size": 128, "seq_length": 1024}, {"tp": 1, "pp": 2, "cp": 1}, "tokens a GPU, and DP traffic takes"),
    ],
)  # fmt: skip
def test_a_low_mfu_says_first_what_the_time_goes_to(
    recipe: Recipe, machine: str, changes: dict[str, Any], pins: dict[str, Any], said: str
) -> None:
    name, _, nodes = machine.partition(":")
    made = plan(preset(name, int(nodes)), replace(recipe, **changes), Wishes(evidence=False, **pins))
    slow = [sentence for sentence in made.because if sentence.startswith("MFU ")]
    assert (made.chosen.estimate.mfu < LOW_MFU) == bool(slow)
    assert said in slow[0]


def test_a_fast_plan_makes_no_excuse() -> None:
    made = plan(EIGHT_H100, SEVENTY_B, Wishes())
    assert made.chosen.estimate.mfu > LOW_MFU
    assert not any(sentence.startswith("MFU ") for sentence in made.because)


def test_the_choice_is_the_fastest_or_one_that_the_model_cannot_tell_from_it() -> None:
    for recipe, cluster, band in (
        (SEVENTY_B, EIGHT_H100, YIELDS["dense"]),
        (DEEPSEEK, preset("gb200-nvl72", 64), YIELDS["experts"]),
    ):
        made = plan(cluster, recipe, Wishes(evidence=False))
        fastest = Search(recipe, rates_of(cluster), Wishes()).run().ranked[0].estimate.iteration_time_s
        assert fastest <= made.chosen.estimate.iteration_time_s <= fastest * (1 + band + 1e-9)


def test_a_near_tie_is_named_with_what_decided_it() -> None:
    made = plan(
        preset("dgx-h100", 16), catalog.recipe("gpt3_175b_pretrain_32gpu_h100_bf16_config"), Wishes(evidence=False)
    )
    said = "faster by our estimate, which cannot tell layouts within 3.0% apart: this one has less"
    assert any(said in sentence for sentence in made.because)


@pytest.mark.parametrize(
    ("name", "tokens", "packs"),
    [("wan_14b_pretrain_32gpu_h100_bf16_config", 37_440, True), ("flux_12b_pretrain_config", 4_608, False)],
)
def test_a_diffusion_recipe_is_planned_for_the_tokens_of_its_data(name: str, tokens: int, packs: bool) -> None:
    recipe = catalog.recipe(name)
    assert recipe.seq_length == tokens
    recipe, cluster = replace(recipe, global_batch_size=64), preset("dgx-h100", 4)
    made = plan(cluster, recipe, Wishes())
    assert any(w.startswith(f"assumed: {tokens:,} tokens a sample") for w in made.warnings)
    two = replace(made.layout, micro_batch_size=2, pp=1, vp=None, layers_per_chunk=None)
    assert bool(rule_broken(two, recipe, rates_of(cluster))) == packs
    said = catalog.recipe("wan_1_3b_text2video_pretrain_config")  # this one says it, and nothing is assumed
    assert said.seq_length == 43_008
    assert not any(
        "tokens a sample" in w for w in plan(cluster, replace(said, global_batch_size=64), Wishes()).warnings
    )


def test_planning_twice_gives_the_same_plan() -> None:
    assert plan(EIGHT_H100, SEVENTY_B, Wishes()) == plan(EIGHT_H100, SEVENTY_B, Wishes())


@pytest.mark.parametrize(
    "pins",
    [{"tp": 2}, {"pp": 2}, {"cp": 2}, {"tp": 2, "pp": 2}, {"micro_batch_size": 1}, {"recompute": FULL_RECOMPUTE}, {"pp": 2, "vp": 4}],
    ids=str,
)  # fmt: skip
def test_pins_are_kept(pins: dict[str, Any]) -> None:
    layout = plan(H100, ONE_B, Wishes(**pins)).layout
    for name, value in pins.items():
        assert getattr(layout, name) == value


def test_no_interleaving_can_be_pinned() -> None:
    assert plan(H100, ONE_B, Wishes(pp=2, vp=1)).layout.vp is None


def test_with_every_size_pinned_the_layout_is_evaluated_though_it_does_not_fit() -> None:
    made = plan(EIGHT_H100, SEVENTY_B, Wishes(tp=1, pp=1, cp=1, micro_batch_size=1, recompute=NO_RECOMPUTE))
    assert not made.chosen.memory.fits
    assert (made.layout.tp, made.layout.pp, made.layout.dp) == (1, 1, 64)
    assert made.chosen.estimate.iteration_time_s > 0


def test_the_memory_objective_takes_less_memory_than_the_time_objective() -> None:
    fast = plan(H100, EIGHT_B, Wishes(evidence=False)).chosen
    lean = plan(H100, EIGHT_B, Wishes(objective="memory")).chosen
    assert lean.memory.peak < fast.memory.peak
    assert lean.estimate.iteration_time_s > fast.estimate.iteration_time_s


def test_headroom_leaves_that_share_free() -> None:
    made = plan(H100, EIGHT_B, Wishes(headroom=0.3)).chosen
    assert made.memory.peak <= 0.7 * made.memory.capacity


def test_what_would_leave_the_allocator_too_little_is_chosen_only_where_nothing_runs_at_speed() -> None:
    wishes = Wishes(headroom=0.0, evidence=False)
    free = plan(H100, EIGHT_B, wishes).chosen
    full = replace(rates_of(H100), memory_bytes=free.memory.peak + 2**28)  # a quarter of a GiB is left of it
    other = plan(H100, EIGHT_B, wishes, rates=full).chosen
    assert other.memory.at_speed
    assert other.layout != free.layout
    x = free.layout
    pins = replace(
        wishes, tp=x.tp, pp=x.pp, vp=x.vp or 1, cp=x.cp, micro_batch_size=x.micro_batch_size, recompute=x.recompute
    )
    pinned = plan(H100, EIGHT_B, pins, rates=full)
    assert (pinned.layout, pinned.chosen.memory.fits, pinned.chosen.memory.at_speed) == (x, True, False)
    (said,) = (w for w in pinned.warnings if w.startswith("crowded: "))
    assert "0.2 GiB that it leaves free" in said
    assert "--recompute full" in said
    assert not any(w.startswith("tight: ") for w in pinned.warnings)
    # What does not fit is said not to, as ever.
    assert not any(
        w.startswith("crowded: ") for w in plan(H100, EIGHT_B, replace(pins, headroom=0.2), rates=full).warnings
    )
    sizes = {"tp": x.tp, "pp": x.pp, "vp": x.vp or 1, "cp": x.cp, "micro_batch_size": x.micro_batch_size}
    kept = why_not(plan(H100, EIGHT_B, wishes, rates=full), sizes, replace(wishes, recompute=x.recompute))
    assert "keeps what it frees" in kept


def test_top_says_how_many_alternatives() -> None:
    assert len(plan(H100, ONE_B, Wishes(top=2)).alternatives) == 2
    assert plan(H100, ONE_B, Wishes(top=0)).alternatives == ()


def test_fsdp_is_there_when_wished() -> None:
    layout = plan(
        preset("gb300-nvl72", 16), replace(SEVENTY_B, precision="bf16"), Wishes(fsdp=True, evidence=False)
    ).layout
    assert layout.fsdp
    assert layout.pp == 1


@pytest.mark.parametrize(
    ("wishes", "said", "hint"),
    [
        ({"tp": 3}, "TP 3 does not divide the 64 attention heads", "TP must divide 64"),
        ({"tp": 8, "pp": 8, "cp": 2}, "64 GPUs do not divide into TP·PP·CP = 8·8·2 = 128", "128"),
        ({"ep": 2}, "has none", "--ep"),
        ({"cp": 3}, "CP 3 cuts a sequence into 6 chunks", "CP must divide"),
        ({"tp": 0}, "is not 1 or more", "leave it out"),
        ({"headroom": 1.5}, "no share of memory", "0.08"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else None,
)  # fmt: skip
def test_pins_that_cannot_be_are_refused_with_what_works(wishes: dict[str, Any], said: str, hint: str) -> None:
    error = refused(EIGHT_H100, SEVENTY_B, **wishes)
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    assert said in error.problem
    assert hint in error.hint


def test_a_batch_that_does_not_spread_names_batches_and_gpus_that_work() -> None:
    error = refused(EIGHT_H100, replace(EIGHT_B, global_batch_size=7), tp=1, pp=1, cp=1, micro_batch_size=2)
    assert isinstance(error, UsageError)
    assert "7" in error.problem
    assert error.hint == "nearest batches: 128; or a smaller micro batch"  # no number of GPUs makes two of seven
    assert nearest_worlds(replace(EIGHT_B, global_batch_size=24), 12, 1, 2) == (6, 4)


def test_an_odd_batch_leaves_gpus_idle_and_the_plan_says_so() -> None:
    made = plan(EIGHT_H100, replace(EIGHT_B, global_batch_size=7), Wishes(tp=1, pp=1, evidence=False))
    assert made.layout.world < 64
    assert any("stay idle" in w for w in made.warnings)


def test_a_template_without_sizes_asks_for_a_model() -> None:
    empty = replace(EIGHT_B, architecture=replace(EIGHT_B.architecture, num_layers=0))
    assert "--model-config" in refused(H100, empty).hint


def test_a_model_that_fits_nowhere_says_by_how_much_and_what_would_help() -> None:
    error = refused(H100, SEVENTY_B)
    assert isinstance(error, NoLayoutError)
    assert error.exit_code == 3
    assert "fits nowhere on 8 × H100 SXM" in error.problem
    assert "the optimizer takes most of it" in error.problem
    assert "more than the 73.3 GiB usable" in error.problem
    assert "nodes" in error.hint


def test_pins_that_keep_it_from_fitting_are_named_as_the_way_out() -> None:
    error = refused(EIGHT_H100, SEVENTY_B, recompute=NO_RECOMPUTE, tp=1, pp=2)
    assert isinstance(error, NoLayoutError)
    assert error.hint.startswith("without your sizes ")


def test_where_no_change_alone_makes_it_fit_several_at_once_are_tried() -> None:
    pinned = refused(EIGHT_H100, SEVENTY_B, recompute=NO_RECOMPUTE, tp=1, pp=1)
    assert "without your sizes" in pinned.hint
    many = refused(H100, DEEPSEEK, recompute=NO_RECOMPUTE, tp=1, pp=1)
    assert "without your sizes and recomputation 32 nodes (256 GPUs) are enough" in many.hint


def test_a_length_that_few_sizes_divide_is_answered_with_the_nearest_that_many_do() -> None:
    error = refused(H100, replace(EIGHT_B, seq_length=1_000_001))
    assert "few sizes divide 1000001 tokens: with --seq-length 999936 2 nodes (16 GPUs) are enough" in error.hint


def test_the_fewest_nodes_are_a_power_of_two_where_that_is_fewer_than_twice_as_many() -> None:
    long = replace(catalog.recipe("nemotron_3_super_peft_1gpu_h100_bf16_config"), seq_length=65536)
    assert refused(preset("rtx4090", 3), long).hint.startswith("4 nodes (32 GPUs) are enough")


GRAPHED = catalog.recipe("nemotron_3_nano_gb200_pretrain_config")
"""With CUDA graphs of single modules, and a batch that does not spread over a whole rack."""


def test_recomputation_that_the_user_wants_takes_the_place_of_switches_that_exclude_it() -> None:
    for nodes in (2, 18):
        made = plan(preset("gb200-nvl72", nodes), GRAPHED, Wishes(recompute=FULL_RECOMPUTE, switches=Wanted(auto=True)))
        assert made.layout.recompute.granularity == "full"
        assert ("graphs", "off") in [(s.name, s.value) for s in made.switches]
    small = refused(H100, GRAPHED, recompute=FULL_RECOMPUTE, switches=Wanted(auto=True))
    assert isinstance(small, NoLayoutError)  # for want of memory
    overlapped = catalog.recipe("qwen3_235b_a22b_pretrain_256gpu_h100_bf16_config")
    assert overlapped.features.ep_overlap
    assert isinstance(refused(H100, overlapped, recompute=FULL_RECOMPUTE, switches=Wanted(auto=True)), NoLayoutError)


def test_graphs_go_where_only_full_recomputation_fits() -> None:
    """The library's recipe with four times its length: nothing fits with what its graphs leave to recompute."""
    long = replace(QWEN, seq_length=32768)
    assert long.features.cuda_graph is not None
    made = plan(H100, long, Wishes(switches=Wanted(auto=True), evidence=False))
    assert made.layout.recompute.granularity == "full"
    assert ("graphs", "off") in [(s.name, s.value) for s in made.switches]
    assert made.chosen.memory.fits
    assert "with --switches graphs=off" in refused(H100, long, evidence=False).hint


def test_graphs_that_the_user_wants_beside_recomputation_are_named_as_the_trouble() -> None:
    error = refused(preset("gb200-nvl72", 18), GRAPHED, recompute=FULL_RECOMPUTE)
    assert "CUDA graphs of single modules exclude full recomputation" in error.problem
    assert "--switches graphs=off" in error.hint


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tp": 3}, "TP 3 does not divide the 32 attention heads"),
        ({"tp": 8, "pp": 2}, "8 GPUs do not divide into TP·PP·CP = 8·2·1 = 16"),
        ({"tp": 8}, "slower"),
        ({"tp": 1, "cp": 1, "micro_batch_size": 64}, "GiB of 73.3 GiB"),
    ],
    ids=str,
)  # fmt: skip
def test_why_not_answers_with_the_rule_the_memory_or_the_time(sizes: dict[str, int], said: str) -> None:
    made = plan(H100, ONE_B, Wishes())
    answer = why_not(made, sizes, Wishes())
    assert answer.endswith(".")
    assert said in answer


def test_why_not_names_where_the_time_goes() -> None:
    made = plan(H100, ONE_B, Wishes())
    assert "TP communication takes" in why_not(made, {"tp": 8}, Wishes())


def test_why_not_says_how_much_memory_is_missing() -> None:
    made = plan(EIGHT_H100, SEVENTY_B, Wishes())
    answer = why_not(made, {"tp": 1, "pp": 1}, Wishes())
    assert "GiB of 73.3 GiB" in answer


def test_the_frontier_is_legal_bounded_and_the_same_every_time() -> None:
    points = frontier(EIGHT_B, rates_of(H100), Wishes(), limit=40)
    assert 10 < len(points) <= 40
    assert points == frontier(EIGHT_B, rates_of(H100), Wishes(), limit=40)
    rates = rates_of(H100)
    assert all(rule_broken(p.layout, EIGHT_B, rates) is None for p in points)
    assert any(not p.memory.fits for p in points)


@pytest.mark.parametrize("name", ["llama3_8b_sft_8gpu_h100_bf16_config", "llama3_70b_peft_8gpu_h100_bf16_config"])
def test_fine_tuning_keeps_its_micro_batch(name: str) -> None:
    recipe = catalog.recipe(name)
    layout = plan(H100, recipe, Wishes(evidence=False)).layout
    assert layout.micro_batch_size == (recipe.defaults.micro_batch_size or 1)

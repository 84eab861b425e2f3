"""What decides between layouts whose times the model cannot tell apart."""

from __future__ import annotations

from dataclasses import replace
from math import log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.estimate.values import Memory
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.preference import CHARGES, YIELDS, charged, near_tie, preferred, worth_a_try
from parlaunch.planning.search import Search

QWEN = catalog.recipe("qwen3_235b_a22b_pretrain_256gpu_gb200_bf16_config")  # 128 experts
DENSE = catalog.recipe("llama3_70b_pretrain_64gpu_h100_bf16_config")
NVL72, HGX = rates_of(preset("gb200-nvl72", 64)), rates_of(preset("dgx-b200", 32))
EXPERTS = CHARGES["experts"]


def candidate(seconds: float = 10.0, **sizes: Any) -> Candidate:
    """A layout of Qwen3-235B on 256 GPUs with the memory it needs and a time that the test says."""
    sizes = {"world": 256, "pp": 8, "ep": 32, "micro_batch_size": 1, "global_batch_size": 8192} | sizes
    made = Search(QWEN, NVL72, Wishes()).candidate(Layout(**sizes))
    return replace(made, estimate=replace(made.estimate, iteration_time_s=seconds))


def test_a_layout_like_those_that_are_tuned_is_charged_for_its_room_alone() -> None:
    c = candidate()
    paid = {name: share for name, share in charged(c, QWEN, NVL72).items() if share}
    m = c.memory
    taken = m.weights + m.gradients + m.optimizer + m.buffers + m.runtime
    assert paid == {"room": pytest.approx(-EXPERTS.room * log2(1 - taken / m.capacity))}


def test_each_halving_of_the_room_for_activations_costs_the_same_and_what_fills_it_nothing() -> None:
    def paid(weights: int, activations: int) -> float:
        c = candidate()
        memory = Memory(
            weights=weights,
            gradients=0,
            optimizer=0,
            activations=activations,
            logits=0,
            buffers=0,
            runtime=0,
            capacity=64,
            limit=60,
        )
        return charged(replace(c, memory=memory), QWEN, NVL72)["room"]

    assert paid(0, 0) == paid(0, 60) == 0.0
    assert paid(32, 0) == paid(32, 20) == pytest.approx(EXPERTS.room)
    assert paid(48, 8) == pytest.approx(2 * EXPERTS.room)
    assert paid(70, 8) == pytest.approx(6 * EXPERTS.room)  # held no more: as if one byte were left


@pytest.mark.parametrize(
    ("sizes", "name", "share"),
    [
        ({"tp": 2}, "block", EXPERTS.block),
        ({"tp": 2, "cp": 4}, "block", 3 * EXPERTS.block),
        ({"ep": 8}, "narrowing", 2 * EXPERTS.narrowing),
        ({"ep": 64}, "narrowing", 0.0),  # two experts a GPU: no better than four, and not punished
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_what_a_size_costs(sizes: dict[str, Any], name: str, share: float) -> None:
    assert charged(candidate(**sizes), QWEN, NVL72)[name] == pytest.approx(share)


def test_eight_experts_in_an_nvlink_domain_of_eight_are_wide() -> None:
    assert charged(candidate(ep=8), QWEN, HGX)["narrowing"] == charged(candidate(ep=16), QWEN, HGX)["narrowing"] == 0.0


def test_a_dense_model_has_no_experts_to_pay_for() -> None:
    found = Search(DENSE, rates_of(preset("dgx-h100", 8)), Wishes())
    c = found.candidate(Layout(world=64, tp=8, pp=2, micro_batch_size=1, global_batch_size=512))
    paid = charged(c, DENSE, found.rates)
    assert paid == {"block": pytest.approx(3 * CHARGES["dense"].block), "narrowing": 0.0, "room": 0.0}


@given(st.lists(st.tuples(st.sampled_from([8, 16, 32, 64]), st.floats(1.0, 1.5)), min_size=1, max_size=8))
def test_the_choice_yields_little(drawn: list[tuple[int, float]]) -> None:
    ranked = [candidate(s, ep=ep) for ep, s in drawn]
    chosen = preferred(ranked, QWEN, NVL72)
    fastest = min(s for _, s in drawn)
    assert fastest <= chosen.estimate.iteration_time_s <= fastest * (1 + YIELDS["experts"])


def test_what_the_charges_outweigh_is_chosen_and_what_they_do_not_is_not() -> None:
    wide, narrow = candidate(10.0), candidate(10.0 / (1 + min(EXPERTS.narrowing, YIELDS["experts"])), ep=8)
    assert preferred([narrow, wide], QWEN, NVL72) is wide
    faster = candidate(10.0 / (1 + YIELDS["experts"] + 0.01), ep=8)
    assert preferred([faster, wide], QWEN, NVL72) is faster


def test_more_gpus_come_first_within_the_band() -> None:
    fewer = candidate(9.9, world=128)
    assert preferred([fewer, candidate(10.0, ep=8)], QWEN, NVL72).layout.world == 256
    (sentence,) = near_tie(candidate(10.0, ep=8), [fewer], QWEN, NVL72)
    assert sentence.endswith("this one uses more GPUs.")


def test_beside_the_choice_stand_the_best_of_other_grids_in_turn_charged_like_it() -> None:
    chosen, plain, narrow = candidate(10.0), candidate(10.4, pp=4), candidate(10.39, ep=16)
    others = [candidate(10.5, pp=4, micro_batch_size=2), narrow, plain]
    assert worth_a_try(chosen, others, QWEN, NVL72, 5) == [plain, narrow]  # EP 16 is charged, and of PP 4 one is shown
    assert worth_a_try(chosen, others, QWEN, NVL72, 1) == [plain]
    dear = worth_a_try(chosen, others, QWEN, NVL72, 5, more=lambda c: 0.2 * (c is plain))
    assert dear == [others[0], narrow]


def test_the_sentence_names_what_decided() -> None:
    chosen, fastest = candidate(10.0), candidate(9.7, ep=8, tp=2)
    (sentence,) = near_tie(chosen, [fastest, chosen], QWEN, NVL72)
    assert sentence == (
        f"{fastest.layout} is 3.0% faster by our estimate, which cannot tell layouts within 12% apart: "
        "this one has less tensor and context parallelism and spreads experts wider."
    )
    assert near_tie(chosen, [chosen, candidate(10.04, ep=8)], QWEN, NVL72) == ()

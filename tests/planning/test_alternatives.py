"""Which layouts are worth a try beside the choice, and in which turn."""

from __future__ import annotations

from math import erf, exp, log, pi, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog
from parlaunch.planning.alternatives import OWN, PART, Prospect, in_turn, prospect
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan

CHOICE = prospect(10.0, (8.0, 2.0, 0.0), 0.0)  # compute, all-to-all, bubble
shares = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).map(
    lambda parts: tuple(p / (sum(parts) or 1) for p in parts)
)
prospects = st.builds(Prospect, st.floats(0.0, 0.3), shares)


def test_of_equals_of_the_choices_kind_the_faster_is_tried_first() -> None:
    others = [prospect(seconds, (0.8 * seconds, 0.2 * seconds, 0.0), 0.0) for seconds in (10.4, 10.2, 10.3)]
    assert in_turn(CHOICE, others, 3) == [1, 2, 0]


def test_a_layout_of_another_kind_comes_before_a_faster_one_of_the_same() -> None:
    alike, other = prospect(10.2, (8.2, 2.0, 0.0), 0.0), prospect(10.6, (8.0, 0.4, 2.2), 0.0)
    assert in_turn(CHOICE, [alike, other], 2) == [1, 0]
    far = prospect(13.0, (8.0, 0.4, 4.6), 0.0)
    assert in_turn(CHOICE, [alike, far], 2) == [0, 1]


def test_what_was_tried_tells_of_what_is_like_it() -> None:
    bubbles, more, traffic = (
        prospect(10.5, (8.0, 0.4, 2.1), 0.0),
        prospect(10.65, (8.0, 0.4, 2.25), 0.0),
        prospect(10.8, (6.5, 4.3, 0.0), 0.0),
    )
    assert in_turn(CHOICE, [bubbles, more, traffic], 3) == [0, 2, 1]
    assert in_turn(CHOICE, [more, traffic], 2) == [0, 1]


def test_a_charge_counts_as_time() -> None:
    dear, cheap = prospect(10.2, (8.2, 2.0, 0.0), 0.05), prospect(10.3, (8.3, 2.0, 0.0), 0.0)
    assert dear.expected == pytest.approx(log(10.2 * 1.05))
    assert in_turn(CHOICE, [dear, cheap], 2) == [1, 0]


def test_the_first_is_the_one_whose_expected_saving_is_largest() -> None:
    """The formula as textbooks have it, with the errors' spread by hand."""

    def saving(behind: float, apart: float) -> float:
        z = behind / apart
        return apart * exp(-z * z / 2) / sqrt(2 * pi) - behind * (1 - erf(z / sqrt(2))) / 2

    plain, other = Prospect(log(10.0) + 0.01, CHOICE.shares), Prospect(log(10.0) + 0.05, (0.6, 0.2, 0.2))
    near, far = saving(0.01, OWN), saving(0.05, sqrt(OWN**2 + PART**2 * 0.08))
    assert in_turn(CHOICE, [plain, other], 1) == ([0] if near > far else [1])
    equal = next(at / 1e5 for at in range(10_000) if saving(at / 1e5, sqrt(OWN**2 + PART**2 * 0.08)) < near)
    for shift, first in ((-0.0005, 1), (0.0005, 0)):  # a little faster and a little slower than what saves as much
        assert in_turn(CHOICE, [plain, Prospect(log(10.0) + equal + shift, (0.6, 0.2, 0.2))], 1) == [first]


@given(prospects, st.lists(prospects, max_size=8), st.integers(0, 10))
def test_each_stands_once_and_a_longer_list_begins_with_the_shorter(
    choice: Prospect, others: list[Prospect], count: int
) -> None:
    order = in_turn(choice, others, count)
    assert len(order) == len(set(order)) == min(count, len(others))
    assert in_turn(choice, others, len(others))[:count] == order


def test_a_plan_shows_more_than_the_next_fastest() -> None:
    """DeepSeek-V3 on racks: what is tried beside the choice spends its time on something else, and none of it twice."""
    made = plan(
        preset("gb200-nvl72", 64),
        catalog.recipe("deepseek_v3_pretrain_256gpu_gb200_bf16_config"),
        Wishes(evidence=False),
    )
    times = [c.estimate.iteration_time_s for c in made.alternatives]
    assert len(times) == 5
    assert times != sorted(times)
    sizes = {
        (c.layout.world, c.layout.tp, c.layout.pp, c.layout.cp, c.layout.ep) for c in (made.chosen, *made.alternatives)
    }
    assert len(sizes) == 6

"""Routers limited to groups, against counting."""

from __future__ import annotations

from itertools import combinations

import pytest

from parlaunch.estimate.timing.feedforward import group_limited


@pytest.mark.parametrize(
    ("domains", "groups", "chosen"), [(1, 8, 4), (2, 8, 4), (4, 8, 4), (8, 8, 4), (4, 8, 2), (2, 4, 1)]
)
def test_group_limited_domains_are_the_mean_over_all_choices(domains: int, groups: int, chosen: int) -> None:
    each = groups // domains
    choices = list(combinations(range(groups), chosen))
    mean = sum(len({g // each for g in choice}) for choice in choices) / len(choices)
    assert group_limited(domains, groups, chosen) == pytest.approx(mean)


def test_a_group_that_spans_domains_brings_all_of_them() -> None:
    assert group_limited(16, 8, 4) == 8
    assert group_limited(16, 1, 0) == 16

"""Ranks that are not bound to the CPUs beside their GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.silicon import SOCKET_LINK, to_host
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe


def share_lost(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    bound, roaming = (estimate_time(recipe, layout, replace(rates, roaming=why)) for why in (None, "a test"))
    return 1 - bound.iteration_time_s / roaming.iteration_time_s


def test_who_waits_for_launches_loses_by_roaming_and_large_products_do_not() -> None:
    gb200 = rates_of(preset("gb200-nvl72", 4))
    experts = Layout(world=16, ep=16, global_batch_size=1024)
    assert 0.05 < share_lost(catalog.recipe("qwen3_30b_a3b_pretrain_config"), experts, gb200) < 1 / 3
    dense = Layout(world=16, tp=4, pp=4, global_batch_size=128)
    assert 0 <= share_lost(catalog.recipe("llama3_70b_pretrain_config"), dense, gb200) < 0.01


@pytest.mark.parametrize("machine", ["dgx-h100", "gb200-nvl72"])
def test_what_goes_to_the_host_shares_the_link_between_sockets(machine: str) -> None:
    rates = rates_of(preset(machine, 1))
    link = rates.product.c2c_bytes_per_s or rates.node_bytes_per_s
    assert to_host(link, rates) == link
    roaming = replace(rates, roaming="a test")
    assert to_host(link, roaming) == min(link, 2 * SOCKET_LINK / rates.gpus_per_node)
    recipe = catalog.recipe("llama3_8b_pretrain_config")
    offloading = replace(recipe, features=replace(recipe.features, optimizer_offload=1.0))
    layout = Layout(world=rates.world_size, global_batch_size=64)
    there, away = (estimate_time(offloading, layout, r).breakdown.optimizer_s for r in (rates, roaming))
    assert away > there

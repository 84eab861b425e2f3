"""Collectives: latency at the small end, bandwidth at the large end, topology in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.estimate.timing.collectives import Group, Links
from tests.estimate.timing.make import rates

sizes = st.floats(1.0, 1e11)
powers = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


def test_large_gathers_reach_the_bus_bandwidth_that_was_measured() -> None:
    """335 GB/s among eight H100 (NCCL 2.29); NCCL's own constant for 18 links says 371."""
    links = Links(rates())
    group = links.group(8, 1)
    seconds = links.gather(8e9, group)
    assert 8e9 * 7 / 8 / seconds == pytest.approx(335e9, rel=0.02)


def test_tiny_collectives_cost_a_latency_not_zero() -> None:
    links = Links(rates("dgx-h100", 4))
    inside, across = links.gather(8.0, links.group(8, 1)), links.gather(8.0, links.group(4, 8))
    assert 5e-6 < inside < 30e-6
    assert across > 6.6e-6 + 3 * 2.7e-6 - 1e-9


@given(sizes, sizes, powers)
def test_more_bytes_never_take_less_time(one: float, other: float, n: int) -> None:
    links = Links(rates("dgx-h100", 8))
    small, large = sorted((one, other))
    group = links.group(n, 1)
    assert links.gather(small, group) <= links.gather(large, group)
    assert links.reduce(small, group) <= links.reduce(large, group)
    assert links.all_to_all(small, group) <= links.all_to_all(large, group)


@given(sizes, powers, powers, st.floats(1.0, 4.0))
def test_more_bandwidth_is_never_slower(moved: float, n: int, stride: int, factor: float) -> None:
    base = rates("dgx-h100", 64)
    for better in (
        replace(base, fabric_bytes_per_s=base.fabric_bytes_per_s * factor),
        replace(base, nvlink_bytes_per_s=base.nvlink_bytes_per_s * factor),
    ):
        slow, quick = Links(base), Links(better)
        group = slow.group(n, stride)
        assert quick.gather(moved, group) <= slow.gather(moved, group) + 1e-12
        assert quick.reduce(moved, group) <= slow.reduce(moved, group) + 1e-12
        assert quick.all_to_all(moved, group) <= slow.all_to_all(moved, group) + 1e-12


def test_broadcasts_pay_every_hop_of_each_root() -> None:
    links = Links(rates("dgx-a100-80g", 4))
    group = links.group(32, 1)
    one, ten = links.broadcast(1e9, group, 1), links.broadcast(1e9, group, 10)
    assert ten - one == pytest.approx(9 * 32 * 8e-6)
    assert one > links.gather(1e9, group)
    assert links.broadcast(1e9, links.group(1, 1), 1) == 0.0


def test_a_group_counts_its_members_in_each_nvlink_domain() -> None:
    links = Links(rates("dgx-h100", 4))
    assert links.group(8, 1) == Group(8, 8)
    assert links.group(16, 1) == Group(16, 8)
    assert links.group(4, 8) == Group(4, 1)
    assert links.group(8, 4) == Group(8, 2)


def test_ranks_that_share_a_node_share_its_rails() -> None:
    """Two members a node bring two NICs: twice the bandwidth of one."""
    links = Links(rates("dgx-h100", 8))
    assert links.bandwidth(Group(8, 2)) == pytest.approx(2 * links.bandwidth(Group(8, 1)))


def test_an_nvl72_rack_is_one_domain_for_sixty_four_ranks() -> None:
    links = Links(rates("gb200-nvl72", 64))
    assert not links.group(64, 1).crosses
    assert links.group(128, 1).crosses


def test_a_measured_bus_replaces_the_data_sheet() -> None:
    slow = replace(rates(), measured={"nvlink_bus_bytes_per_s": 100e9})
    assert Links(slow).gather(8e9, Group(8, 8)) == pytest.approx(7e9 / 100e9, rel=0.01)


@pytest.mark.parametrize("machine", ["dgx-a100-80g", "dgx-h100", "dgx-b200", "dgx-b300", "gb200-nvl72", "gb300-nvl72"])
def test_two_domains_gather_no_faster_than_one_of_them(machine: str) -> None:
    """However fast the network between them: what passes it passes NVLink on both sides."""
    links = Links(rates(machine, 64))
    one, two = links.group(links.domain, 1), links.group(2 * links.domain, 1)
    assert one.inside == one.size
    assert two.crosses
    assert links.gather(8e9, two) > 0.98 * links.gather(8e9, one)


@pytest.mark.parametrize("machine", ["a100-pcie-8", "h100-pcie-8", "h100-nvl-8", "h200-nvl-8"])
def test_gpus_of_a_node_that_no_bridge_joins_talk_over_pcie_and_never_slower_than_without_bridges(machine: str) -> None:
    links, bare = Links(rates(machine, 2)), Links(replace(rates(machine, 2), nvlink_domain=1))
    islands = 8 // links.domain
    assert links.group(8, 1) == Group(8, 8, islands)
    assert links.group(16, 1) == Group(16, 8, islands)
    assert links.group(links.domain, 1) == Group(links.domain, links.domain)
    for n, stride in ((8, 1), (4, 2), (2, 4), (16, 1)):
        joined, apart = links.group(n, stride), bare.group(n, stride)
        assert not joined.crosses or n == 16
        for bridged, plain in (
            (links.gather(1e9, joined), bare.gather(1e9, apart)),
            (links.reduce(1e9, joined), bare.reduce(1e9, apart)),
            (links.all_to_all(1e9, joined), bare.all_to_all(1e9, apart)),
            (links.send(1e8, joined), bare.send(1e8, apart)),
        ):
            assert bridged <= plain * 1.0001


def test_an_island_is_left_over_the_pcie_of_each_of_its_gpus() -> None:
    links = Links(rates("a100-pcie-8"))
    assert links.bandwidth(links.group(8, 1)) == pytest.approx(2 * links.pcie)
    assert links.bandwidth(links.group(4, 2)) == links.pcie
    assert links.send(1e9, links.group(2, 4)) == pytest.approx(1e9 / links.pcie, rel=0.01)

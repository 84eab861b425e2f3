"""Who sits where."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.hardware.cluster import Cluster, Gpu, Node, domains_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.placement import (
    gpu_order,
    groups,
    order_nodes,
    switches_of,
    visible_devices,
    with_switches,
)
from parlaunch.model.layout import Layout
from tests.conftest import need

DGX1 = (
    (0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (1, 2, 2), (1, 3, 1), (1, 5, 2), (2, 3, 2),
    (2, 6, 1), (3, 7, 1), (4, 5, 1), (4, 6, 1), (4, 7, 2), (5, 6, 2), (5, 7, 1), (6, 7, 2),
)  # fmt: skip


def node(count: int, links: tuple[tuple[int, int, int], ...] = (), **more: object) -> Node:
    gpus = tuple(Gpu(index=i, name="NVIDIA A100-SXM4-80GB", uuid=f"GPU-{i}") for i in range(count))
    return Node(hostname="n", gpus=gpus, nvlinks=links, **more)  # type: ignore[arg-type]


def expand(text: str) -> list[str]:
    """Enough of a host list for the topologies here: "gpu[1-3]" or "a,b"."""
    if "[" not in text:
        return text.split(",")
    name, span = text.rstrip("]").split("[")
    first, last = span.split("-")
    return [f"{name}{i}" for i in range(int(first), int(last) + 1)]


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_bridged_pairs_stand_together() -> None:
    assert gpu_order(node(4, ((0, 2, 12), (1, 3, 12)))) == (0, 2, 1, 3)
    assert visible_devices(node(4, ((0, 2, 12), (1, 3, 12)))) == "GPU-0,GPU-2,GPU-1,GPU-3"


def test_a_cube_mesh_pairs_the_gpus_with_two_links() -> None:
    order = gpu_order(node(8, DGX1))
    assert {frozenset(order[:4]), frozenset(order[4:])} == {frozenset(range(4)), frozenset(range(4, 8))}
    links = {frozenset((a, b)): n for a, b, n in DGX1}
    assert all(links[frozenset(order[i : i + 2])] == 2 for i in range(0, 8, 2))


def test_a_stray_gpu_is_last() -> None:
    links = tuple((a, b, 12) for a in (0, 1, 3) for b in (0, 1, 3) if a < b)
    assert gpu_order(node(4, links)) == (0, 1, 3, 2)


@pytest.mark.parametrize("name", ["dgx-h100", "hgx-a100-4", "a100-pcie-8", "gb200-nvl72", "l40s-pcie-8"])
def test_nothing_is_set_where_the_order_is_right_already(name: str) -> None:
    machine = preset(name).nodes[0]
    assert gpu_order(machine) == tuple(range(len(machine.gpus)))
    assert visible_devices(machine) is None


def test_without_nvlink_gpus_of_one_numa_node_stand_together() -> None:
    gpus = tuple(Gpu(index=i, name="NVIDIA L40S", numa=i % 2) for i in range(4))
    assert gpu_order(Node(hostname="n", gpus=gpus)) == (0, 2, 1, 3)
    unknown = (*gpus[:3], replace(gpus[3], numa=None))
    assert gpu_order(Node(hostname="n", gpus=unknown)) == (0, 1, 2, 3)


def test_gpus_without_uuid_are_named_by_their_pci_number() -> None:
    machine = node(4, ((0, 2, 12), (1, 3, 12)))
    bare = replace(machine, gpus=tuple(replace(g, uuid=None) for g in machine.gpus))
    assert visible_devices(bare) == "0,2,1,3"


@given(st.permutations(range(8)))
@settings(max_examples=30)
def test_any_numbering_of_a_cube_mesh_gives_two_quads_of_double_linked_pairs(names: list[int]) -> None:
    links = tuple((min(names[a], names[b]), max(names[a], names[b]), n) for a, b, n in DGX1)
    order = gpu_order(node(8, links))
    weight = {frozenset((a, b)): n for a, b, n in links}
    assert sorted(order) == list(range(8))
    assert all(weight.get(frozenset(order[i : i + 2])) == 2 for i in range(0, 8, 2))
    assert all(frozenset((a, b)) in weight for half in (order[:4], order[4:]) for a in half for b in half if a != b)


# --- Nodes ------------------------------------------------------------------------------------------------------------


def racks(count: int, per_rack: int) -> Cluster:
    made = preset("gb200-nvl72", count)
    nodes = tuple(
        replace(n, hostname=f"n{at}", gpus=tuple(replace(g, fabric_id=(f"rack-{at // per_rack}", 1)) for g in n.gpus))
        for at, n in enumerate(made.nodes)
    )
    return replace(made, nodes=nodes, nvlink_domains=domains_of(nodes))


@given(st.permutations(range(12)))
@settings(max_examples=30)
def test_nodes_of_one_nvlink_domain_stand_together_however_they_were_found(order: list[int]) -> None:
    wanted = racks(12, 4)
    nodes = tuple(wanted.nodes[at] for at in order)
    shuffled = replace(wanted, nodes=nodes, nvlink_domains=domains_of(nodes))
    assert order_nodes(shuffled) == wanted


def test_names_count_as_people_count() -> None:
    made = preset("dgx-h100", 3)
    nodes = tuple(replace(n, hostname=h) for n, h in zip(made.nodes, ("gpu10", "gpu9", "gpu1"), strict=True))
    assert [n.hostname for n in order_nodes(replace(made, nodes=nodes)).nodes] == ["gpu1", "gpu9", "gpu10"]


def test_switch_neighbours_stand_together() -> None:
    made = preset("dgx-h100", 4)
    paths = ("top.leaf2.a1", "top.leaf1.a2", "top.leaf2.a3", "top.leaf1.a4")
    nodes = tuple(replace(n, hostname=p.split(".")[-1], switch=p) for n, p in zip(made.nodes, paths, strict=True))
    assert [n.hostname for n in order_nodes(replace(made, nodes=nodes)).nodes] == ["a2", "a4", "a1", "a3"]


TREE = """\
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=gpu[1-2]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=gpu[3-4]
SwitchName=spine Level=1 LinkSpeed=1 Nodes=gpu[1-4] Switches=leaf[1-2]
"""
BLOCKS = "BlockName=b1 BlockIndex=0 Nodes=gpu[1-2] BlockSize=2\nBlockName=b2 BlockIndex=1 Nodes=gpu[3-4] BlockSize=2\n"


def test_scontrols_topology_gives_switch_paths() -> None:
    assert switches_of(TREE, expand) == {
        "gpu1": "spine.leaf1", "gpu2": "spine.leaf1", "gpu3": "spine.leaf2", "gpu4": "spine.leaf2",
    }  # fmt: skip
    assert switches_of(BLOCKS, expand) == {"gpu1": "b1", "gpu2": "b1", "gpu3": "b2", "gpu4": "b2"}
    assert switches_of("slurm_load_topo error: Unable to contact slurm controller", expand) == {}
    made = with_switches(Cluster(source="probe", nodes=(Node(hostname="gpu3.cluster"),)), switches_of(TREE, expand))
    assert made.nodes[0].switch == "spine.leaf2"


def test_a_topology_that_runs_in_a_circle_ends() -> None:
    circle = "SwitchName=a Level=0 Nodes=n1 Switches=b\nSwitchName=b Level=1 Nodes=n1 Switches=a\n"
    assert switches_of(circle, expand)["n1"].endswith("a")


# --- Ranks ------------------------------------------------------------------------------------------------------------


def some_layouts(count: int, most: int = 64) -> list[Layout]:
    dice = random.Random(7)
    found: list[Layout] = []
    while len(found) < count:
        tp, cp, pp, dp = (dice.choice((1, 2, 3, 4, 8)) for _ in range(4))
        world = tp * cp * pp * dp
        if world > most:
            continue
        free = world // pp
        etp = dice.choice([n for n in (1, 2, 4) if free % n == 0])
        ep = dice.choice([n for n in range(1, free // etp + 1) if free // etp % n == 0])
        found.append(Layout(world=world, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp))
    return found


def test_every_rank_is_in_one_group_of_each_kind() -> None:
    for x in some_layouts(100):
        for name in ("tp", "cp", "dp", "pp", "ep", "etp", "edp"):
            ranks = [rank for members in groups(x, name) for rank in members]
            assert sorted(ranks) == list(range(x.world))
            assert {len(members) for members in groups(x, name)} == {getattr(x, name)}


@pytest.mark.filterwarnings("ignore")  # torch and Megatron warn about themselves while they are imported
def test_groups_are_megatrons_for_two_hundred_layouts() -> None:
    need(importlib.util.find_spec("megatron") and importlib.util.find_spec("torch"), "megatron-core")
    from megatron.core import parallel_state as mpu

    for x in some_layouts(200):
        order = "tp-cp-ep-dp-pp"
        dense = mpu.RankGenerator(tp=x.tp, ep=1, dp=x.dp, pp=x.pp, cp=x.cp, order=order)
        expert = mpu.RankGenerator(tp=x.etp, ep=x.ep, dp=x.edp, pp=x.pp, cp=1, order=order)
        for name in ("tp", "cp", "dp", "pp"):
            assert sorted(map(tuple, dense.get_ranks(name))) == sorted(groups(x, name))
        for theirs, ours in (("tp", "etp"), ("ep", "ep"), ("dp", "edp"), ("pp", "pp")):
            assert sorted(map(tuple, expert.get_ranks(theirs))) == sorted(groups(x, ours))

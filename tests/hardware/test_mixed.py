"""GPUs of several models: at the pace of the slowest with a warning, or the larger part alone where that is faster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.environment.network import node_rules
from parlaunch.hardware.cluster import Cluster, Fabric, Gpu, Node, domains_of
from parlaunch.hardware.gather import IDLE, gather
from parlaunch.hardware.mixed import cost, even, faster_nodes
from parlaunch.hardware.rates import rates_of

H100, A100, L40S, A4000 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "NVIDIA RTX A4000"


def node(*names: str, host: str = "n0", **fields: object) -> Node:
    gpus = tuple(Gpu(index=at, name=name, uuid=f"GPU-{host}-{at}", nvlink_domain=0) for at, name in enumerate(names))
    return replace(Node(hostname=host, gpus=gpus), **fields)  # type: ignore[arg-type]


def of(*nodes: Node) -> Cluster:
    return Cluster(
        source="test",
        nodes=nodes,
        nvlink_domains=domains_of(nodes),
        fabric=Fabric(kind="roce", rails=2, bytes_per_s_per_gpu=10e9),
    )


def test_a_display_card_beside_training_cards_is_left_out() -> None:
    cluster = even(of(node(A4000, A100, A100)))
    assert [g.name for g in cluster.nodes[0].gpus] == [A100, A100]
    assert [g.name for g in cluster.nodes[0].gpus_left_out] == [A4000]
    assert cluster.nvlink_domains == ((0, 1),)
    assert any("GPU 0 (NVIDIA RTX A4000) left out" in n for n in cluster.notes)
    assert cluster.fabric.bytes_per_s_per_gpu == 15e9, "two share what three did"
    visible = next(v for v, _ in node_rules(cluster, 0, {}) if v.name == "CUDA_VISIBLE_DEVICES")
    assert visible.value == "GPU-n0-1,GPU-n0-2"


def test_models_that_are_near_go_together_at_the_pace_of_the_slower() -> None:
    cluster = even(of(node(L40S, L40S, L40S, A100)))
    assert len(cluster.nodes[0].gpus) == 4
    rates = rates_of(cluster)
    assert rates.product.name == "A100 SXM 80GB"
    assert rates.product.hbm_bytes_per_s == 864e9
    assert rates.memory_bytes < 50 << 30
    words = cost(cluster) or ""
    assert "3 x NVIDIA L40S, 1 x NVIDIA A100-SXM4-80GB" in words
    assert "of their compute is lost" in words


def test_alike_gpus_cost_nothing_and_stay_as_they_are() -> None:
    cluster = of(node(H100, H100))
    assert even(cluster) is cluster
    assert cost(cluster) is None


def test_whole_gpus_beside_a_cut_one_are_used() -> None:
    cut = node(A100, A100, A100)
    mixed = replace(cut, gpus=(replace(cut.gpus[0], mig=True), *cut.gpus[1:]))
    cluster = even(of(mixed))
    assert [g.index for g in cluster.nodes[0].gpus] == [1, 2]
    assert any("GPU 0 left out: in MIG mode" in n for n in cluster.notes)


def test_nodes_of_two_models_make_one_job_that_says_what_it_costs() -> None:
    whole = gather([of(node(*[H100] * 8, host=f"h{n}")) for n in range(3)] + [of(node(*[A100] * 8, host="a0"))])
    assert whole.world_size == 32
    assert rates_of(whole).product.name == "A100 SXM 80GB"
    assert any("a0 has NVIDIA A100-SXM4-80GB, the others NVIDIA H100 80GB HBM3" in n for n in whole.notes)


def test_nodes_of_the_faster_model_are_named_where_they_beat_all() -> None:
    fast, slow = [node(*[H100] * 8, host=f"h{n}") for n in range(3)], node(*[A100] * 8, host="a0")
    assert faster_nodes([*fast, slow]) == H100
    assert faster_nodes([fast[0], slow, slow, slow]) is None, "eight H100 are slower than 32 at the pace of A100"
    assert faster_nodes(fast) is None
    assert faster_nodes([fast[0], node(*[A100] * 4)]) == H100, "eight of them stay eight"
    assert faster_nodes([*fast, node("NVIDIA Mystery")]) is None, "nothing is left out on a guess"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((4, 4, 4, 3), "; without h3 there are as many, on 3 nodes"),
        ((4, 4, 4, 4, 3), "; without h4 there are 16 in place of 15"),
        ((8, 4), "; without h1 there are as many, on 1 node"),
        ((8, 7, 7, 7), ""),
    ],
)
def test_where_counts_differ_the_nodes_to_leave_out_for_more_gpus_are_named(counts: tuple[int, ...], said: str) -> None:
    whole = gather([of(node(*[H100] * count, host=f"h{n}")) for n, count in enumerate(counts)])
    (note,) = [n for n in whole.notes if IDLE in n]
    assert note.partition(IDLE)[2] == said

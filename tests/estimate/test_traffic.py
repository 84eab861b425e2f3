"""The measure of placement: bytes over each kind of link."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.estimate.traffic import as_text, sent, traffic
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.placement import order_nodes, reorder
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import total_params

LLAMA = catalog.recipe("llama31_70b_pretrain_config")
MOE = catalog.recipe("qwen3_30b_a3b_pretrain_config")


def layout(recipe: object = LLAMA, **sizes: int) -> Layout:
    return Layout(global_batch_size=128, **sizes)  # type: ignore[arg-type]


def leaves(nodes: int, per_leaf: int, *, mixed: bool) -> Cluster:
    made = preset("dgx-h100", nodes)
    leaf = [at % (nodes // per_leaf) if mixed else at // per_leaf for at in range(nodes)]
    return replace(
        made, nodes=tuple(replace(n, switch=f"top.leaf{at}") for n, at in zip(made.nodes, leaf, strict=True))
    )


def test_tensor_parallelism_stays_on_nvlink_and_pipelines_on_their_rail() -> None:
    made = traffic(preset("dgx-h100", 2), LLAMA, layout(world=16, tp=8, pp=2))
    assert made.ours.nvlink > 0
    assert made.ours.rail > 0
    assert made.ours.spine == made.ours.node == 0


def test_without_nvlink_a_node_talks_over_pcie() -> None:
    made = traffic(preset("l40s-pcie-8"), LLAMA, layout(world=8, tp=8))
    assert made.ours.node > 0
    assert made.ours.nvlink == 0


def test_pipeline_bytes_are_one_activation_each_way_a_micro_batch() -> None:
    x = layout(world=2, pp=2)
    activation = LLAMA.seq_length * LLAMA.architecture.hidden_size * 2
    assert sent(LLAMA, x) == {(0, 1): 128 * activation, (1, 0): 128 * activation}


def test_data_parallel_bytes_are_a_gather_and_a_reduction_of_the_weights() -> None:
    x = layout(world=2)
    gradient = 4 if LLAMA.features.grad_reduce_fp32 else 2
    weights = total_params(LLAMA.architecture)
    flows = sent(LLAMA, x)
    assert flows[0, 1] == flows[1, 0] == pytest.approx((2 + gradient) * weights / 2, rel=1e-6)


def test_experts_send_a_share_of_their_tokens_to_every_other_rank() -> None:
    a, x = MOE.architecture, layout(world=8, ep=8)
    tokens = MOE.seq_length * a.hidden_size * 2 * a.moe_router_topk
    experts = sum(1 for k in a.layers() if k.mlp == "moe")
    assert sent(MOE, x)[0, 5] == pytest.approx(4 * experts * x.num_microbatches * tokens / 8, rel=1e-9)


@given(st.permutations(range(8)))
@settings(max_examples=25)
def test_our_order_of_nodes_is_never_worse_than_the_one_found(found: list[int]) -> None:
    wanted = leaves(8, 2, mixed=False)
    shuffled = reorder(wanted, found)
    x = layout(world=64, tp=8, pp=2)
    before, after = traffic(shuffled, LLAMA, x), traffic(order_nodes(shuffled), LLAMA, x)
    assert after.ours.cost <= before.ours.cost
    assert after.best.cost <= before.ours.cost
    assert after.ours.total == pytest.approx(before.ours.total)


def test_switch_neighbours_pay_off_and_the_search_finds_little_better() -> None:
    mixed = leaves(16, 4, mixed=True)
    x = layout(world=128, tp=8, pp=4, cp=2)
    plain, sorted_ = traffic(mixed, LLAMA, x), traffic(order_nodes(mixed), LLAMA, x)
    assert sorted_.ours.spine < plain.ours.spine
    assert 0.8 * sorted_.ours.spine <= sorted_.best.spine <= sorted_.ours.spine
    assert plain.best.cost <= sorted_.ours.cost
    assert sorted_.random.spine > sorted_.ours.spine


def test_an_order_may_be_asked_about() -> None:
    good = leaves(4, 2, mixed=False)
    x = layout(world=32, tp=8, pp=2)
    assert traffic(good, LLAMA, x, (0, 2, 1, 3)).ours != traffic(good, LLAMA, x).ours


def test_the_comparison_is_three_lines_under_a_head() -> None:
    text = as_text(traffic(leaves(4, 2, mixed=True), LLAMA, layout(world=32, tp=8, pp=2)))
    head, *lines = text.splitlines()
    assert head.split()[-4:] == ["nvlink", "node", "rail", "spine"]
    assert [line.split("  ")[0] for line in lines] == ["this order", "the best known", "a random one"]

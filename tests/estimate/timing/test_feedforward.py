"""Routers limited to groups, against counting; what experts cost that no kernel fuses, in bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.feedforward import group_limited
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture
from tests.estimate.timing.make import features, layout, rates, recipe


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


def _seconds(arch: Architecture, **on: Any) -> float:
    graphed = features(dispatcher="hybridep", force_balance=True, cuda_graph="full_iteration", **on)
    made = recipe(arch, precision="fp8mx", features=graphed)
    return estimate_time(made, layout(ep=8, micro_batch_size=4), rates("dgx-b300")).breakdown.compute_s


def test_what_no_kernel_fuses_costs_its_bytes() -> None:
    experts = architecture("openai/gpt-oss-120b")
    tokens, layers, width, heads = 8 * 4096, experts.num_layers, experts.hidden_size, 64 + 8
    memory = Kernels(rates("dgx-b300")).hbm
    full = _seconds(experts)

    def bytes_more(**plain: Any) -> float:
        return (full - _seconds(replace(experts, **plain))) * memory / (tokens * layers)

    # Clamped activations of 4 experts a token; rotations of 72 heads in steps; biases behind 4 experts and behind attention.
    assert bytes_more(activation_func="silu") == pytest.approx(46 * 4 * width, rel=0.05)
    assert bytes_more(position_embedding_type="rope") == pytest.approx((52 - 9.2) * heads * 64, rel=0.15)
    assert bytes_more(add_bias_linear=False) == pytest.approx((68 * 4 + 6) * width, rel=0.15)
    # Where the experts are one operation it clamps, and adds the bias to its product.
    whole = _seconds(experts, paged_stash=True)
    assert _seconds(replace(experts, activation_func="silu"), paged_stash=True) == whole
    more = whole - _seconds(replace(experts, add_bias_linear=False), paged_stash=True)
    assert more * memory / (tokens * layers) == pytest.approx(6 * width, rel=0.15)


def test_experts_that_are_filled_up_to_a_capacity_leave_the_host_nothing_to_wait_for() -> None:
    def seconds(**on: Any) -> float:
        made = recipe("Qwen/Qwen3-30B-A3B", precision="fp8cs", features=features(dispatcher="alltoall", **on))
        return estimate_time(made, layout(ep=8, micro_batch_size=1), rates("dgx-b200")).iteration_time_s

    counted, filled = seconds(force_balance=True), seconds(expert_capacity=1.0)
    assert filled < counted
    # A graph holds whole layers then, and not only what comes before the counts.
    assert seconds(expert_capacity=1.0, cuda_graph="local") < 0.8 * seconds(force_balance=True, cuda_graph="local")
    # What is filled up is worked off and sent.
    whole = {"cuda_graph": "full_iteration"}
    assert seconds(expert_capacity=2.0, **whole) > 1.2 * seconds(expert_capacity=1.0, **whole)


def test_experts_in_one_operation_work_off_whole_tiles() -> None:
    def products(width: int) -> float:
        arch = replace(architecture("openai/gpt-oss-120b"), moe_ffn_hidden_size=width)
        return _seconds(arch, paged_stash=True)

    # 2816 and 3072 are whole tiles of 256; products of 2880 take as long as those of 3072, all else a third of the way.
    assert products(3072) - products(2880) < 1.5 * (products(2880) - products(2816))


def test_quantising_experts_one_by_one_keeps_the_host_for_their_tensors_and_for_what_cuda_takes_to_launch() -> None:
    """Transformer Engine's call for all experts: current scaling has four kernels for each, NVFP4 a few for all."""
    moe = architecture("Qwen/Qwen3-30B-A3B")

    def host(precision: str, machine: str = "dgx-b200") -> float:
        made = recipe(moe, precision=precision, features=features(force_balance=True, fp8_param_gather=True))
        # Every expert on every GPU: the CPU is all that an iteration waits for.
        return estimate_time(made, layout(ep=1, global_batch_size=8), rates(machine)).iteration_time_s

    assert host("bf16") < host("fp8mx") < host("fp8cs") < 1.5 * host("bf16")
    assert host("nvfp4") < host("fp8cs")
    assert host("fp8ds", "dgx-h100") < host("fp8cs", "dgx-h100")

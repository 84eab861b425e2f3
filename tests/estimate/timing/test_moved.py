"""Bytes that kernels of their own move beside the products: those that nothing fuses, against what Megatron Core's own modules move."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.model
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.feedforward import DEEPEP_SMS, DEEPEP_SMS_FAR, GATED, PLAIN_GATE, PLAIN_SHARES, SUMMED
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers, _Builder
from parlaunch.estimate.timing.pieces import COPIED, split_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.hardware.rates import Rates
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture
from tests.conftest import HANGS_S, bridge_python
from tests.estimate.timing.make import features, layout, rates, recipe

SCRIPT = Path(tests.model.__file__).with_name("megatron_moved.py")
TOKENS, HIDDEN, HEAD = 64, 256, 32


@pytest.fixture(scope="module")
def core() -> dict[str, Any]:
    done = subprocess.run([bridge_python(), str(SCRIPT)], capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def _built(name: str | Architecture, machine: Rates | None = None, **sizes: Any) -> _Builder:
    made = recipe(name, precision=sizes.pop("precision", "bf16"), features=sizes.pop("features", features()))
    machine = machine or rates()
    layers = Layers(made, software_of(None), Kernels(machine), Links(machine))
    return _Builder(layers, split_of(layout(**sizes)))


def _moved(builder: _Builder, seconds: float, kernels: int) -> float:
    return (seconds - kernels * builder.k.silicon.kernel) * builder.k.hbm


@pytest.mark.bridge
@pytest.mark.parametrize(("name", "heads", "groups"), [("grouped", 8, 2), ("alone", 8, 8)])
def test_queries_keys_and_values_are_taken_apart_as_core_does(
    name: str, heads: int, groups: int, core: dict[str, Any]
) -> None:
    builder = _built("meta-llama/Meta-Llama-3-8B")
    apart = builder._taken_apart(TOKENS * HEAD, heads, groups, 2 * groups)
    assert [_moved(builder, s, n) for s, n in zip(apart, (2, 1), strict=True)] == pytest.approx(core[name])


def test_normed_keys_are_copied_and_a_gate_is_part_of_what_is_joined() -> None:
    builder = _built("Qwen/Qwen3-30B-A3B")
    forward, backward = builder._taken_apart(1000.0, 32, 4, 8)
    assert _moved(builder, forward, 2) == pytest.approx(COPIED * 1000 * (32 + 4 + 4))
    assert _moved(builder, backward, 1) == pytest.approx(COPIED * 1000 * (32 + 8))


@pytest.mark.bridge
def test_the_routers_product_in_32_bits_moves_more_than_in_16(core: dict[str, Any]) -> None:
    assert core["router"] == GATED * TOKENS * HIDDEN


@pytest.mark.bridge
@pytest.mark.parametrize(("name", "forward", "backward"), [("experts", 2, 3), ("shared", 3, 4)])
def test_a_layer_of_experts_adds_as_often_as_core_does(
    name: str, forward: int, backward: int, core: dict[str, Any]
) -> None:
    """Two residuals, forward and backward; gradients of what the router and the experts read; the shared expert's output and gradient."""
    assert core[name] == [SUMMED * TOKENS * HIDDEN * forward, SUMMED * TOKENS * HIDDEN * backward]


def test_tokens_are_laid_out_by_what_dispatches_them() -> None:
    tokens, topk, width = 1000.0, 8, 2048

    def moved(kernels: int, local: int, dispatcher: str, **sizes: Any) -> float:
        builder = _built("Qwen/Qwen3-30B-A3B", **sizes)
        one = builder._permuted(tokens, topk, tokens * topk, local, width, dispatcher)
        return _moved(builder, one, kernels) / (2 * width * tokens)

    # Read once and written for each expert; read and written again by expert.
    assert moved(8, 16, "alltoall", ep=8) == pytest.approx(1 + topk + 2 * topk)
    assert moved(8, 1, "alltoall", ep=8) == pytest.approx(1 + topk)
    assert moved(8, 16, "alltoall", ep=8, precision="fp8cs") == pytest.approx(1 + topk + 4 * topk)
    padded = features(router_padding=True)
    assert moved(8, 16, "alltoall", ep=8, precision="fp8cs", features=padded) == pytest.approx(1 + topk + 2 * topk)
    # Of 8 ranks, 8 experts chosen blindly are on 8 · (1 - (7/8)^8): a token comes to each of them once.
    assert moved(2, 16, "deepep", ep=8) == pytest.approx(8 * (1 - (7 / 8) ** 8) + topk)
    assert moved(2, 128, "hybridep") == pytest.approx(1 + topk)


def test_deepep_takes_in_less_from_more_than_16_ranks() -> None:
    def taken_in(ranks: int) -> float:
        builder = _built("Qwen/Qwen3-30B-A3B", rates("gb200-nvl72", 18), ep=ranks)
        assert not builder.ep_group.crosses
        seconds = builder._dispatch(1e5, 8, 2048, "deepep") - 15e-6
        return 1e5 * 2 * 2048 * builder._wanted(8) / seconds

    assert [taken_in(ranks) for ranks in (8, 16, 17, 32)] == pytest.approx([DEEPEP_SMS] * 2 + [DEEPEP_SMS_FAR] * 2)


def test_a_router_moves_its_scores_maps_and_the_gradient_of_what_it_reads() -> None:
    def moved(dispatcher: str, **on: Any) -> tuple[float, ...]:
        builder = _built("Qwen/Qwen3-30B-A3B", features=features(**on))
        return tuple(_moved(builder, s, 8) / 1000.0 for s in builder._route(1000.0, 128, dispatcher)[:2])

    assert moved("hybridep") == pytest.approx((128 * 33, 128 * 45 + 2048 * 22))
    assert moved("alltoall") == pytest.approx((128 * 59, 128 * 45 + 2048 * 22))
    assert moved("hybridep", force_balance=True) == pytest.approx((128 * 45, 128 * 45 + 2048 * 22))


@pytest.mark.bridge
def test_a_gated_activation_that_nothing_joins_moves_what_core_does_with_shares_in_32_bits_and_without(
    core: dict[str, Any],
) -> None:
    elements = TOKENS * HIDDEN
    assert core["unjoined"] == [elements * moved for moved in PLAIN_GATE]
    more = [many - few for few, many in zip(core["unjoined"], core["weighed"], strict=True)]
    assert more == [elements * moved for moved in PLAIN_SHARES]


@pytest.mark.bridge
def test_clamping_moves_what_core_does_in_as_many_kernels(core: dict[str, Any]) -> None:
    experts, elements = architecture("openai/gpt-oss-120b"), TOKENS * HIDDEN
    clamped, plain = _built(experts), _built(replace(experts, activation_func="silu"))
    passes = zip(clamped._activation(elements), plain._activation(elements), core["clamped"], strict=True)
    for seconds, without, (moved, kernels) in passes:
        assert _moved(clamped, seconds - without, kernels) == pytest.approx(moved)


def test_a_second_norm_behind_a_block_reads_and_writes_once_more() -> None:
    with_two, without = (
        _built("google/gemma-3-12b-it"),
        _built("meta-llama/Meta-Llama-3-8B"),
    )
    for builder, norms in ((with_two, 2), (without, 1)):
        moved = [_moved(builder, s, norms + 1) / (builder.region * builder.h) for s in builder._norm()]
        assert moved == pytest.approx([4 * norms + 6, 6 * norms + 6])
    assert with_two._norm(block=False)[0] < with_two._norm()[0]


def test_compressed_attention_sees_its_window_and_of_compressed_keys_all_or_those_that_are_chosen() -> None:
    arch, seq, window = architecture("deepseek-ai/DeepSeek-V4-Flash"), 16384, 128
    layers = Layers(recipe(arch, seq_length=seq), software_of(None), Kernels(rates()), Links(rates()))
    builder = _Builder(layers, split_of(layout()))
    seen = {k.compress: builder._seen(k) - window * (1 - window / (2 * seq)) for k in arch.layers()}
    assert arch.dsa_indexer_topk == 512
    assert seen == pytest.approx({0: 0, 4: 512, 128: seq / 2 / 128})

"""Measured operators: what a table says at its points, between them and beyond, and who stands for whom."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.iteration import largest
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.operators import (
    STEP,
    Grid,
    Lines,
    attention,
    encode,
    measured_as,
    narrow_attention,
    products,
    waves,
    window_edge,
)
from parlaunch.estimate.timing.pieces import split_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from tests.estimate.timing.make import features, layout, recipe

AXES = ((128, 256, 512), (1024, 4096))
shares = st.lists(st.floats(0.02, 1.0), min_size=6, max_size=6)


kinds = st.sampled_from((Grid, Lines))


@given(kinds, shares)
def test_a_point_of_the_grid_is_met_to_the_step(kind: type[Grid], values: list[float]) -> None:
    grid = kind(AXES, encode(values))
    for (m, n), value in zip(((m, n) for m in AXES[0] for n in AXES[1]), values, strict=True):
        assert grid.at(m, n) == pytest.approx(value, rel=0.51 * STEP)


@given(kinds, shares, st.floats(1, 1e6), st.floats(1, 1e6))
def test_between_and_beyond_points_the_share_is_between_theirs(
    kind: type[Grid], values: list[float], m: float, n: float
) -> None:
    grid = kind(AXES, encode(values))
    assert min(values) * (1 - STEP) <= grid.at(m, n) <= max(values) * (1 + STEP)
    assert grid.at(m, 1e9) == grid.at(m, AXES[1][-1])


def test_between_two_sizes_a_collective_takes_its_latency_and_its_bytes() -> None:
    latency, rate = 10e-6, 400e9
    sizes = (1 << 20, 1 << 24)
    grid = Lines((sizes, (2, 8)), encode([s / (latency * rate + s) for s in sizes for _ in (2, 8)]))
    for moved in (1 << 21, 5_000_000, 1 << 23):
        assert moved / grid.at(moved, 4) / rate == pytest.approx(latency + moved / rate, rel=STEP)


def test_points_left_out_are_met() -> None:
    for row in load("operators.json")["left_out"]:
        if "median" in row:
            # Kernels of inference for windows differ by a tenth from one number of heads to the next.
            middle, most = (0.09, 0.21) if row["operator"] == "windowed attention" else (0.05, 0.20)
            assert row["median"] <= middle, row
            assert row["p95"] <= most, row


@pytest.mark.parametrize("gpu", ["H100 SXM", "H200 SXM", "B200", "B300", "GB200", "GB300", "L40S", "A100 SXM 80GB"])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 192, 256])
def test_a_window_costs_a_few_tiles_of_keys_beside_its_own(gpu: str, head_dim: int) -> None:
    for sequence in (4096, 8192, 32768, 131072):
        assert 150 < window_edge(gpu, head_dim, sequence, 64) < 800
    assert window_edge("A100 SXM 80GB", head_dim, 8192, 64) == window_edge("L40S", head_dim, 8192, 64)


@pytest.mark.parametrize(("board", "other"), [("B200", "GB200"), ("B300", "GB300"), ("H100 SXM", "H200 SXM")])
@pytest.mark.parametrize("form", ["64", "128", "256", "192,128"])
def test_boards_with_one_chip_attend_at_one_pace(board: str, other: str, form: str) -> None:
    one, two = attention(board, form), attention(other, form)
    assert one is not None
    assert two is not None
    points = [(sequence, heads) for sequence in (2048, 4096, 8192, 16384) for heads in (16, 64, 256)]
    assert median(one.at(*p) / two.at(*p) for p in points) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("machine", "stands"),
    [
        ("dgx-h100", "H100 SXM"),
        ("gb300-nvl72", "GB300"),
        ("dgx-a100-40g", "A100 SXM 80GB"),
        ("rtxpro6000-8", None),
        ("dgx-r100", "GB300"),
    ],
)
def test_a_gpu_is_itself_or_the_nearest_of_its_generation(machine: str, stands: str | None) -> None:
    product = rates_of(preset(machine)).product
    assert measured_as(product) == (stands or "RTX PRO 6000 Blackwell Server")


def test_large_products_reach_between_a_third_and_all_of_the_peak() -> None:
    for name, kinds in load("operators.json")["shares"].items():
        for form in kinds["gemm"]:
            grid = products(name, form)
            assert grid is not None
            assert 0.33 < grid.at(8192, 8192, 8192) < 1.0, (name, form)
            assert grid.at(128, 512, 512) < grid.at(8192, 8192, 8192)


def test_the_power_limit_takes_more_from_a_board_with_fewer_watts() -> None:
    rates = rates_of(preset("dgx-b200"))
    reached = [
        Kernels(replace(rates, product=replace(rates.product, power_w=watts))).reached("bf16")
        for watts in (700.0, 1000.0, 3000.0)
    ]
    assert reached == sorted(reached)
    assert reached[0] == pytest.approx(0.7 * reached[1], rel=0.01)
    assert reached[1] == pytest.approx(0.48, abs=0.02)  # SimuMax's products on B200: 0.485 of the peak


def test_what_a_machine_file_measured_stands_for_the_power_limit() -> None:
    rates = replace(rates_of(preset("dgx-b200")), measured={"gemm_bf16": 0.6})
    assert Kernels(rates).reached("bf16") == pytest.approx(0.6)


def test_the_slowest_of_more_ranks_is_slower() -> None:
    sizes = [largest(n) for n in (1, 2, 8, 64, 1024, 16384)]
    assert sizes[0] == 0.0
    assert sizes == sorted(sizes)
    assert sizes[2] == pytest.approx(1.42, abs=0.15)  # expectation of the largest of eight standard normals
    assert sizes[4] == pytest.approx(3.24, abs=0.15)


def test_a_round_of_tiles_that_is_not_full_costs_what_a_full_one_does() -> None:
    assert waves(8192, 8192, 128) == 1.0  # 2,048 tiles of 128 by 256: sixteen full rounds
    assert waves(2049, 2048, 132) > 1.3 > waves(2048, 2048, 132)  # one row more is a row of tiles more
    assert waves(1024, 1536, 108) == pytest.approx(108 / 96 / 0.92)  # 96 tiles of 128 by 128 on 108 SMs
    assert waves(128, 128, 108) == 2.0  # fewer tiles than SMs: the depth is cut as well


def test_what_tiles_reach_over_the_edge_shows_before_the_last_round_does() -> None:
    late, over = (
        (2048, 4096, 100),
        (2049, 8192, 128),
    )  # 256 tiles in three rounds of 100; 17 rows of tiles where 16 nearly do
    for product in (late, over):
        shown = [waves(*product, part) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert shown[0] == 1.0
        assert shown == sorted(shown)
    assert waves(*late, 0.5) == pytest.approx(waves(*late) ** 0.5)
    assert waves(2049, 1 << 20, 128, 0.5) == pytest.approx(17 / 16, rel=0.01)  # so many rounds that the last is nothing


def _gain(machine: str, fmt: str, sequence: int = 8192, form: str = "128", *, backward: bool = False) -> float:
    product = rates_of(preset(machine)).product
    found = narrow_attention(product, form, fmt, sequence=sequence, backward=backward, whole=False)
    assert found is not None
    return found


def test_attention_in_fp8_is_what_cudnn_measured() -> None:
    """Milliseconds of two sequences of 8,192 tokens in 64 heads of 128 on GB200, causal (cudnn-frontend, benchmark/sdpa_benchmark_training)."""
    kernels = Kernels(rates_of(preset("gb200-nvl72")))
    flops, kept = 2.0 * 2 * 8192**2 * 64 * 128, kernels.silicon.flash
    attention = partial(kernels.attention, sequence=8192, head_dim=128, heads=128, fmt="fp8")
    assert attention(flops=flops, backward=False) * kept == pytest.approx(1.074e-3, rel=0.03)
    assert attention(flops=2.5 * flops, backward=True) * kept == pytest.approx(3.781e-3, rel=0.03)


@pytest.mark.parametrize("machine", ["dgx-h100", "gb200-nvl72", "gb300-nvl72"])
def test_attention_in_fp8_gains_forward_more_than_backward(machine: str) -> None:
    both = [_gain(machine, "fp8", backward=way) for way in (False, True)]
    assert 1.3 < both[0] < 2.0
    assert both[1] < both[0]


def test_a_causal_backward_pass_in_fp8_is_slower_than_in_16_bits_on_hopper() -> None:
    kernels = Kernels(rates_of(preset("dgx-h100")))
    assert _gain("dgx-h100", "fp8", backward=True) < kernels.silicon.flash_backward


def test_mxfp8_gains_less_than_one_scale_a_tensor() -> None:
    for backward in (False, True):
        assert _gain("gb300-nvl72", "mx", backward=backward) < _gain("gb300-nvl72", "fp8", backward=backward)


@pytest.mark.parametrize(("machine", "there"), [("rtxpro6000-8", False), ("g6e.48xlarge", False), ("dgx-r100", True)])
def test_nothing_is_said_of_attention_in_fp8_where_cudnn_has_none(machine: str, there: bool) -> None:
    product = rates_of(preset(machine)).product
    found = narrow_attention(product, "128", "fp8", sequence=8192, backward=False, whole=False)
    assert (found is not None) == there


@pytest.mark.parametrize("narrow", [False, True])
def test_in_fp8_a_window_saves_nothing_backward(narrow: bool) -> None:
    """GPT-OSS with windows of 128 keys in half of its layers, as cuDNN 9.22 was measured on GB200 and GB300."""
    machine = rates_of(preset("gb200-nvl72"))
    made = recipe("openai/gpt-oss-120b", precision="fp8mx", seq_length=32768, features=features(fp8_attention=narrow))
    layers = Layers(made, software_of(None), Kernels(machine), Links(machine))
    assert {kind.window is None for kind in layers.kinds} == {True, False}
    times = {kind.window is None: time for kind, time in zip(layers.kinds, layers.of(split_of(layout())), strict=True)}
    assert times[False].forward.compute < 0.97 * times[True].forward.compute
    shorter = times[False].backward.compute / times[True].backward.compute
    assert shorter == pytest.approx(1.0) if narrow else shorter < 0.97

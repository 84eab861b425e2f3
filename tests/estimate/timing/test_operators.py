"""Measured operators: what a table says at its points, between them and beyond, and who stands for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.estimate.timing.iteration import largest
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.operators import STEP, Grid, encode, measured_as, products, waves
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of

AXES = ((128, 256, 512), (1024, 4096))
shares = st.lists(st.floats(0.02, 1.0), min_size=6, max_size=6)


@given(shares)
def test_a_point_of_the_grid_is_met_to_the_step(values: list[float]) -> None:
    grid = Grid(AXES, encode(values))
    for (m, n), value in zip(((m, n) for m in AXES[0] for n in AXES[1]), values, strict=True):
        assert grid.at(m, n) == pytest.approx(value, rel=0.51 * STEP)


@given(shares, st.floats(1, 1e6), st.floats(1, 1e6))
def test_between_and_beyond_points_the_share_is_between_theirs(values: list[float], m: float, n: float) -> None:
    grid = Grid(AXES, encode(values))
    assert min(values) * (1 - STEP) <= grid.at(m, n) <= max(values) * (1 + STEP)
    assert grid.at(m, 1e9) == grid.at(m, AXES[1][-1])


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

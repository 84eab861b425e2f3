"""Kernel times: never below the roofline, and as shapes and formats have it."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.estimate.timing import kernels
from parlaunch.estimate.timing.kernels import OPERAND_BYTES, Kernels
from parlaunch.hardware.datasheet import product, product_names
from tests.estimate.timing.make import rates

dims = st.integers(1, 20_000)


@given(dims, dims, dims, st.sampled_from(["bf16", "fp8", "mx"]), st.integers(1, 8))
def test_a_product_is_never_faster_than_peak_or_memory(m: int, n: int, k: int, fmt: str, groups: int) -> None:
    kernels = Kernels(rates())
    seconds = kernels.gemm(m, n, k, fmt, groups=groups)
    precision = {"bf16": "bf16", "fp8": "fp8cs", "mx": "fp8mx"}[fmt]
    assert seconds >= 2.0 * m * n * k * groups / kernels.product.peak_flops(precision)
    assert seconds >= groups * OPERAND_BYTES[fmt] * (m * k + k * n) / kernels.product.hbm_bytes_per_s


@given(dims, dims, dims, st.integers(1, 4096))
def test_a_longer_product_never_takes_much_less_time(m: int, n: int, k: int, more: int) -> None:
    kernels = Kernels(rates())
    # Rates were measured at a few depths, and libraries choose other kernels between them.
    assert kernels.gemm(m, n, k + more, "bf16") >= 0.95 * kernels.gemm(m, n, k, "bf16")


def test_large_products_reach_what_matmul_benchmarks_report() -> None:
    """bf16 on A100: 271 TFLOP/s at best, 312 on the data sheet (ml-engineering, maximum achievable matmul FLOPS)."""
    seconds = Kernels(rates("dgx-a100-80g")).gemm(8192, 8192, 8192, "bf16")
    assert 230e12 < 2 * 8192**3 / seconds < 272e12


def test_fp8_beats_bf16_on_large_products_and_not_on_tiny_ones() -> None:
    kernels = Kernels(rates())
    assert kernels.gemm(8192, 8192, 8192, "fp8") < 0.7 * kernels.gemm(8192, 8192, 8192, "bf16")
    assert kernels.gemm(64, 64, 64, "fp8") > 0.9 * kernels.gemm(64, 64, 64, "bf16")


def test_accumulating_into_fp32_costs_more() -> None:
    kernels = Kernels(rates())
    assert kernels.gemm(4096, 4096, 4096, "bf16", accumulate=True) > kernels.gemm(4096, 4096, 4096, "bf16")


def test_a_part_of_a_wave_costs_more_than_its_share() -> None:
    """109 tiles on 108 SMs take two waves on Ampere, whose libraries do not split tiles."""
    kernels = Kernels(rates("dgx-a100-80g"))
    full, spilled = (kernels.gemm(128 * tiles, 256, 8192, "bf16") for tiles in (108, 109))
    assert spilled > 1.3 * full


GROUPED = (
    (64, 512, 4096, 7168, 2.330e-3), (64, 512, 7168, 2048, 1.000e-3), (20, 1232, 3072, 5120, 0.671e-3),
    (20, 1232, 5120, 1536, 0.433e-3), (32, 1024, 4096, 7168, 1.871e-3), (32, 1024, 7168, 2048, 1.113e-3),
    (64, 512, 7168, 4096, 2.113e-3), (20, 1232, 5120, 3072, 0.817e-3), (20, 1232, 1536, 5120, 0.443e-3),
    (32, 1024, 7168, 4096, 1.964e-3), (32, 1024, 2048, 7168, 0.994e-3), (40, 2460, 5120, 3072, 3.044e-3),
)  # fmt: skip
"""Experts, tokens of each, outputs, inputs, seconds: Transformer Engine's `general_grouped_gemm` on B200 in bf16, forward and for the
input (SimuMax, configs/system/b200_bf16_ceperm.json)."""


def test_two_experts_products_share_the_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    b200: dict[int, list[float]] = {}
    for side_by_side in (1, 2, 4):
        monkeypatch.setattr(kernels, "SIDE_BY_SIDE", side_by_side)
        timed = Kernels(rates("dgx-b200"))
        b200[side_by_side] = [timed.gemm(m, n, k, "bf16", groups=experts) / s for experts, m, n, k, s in GROUPED]
    off = {side_by_side: fmean(abs(ratio - 1.0) for ratio in found) for side_by_side, found in b200.items()}
    assert off[2] < 0.8 * min(off[1], off[4])
    assert 0.96 < median(b200[2]) < 1.02
    assert median(b200[1]) > 1.05 > 0.98 > median(b200[4])


def test_attention_is_less_efficient_when_short_or_narrow() -> None:
    kernels = Kernels(rates())

    def rate(sequence: int, dim: int) -> float:
        flops = 1e13
        return flops / kernels.attention(flops=flops, sequence=sequence, head_dim=dim, backward=False, heads=8)

    assert rate(1024, 128) < rate(8192, 128)
    assert rate(8192, 64) < rate(8192, 128)


def test_a_board_of_fewer_watts_does_a_flop_of_fp8_for_fewer_joules() -> None:
    """B200 and GB200, one chip at two clocks and voltages: slower, by less than its watts are fewer."""
    low, high = (Kernels(rates(machine)) for machine in ("dgx-b200", "gb200-nvl72"))
    watts = (low.product.power_w or 0.0) / (high.product.power_w or 1.0)
    rate = low.reached("fp8") * low.rate["fp8"] / (high.reached("fp8") * high.rate["fp8"])
    assert watts < rate < 1.0
    assert rate == pytest.approx(watts**0.5, rel=0.01)


def test_a_product_that_was_slowed_when_it_was_measured_is_not_slowed_once_more_in_full() -> None:
    made = Kernels(rates("gb200-nvl72"))

    def rate(m: int, n: int, k: int, kept: float = 1.0) -> float:
        seconds = made.gemm(m, n, k, "fp8")
        return 2.0 * m * n * k / seconds / (made.rate["fp8"] * kept)

    large, larger = (kernels.LARGE,) * 3, (8192, 16384, 26624)
    burst = made._share("fp8", *larger) / made._share("fp8", *large)
    assert burst < 0.95  # the table's own reading of it
    assert rate(*larger) / rate(*large) == pytest.approx(burst**0.5, rel=0.02)
    assert rate(*large) == pytest.approx(made.reached("fp8"), rel=0.02)


def test_matrix_units_that_are_cut_by_design_wait_less_for_the_same_multiprocessor() -> None:
    for cut, whole in (("hgx-h20", "dgx-h100"), ("rtx4090-8", "l40s-pcie-8"), ("rtx5090-8", "rtxpro6000-8")):
        less, more = Kernels(rates(cut)), Kernels(rates(whole))
        for fmt in ("bf16", "fp8"):
            assert more.reached(fmt) < less.reached(fmt) < 1.0
    assert Kernels(rates("hgx-h800")).reached("fp8") == Kernels(rates("dgx-h100")).reached("fp8")


@pytest.mark.parametrize("name", product_names())
def test_no_product_is_faster_than_its_peak(name: str) -> None:
    sheet = product(name)
    assert sheet is not None
    kernels = Kernels(replace(rates("dgx-h100"), product=sheet))
    assert all(0.0 < kernels.reached(fmt) <= 1.0 for fmt in kernels.rate if fmt != "vector")


def test_the_host_is_as_fast_as_its_cpu_whatever_gpu_stands_beside() -> None:
    hosts = [Kernels(rates(name)).silicon.host for name in ("dgx-h100", "dgx-b200", "dgx-b300", "gh200", "gb200-nvl72")]
    assert hosts[0] == hosts[1] == hosts[2] < hosts[3] == hosts[4]

"""Where the constants of the memory model are from: each beside what it was taken from, or the rows that it was settled on."""

from __future__ import annotations

import re
import runpy
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from parlaunch.estimate.allocator import DEEPEP_BUFFER, MIB, WORKSPACE
from parlaunch.estimate.cross_entropy import LOGIT
from parlaunch.estimate.memory import PEAK_BAND, RISK
from parlaunch.estimate.stages import MERGE
from parlaunch.estimate.states import BUCKET, FRAGMENTS, KEEPING, MOMENT
from parlaunch.hardware.datasheet import product, product_names
from parlaunch.model.catalog import architecture

ROOT = Path(__file__).parents[2]
Peaks = dict[str, list[Any]]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "make" / "memory_accuracy.py"), run_name="memory_accuracy")


@pytest.fixture(scope="module")
def today(script: dict[str, Any]) -> Peaks:
    """Measured peaks of 2024 to 2026, by source."""
    return dict(script["peaks"](sorted((ROOT / "validation").glob("*_memory.jsonl"))))


@pytest.fixture(scope="module")
def of_2022(script: dict[str, Any]) -> list[float]:
    """Predicted over measured, less one, of BLOOM's candidates."""
    found = script["peaks"]([ROOT / "validation" / "bloom_memory.jsonl"], "2022")
    return [peak.off() for rest in found.values() for peak in rest]


def at(share: float, values: Sequence[float]) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def test_no_prediction_of_a_source_of_today_is_far_below_what_was_measured(today: Peaks) -> None:
    """The side that runs out: never more than 5 %, and 4 % on average, allocated and reserved each against its own."""
    for source, peaks in today.items():
        for kind in ("allocated", "reserved"):
            offs = [peak.off() for peak in peaks if peak.run.memory_kind == kind]
            if offs:
                assert min(offs) > -0.05, (source, kind)
                assert fmean(map(abs, offs)) < 0.04, (source, kind)


def test_the_page_has_the_figures_of_today(script: dict[str, Any], today: Peaks) -> None:
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert script["page"](text, script["section"](today)) == text, "run scripts/make/memory_accuracy.py"


def test_empty_blocks_are_what_runs_without_growing_segments_had(today: Peaks) -> None:
    wanted = [blocks for peaks in today.values() for peak in peaks if (blocks := peak.wanted()) is not None]
    assert len(wanted) >= 8
    assert median(wanted) == pytest.approx(FRAGMENTS, rel=0.12)
    assert fmean(wanted) == pytest.approx(FRAGMENTS, rel=0.12)


def test_the_band_holds_two_of_three_runs_of_a_source_that_was_not_seen(today: Peaks) -> None:
    """And is not twice as wide as the widest source needs: that, to the next whole percent."""
    inside, needed = [], []
    for name, peaks in today.items():
        others = [blocks for other, rest in today.items() if other != name for p in rest if (blocks := p.wanted())]
        fragments = median(others) if others else 0.0
        inside += [abs(peak.off(fragments)) <= peak.memory.error_band for peak in peaks]
        needed.append(at(0.68, [abs(peak.off()) for peak in peaks]))
    assert fmean(inside) >= 0.62
    assert max(needed) <= PEAK_BAND["today"] * 1.1
    assert PEAK_BAND["today"] <= ceil(100 * max(needed)) / 100


def test_the_risk_is_what_one_run_of_twenty_needs(today: Peaks, of_2022: list[float]) -> None:
    beyond = [-peak.off() - peak.memory.risk_band for peaks in today.values() for peak in peaks]
    assert max(beyond) < 0
    needed = at(0.95, [-off / (1 + off) for off in of_2022])
    assert needed <= RISK["2022"] <= 1.5 * needed
    for era, band in PEAK_BAND.items():
        assert 1.25 * band <= RISK[era] <= 1.55 * band


def test_the_band_of_2022_is_the_ninetieth_percentile_of_blooms_candidates(of_2022: list[float]) -> None:
    assert len(of_2022) > 40
    assert PEAK_BAND["2022"] == pytest.approx(at(0.9, [abs(off) for off in of_2022]), rel=0.15)


@pytest.mark.parametrize("name", MOMENT)
def test_a_moment_takes_the_bits_of_its_format(name: str) -> None:
    found = re.search(r"\d+", name)
    assert found is not None
    assert MOMENT[name] == int(found[0]) / 8


@pytest.mark.parametrize("name", product_names())
def test_workspaces_are_transformer_engines(name: str) -> None:
    """32 MiB from compute capability 9 on, 4 before (`pytorch/cpp_extensions/gemm.py`, `get_cublas_workspace_size_bytes`)."""
    sheet = product(name)
    assert sheet is not None
    assert sheet.compute_capability is not None
    large = sheet.compute_capability >= (9, 0)
    assert WORKSPACE.get(sheet.arch, 4 * MIB) == (32 if large else 4) * MIB


def test_transformer_engines_loss_works_in_place_and_later_makes_gradients_in_float32() -> None:
    narrow, wide = 2, 4
    assert LOGIT["te"] == (narrow, narrow)
    assert LOGIT["te_wide"] == (narrow + wide, wide)


def test_buckets_are_deepspeeds_defaults() -> None:
    """`reduce_bucket_size` and `allgather_bucket_size` are 5e8 elements: three of 16 bits, or two of float32 and one of 16 bits."""
    assert BUCKET == 5e8
    buckets = KEEPING["deepspeed"].buckets or {}
    assert buckets["fp16"] == 3 * 2 * 5e8
    assert buckets["bf16"] == (2 * 4 + 2) * 5e8


def test_patches_are_merged_as_most_encoders_of_the_catalog_merge_them() -> None:
    said = architecture("Qwen/Qwen2.5-VL-7B-Instruct").encoder
    assert said is not None
    assert said.spatial_merge_size == MERGE


DEEPEP_SLOTS = {64: 288, 128: 560}
"""Tokens that a channel receives over NVLink, by ranks (DeepEP, `deep_ep/buffers/legacy.py`, `get_dispatch_config`)."""


def test_buffers_of_deepep_are_between_its_hints_for_64_and_for_128_ranks() -> None:
    """`csrc/legacy/config.hpp`, `get_nvl_buffer_size_hint` and `get_rdma_buffer_size_hint`: a token in 16 bits with room for 128 choices
    (an int64 and two floats each) and where it came from, over ten channels (20 multiprocessors, Megatron Core's default)."""
    hints = []
    for ranks, received in DEEPEP_SLOTS.items():
        slot = 2 * 7168 + 8 + 128 * (8 + 4 + 4)
        near = 10 * 8 * received * slot
        far = 10 * (ranks // 8) * 128 * (slot + 16) * 2
        hints.append(near + far)
    assert hints[0] < DEEPEP_BUFFER < hints[1]
    assert fmean(hints) == pytest.approx(DEEPEP_BUFFER, rel=0.1)

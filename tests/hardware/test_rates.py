"""A machine boiled down to rates, and what of them is assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.data import load
from parlaunch.hardware.datasheet import preset, product
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan

PRESETS = load("presets.json")["presets"]
COMPUTED = {"flops": "TFLOP/s", "hbm_bytes_per_s": "memory bandwidth", "sms": "SMs", "memory_bytes": "GiB of memory"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_that_a_table_assumes_is_named(name: str) -> None:
    row, cluster = PRESETS[name], preset(name, 2)
    sheet = product(cluster.gpu.name)
    assert sheet is not None
    assumed = " ".join(rates_of(cluster).assumed)
    for field, word in COMPUTED.items():
        assert (word in assumed) == (field in sheet.assumed), field
    assert (f"a node of {name}: usual there" in assumed) == ("fabric" in row["assumed"])
    assert ("PCIe" in assumed) == ("pcie_bytes_per_s" in sheet.assumed and cluster.nvlink_domain_size == 1)


def test_what_was_measured_or_is_not_used_is_not_assumed() -> None:
    cluster = preset("rtxpro6000-8")
    assert any("TFLOP/s" in s for s in rates_of(cluster).assumed)
    file = {"schema": "parlaunch.machine/1", "gpu": "RTX PRO 6000 Blackwell Server", "measured": {"gemm_bf16": 0.7}}
    sheet = product(cluster.gpu.name)
    assert sheet is not None
    assert not any("TFLOP/s" in s for s in rates_of(cluster, machine_file=file | {"gpu": sheet.name}).assumed)
    alone, rack = preset("vr200-nvl72"), preset("vr200-nvl72", 2)
    assert not any("infiniband" in s for s in rates_of(alone).assumed), "one node uses no fabric"
    probed = replace(rack, assumed=(), source="probe")
    assert not any("GiB of memory" in s for s in rates_of(probed).assumed), "the GPU said what it has"


def test_a_plan_warns_of_what_it_assumes_and_of_clocks_where_scans_are_timed_by_them() -> None:
    rubin = plan(preset("vr200-nvl72", 2), catalog.recipe("llama32_1b_pretrain_config"), Wishes()).warnings
    assert sum("VR200" in w for w in rubin if w.startswith("assumed: ")) == 2
    clock = "assumed: 1.78 GHz of H100 NVL: recalled or derived, not read in its data sheet"
    assert clock in plan(preset("h100-nvl-8"), catalog.recipe("nemotronh_4b_pretrain_config"), Wishes()).warnings
    assert clock not in plan(preset("h100-nvl-8"), catalog.recipe("llama32_1b_pretrain_config"), Wishes()).warnings
    assert not plan(preset("dgx-h100"), catalog.recipe("llama32_1b_pretrain_config"), Wishes()).warnings

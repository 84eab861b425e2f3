"""Versions that do not go together, with each other, the GPU or the driver: named, and silent where a version is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.doctor.software import SOFTWARE_INSPECTIONS
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.installed import PACKAGES, newest, releases

GOOD = dict(newest().versions)


def said(machine: str, driver_cuda: str | None = "13.2", **versions: str | None) -> list[str]:
    cluster = preset(machine, 1)
    have = tuple((p, v) for p, v in (GOOD | versions).items() if p in PACKAGES)
    node = replace(cluster.nodes[0], software=have, driver="580.1", cuda=driver_cuda)
    found = examine(Cluster(source="probe", nodes=(node,)))
    return [f"{f.severity} {f.check}: {f.saw}" for f in found if f.check.startswith("software-")]


@pytest.mark.parametrize(
    ("machine", "versions", "begins"),
    [
        ("dgx-b200", {"cuda": "12.6"}, "FAIL software-gpu: PyTorch is built with CUDA 12.6, which knows no compute capability 10.0"),
        ("dgx-b300", {"cuda": "12.8"}, "FAIL software-gpu: PyTorch is built with CUDA 12.8, which knows no compute capability 10.3"),
        ("dgx1-v100", {"cuda": "13.0"}, "FAIL software-gpu: PyTorch is built with CUDA 13.0, which no longer compiles for"),
        ("dgx-h100", {"cuda": "13.0", "driver_cuda": "12.4"}, "WARN software-driver: PyTorch is built with CUDA 13.0, and driver"),
        ("dgx-h100", {"megatron_core": "0.15.0"}, "WARN software-core: Megatron Bridge 0.6.0 with Megatron Core 0.15.0"),
        ("dgx-h100", {"cudnn": "9.1.0"}, "WARN software-cudnn: Transformer Engine"),
        ("dgx-h100", {"megatron_bridge": "0.2.0", "megatron_core": "0.15.0", "deep_ep": "1.1"}, "WARN software-deepep: DeepEP 1.1"),
        ("dgx-h100", {"torch": "2.5.1"}, "INFO software-switches: PyTorch 2.5.1: overlapping the expert all-to-all hangs"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_what_does_not_go_together_is_named(machine: str, versions: dict[str, str], begins: str) -> None:
    found = said(machine, **versions)
    assert any(line.startswith(begins) for line in found), found


def test_every_row_about_software_is_tried_above_and_the_newest_release_is_clean() -> None:
    assert said("dgx-h100") == said("gb200-nvl72") == []
    assert {row.name for row in SOFTWARE_INSPECTIONS} == {
        "software-gpu", "software-driver", "software-core", "software-cudnn", "software-deepep", "software-switches",
    }  # fmt: skip


def test_versions_that_nobody_knows_make_no_finding() -> None:
    cluster = preset("dgx-b300", 1)
    assert not [f for f in examine(cluster) if f.check.startswith("software-")]


def test_every_release_goes_with_itself() -> None:
    for release in releases():
        have = dict.fromkeys(PACKAGES) | dict(release.versions)
        assert not [line for line in said("dgx-h100", **have) if "software-core" in line], release.source

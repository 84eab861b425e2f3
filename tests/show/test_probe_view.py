"""The screen of `parlaunch probe`, whole, in colour and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from parlaunch.hardware.cluster import Cluster, Gpu, Node
from parlaunch.hardware.datasheet import preset
from parlaunch.show.probe_view import probe_to_text
from parlaunch_probes import capture
from tests.probes.chaos import SAVED

SCREENS = [
    "nvml-dgx-h100",
    "nvml-dgx-h100-ports",
    "nvml-a100-pairs",
    "nvml-gb200-no-imex",
    "nvml-aws-p5",
    "nvml-dgx2-v100",
    "nvml-h100-pod",
]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("name", SCREENS)
def test_a_machine_on_one_screen(golden: Callable[[str, str], None], name: str) -> None:
    cluster = capture.read(SAVED / name)
    plain = probe_to_text(cluster, colour=False)
    golden(f"probe_{name.removeprefix('nvml-')}.txt", plain)
    golden(f"probe_{name.removeprefix('nvml-')}_colour.txt", probe_to_text(cluster, colour=True))
    assert plain.count("\n") <= 55


@pytest.mark.parametrize("folder", sorted(p.name for p in SAVED.iterdir() if p.is_dir()))
def test_every_saved_machine_fits_its_width_and_says_the_same_in_colour(folder: str) -> None:
    cluster = capture.read(SAVED / folder)
    for width in (80, 100, 160):
        plain = probe_to_text(cluster, colour=False, width=width)
        assert COLOUR.sub("", probe_to_text(cluster, colour=True, width=width)) == plain
        assert "\x1b" not in plain
        long = [line for line in plain.splitlines() if len(line) > width and " " in line.strip()]
        assert not long, (width, long)


def test_nodes_that_are_alike_are_shown_once(golden: Callable[[str, str], None]) -> None:
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    nodes = [replace(node, hostname=f"dgx{i:02d}") for i in range(12)]
    nodes[7] = replace(nodes[7], gpus=nodes[7].gpus[:7])
    cluster = replace(capture.read(SAVED / "nvml-dgx-h100"), nodes=tuple(nodes))
    golden("probe_nodes.txt", probe_to_text(cluster, colour=False))


def test_a_rack_of_trays_says_how_far_nvlink_reaches() -> None:
    text = probe_to_text(preset("gb200-nvl72", 18), colour=False)
    assert "18 nodes, 72 GPUs" in text
    assert "NVLink reaches over nodes: 72 GPUs on 18 nodes" in text


def test_a_machine_of_which_nothing_is_known_has_a_screen() -> None:
    text = probe_to_text(
        Cluster(source="probe", nodes=(Node(hostname="x", gpus=(Gpu(index=0, name="unknown"),)),)), colour=False
    )
    assert "1 x GPU of an unknown model" in text
    assert "NVLink: not known" in text

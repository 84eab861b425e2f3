"""A whole probe of one node, against a library that answers as the real one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch_probes import Host, probe
from tests.fake_nvml import Fake


@pytest.fixture
def empty(tmp_path: Path) -> Host:
    """A host whose files say nothing: NVML is all there is."""
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


MACHINES = [
    ("dgx_h100", 8, "nvswitch", [tuple(range(8))], 450e9),
    ("gb200_tray", 4, "nvswitch_mnnvl", [(0, 1, 2, 3)], 900e9),
    ("a100_pcie_pairs", 4, "pairs", [(0, 1), (2, 3)], 300e9),
    ("l40s", 4, "none", [], None),
    ("dgx1_v100", 8, "cube_mesh", [tuple(range(8))], 150e9),
    ("hgx_a100_4", 4, "mesh", [(0, 1, 2, 3)], 300e9),
]


@pytest.mark.parametrize(("name", "count", "kind", "domains", "rate"), MACHINES)
def test_the_nvlink_picture_of_a_healthy_machine(
    fake_nvml: Fake, name: str, count: int, kind: str, domains: list[tuple[int, ...]], rate: float | None
) -> None:
    from parlaunch_probes.nvml import LibraryNvml

    fake_nvml.use(name)
    cluster = probe(nvml=LibraryNvml())
    (node,) = cluster.nodes
    assert len(node.gpus) == count
    assert node.link_type == kind
    assert list(cluster.nvlink_domains) == domains
    assert {g.nvlink_bytes_per_s for g in node.gpus} == {rate}
    assert node.nvml_error is None
    assert not node.gpus_unusable

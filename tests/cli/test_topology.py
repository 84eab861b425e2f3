"""Node ranks follow the switches of a topology file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Said

TREE = """\
SwitchName=leaf0 Level=0 LinkSpeed=1 Nodes=dgx-h100-0000[0,2]
SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=dgx-h100-0000[1,3]
SwitchName=top Level=1 LinkSpeed=1 Nodes=dgx-h100-0000[0-3] Switches=leaf[0-1]
"""
PLAN = ("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:4", "--format", "json")


def test_nodes_of_one_leaf_stand_together(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "topology.txt"
    file.write_text(TREE)
    order = json.loads(parlaunch(*PLAN, "--topology", str(file)).out)["rank_order"]
    assert order == [f"dgx-h100-0000{i}" for i in (0, 2, 1, 3)]


def test_a_file_without_switches_is_refused_by_name(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "topology.txt"
    file.write_text("slurm_load_topology error\n")
    said = parlaunch(*PLAN, "--topology", str(file))
    assert said.code == 2
    assert "topology.txt names no switch" in said.err

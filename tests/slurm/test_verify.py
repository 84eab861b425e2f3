"""The first iterations verified inside a Slurm step."""

from __future__ import annotations

import json

import pytest

from parlaunch_launch.become import installed
from tests.conftest import need
from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.slurm


def test_one_node_of_a_job_is_verified_and_remembered(cluster: Cluster) -> None:
    need(installed("torch") and installed("megatron.core"), "torch and megatron-core")
    words = cluster.parlaunch("--iterations", "3", "--tp", "1", "--format", "json", script=False)
    words.insert(words.index("parlaunch") + 1, "verify")
    state = cluster.place / "state"
    done = cluster.srun("-N1", "-n1", argv=words, within=150, XDG_STATE_HOME=str(state))
    assert done.code == 0, done.text
    said = json.loads(done.text[done.text.index("{") :].rpartition("}")[0] + "}")
    assert said["schema"] == "parlaunch.verify/1"
    (run,) = said["runs"]
    ok = {check["name"]: check["ok"] for check in run["checks"]}
    assert ok["finished"]
    assert ok["finite loss"]
    assert ok["layout"]
    assert run["iteration_time_s"] > 0
    (row,) = (json.loads(line) for line in (state / "parlaunch" / "history.jsonl").read_text().splitlines())
    assert row["status"] == "ok"
    cluster.nothing_left()


def test_several_nodes_are_told_how_to_verify(cluster: Cluster) -> None:
    words = cluster.parlaunch("--iterations", "3")
    words.insert(words.index("parlaunch") + 1, "verify")
    done = cluster.srun("-N2", "--ntasks-per-node=1", argv=words)
    assert done.code == 2
    assert "verify runs on one machine" in done.text

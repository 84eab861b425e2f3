"""doctor started on all nodes of a job by a real srun."""

from __future__ import annotations

import json

import pytest

from tests.slurm.conftest import PATIENCE_S, Cluster

pytestmark = pytest.mark.slurm


def test_all_nodes_of_a_job_come_into_one_report(cluster: Cluster) -> None:
    words = cluster.parlaunch(script=False)
    doctor = [*words[: words.index("parlaunch") + 1], "doctor", "--format", "json"]
    patient = [*doctor, "--agree-timeout", f"{PATIENCE_S}"]
    done = cluster.srun("-N2", "--ntasks-per-node=1", argv=patient)
    said = json.loads(done.out)
    assert said["schema"] == "parlaunch.doctor/1"
    assert len(said["nodes"]) == 2
    assert done.code == (0 if said["ok"] else 1)
    seen = {(f["check"], f["node"]) for f in said["findings"]}
    assert {node for _, node in seen} == set(said["nodes"]), said
    assert not {check for check, _ in seen} & {"node-absent", "node-unreadable", "nodes-clock"}
    alone = cluster.srun("-N2", "--ntasks-per-node=1", argv=[*doctor, "--alone"])
    assert alone.out.count('"schema": "parlaunch.doctor/1"') == 2

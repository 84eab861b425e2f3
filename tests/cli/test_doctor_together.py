"""doctor with all nodes of a job: who came, who did not, and one table of what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from parlaunch.cli.doctor import _is_task_of_several, of_all
from parlaunch.doctor.preflight import findings_to_text
from parlaunch.hardware.cluster import cluster_to_json
from parlaunch.where.situation import Situation
from parlaunch_probes import capture
from tests.probes.chaos import SAVED


def situation(nodes: int, kind: str = "slurm-step") -> Situation:
    names = tuple(f"n{i}" for i in range(nodes))
    return Situation(kind=kind, why="a test", hostname="n0", node_rank=0, nnodes=nodes, nodelist=names)


def brought(number: int, *, ahead_s: float | None = 0.0, **changes: Any) -> dict[str, Any]:
    """What one node brings, as the first one sees it."""
    cluster = capture.read(SAVED / "nvml-dgx-h100")
    node = replace(cluster.nodes[0], **changes)
    return {
        "hardware": cluster_to_json(replace(cluster, nodes=(node,))),
        "agreement": {"hostname": f"n{number}", "seat": number, "address": "127.0.0.1", "ahead_s": ahead_s},
    }


def test_nodes_that_did_not_come_or_cannot_be_read_are_findings_beside_the_others() -> None:
    everyone = [
        brought(0),
        brought(1, ahead_s=30.0),
        {"unreadable": "no /sys here", "agreement": brought(2)["agreement"]},
        brought(4, driver="535.1", driver_kernel="535.1"),
    ]
    looked = of_all(everyone, situation(5), 60.0)
    assert set(looked.nodes) == {"n0", "n1", "n2", "n3", "n4"}
    said = {(f.check, f.severity, f.node): f.saw for f in looked.found}
    assert said["node-unreadable", "FAIL", "n2"] == "cannot be looked at: no /sys here"
    assert said["node-absent", "FAIL", "n3"] == "did not answer in 60 s"
    assert said["nodes-driver", "WARN", "n4"].startswith("driver 535.1; most nodes")
    assert said["nodes-clock", "WARN", "n1"] == "its clock is 30.0 s ahead of that of most nodes"
    assert looked.sick
    text = findings_to_text(looked.found, nodes=looked.nodes, unknown=looked.unknown)
    assert text.startswith("5 nodes: FAIL on 2 (n[2-3]), WARN on 2\n")
    assert "not known: n[0-1,4]: the kernel log may not be read" in text.replace("\n           ", " ")


def test_the_nodes_of_a_job_are_judged_for_all_of_its_nodes() -> None:
    small = of_all([brought(i, memlock_bytes=65536) for i in range(2)], situation(2), 60.0)
    assert [(f.check, f.node) for f in small.found if f.severity == "FAIL"] == [("memlock", "n0"), ("memlock", "n1")]


def test_only_tasks_of_a_launcher_whose_output_comes_together_meet() -> None:
    assert _is_task_of_several(situation(2))
    assert _is_task_of_several(situation(2, "mpi"))
    assert not _is_task_of_several(situation(1))
    assert not _is_task_of_several(situation(2, "slurm-batch"))
    assert not _is_task_of_several(situation(2, "pytorchjob"))

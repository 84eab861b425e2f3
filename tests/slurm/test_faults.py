"""Nodes that are sick, die or are taken away on a real Slurm: every other node ends soon, and nothing is left."""

from __future__ import annotations

import shlex
import time

import pytest

from tests.slurm.conftest import Cluster, lines_with

pytestmark = pytest.mark.slurm

TWO = ("-N2", "--ntasks-per-node=1")
SICK = "set 0 remap=1,2,0,1"  # a row remap that failed


def test_a_sick_node_stops_the_launch_with_its_name(cluster: Cluster) -> None:
    cluster.gpus("gpu02", extra=SICK)
    done = cluster.srun("-N3", "--ntasks-per-node=1", "-w", "gpu[01-03]", argv=cluster.parlaunch(device="cuda"))
    assert done.code == 1, done.text
    said = lines_with(done.text, "preflight: gpu02 cannot run this job")
    assert len(said) == 3
    assert len(set(said)) == 1
    assert done.workers == []
    cluster.nothing_left()


def test_with_a_spare_the_job_runs_without_the_sick_node(cluster: Cluster) -> None:
    cluster.gpus("gpu02", extra=SICK)
    argv = cluster.parlaunch("--spares", "1", device="cuda")
    done = cluster.srun("-N3", "--ntasks-per-node=1", "-w", "gpu[01-03]", argv=argv)
    assert done.code == 0, done.text
    assert [(w["rank"], w["host"]) for w in done.workers] == [(0, "gpu01"), (1, "gpu01"), (2, "gpu03"), (3, "gpu03")]
    assert "gpu02 is a spare and not needed" in done.text


def test_a_node_killed_during_the_agreement_is_named_and_the_others_end(cluster: Cluster) -> None:
    own = shlex.join(cluster.parlaunch("--agree-timeout", "50"))
    # The third node is late, so that the others wait; the second dies meanwhile.
    late = f"[ $SLURM_NODEID = 2 ] && sleep 20; exec {own}"
    started = cluster.start(["srun", "-N3", "--ntasks-per-node=1", "bash", "-c", late])
    [pid] = cluster.until(lambda: [p for p in cluster.processes("-m parlaunch", "gpu02")] if _waits(cluster) else [])
    cluster.kill([pid])
    done = cluster.finish(started, within=60)
    assert done.code != 0
    assert "node gpu02 came and then fell silent" in done.text, done.text
    assert done.workers == []
    cluster.nothing_left()


def _waits(cluster: Cluster) -> bool:
    """Whether the second node is in the agreement: it holds a connection to the first."""
    for pid in cluster.processes("-m parlaunch", "gpu02"):
        try:
            with open(f"/proc/{pid}/net/tcp6") as six, open(f"/proc/{pid}/net/tcp") as four:
                rows = [line.split()[1:4] for line in (*six, *four)]
        except OSError:
            continue
        # 0B014D0A is 10.77.1.11 in the kernel's byte order; state 01 is an established connection.
        if any(len(row) == 3 and row[1].split(":")[0].endswith("0B014D0A") and row[2] == "01" for row in rows):
            time.sleep(1)
            return True
    return False


@pytest.mark.parametrize("victim", ["torch.distributed.run", "worker.py"])
def test_a_death_during_training_ends_every_node_under_a_plain_srun(cluster: Cluster, victim: str) -> None:
    """srun without --kill-on-bad-exit, and workers that do not communicate: nobody but us would notice."""
    started = cluster.start(["srun", *TWO, *cluster.parlaunch()], WORKER="sleep:200")
    cluster.until(lambda: len(_workers(cluster)) == 2)
    [node] = {"gpu01", "gpu02", "gpu03", "gpu04"} & {_last_node(cluster)}
    targets = _workers(cluster, node) if victim == "worker.py" else _agents(cluster, node)
    began = time.monotonic()
    cluster.kill(targets)
    done = cluster.finish(started, within=60, since=began)
    assert done.code != 0
    assert f"torchrun on {node} ended with exit code" in done.text, done.text
    assert done.seconds < 60
    cluster.nothing_left()


def _workers(cluster: Cluster, node: str = "") -> list[int]:
    """The workers themselves: torchrun has the script's name on its command line too, and parlaunch before it becomes torchrun."""
    every = set(cluster.processes("worker.py", node))
    for not_yet in ("-m parlaunch", "torch.distributed.run"):  # in the order in which a process is one, then the other
        every -= set(cluster.processes(not_yet, node))
    return sorted(every)


def _agents(cluster: Cluster, node: str) -> list[int]:
    return sorted(set(cluster.processes("torch.distributed.run", node)) - set(cluster.processes("supervise", node)))


def _last_node(cluster: Cluster) -> str:
    """The node of the highest rank: not the one that the others watch."""
    return max(node for node in ("gpu01", "gpu02", "gpu03", "gpu04") if _workers(cluster, node))


def test_scancel_ends_every_process(cluster: Cluster) -> None:
    job = cluster.sbatch(*TWO, body=shlex.join(cluster.parlaunch()), WORKER="sleep:200")
    cluster.until(lambda: len(_workers(cluster)) == 2)
    cluster.call("scancel", job)
    done = cluster.wait(job, within=30)
    assert cluster.state(job) == "CANCELLED"
    assert "agreed on one plan" in done.text
    cluster.nothing_left()

"""Nodes that are sick, die or are taken away on a real Slurm: every other node ends soon, and nothing is left."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable

import pytest

from tests.slurm.conftest import APART, Cluster, lines_with

pytestmark = pytest.mark.slurm

TWO = ("-N2", "--ntasks-per-node=1")
SICK = "set 0 remap=1,2,0,1"  # a row remap that failed


def test_a_sick_node_stops_the_launch_with_its_name(cluster: Cluster) -> None:
    cluster.gpus("gpu02", extra=SICK)
    done = cluster.srun("-N3", "--ntasks-per-node=1", "-w", "gpu[01-03]", argv=cluster.parlaunch(device="cuda"))
    assert done.code == 1, done.text
    said = lines_with(done.text, "preflight: gpu02 cannot run this job")
    assert len(said) == 1  # by the first node alone
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
    own = shlex.join(cluster.parlaunch())
    # The third node comes late, so that the others wait; the second dies meanwhile.
    late = f"[ $SLURM_NODEID = 2 ] && until [ -e {cluster.place}/go ]; do sleep 0.1; done; exec {own}"
    started = cluster.start(["srun", "-N3", "--ntasks-per-node=1", APART, "bash", "-c", late])
    [pid] = cluster.until(lambda: [p for p in cluster.processes("-m parlaunch", "gpu02")] if _waits(cluster) else [])
    cluster.kill([pid])
    cluster.go()
    done = cluster.finish(started)
    assert done.code != 0
    assert "node gpu02 came and then went away" in done.text, done.text
    assert done.workers == []
    cluster.nothing_left()


def _waits(cluster: Cluster) -> bool:
    """Whether the second node is in the agreement: it has proved itself to the first, and listens for the watch."""
    for pid in cluster.processes("-m parlaunch", "gpu02"):
        try:
            with open(f"/proc/{pid}/net/tcp6") as six, open(f"/proc/{pid}/net/tcp") as four:
                rows = [line.split()[1:4] for line in (*six, *four)]
        except OSError:
            continue
        # 0B014D0A is 10.77.1.11 in the kernel's byte order; state 01 is an established connection, 0A one that listens.
        ends = {(row[0].split(":")[0][-8:], row[1].split(":")[0][-8:], row[2]) for row in rows if len(row) == 3}
        if {("0C014D0A", "0B014D0A", "01"), ("0C014D0A", "00000000", "0A")} <= ends:
            time.sleep(1)
            return True
    return False


@pytest.mark.parametrize("victim", ["torchrun", "worker.py"])
def test_a_death_during_training_ends_every_node_under_a_plain_srun(cluster: Cluster, victim: str) -> None:
    """srun without --kill-on-bad-exit, and workers that do not communicate: nobody but us would notice."""
    started = cluster.start(["srun", *TWO, *cluster.parlaunch()], WORKER="sleep")
    cluster.until(lambda: len(_workers(cluster)) == 2)
    [node] = {"gpu01", "gpu02", "gpu03", "gpu04"} & {_last_node(cluster)}
    targets = _workers(cluster, node) if victim == "worker.py" else _agents(cluster, node)
    cluster.kill(targets)
    done = cluster.finish(started)
    assert done.code == 137, done.text
    assert f"training on {node} ended with exit code 137 (SIGKILL)" in done.text, done.text
    cluster.nothing_left()


def _workers(cluster: Cluster, node: str = "") -> list[int]:
    """The workers themselves: the script's name is on the command lines of our processes too, and of what becomes them."""
    return cluster.processes("worker.py", node, without="-m parlaunch")


def _agents(cluster: Cluster, node: str) -> list[int]:
    return cluster.processes("-m parlaunch_launch.elastic", node)


def _last_node(cluster: Cluster) -> str:
    """The node of the highest rank: not the one that the others watch."""
    return max(node for node in ("gpu01", "gpu02", "gpu03", "gpu04") if _workers(cluster, node))


@pytest.mark.parametrize("phase", ["meeting", "training"])
def test_scancel_ends_every_process(cluster: Cluster, phase: str) -> None:
    own, ready = _in_phase(cluster, phase)
    job = cluster.sbatch(*TWO, "-w", "gpu[01-02]", body=f"srun {shlex.join(own)}", WORKER="sleep")
    cluster.until(ready)
    cluster.call("scancel", job)
    cluster.wait(job)
    assert cluster.state(job) == "CANCELLED"
    cluster.nothing_left()


@pytest.mark.parametrize("phase", ["meeting", "training"])
def test_two_interrupts_of_srun_end_every_process(cluster: Cluster, phase: str) -> None:
    own, ready = _in_phase(cluster, phase)
    started = cluster.start(["srun", *TWO, "-w", "gpu[01-02]", *own], WORKER="sleep")
    cluster.until(ready)

    # Two within a second, as srun sees them: on a busy machine the first two may be one, or too far apart.
    def interrupted() -> bool:
        started.send_signal(signal.SIGINT)
        return started.poll() is not None

    cluster.until(interrupted)
    assert cluster.finish(started).code != 0
    cluster.nothing_left()


def _in_phase(cluster: Cluster, phase: str) -> tuple[list[str], Callable[[], bool]]:
    """The command of a job, and whether it is so far: the first node waits for the second, which does not come, or all train."""
    own = cluster.parlaunch()
    if phase == "training":
        return own, lambda: len(_workers(cluster)) == 2
    absent = f"[ $SLURM_NODEID = 1 ] && exec sleep 600 # {cluster.place}/\nexec {shlex.join(own)}"
    return ["bash", "-c", absent], lambda: bool(cluster.processes("-m parlaunch", "gpu01"))

"""How jobs end on a real Slurm, each beside what torchrun alone does with the same workers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time

import pytest

from parlaunch_launch.become import installed
from parlaunch_launch.family import state_of
from tests.conftest import need
from tests.slurm.conftest import NODES, SCRIPT, Cluster, Done

pytestmark = pytest.mark.slurm

TWO = ("-N2", "-w", "gpu[01-02]", "--ntasks-per-node=1")


def torchrun(cluster: Cluster) -> list[str]:
    """torchrun as its own documentation starts it under srun."""
    cluster.parlaunch()
    words = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=gpu01"]
    own = shlex.join([sys.executable, *words, f"--master-port={21000 + cluster.number}"])
    return ["bash", "-c", f"exec {own} --node-rank=$SLURM_NODEID {cluster.place}/worker.py"]


def ready(cluster: Cluster) -> bool:
    return (cluster.place / "ready-0").exists() and (cluster.place / "ready-1").exists()


def saved(cluster: Cluster) -> list[bool]:
    return [(cluster.place / f"saved-{rank}").exists() for rank in (0, 1)]


def running(cluster: Cluster) -> bool:
    return len(list(cluster.place.glob("said-*"))) == 2


def stopped(cluster: Cluster) -> list[bool]:
    """Of every process of the job, whether it is stopped."""
    found = [state_of(pid) for node in NODES for pid in cluster.processes(node=node)]
    return [state[0] == "T" for state in found if state is not None]


@pytest.mark.parametrize(
    ("worker", "code"), [("exit:42", 42), (f"signal:{signal.SIGSEGV:d}", 139), (f"signal:{signal.SIGKILL:d}", 137)]
)
def test_the_first_failing_ranks_code_comes_out_of_a_plain_srun(cluster: Cluster, worker: str, code: int) -> None:
    """torchrun says 1 for each, and waits for the rank that does not communicate."""
    done = cluster.srun(*TWO, argv=cluster.parlaunch(), WORKER=worker)
    assert done.code == code, done.text
    if code == 137:
        assert "was killed (SIGKILL), and not by the kernel for want of memory" in done.text
    cluster.nothing_left()


@pytest.mark.parametrize("ours", [True, False], ids=["parlaunch", "torchrun"])
def test_a_suspended_and_resumed_job_ends_well(cluster: Cluster, ours: bool) -> None:
    argv = cluster.parlaunch() if ours else torchrun(cluster)
    started = cluster.start(["srun", *TWO, *argv], WORKER="until")
    cluster.until(lambda: running(cluster))
    job = cluster.job
    for verb, pause in (("suspend", 5), ("resume", 1), ("suspend", 3), ("resume", 0)):
        cluster.call("scontrol", verb, job)
        # Nodes hear of it one by one, and of two orders on their way the later one may come first.
        cluster.until(lambda stops=verb == "suspend": set(stopped(cluster)) == {stops})
        time.sleep(pause)
    cluster.go()
    done = cluster.finish(started)
    assert done.code == 0, done.text


@pytest.mark.parametrize("ours", [True, False], ids=["parlaunch", "torchrun"])
def test_a_network_that_is_cut_and_mended_ends_no_job(cluster: Cluster, ours: bool) -> None:
    argv = cluster.parlaunch() if ours else torchrun(cluster)
    started = cluster.start(["srun", *TWO, *argv], WORKER="until")
    cluster.until(lambda: running(cluster))
    folder = str(cluster.folder)
    for verb, pause in (("netdown", 6), ("netup", 0)):
        cluster.call(str(SCRIPT), verb, "-w", folder, "gpu02")
        time.sleep(pause)
    cluster.go()
    done = cluster.finish(started)
    assert done.code == 0, done.text


def test_a_frozen_supervisor_ends_no_job(cluster: Cluster) -> None:
    started = cluster.start(["srun", *TWO, *cluster.parlaunch()], WORKER="until")
    cluster.until(lambda: running(cluster))
    frozen = cluster.processes("-m parlaunch_launch.supervise", "gpu02")
    for number, pause in ((signal.SIGSTOP, 6), (signal.SIGCONT, 0)):
        for pid in frozen:
            os.kill(pid, number)
        time.sleep(pause)
    cluster.go()
    done = cluster.finish(started)
    assert done.code == 0, done.text


def test_uneven_saves_at_sigterm_are_all_written(cluster: Cluster) -> None:
    """The first node is done at once, the second needs longer than ours and torchrun's own patience (30 s)."""
    started = cluster.start(["srun", *TWO, *cluster.parlaunch()], WORKER="save:36")
    cluster.until(lambda: ready(cluster))
    cluster.call("scancel", "--signal=TERM", f"{cluster.job}.0")
    done = cluster.finish(started)
    assert saved(cluster) == [True, True], done.text
    assert done.code == 0, done.text


def _warned(cluster: Cluster, argv: list[str]) -> Done:
    started = cluster.start(["srun", *TWO, *argv], WORKER="save:1")
    cluster.until(lambda: ready(cluster))
    cluster.call("scancel", "--signal=USR1", f"{cluster.job}.0")
    return cluster.finish(started)


def test_usr1_of_a_time_limit_reaches_training_as_the_signal_it_handles(cluster: Cluster) -> None:
    """`--signal=USR1@300` sends it to every process of the step; training handles SIGTERM, as Megatron Bridge does."""
    done = _warned(cluster, cluster.parlaunch())
    assert saved(cluster) == [True, True], done.text
    assert done.code == 0, done.text


def test_usr1_kills_torchrun_alone(cluster: Cluster) -> None:
    done = _warned(cluster, torchrun(cluster))
    assert done.code != 0
    assert saved(cluster) == [False, False]


def test_usr1_for_the_batch_shell_goes_through_where_parlaunch_is_that_shell(cluster: Cluster) -> None:
    """`--signal=B:USR1@300` with `exec parlaunch` in the script: srun hands it on."""
    job = cluster.sbatch(*TWO, body=f"exec {shlex.join(cluster.parlaunch())}", WORKER="save:1")
    cluster.until(lambda: ready(cluster))
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    done = cluster.wait(job)
    assert saved(cluster) == [True, True], done.text
    assert done.code == 0, done.text


def test_a_requeued_job_saves_and_comes_back(cluster: Cluster) -> None:
    own = shlex.join(cluster.parlaunch())
    job = cluster.sbatch(*TWO, "--requeue", body=own, WORKER="resume", XDG_CACHE_HOME=str(cluster.place))
    cluster.until(lambda: ready(cluster))
    cluster.call("scontrol", "requeue", job)
    cluster.until(lambda: "restart 1 of job" in cluster.text())
    done = cluster.wait(job)
    assert saved(cluster) == [True, True]
    assert done.code == 0, done.text


def test_strangers_on_the_cluster_learn_and_end_nothing(cluster: Cluster) -> None:
    """From the login node: every port that node 0 has open is knocked at while the job trains."""
    started = cluster.start(["srun", *TWO, *cluster.parlaunch()], WORKER="until")
    cluster.until(lambda: running(cluster))
    knock = (
        "import socket\n"
        "for port in range(15000, 29400):\n"
        "    try:\n"
        "        with socket.create_connection(('gpu01', port), timeout=0.5) as made: made.sendall(b'{}\\n')\n"
        "    except OSError: pass\n"
    )
    scanned = cluster.call(str(SCRIPT), "exec", "-w", str(cluster.folder), "--", sys.executable, "-c", knock)
    assert scanned == ""
    cluster.go()
    done = cluster.finish(started)
    assert done.code == 0, done.text


@pytest.mark.parametrize(("worker", "code"), [("exit:42", 42), (f"signal:{signal.SIGKILL:d}", 137)])
def test_srun_that_kills_on_a_bad_exit_gives_the_ranks_code_with_several_tasks_a_node(
    cluster: Cluster, worker: str, code: int
) -> None:
    """--kill-on-bad-exit kills what is left when the first task fails; its 137 is not the job's."""
    options = ("-N2", "-w", "gpu[01-02]", "--ntasks-per-node=3", "--kill-on-bad-exit=1")
    done = cluster.srun(*options, argv=cluster.parlaunch(), WORKER=worker)
    assert done.code == code, done.text
    cluster.nothing_left()


def test_a_time_limit_with_requeue_saves_a_real_checkpoint_and_comes_back_to_it(cluster: Cluster) -> None:
    """Slurm itself warns the steps before the limit; the script requeues what is not finished."""
    need(installed("torch") and installed("megatron.core"), "torch and megatron-core")
    keep = ["checkpoint.save=saved", "checkpoint.load=saved", "train.exit_signal_handler=True"]
    own = shlex.join(cluster.parlaunch("--tp", "1", *keep, "scheduler.lr_decay_iters=100", script=False))
    body = f"""
at=$(sed -n 's/.*saved checkpoint of iteration \\([0-9]*\\).*/\\1/p' out.txt)
if [ -n "$SLURM_RESTART_COUNT" ]; then exec {own} train.train_iters=$((at + 2)); fi
{own} train.train_iters=100000 || exit
scontrol update JobId=$SLURM_JOB_ID TimeLimit=60  # the next run is not to be warned while it starts
scontrol requeue $SLURM_JOB_ID
sleep 600"""
    options = ("--requeue", "--signal=USR1@170", "--time=60")
    job = cluster.sbatch(*TWO, *options, body=body, XDG_CACHE_HOME=str(cluster.place))
    cluster.until(lambda: "iteration        3/" in cluster.text())
    # So many whole minutes from the start that the warning is due now, and there is time to save.
    ran = cluster.call("squeue", "-h", "-j", job, "-o", "%M").strip().split(":")
    cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={int(ran[-2]) + 3}")
    cluster.until(lambda: "restart 1 of job" in cluster.text())
    done = cluster.wait(job)
    assert done.code == 0, done.text
    at = re.search(r"saved checkpoint of iteration (\d+)", done.text)
    assert at is not None, done.text
    assert f"loaded checkpoint of iteration {at[1]}" in done.text
    assert f"iteration {int(at[1]) + 2:8d}/" in done.text
    cluster.nothing_left()


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_last_word_is_the_option_that_goes_without_the_switch_that_failed(cluster: Cluster, nodes: int) -> None:
    """Once, by the first node, behind what torchrun has to say: ranks of the other nodes are ended."""
    words = cluster.parlaunch("--tp", "1")
    done = cluster.srun(f"-N{nodes}", "--ntasks-per-node=1", "--label", argv=words, WORKER="train:switch")
    assert done.code == 1, done.text
    said = [line for line in done.text.splitlines() if "failed: HybridEP does not work here" in line]
    assert len(said) == 1, done.text
    assert said[0].startswith("0: parlaunch: rank 0 failed: ")
    assert "--switches dispatcher=alltoall goes without it" in said[0]
    # srun keeps the order of what one task says, and no other.
    first = [line for line in done.text.splitlines() if line.startswith("0: ")]
    assert "Root Cause" in "".join(first), done.text
    assert "Root Cause" not in "".join(first[first.index(said[0]) :])
    cluster.nothing_left()

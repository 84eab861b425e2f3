"""parlaunch in front of jobs on a real Slurm: in a step, in a batch script, in an salloc shell."""

from __future__ import annotations

import math
import re
import shlex

import pytest

from tests.conftest import need
from tests.slurm.conftest import Cluster, lines_with

pytestmark = pytest.mark.slurm

TWO = ("-N2", "--ntasks-per-node=1")


def test_two_nodes_train_to_a_finite_loss(cluster: Cluster) -> None:
    pytest.importorskip("torch")
    from parlaunch_launch.become import installed

    need(installed("megatron.core"), "megatron-core")
    done = cluster.srun(*TWO, argv=cluster.parlaunch("--explain", script=False))
    assert done.code == 0, done.text
    assert "here: a task of a Slurm step" in done.text
    assert "parlaunch: 2 of 2 nodes agreed on one plan" in done.text
    assert "2 CPU ranks on 2 nodes" in done.text
    losses = [float(x) for x in re.findall(r"lm loss: (\S+)", done.text)]
    assert len(losses) == 10
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0]
    cluster.nothing_left()


def test_a_batch_script_needs_no_srun_and_hands_its_words_on_unchanged(cluster: Cluster) -> None:
    odd = ["a b", "c=d e", "it's", '"q"', "$HOME", "--x=1,2", ""]
    own = cluster.parlaunch("logger.wandb_exp_name='two words'", "--srun-arg=--comment=hello there", "--", *odd)
    job = cluster.sbatch(*TWO, body=shlex.join(own))
    done = cluster.wait(job)
    assert done.code == 0, done.text
    assert "parlaunch: slurmstepd [" in done.text
    assert "starting one task a node with srun" in done.text
    assert [w["rank"] for w in done.workers] == [0, 1]
    assert len({w["host"] for w in done.workers}) == 2
    for worker in done.workers:
        assert worker["argv"][-len(odd) :] == odd
        assert "logger.wandb_exp_name='two words'" in worker["argv"]


def test_an_salloc_shell_needs_no_srun_either(cluster: Cluster) -> None:
    own = cluster.parlaunch()
    done = cluster.finish(cluster.start(["salloc", *TWO, *own]))
    assert done.code == 0, done.text
    assert [w["rank"] for w in done.workers] == [0, 1]


def test_several_tasks_a_node_by_mistake_leave_the_launch_to_the_first(cluster: Cluster) -> None:
    done = cluster.srun("-N2", "--ntasks-per-node=3", argv=cluster.parlaunch())
    assert done.code == 0, done.text
    assert [w["rank"] for w in done.workers] == [0, 1]
    assert len(lines_with(done.text, "2 tasks of each node leave the launch to its task 0")) == 1


def test_four_nodes_stand_by_their_switches_and_uneven_gpus_are_named(cluster: Cluster) -> None:
    cluster.gpus("gpu04", count=1)
    done = cluster.srun("-N4", "--ntasks-per-node=1", argv=cluster.parlaunch("--force", device="cuda"))
    assert done.code == 0, done.text
    assert "node ranks are ours: gpu01, gpu03, gpu02, gpu04" in done.text
    assert [w["host"] for w in done.workers] == ["gpu01", "gpu03", "gpu02", "gpu04"]
    assert "gpu01, gpu02, gpu03 has more GPUs than the 1 that every node has" in " ".join(done.text.split())


def test_the_exit_code_of_training_is_the_jobs(cluster: Cluster) -> None:
    own = cluster.parlaunch()
    done = cluster.wait(cluster.sbatch(*TWO, body=shlex.join(own), WORKER="fail"))
    assert done.code == 3, done.text
    assert "exitcode  : 3" in done.text, done.text
    cluster.nothing_left()


def test_a_requeued_job_makes_its_plan_anew(cluster: Cluster) -> None:
    own = shlex.join(cluster.parlaunch("--explain"))
    body = f'{own}\n[ -n "$SLURM_RESTART_COUNT" ] || {{ scontrol requeue $SLURM_JOB_ID; sleep 600; }}'
    job = cluster.sbatch(*TWO, "--requeue", body=body, XDG_CACHE_HOME=str(cluster.place))
    cluster.until(lambda: cluster.text().count("nodes agreed on one plan") == 2)
    done = cluster.wait(job)
    assert done.code == 0, done.text
    assert f"job: {job}, restarted 1 times" in done.text
    assert f"parlaunch: restart 1 of job {job}: planned anew; the layout is the same" in done.text
    assert len(done.workers) == 4


def test_two_nodes_with_other_recipes_stop_with_the_same_words(cluster: Cluster) -> None:
    own = cluster.parlaunch()
    other = [word.replace("llama32_1b", "llama32_3b") for word in own]
    choose = f"[ $SLURM_NODEID = 0 ] && exec {shlex.join(own)} || exec {shlex.join(other)}"
    done = cluster.srun(*TWO, argv=["bash", "-c", choose])
    assert done.code == 2, done.text
    said = lines_with(done.text, "the command lines differ")
    assert len(said) == 1
    assert "llama32_3b_pretrain_config" in said[0]
    assert done.workers == []

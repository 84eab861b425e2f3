"""All of an allocation is launched on, however it was asked for, and a refusal is one message with its own exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster, lines_with

pytestmark = pytest.mark.slurm

SHARED_OUT = ("-N2", "--ntasks-per-node=2", "--gpus-per-task=1")


def _ranks(cluster: Cluster, *words: str) -> list[str]:
    return [*cluster.parlaunch("--nproc-per-node", "2", *words)]


def test_a_batch_script_whose_tasks_share_out_the_gpus_launches_on_all_of_them(cluster: Cluster) -> None:
    done = cluster.wait(cluster.sbatch(*SHARED_OUT, body=shlex.join(_ranks(cluster))))
    assert done.code == 0, done.text
    assert [(w["rank"], w["gpus"]) for w in done.workers] == [(r, "0,1") for r in range(4)]


def test_a_step_whose_tasks_share_out_the_gpus_launches_on_all_of_them(cluster: Cluster) -> None:
    done = cluster.srun(*SHARED_OUT, argv=_ranks(cluster))
    assert done.code == 0, done.text
    assert [(w["rank"], w["gpus"]) for w in done.workers] == [(r, "0,1") for r in range(4)]
    assert len(lines_with(done.text, "leave the launch to its task 0")) == 1


def test_where_srun_is_not_there_the_line_to_write_is(cluster: Cluster) -> None:
    """A container has no srun."""
    done = cluster.srun(*SHARED_OUT, argv=["env", "PATH=/nowhere", *_ranks(cluster)])
    assert done.code == 2, done.text
    assert "hint: start it as: srun --ntasks-per-node=1 --gpus-per-node=2 parlaunch ..." in done.text
    assert len(lines_with(done.text, "each task of this step sees its own GPUs only")) == 1


def test_eight_tasks_a_node_as_megatron_bridge_documents_it_work_as_they_stand(cluster: Cluster) -> None:
    own = cluster.parlaunch()
    done = cluster.wait(cluster.sbatch("-N2", "--ntasks-per-node=8", body=f"srun {shlex.join(own)}"))
    assert done.code == 0, done.text
    assert [w["rank"] for w in done.workers] == [0, 1]
    assert len(lines_with(done.text, "7 tasks of each node leave the launch to its task 0")) == 1


def test_the_other_tasks_stay_until_the_launching_one_ends(cluster: Cluster) -> None:
    """Clusters with a WaitTime end a step some seconds after its first task has left."""
    argv = ["srun", "-N2", "--ntasks-per-node=3", *cluster.parlaunch()]
    started = cluster.start(argv, WORKER="until")
    cluster.until(lambda: [_holds_on(pid) for pid in cluster.processes("-m parlaunch --recipe")] == [True] * 4)
    cluster.until(lambda: len(list(cluster.place.glob("said-*"))) == 2)
    assert [_holds_on(pid) for pid in cluster.processes("-m parlaunch --recipe")] == [True] * 4
    cluster.go()
    done = cluster.finish(started)
    assert done.code == 0, done.text


def _holds_on(pid: int) -> bool:
    """Whether a process waits on a connected socket of this node (SS_CONNECTED is 3)."""
    with contextlib.suppress(OSError):  # it is gone, or a descriptor is
        held = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
        return any(row[5] == "03" and f"socket:[{row[6]}]" in held for row in rows)
    return False


def test_a_heterogeneous_job_is_launched_on_all_its_components(cluster: Cluster) -> None:
    own = shlex.join(cluster.parlaunch())
    body = f"#SBATCH -N1\n#SBATCH hetjob\n#SBATCH -N2 --ntasks-per-node=2\n{own}"
    done = cluster.wait(cluster.sbatch(body=body))
    assert done.code == 0, done.text
    assert "3 of 3 nodes agreed on one plan" in done.text
    assert len(lines_with(done.text, "agreed on one plan")) == 1


def test_a_step_on_one_component_says_what_it_leaves_out(cluster: Cluster) -> None:
    own = shlex.join(cluster.parlaunch())
    body = f"#SBATCH -N1\n#SBATCH hetjob\n#SBATCH -N2\nsrun {own}"
    done = cluster.wait(cluster.sbatch(body=body))
    assert done.code == 0, done.text
    said = "this job has 2 components and this step holds 1 of their 3 nodes; srun --het-group=0-1 starts it on all"
    assert len(lines_with(done.text, said)) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--recipe", "llama32_1b_pretrain_confg"], 2, "unknown recipe"),
        (["--frobnicate"], 2, "No such option"),
        (["--tp", "7"], 2, "tp=7"),
        (["--model-config", "/dev/zero"], 2, "both --recipe and --model-config"),
    ],
    ids=["recipe", "option", "layout", "file"],
)
def test_a_refusal_in_a_step_is_said_once_with_its_code(
    cluster: Cluster, words: list[str], code: int, said: str
) -> None:
    # Where no node can meet another, a task that starts seconds behind the others would be killed with what it has to say.
    kills = [] if said == "No such option" else ["--kill-on-bad-exit=1"]
    argv = ["srun", "-N4", "--ntasks-per-node=1", *kills, *cluster.parlaunch(*words)]
    done = cluster.finish(cluster.start(argv))
    assert done.code == code, done.text
    assert len(lines_with(done.text, said)) == 1, done.text


def test_what_one_node_alone_refuses_has_its_name_and_ends_all(cluster: Cluster) -> None:
    cluster.gpus("gpu03", count=0)
    argv = ["srun", "-N3", "-w", "gpu[01-03]", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    done = cluster.finish(cluster.start([*argv, *cluster.parlaunch(device="cuda")]))
    assert done.code == 1, done.text
    said = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.text
    assert said[0].startswith("error: gpu03: no GPU on this machine")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--plan", "gone.json"], "gone.json"), (["--script", "gone.py"], "gone.py"), (["--tp", "2", "model.tensor_model_parallel_size=4"], "contradicts")],
    ids=["plan", "script", "pins"],
)  # fmt: skip
def test_what_the_batch_script_can_know_is_refused_before_srun(cluster: Cluster, words: list[str], said: str) -> None:
    own = cluster.parlaunch(*words, script=False)
    own = [w for w in own if "--plan" not in words or w not in ("--recipe", "llama32_1b_pretrain_config")]
    done = cluster.wait(cluster.sbatch("-N2", "--ntasks-per-node=1", body=shlex.join(own)))
    assert done.code in (1, 2), done.text
    assert len(lines_with(done.text, said)) == 1, done.text
    assert "starting one task a node" not in done.text

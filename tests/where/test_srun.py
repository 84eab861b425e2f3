"""What a batch script becomes, and the words of the user in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parlaunch.errors import UsageError
from parlaunch.where import srun
from parlaunch.where.schedulers import start, where
from parlaunch.where.situation import Situation

OWN = ["/venv/bin/python", "-P", "-m", "parlaunch", "--recipe", "r", "logger.wandb_exp_name='a b'", "--", "c=d e", ""]
EXAMPLES = Path(__file__).parents[2] / "examples"


def batch(**changes: Any) -> Situation:
    known: dict[str, Any] = {"hostname": "gpu01", "nnodes": 4, "nodelist": ("gpu01", "gpu02", "gpu03", "gpu04")}
    return Situation(kind="slurm-batch", why="a test", **(known | changes))


def test_srun_starts_one_task_a_node_that_all_die_together_and_own_words_stay() -> None:
    assert srun.command(batch(), own_argv=OWN) == [
        "srun", "--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none", *OWN,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlap": True}, ["--overlap"]),
        ({"export_none": True}, ["--export=ALL"]),
        ({"cpus_per_task": 12, "ntasks_per_node": 8}, ["--cpus-per-task=96"]),
        ({"cpus_per_task": 96}, ["--cpus-per-task=96"]),
        ({"gpus_per_task": 1, "ntasks_per_node": 8}, ["--gpus-per-node=8"]),
        ({"gpus_per_task": 2, "ntasks_per_node": 4, "gpus_local": 6}, ["--gpus-per-node=6"]),
    ],
)
def test_what_the_allocation_needs_is_added(changes: dict[str, Any], words: list[str]) -> None:
    assert srun.command(batch(**changes), own_argv=OWN)[6 : -len(OWN)] == words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--comment=a b"], ["--comment=a b"]),
        (["--reservation big"], ["--reservation", "big"]),
        (["-p h100"], ["-p", "h100"]),
        (["--exact", "--mpi=none"], ["--exact", "--mpi=none"]),
    ],
)
def test_the_users_words_for_srun_come_last_of_its_own(given: list[str], words: list[str]) -> None:
    assert srun.command(batch(), own_argv=OWN, srun_args=given)[6 : -len(OWN)] == words


@pytest.mark.parametrize("option", ["--container-image=nemo.sqsh", "--container-image nemo.sqsh", "--container-name=x"])
def test_in_a_container_its_own_parlaunch_is_called(option: str) -> None:
    argv = srun.command(batch(), own_argv=OWN, srun_args=[option, "--container-mounts=/a:/a"])
    assert argv[-len(OWN) + 3 :] == ["parlaunch", *OWN[4:]]


@pytest.mark.parametrize("option", ["--ntasks-per-node=8", "--ntasks-per-node 8", "-n 8", "--ntasks=8", "--pty"])
def test_options_that_would_start_something_else_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"--srun-arg {option.split()[0].split('=')[0]}"):
        srun.command(batch(), own_argv=OWN, srun_args=[option])


@pytest.mark.parametrize(
    ("situation", "args", "needed"),
    [
        (batch(), (), True),
        (batch(nnodes=1, nodelist=("gpu01",)), (), False),
        (batch(nnodes=1, nodelist=("gpu01",), hostname="gpu01.cluster"), (), False),
        (batch(nnodes=1, nodelist=("gpu01",)), ("--container-image=x",), True),
        (batch(nnodes=1, nodelist=("gpu01",), hostname="login"), (), True),
        (Situation(kind="slurm-step", why="", hostname="gpu01", nnodes=4), (), False),
        (Situation(kind="single", why="", hostname="box", nnodes=1), (), False),
    ],
)
def test_srun_is_called_only_where_tasks_have_still_to_be_started(
    situation: Situation, args: tuple[str, ...], needed: bool
) -> None:
    assert (start(situation, own_argv=OWN, args=args) is not None) is needed


# ------------------------------------------------------------------ examples


@pytest.mark.checkout
@pytest.mark.parametrize("name", ["slurm.sbatch", "slurm_container.sbatch", "mpirun.sh"])
def test_the_examples_are_scripts_that_bash_can_read(name: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=True)


@pytest.mark.checkout
def test_the_mpirun_example_gives_what_where_needs(tmp_path: Path) -> None:
    """Run with an mpirun that shows its words: the address and one process a node are in them."""
    (tmp_path / "hosts").write_text("# ours\n\ngpu07 slots=8\ngpu08 slots=8\n")
    (tmp_path / "mpirun").write_text("#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "mpirun").chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(EXAMPLES / "mpirun.sh"), str(tmp_path / "hosts"), "--recipe", "a b"]
    words = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout)
    assert words[-3:] == ["parlaunch", "--recipe", "a b"]
    assert words[words.index("--map-by") + 1] == "ppr:1:node"
    exported = dict(word.split("=", 1) for word in words if word.startswith("MASTER_ADDR="))
    # Open MPI adds these to what -x exports.
    ompi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}  # fmt: skip
    found = where(exported | ompi, hostname="gpu08")
    assert (found.kind, found.node_rank, found.nnodes, found.master) == ("mpi", 1, 2, "gpu07")


@pytest.mark.checkout
def test_the_pytorchjob_says_what_the_operator_makes_variables_of() -> None:
    text = (EXAMPLES / "pytorchjob.yaml").read_text()
    assert "name: pytorchjob-port" in text  # MASTER_PORT is taken from the port of this name
    assert "- name: pytorch\n" in text  # and the operator looks for a container of this one
    environ = {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1", "MASTER_ADDR": "llama3-70b-master-0", "MASTER_PORT": "23456",
        "WORLD_SIZE": "16", "RANK": "1", "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "8",
    }  # fmt: skip
    found = where(environ, hostname="llama3-70b-worker-0")
    assert (found.kind, found.node_rank, found.nnodes, found.port) == ("pytorchjob", 1, 2, 23456)

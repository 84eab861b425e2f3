"""Every environment that was recorded, or that a launcher's source says it sets, is recognised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parlaunch.errors import UsageError
from parlaunch.where.schedulers import PLACES, explain, where
from parlaunch.where.situation import Situation

FOLDER = Path(__file__).parent / "environments"
RECORDED = [(path.stem, row) for path in sorted(FOLDER.glob("*.json")) for row in json.loads(path.read_text())]
NAMES = [f"{stem}: {row['about']}" for stem, row in RECORDED]


def situation(row: dict[str, Any], *, ancestors: bool = True) -> Situation:
    return where(
        row["environ"],
        hostname=row["host"],
        ancestors=row.get("ancestors", ()) if ancestors else (),
        flags=row.get("flags"),
    )


@pytest.mark.parametrize(("stem", "row"), RECORDED, ids=NAMES)
def test_the_launcher_is_recognised(stem: str, row: dict[str, Any]) -> None:
    found = situation(row)
    assert {name: getattr(found, name) for name in row["expect"]} == row["expect"]
    assert found.kind in PLACES
    assert found.why


# Two shells that only a look at the processes above can tell: one typed into, and one whose variables are another job's.
NEEDS_ANCESTORS = ("srun --pty bash on two nodes", "a script that exports another job's variables")


@pytest.mark.parametrize(("stem", "row"), RECORDED, ids=NAMES)
def test_variables_alone_suffice_where_a_container_hides_the_ancestors(stem: str, row: dict[str, Any]) -> None:
    if row["about"].startswith(NEEDS_ANCESTORS):
        assert situation(row, ancestors=False) != situation(row)
        return
    blind = situation(row, ancestors=False)
    assert {name: getattr(blind, name) for name in row["expect"]} == row["expect"]


def test_every_place_says_what_and_why(golden: Callable[[str, str], None]) -> None:
    text = "\n\n".join(f"# {name}\n{explain(situation(row))}" for name, (_, row) in zip(NAMES, RECORDED, strict=True))
    golden("where_explain.txt", text + "\n")


def test_inside_a_step_the_master_is_the_first_of_the_step_not_of_the_job() -> None:
    [row] = [r for _, r in RECORDED if r["about"].startswith("a step on the last two of four")]
    assert row["environ"]["SLURM_JOB_NODELIST"] == "gpu[01-04]"
    assert situation(row).nodelist == ("gpu03", "gpu04")
    assert situation(row).master == "gpu03"


def test_a_requeued_job_is_told_from_its_first_run() -> None:
    runs = [situation(r) for _, r in RECORDED if "requeue" in r["about"] or "after it" in r["about"]]
    assert [s.restart_count for s in runs] == [0, 1]
    assert runs[0].job_id == runs[1].job_id
    assert runs[0].token != runs[1].token


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"nnodes": "2", "node_rank": 2, "master_addr": "a"}, {}, "--node-rank 2 is outside the 2 nodes"),
        ({"nnodes": "2", "node_rank": -1, "master_addr": "a"}, {}, "--node-rank -1 is outside the 2 nodes"),
        ({"node_rank": 1}, {}, "--node-rank 1 is outside the 1 node of"),
        ({"nnodes": "two"}, {}, "--nnodes two is no count"),
        ({"nnodes": "4:2"}, {}, "--nnodes 4:2 is no count"),
        ({"nnodes": "0"}, {}, "--nnodes 0 is no count"),
        ({"nnodes": "2", "master_addr": "a"}, {}, "--nnodes 2 is given without --node-rank"),
        ({"nnodes": "2", "rdzv_endpoint": "a:99999"}, {}, "2 nodes cannot meet at port 99999"),
        ({"nnodes": "2", "node_rank": 1, "master_addr": "a", "master_port": 0}, {}, "2 nodes cannot meet at port 0"),
        (
            {},
            {"MASTER_ADDR": "a", "MASTER_PORT": "70000", "RANK": "1", "WORLD_SIZE": "2"},
            "2 nodes cannot meet at port 70000",
        ),
        ({"nnodes": "2", "node_rank": 1}, {}, "--nnodes 2 is given without --master-addr"),
        ({"rdzv_endpoint": "a:b:c", "nnodes": "2"}, {}, "'a:b:c' is not HOST:PORT"),
        ({}, {"MASTER_ADDR": "a", "RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two is no count of nodes"),
        ({}, {"PET_NODE_RANK": "0", "PET_NNODES": "2:1"}, "PET_NNODES=2:1 is no count of nodes"),
        ({"nnodes": "0"}, {}, "--nnodes 0 is no count of nodes"),
        ({}, {"MASTER_ADDR": "a", "NODE_RANK": "5", "NNODES": "2"}, "NODE_RANK 5 is outside the 2 nodes"),
        ({}, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "2 of them on this node"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_named(flags: dict[str, Any], environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        where(environ, hostname="h", flags=flags)
    assert words in caught.value.problem
    assert caught.value.hint


def test_a_count_that_nobody_asked_for_is_not_read() -> None:
    assert where({"WORLD_SIZE": "0", "NNODES": "x"}, hostname="a").kind == where({}, hostname="a").kind


def test_a_node_count_that_the_step_contradicts_is_refused() -> None:
    [row] = [r for _, r in RECORDED if r["about"] == "srun from the login node"]
    with pytest.raises(UsageError, match="--nnodes 2 contradicts a task of a Slurm step with 4"):
        where(row["environ"], hostname=row["host"], ancestors=row["ancestors"], flags={"nnodes": "2"})


def test_more_nodes_than_were_allocated_are_refused() -> None:
    [row] = [r for _, r in RECORDED if r["about"] == "a batch script on four nodes"]
    with pytest.raises(UsageError, match="--nnodes 5 contradicts a Slurm batch script with 4"):
        where(row["environ"], hostname=row["host"], ancestors=row["ancestors"], flags={"nnodes": "5"})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (
            {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "5", "FLUX_JOB_NNODES": "2"},
            "Flux started 5 processes, on 2 nodes: the nodes have different numbers",
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "5", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"},
            "Open MPI started 5 processes, 3 of them on this node: the nodes have different numbers",
        ),
    ],
)
def test_nodes_with_different_numbers_of_processes_are_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        where(environ, hostname="h")


def test_the_script_of_a_job_of_several_hosts_is_told_that_it_takes_one() -> None:
    """PBS, LSF and their like run a script on the first host, and nobody starts us on the others."""
    [note] = where({}, hostname="a", hosts=("a", "b", "c")).notes
    assert "this job has 3 hosts (a, b, c), and this launch takes one of them" in note
    assert where({}, hostname="a", hosts=("a",)).notes == ()
    assert where({}, hostname="a", hosts=("a", "b"), flags={"nnodes": "1"}).notes == ()


def test_one_node_may_have_any_port_that_is_free() -> None:
    assert where({}, hostname="a", flags={"master_port": 0}).port == 0


def test_a_nodelist_that_is_not_readable_is_shown() -> None:
    environ = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "gpu[1-", "SLURM_NNODES": "2"}
    with pytest.raises(UsageError, match=r"'gpu\[1-' is not readable"):
        where(environ, hostname="h")


def test_a_step_on_some_nodes_of_its_job_says_so_unless_that_many_were_asked_for() -> None:
    [row] = [r for _, r in RECORDED if r["about"].startswith("a step on the last two of four")]
    assert situation(row).notes == (
        "this step has 2 of the 4 nodes of its job; srun --nodes=4 --ntasks-per-node=1 starts it on all",
    )
    assert situation(row | {"flags": {"nnodes": "2"}}).notes == ()

"""doctor where Slurm calls it: the nodes of the job, and the scripts in examples/."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from parlaunch.cli.doctor import _nodes_of_job

EXAMPLES = Path(__file__).parents[2] / "examples"
VARIABLES = ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_NODELIST")


@pytest.mark.parametrize(
    ("environ", "nodes"),
    [
        ({"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "n[1-2]"}, 4),
        ({"SLURM_JOB_NODELIST": "n[1-16],m3"}, 17),
        ({"SLURM_NODELIST": "n7"}, 1),
        ({"SLURM_JOB_NODELIST": "n[1-"}, None),
        ({"SLURM_JOB_NUM_NODES": "0"}, None),
        ({}, None),
    ],
)
def test_the_nodes_of_the_job_are_counted_in_a_prolog_too(
    environ: dict[str, str], nodes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert _nodes_of_job("auto") == nodes
    assert _nodes_of_job("dgx-h100:2") is None


GPU, DRIVER = "sys/bus/pci/devices/0000:01:00.0/vendor", "proc/driver/nvidia/version"
SICK = "FAIL  GPU 3: GPU_IS_LOST  [gpu-lost]"
BROKEN = "ModuleNotFoundError: No module named parlaunch"


def node(root: Path, has: str = GPU) -> dict[str, str]:
    """A node with a GPU, for the scripts."""
    (root / has).parent.mkdir(parents=True)
    (root / has).write_text("0x10de\n")
    return {"ROOT": str(root)}


def run(
    script: str, tmp_path: Path, *, code: int, reason: str = "", said: str = SICK, has: str = GPU
) -> tuple[int, str]:
    """A script's exit code, and what it asked scontrol to update, where doctor ends with `code`."""
    asked = tmp_path / "asked"
    for name, body in {
        "parlaunch": f"echo '{said}'; exit {code}",
        "logger": "cat >/dev/null",
        "sleep": "true",
        "scontrol": f"[ $1 = show ] && echo '   Reason={reason}' || echo \"$@\" >>{asked}",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    if not reason:
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ $1 = show ] || echo "$@" >>{asked}\n')
    environ = {
        **node(tmp_path / "root", has),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PARLAUNCH": str(tmp_path / "parlaunch"),
        "SLURMD_NODENAME": "n1",
    }
    done = subprocess.run([str(EXAMPLES / script)], env=environ, check=False)
    return done.returncode, asked.read_text() if asked.exists() else ""


@pytest.mark.checkout
@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 0), (3, 0), (127, 0)])
def test_the_prolog_fails_for_a_sick_node_and_not_for_a_broken_tool(code: int, ends: int, tmp_path: Path) -> None:
    assert run("slurm_prolog.sh", tmp_path, code=code) == (ends, "")


@pytest.mark.checkout
@pytest.mark.parametrize("script", ["slurm_prolog.sh", "slurm_epilog.sh", "slurm_health.sh"])
def test_a_node_without_gpus_is_left_alone_and_one_that_lost_all_is_not(script: str, tmp_path: Path) -> None:
    for has in ("proc/version", DRIVER):
        (tmp_path / has).mkdir(parents=True)
        code, asked = run(script, tmp_path / has, code=1, has=has)
        assert bool(code or asked) == (has == DRIVER)


@pytest.mark.checkout
@pytest.mark.parametrize("script", ["slurm_prolog.sh", "slurm_epilog.sh", "slurm_health.sh"])
def test_a_python_that_finds_no_packages_drains_no_node(script: str, tmp_path: Path) -> None:
    """It ends with 1, as doctor does on a FAIL."""
    assert run(script, tmp_path, code=1, said=BROKEN) == (0, "")


@pytest.mark.checkout
@pytest.mark.parametrize(("codes", "ends"), [("0", 0), ("1 1", 1), ("1 0", 0), ("2", 0), ("1 124", 0)])
def test_the_epilog_looks_twice_before_it_fails(codes: str, ends: int, tmp_path: Path) -> None:
    for name, body in {
        "parlaunch": f'echo "{SICK}"; set -- {codes}; n=$(cat {tmp_path}/n 2>/dev/null || echo 0); shift $n; echo $((n+1)) >{tmp_path}/n; exit $1',
        "logger": f"cat >{tmp_path}/logged",
        "sleep": "true",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PARLAUNCH": str(tmp_path / "parlaunch"),
        **node(tmp_path / "root"),
    }
    assert subprocess.run([str(EXAMPLES / "slurm_epilog.sh")], env=environ, check=False).returncode == ends
    assert int((tmp_path / "n").read_text()) == len(codes.split())
    assert (tmp_path / "logged").exists() == bool(ends)


@pytest.mark.checkout
@pytest.mark.parametrize(
    ("code", "reason", "asked"),
    [
        (1, "", "update NodeName=n1 State=DRAIN Reason=parlaunch: GPU 3: GPU_IS_LOST  [gpu-lost]\n"),
        (1, "parlaunch: GPU 3 [root@now]", ""),
        (0, "parlaunch: GPU 3 [root@now]", "update NodeName=n1 State=RESUME\n"),
        (0, "new disk [me@now]", ""),
        (0, "", ""),
        (2, "parlaunch: GPU 3 [root@now]", ""),
    ],
)
def test_the_health_check_drains_and_resumes_only_what_is_its_own(
    code: int, reason: str, asked: str, tmp_path: Path
) -> None:
    assert run("slurm_health.sh", tmp_path, code=code, reason=reason) == (0, asked)

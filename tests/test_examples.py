"""The examples do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said, parlaunch
from tests.conftest import need

EXAMPLES = Path(__file__).parent.parent / "examples"
__all__ = ["parlaunch"]


def test_planning_from_python_reaches_the_goal() -> None:
    run = subprocess.run([sys.executable, EXAMPLES / "library_use.py"], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert "fits nowhere" in lines[0]
    assert re.search(r"nodes: tp=\d.* GiB a GPU, .* s an iteration$", lines[-1])
    assert not run.stderr


def test_the_cpu_demo_plans_what_it_says(tmp_path: Path) -> None:
    need(shutil.which("bash"), "bash")
    program = tmp_path / "parlaunch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m parlaunch "$@"\n')
    program.chmod(0o755)
    environ = dict(os.environ) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["bash", str(EXAMPLES / "cpu_demo.sh"), "--dry-run", "--quiet"]
    run = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("tp=2 pp=2")


def test_the_configuration_plans(parlaunch: Callable[..., Said]) -> None:
    said = parlaunch("plan", "--model-config", str(EXAMPLES / "config.json"), "--hardware", "dgx-h100:1")
    assert said.code == 0
    assert "8.03 B parameters" in said.out


def test_every_row_of_the_runs_is_predicted(parlaunch: Callable[..., Said]) -> None:
    import json

    result = json.loads(parlaunch("validate", str(EXAMPLES / "runs.json"), "--format", "json").out)
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        predicted, measured = row["predicted"]["tokens_per_s_per_gpu"], row["measured"]["tokens_per_s_per_gpu"]
        assert abs(predicted / measured - 1) < 0.5, row["id"]


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.iterdir() if p.suffix in (".sh", ".sbatch")))
def test_a_script_is_one_that_bash_reads(script: str) -> None:
    need(shutil.which("bash"), "bash")
    assert subprocess.run(["bash", "-n", EXAMPLES / script], check=False).returncode == 0


def test_the_overview_names_every_example() -> None:
    named = set(re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert named == {p.name for p in EXAMPLES.iterdir() if p.is_file() and p.name != "README.md"}

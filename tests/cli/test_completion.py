"""Completion as the three shells ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need

SHELLS = ("bash", "zsh", "fish")


def asked(shell: str, line: str) -> str:
    """What the shell gets for this line with the cursor at its end."""
    words = line.split(" ")
    environ = {"_PARLAUNCH_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environ |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    else:
        environ |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    run = subprocess.run(
        [sys.executable, "-m", "parlaunch"], env=dict(os.environ) | environ, capture_output=True, text=True, check=False
    )
    assert not run.stderr
    return run.stdout


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered", "absent"),
    [
        ("parlaunch --recipe llama3_8b_pre", "llama3_8b_pretrain_config", "llama3_70b_pretrain_config"),
        ("parlaunch plan --hardware dgx-h", "dgx-h100", "dgx-a100"),
        ("parlaunch do", "doctor", "probe"),
    ],
)
def test_names_are_offered_with_and_without_a_command_word(shell: str, line: str, offered: str, absent: str) -> None:
    text = asked(shell, line)
    assert offered in text
    assert absent not in text


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("parlaunch --precision fp8", ["fp8cs", "fp8ds", "fp8sc", "fp8mx"]),
        ("parlaunch plan --format s", ["shell", "sbatch"]),
        ("parlaunch verify --objective m", ["memory"]),
        ("parlaunch --tp 2 --device c", ["cuda", "cpu"]),
        ("parlaunch --recompute f", ["full"]),
        ("parlaunch probe --gpu H200", ["H200-SXM"]),
        ("parlaunch recipes --task s", ["sft"]),
        ("parlaunch recipes show llama32_1b_pre", ["llama32_1b_pretrain_config"]),
        ("parlaunch --micro", ["--micro-batch-size"]),
    ],
)
def test_values_of_an_option_are_offered(line: str, offered: list[str]) -> None:
    got = asked("bash", line).split("\n")
    assert set(offered) <= {word.strip() for word in got}


def test_bash_fills_in_a_recipe_by_its_own_script(tmp_path: Path) -> None:
    need(shutil.which("bash"), "bash")
    program = tmp_path / "parlaunch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m parlaunch "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(_PARLAUNCH_COMPLETE=source_bash parlaunch)"
        complete -p parlaunch > /dev/null
        COMP_WORDS=(parlaunch --recipe llama32_1b_pre); COMP_CWORD=2
        _parlaunch_completion parlaunch
        echo "${COMPREPLY[@]}"
    """
    environ = dict(os.environ) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", "--norc", "-ec", script], env=environ, capture_output=True, text=True, check=False)
    assert "llama32_1b_pretrain_config" in run.stdout.split(), run.stderr

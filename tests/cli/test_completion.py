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


@pytest.mark.parametrize(("shell", "place"), [("bash", ".bash_completions"), ("zsh", ".zfunc"), ("fish", ".config")])
def test_completion_is_installed_for_the_shell_that_is_named(shell: str, place: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "parlaunch", "--install-completion", shell]
    run = subprocess.run(words, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert f"{shell} completion installed in {tmp_path}/{place}" in run.stdout
    (script,) = (path for path in (tmp_path / place).rglob("*parlaunch*") if path.is_file())
    assert "_PARLAUNCH_COMPLETE" in script.read_text()


@pytest.mark.parametrize(("shell", "start"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_installed_twice_a_start_file_keeps_its_lines_and_gets_one(shell: str, start: str, tmp_path: Path) -> None:
    (tmp_path / start).write_text("alias ll='ls -l'")
    words = [sys.executable, "-m", "parlaunch", "--install-completion", shell]
    for _ in range(2):
        subprocess.run(words, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    alias, ours = (tmp_path / start).read_text().splitlines()
    assert alias == "alias ll='ls -l'"
    assert ours.startswith({"bash": "source ", "zsh": "fpath+="}[shell])
    shown = [sys.executable, "-m", "parlaunch", "--show-completion", shell]
    script = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    assert script in [path.read_text() for path in tmp_path.rglob("*parlaunch*") if path.is_file()]


def test_a_start_file_of_another_encoding_keeps_its_bytes(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_bytes(b"alias caf\xe9=1\n")
    words = [sys.executable, "-m", "parlaunch", "--install-completion", "bash"]
    subprocess.run(words, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, check=True)
    assert (tmp_path / ".bashrc").read_bytes().startswith(b"alias caf\xe9=1\nsource ")


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file")
    words = [sys.executable, "-m", "parlaunch", "--install-completion", "fish"]
    run = subprocess.run(words, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert str(home) in run.stderr
    assert "--show-completion fish" in run.stderr

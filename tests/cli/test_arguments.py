"""The command line before typer sees it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import typer

from parlaunch.cli import COMMANDS, arguments, sbatch, tools
from parlaunch.cli.app import app, name_of
from parlaunch.cli.request import Request, Trial
from tests.cli.conftest import Said
from tests.conftest import HANGS_S


@pytest.mark.parametrize(
    ("typed", "seen", "rest"),
    [
        (["--recipe", "x"], ["launch", "--recipe", "x"], []),
        (["model.a=1", "--recipe", "x"], ["launch", "model.a=1", "--recipe", "x"], []),
        (["plan", "--recipe", "x"], ["plan", "--recipe", "x"], []),
        (["--recipe", "x", "--", "--foo", "--", "b c"], ["launch", "--recipe", "x"], ["--foo", "--", "b c"]),
        (["-h"], ["-h"], []),
        (["--version"], ["--version"], []),
        ([], ["--help"], []),
    ],
)
def test_no_command_word_means_launch_and_two_dashes_end_our_part(
    typed: list[str], seen: list[str], rest: list[str]
) -> None:
    assert arguments(typed) == (seen, rest)


def test_a_word_is_known_for_a_command_before_any_is_made() -> None:
    registered: list[Any] = [*app.registered_commands, *app.registered_groups]
    assert tools  # registers its own
    assert sorted(map(name_of, registered)) == sorted(COMMANDS)


def test_the_commands_take_what_the_request_describes_with_its_defaults() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    described = {f.name: f.default for f in fields(Request) if f.name not in ("command", "runner_args", "configured")}
    more = {f.name: f.default for f in fields(Trial)}
    for name, wanted in {"launch": described, "plan": described, "verify": described | more}.items():
        taken = {p.name: p.default for p in commands[name].params if p.name != "help"}
        assert set(taken) == set(wanted) - ({"top"} if name == "verify" else set())
        for option, default in taken.items():
            assert wanted[option] is not MISSING
            assert (default or None) == (wanted[option] or None), option


def test_words_for_the_runner_and_repeated_options_arrive(parlaunch: Callable[..., Said]) -> None:
    words = ("--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:1", "--format", "sbatch", "--dry-run")
    said = parlaunch(
        *words,
        "--sbatch-arg=--partition=a",
        "--sbatch-arg=--account=b",
        "logger.tensorboard_dir=/t",
        "--",
        "--own",
        "7",
    )
    assert said.code == 0, said.err
    assert {"#SBATCH --partition=a", "#SBATCH --account=b"} <= set(said.out.splitlines())
    assert said.out.rstrip().endswith("logger.tensorboard_dir=/t -- --own 7")


@pytest.mark.parametrize("command", ["plan", "launch", "verify", "compare", "probe", "doctor", "recipes"])
def test_the_help_of_a_command_fits_a_screen_and_all_of_it_is_there_when_asked(
    parlaunch: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    brief, whole = parlaunch(command, "-h"), parlaunch(command, "--help-all")
    assert (brief.code, whole.code) == (0, 0)
    assert len(brief.out.splitlines()) <= 45
    if command in ("plan", "launch", "verify", "compare"):
        assert "--help-all" in brief.out
        assert "--agree-timeout" in whole.out
        assert "--agree-timeout" not in brief.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_named_shell_is_that_shells(shell: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "parlaunch", "--show-completion", shell], capture_output=True, text=True, check=True
    )
    marks = {"bash": "COMPREPLY", "zsh": "#compdef parlaunch", "fish": "complete --command parlaunch"}
    assert marks[shell] in run.stdout
    assert [name for name, mark in marks.items() if mark in run.stdout] == [shell]


def test_a_shell_without_completion_is_named(parlaunch: Callable[..., Said]) -> None:
    said = parlaunch("--show-completion", "csh")
    assert (said.code, "bash, zsh, fish" in said.err) == (2, True)


def test_the_version_has_a_short_option(parlaunch: Callable[..., Said]) -> None:
    assert parlaunch("-V").out == parlaunch("--version").out


HELP = """Usage: sbatch [OPTIONS...] executable
Parallel run options:
  -A, --account=name          charge job to specified account
  -p, --partition=partition   partition requested
      --qos=qos
  -t, --time=minutes          time limit
      --gres=list
"""


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--partitoin=h100", "nearest: --partition"), ("--acount=me", "nearest: --account"), ("--zzz", "`sbatch --help` lists"),
        ("--partition=h100", ""), ("--part=h100", ""), ("-p=h100", ""),
    ],
)  # fmt: skip
def test_an_option_that_the_sbatch_here_does_not_have_is_caught(
    parlaunch: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, said: str
) -> None:
    words = ("plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100", "--format", "sbatch")
    monkeypatch.setattr(sbatch, "TIMEOUT_S", HANGS_S)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert parlaunch(*words, f"--sbatch-arg={option}").code == 0  # no sbatch here to ask
    program = tmp_path / "sbatch"
    program.write_text(f"#!{shutil.which('sh', path='/usr/bin:/bin')}\necho '{HELP}'\n")
    program.chmod(0o755)
    answer = parlaunch(*words, f"--sbatch-arg={option}")
    assert answer.code == (2 if said else 0)
    assert said in answer.err

"""The launch is an exec: this process is gone afterwards, its environment and exit code are the program's."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from parlaunch.errors import ParlaunchError
from parlaunch_launch.become import become
from tests.conftest import HANGS_S


class Gone(BaseException):
    """The test's own exec: it never comes back either."""


def recorder(calls: list[tuple[str, list[str], dict[str, str]]]) -> Any:
    def execvpe(file: str, argv: list[str], env: dict[str, str]) -> None:
        calls.append((file, argv, env))
        raise Gone

    return execvpe


def test_argv_and_environment_are_handed_over_whole() -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    with pytest.raises(Gone):
        become(["srun", "--label", "x"], {"A": "1"}, execvpe=recorder(calls))
    assert calls == [("srun", ["srun", "--label", "x"], {"A": "1"})]


def test_without_torch_the_error_says_where_and_how_to_get_it() -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    argv = [sys.executable, "-m", "torch.distributed.run", "x.py"]
    with pytest.raises(ParlaunchError, match="torch is not installed in") as caught:
        become(argv, {}, execvpe=recorder(calls), has=lambda name: name != "torch")
    assert sys.executable in caught.value.problem
    assert "pip install" in caught.value.hint
    assert not calls


def test_another_interpreter_s_torch_is_its_own_affair() -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    with pytest.raises(Gone):
        become(["/other/python", "-m", "torch.distributed.run"], {}, execvpe=recorder(calls), has=lambda _: False)
    assert calls


def test_a_program_that_is_not_there_is_an_error_and_changes_no_signal() -> None:
    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(ParlaunchError, match="no such program"):
        become(["/nowhere/srun"], {})
    assert signal.getsignal(signal.SIGPIPE) is before


def test_the_exit_code_and_the_environment_are_the_program_s() -> None:
    program = (
        "import sys; from parlaunch_launch.become import become; print('before');"
        "become([sys.executable, '-c', 'import os, sys; print(os.environ[\"PLANNED\"]); sys.exit(42)'], {'PLANNED': 'yes'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert (done.returncode, done.stdout) == (42, "before\nyes\n"), done.stderr


def test_the_program_gets_sigpipe_as_a_shell_would_hand_it_down() -> None:
    program = (
        "import sys; from parlaunch_launch.become import become;"
        "become(['/bin/sh', '-c', 'grep SigIgn /proc/self/status'], {'PATH': '/usr/bin:/bin'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGS_S, check=False)
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & 1 << signal.SIGPIPE - 1

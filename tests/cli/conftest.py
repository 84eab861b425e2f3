"""The command line in this process, as a user would see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def parlaunch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`parlaunch("plan", "--recipe", …)`: exit code and what was printed."""

    def run(*words: str) -> Said:
        from parlaunch.cli import main

        monkeypatch.setattr("sys.argv", ["parlaunch", *words])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return Said(left.value.code if isinstance(left.value.code, int) else 0, captured.out, captured.err)

    return run

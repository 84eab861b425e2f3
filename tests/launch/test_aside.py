"""Tasks of a node that leave the launch to another: what they wait for, and what ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from parlaunch.cli.launch import unwarned
from parlaunch_launch import aside
from parlaunch_launch.supervise import FOR_RANKS
from tests.conftest import HANGS_S


def mask(name: str, pid: int | str = "self") -> set[int]:
    """Signals of one of the masks of a process: SigBlk, SigIgn."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    bits = int(next(line for line in lines if line.startswith(f"{name}:")).split()[1], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def test_who_waits_dies_of_no_signal_and_leaves_when_the_launching_task_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = uuid.uuid4().hex
    held: list[object] = []
    monkeypatch.setattr(aside, "_HELD", held)
    aside.hold(token)
    (socket,) = held
    program = f"from parlaunch_launch import aside; aside.wait({token!r}, comes_s={HANGS_S})"
    with subprocess.Popen([sys.executable, "-c", program]) as waiting:
        until = time.monotonic() + HANGS_S
        while not set(aside.LEFT) <= mask("SigBlk", waiting.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        for number in aside.LEFT:
            waiting.send_signal(number)
        assert waiting.poll() is None
        connection, _ = socket.accept()  # type: ignore[attr-defined]
        socket.close()  # type: ignore[attr-defined]
        connection.close()
        assert waiting.wait(HANGS_S) == 0


def test_a_warning_of_the_time_limit_does_not_end_a_launch_that_is_on_its_way() -> None:
    before = {number: signal.getsignal(number) for number in FOR_RANKS}
    with unwarned():
        for number in FOR_RANKS:
            os.kill(os.getpid(), number)
        became = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    ignored = int(became.split("SigIgn:")[1].split()[0], 16)
    assert all(ignored >> (number - 1) & 1 for number in FOR_RANKS)
    assert {number: signal.getsignal(number) for number in FOR_RANKS} == before

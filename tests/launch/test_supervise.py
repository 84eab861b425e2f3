"""The supervisor of one node beside those of others: shells stand in for torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parlaunch_launch import addresses, supervise


class Nodes:
    """Supervisors of several nodes, connected as an agreement leaves them."""

    def __init__(self, log: Path, *scripts: str, grace: float = 0.5) -> None:
        listener = addresses.listen()
        port = listener.getsockname()[1]
        wires = [listener, *(socket.create_connection(("127.0.0.1", port)) for _ in scripts[1:])]
        order = tuple(f"n{k}" for k in range(len(scripts)))
        self.log, self.started, self.began = log, [], time.monotonic()
        for rank, script in enumerate(scripts):
            if rank:
                wires[rank].sendall(b'{"hello": %d, "name": "n%d"}\n' % (rank, rank))
            agreed: Any = SimpleNamespace(node_rank=rank, order=order, watch_socket=wires[rank])
            argv = supervise.command(["sh", "-c", script], agreed)
            argv.insert(3, f"--grace={grace}")
            with log.open("a") as out:
                self.started.append(subprocess.Popen(argv, pass_fds=[wires[rank].fileno()], stdout=out, stderr=out))
        for wire in wires:
            wire.close()

    def codes(self, within: float = 20) -> list[int]:
        return [process.wait(within) for process in self.started]

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    assert not left(tmp_path), "processes are left"


def left(folder: Path) -> list[str]:
    """Command lines of live processes that name the test's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


def test_a_clean_end_of_all_is_an_end_of_all(log: Path) -> None:
    assert Nodes(log, "exit 0", "sleep 1", "sleep 0.5").codes() == [0, 0, 0]


@pytest.mark.parametrize("first", [0, 1])
def test_a_bad_end_of_one_ends_all_and_is_named(log: Path, first: int) -> None:
    scripts = ["exec sleep 60"] * 3
    scripts[first] = "exit 3"
    nodes = Nodes(log, *scripts)
    codes = nodes.codes()
    assert codes.pop(first) == 3
    assert codes == [143, 143]
    assert nodes.said.count(f"parlaunch: torchrun on n{first} ended with exit code 3; this node stops in 0 s") == 2


def test_a_node_that_ended_well_is_no_reason_to_stop_the_others(log: Path) -> None:
    assert Nodes(log, "sleep 2", "exit 0").codes() == [0, 0]
    assert Nodes(log, "exit 0", "sleep 2").codes() == [0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_supervisor_takes_its_torchrun_along_and_the_others_follow(log: Path, victim: int) -> None:
    nodes = Nodes(log, *(f"echo up; exec sleep 60 # {log.parent}",) * 2)
    while nodes.said.count("up") < 2:
        time.sleep(0.05)
    nodes.started[victim].kill()
    codes = nodes.codes()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 143
    assert "went away" in nodes.said


def test_workers_of_a_killed_torchrun_do_not_outlive_it(log: Path) -> None:
    worker = f"{sys.executable} -c 'import time; time.sleep(60)' {log.parent}"
    nodes = Nodes(log, f"setsid {worker} & sleep 1; kill -9 $$", "exec sleep 60")
    assert nodes.codes() == [137, 143]


def test_who_ignores_sigterm_gets_sigkill(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    nodes = Nodes(log, "exit 1", deaf)
    assert nodes.codes(within=40) == [1, 137]


def test_signals_are_handed_on_and_the_exit_code_comes_back(log: Path) -> None:
    nodes = Nodes(log, "trap 'exit 42' USR1; echo up; while :; do sleep 0.05; done", "exec sleep 60")
    while "up" not in nodes.said:
        time.sleep(0.05)
    nodes.started[0].send_signal(signal.SIGUSR1)
    assert nodes.codes() == [42, 143]


def test_a_program_that_is_not_there_is_said_so(log: Path) -> None:
    command = [sys.executable, "-m", "parlaunch_launch.supervise", "--name=n0", "--", "/no/such/program"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (
        127,
        "parlaunch: cannot start /no/such/program: No such file or directory\n",
    )


def test_without_a_connection_torchrun_runs_on_its_own(log: Path) -> None:
    agreed: Any = SimpleNamespace(node_rank=1, order=("a", "b"), watch_socket=None)
    assert subprocess.run(supervise.command(["sh", "-c", "exit 5"], agreed), timeout=20).returncode == 5


def test_a_rendezvous_that_kubernetes_set_does_not_overrule_the_agreement() -> None:
    environ = {"PET_RDZV_ENDPOINT": "a:1", "PET_RDZV_BACKEND": "c10d", "PET_MAX_RESTARTS": "3", "X": "1"}
    assert supervise.environment(environ, ["torchrun", "--master-addr", "b"]) == {"PET_MAX_RESTARTS": "3", "X": "1"}
    assert supervise.environment(environ, ["torchrun", "--rdzv-endpoint=c:2"]) == environ

"""The supervisor of one node beside those of others: shells stand in for torchrun."""

from __future__ import annotations

import contextlib
import os
import re
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

from parlaunch_launch import addresses, elastic, supervise
from parlaunch_launch.awake import Awake
from parlaunch_launch.ends import Failure, first
from parlaunch_launch.watch import Hub, Spoke, Stop, say
from tests.conftest import HANGS_S

KEY = b"k" * 32


class Nodes:
    """Supervisors of several nodes, connected as an agreement leaves them."""

    def __init__(self, log: Path, *scripts: str, grace: float = 0.5, silence: tuple[float, ...] = (1800,)) -> None:
        listener = addresses.listen("127.0.0.1")
        self.port = listener.getsockname()[1]
        wires = [listener, *(socket.create_connection(("127.0.0.1", self.port)) for _ in scripts[1:])]
        order = tuple(f"n{k}" for k in range(len(scripts)))
        self.log, self.started, self.began = log, [], time.monotonic()
        for rank, script in enumerate(scripts):
            agreed: Any = SimpleNamespace(node_rank=rank, order=order, watch_socket=wires[rank], watch_key=KEY)
            argv = supervise.command(["sh", "-c", script], agreed, silence_s=silence[min(rank, len(silence) - 1)])
            argv.insert(4, f"--grace={grace}")
            env = {**os.environ, **supervise.keys(agreed)}
            with log.open("a") as out:
                fds = [wires[rank].fileno()]
                self.started.append(subprocess.Popen(argv, pass_fds=fds, stdout=out, stderr=out, env=env))
        for wire in wires:
            wire.close()

    def until(self, words: str, times: int = 1) -> None:
        """Wait until a pattern was said so often."""
        end = time.monotonic() + HANGS_S
        while len(re.findall(words, self.said)) < times:
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def codes(self, within: float = HANGS_S) -> list[int]:
        return [process.wait(within) for process in self.started]

    def all_in(self, within: float = HANGS_S) -> None:
        """Wait until every supervisor has said hello: node 0's door is closed then."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                try:
                    socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                except ConnectionRefusedError:
                    return
            time.sleep(0.1)
        pytest.fail("node 0's door is still open")

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    end = time.monotonic() + HANGS_S
    while found := left(tmp_path):
        assert time.monotonic() < end, found
        time.sleep(0.1)


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


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_bad_end_of_one_ends_all_with_its_code_and_is_named(log: Path, first: int) -> None:
    scripts = ["exec sleep 600"] * 3
    scripts[first] = "exit 42"
    nodes = Nodes(log, *scripts)
    assert nodes.codes() == [42, 42, 42]
    said = f"parlaunch: training on n{first} ended with exit code 42; this node stops in 0 s"
    assert nodes.said.count(said) == 2


def test_an_end_that_follows_another_is_not_the_jobs(log: Path) -> None:
    """The peers of a rank that is lost fail with 1 once they see it; the first cause is what counts."""
    late = f"until grep -q 'n1 ended' {log}; do sleep 0.1; done; exit 1"
    assert Nodes(log, late, "kill -SEGV $$", late, grace=HANGS_S).codes() == [139, 139, 139]


def test_a_node_that_ended_well_is_no_reason_to_stop_the_others(log: Path) -> None:
    assert Nodes(log, "sleep 2", "exit 0").codes() == [0, 0]
    assert Nodes(log, "exit 0", "sleep 2").codes() == [0, 0]


def test_node_0_stays_for_the_others_after_a_good_end(log: Path) -> None:
    nodes = Nodes(log, "exit 0", "sleep 1.5; exit 7", "exec sleep 600")
    assert nodes.codes() == [7, 7, 7]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_supervisor_takes_its_torchrun_along_and_the_others_follow(log: Path, victim: int) -> None:
    nodes = Nodes(log, *(f"echo up; sleep 1; exec sleep 600 # {log.parent}",) * 2)
    nodes.until("up", times=2)
    nodes.all_in()
    nodes.started[victim].kill()
    codes = nodes.codes()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    assert "went away" in nodes.said


def test_workers_of_a_killed_torchrun_do_not_outlive_it(log: Path) -> None:
    worker = f"{sys.executable} -c 'import time; time.sleep(600)' {log.parent}"
    nodes = Nodes(log, f"setsid {worker} & sleep 1; kill -9 $$", "exec sleep 600")
    assert nodes.codes() == [137, 137]


def test_who_ignores_sigterm_gets_sigkill(log: Path) -> None:
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    nodes = Nodes(log, "exit 5", deaf)
    assert nodes.codes() == [5, 5]


def test_signals_are_handed_on_and_the_exit_code_comes_back(log: Path) -> None:
    nodes = Nodes(log, "trap 'exit 42' HUP; echo up; while :; do sleep 0.05; done", "exec sleep 600")
    nodes.until("up")
    nodes.started[0].send_signal(signal.SIGHUP)
    assert nodes.codes() == [42, 42]


def test_a_suspended_job_goes_on_when_it_is_resumed(log: Path) -> None:
    """SIGSTOP and SIGCONT to every process, as `scontrol suspend` does."""
    until = f"echo up; until [ -e {log}.go ]; do sleep 0.1; done"
    nodes = Nodes(log, *(until,) * 2)
    nodes.until("up", times=2)
    nodes.all_in()
    family = [pid for process in nodes.started for pid in (process.pid, *elastic.children(process.pid))]
    for number, pause in ((signal.SIGSTOP, 3), (signal.SIGCONT, 0.3), (signal.SIGSTOP, 2), (signal.SIGCONT, 0)):
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(pause)
    Path(f"{log}.go").touch()
    assert nodes.codes() == [0, 0], nodes.said


def test_time_that_was_slept_through_is_nobodys_silence() -> None:
    """Both ends of a watch in this process, and a clock of the test's own."""
    now = [0.0]
    with addresses.listen("127.0.0.1") as listener:
        mine = socket.create_connection(listener.getsockname())
        hub = Hub(listener, KEY, "n0", 1, silence_s=100)
        spoke = Spoke(mine, KEY, 1, "n1", silence_s=100)
        for end in (hub, spoke):
            end.awake = Awake(lambda: now[0])

        def turned(seconds: float) -> list[Stop | None]:
            now[0] += seconds
            return [end.turn(0.05) for end in (hub, spoke, hub, spoke)]

        until = time.monotonic() + HANGS_S
        while not hub.names:
            assert time.monotonic() < until
            turned(0.0)
        assert turned(3600.0) == [None] * 4  # suspended, and resumed
        assert {end.awake() for end in (hub, spoke)} == {1.0}
        for seconds in range(200):
            now[0] += 1.0
            assert hub.turn(0.0) is None or seconds > 90
        assert hub.turn(0.0) == Stop("nothing was heard of n1 for 101 s")
        hub.door.close()
        spoke.sock.close()


def in_one_process(listener: socket.socket) -> tuple[Hub, Spoke]:
    """Both ends of a watch, once they know each other."""
    spoke = Spoke(socket.create_connection(listener.getsockname()), KEY, 1, "n1")
    hub = Hub(listener, KEY, "n0", 1)
    until = time.monotonic() + HANGS_S
    while not hub.names:
        assert time.monotonic() < until
        spoke.turn(0.01)
        hub.turn(0.01)
    return hub, spoke


def test_a_clock_that_is_set_while_the_job_runs_does_not_change_which_rank_failed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = time.time
    with addresses.listen("127.0.0.1") as listener:
        hub, spoke = in_one_process(listener)
        with monkeypatch.context() as there:
            there.setattr(time, "time", lambda: real() + 3600.0)
            spoke.ended(Failure(42, time.time() - 600.0, 1))
        hub.ended(Failure(43, real() - 1200.0, 0))
        until = time.monotonic() + HANGS_S
        while not hub.failures[1:]:
            assert time.monotonic() < until
            hub.turn(0.01)
        assert [failure.code for failure in hub.failures] == [43, 42]
        assert abs(hub.failures[1].when - (real() - 600.0)) < HANGS_S
        assert first(hub.failures).code == 43
        hub.door.close()
        spoke.sock.close()


@pytest.mark.parametrize(
    "said",
    [b'{"failed": 1, "when": 1' + b"0" * 400 + b"}", b"[" * 100_000, b"[]", b"null", b'{"failed": [], "when": {}}', b"\xff"],
)  # fmt: skip
def test_words_that_are_none_end_no_watch(said: bytes) -> None:
    with addresses.listen("127.0.0.1") as listener:
        hub, spoke = in_one_process(listener)
        assert spoke.channel is not None
        spoke.channel.send(said)
        spoke.channel.send(b'{"done": true}')
        (peer,) = hub.peers.values()
        until = time.monotonic() + HANGS_S
        while not peer.ended:
            assert time.monotonic() < until
            hub.turn(0.01)
        assert hub.stop is None
        hub.door.close()
        spoke.sock.close()


def test_the_last_words_are_heard_before_anybody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun stops listening with the end of the last task, once another was killed."""
    done: list[str] = []
    with addresses.listen("127.0.0.1") as listener:
        hub, spoke = in_one_process(listener)
        for what in ("explain", "_be_heard"):
            monkeypatch.setattr(hub, what, lambda what=what: done.append(what))
        monkeypatch.setattr(hub.door, "send", lambda channel, said=b"": done.append(said.decode()))
        hub.ended(Failure(42, time.time(), 0))
        for peer in hub.peers.values():
            peer.down = True
        assert hub.leave(42, told_to_end=False) == 42
        assert [word for word in done if word] == ['{"stop": "training on n0 ended with exit code 42"}', "explain", "_be_heard",
                                                   '{"leave": 42}']  # fmt: skip
        spoke.sock.close()


def test_a_frozen_supervisor_is_a_warning_and_no_end(log: Path) -> None:
    nodes = Nodes(log, *(f"until [ -e {log}.go ]; do sleep 0.1; done",) * 2)
    nodes.all_in()
    nodes.started[1].send_signal(signal.SIGSTOP)
    time.sleep(1)
    assert nodes.started[0].poll() is None
    nodes.started[1].send_signal(signal.SIGCONT)
    Path(f"{log}.go").touch()
    assert nodes.codes() == [0, 0]


def test_silence_is_named_after_a_minute_and_ends_the_job_only_after_the_limit(log: Path) -> None:
    nodes = Nodes(log, "exec sleep 600", "exec sleep 600", silence=(3, 0))  # n1 bears any
    nodes.all_in()
    nodes.started[1].send_signal(signal.SIGSTOP)
    nodes.until(r"nothing was heard of n1 for \d+ s; this node stops")
    nodes.started[1].send_signal(signal.SIGCONT)
    assert nodes.codes() == [1, 1]


def test_strangers_at_the_watchs_port_are_nobody(log: Path) -> None:
    """A port scan, malformed lines, a hello without a proof: the job goes on and ends well."""
    nodes = Nodes(log, "exec sleep 5", "sleep 1; exit 0", "exec sleep 4")
    shouts = (b"", b"\n", b"{]\n", b'{"hello": 1, "name": "n1"}\n{"ended": 9}\n', b"x" * 100_000, b"\0" * 98)
    for shout in shouts * 30:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", nodes.port), timeout=1) as made:
            made.sendall(shout)
    assert nodes.codes() == [0, 0, 0], nodes.said


def test_the_watchs_door_closes_once_all_are_in(log: Path) -> None:
    nodes = Nodes(log, "exec sleep 6", "exec sleep 6")
    nodes.all_in()
    assert nodes.codes() == [0, 0]


def test_when_the_launcher_ends_the_job_the_first_to_finish_does_not_cut_the_others(log: Path) -> None:
    """SIGTERM to all, uneven saves: the slow one has the launcher's whole grace, longer than ours."""
    quick, slow = ("trap 'sleep 0.5; exit 3' TERM; echo up; while :; do sleep 0.05; done",
                   f"trap 'sleep 4; echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done # {log.parent}")  # fmt: skip
    nodes = Nodes(log, quick, slow, grace=0.1)
    nodes.until("up", times=2)
    for process in nodes.started:
        process.terminate()
    assert nodes.codes() == [3, 3]
    assert "saved" in nodes.said


def test_a_program_that_is_not_there_is_said_so(log: Path) -> None:
    command = [sys.executable, "-P", "-m", "parlaunch_launch.supervise", "--name=n0", "--", "/no/such/program"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)
    assert (done.returncode, done.stderr) == (
        127,
        "parlaunch: cannot start /no/such/program: No such file or directory\n",
    )


def test_a_name_of_another_node_steers_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    say("node a\x1b[2J\nb went away")
    assert capfd.readouterr().err == "parlaunch: node a\\x1b[2J\\nb went away\n"


def test_without_a_connection_torchrun_runs_on_its_own(log: Path) -> None:
    agreed: Any = SimpleNamespace(node_rank=1, order=("a", "b"), watch_socket=None, watch_key=KEY)
    assert subprocess.run(supervise.command(["sh", "-c", "exit 5"], agreed), timeout=HANGS_S).returncode == 5


def test_a_rendezvous_that_kubernetes_set_does_not_overrule_the_agreement() -> None:
    environ = {"PET_RDZV_ENDPOINT": "a:1", "PET_RDZV_BACKEND": "c10d", "PET_MAX_RESTARTS": "3", "X": "1"}
    assert supervise.environment(environ, ["torchrun", "--master-addr", "b"]) == {"PET_MAX_RESTARTS": "3", "X": "1"}
    assert supervise.environment(environ, ["torchrun", "--rdzv-endpoint=c:2"]) == environ

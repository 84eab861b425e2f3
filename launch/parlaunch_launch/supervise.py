"""Stand over torchrun on a node of several, so that no node trains on, or waits, for one that is gone.

torchrun alone does not notice: an agent whose workers are done waits 300 s in its exit barrier for the others, workers of
an agent that was killed go on training, and srun without --kill-on-bad-exit lets them. So each node's parlaunch becomes

    python -m parlaunch_launch.supervise OPTIONS -- torchrun's command

a small process (no torch) between the launcher and torchrun. It hands signals down and the exit code up, keeps one TCP
connection to the supervisor of node 0, and

- says there how its torchrun ended; a bad end, or a connection that breaks, stops every node;
- ends its own torchrun after GRACE_S when told so: SIGTERM first, SIGKILL after PATIENCE_S;
- kills what torchrun leaves behind when it failed, and has torchrun end when itself is killed.

The watch never stops a job by its own failings: without a connection the job runs as it would under torchrun alone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from parlaunch_launch.agreement import Agreement

GRACE_S = 10.0
"""What NCCL or gloo need to notice a lost peer and torchrun to report it: its own words are better than our SIGTERM."""

PATIENCE_S = 20.0
"""From SIGTERM to SIGKILL; with GRACE_S and a second to hear of it, every node is down within 35 s."""

BEAT_S, SILENCE_S = 5.0, 60.0
"""A connection lives while a byte comes every BEAT_S. A cut network says nothing; a minute of it is more than NCCL bears."""

PASSED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def command(argv: Sequence[str], agreement: Agreement, *, python: str = sys.executable) -> list[str]:
    """`argv` (torchrun's) with its supervisor in front. On node 0 the listening socket of the agreement goes along."""
    options = [f"--name={agreement.order[agreement.node_rank or 0]}"]
    if agreement.watch_socket is not None:
        agreement.watch_socket.set_inheritable(True)
        kind = "listen" if agreement.node_rank == 0 else "connected"
        options.append(f"--{kind}-fd={agreement.watch_socket.fileno()}")
    return [python, "-m", "parlaunch_launch.supervise", *options, "--", *argv]


def environment(environ: Mapping[str, str], argv: Sequence[str]) -> dict[str, str]:
    """torchrun's environment. It reads PET_* for every option that is not given, and a rendezvous that Kubernetes set
    there would go before the master address that the nodes agreed on."""
    ours = not any(word.startswith("--rdzv-endpoint") for word in argv)
    return {k: v for k, v in environ.items() if not (ours and k.startswith(("PET_RDZV_", "PET_STANDALONE")))}


def main(words: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="parlaunch_launch.supervise", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="this node, as the others shall call it")
    parser.add_argument("--listen-fd", type=int, help="on node 0: the socket that the others have connected to")
    parser.add_argument("--connected-fd", type=int, help="on the others: the connection to node 0")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds for torchrun to end by itself")
    parser.add_argument("argv", nargs="+")
    given = parser.parse_args(words)
    line: Line
    if given.listen_fd is not None:
        line = Hub(socket.socket(fileno=given.listen_fd), given.name)
    else:
        line = Spoke(None if given.connected_fd is None else socket.socket(fileno=given.connected_fd))
    sys.exit(Supervisor(given.argv, line, given.grace).run())


# ------------------------------------------------------------------ this node


class Supervisor:
    """One torchrun, its signals, its end, and what it leaves behind."""

    def __init__(self, argv: Sequence[str], line: Line, grace: float = GRACE_S) -> None:
        self.argv, self.line, self.grace = list(argv), line, grace
        self.told_at: float | None = None  # when another node's failure was heard of
        self.sent: list[signal.Signals] = []

    def run(self) -> int:
        """Start torchrun, stand over it, and return the exit code for the launcher."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a killed torchrun's workers become our children, not init's
        blocked = {*PASSED_ON, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        self.pid = self._start(before, prctl)
        status = None
        while status is None:
            self._signals(blocked)
            status = self._reap()
            heard = self.line.turn()
            if heard is not None and self.told_at is None and status is None:
                self.told_at = time.monotonic()
                _say(f"{heard}; this node stops in {self.grace:.0f} s unless torchrun does so first")
            self._press()
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        if code == 0 and self.sent:
            code = 1  # ended because another node failed: nobody may take this for success
        self.line.end(code)
        if code != 0:
            _sweep()
        return code

    def _start(self, mask: set[signal.Signals | int], prctl: ctypes._NamedFuncPointer) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            # A group of its own: a signal to our group (mpirun, a terminal) reaches torchrun once, through us.
            os.setpgid(0, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            self.line.forget()
            os.execvpe(self.argv[0], self.argv, environment(os.environ, self.argv))
        except OSError as error:
            _say(f"cannot start {self.argv[0]}: {error.strerror}")
        os._exit(127)

    def _signals(self, blocked: set[signal.Signals]) -> None:
        """Wait a moment for a signal, and hand it on."""
        said = signal.sigtimedwait(blocked, 0.1)
        while said is not None:
            if said.si_signo != signal.SIGCHLD and not _from_slurm(said.si_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, said.si_signo)
            said = signal.sigtimedwait(blocked, 0)

    def _reap(self) -> int | None:
        """torchrun's wait status when it ended; orphans that came to us are reaped on the way."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == self.pid:
                return status
            if pid == 0:
                return None

    def _press(self) -> None:
        """After another node's failure: SIGTERM, later SIGKILL."""
        if self.told_at is None:
            return
        late = time.monotonic() - self.told_at
        if late > self.grace and not self.sent:
            self._send(signal.SIGTERM)
        if late > self.grace + PATIENCE_S and self.sent == [signal.SIGTERM]:
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _from_slurm(sender: int) -> bool:
    """Whether Slurm's step daemon sent a signal: it sends to every process of the step, torchrun included, and torchrun
    takes a second SIGTERM for an order to drop the workers that it is just ending."""
    try:
        with open(f"/proc/{sender}/comm", encoding="utf-8") as file:
            return file.read().startswith("slurmstepd")
    except OSError:
        return False


def _descendants() -> set[int]:
    """Every live process below us."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
                if state not in "ZX":
                    parents[int(entry)] = int(parent)
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _sweep() -> None:
    """End what a failed torchrun left behind: SIGTERM, and SIGKILL five seconds later."""
    end = time.monotonic() + 5
    sent: set[int] = set()
    while (left := _descendants()) and time.monotonic() < end + 5:
        number = signal.SIGKILL if time.monotonic() > end else signal.SIGTERM
        for pid in left if number == signal.SIGKILL else left - sent:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        sent |= left
        time.sleep(0.1)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"parlaunch: {sentence}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------ the other nodes


class Wire:
    """One connection: JSON lines, and empty ones as signs of life."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock, self.name, self.ended = sock, name, False
        self.rest, self.heard, self.beat = b"", time.monotonic(), 0.0
        self.broken: str | None = None

    def say(self, **words: object) -> None:
        self._send(json.dumps(words).encode() + b"\n")

    def live(self) -> None:
        now = time.monotonic()
        if now - self.beat > BEAT_S:
            self.beat = now
            self._send(b"\n")

    def _send(self, data: bytes) -> None:
        try:
            self.sock.send(data)
        except BlockingIOError:
            pass  # the other side reads nothing: its silence is counted there and here
        except OSError:
            self.broken = "went away"

    def hear(self) -> Iterator[dict[str, object]]:
        """The words that came; sets `broken` when no more will."""
        while self.broken is None:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.broken = "went away"
                break
            self.heard = time.monotonic()
            self.rest += data
        if self.broken is None and time.monotonic() - self.heard > SILENCE_S:
            self.broken = f"fell silent for {SILENCE_S:.0f} s"
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            if line:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


class Line:
    """This node's part of the watch."""

    def turn(self) -> str | None:
        """Send and receive what there is. What went wrong on another node, or None."""
        raise NotImplementedError

    def end(self, code: int) -> None:
        """Say how this node's torchrun ended."""
        raise NotImplementedError

    def forget(self) -> None:
        """In the child, before exec: close what is ours."""
        raise NotImplementedError


class Hub(Line):
    """Node 0: hears of every node's end, and tells all when one went wrong."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        listener.setblocking(False)
        self.listener, self.name, self.wires = listener, name, dict[int, Wire]()
        self.poll, self.looked = select.poll(), 0.0
        self.failed: str | None = None
        self.poll.register(listener, select.POLLIN)

    def turn(self) -> str | None:
        for fd, _ in self.poll.poll(0):
            if fd == self.listener.fileno():
                self._accept()
            elif fd in self.wires:
                self._hear(self.wires[fd])
        if (now := time.monotonic()) - self.looked > 1.0:
            self.looked = now
            for wire in list(self.wires.values()):
                wire.live()
                if now - wire.heard > SILENCE_S or wire.broken:
                    self._hear(wire)
        return self.failed

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # at last: nobody else is waiting
            while True:
                sock, address = self.listener.accept()
                self.wires[sock.fileno()] = Wire(sock, str(address[0]))
                self.poll.register(sock, select.POLLIN)

    def _hear(self, wire: Wire) -> None:
        for words in wire.hear():
            if "hello" in words:
                wire.name = str(words["name"])
            if "ended" in words:
                wire.ended = True
                if words["ended"] != 0:
                    self._fail(f"torchrun on {wire.name} ended with exit code {words['ended']}", wire)
        if wire.broken is not None:
            if not wire.ended:
                self._fail(f"node {wire.name} {wire.broken}", wire)
            self.poll.unregister(wire.sock)
            del self.wires[wire.sock.fileno()]
            wire.sock.close()

    def _fail(self, what: str, by: Wire | None) -> None:
        if self.failed is None:
            self.failed = what
            for wire in self.wires.values():
                if wire is not by:
                    wire.say(stop=what)

    def end(self, code: int) -> None:
        # Who connected and was not yet let in shall hear it too; a word left unread would turn the close into a reset.
        self.turn()
        self.turn()
        if code != 0 and self.failed is None:
            self._fail(f"torchrun on {self.name} ended with exit code {code}", None)
        for wire in self.wires.values():
            wire.say(ended=code)
            wire.sock.close()
        self.listener.close()

    def forget(self) -> None:
        self.listener.close()


class Spoke(Line):
    """Any other node: one connection to node 0's supervisor, made while the nodes agreed. None: nobody watches."""

    def __init__(self, connected: socket.socket | None) -> None:
        self.wire = None if connected is None else Wire(connected, "node 0")
        self.over = connected is None

    def turn(self) -> str | None:
        if self.wire is None or self.over:
            return None
        self.wire.live()
        for words in self.wire.hear():
            if "stop" in words:
                self.over = True
                return str(words["stop"])
            if words.get("ended") == 0:
                self.over = True  # node 0 is done and well; nobody watches any more
        if self.wire.broken is not None and not self.over:
            self.over = True
            return f"node 0 {self.wire.broken}"
        return None

    def end(self, code: int) -> None:
        if self.wire is not None:
            self.wire.say(ended=code)
            self.wire.sock.close()

    def forget(self) -> None:
        if self.wire is not None:
            self.wire.sock.close()


if __name__ == "__main__":
    main()

"""Stand over torchrun on a node, so that no node trains on, or waits, for one that is gone.

torchrun alone does not notice: an agent whose workers are done waits 300 s in its exit barrier for the others, workers of
an agent that was killed go on training, and srun without --kill-on-bad-exit lets them. So each node's parlaunch becomes

    python -P -m parlaunch_launch.supervise OPTIONS -- torchrun's command

a small process (no torch) between the launcher and torchrun (`elastic`). It hands signals down and the exit code up, and on
several nodes keeps one proved connection to the supervisor of node 0 (`watch`). It

- says there how its torchrun ended; a bad end, or a connection that the other side closes, stops every node;
- ends its own torchrun after GRACE_S when told so: SIGTERM first, SIGKILL after PATIENCE_S;
- kills what torchrun leaves behind when it failed, and has torchrun end when itself is killed;
- waits until all are down, and leaves with the exit code of the rank that failed first, on every node.

The watch never stops a job by its own failings: without a connection the job runs as it would under torchrun alone, and time
that was slept through (`awake`) is nobody's silence. When the launcher ends the job (SIGTERM), nothing here cuts short what
still saves: the launcher's own grace bounds it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from parlaunch_launch import elastic, secret
from parlaunch_launch.awake import Awake
from parlaunch_launch.ends import Failure, code_of
from parlaunch_launch.family import parents
from parlaunch_launch.watch import SILENCE_S, Hub, Line, Spoke, say

if TYPE_CHECKING:
    from parlaunch_launch.party import Agreement

GRACE_S = 10.0
"""What NCCL or gloo need to notice a lost peer and torchrun to report it: its own words are better than our SIGTERM."""

PATIENCE_S = 20.0
"""From SIGTERM to SIGKILL; with GRACE_S and a second to hear of it, every node is down within 35 s."""

IDLE_S = 2.0
"""The same for a torchrun whose ranks are gone: nobody saves any more."""

PASSED_ON = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip

FOR_RANKS = (signal.SIGUSR1, signal.SIGUSR2)
"""Warnings of a time limit (`--signal=USR1@300`): they are for the ranks, and would kill torchrun."""

KEY_VARIABLE = "PARLAUNCH_WATCH_KEY"
"""The watch's key, for the moment between the agreement and here; /proc shows it to this user alone."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def command(
    argv: Sequence[str],
    agreement: Agreement | None = None,
    *,
    silence_s: float = SILENCE_S,
    python: str = sys.executable,
) -> list[str]:
    """`argv` (torchrun's) with its supervisor in front. On node 0 the listening socket of the agreement goes along, on the
    others the connection to it. Without an agreement it stands over the one node of a job. `silence_s` of a node end the
    job; 0: none do."""
    options = []
    if agreement is not None:
        rank = agreement.node_rank or 0
        options += [f"--name={agreement.order[rank]}", f"--rank={rank}", f"--nodes={len(agreement.order)}"]
        options += [f"--silence={silence_s:g}"]
        if agreement.watch_socket is not None:
            agreement.watch_socket.set_inheritable(True)
            kind = "listen" if rank == 0 else "connected"
            options.append(f"--{kind}-fd={agreement.watch_socket.fileno()}")
    return [python, "-P", "-m", "parlaunch_launch.supervise", *options, "--", *argv]


def keys(agreement: Agreement) -> dict[str, str]:
    """What the supervisor's environment needs beside the plan's."""
    return {KEY_VARIABLE: agreement.watch_key.hex()} if agreement.watch_key else {}


def environment(environ: Mapping[str, str], argv: Sequence[str]) -> dict[str, str]:
    """torchrun's environment: without our keys. It reads PET_* for every option that is not given, and a rendezvous that
    Kubernetes set there would go before the master address that the nodes agreed on."""
    ours = not any(word.startswith("--rdzv-endpoint") for word in argv)
    kept = {k: v for k, v in secret.without(environ).items() if k != KEY_VARIABLE}
    return {k: v for k, v in kept.items() if not (ours and k.startswith(("PET_RDZV_", "PET_STANDALONE")))}


def main(words: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="parlaunch_launch.supervise", allow_abbrev=False)
    parser.add_argument("--name", default="this node", help="this node, as the others shall call it")
    parser.add_argument("--rank", type=int, default=0, help="its number among the nodes")
    parser.add_argument("--nodes", type=int, default=1, help="how many there are")
    parser.add_argument("--listen-fd", type=int, help="on node 0: the socket that the others have connected to")
    parser.add_argument("--connected-fd", type=int, help="on the others: the connection to node 0")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds for torchrun to end by itself")
    parser.add_argument("--silence", type=float, default=SILENCE_S, help="seconds of silence that end the job; 0: none")
    parser.add_argument("argv", nargs="+")
    given = parser.parse_args(words)
    key = bytes.fromhex(os.environ.pop(KEY_VARIABLE, ""))
    silence = given.silence or float("inf")
    line: Line = Line()
    if given.listen_fd is not None:
        line = Hub(socket.socket(fileno=given.listen_fd), key, given.name, given.nodes - 1, silence_s=silence)
    elif given.connected_fd is not None:
        line = Spoke(socket.socket(fileno=given.connected_fd), key, given.rank, given.name, silence_s=silence)
    sys.exit(Supervisor(given.argv, line, given.grace).run())


class Supervisor:
    """One torchrun, its signals, its end, and what it leaves behind."""

    def __init__(self, argv: Sequence[str], line: Line, grace: float = GRACE_S) -> None:
        self.argv, self.line, self.grace = list(argv), line, grace
        self.awake = Awake()
        self.told_at: float | None = None  # when another node's failure was heard of
        self.told_to_end = False  # the launcher sent SIGTERM: whatever ends now does so at its bidding
        self.sent: list[signal.Signals] = []

    def run(self) -> int:
        """Start torchrun, stand over it, and return the exit code for the launcher."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a killed torchrun's workers become our children, not init's
        blocked = {*PASSED_ON, signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        self.report, report_in = os.pipe()
        self.pid = self._start(before, prctl, report_in)
        os.close(report_in)
        status = None
        while status is None:
            heard = self.line.turn(0.1)
            self._signals(blocked)
            status = self._reap()
            if heard is not None and self.told_at is None and status is None and not self.told_to_end:
                self.told_at = self.awake()
                say(f"{heard.what}; this node stops in {self.grace:.0f} s unless torchrun does so first")
            self._press()
        code = code_of(os.waitstatus_to_exitcode(status)) if status else 0
        failure = self._failure(code) if code and not self.sent else None
        self.line.ended(failure)
        if code != 0:
            _sweep()
        # The others may take long; who waits at a terminal need not.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # Ended because another node failed: nobody may take this for success.
        own = code if failure is not None else 1 if self.sent or code else 0
        return self.line.leave(own, told_to_end=self.told_to_end)

    def _failure(self, code: int) -> Failure:
        """torchrun's bad end, with what it reported of the rank that failed first."""
        os.set_blocking(self.report, False)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            said = json.loads(os.read(self.report, 65536))
            return Failure(int(said["code"]), float(said["when"]), int(said["rank"]), str(said["why"]))
        return Failure(code, time.time(), None)

    def _start(self, mask: set[signal.Signals | int], prctl: ctypes._NamedFuncPointer, report: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        argv = elastic.command(self.argv, report_fd=report)
        try:
            # A group of its own: a signal to our group (mpirun, a terminal) reaches torchrun once, through us.
            os.setpgid(0, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            os.set_inheritable(report, True)
            # torchrun ignores these, and may get one before it is so far.
            for number in FOR_RANKS:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for held in self.line.sockets():
                held.close()
            os.execvpe(argv[0], argv, environment(os.environ, self.argv))
        except OSError as error:
            say(f"cannot start {argv[0]}: {error.strerror}")
        os._exit(127)

    def _signals(self, blocked: set[signal.Signals]) -> None:
        """Hand on the signals that came. Without waiting: a wait that a stop interrupts gives a signal that never was."""
        while (said := signal.sigtimedwait(blocked, 0)) is not None:
            number, by_slurm = said.si_signo, _from_slurm(said.si_pid)
            if number == signal.SIGTERM:
                self.told_to_end = True
            if number in FOR_RANKS:
                self._warn(number, by_slurm)
            elif number != signal.SIGCHLD and not by_slurm:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def _warn(self, number: int, by_slurm: bool) -> None:
        """Tell the ranks that time is running out, in a way that they understand: by this signal when they handle it, else
        by SIGTERM when they handle that (Megatron's exit-signal handler); nothing kills a rank that handles neither."""
        for rank in elastic.children(self.pid):
            caught = _caught(rank)
            tell = number if number in caught else signal.SIGTERM if signal.SIGTERM in caught else None
            if tell is None or (tell == number and by_slurm):  # Slurm sends it to every process by itself
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(rank, tell)

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
        """After another node's failure: SIGTERM, later SIGKILL. Not once the launcher ends the job: its grace counts."""
        if self.told_at is None or self.told_to_end:
            return
        late = self.awake() - self.told_at
        if late > self.grace and not self.sent:
            self._send(signal.SIGTERM)
        # Without ranks torchrun waits for those of other nodes, and hears nothing while it does.
        if self.sent == [signal.SIGTERM] and late > self.grace + (PATIENCE_S if elastic.children(self.pid) else IDLE_S):
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def _caught(pid: int) -> set[int]:
    """The signals that a process has handlers for."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            mask = int(next(line for line in file if line.startswith("SigCgt:")).split()[1], 16)
        return {number for number in range(1, 65) if mask >> (number - 1) & 1}
    return set()


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
    known = parents()
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in known.items() if parent in fresh} - found
        found |= fresh
    return found


def _sweep() -> None:
    """End what a failed torchrun left behind: SIGTERM, and SIGKILL five seconds later."""
    awake = Awake()
    sent: set[int] = set()
    while (left := _descendants()) and awake() < 10:
        number = signal.SIGKILL if awake() > 5 else signal.SIGTERM
        for pid in left if number == signal.SIGKILL else left - sent:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        sent |= left
        time.sleep(0.1)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main()

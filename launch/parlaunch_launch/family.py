"""A child with all that it starts, and their end: on our own, or on a signal's order.

torchrun gives every rank a session of its own, and a rank that hears of nothing survives its parents. What belongs to a child
is known by a mark in its environment, which every process inherits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

MARK = "PARLAUNCH_VERIFY"
"""Names the run that a process belongs to; a rank of ours says its peak memory where it is set."""

GRACE_S = 15.0
"""Time a stopped run gets to end by itself."""

KILL_S = 10.0
"""How long SIGKILL is repeated: a process in the kernel dies when it comes back."""

ORDERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


class Orders:
    """Signals that tell us to end, noted instead of obeyed at once, while the context is entered.

    `told` is the first of them, `hurry` whether there was a second one: then nothing is waited for.
    """

    def __init__(self) -> None:
        self.told: int | None = None
        self.hurry = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Orders:
        with contextlib.suppress(ValueError):  # not in the main thread: whoever is there decides
            for number in ORDERS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.told is None:
            self.told = number
        else:
            self.hurry = True


def new_mark() -> str:
    """A mark that no other run has."""
    return uuid.uuid4().hex


def dying_with_us() -> Callable[[], None]:
    """For a child to call before it becomes its program: it hears SIGTERM when we are killed."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return tie


def environ_of(pid: int) -> dict[str, str]:
    """A process's environment as it was started; empty when it is gone or not ours."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if item)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def state_of(pid: int) -> tuple[str, int] | None:
    """A process's state, as /proc has it, and its parent; None when it is gone or waits to be buried."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else (state, int(parent))


def parents() -> dict[int, int]:
    """Every live process with its parent."""
    return {pid: found[1] for pid in _pids() if (found := state_of(pid)) is not None}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def members(mark: str) -> list[int]:
    """Every live process with this mark."""
    return [pid for pid in _pids() if environ_of(pid).get(MARK) == mark and state_of(pid) is not None]


def end(child: subprocess.Popen[bytes], mark: str, orders: Orders, *, ask: bool, grace_s: float = GRACE_S) -> None:
    """End a child and all its family. `ask`: with SIGTERM first, which torchrun hands to its ranks; else it has ended already,
    and only what it left behind is meant. Afterwards no process of it runs, short of one that the kernel holds."""
    if ask and child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + (grace_s if ask else 2.0)
    while time.monotonic() < until and not orders.hurry and (child.poll() is None or members(mark)):
        time.sleep(0.1)
    until = time.monotonic() + KILL_S
    while time.monotonic() < until and ((left := members(mark)) or child.poll() is None):
        for pid in {child.pid, *left} if child.poll() is None else left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)

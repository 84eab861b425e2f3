"""What ranks say on stderr, handed on as it comes, with its end kept: why a training failed stands there, and in few programs
anywhere else.

A script that is not wrapped in torch's `record` leaves torchrun an exit code only, and Megatron Bridge's own is none that is. At a
terminal nothing stands between the ranks and it: programs draw there otherwise, and who sits there has read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections import deque
from types import TracebackType

from parlaunch_launch.awake import Awake

KEPT = 1 << 18
"""Bytes of the end that are kept."""

ROOM = 1 << 20
"""Bytes that ranks may write ahead of us, where the kernel lets a pipe be so large."""

DRAIN_S = 2.0
"""How long the end waits for what is still on its way: a process that a rank left behind may hold the pipe for ever."""

CAUSES = ("gpu", "oom", "switch", "host-oom", "shared-memory", "disk", "nan", "hub", "checkpoint", "override", "package", "compile",
          "refused")  # fmt: skip
"""Kinds of failures whose line tells the cause. What else ranks say when they end is as often what they saw of another's end."""


class Overheard:
    """While the context is entered, what is written to this process's stderr, by its children too, goes where it went and is
    kept. `tell` is asked afterwards."""

    def __init__(self, fd: int = 2) -> None:
        self.fd = fd
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._copy: threading.Thread | None = None

    def __enter__(self) -> Overheard:
        with contextlib.suppress(OSError):  # there is no stderr
            if not os.isatty(self.fd):
                self._real = os.dup(self.fd)
                self._from, to = os.pipe()
                with contextlib.suppress(OSError):
                    fcntl.fcntl(to, fcntl.F_SETPIPE_SZ, ROOM)
                os.dup2(to, self.fd)
                os.close(to)
                self._copy = threading.Thread(target=self._hand_on, daemon=True)
                self._copy.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._copy is not None:
            os.dup2(self._real, self.fd)
            awake = Awake()
            while self._copy.is_alive() and awake() < DRAIN_S:
                self._copy.join(0.1)

    def tell(self) -> str:
        """The end of what was said."""
        return b"".join(self._kept.copy()).decode(errors="replace")

    def _hand_on(self) -> None:
        heard = True
        while data := os.read(self._from, 1 << 16):
            self._kept.append(data)
            self._size += len(data)
            while self._size > KEPT and len(self._kept) > 1:
                self._size -= len(self._kept.popleft())
            heard = heard and self._write(data)
        os.close(self._from)
        os.close(self._real)

    def _write(self, data: bytes) -> bool:
        """Whether somebody still reads. Ranks are not to be held, or killed, because nobody does."""
        while data:
            try:
                data = data[os.write(self._real, data) :]
            except BlockingIOError:
                select.select((), (self._real,), ())
            except OSError:
                return False
        return True


def why(said: str) -> str:
    """The cause of a failed training and the way out, as far as what it said tells; "" where it does not."""
    from parlaunch_launch.training_log import lines_of, read_run

    found = next((f for f in read_run([lines_of([said.encode(errors="replace")])]).failures if f.kind in CAUSES), None)
    if found is None:
        return ""
    return found.sentence + (f"; {found.todo}" if found.todo else "")

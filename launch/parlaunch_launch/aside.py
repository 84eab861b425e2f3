"""Several tasks a node, of which one launches: the others stay until it ends.

They have nothing to do, but some clusters end a step some seconds after its first task has left (WaitTime). So they wait on a
socket of the launching task, in the kernel's abstract names, which is held through every exec and closes with its last holder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time

COMES_S = 60.0
"""How long the launching task may take to come, from a cold file system at that; where it cannot be seen (a container of its own) the others leave then."""

LEFT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

_HELD: list[socket.socket] = []


def _name(token: str) -> str:
    return f"\0parlaunch-{os.geteuid()}-{token}"


def hold(token: str) -> None:
    """This task launches: whoever waits does so until this process and what it becomes are gone."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(_name(token))
        made.listen(256)
        made.set_inheritable(True)
    except OSError:
        made.close()  # somebody holds the name: the others leave, and nothing is lost but their company
        return
    _HELD.append(made)


def wait(token: str, *, comes_s: float = COMES_S) -> None:
    """Return when the launching task of this node has ended, or did not come. Signals are left to it: the launcher sends them to
    all (srun's SIGTERM when one fails, a warning of the time limit), who dies of one would end the step, and the exit code is
    the launching task's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, LEFT)
    end = time.monotonic() + comes_s
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            try:
                made.connect(_name(token))
                _, uid, _ = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid != os.geteuid():
                    return
            except OSError:
                time.sleep(0.2)
                continue
            with contextlib.suppress(OSError):
                made.recv(1)
            return

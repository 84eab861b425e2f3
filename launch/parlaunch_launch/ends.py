"""How ranks end: exit codes, and which of several bad ends was the cause of the others."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """One bad end: exit code, when (seconds since 1970, whole ones as torchrun notes them), which rank, and what is known of
    the reason, with the way out."""

    code: int
    when: float
    rank: int | None
    why: str = ""


ECHOES = {1, 128 + signal.SIGABRT, 128 + signal.SIGTERM}
"""Exit codes with which ranks end that lost another: an exception, NCCL's watchdog, torchrun's order."""

HEARD_S = 1.0
"""Until srun has a task's last lines. It stops listening with the end of the last task, once another was killed."""

SAME_S = 1.5
"""Ends so close together are not told apart: torchrun notes whole seconds."""


def first(ends: Sequence[Failure]) -> Failure:
    """The end that was the cause of the others: the earliest, and of several at one time one that is no echo, or of which the
    reason is known."""
    began = min(end.when for end in ends)
    return min((e for e in ends if e.when <= began + SAME_S), key=lambda e: (e.code in ECHOES, not e.why, e.when))


def code_of(status: int) -> int:
    """A shell's exit code for subprocess' one. A failure is never 0."""
    return 128 - status if status < 0 else status or 1

"""Time that this process was awake.

A job is suspended (`scontrol suspend`, gang scheduling, SIGSTOP), a virtual machine is paused, a clock is set: the time that
passed meanwhile says nothing about the others, who could not be heard. Every limit on somebody else's silence counts here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

GAP_S = 1.0
"""What one look at the clock counts at most. Who waits looks several times a second, so a longer gap was slept through."""


class Awake:
    """A clock in seconds from 0 that stands still while nobody looks at it for longer than GAP_S."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last, self._seconds = clock, clock(), 0.0

    def __call__(self) -> float:
        now = self._clock()
        self._seconds += min(max(0.0, now - self._last), GAP_S)
        self._last = now
        return self._seconds

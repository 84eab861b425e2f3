"""The nodes of a job that have met, what they agree on, and how they leave together."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch_launch.meeting import Meeting

Brought = Mapping[str, Any] | ParlaunchError
"""What a node comes with: its probe, or what it refuses with."""
Planner = Callable[[list[dict[str, Any]]], bytes | tuple[bytes, Sequence[int]]]
Objection = Callable[[bytes, int], str | None]

REFUSED_S = 10.0
"""How long the others may still come once a node has refused: all refuse with the same words, and none is cut off by srun."""

AFTER_S = 180.0
"""How long nodes that agree again wait for each other: supervisors end their trainings within a minute of each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What all nodes hold in common, and this node's place in it."""

    plan_bytes: bytes
    node_rank: int | None  # None: a spare, not needed for this run
    order: tuple[str, ...]  # host names by node rank
    report: str
    master: str  # address of node 0, as the others reached it
    port: int  # free on node 0, for torchrun
    seat: int
    watch_socket: socket.socket | None = field(default=None, compare=False)
    """For `supervise`: on node 0 the listening socket, on the others a connection to it."""
    watch_key: bytes = field(default=b"", repr=False)


class Party:
    """The nodes of a job that have met. `hosts`: this is the first node, which plans."""

    hosts = False

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def agree(
        self,
        mine: Brought,
        plan: Planner,
        check: Objection | None = None,
        *,
        patience_s: float = AFTER_S,
    ) -> Agreement:
        """As the function of this name. Once they have agreed, they may again, those that were not left out: node ranks stay,
        `plan` gets what those bring that are still there, and nobody is waited for longer than `patience_s`."""
        return self._agreed(mine, plan, check, patience_s)

    def _agreed(self, mine: Brought, plan: Planner, check: Objection | None, patience_s: float) -> Agreement:
        raise NotImplementedError

    def __enter__(self) -> Party:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.meeting.close()


def unhurried() -> None:
    """srun ends every task when one has failed: those who are about to leave with the same code do so by themselves."""
    with contextlib.suppress(OSError, ValueError):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

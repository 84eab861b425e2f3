"""Every node but the first: bring the probe, wait for the verdict, check the plan, wait for "go"."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.where.schedulers import place_of
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses
from parlaunch_launch.awake import Awake
from parlaunch_launch.channel import Channel
from parlaunch_launch.meeting import Meeting
from parlaunch_launch.party import REFUSED_S, Agreement, Brought, Objection, Party, Planner, unhurried
from parlaunch_launch.secret import Keys
from parlaunch_launch.wire import brings, error_of, inflated, objection, packed, unpacked


class OtherNode(Party):
    """Any node but the first, in its place."""

    def __init__(
        self, meeting: Meeting, channel: Channel, situation: Situation, keys: Keys, timeout_s: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(meeting)
        self.channel, self.situation, self.keys, self.say = channel, situation, keys, say
        self.patience = 2 * timeout_s + 30  # the others' arrival, then the planning
        self.again = False

    def _agreed(self, mine: Brought, plan: Planner, check: Objection | None, patience_s: float) -> Agreement:
        if self.again:
            self.patience = 2 * patience_s + 30  # those of the slowest node, then the planning
        watcher = addresses.listen(self.channel.here)  # this node may become node 0
        watch: socket.socket | None = None
        done = False
        try:
            brought = brings(self.situation, mine) | {"here": self.channel.here, "there": self.channel.there}
            brought |= {"again": True} if self.again else {}
            self.channel.send(packed(brought | {"watch": watcher.getsockname()[1], "clock": time.time()}))
            verdict = self._hear()
            rank = verdict["rank"]
            data = inflated(self._frame())
            watch = watcher if rank == 0 else self._connected(verdict, rank)
            self.channel.send(packed({"told": objection(data, verdict["sha256"], rank, check)}))
            self._hear()
            done = self.again = True
            return Agreement(
                plan_bytes=data, node_rank=rank, order=tuple(verdict["names"]), report=verdict["report"],
                master=verdict["master"], port=verdict["port"], seat=verdict["seat"], watch_socket=watch,
                watch_key=self.keys.of("watch"),
            )  # fmt: skip
        finally:
            for left in (watcher, watch):
                if left is not None and not (done and left is watch):
                    left.close()

    def _hear(self) -> dict[str, Any]:
        """The first node's next word. Raises what it refuses with."""
        said = unpacked(self._frame())
        if said.get("problem") is None:
            return said
        unhurried()
        with contextlib.suppress(OSError):
            self.channel.send(packed({"heard": True}))
            self.channel.take(REFUSED_S)  # it closes when all have heard: then all leave together
        error = error_of(said)
        error.told = place_of(self.situation).one_log
        raise error

    def _frame(self) -> bytes:
        awake = Awake()
        while (left := self.patience - awake()) > 0:
            try:
                frame = self.channel.take(min(left, 0.5))
            except OSError as error:
                when = "" if self.again else " during the agreement"
                raise ParlaunchError(
                    f"the first node, {self.situation.master}, went away{when}",
                    hint="its own output says why; `parlaunch doctor` there helps",
                ) from error
            if frame is not None:
                return frame
        raise ParlaunchError(
            f"the first node, {self.situation.master}, said nothing for {self.patience:.0f} s",
            hint="its own output may say why",
        )

    def _connected(self, verdict: Mapping[str, Any], rank: int | None) -> socket.socket | None:
        """The connection by which node 0's supervisor and ours will watch each other; None for a spare."""
        return None if rank is None else connected(verdict["master"], verdict["watch"], self.say)


def connected(host: str, port: int, say: Callable[[str], None]) -> socket.socket | None:
    """A connection to node 0's watch; None, with a word, where there is none to be had."""
    try:
        return socket.create_connection((host, port), timeout=5)
    except OSError as error:
        say(f"parlaunch: no connection to node 0 at {host} port {port} ({error}): its end would go unnoticed")
        return None

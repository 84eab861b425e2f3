"""The supervisors of one job among themselves: who ended how, when all others shall end, and with which exit code.

    every other node -> node 0    hello · failed (code, rank, when) · done · down
    node 0 -> every other node    stop (what happened) · leave (the exit code)

What counts as the end of a node: its word, or a closed connection of one that had said hello. Silence does not: a network
that is cut, or a supervisor that is frozen, may belong to a node whose training goes on over another fabric. It is a warning
with the node's name, and ends the job after SILENCE_S only.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parlaunch.show.plain import one_line
from parlaunch_launch.awake import Awake
from parlaunch_launch.channel import NO_WORDS, Channel, Knock, Refused
from parlaunch_launch.door import Door, Event
from parlaunch_launch.ends import HEARD_S, Failure, first

BEAT_S, QUIET_S = 5.0, 60.0
"""A sign of life is sent every BEAT_S, or oftener where less silence is borne; after QUIET_S without one the node is named in a warning."""

SILENCE_S = 1800.0
"""After so long the job ends: NCCL's watchdog (10 minutes) and its heartbeat (8) have long had their say."""

LATE_S = 120.0
"""How long node 0 keeps its door open for supervisors that have not said hello."""

MOST_WORDS = 1000
"""Characters of a reason that another node gives."""

LEAVE_S = 45.0
"""How long a node that is down waits for the word to leave: what the slowest of the others needs to be down too."""


def say(sentence: str) -> None:
    """A line on stderr, if there is one. Names of other nodes are in it: none of them steers a terminal."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"parlaunch: {one_line(sentence)}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Stop:
    """Something ended badly elsewhere."""

    what: str


class Line:
    """This node's part of the watch. By itself: nobody else is there."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def turn(self, wait_s: float) -> Stop | None:
        """Send and receive what there is, waiting at most so long. What went wrong on another node, once."""
        time.sleep(wait_s)
        return None

    def ended(self, failure: Failure | None) -> None:
        """torchrun ended here: well, or so. What it left behind is still to be cleared away."""
        if failure is not None:
            self.failures.append(failure)

    def leave(self, own: int, *, told_to_end: bool) -> int:
        """Everything of this node is down. Wait until the others are, and give the exit code of the job. `told_to_end`: the
        launcher ends the job, and others may still save for as long as it lets them."""
        if not told_to_end:
            self.explain()
        return own

    def explain(self) -> None:
        """Say why it failed first, where that is known: the last word, behind what all others had to say of it."""
        if self.failures and (cause := first(self.failures)).why:
            say(f"rank {cause.rank} failed: {cause.why}")

    def _be_heard(self) -> None:
        """Stay until the launcher has the last lines of every node."""
        until = time.monotonic() + HEARD_S
        while (left := until - time.monotonic()) > 0:
            self.turn(min(left, 0.1))

    def sockets(self) -> Iterator[socket.socket]:
        """What a child must not hold."""
        yield from ()


# ------------------------------------------------------------------ node 0


@dataclass(slots=True, eq=False)
class Peer:
    """Another node, as node 0 knows it."""

    channel: Channel
    name: str = ""  # empty: it has not said hello
    heard: float = 0.0
    offset_s: float = 0.0  # its clock less ours: of those that nobody sets
    failure: Failure | None = None
    ended: bool = False
    down: bool = False
    warned: bool = False


class Hub(Line):
    """Node 0: hears of every node's end, and tells all when one went wrong."""

    def __init__(
        self, listener: socket.socket | None, key: bytes, name: str, others: int, *, silence_s: float = SILENCE_S
    ) -> None:
        super().__init__()
        self.name, self.others, self.silence_s, self.every = name, others, silence_s, min(BEAT_S, silence_s / 4)
        self.door = Door([listener] if listener is not None else [], key, expected=others)
        self.peers: dict[Channel, Peer] = {}
        self.names: list[str] = []  # of all that said hello
        self.awake = Awake()
        self.beat = 0.0
        self.stop: Stop | None = None
        self.cause: Failure | None = None  # of what stopped all, when it has a code
        self.own: Failure | None = None

    def turn(self, wait_s: float) -> Stop | None:
        for event in self.door.turn(wait_s):
            self._happened(event)
        now = self.awake()
        if now - self.beat > self.every:
            self.beat = now
            for peer in list(self.peers.values()):
                self.door.send(peer.channel)
        for peer in list(self.peers.values()):
            self._quiet(peer, now)
        if self.door.open and (len(self.names) >= self.others or now > LATE_S):
            self.door.shut()
            if len(self.names) < self.others:
                say(
                    f"{self.others - len(self.names)} of {self.others} nodes never joined the watch: their ends go unnoticed"
                )
        return self.stop

    def _happened(self, event: Event) -> None:
        channel = event.channel
        if event.gone is not None:
            if (peer := self.peers.pop(channel, None)) is not None:
                self._gone(peer, channel)
            return
        if event.said is None:
            self.peers[channel] = Peer(channel, heard=self.awake())
            channel.bear(max(86400.0, self.silence_s if self.silence_s != float("inf") else 0.0))
            return
        peer = self.peers[channel]
        peer.heard, peer.warned = self.awake(), False
        if event.said:
            with contextlib.suppress(*NO_WORDS):
                self._said(peer, json.loads(event.said))

    def _said(self, peer: Peer, words: dict[str, Any]) -> None:
        if "hello" in words and not peer.name:
            peer.name, peer.offset_s = str(words["name"]), float(words["clock"]) - time.monotonic()
            self.names.append(peer.name)
            if self.stop is not None:
                self._tell(peer)
        if "failed" in words:
            code, rank = int(words["failed"]), words.get("rank")
            why = str(words.get("why", ""))[:MOST_WORDS]
            peer.failure = Failure(code, _wall(float(words["when"]) - peer.offset_s), rank, why)
            peer.ended = True
            self.failures.append(peer.failure)
            self._stop(f"training on {peer.name} ended with {code_words(code)}", peer.failure)
        if "done" in words:
            peer.ended = True
        if "down" in words:
            peer.ended = peer.down = True

    def _gone(self, peer: Peer, channel: Channel) -> None:
        if peer.ended or not peer.name:
            return
        if channel.lost or self.awake() - peer.heard > QUIET_S:
            # The kernel gave up on a network that was cut, or the other end did: no word on the node itself.
            say(f"the connection to {peer.name} is lost after a silence; its end would go unnoticed")
            return
        self._stop(f"node {peer.name} went away", None)

    def _quiet(self, peer: Peer, now: float) -> None:
        silent = now - peer.heard
        if not peer.name or peer.ended:
            return
        if silent > QUIET_S and not peer.warned:
            peer.warned = True
            say(f"nothing was heard of {peer.name} for {silent:.0f} s; {_patience(self.silence_s)}")
        if silent > self.silence_s:
            self._stop(f"nothing was heard of {peer.name} for {silent:.0f} s", None)

    def _stop(self, what: str, cause: Failure | None) -> None:
        if self.stop is None:
            self.stop, self.cause = Stop(what), cause
            for peer in self.peers.values():
                self._tell(peer)

    def _tell(self, peer: Peer) -> None:
        if peer.name and self.stop is not None:
            self.door.send(peer.channel, json.dumps({"stop": self.stop.what}).encode())

    def ended(self, failure: Failure | None) -> None:
        super().ended(failure)
        if failure is not None:
            self.own = failure
            self._stop(f"training on {self.name} ended with {code_words(failure.code)}", failure)

    def leave(self, own: int, *, told_to_end: bool) -> int:
        # What ended well here goes on elsewhere, and a bad end is bounded: the others are being ended.
        bounded_since: float | None = None
        while self.door.open or any(p.name and not p.down for p in self.peers.values()):
            self.turn(0.1)
            if self.stop is not None and not told_to_end:
                bounded_since = self.awake() if bounded_since is None else bounded_since
                if self.awake() > bounded_since + LEAVE_S:
                    break
        if not told_to_end:
            self.explain()
            if self.stop is not None:
                self._be_heard()
        code = first(self.failures).code if self.failures else 1 if self.stop is not None else own
        for peer in list(self.peers.values()):
            self.door.send(peer.channel, json.dumps({"leave": code}).encode())
        end = self.awake() + 3.0
        while not self.door.flushed() and self.awake() < end:
            self.door.turn(0.05)
        self.door.close()
        return code

    def sockets(self) -> Iterator[socket.socket]:
        yield from self.door.sockets()


# ------------------------------------------------------------------ any other node


class Spoke(Line):
    """Any other node: one connection to node 0's supervisor, made while the nodes agreed."""

    def __init__(
        self, connected: socket.socket, key: bytes, rank: int, name: str, *, silence_s: float = SILENCE_S
    ) -> None:
        super().__init__()
        self.rank, self.name, self.silence_s, self.every = rank, name, silence_s, min(BEAT_S, silence_s / 4)
        self.key, self.sock, self.hub = key, connected, connected.getpeername()
        self.knock: Knock | None = Knock(connected, lambda _: key)
        self.tried = 0.0
        self.channel: Channel | None = None
        self.awake = Awake()
        self.heard = self.beat = 0.0
        self.warned = False
        self.stop: Stop | None = None
        self.code: int | None = None  # the job's, from node 0
        self.over = False  # node 0 is gone, or was never there
        self.unsaid: list[bytes] = []  # until it has proved itself

    def turn(self, wait_s: float) -> Stop | None:
        import select

        if self.channel is None and self.knock is None and not self.over:
            self._again()
        if self.over or self.knock is None:
            time.sleep(wait_s)
            return self.stop
        poll = select.poll()
        busy = self.channel is not None and self.channel.waiting
        poll.register(self.sock, select.POLLIN | (select.POLLOUT if busy else 0))
        poll.poll(wait_s * 1000)
        if self.channel is None:
            self._prove()
        if self.channel is not None:
            self.channel.flush()
            self._hear(self.channel)
        return self.stop

    def _again(self) -> None:
        """Knock once more: a crowd at node 0's door may have driven us out."""
        if (now := self.awake()) < self.tried + 0.5:
            return
        self.tried = now
        try:
            self.sock = socket.create_connection(self.hub[:2], timeout=1)
            self.knock = Knock(self.sock, lambda _: self.key)
        except OSError as error:
            if now > LATE_S or isinstance(error, ConnectionRefusedError):
                self.over = True
                say(f"node 0's watch is not to be had ({error}): its end would go unnoticed")

    def _prove(self) -> None:
        assert self.knock is not None
        try:
            self.channel = self.knock.turn()
        except (OSError, Refused):
            self.knock = None
            self.sock.close()
            return
        if self.channel is not None:
            self.channel.bear(max(86400.0, self.silence_s if self.silence_s != float("inf") else 0.0))
            self.heard = self.awake()
            early, self.unsaid = self.unsaid, []
            self._send(hello=self.rank, name=self.name, clock=time.monotonic())
            for words in early:
                self.channel.send(words)

    def _hear(self, channel: Channel) -> None:
        now = self.awake()
        for frame in channel.receive():
            self.heard, self.warned = now, False
            if frame:
                with contextlib.suppress(*NO_WORDS):
                    words = json.loads(frame)
                    if "stop" in words and self.stop is None:
                        self.stop = Stop(str(words["stop"]))
                    if "leave" in words:
                        self.code, self.over = int(words["leave"]), True
        if now - self.beat > self.every:
            self.beat = now
            channel.send()
        silent = now - self.heard
        if channel.broken is not None and not self.over:
            self.over = True
            if channel.lost or silent > QUIET_S:
                say("the connection to node 0 is lost after a silence; its end would go unnoticed")
            elif self.stop is None:
                self.stop = Stop("node 0 went away")
        elif silent > QUIET_S and not self.warned:
            self.warned = True
            say(f"nothing was heard of node 0 for {silent:.0f} s; {_patience(self.silence_s)}")
        elif silent > self.silence_s and self.stop is None:
            self.stop = Stop(f"nothing was heard of node 0 for {silent:.0f} s")

    def _send(self, **words: object) -> None:
        said = json.dumps(words).encode()
        if self.channel is not None:
            self.channel.send(said)
        else:
            self.unsaid.append(said)

    def ended(self, failure: Failure | None) -> None:
        super().ended(failure)
        if failure is None:
            self._send(done=True)
        else:
            self._send(failed=failure.code, rank=failure.rank, when=_steady(failure.when), why=failure.why)

    def leave(self, own: int, *, told_to_end: bool) -> int:
        self._send(down=True)
        bounded_since: float | None = None
        while not self.over:
            self.turn(0.1)
            if (own or self.stop is not None) and not told_to_end:
                bounded_since = self.awake() if bounded_since is None else bounded_since
                if self.awake() > bounded_since + LEAVE_S:
                    break
        if self.code is None and not told_to_end:  # node 0 knows what the others had to say, and is gone
            self.explain()
            if own:
                self._be_heard()
        return own if self.code is None else self.code

    def sockets(self) -> Iterator[socket.socket]:
        yield self.sock


def _steady(when: float) -> float:
    """A moment of the wall clock, which may be set at any time, by the clock that nobody sets."""
    return time.monotonic() - (time.time() - when)


def _wall(when: float) -> float:
    return time.time() - (time.monotonic() - when)


def _patience(silence_s: float) -> str:
    if silence_s == float("inf"):
        return "the job goes on"
    return f"the job goes on, and ends after {silence_s:.0f} s of it (--silence-timeout)"


def code_words(code: int) -> str:
    """An exit code as a person reads it."""
    import signal

    if code > 128:
        with contextlib.suppress(ValueError):
            return f"exit code {code} ({signal.Signals(code - 128).name})"
    return f"exit code {code}"

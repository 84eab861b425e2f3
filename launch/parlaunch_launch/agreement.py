"""The nodes of a job agree on one plan: each brings what it found, the first node plans, all get the same bytes.

    every node:   prove, claim a seat, bring the probe   -> wait for the verdict -> check the plan -> wait for "go"
    first node:   wait for all, compare, plan            -> verdict              -> wait for all   -> "go", or "stop"

Nobody waits for ever, and whatever goes wrong on one node stops all of them with the same sentence: what a node refuses
before it comes here, it brings here. Nobody is heard who has not proved to know the job's secret.

`meet` is for nodes that stay together and agree again, on what each has found out meanwhile: who is gone by then is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.where.nodelist import short
from parlaunch.where.schedulers import place_of
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses
from parlaunch_launch.awake import Awake
from parlaunch_launch.channel import MOST, Channel
from parlaunch_launch.door import Door, Event
from parlaunch_launch.meeting import LOOPBACK_PATIENCE_S, Meeting, loopback_error, open_meeting
from parlaunch_launch.secret import Keys, Secret

Planner = Callable[[list[dict[str, Any]]], bytes | tuple[bytes, Sequence[int]]]
Objection = Callable[[bytes, int], str | None]

LINGER_S = 12.0
"""How long the first node stays after a refusal: nodes that start a little later shall hear why it was the last word."""

REFUSED_S = 10.0
"""How long the others may still come once a node has refused: all refuse with the same words, and none is cut off by srun."""

AFTER_S = 180.0
"""How long nodes that agree again wait for each other: supervisors end their trainings within a minute of each other."""

WIDEN_S = 10.0
"""After so long without all of them, the first node listens on all its addresses: they may know it by another."""

OWN_WORDS = ("--node-rank", "--node_rank", "--master-addr", "--master_addr", "--local-addr")
"""Options that rightly differ between the nodes of one job."""


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


def agree(
    situation: Situation,
    mine: Mapping[str, Any] | ParlaunchError,
    plan: Planner,
    *,
    secret: Secret | None = None,
    timeout_s: float = 120.0,
    spares: int = 0,
    check: Objection | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Agreement:
    """Meet the other nodes of `situation` and come away with one plan.

    `mine` is this node's probe, and under `version` and `command` what has to be equal everywhere; or what this node refuses
    with, which is then every node's refusal. `plan` runs on the first node only, with every node's `mine` in the launcher's
    order, each with `agreement: {hostname, seat, address, ahead_s}` added, the last the seconds that its clock is ahead of the
    first node's, as far as that is certain. It returns the plan as bytes; a JSON object with `rank_order` (host names) numbers
    the nodes, and so does a second value, seats by node rank. Nodes left out are spares.
    `check` gets the plan and this node's rank, and says what is wrong with it here. With `spares`, as many nodes may be missing.

    Raises ParlaunchError (UsageError, NoLayoutError) with one text on every node: a node that did not come or went
    away, two with one rank, other versions or command lines, what `plan` raised, what a `check` said. `told` is set on it
    where another node prints it into the same log.
    """
    with meet(situation, mine, secret=secret, timeout_s=timeout_s, spares=spares, say=say) as party:
        return party.agree(mine, plan, check)


def meet(
    situation: Situation,
    mine: Mapping[str, Any] | ParlaunchError,
    *,
    secret: Secret | None = None,
    timeout_s: float = 120.0,
    spares: int = 0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Party:
    """The nodes of `situation` for as long as the context lasts. Raises as `agree` does, or `mine` where nobody hears it."""
    if (situation.nnodes or 1) < 2:
        raise AssertionError("one node has nobody to agree with")
    if situation.nodelist and situation.nnodes != len(situation.nodelist):
        raise UsageError(
            f"the node list names {len(situation.nodelist)} nodes and the launcher counts {situation.nnodes}",
            hint="unset SLURM_* variables that were exported by hand",
        )
    keys = Keys(secret or Secret(value=None, source="nothing"), situation, os.environ)
    try:
        meeting = open_meeting(situation, keys, timeout_s=timeout_s)
    except ParlaunchError:
        if isinstance(mine, ParlaunchError):
            raise mine from None  # its own reason is nearer than that nobody is there to hear it
        raise
    if meeting.door is not None:
        return _Host(meeting, meeting.door, situation, keys, timeout_s, spares, say)
    assert meeting.channel is not None
    return _Guest(meeting, meeting.channel, situation, keys, timeout_s, say)


class Party:
    """The nodes of a job that have met. `hosts`: this is the first node, which plans."""

    hosts = False

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting

    def agree(
        self,
        mine: Mapping[str, Any] | ParlaunchError,
        plan: Planner,
        check: Objection | None = None,
        *,
        patience_s: float = AFTER_S,
    ) -> Agreement:
        """As the function of this name. Once they have agreed, they may again, those that were not left out: node ranks stay,
        `plan` gets what those bring that are still there, and nobody is waited for longer than `patience_s`."""
        raise NotImplementedError

    def __enter__(self) -> Party:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.meeting.close()


# ------------------------------------------------------------------ words on the wire


def _packed(said: Mapping[str, Any]) -> bytes:
    return zlib.compress(json.dumps(said).encode(), 1)


def _unpacked(frame: bytes) -> dict[str, Any]:
    """A message. Raises ValueError for what is none, or would be longer than MOST."""
    said = json.loads(_inflated(frame))
    if not isinstance(said, dict):
        raise ValueError("no message")
    return said


def _inflated(frame: bytes) -> bytes:
    opened = zlib.decompressobj()
    try:
        data = opened.decompress(frame, MOST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not opened.eof:
        raise ValueError("longer than any message")
    return data


def _as_said(error: ParlaunchError) -> dict[str, Any]:
    return {"problem": error.problem, "hint": error.hint, "exit_code": error.exit_code}


def _error(said: Mapping[str, Any]) -> ParlaunchError:
    kinds = {k.exit_code: k for k in (ParlaunchError, UsageError, NoLayoutError)}
    return kinds.get(said.get("exit_code", 1), ParlaunchError)(str(said["problem"]), hint=str(said.get("hint", "")))


def _name(situation: Situation) -> str:
    """The node's name as Slurm's list has it; where there is no list, the host's."""
    rank, listed = situation.node_rank, situation.nodelist
    return listed[rank] if rank is not None and rank < len(listed) else situation.hostname


def _brings(situation: Situation, mine: Mapping[str, Any] | ParlaunchError) -> dict[str, Any]:
    """What a node says of itself."""
    brought = {
        "claim": situation.node_rank, "hostname": situation.hostname, "name": _name(situation),
        "nnodes": situation.nnodes, "port": addresses.free(addresses.ports(situation).training),
    }  # fmt: skip
    if isinstance(mine, ParlaunchError):
        return brought | {"refuses": _as_said(mine)}
    return brought | {"mine": dict(mine)}


def _objection(data: bytes, sha256: str, rank: int | None, check: Objection | None) -> str | None:
    """What this node has to say about the plan; None when it suits."""
    if hashlib.sha256(data).hexdigest() != sha256:
        return "the plan that arrived is not the plan that was sent"
    if rank is None or check is None:
        return None
    try:
        return check(data, rank)
    except ParlaunchError as error:
        return error.problem


def unhurried() -> None:
    """srun ends every task when one has failed: those who are about to leave with the same code do so by themselves."""
    with contextlib.suppress(OSError, ValueError):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


# ------------------------------------------------------------------ every other node


class _Guest(Party):
    def __init__(
        self, meeting: Meeting, channel: Channel, situation: Situation, keys: Keys, timeout_s: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(meeting)
        self.channel, self.situation, self.keys, self.say = channel, situation, keys, say
        self.patience = 2 * timeout_s + 30  # the others' arrival, then the planning
        self.again = False

    def agree(
        self,
        mine: Mapping[str, Any] | ParlaunchError,
        plan: Planner,
        check: Objection | None = None,
        *,
        patience_s: float = AFTER_S,
    ) -> Agreement:
        if self.again:
            self.patience = 2 * patience_s + 30  # those of the slowest node, then the planning
        watcher = addresses.listen(self.channel.here)  # this node may become node 0
        watch: socket.socket | None = None
        done = False
        try:
            brought = _brings(self.situation, mine) | {"here": self.channel.here, "there": self.channel.there}
            brought |= {"again": True} if self.again else {}
            self.channel.send(_packed(brought | {"watch": watcher.getsockname()[1], "clock": time.time()}))
            verdict = self._hear()
            rank = verdict["rank"]
            data = _inflated(self._frame())
            watch = watcher if rank == 0 else self._connected(verdict, rank)
            self.channel.send(_packed({"told": _objection(data, verdict["sha256"], rank, check)}))
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
        said = _unpacked(self._frame())
        if said.get("problem") is None:
            return said
        unhurried()
        with contextlib.suppress(OSError):
            self.channel.send(_packed({"heard": True}))
            self.channel.take(REFUSED_S)  # it closes when all have heard: then all leave together
        error = _error(said)
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


# ------------------------------------------------------------------ the first node


@dataclass(slots=True, eq=False)
class _Node:
    """One that came. `channel` None: this one."""

    channel: Channel | None
    brought: dict[str, Any]
    told: bool = False  # it has said what it thinks of the plan
    heard: bool = False  # it has heard a refusal
    gone: str | None = None
    again: dict[str, Any] | None = None  # what it brings to the next agreement

    @property
    def name(self) -> str:
        return str(self.brought["name"])


class _Host(Party):
    """The first node's part: gather, compare, plan, confirm."""

    def __init__(
        self, meeting: Meeting, door: Door, situation: Situation, keys: Keys, timeout_s: float, spares: int,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(meeting)
        self.door, self.situation, self.keys = door, situation, keys
        self.timeout_s, self.spares, self.say = timeout_s, spares, say
        self.nnodes = situation.nnodes or 1
        self.awake, self.began = Awake(), time.monotonic()
        self.nodes: dict[int, _Node] = {}  # by seat
        self.of: dict[Channel, _Node] = {}
        self.came: dict[Channel, float] = {}  # by our clock
        self.doubles: list[tuple[int, str]] = []
        self.objections: list[tuple[int, str]] = []
        self.problem: bytes | None = None  # the refusal, once there is one
        self.given_up = False  # time is up for those who have not come
        self.missing: tuple[str, ...] = ()
        self.order: list[int] | None = None  # seats by node rank, once they have agreed

    hosts = True

    def agree(
        self,
        mine: Mapping[str, Any] | ParlaunchError,
        plan: Planner,
        check: Objection | None = None,
        *,
        patience_s: float = AFTER_S,
    ) -> Agreement:
        crash: BaseException | None = None
        watch: socket.socket | None = None
        connection: socket.socket | None = None
        first = self.order is None
        try:
            brought = self._first(mine) if first else self._again(mine, patience_s)
            probes = [
                b["mine"]
                | {
                    "agreement": {
                        "hostname": b["name"],
                        "seat": b["seat"],
                        "address": b["here"],
                        "ahead_s": b["ahead_s"],
                    }
                }
                for b in brought
            ]
            try:
                answer = plan(probes)
            except ParlaunchError:
                raise
            except Exception as error:
                crash = error
                raise ParlaunchError(
                    f"planning failed on the first node, {_name(self.situation)}: {type(error).__name__}: {error}",
                    hint="its output has the traceback",
                ) from error
            data, seats = answer if isinstance(answer, tuple) else (answer, self._seats(answer, brought))
            verdict, watch = self._verdict(data, list(seats), brought)
            rank = self._publish(verdict, data)
            connection = self._own(verdict, rank, watch)
            if problem := _objection(data, verdict["sha256"], rank, check):
                self.objections.append((verdict["seat"], problem))
            self._confirm()
            for node in self.nodes.values():
                self._tell(node, _packed({"go": True}))
            self._flush(5.0)
        except ParlaunchError as error:
            unhurried()
            _close(watch, connection)
            self._refuse(error)
            raise crash or error from None
        except BaseException:
            _close(watch, connection)
            self._refuse(ParlaunchError(f"the first node, {_name(self.situation)}, was interrupted"), linger_s=2.0)
            raise
        self.order = list(seats)
        if first:
            self.say(verdict["report"])
        return Agreement(
            plan_bytes=data, node_rank=rank, order=tuple(verdict["names"]), report=verdict["report"],
            master=verdict["master"], port=verdict["port"], seat=verdict["seat"], watch_socket=connection,
            watch_key=self.keys.of("watch"),
        )  # fmt: skip

    def _first(self, mine: Mapping[str, Any] | ParlaunchError) -> list[dict[str, Any]]:
        """What every node brought, those that came and agree on versions and command lines."""
        own = {"here": None, "there": None, "watch": None, "ahead_s": 0.0}
        self._seat(_Node(None, _brings(self.situation, mine) | own))
        brought = self._gather()
        _compare(brought, self.situation)
        return brought

    def _again(self, mine: Mapping[str, Any] | ParlaunchError, patience_s: float) -> list[dict[str, Any]]:
        """What those bring that agreed before and are still there."""
        assert self.order is not None
        self.door.shut()
        own = _brings(self.situation, mine)
        kept = {seat for seat, node in self.nodes.items() if node.channel is None or seat in self.order}
        self.nodes = {seat: node for seat, node in self.nodes.items() if seat in kept}
        awake = Awake()
        while any(n.again is None and n.gone is None for n in self.nodes.values() if n.channel is not None):
            if awake() > patience_s:
                break
            self._turn(0.2)
        for node in self.nodes.values():
            said, node.again, node.told = own if node.channel is None else node.again, None, False
            if said is None:
                node.gone = node.gone or "did not come back"
            else:
                fixed = ("seat", "name", "here", "there", "ahead_s")
                watch = None if node.channel is None else said["watch"]
                node.brought = said | {k: node.brought[k] for k in fixed} | {"watch": watch}
        self.nodes = {seat: node for seat, node in self.nodes.items() if node.gone is None}
        self._refusals()
        return [self.nodes[seat].brought for seat in sorted(self.nodes)]

    def _seats(self, data: bytes, brought: list[dict[str, Any]]) -> list[int]:
        if self.order is None:
            return _seats(data, brought)
        return [seat for seat in self.order if seat in self.nodes]

    # --- what comes in

    def _turn(self, wait_s: float) -> None:
        """Take in what happens in front of the door."""
        for event in self.door.turn(wait_s):
            if event.gone is not None:
                if (node := self.of.get(event.channel)) is not None:
                    node.gone = event.gone
            elif event.said is None:
                self.came[event.channel] = time.time()
            elif event.said:
                try:
                    self._said(event)
                except (ValueError, LookupError, TypeError):
                    self.door.dismiss(event.channel)  # it knows the secret and speaks otherwise: another version

    def _said(self, event: Event) -> None:
        said, node = _unpacked(event.said or b""), self.of.get(event.channel)
        if node is None:
            said["ahead_s"] = _ahead(said.get("clock"), self.came.get(event.channel), time.time())
            came = _Node(event.channel, said)
            self.of[event.channel] = came
            if self.problem is not None:
                self._tell(came, self.problem)
            else:
                self._seat(came)
        elif "again" in said:
            node.again = said
        elif "told" in said:
            node.told = True
            if said["told"]:
                self.objections.append((node.brought["seat"], str(said["told"])))
        elif "heard" in said:
            node.heard = True

    def _seat(self, node: _Node) -> None:
        claim = node.brought["claim"]
        if claim is None:
            claim = next(seat for seat in range(len(self.nodes) + 1) if seat not in self.nodes)
        if type(claim) is not int or not 0 <= claim < self.nnodes:
            raise ValueError("no seat")
        node.brought["seat"], node.brought["name"] = claim, str(node.brought["name"])
        if claim in self.nodes:
            self.doubles.append((claim, node.name))
        else:
            self.nodes[claim] = node

    def _tell(self, node: _Node, frame: bytes) -> None:
        if node.channel is not None and node.gone is None:
            self.door.send(node.channel, frame)

    def _flush(self, seconds: float) -> None:
        awake = Awake()
        while not self.door.flushed() and awake() < seconds:
            self._turn(0.05)

    # --- the steps

    def _gather(self) -> list[dict[str, Any]]:
        """What every node brought, by seat. Raises ParlaunchError naming those that did not come or went away, or what
        some of them refused with."""
        alone_until, widened = self.awake() + LOOPBACK_PATIENCE_S, False
        refused_since: float | None = None
        while len(self.nodes) < self.nnodes:
            self._turn(0.2)
            now = self.awake()
            self._look()
            if refused_since is None and any("refuses" in n.brought for n in self.nodes.values()):
                refused_since = now
            if refused_since is not None and now > refused_since + REFUSED_S:
                break
            if len(self.nodes) == 1 and now > alone_until and self._only_loopback():
                raise loopback_error(self.situation)
            if now > WIDEN_S and not widened:
                widened = True
                self.meeting.widen()
            if now > self.timeout_s:
                self.given_up = True
                if refused_since is None and self.nnodes - len(self.nodes) > self.spares:
                    raise self._absent()
                break
        self._look()
        self._refusals()
        if len(self.nodes) == self.nnodes:
            self.door.shut()
        self.missing = tuple(self._name_of(s) for s in range(self.nnodes) if s not in self.nodes)
        brought = [self.nodes[seat].brought for seat in sorted(self.nodes)]
        # How the first node is reached, its guests know best.
        own = addresses.commonest(b["there"] for b in brought if b["there"])
        for b in brought:
            if b["here"] is None:
                b["here"] = own or "127.0.0.1"
        return brought

    def _look(self) -> None:
        """Raise for two of one rank, and for one that came and is gone."""
        if self.doubles:
            seat, other = self.doubles[0]
            raise UsageError(
                f"two nodes have rank {seat}: {self.nodes[seat].name} and {other}",
                hint="give every node a number of its own: --node-rank",
            )
        if gone := tuple(n.name for _, n in sorted(self.nodes.items()) if n.gone is not None):
            raise ParlaunchError(
                f"{_nodes(len(gone))} {short(gone)} came and then went away",
                hint=f"{len(self.nodes) - len(gone)} of {self.nnodes} are here; look at the log of the missing",
            )

    def _refusals(self) -> None:
        """Raise what nodes refused with: one text when all say the same, else the first with the names of its nodes."""
        by_text: dict[tuple[str, str, int], list[str]] = {}
        for _, node in sorted(self.nodes.items()):
            if (said := node.brought.get("refuses")) is not None:
                known = (str(said["problem"]), str(said.get("hint", "")), int(said.get("exit_code", 1)))
                by_text.setdefault(known, []).append(node.name)
        if not by_text:
            return
        (problem, hint, code), names = next(iter(by_text.items()))
        if len(names) < len(self.nodes):
            problem = f"{short(tuple(names))}: {problem}"
        raise _error({"problem": problem, "hint": hint, "exit_code": code})

    def _verdict(
        self, data: bytes, order: list[int], brought: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], socket.socket | None]:
        """What all are told, and this node's listening socket where it is node 0."""
        by_seat = {b["seat"]: b for b in brought}
        lead = by_seat[order[0]]
        if lead["port"] is None:
            raise addresses.no_port(addresses.ports(self.situation).training, lead["name"])
        names = [by_seat[s]["name"] for s in order]
        watch: socket.socket | None = None
        if self.nodes[lead["seat"]].channel is None:
            watch = addresses.listen(lead["here"])
            lead["watch"] = watch.getsockname()[1]
        return {
            "order": order, "names": names, "master": lead["here"], "port": lead["port"], "watch": lead["watch"],
            "sha256": hashlib.sha256(data).hexdigest(), "report": self._report(names, brought),
        }, watch  # fmt: skip

    def _publish(self, verdict: dict[str, Any], data: bytes) -> int | None:
        """Tell every node the verdict and the plan. Returns this node's rank."""
        place = {seat: rank for rank, seat in enumerate(verdict.pop("order"))}
        frame, own = zlib.compress(data, 1), None
        for seat, node in self.nodes.items():
            said = verdict | {"rank": place.get(seat), "seat": seat}
            if node.channel is None:
                own = place.get(seat)
                verdict["seat"] = seat
            else:
                self._tell(node, _packed(said))
                self._tell(node, frame)
        return own

    def _own(self, verdict: Mapping[str, Any], rank: int | None, watch: socket.socket | None) -> socket.socket | None:
        if rank is None or watch is not None:
            return watch
        return connected(verdict["master"], verdict["watch"], self.say)

    def _confirm(self) -> None:
        """Wait until all have checked the plan. Raises the first objection, or who went away."""
        end = self.awake() + self.timeout_s
        others = [n for n in self.nodes.values() if n.channel is not None]
        while waiting := [n for n in others if not n.told]:
            self._turn(0.2)
            late = self.awake() > end
            if gone := [n for n in waiting if not n.told and (late or n.gone is not None)]:
                who = short(tuple(n.name for n in sorted(gone, key=lambda n: int(n.brought["seat"]))))
                raise ParlaunchError(
                    f"{_nodes(len(gone))} {who} went away before training began",
                    hint=f"{len(self.nodes) - len(gone)} of {len(self.nodes)} nodes were ready",
                )
        if self.objections:
            wrong = tuple(f"{self.nodes[seat].name}: {what}" for seat, what in sorted(self.objections))
            raise ParlaunchError(
                f"the plan does not suit {_nodes(len(wrong))} {short(wrong)}", hint="`parlaunch doctor` there says more"
            )

    def _refuse(self, error: ParlaunchError, linger_s: float = LINGER_S) -> None:
        """Tell everyone, those too who come a little later, and let all leave at once."""
        self.problem = _packed(_as_said(error))
        for node in self.of.values():
            self._tell(node, self.problem)
        awake = Awake()
        while awake() < linger_s:
            here = [n for n in self.of.values() if n.gone is None and not n.heard]
            if not here and (self.given_up or not self.door.open or len(self.of) + 1 >= self.nnodes):
                break
            self._turn(0.1)

    # --- words

    def _name_of(self, seat: int) -> str:
        if seat < len(self.situation.nodelist):
            return self.situation.nodelist[seat]
        return self.nodes[seat].name if seat in self.nodes else f"number {seat}"

    def _absent(self) -> ParlaunchError:
        missing = [seat for seat in range(self.nnodes) if seat not in self.nodes]
        who = short(tuple(self._name_of(s) for s in missing))
        return ParlaunchError(
            f"{_nodes(len(missing))} {who} did not answer in {self.timeout_s:.0f} s; "
            f"{len(self.nodes)} of {self.nnodes} did",
            hint="is parlaunch installed and started there? --agree-timeout waits longer, --spares N goes on without N",
        )

    def _only_loopback(self) -> bool:
        if place_of(self.situation).knows_itself_as_loopback:
            return False  # Debian's /etc/hosts, or the operator, tells node 0 its own name as a loopback address
        found = [a for name in addresses.names_of(self.situation) for a in addresses.resolve(name)]
        return bool(found) and all(addresses.loopback(a) for a in found)

    def _report(self, names: list[str], brought: list[dict[str, Any]]) -> str:
        seconds = time.monotonic() - self.began
        lines = [f"parlaunch: {len(brought)} of {self.nnodes} nodes agreed on one plan in {seconds:.1f} s"]
        if self.missing:
            lines.append(f"  did not come, and are spared: {short(self.missing)}")
        left_out = [b["name"] for b in brought if b["name"] not in names]
        if left_out:
            lines.append(f"  spares, not used: {short(tuple(left_out))}")
        if names != [b["name"] for b in brought if b["name"] in names]:
            lines.append(f"  node ranks are ours: {short(tuple(names))}")
        if not self.keys.proven:
            hands_on = place_of(self.situation).hands_on
            lines.append(
                "  no secret: any process that reaches this job's ports may join it; "
                'before the tasks start: export PARLAUNCH_SECRET="$(openssl rand -hex 32)"'
                + (f" ({hands_on})" if hands_on else "")
            )
        return "\n".join(lines)


def _ahead(theirs: Any, came: float | None, heard: float) -> float | None:
    """Seconds that a clock is ahead of ours, as far as it is certain: what it showed, it showed between the moment when its
    node had come in and the one when we heard of it. None where it said nothing.

    >>> _ahead(105.0, 100.0, 102.0), _ahead(101.0, 100.0, 102.0), _ahead(90.0, 100.0, 102.0)
    (3.0, 0.0, -10.0)
    """
    if came is None or not isinstance(theirs, int | float):
        return None
    return max(0.0, theirs - heard) or min(0.0, theirs - came)


def _close(*sockets: socket.socket | None) -> None:
    for made in sockets:
        if made is not None:
            made.close()


def _nodes(count: int) -> str:
    return "node" if count == 1 else "nodes"


def _seats(data: bytes, brought: Sequence[Mapping[str, Any]]) -> list[int]:
    """Seats by node rank: as the plan's `rank_order` has the host names, else as the launcher numbered them."""
    try:
        order = json.loads(data).get("rank_order")
    except (ValueError, AttributeError):
        order = None
    seats: dict[str, list[int]] = {}
    for b in brought:
        seats.setdefault(_probed_name(b), []).append(b["seat"])
    if not order or any(name not in seats for name in order):
        return [b["seat"] for b in brought]
    return [seats[name].pop(0) for name in order]  # one name on several nodes: in the launcher's order


def _probed_name(b: Mapping[str, Any]) -> str:
    nodes = (b["mine"].get("hardware") or {}).get("nodes") or [{}]
    return str(nodes[0].get("hostname") or b["hostname"])


def _compare(brought: Sequence[Mapping[str, Any]], situation: Situation) -> None:
    """Raise UsageError unless versions, command lines and node counts are the same everywhere."""
    for what, of in (
        ("version", lambda b: b["mine"].get("version")),
        ("command", lambda b: _common_words(b["mine"].get("command"))),
        ("nnodes", lambda b: b["nnodes"]),
    ):
        groups: dict[Any, list[str]] = {}
        for b in brought:
            groups.setdefault(of(b), []).append(b["name"])
        if len(groups) > 1:
            raise _differ(what, groups)
    _same_gpus(brought, situation)


def _differ(what: str, groups: Mapping[Any, list[str]]) -> UsageError:
    usual, *others = sorted(groups, key=lambda value: -len(groups[value]))
    odd = others[0]
    who, rest = short(tuple(groups[odd])), short(tuple(groups[usual]))
    if what == "version":
        return UsageError(
            f"{who} runs parlaunch {odd}, {rest} runs {usual}", hint="install one version of parlaunch everywhere"
        )
    if what == "nnodes":
        return UsageError(
            f"{who} was told of {odd} nodes, {rest} of {usual}", hint="give --nnodes the same value everywhere"
        )
    only_odd, only_usual = Counter(odd) - Counter(usual), Counter(usual) - Counter(odd)
    said, instead = " ".join(only_odd.elements()) or "nothing", " ".join(only_usual.elements()) or "nothing"
    return UsageError(
        f"the command lines differ: {who} has {said} where {rest} has {instead}",
        hint="start the same command on every node",
    )


def _common_words(command: Any) -> tuple[str, ...] | None:
    """The command line without what rightly differs between nodes."""
    if command is None:
        return None
    words, skip = [], False
    for word in map(str, command):
        if skip:
            skip = False
        elif word.partition("=")[0] in OWN_WORDS:
            skip = "=" not in word
        else:
            words.append(word)
    return tuple(words)


def _same_gpus(brought: Sequence[Mapping[str, Any]], situation: Situation) -> None:
    """Refuse two launchers on one machine's GPUs: every rank would be there twice."""
    owners: dict[str, str] = {}
    for b in brought:
        for node in (b["mine"].get("hardware") or {}).get("nodes") or ():
            for gpu in node.get("gpus") or ():
                uuid = gpu.get("uuid")
                if not uuid:
                    continue
                if uuid in owners:
                    raise UsageError(
                        f"two launchers hold one GPU ({uuid}): {owners[uuid]} and {b['name']}",
                        hint=place_of(situation).once_a_node,
                    )
                owners[uuid] = f"{b['name']}"

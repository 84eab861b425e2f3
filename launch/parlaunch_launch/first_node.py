"""The first node's part of an agreement: gather, compare, plan, confirm; and the refusal that all hear."""

from __future__ import annotations

import hashlib
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.where.nodelist import short
from parlaunch.where.schedulers import place_of
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses
from parlaunch_launch.awake import Awake
from parlaunch_launch.brought import compare, seats_of
from parlaunch_launch.channel import NO_WORDS, Channel
from parlaunch_launch.door import Door, Event
from parlaunch_launch.meeting import LOOPBACK_PATIENCE_S, Meeting, loopback_error
from parlaunch_launch.other_node import connected
from parlaunch_launch.party import REFUSED_S, Agreement, Brought, Objection, Party, Planner, unhurried
from parlaunch_launch.secret import Keys
from parlaunch_launch.wire import as_said, brings, error_of, name_of, objection, packed, unpacked

LINGER_S = 12.0
"""How long the first node stays after a refusal: nodes that start a little later shall hear why it was the last word."""

WIDEN_S = 10.0
"""After so long without all of them, the first node listens on all its addresses: they may know it by another."""


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


class FirstNode(Party):
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

    def _agreed(self, mine: Brought, plan: Planner, check: Objection | None, patience_s: float) -> Agreement:
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
                    f"planning failed on the first node, {name_of(self.situation)}: {type(error).__name__}: {error}",
                    hint="its output has the traceback",
                ) from error
            data, seats = answer if isinstance(answer, tuple) else (answer, self._seats(answer, brought))
            verdict, watch = self._verdict(data, list(seats), brought)
            rank = self._publish(verdict, data)
            connection = self._own(verdict, rank, watch)
            if problem := objection(data, verdict["sha256"], rank, check):
                self.objections.append((verdict["seat"], problem))
            self._confirm()
            for node in self.nodes.values():
                self._tell(node, packed({"go": True}))
            self._flush(5.0)
        except ParlaunchError as error:
            unhurried()
            _close(watch, connection)
            self._refuse(error)
            raise crash or error from None
        except BaseException:
            _close(watch, connection)
            self._refuse(ParlaunchError(f"the first node, {name_of(self.situation)}, was interrupted"), linger_s=2.0)
            raise
        self.order = list(seats)
        if first:
            self.say(verdict["report"])
        return Agreement(
            plan_bytes=data, node_rank=rank, order=tuple(verdict["names"]), report=verdict["report"],
            master=verdict["master"], port=verdict["port"], seat=verdict["seat"], watch_socket=connection,
            watch_key=self.keys.of("watch"),
        )  # fmt: skip

    def _first(self, mine: Brought) -> list[dict[str, Any]]:
        """What every node brought, those that came and agree on versions and command lines."""
        own = {"here": None, "there": None, "watch": None, "ahead_s": 0.0}
        self._seat(_Node(None, brings(self.situation, mine) | own))
        brought = self._gather()
        compare(brought, self.situation)
        return brought

    def _again(self, mine: Brought, patience_s: float) -> list[dict[str, Any]]:
        """What those bring that agreed before and are still there."""
        assert self.order is not None
        self.door.shut()
        own = brings(self.situation, mine)
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
            return seats_of(data, brought)
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
                except NO_WORDS:
                    self.door.dismiss(event.channel)  # it knows the secret and speaks otherwise: another version

    def _said(self, event: Event) -> None:
        said, node = unpacked(event.said or b""), self.of.get(event.channel)
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
        raise error_of({"problem": problem, "hint": hint, "exit_code": code})

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
                self._tell(node, packed(said))
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
        self.problem = packed(as_said(error))
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

"""The nodes of a job agree on one plan: each brings what it found, the first node plans, all get the same bytes.

    every node:   claim a seat, bring the probe      -> wait for the verdict -> check the plan -> wait for "go"
    first node:   wait for all, compare, plan        -> verdict              -> wait for all   -> "go", or "stop"

Nobody waits for ever, and whatever goes wrong on one node stops all of them with the same sentence.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.nodelist import short
from parlaunch.where import Situation
from parlaunch_launch import addresses
from parlaunch_launch.meeting import LOOPBACK_PATIENCE_S, Meeting, loopback_error, open_meeting

Planner = Callable[[list[dict[str, Any]]], bytes | tuple[bytes, Sequence[int]]]
Check = Callable[[bytes, int], str | None]

SILENCE_S = 15.0
"""A node that came and shows no sign of life for so long is taken for dead."""

LINGER_S = 12.0
"""How long the first node stays after the last word: nodes that start a little later shall hear why it was the last."""

SIGN_S = 4.0  # between two signs of life of a node that waits

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


def agree(
    situation: Situation,
    mine: Mapping[str, Any],
    plan: Planner,
    *,
    timeout_s: float = 120.0,
    spares: int = 0,
    check: Check | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Agreement:
    """Meet the other nodes of `situation` and come away with one plan.

    `mine` is this node's probe, and under `version` and `command` what has to be equal everywhere. `plan` runs on the
    first node only, with every node's `mine` in the launcher's order, each with `agreement: {hostname, seat, address}`
    added. It returns the plan as bytes; a JSON object with `rank_order` (host names) numbers the nodes, and so does a
    second value, seats by node rank. Nodes left out are spares. `check` gets the plan and this node's rank, and says what
    is wrong with it here. With `spares`, as many nodes may be missing.

    Raises ParlaunchError (UsageError, NoLayoutError) with one text on every node: a node that did not come or went
    away, two with one rank, other versions or command lines, what `plan` raised, what a `check` said.
    """
    if (situation.nnodes or 1) < 2:
        raise AssertionError("one node has nobody to agree with")
    if situation.nodelist and situation.nnodes != len(situation.nodelist):
        raise UsageError(
            f"the node list names {len(situation.nodelist)} nodes and the launcher counts {situation.nnodes}",
            hint="unset SLURM_* variables that were exported by hand",
        )
    began = time.monotonic()
    meeting = open_meeting(situation, timeout_s=timeout_s)
    watcher = addresses.listen()
    sockets = [watcher]
    try:
        made = _held(meeting, situation, mine, plan, sockets, began, timeout_s, spares, check, say)
        sockets = [s for s in sockets if s is not made.watch_socket]
        return made
    except RuntimeError as error:
        if type(error).__module__ != "torch.distributed":
            raise
        raise ParlaunchError(
            f"the first node, {situation.master}, went away during the agreement",
            hint="its own output says why; `parlaunch doctor` there helps",
        ) from error
    finally:
        meeting.close()
        for left in sockets:
            left.close()


def _held(
    meeting: Meeting, situation: Situation, mine: Mapping[str, Any], plan: Planner, sockets: list[socket.socket],
    began: float, timeout_s: float, spares: int, check: Check | None, say: Callable[[str], None],
) -> Agreement:  # fmt: skip
    watcher = sockets[0]
    seat = _arrive(meeting, situation, mine, watcher)
    crash: BaseException | None = None
    awaited = 0
    if meeting.host:
        try:
            host = _Host(meeting, situation, began, timeout_s, spares)
            crash, awaited = host.decide(plan), host.awaited
        except BaseException:
            _publish(meeting, {"problem": f"the first node, {_name(situation)}, was interrupted", "hint": ""})
            raise
    patience = 2 * timeout_s + 30  # the others' arrival, then the planning
    verdict = _wait(meeting, "verdict", seat, situation, patience)
    if verdict.get("problem") is None:
        place = {s: r for r, s in enumerate(verdict["order"])}
        rank = place.get(seat)
        watch = watcher if rank == 0 else _connected(verdict, rank, say)
        sockets += [watch] if watch is not None and watch is not watcher else []
        data = _checked(meeting, verdict, seat, rank, check)
        if meeting.host:
            _Host(meeting, situation, time.monotonic(), timeout_s, spares).confirm(verdict)
        verdict = _wait(meeting, "go", seat, situation, patience) | {"plan": verdict}
    meeting.count("left", 1)
    if meeting.host:
        _let_go(meeting, awaited)
    if crash is not None:
        raise crash
    if verdict.get("problem") is not None:
        raise _error(verdict)
    decided = verdict["plan"]
    if meeting.host:
        say(decided["report"])
    return Agreement(
        plan_bytes=data, node_rank=rank, order=tuple(decided["names"]),
        report=decided["report"], master=decided["master"], port=decided["port"], seat=seat,
        watch_socket=watch,
    )  # fmt: skip


# ------------------------------------------------------------------ every node


def _name(situation: Situation) -> str:
    """The node's name as Slurm's list has it; where there is no list, the host's."""
    rank, listed = situation.node_rank, situation.nodelist
    return listed[rank] if rank is not None and rank < len(listed) else situation.hostname


def _arrive(meeting: Meeting, situation: Situation, mine: Mapping[str, Any], watcher: socket.socket) -> int:
    """Claim the seat and bring what is ours. Returns the seat."""
    seat = meeting.seat
    assert seat is not None
    claims = meeting.count(f"claim/{seat}", 1)
    if claims > 1:
        meeting.store.set(f"double/{meeting.count('doubles', 1)}", f"{seat} {_name(situation)}")
        return seat
    meeting.store.set(f"name/{seat}", _name(situation))
    meeting.count(f"alive/{seat}", 1)
    brought = {
        "mine": dict(mine), "hostname": situation.hostname, "name": _name(situation), "seat": seat,
        "nnodes": situation.nnodes, "here": meeting.here, "there": meeting.there,
        "port": addresses.free(addresses.ports(situation).training), "watch": watcher.getsockname()[1],
    }  # fmt: skip
    meeting.put(f"probe/{seat}", zlib.compress(json.dumps(brought).encode(), 1))
    meeting.count("arrived", 1)
    return seat


def _wait(meeting: Meeting, key: str, seat: int, situation: Situation, patience: float) -> dict[str, Any]:
    """What the first node says under `key`, showing signs of life until then."""
    end = time.monotonic() + patience
    # The store wakes who waits: a thousand nodes that asked again and again would be all it does.
    while not meeting.wait(key, seconds=SIGN_S):
        if time.monotonic() > end:
            raise ParlaunchError(
                f"the first node, {situation.master}, said nothing for {patience:.0f} s",
                hint="its own output may say why",
            )
        meeting.count(f"alive/{seat}", 1)
    said = json.loads(meeting.take(key))
    assert isinstance(said, dict)
    return said


def _connected(verdict: Mapping[str, Any], rank: int | None, say: Callable[[str], None]) -> socket.socket | None:
    """The connection by which node 0's supervisor and ours will watch each other; None for a spare."""
    if rank is None:
        return None
    address = (str(verdict["master"]), int(verdict["watch"]))
    try:
        made = socket.create_connection(address, timeout=5)
        made.sendall(json.dumps({"hello": rank, "name": verdict["names"][rank]}).encode() + b"\n")
    except OSError as error:
        say(
            f"parlaunch: no connection to node 0 at {address[0]} port {address[1]} ({error}): its end would go unnoticed"
        )
        return None
    return made


def _checked(meeting: Meeting, verdict: Mapping[str, Any], seat: int, rank: int | None, check: Check | None) -> bytes:
    """The plan. What this node has to say about it is told to the first node."""
    problem: str | None = None
    data = zlib.decompress(meeting.take("plan"))
    if hashlib.sha256(data).hexdigest() != verdict["sha256"]:
        problem = "the plan that arrived is not the plan that was sent"
    elif rank is not None and check is not None:
        try:
            problem = check(data, rank)
        except ParlaunchError as error:
            problem = error.problem
    if problem:
        meeting.store.set(f"objection/{meeting.count('objections', 1)}", f"{seat} {problem}")
    meeting.store.set(f"told/{seat}", "")
    meeting.count("told", 1)
    return data


def _let_go(meeting: Meeting, awaited: int) -> None:
    """Keep the store until everyone has read the last word, LINGER_S at most; the `awaited` that are still to come, too."""
    end = time.monotonic() + LINGER_S
    while time.monotonic() < end:
        if meeting.count("left") >= meeting.count("arrived") + meeting.count("doubles") + awaited:
            break
        time.sleep(0.02)


def _publish(meeting: Meeting, said: Mapping[str, Any], key: str = "verdict") -> None:
    meeting.put(key, json.dumps(said).encode())


def _error(said: Mapping[str, Any]) -> ParlaunchError:
    kinds = {k.exit_code: k for k in (ParlaunchError, UsageError, NoLayoutError)}
    return kinds.get(said.get("exit_code", 1), ParlaunchError)(str(said["problem"]), hint=str(said.get("hint", "")))


# ------------------------------------------------------------------ the first node


class _Host:
    """The first node's part: gather, compare, plan, confirm."""

    def __init__(self, meeting: Meeting, situation: Situation, began: float, timeout_s: float, spares: int) -> None:
        self.meeting, self.situation, self.began, self.timeout_s = meeting, situation, began, timeout_s
        self.spares, self.nnodes = spares, situation.nnodes or 1
        self.awaited = 0  # nodes that had not come when the verdict fell, and still may
        self.heard: dict[int, tuple[bytes, float]] = {}  # seat: signs of life, and when the last one was new

    def decide(self, plan: Planner) -> BaseException | None:
        """Publish the verdict. Returns what is to be raised here when planning failed in a way that is ours."""
        try:
            brought = self._gather()
            _compare(brought)
            probes = [
                b["mine"] | {"agreement": {"hostname": b["name"], "seat": b["seat"], "address": b["here"]}}
                for b in brought
            ]
            answer = plan(probes)
            data, seats = answer if isinstance(answer, tuple) else (answer, _seats(answer, brought))
            self._verdict(data, list(seats), brought)
        except ParlaunchError as error:
            _publish(self.meeting, {"problem": error.problem, "hint": error.hint, "exit_code": error.exit_code})
        except Exception as error:
            _publish(self.meeting, {
                "problem": f"planning failed on the first node, {_name(self.situation)}: {type(error).__name__}: {error}",
                "hint": "its output has the traceback",
            })  # fmt: skip
            return error
        return None

    def confirm(self, verdict: Mapping[str, Any]) -> None:
        """Wait until all have checked the plan, then say go, or stop with the first objection."""
        names = {int(seat): name for seat, name in verdict["seats"].items()}
        end, look = time.monotonic() + self.timeout_s, time.monotonic() + 1
        while self.meeting.count("told") < len(names):
            time.sleep(0.02)
            if (now := time.monotonic()) < look:
                continue
            look = now + 1
            waiting = {seat for seat in names if not self.meeting.has(f"told/{seat}")}
            if gone := waiting if now > end else self._silent(waiting):
                self.meeting.count("left", len(gone))
                who = short(tuple(names[seat] for seat in sorted(gone)))
                said = f"{_nodes(len(gone))} {who} went away before training began"
                hint = f"{len(names) - len(gone)} of {len(names)} nodes were ready"
                return _publish(self.meeting, {"problem": said, "hint": hint}, "go")
        count = self.meeting.count("objections")
        told = [self.meeting.store.get(f"objection/{n}").decode().partition(" ") for n in range(1, count + 1)]
        wrong = tuple(f"{names[int(seat)]}: {what}" for seat, _, what in sorted(told, key=lambda t: int(t[0])))
        if not wrong:
            return _publish(self.meeting, {}, "go")
        said = f"the plan does not suit {_nodes(count)} {short(wrong)}"
        return _publish(self.meeting, {"problem": said, "hint": "`parlaunch doctor` there says more"}, "go")

    def _gather(self) -> list[dict[str, Any]]:
        """What every node brought, by seat. Raises ParlaunchError naming those that did not come or went away."""
        end, alone_until = self.began + self.timeout_s, time.monotonic() + LOOPBACK_PATIENCE_S
        pause, look = min(0.2, max(0.01, self.nnodes / 10000)), time.monotonic() + 1
        while self.meeting.count("arrived") < self.nnodes:
            if doubles := self.meeting.count("doubles"):
                raise self._doubled(doubles)
            time.sleep(pause)
            if (now := time.monotonic()) < look:
                continue
            look = now + 1
            here = self._here()
            if gone := self._silent(here):
                self.meeting.count("left", len(gone))
                self.awaited = self.nnodes - len(here)
                who = short(tuple(self._name_of(s) for s in sorted(gone)))
                raise ParlaunchError(
                    f"{_nodes(len(gone))} {who} came and then fell silent for {SILENCE_S:.0f} s",
                    hint=f"{len(here) - len(gone)} of {self.nnodes} are here; look at the log of the missing",
                )
            if len(here) == 1 and now > alone_until and self._only_loopback():
                raise loopback_error(self.situation)
            if now > end:
                if self.nnodes - len(here) > self.spares:
                    raise self._absent(here)
                break
        if doubles := self.meeting.count("doubles"):
            raise self._doubled(doubles)
        here = self._here() if self.meeting.count("arrived") < self.nnodes else list(range(self.nnodes))
        self.missing = tuple(self._name_of(s) for s in range(self.nnodes) if s not in set(here))
        brought = [json.loads(zlib.decompress(p)) for p in self.meeting.take_all([f"probe/{s}" for s in here])]
        # How the first node is reached, its guests know best.
        own = addresses.commonest(b["there"] for b in brought if b["there"])
        for b in brought:
            if b["here"] is None:
                b["here"] = own or "127.0.0.1"
        return brought

    def _here(self) -> list[int]:
        return [seat for seat in range(self.nnodes) if self.meeting.has(f"probe/{seat}")]

    def _silent(self, seats: Iterable[int]) -> set[int]:
        """Seats taken by nodes that show no sign of life any more."""
        asked = [seat for seat in seats if seat != self.meeting.seat]
        now, gone = time.monotonic(), set()
        for seat, count in zip(asked, self.meeting.numbers([f"alive/{seat}" for seat in asked]), strict=True):
            signs, since = self.heard.get(seat, (b"", now))
            if count != signs:
                self.heard[seat] = (count, now)
            elif now - since > SILENCE_S:
                gone.add(seat)
        return gone

    def _name_of(self, seat: int) -> str:
        if seat < len(self.situation.nodelist):
            return self.situation.nodelist[seat]
        if self.meeting.has(f"name/{seat}"):
            return str(self.meeting.store.get(f"name/{seat}").decode())
        return f"number {seat}"

    def _absent(self, here: Sequence[int]) -> ParlaunchError:
        missing = [seat for seat in range(self.nnodes) if seat not in set(here)]
        who = short(tuple(self._name_of(s) for s in missing))
        return ParlaunchError(
            f"{_nodes(len(missing))} {who} did not answer in {self.timeout_s:.0f} s; {len(here)} of {self.nnodes} did",
            hint="is parlaunch installed and started there? --agree-timeout waits longer, --spares N goes on without N",
        )

    def _doubled(self, doubles: int) -> UsageError:
        seat, _, other = self.meeting.store.get(f"double/{doubles}").decode().partition(" ")
        first = self._first_at(int(seat))
        return UsageError(
            f"two nodes have rank {seat}: {first} and {other}", hint="give every node a number of its own: --node-rank"
        )

    def _first_at(self, seat: int) -> str:
        return str(self.meeting.store.get(f"name/{seat}").decode())

    def _only_loopback(self) -> bool:
        if self.situation.kind in ("slurm-step", "pytorchjob"):
            return False  # Debian's /etc/hosts, or the operator, tells node 0 its own name as a loopback address
        found = [a for name in addresses.names_of(self.situation) for a in addresses.resolve(name)]
        return bool(found) and all(addresses.loopback(a) for a in found)

    def _verdict(self, data: bytes, order: list[int], brought: list[dict[str, Any]]) -> None:
        by_seat = {b["seat"]: b for b in brought}
        lead = by_seat[order[0]]
        if lead["port"] is None:
            raise addresses.no_port(addresses.ports(self.situation).training, lead["name"])
        names = [by_seat[s]["name"] for s in order]
        self.meeting.put("plan", zlib.compress(data, 1))
        _publish(self.meeting, {
            "order": order, "names": names, "seats": {str(b["seat"]): b["name"] for b in brought},
            "master": lead["here"], "port": lead["port"], "watch": lead["watch"],
            "sha256": hashlib.sha256(data).hexdigest(), "report": self._report(names, brought),
        })  # fmt: skip

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
        return "\n".join(lines)


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


def _compare(brought: Sequence[Mapping[str, Any]]) -> None:
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
    _same_gpus(brought)


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


def _same_gpus(brought: Sequence[Mapping[str, Any]]) -> None:
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
                        hint="start parlaunch once a node: --ntasks-per-node=1, mpirun --map-by ppr:1:node",
                    )
                owners[uuid] = f"{b['name']}"

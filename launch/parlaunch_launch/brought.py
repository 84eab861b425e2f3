"""What the nodes of a job brought, compared: versions, command lines, GPUs; and who sits where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.where.nodelist import short
from parlaunch.where.schedulers import place_of
from parlaunch.where.situation import Situation

OWN_WORDS = ("--node-rank", "--node_rank", "--master-addr", "--master_addr", "--local-addr")
"""Options that rightly differ between the nodes of one job."""


def seats_of(data: bytes, brought: Sequence[Mapping[str, Any]]) -> list[int]:
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


def compare(brought: Sequence[Mapping[str, Any]], situation: Situation) -> None:
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

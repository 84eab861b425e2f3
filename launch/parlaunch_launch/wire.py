"""What nodes say to each other before a launch, as bytes."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses
from parlaunch_launch.channel import MOST
from parlaunch_launch.party import Brought, Objection


def packed(said: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    return zlib.compress(json.dumps(said).encode(), 1)


def unpacked(frame: bytes) -> dict[str, Any]:
    """A message. Raises ValueError for what is none, or would be longer than MOST."""
    said = json.loads(inflated(frame))
    if not isinstance(said, dict):
        raise ValueError("no message")
    return said


def inflated(frame: bytes) -> bytes:
    """What was packed. Raises ValueError as `unpacked` does."""
    opened = zlib.decompressobj()
    try:
        data = opened.decompress(frame, MOST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not opened.eof:
        raise ValueError("longer than any message")
    return data


def as_said(error: ParlaunchError) -> dict[str, Any]:
    """An error as a message."""
    return {"problem": error.problem, "hint": error.hint, "exit_code": error.exit_code}


def error_of(said: Mapping[str, Any]) -> ParlaunchError:
    """The error that a message says."""
    kinds = {k.exit_code: k for k in (ParlaunchError, UsageError, NoLayoutError)}
    return kinds.get(said.get("exit_code", 1), ParlaunchError)(str(said["problem"]), hint=str(said.get("hint", "")))


def name_of(situation: Situation) -> str:
    """The node's name as Slurm's list has it; where there is no list, the host's."""
    rank, listed = situation.node_rank, situation.nodelist
    return listed[rank] if rank is not None and rank < len(listed) else situation.hostname


def brings(situation: Situation, mine: Brought) -> dict[str, Any]:
    """What a node says of itself."""
    brought = {
        "claim": situation.node_rank, "hostname": situation.hostname, "name": name_of(situation),
        "nnodes": situation.nnodes, "port": addresses.free(addresses.ports(situation).training),
    }  # fmt: skip
    if isinstance(mine, ParlaunchError):
        return brought | {"refuses": as_said(mine)}
    return brought | {"mine": dict(mine)}


def objection(data: bytes, sha256: str, rank: int | None, check: Objection | None) -> str | None:
    """What this node has to say about the plan; None when it suits."""
    if hashlib.sha256(data).hexdigest() != sha256:
        return "the plan that arrived is not the plan that was sent"
    if rank is None or check is None:
        return None
    try:
        return check(data, rank)
    except ParlaunchError as error:
        return error.problem

"""Where parlaunch stands, asked of every scheduler in turn. A new one is a file in this room and a row here.

A pure function of the environment and a few facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.where import torchrun
from parlaunch.where.kubernetes import KUBERNETES
from parlaunch.where.mpi import MPI
from parlaunch.where.nodelist import short
from parlaunch.where.single import SINGLE
from parlaunch.where.situation import Place, Scheduler, Seen, Situation, nnodes
from parlaunch.where.slurm import SLURM

SCHEDULERS: tuple[Scheduler, ...] = (
    torchrun.COMMAND_LINE, MPI, SLURM, KUBERNETES, torchrun.VARIABLES, torchrun.COUNT, SINGLE,
)  # fmt: skip
"""In the order of asking: what was typed, then who is innermost (mpirun runs inside a Slurm job)."""

PLACES: Mapping[str, Place] = {kind: place for s in SCHEDULERS for kind, place in s.places.items()}
"""Every kind of situation."""


def place_of(situation: Situation) -> Place:
    """What is true of every situation of this kind."""
    return PLACES[situation.kind]


def where(
    environ: Mapping[str, str],
    *,
    hostname: str,
    ancestors: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    hosts: tuple[str, ...] = (),
) -> Situation:
    """The situation. `ancestors` are the command lines of our parents, nearest first; `flags` are torchrun's options as
    typed (`nnodes`, `node_rank`, `master_addr`, `master_port`, `rdzv_endpoint`, …), None where not given; `hosts` are those that the
    file of a batch system lists.

    Raises UsageError for numbers that cannot be: a node rank outside the nodes, a node count that the launcher contradicts,
    a port that is none.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    seen = Seen(
        environ=environ, hostname=hostname, ancestors=ancestors, flags=given, wanted=nnodes(given.get("nnodes")),
        hosts=hosts,
    )  # fmt: skip
    for scheduler in SCHEDULERS:
        found = scheduler.recognise(seen)
        if found is not None:
            return _reachable(_with_flags(found, seen) if scheduler.heeds_flags else found)
    raise AssertionError("one machine is always recognised")


def start(situation: Situation, *, own_argv: Sequence[str], args: Sequence[str] = ()) -> list[str] | None:
    """The command that starts one task a node, of the scheduler that the situation is of; None when this task is one
    already, or alone. `own_argv` is how this process was started, `args` the user's words for the starter.

    Raises UsageError for words that would start something else.
    """
    if place_of(situation).starter is None:
        return None
    scheduler = next(s for s in SCHEDULERS if situation.kind in s.places)
    return scheduler.start(situation, own_argv, args)


def starts_without(situation: Situation) -> tuple[str, ...]:
    """Variables that speak against what `start` says, and are kept from it."""
    return next(s.starts_without for s in SCHEDULERS if situation.kind in s.places)


def explain(situation: Situation) -> str:
    """What was recognised and why, one fact a line."""
    s, place = situation, place_of(situation)
    lines = [f"here: {place.words} ({s.why})"]
    if s.nnodes is not None:
        number = "" if s.node_rank is None or place.starter else f", this is number {s.node_rank}"
        of = " of" if len(s.nodelist) > s.nnodes else ":"
        names = f"{of} {short(s.nodelist)}" if s.nodelist else ""
        lines.append(f"  nodes: {s.nnodes}{number}{names}")
    lines.append(f"  host: {s.hostname}")
    if place.starter:
        lines.append(
            f"  {place.starter} starts one task a node"
            + (", beside the step that is here (--overlap)" if s.overlap else "")
        )
    if s.master is not None and (s.nnodes or 1) > 1 and not place.starter:
        port = "" if s.port is None else f", port {s.port}"
        lines.append(f"  meeting at: {s.master}{port}")
    if s.local_id:
        lines.append(f"  process {s.local_id} of this node: process 0 launches")
    if s.job_id is not None:
        restarts = f", restarted {s.restart_count} times" if s.restart_count else ""
        lines.append(f"  job: {s.job_id}{restarts}")
    if s.gpus_local is not None:
        lines.append(f"  GPUs of this node, says the launcher: {s.gpus_local}")
    return "\n".join([*lines, *(f"  note: {n}" for n in s.notes)])


def _reachable(found: Situation) -> Situation:
    """The situation, when its port is one at which nodes can meet; torchrun's 0, any that is free, is for one node."""
    if found.port is not None and (found.nnodes or 1) > 1 and not 0 < found.port < 65536:
        raise UsageError(
            f"{found.nnodes} nodes cannot meet at port {found.port}",
            hint="give MASTER_PORT, --master-port or the endpoint one from 1 to 65535, or leave it out",
        )
    return found


def _with_flags(found: Situation, seen: Seen) -> Situation:
    """What the launcher says, with what the command line adds."""
    given, wanted, place = seen.flags, seen.wanted, place_of(found)
    changes: dict[str, Any] = {}
    if "master_addr" in given:
        changes["master"] = given["master_addr"]
    if "master_port" in given:
        changes["port"] = given["master_port"]
    if wanted is not None and wanted != found.nnodes:
        if not place.starter or wanted > (found.nnodes or 1):
            raise UsageError(
                f"--nnodes {wanted} contradicts {place.words} with {found.nnodes} ({found.why})",
                hint="leave --nnodes out; the launcher says how many there are",
            )
        changes["nnodes"] = wanted  # the starter takes as many of the allocation
    return replace(found, **changes)

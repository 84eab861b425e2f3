"""The value: where parlaunch stands, and what a scheduler's own file says about recognising it.

What the files of the schedulers share is here too: numbers, counts of nodes and addresses as variables spell them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv6Address
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.units import COUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Who started us, and our place among the nodes. None: not known, or it does not apply."""

    kind: str  # one of `parlaunch.where.schedulers.PLACES`
    why: str  # the variables that say so
    hostname: str
    node_rank: int | None = None  # as the launcher numbers the nodes; the plan may number them anew
    nnodes: int | None = None
    nodelist: tuple[str, ...] = ()  # in the launcher's order
    local_id: int | None = None  # which of the launcher's processes on this node
    ntasks_per_node: int | None = None
    master: str | None = None  # name or address of the node where all meet
    port: int | None = None  # as the user or the launcher fixed it; None: ours to choose
    restart_count: int = 0
    gpus_local: int | None = None  # as the launcher counts them
    job_id: str | None = None
    step_id: str | None = None
    overlap: bool = False  # a step of ours holds the resources already: srun needs --overlap
    launch_address: str | None = None  # where srun stands: the first node's, when a batch script there called it
    cpus_per_task: int | None = None  # as asked of sbatch or salloc; srun does not take it from there
    gpus_per_task: int | None = None
    components: tuple[tuple[str, ...], ...] = ()  # of a heterogeneous job: the nodes of each
    switch: str | None = None  # the switches above this node: SLURM_TOPOLOGY_ADDR
    export_none: bool = False  # sbatch --export=NONE: an srun inside would hand on nothing
    notes: tuple[str, ...] = ()

    @property
    def token(self) -> str:
        """What tells this job, and this run of it after a requeue, from all others on the same hosts."""
        return f"{self.job_id or self.kind}.{self.step_id or 0}.{self.restart_count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is true of every situation of one kind."""

    words: str
    starter: str | None = None  # what has still to start the tasks; None: they run already, this is one
    first_by_list: bool = False  # the launcher's list says which node is the first, whatever its address
    knows_itself_as_loopback: bool = False  # node 0 may resolve its own name to 127.0.0.1, and the others not
    runs_again: bool = False  # after a requeue the same job comes back
    one_log: bool = False  # the output of all nodes comes together, and one of them may speak for all
    signals_all: bool = False  # a signal from the launcher reaches every process, training's too
    once_a_node: str = "start parlaunch once a node"  # in this launcher's own words
    hands_on: str = ""  # how a variable reaches the tasks, where exporting it is not enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there is to go by."""

    environ: Mapping[str, str]
    hostname: str
    ancestors: Sequence[str] = ()  # the command lines of our parents, nearest first
    flags: Mapping[str, Any]  # torchrun's options that were given
    wanted: int | None = None  # nodes, by --nnodes
    hosts: tuple[str, ...] = ()  # of this job, by the file of its batch system


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """One launcher: what it is recognised by, and how it starts tasks that do not run yet."""

    places: Mapping[str, Place]  # by the kind of its situations
    recognise: Callable[[Seen], Situation | None]
    heeds_flags: bool = True  # --nnodes and --master-addr are added to what it says; False: it has read them itself
    # Argv that starts one task a node, from our own argv and the user's words for the starter; None: no need to.
    start: Callable[[Situation, Sequence[str], Sequence[str]], list[str] | None] = lambda _s, _own, _args: None
    starts_without: tuple[str, ...] = ()  # variables that speak against that argv


def checked(situation: Situation, named: str) -> Situation:
    """The situation, when its rank is one of its nodes'. Raises `UsageError` naming what gave the rank."""
    rank, nodes = situation.node_rank, situation.nnodes
    if rank is not None and nodes is not None and not 0 <= rank < nodes:
        raise UsageError(
            f"{named} {rank} is outside the {nodes} node{'s' if nodes > 1 else ''} of this job",
            hint=f"nodes are numbered 0 to {nodes - 1}",
        )
    return situation


def number(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of the variables that is set and a whole number. Counts of some sites carry a type (`h100:8`)."""
    for name in names:
        text = environ.get(name, "").rsplit(":", 1)[-1].strip()
        if text.isdecimal() and len(text) < 10:
            return int(text)
    return None


def nnodes(text: Any, name: str = "--nnodes") -> int | None:
    """Nodes of `4` or `2:4`: the job starts with what it is promised, the upper end. Raises `UsageError` with the name of the
    option or variable."""
    if text is None or text == "":
        return None
    between = " " if name.startswith("-") else "="
    said, parts = f"{name}{between}{text}", str(text).split(":")
    if len(parts) > 2 or not all(re.fullmatch(COUNT, p) for p in parts) or int(parts[0]) > int(parts[-1]):
        raise UsageError(f"{said} is no count of nodes", hint=f"for example {name}{between}4")
    return int(parts[-1])


def host_port(endpoint: str) -> tuple[str, int | None]:
    """Host and port of `gpu01:29400`, `[fd00::1]:29400`, `gpu01` or `fd00::1`."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?", endpoint)
    if match is not None:
        return match[1] or match[2], int(match[3]) if match[3] else None
    try:
        return str(IPv6Address(endpoint)), None
    except ValueError:
        raise UsageError(
            f"the rendezvous endpoint {endpoint!r} is not HOST:PORT", hint="for example gpu01:29400"
        ) from None

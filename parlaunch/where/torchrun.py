"""Nodes described as for torchrun: by its options, by the variables that platforms and hand-written scripts set, or by
torchrun itself, when it started this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.where.situation import Place, Scheduler, Seen, Situation, checked, host_port, nnodes, number

PLACES = {"torchrun": Place(words="one node of a job that was described as for torchrun")}


def by_command_line(seen: Seen) -> Situation | None:
    """torchrun's own child, or a node with a number, an endpoint or a master of its own."""
    given = seen.flags
    if "TORCHELASTIC_RUN_ID" in seen.environ and "LOCAL_RANK" in seen.environ:
        return _inside_torchrun(seen.environ, seen.hostname)
    if "node_rank" in given or "rdzv_endpoint" in given or ("master_addr" in given and (seen.wanted or 1) > 1):
        return _from_flags(seen.environ, seen.hostname, given, seen.wanted)
    return None


def by_variables(seen: Seen) -> Situation | None:
    """MASTER_ADDR with a rank a node, as platforms and hand-written scripts set them."""
    environ, hostname = seen.environ, seen.hostname
    master = environ.get("MASTER_ADDR")
    if master is None:
        return None
    for rank_name, nodes_name in (("NODE_RANK", "NNODES"), ("PET_NODE_RANK", "PET_NNODES"), ("RANK", "WORLD_SIZE")):
        if (rank := number(environ, rank_name)) is None:
            continue
        if (nodes := nnodes(environ.get(nodes_name), nodes_name)) is None or nodes < 2:
            continue
        return checked(Situation(
            kind="torchrun", why=f"MASTER_ADDR, {rank_name} and {nodes_name} are set", hostname=hostname, node_rank=rank,
            nnodes=nodes, master=master, port=number(environ, "MASTER_PORT"),
        ), rank_name)  # fmt: skip
    return None


def _from_flags(environ: Mapping[str, str], hostname: str, given: Mapping[str, Any], wanted: int | None) -> Situation:
    nodes = wanted or 1
    rank, endpoint = given.get("node_rank"), given.get("rdzv_endpoint")
    if endpoint is not None and rank is None:
        return at_endpoint(environ, hostname, endpoint, nodes, "torchrun", f"--rdzv-endpoint {endpoint}")
    master, port = given.get("master_addr"), given.get("master_port")
    if endpoint is not None:
        master, port = host_port(endpoint)
    if rank is None and nodes > 1:
        rank = number(environ, "NODE_RANK", "SLURM_NODEID")
        if rank is None:
            raise UsageError(
                f"--nnodes {nodes} is given without --node-rank", hint="give each node its number, 0 for the first"
            )
    master = master or environ.get("MASTER_ADDR")
    if master is None and nodes > 1:
        raise UsageError(
            f"--nnodes {nodes} is given without --master-addr", hint="name the first node: --master-addr gpu01"
        )
    why = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items() if name != "nproc_per_node")
    return checked(Situation(
        kind="torchrun" if nodes > 1 else "single", why=why, hostname=hostname, node_rank=rank or 0, nnodes=nodes,
        master=master, port=port if port is not None else number(environ, "MASTER_PORT"), job_id=given.get("rdzv_id"),
    ), "--node-rank")  # fmt: skip


def at_endpoint(
    environ: Mapping[str, str], hostname: str, endpoint: str, nodes: int | None, kind: str, why: str
) -> Situation:
    """A rendezvous that numbers the nodes itself: no rank of our own."""
    master, port = host_port(endpoint)
    return Situation(
        kind=kind if (nodes or 1) > 1 else "single", why=why, hostname=hostname, node_rank=None, nnodes=nodes or 1,
        master=master, port=port, job_id=environ.get("PET_RDZV_ID"),
    )  # fmt: skip


def _inside_torchrun(environ: Mapping[str, str], hostname: str) -> Situation:
    local = number(environ, "LOCAL_RANK") or 0
    nodes = number(environ, "GROUP_WORLD_SIZE") or 1
    note = "torchrun started this process; start parlaunch once a node in its place"
    return Situation(
        kind="torchrun" if nodes > 1 else "single", why="TORCHELASTIC_RUN_ID and LOCAL_RANK are set", hostname=hostname,
        node_rank=number(environ, "GROUP_RANK") or 0, nnodes=nodes, local_id=local,
        ntasks_per_node=number(environ, "LOCAL_WORLD_SIZE"), master=environ.get("MASTER_ADDR"),
        job_id=environ.get("TORCHELASTIC_RUN_ID"), notes=(note,),
    )  # fmt: skip


def by_count(seen: Seen) -> Situation | None:
    """Several nodes, and nothing said of where they meet: enough to plan for."""
    if seen.wanted is None or seen.wanted == 1:
        return None
    return Situation(kind="torchrun", why=f"--nnodes {seen.wanted}", hostname=seen.hostname, nnodes=seen.wanted)


COMMAND_LINE = Scheduler(places=PLACES, recognise=by_command_line, heeds_flags=False)
VARIABLES = Scheduler(places=PLACES, recognise=by_variables)
COUNT = Scheduler(places=PLACES, recognise=by_count, heeds_flags=False)

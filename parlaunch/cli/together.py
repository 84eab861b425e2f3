"""A launch on several nodes: every node probes itself, one plan is agreed on, everyone becomes torchrun with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch import __version__
from parlaunch.cli import output
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, command, environment, finish
from parlaunch.cli.request import Request
from parlaunch.machine import Cluster, cluster_from_json, cluster_to_json
from parlaunch.plan import plan_from_json, plan_to_json

if TYPE_CHECKING:
    from parlaunch.where import Situation


def launch_together(request: Request, job: Job, situation: Situation) -> NoReturn:
    """Agree with the other nodes, then become torchrun. A spare that is not needed leaves with exit code 0."""
    from parlaunch.cli.launch import become
    from parlaunch.doctor import examine
    from parlaunch_launch.agreement import agree

    found = examine(job.cluster) if job.device == "cuda" else ()
    mine = {
        "version": __version__,
        "command": sys.argv[1:],
        "hardware": cluster_to_json(job.cluster),
        "notes": list(job.cluster.notes),
        "sick": [f.saw for f in found if f.severity == "FAIL"],
    }
    agreed = agree(
        situation,
        mine,
        lambda everyone: _plan(job, request, everyone),
        timeout_s=request.agree_timeout,
        spares=request.spares,
        check=lambda data, rank: _objection(job.cluster, data, rank),
        say=note,
    )
    if agreed.node_rank is None:
        note(f"parlaunch: {situation.hostname} is a spare and not needed")
        raise SystemExit(0)
    plan = plan_from_json(json.loads(agreed.plan_bytes), where="the plan of the first node")
    plan = replace(
        plan,
        environment=environment(job, plan.cluster, plan.layout, node=agreed.node_rank),
        argv=command(job, plan, node_rank=agreed.node_rank, master=(agreed.master, agreed.port)),
    )
    if agreed.node_rank == 0:
        output.emit(plan, job, request)
    become(plan, job, request)
    raise AssertionError("exec came back")


def _plan(job: Job, request: Request, everyone: list[dict[str, Any]]) -> bytes:
    """On the first node: the plan for what all nodes have, as bytes."""
    from parlaunch.gather import gather
    from parlaunch.spares import healthy

    kept = healthy(everyone, spares=request.spares, force=request.force)
    cluster = gather([_cluster(mine) for mine in kept])
    plan = finish(job, cluster)
    return json.dumps(plan_to_json(plan, version=__version__)).encode()


def _cluster(mine: Mapping[str, Any]) -> Cluster:
    found = cluster_from_json(mine["hardware"], where=f"the probe of {mine['agreement']['hostname']}")
    return replace(found, notes=tuple(mine.get("notes", ())))


def _objection(here: Cluster, data: bytes, rank: int) -> str | None:
    """What is wrong with the plan on this node; None when it suits."""
    plan = plan_from_json(json.loads(data), where="the plan of the first node")
    there = plan.cluster.nodes[rank]
    own = here.nodes[0]
    if len(own.gpus) < len(there.gpus):
        return f"it wants {len(there.gpus)} GPUs and {len(own.gpus)} are here"
    if own.gpus[0].name != there.gpus[0].name:
        return f"it is for {there.gpus[0].name} and this is {own.gpus[0].name}"
    return None

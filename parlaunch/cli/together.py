"""A launch on several nodes: every node probes itself, one plan is agreed on, everyone becomes torchrun with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch import __version__
from parlaunch.cli import output
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, command, environment, finish
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError
from parlaunch.machine import Cluster, Gpu, Nic, Node, cluster_from_json, cluster_to_json
from parlaunch.plan import plan_from_json, plan_to_json

if TYPE_CHECKING:
    from parlaunch.finding import Finding
    from parlaunch.where import Situation


def launch_together(request: Request, job: Job, situation: Situation) -> NoReturn:
    """Agree with the other nodes, then become torchrun. A spare that is not needed leaves with exit code 0."""
    from parlaunch.cli.launch import become
    from parlaunch.doctor import examine
    from parlaunch_launch.agreement import agree

    found: tuple[Finding, ...] = ()
    if job.device == "cuda":
        found = examine(
            job.cluster, ranks_per_node=request.nproc_per_node, headroom=request.headroom, nodes=situation.nnodes
        )
    mine = {
        "version": __version__,
        "command": sys.argv[1:],
        "hardware": cluster_to_json(_below(job.cluster, situation.switch)),
        "notes": list(job.cluster.notes),
        "sick": [f.saw for f in found if f.severity == "FAIL"],
        "warned": [f.saw for f in found if f.severity == "WARN"],
    }
    agreed = agree(
        situation,
        mine,
        lambda everyone: _plan(job, request, everyone, situation.nnodes or 1),
        timeout_s=request.agree_timeout,
        spares=request.spares,
        check=lambda data, rank: _objection(job.cluster, data, rank),
        say=note,
    )
    if agreed.node_rank is None:
        note(f"parlaunch: {situation.hostname} is a spare and not needed")
        raise SystemExit(0)
    rank = agreed.node_rank
    plan = plan_from_json(json.loads(agreed.plan_bytes), where="the plan of the first node")
    cluster = _with_own(plan.cluster, rank, job.cluster)
    plan = replace(
        plan,
        cluster=cluster,
        environment=environment(job, cluster, plan.layout, node=rank),
        argv=command(job, plan, node_rank=rank, master=(agreed.master, agreed.port)),
    )
    if rank == 0:
        _after_requeue(agreed.plan_bytes, situation)
        output.emit(plan, job, request)
    become(plan, job, request, agreed)


def _after_requeue(data: bytes, situation: Situation) -> None:
    """Say what changed since the job's last run, and keep this plan for the next one. Only Slurm runs a job again."""
    from parlaunch.compare import difference
    from parlaunch_launch import last_run

    if situation.job_id is None or not situation.kind.startswith("slurm"):
        return
    before = last_run.recall(situation.job_id, os.environ) if situation.restart_count else None
    last_run.remember(situation.job_id, data, os.environ)
    if not situation.restart_count:
        return
    head = f"parlaunch: restart {situation.restart_count} of job {situation.job_id}"
    if before is None:
        note(f"{head}: planned anew; the plan of the last run is not to be found")
        return
    try:
        old = plan_from_json(json.loads(before), where="the plan of the last run")
    except (ValueError, ParlaunchError):
        note(f"{head}: planned anew; the plan of the last run is not readable")
        return
    new = plan_from_json(json.loads(data), where="the plan of the first node")
    rows = [row for row in difference(old, new) if row["part"] in ("recipe", "hardware", "layout")]
    changes = ", ".join(f"{row['name']} {row['before']} -> {row['after']}" for row in rows)
    note(f"{head}: planned anew; {changes or 'the layout is the same'}")


def _below(cluster: Cluster, switch: str | None) -> Cluster:
    """This node with the switches above it, as the launcher names them."""
    return replace(cluster, nodes=tuple(replace(node, switch=node.switch or switch) for node in cluster.nodes))


def _with_own(cluster: Cluster, rank: int, here: Cluster) -> Cluster:
    """The cluster of the plan, with all that is known of this node in its place."""
    nodes = list(cluster.nodes)
    nodes[rank] = replace(here.nodes[0], gpus=here.nodes[0].gpus[: len(nodes[rank].gpus)])
    return replace(cluster, nodes=tuple(nodes))


def _slim(cluster: Cluster) -> Cluster:
    """What every node has to know of all others: a thousand nodes read it."""
    gpu = ("index", "name", "memory_bytes", "compute_capability", "numa", "nvlink_domain", "fabric_id")
    nic = ("name", "kind", "bytes_per_s", "up", "rail")
    nodes = tuple(
        Node(
            hostname=n.hostname,
            link_type=n.link_type,
            switch=n.switch,
            gpus=tuple(Gpu(**{k: getattr(g, k) for k in gpu}) for g in n.gpus),
            nics=tuple(Nic(**{k: getattr(x, k) for k in nic}) for x in n.nics if x.rail),
        )
        for n in cluster.nodes
    )
    return replace(cluster, nodes=nodes)


def _plan(job: Job, request: Request, everyone: list[dict[str, Any]], nnodes: int) -> bytes:
    """On the first node: the plan for what all nodes have, as bytes."""
    from parlaunch.gather import gather
    from parlaunch.spares import healthy

    kept = healthy(everyone, nnodes=nnodes, spares=request.spares, force=request.force)
    cluster = gather([_cluster(mine) for mine in kept])
    plan = finish(replace(job, remarks=(*job.remarks, *cluster.notes)), cluster)
    return json.dumps(plan_to_json(replace(plan, cluster=_slim(plan.cluster)), version=__version__)).encode()


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

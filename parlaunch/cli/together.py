"""A launch on several nodes: every node probes itself, one plan is agreed on, everyone becomes torchrun with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch.cli import output
from parlaunch.cli.become import become
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, fastest, start_of, too_large
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError
from parlaunch.hardware.cluster import Cluster, Gpu, Nic, Node, cluster_from_json, cluster_to_json
from parlaunch.planning.plan import Plan, plan_from_json, plan_to_json
from parlaunch.version import __version__

if TYPE_CHECKING:
    from parlaunch.doctor.finding import Finding
    from parlaunch.where.situation import Situation
    from parlaunch_launch.party import Agreement, Party


def launch_together(request: Request, job: Job | ParlaunchError, situation: Situation) -> NoReturn:
    """Agree with the other nodes, then become torchrun; or bring them what this node refuses with, which all then raise. A
    spare that is not needed leaves with exit code 0."""
    plan, agreement = agreed_on(request, job, situation)
    assert isinstance(job, Job)  # else the agreement has raised
    if agreement.node_rank == 0:
        _after_requeue(agreement.plan_bytes, situation)
        output.emit(plan, job, request)
    become(plan, job, request, agreement)


def agreed_on(request: Request, job: Job | ParlaunchError, situation: Situation) -> tuple[Plan, Agreement]:
    """The plan that the nodes agree on, complete for this one, with its place among them. A spare that is not needed leaves
    with exit code 0."""
    mine = brought(request, job, situation)

    def planned(everyone: list[dict[str, Any]]) -> bytes:
        assert isinstance(job, Job)  # else nothing is planned
        return spoken(plan_for(job, request, everyone, situation.nnodes or 1))

    with meeting_of(request, mine, situation) as party:
        agreed = party.agree(mine, planned, objection_of(job))
    assert isinstance(job, Job)
    if agreed.node_rank is None:
        spared(situation)
    return complete_here(job, agreed, json.loads(agreed.plan_bytes)), agreed


def meeting_of(request: Request, mine: dict[str, Any] | ParlaunchError, situation: Situation) -> Party:
    """The nodes of the job."""
    from parlaunch_launch import secret
    from parlaunch_launch.agreement import meet

    return meet(
        situation, mine, secret=secret.of(os.environ, rdzv_id=request.rdzv_id), timeout_s=request.agree_timeout,
        spares=request.spares, say=note,
    )  # fmt: skip


def brought(request: Request, job: Job | ParlaunchError, situation: Situation) -> dict[str, Any] | ParlaunchError:
    """What this node brings to the first meeting: what it found, or what it refuses with."""
    return job if isinstance(job, ParlaunchError) else _mine(job, request, situation)


def objection_of(job: Job | ParlaunchError) -> Callable[[bytes, int], str | None]:
    """What is wrong with an agreed plan on this node, as a function of the plan and this node's rank."""

    def objection(data: bytes, rank: int) -> str | None:
        assert isinstance(job, Job)  # else nothing is planned
        return _objection(job.cluster, data, rank)

    return objection


def spared(situation: Situation) -> NoReturn:
    """Leave: this node is not needed."""
    note(f"parlaunch: {situation.hostname} is a spare and not needed")
    raise SystemExit(0)


def complete_here(job: Job, agreed: Agreement, said: Mapping[str, Any], *, short: Sequence[str] = ()) -> Plan:
    """The agreed plan, complete for this node. `short` are overrides behind the plan's own."""
    from parlaunch.launching import complete

    rank = agreed.node_rank
    assert rank is not None
    plan = plan_from_json(said, where="the plan of the first node")
    cluster = _with_own(plan.cluster, rank, job.cluster)
    start = start_of(job)
    met = replace(start.rendezvous, master_addr=agreed.master, master_port=agreed.port)
    return complete(
        replace(plan, cluster=cluster), replace(start, rendezvous=met), node=rank, recipe=job.recipe,
        said=(*plan.overrides, *short),
    )  # fmt: skip


def _mine(job: Job, request: Request, situation: Situation) -> dict[str, Any]:
    """What this node brings to the meeting."""
    from parlaunch.doctor.preflight import examine

    found: tuple[Finding, ...] = ()
    if job.device == "cuda":
        found = examine(
            job.cluster, ranks_per_node=request.nproc_per_node, headroom=request.headroom, nodes=situation.nnodes
        )
    return {
        "version": __version__,
        "command": sys.argv[1:],
        "hardware": cluster_to_json(_below(job.cluster, situation.switch)),
        "notes": list(job.cluster.notes),
        "sick": [f.saw for f in found if f.severity == "FAIL"],
        "warned": [f.saw for f in found if f.severity == "WARN"],
    }


def _after_requeue(data: bytes, situation: Situation) -> None:
    """Say what changed since the job's last run, and keep this plan for the next one."""
    from parlaunch.show.compare import difference
    from parlaunch.where.schedulers import place_of
    from parlaunch_launch import last_run

    if situation.job_id is None or not place_of(situation).runs_again:
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


def plan_for(job: Job, request: Request, everyone: list[dict[str, Any]], nnodes: int) -> Plan:
    """On the first node: the plan for what all nodes have. Raises what a launch on one node raises."""
    from parlaunch.hardware.gather import gather
    from parlaunch.hardware.spares import healthy

    kept = healthy(everyone, nnodes=nnodes, spares=request.spares, force=request.force)
    probed = [_cluster(mine) for mine in kept]
    plan = fastest(job, [one.nodes[0] for one in probed], lambda places: gather([probed[at] for at in places]))
    if not plan.chosen.memory.fits:
        raise too_large(plan)
    return plan


def spoken(plan: Plan, **beside: Any) -> bytes:
    """A plan as all nodes hear it, with what else they are to know."""
    return json.dumps(plan_to_json(replace(plan, cluster=_slim(plan.cluster)), version=__version__) | beside).encode()


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

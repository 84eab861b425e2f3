"""Many nodes, each probed by itself, as one cluster; and what to say where they are not alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from parlaunch.errors import ParlaunchError
from parlaunch.hardware.cluster import UNKNOWN, Cluster, Fabric, Node, domains_of
from parlaunch.where.nodelist import short

IDLE = "the rest stays idle"
"""What notes say of GPUs that other nodes do not have."""


def gather(probed: Sequence[Cluster]) -> Cluster:
    """One cluster of all nodes, in the order given. The plan uses what every node has.

    Nodes with more GPUs than the smallest give up their last ones; where models differ, all go at the pace of the slowest;
    notes say both. Raises `ParlaunchError` naming the nodes that have no GPU.
    """
    nodes = tuple(node for cluster in probed for node in cluster.nodes)
    empty = [n.hostname for n in nodes if not n.gpus]
    if empty:
        raise ParlaunchError(
            f"no GPU on {short(tuple(empty))}; {len(nodes) - len(empty)} of {len(nodes)} nodes have some",
            hint="`parlaunch doctor` there says why; --spares N goes on without N nodes",
        )
    fewest = min(len(n.gpus) for n in nodes)
    notes: list[str] = []
    if more := [n.hostname for n in nodes if len(n.gpus) > fewest]:
        notes.append(
            f"{short(tuple(more))} has more GPUs than the {fewest} that every node has: {IDLE}{_without(nodes)}"
        )
    notes += _odd_nodes(nodes)
    kept = tuple(replace(n, gpus=n.gpus[:fewest], gpus_left_out=(*n.gpus_left_out, *n.gpus[fewest:])) for n in nodes)
    return Cluster(
        source="probe",
        nodes=kept,
        nvlink_domains=domains_of(kept),
        fabric=_slowest([c.fabric for c in probed], notes),
        notes=tuple(notes),
    )


def _without(nodes: Sequence[Node]) -> str:
    """Which nodes to leave out for more GPUs in all, or for as many on fewer nodes; empty where that is none."""
    counts = [len(n.gpus) for n in nodes]
    least = max(set(counts), key=lambda k: (k * sum(c >= k for c in counts), k))
    if least == min(counts):
        return ""
    few = short(tuple(n.hostname for n in nodes if len(n.gpus) < least))
    kept, now = sum(c >= least for c in counts), min(counts) * len(counts)
    if least * kept == now:
        return f"; without {few} there are as many, on {kept} node{'s' if kept > 1 else ''}"
    return f"; without {few} there are {least * kept} in place of {now}"


def _odd_nodes(nodes: Sequence[Node]) -> list[str]:
    """Which nodes have another GPU model than most."""
    found = Counter(n.gpus[0].name for n in nodes)
    if len(found) < 2:
        return []
    usual = found.most_common(1)[0][0]
    odd = [n for n in nodes if n.gpus[0].name != usual]
    return [f"{short(tuple(n.hostname for n in odd))} has {odd[0].gpus[0].name}, the others {usual}"]


def _slowest(fabrics: Sequence[Fabric], notes: list[str]) -> Fabric:
    """The fabric that all share, at the rate of the slowest node."""
    kinds = Counter(f.kind for f in fabrics if f.kind != UNKNOWN)
    if len(kinds) > 1:
        notes.append("the nodes see different fabrics: " + ", ".join(f"{k} on {n}" for k, n in kinds.most_common()))
    known = [f for f in fabrics if f.bytes_per_s_per_gpu]
    if not known:
        return fabrics[0]
    return min(known, key=lambda f: f.bytes_per_s_per_gpu or 0.0)

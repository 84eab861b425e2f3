"""Many nodes, each probed by itself, as one cluster; and what to say where they are not alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from parlaunch.errors import ParlaunchError
from parlaunch.machine import Cluster, Fabric, Node, domains_of
from parlaunch.nodelist import short


def gather(probed: Sequence[Cluster]) -> Cluster:
    """One cluster of all nodes, in the order given. The plan uses what every node has.

    Nodes with more GPUs than the smallest give up their last ones, and a note says so. Raises `ParlaunchError` naming the
    nodes that have no GPU, or another GPU model than the others: a job on both would run at the pace of the slower.
    """
    nodes = tuple(node for cluster in probed for node in cluster.nodes)
    empty = [n.hostname for n in nodes if not n.gpus]
    if empty:
        raise ParlaunchError(
            f"no GPU on {short(tuple(empty))}; {len(nodes) - len(empty)} of {len(nodes)} nodes have some",
            hint="`parlaunch doctor` there says why; --spares N goes on without N nodes",
        )
    _same(nodes, "GPU model", lambda n: n.gpus[0].name)
    fewest = min(len(n.gpus) for n in nodes)
    notes: list[str] = []
    if more := [n.hostname for n in nodes if len(n.gpus) > fewest]:
        notes.append(f"{short(tuple(more))} has more GPUs than the {fewest} that every node has: the rest stays idle")
    kept = tuple(replace(n, gpus=n.gpus[:fewest]) for n in nodes)
    return Cluster(
        source="probe",
        nodes=kept,
        nvlink_domains=domains_of(kept),
        fabric=_slowest([c.fabric for c in probed], notes),
        notes=tuple(notes),
    )


def _same(nodes: Sequence[Node], what: str, of: Callable[[Node], str]) -> None:
    found = Counter(of(n) for n in nodes)
    if len(found) < 2:
        return
    usual = found.most_common(1)[0][0]
    odd = next(value for value in found if value != usual)
    who = short(tuple(n.hostname for n in nodes if of(n) == odd))
    raise ParlaunchError(
        f"the nodes differ in {what}: {who} has {odd}, the others {usual}",
        hint="ask Slurm for one kind (--constraint), or leave nodes out (--spares N, --exclude)",
    )


def _slowest(fabrics: Sequence[Fabric], notes: list[str]) -> Fabric:
    """The fabric that all share, at the rate of the slowest node."""
    kinds = Counter(f.kind for f in fabrics)
    if len(kinds) > 1:
        notes.append("the nodes see different fabrics: " + ", ".join(f"{k} on {n}" for k, n in kinds.most_common()))
    known = [f for f in fabrics if f.bytes_per_s_per_gpu]
    if not known:
        return fabrics[0]
    return min(known, key=lambda f: f.bytes_per_s_per_gpu or 0.0)

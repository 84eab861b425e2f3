"""GPUs of several models in one machine or job: the part of them that one plan can use best, and what the rest costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from parlaunch.hardware.cluster import UNKNOWN, Cluster, Gpu, Node, domains_of
from parlaunch.hardware.derived import sheet_of


def even(cluster: Cluster) -> Cluster:
    """The cluster with the GPUs that a plan should use; the others stand in `Node.gpus_left_out`, and a note says why.

    GPUs that MIG has cut up go where whole ones are beside them, and those that nothing can be planned for beside others
    (a display card). Of several models on every node, those of one are kept
    when they alone are faster than all of them at the pace of the slowest: every step waits for the slowest rank.
    """
    nodes, notes = [], list(cluster.notes)
    for node in cluster.nodes:
        whole = tuple(g for g in node.gpus if not g.mig)
        if whole and len(whole) < len(node.gpus):
            cut = tuple(g for g in node.gpus if g.mig)
            notes.append(f"{_names(cut)} left out: in MIG mode, beside {len(whole)} whole GPUs")
            node = replace(node, gpus=whole, gpus_left_out=(*node.gpus_left_out, *cut))
        known = tuple(g for g in node.gpus if g.name == UNKNOWN or sheet_of(g) is not None)
        if known and len(known) < len(node.gpus):
            rest = tuple(g for g in node.gpus if g not in known)
            models = ", ".join(sorted({g.name for g in rest}))
            notes.append(f"{_names(rest)} ({models}) left out: too old, or of no generation that is known")
            node = replace(node, gpus=known, gpus_left_out=(*node.gpus_left_out, *rest))
        nodes.append(node)
    model = _faster_alone(nodes)
    if model is not None:
        for at, node in enumerate(nodes):
            rest = tuple(g for g in node.gpus if g.name != model)
            kept = tuple(g for g in node.gpus if g.name == model)
            if rest:
                others = ", ".join(sorted({g.name for g in rest}))
                notes.append(
                    f"{_names(rest)} ({others}) left out: the {len(kept)} {model} alone are faster than all together"
                )
                nodes[at] = replace(node, gpus=kept, gpus_left_out=(*node.gpus_left_out, *rest))
    if tuple(nodes) == cluster.nodes:
        return cluster
    made = tuple(nodes)
    fabric = cluster.fabric
    before, after = cluster.gpus_per_node, min(len(n.gpus) for n in made)
    if fabric.bytes_per_s_per_gpu is not None and after:
        fabric = replace(fabric, bytes_per_s_per_gpu=fabric.bytes_per_s_per_gpu * before / after)
    return replace(
        cluster, nodes=made, nvlink_domains=domains_of(made), fabric=fabric, notes=tuple(dict.fromkeys(notes))
    )


def _faster_alone(nodes: Sequence[Node]) -> str | None:
    """The model whose GPUs, on every node some, beat all GPUs at the pace of the slowest; None when all together are best."""
    models = {g.name for n in nodes for g in n.gpus}
    pace = {name: pace_of(name, nodes) for name in models}
    if len(models) < 2 or any(speed is None for speed in pace.values()):
        return None
    together = min(speed or 0.0 for speed in pace.values()) * min(len(n.gpus) for n in nodes)
    alone = {
        name: (pace[name] or 0.0) * min(sum(g.name == name for g in n.gpus) for n in nodes) for name in sorted(models)
    }
    best = max(alone, key=lambda name: alone[name])
    return best if alone[best] > together else None


def faster_nodes(nodes: Sequence[Node]) -> str | None:
    """The model whose nodes alone, with all of their GPUs, beat every node at the pace of the slowest and the GPUs of the
    smallest; None when all together are best, or when a node's own GPUs differ."""
    models = {n.gpus[0].name for n in nodes if n.gpus}
    if len(models) < 2 or any(not n.gpus or any(g.name != n.gpus[0].name for g in n.gpus) for n in nodes):
        return None
    pace = {name: speed for name in models if (speed := pace_of(name, nodes)) is not None}
    if len(pace) < len(models):
        return None
    together = min(pace.values()) * len(nodes) * min(len(n.gpus) for n in nodes)

    def alone(name: str) -> float:
        counts = [len(n.gpus) for n in nodes if n.gpus[0].name == name]
        return pace[name] * len(counts) * min(counts)

    best = max(sorted(models), key=alone)
    return best if alone(best) > together else None


def pace_of(name: str, nodes: Sequence[Node]) -> float | None:
    """FLOP/s of one GPU of a model in bf16, by its data sheet; None when it has none."""
    gpu = next(g for n in nodes for g in n.gpus if g.name == name)
    sheet = sheet_of(gpu)
    return None if sheet is None else sheet.peak_flops("bf16")


def cost(cluster: Cluster) -> str | None:
    """One sentence on what GPUs of several models in one plan cost; None when all are alike."""
    models = Counter(g.name for n in cluster.nodes for g in n.gpus)
    pace = {name: pace_of(name, cluster.nodes) for name in models}
    known = {name: speed for name, speed in pace.items() if speed}
    if len(models) < 2 or len(known) < len(models):
        return None
    slowest = min(known, key=lambda name: known[name])
    lost = sum(models[name] * (speed - known[slowest]) for name, speed in known.items())
    share = lost / sum(models[name] * speed for name, speed in known.items())
    shown = ", ".join(f"{count} x {name}" for name, count in models.most_common())
    lose = f"{share:.0%} of their compute is lost" if share >= 0.005 else "no compute is lost"
    return (
        f"GPU models differ ({shown}): every rank goes at the pace of {slowest}, in the memory of the smallest; {lose}"
    )


def _names(gpus: Sequence[Gpu]) -> str:
    return f"GPU {', '.join(str(g.index) for g in gpus)}"

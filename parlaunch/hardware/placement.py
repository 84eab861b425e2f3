"""Who sits where: the order of nodes, the order of GPUs inside a node, and which rank holds which coordinate.

Megatron numbers ranks tensor parallel first, then context, then data, then pipeline; expert ranks tensor, expert, data,
pipeline (`order="tp-cp-ep-dp-pp"`). So whatever talks most must have neighbouring ranks, and nodes and GPUs that reach
each other best must stand side by side.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from parlaunch.hardware.cluster import Cluster, Gpu, Node
from parlaunch.model.layout import Layout

Key = tuple[tuple[int, int, str], ...]


def natural(text: str) -> Key:
    """A sort key under which node9 comes before node10.

    >>> sorted(["n10", "n9", "n9-ib"], key=natural)
    ['n9', 'n9-ib', 'n10']
    """
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text) if p)


# --- Nodes ------------------------------------------------------------------------------------------------------------


def switch_path(node: Node) -> tuple[str, ...]:
    """The switches above a node, the topmost first, from `SLURM_TOPOLOGY_ADDR` ("spine.leaf3.node7"); () when unknown."""
    parts = [p for p in (node.switch or "").split(".") if p]
    if parts and parts[-1] in (node.hostname, node.hostname.split(".")[0]):
        parts.pop()
    return tuple(parts)


def order_nodes(cluster: Cluster) -> Cluster:
    """The cluster with its nodes in rank order: NVLink domains stay together, then switch neighbours, then names.

    Domains come in the order of their first node. Global GPU numbers in `nvlink_domains` follow the nodes.
    """
    nodes = cluster.nodes
    own = {at: (tuple(natural(s) for s in switch_path(n)), natural(n.hostname)) for at, n in enumerate(nodes)}
    first: dict[object, tuple[tuple[Key, ...], Key]] = {}
    for at, node in enumerate(nodes):
        group = _domain(node, at)
        first[group] = min(first.get(group, own[at]), own[at])
    order = sorted(range(len(nodes)), key=lambda at: (first[_domain(nodes[at], at)], own[at], at))
    return reorder(cluster, order)


def _domain(node: Node, at: int) -> object:
    """What NVLink domain across nodes a node belongs to: itself where there is none."""
    ids = {g.fabric_id for g in node.gpus}
    return ids.pop() if len(ids) == 1 and None not in ids else at


def reorder(cluster: Cluster, order: Sequence[int]) -> Cluster:
    """The cluster with node `order[0]` first, and so on."""
    if list(order) == list(range(len(cluster.nodes))):
        return cluster
    nodes = tuple(cluster.nodes[at] for at in order)
    starts, number = [], 0
    for node in cluster.nodes:
        starts.append(number)
        number += len(node.gpus)
    moved, number = {}, 0
    for at in order:
        for i in range(len(cluster.nodes[at].gpus)):
            moved[starts[at] + i] = number
            number += 1
    domains = sorted(tuple(sorted(moved[g] for g in domain)) for domain in cluster.nvlink_domains)
    return replace(cluster, nodes=nodes, nvlink_domains=tuple(domains))


def switches_of(topology: str, expand: Callable[[str], Iterable[str]]) -> dict[str, str]:
    """Node name to dotted switch path (topmost first), from the text of `scontrol show topology`.

    `expand` turns a Slurm host list ("gpu[01-18]") into names. Both of Slurm's plugins are read: tree
    (`SwitchName=… Nodes=… Switches=…`) and block (`BlockName=… Nodes=…`). Lines that say neither are passed over.
    """
    above: dict[str, str] = {}  # switch to the switch above it
    leaf: dict[str, tuple[int, str]] = {}  # node to the lowest switch that lists it
    for line in topology.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        name = fields.get("SwitchName") or fields.get("BlockName")
        if name is None:
            continue
        level = int(fields["Level"]) if fields.get("Level", "").isdigit() else 0
        for child in expand(fields["Switches"]) if fields.get("Switches", "(null)") != "(null)" else ():
            above[child] = name
        for node in expand(fields["Nodes"]) if fields.get("Nodes", "(null)") != "(null)" else ():
            if node not in leaf or level < leaf[node][0]:
                leaf[node] = (level, name)
    paths = {}
    for node, (_, switch) in leaf.items():
        path = [switch]
        while path[0] in above and above[path[0]] not in path:
            path.insert(0, above[path[0]])
        paths[node] = ".".join(path)
    return paths


def with_switches(cluster: Cluster, paths: Mapping[str, str]) -> Cluster:
    """The cluster with switch paths where a node's own is not known."""
    nodes = tuple(
        replace(n, switch=paths.get(n.hostname) or paths.get(n.hostname.split(".")[0])) if n.switch is None else n
        for n in cluster.nodes
    )
    return replace(cluster, nodes=nodes)


# --- GPUs of one node -------------------------------------------------------------------------------------------------


def gpu_order(node: Node) -> tuple[int, ...]:
    """Positions in `node.gpus` by local rank, so that GPUs with NVLinks between them stand side by side: whole groups
    first and strays last; inside a mesh, halves with the most links between them. Without any NVLink: NUMA nodes stay
    together. The order as it is wherever another would change nothing."""
    count = len(node.gpus)
    links = _links(node)
    groups = _components(count, links)
    if all(len(g) == 1 for g in groups):
        numa = [g.numa for g in node.gpus]
        known = [n for n in numa if n is not None and n >= 0]
        return (
            tuple(sorted(range(count), key=lambda at: (numa[at], at))) if len(known) == count else tuple(range(count))
        )
    groups.sort(key=lambda g: (-len(g), g[0]))
    return tuple(at for group in groups for at in _arranged(group, links))


def _links(node: Node) -> dict[tuple[int, int], int]:
    """NVLinks between two GPUs by position, low number first; one stands for "some" where only domains are known."""
    position = {g.index: at for at, g in enumerate(node.gpus)}
    links: dict[tuple[int, int], int] = {}
    for a, b, number in node.nvlinks:
        if number > 0 and a in position and b in position and a != b:
            links[min(position[a], position[b]), max(position[a], position[b])] = number
    if links:
        return links
    pairs = combinations(range(len(node.gpus)), 2)
    return {(i, j): 1 for i, j in pairs if _reach(node.gpus[i], node.gpus[j])}


def _reach(a: Gpu, b: Gpu) -> bool:
    if a.fabric_id is not None or b.fabric_id is not None:
        return a.fabric_id == b.fabric_id
    return a.nvlink_domain is not None and a.nvlink_domain == b.nvlink_domain


def _components(count: int, links: Mapping[tuple[int, int], int]) -> list[tuple[int, ...]]:
    group = list(range(count))
    for a, b in links:
        old, new = max(group[a], group[b]), min(group[a], group[b])
        group = [new if g == old else g for g in group]
    found: dict[int, list[int]] = defaultdict(list)
    for at, g in enumerate(group):
        found[g].append(at)
    return [tuple(members) for members in found.values()]


def _arranged(group: tuple[int, ...], links: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    """Halve the group so that the halves keep the most links, then each half again; all alike: as it is."""
    weights = {links.get(pair, 0) for pair in combinations(group, 2)}
    if len(group) <= 2 or len(weights) == 1 or len(group) % 2 or len(group) > 16:
        return group

    def kept(half: tuple[int, ...]) -> tuple[int, int]:
        inside = [links.get(p, 0) for p in combinations(half, 2)]
        return sum(1 for n in inside if n), sum(inside)

    best: tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]] | None = None
    for rest in combinations(group[1:], len(group) // 2 - 1):
        one = (group[0], *rest)
        two = tuple(at for at in group if at not in one)
        a, b = kept(one), kept(two)
        score = (a[0] + b[0], a[1] + b[1])
        if best is None or score > best[0]:
            best = score, one, two
    assert best is not None
    return _arranged(best[1], links) + _arranged(best[2], links)


def visible_devices(node: Node) -> str | None:
    """CUDA_VISIBLE_DEVICES that puts a node's GPUs into `gpu_order`: UUIDs, or PCI numbers where those are not known;
    None when the order stays as it is and no GPU is left out."""
    order = gpu_order(node)
    if order == tuple(range(len(node.gpus))) and not node.gpus_left_out:
        return None
    chosen = [node.gpus[at] for at in order]
    if all(g.uuid for g in chosen):
        return ",".join(str(g.uuid) for g in chosen)
    return ",".join(str(g.index) for g in chosen)


# --- Ranks ------------------------------------------------------------------------------------------------------------


def groups(layout: Layout, name: str) -> tuple[tuple[int, ...], ...]:
    """The ranks of every group of one kind (tp, cp, dp, pp, ep, etp, edp), each in order of its coordinate."""
    x, inner = layout, layout.world // layout.pp
    size, stride = {
        "tp": (x.tp, 1), "cp": (x.cp, x.tp), "dp": (x.dp, x.tp * x.cp), "pp": (x.pp, inner),
        "etp": (x.etp, 1), "ep": (x.ep, x.etp), "edp": (x.edp, x.etp * x.ep),
    }[name]  # fmt: skip
    starts = [rank for rank in range(x.world) if rank // stride % size == 0]
    return tuple(tuple(start + stride * i for i in range(size)) for start in starts)


def several_numa(node: Node) -> bool:
    """Whether the node has CPUs in more than one NUMA node; by its sockets where nobody looked."""
    return len([cpus for _, cpus in node.numa_cpus if cpus] or range(node.sockets or 1)) > 1

"""A measure of placement: what one iteration sends over each kind of link, for this order of nodes and for others.

Bytes of the collectives that Megatron issues (Korthikanti et al. 2022 for tensor and sequence parallelism; Narayanan et
al. 2021 for the pipeline; Rajbhandari et al. 2020 for sharded data parallelism), counted on the links between ranks:
rings for gathers and reductions, pairs for the expert all-to-all, neighbours for the pipeline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.placement import groups, order_nodes, switch_path
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import stage_weights
from parlaunch.model.recipe import Recipe

CLASSES = ("nvlink", "node", "rail", "spine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes an iteration of the whole job, both directions of a link counted once each."""

    nvlink: float = 0.0
    node: float = 0.0  # inside a node without NVLink
    rail: float = 0.0  # between nodes, under one leaf switch
    spine: float = 0.0  # between nodes, over the switches above

    @property
    def total(self) -> float:
        return self.nvlink + self.node + self.rail + self.spine

    @property
    def cost(self) -> tuple[float, float, float]:
        """What makes an order worse, the slowest links first."""
        return self.spine, self.rail, self.node


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What an order of nodes sends over which links, beside what others would."""

    ours: Traffic
    best: Traffic  # the best of our own order, the given one and a search by exchanges from both
    random: Traffic


def sent(recipe: Recipe, layout: Layout) -> dict[tuple[int, int], float]:
    """Bytes that each rank sends each other one in an iteration, by (sender, receiver)."""
    a, x, m = recipe.architecture, layout, layout.num_microbatches
    train = 2 if recipe.frozen else 3  # forward, gradient of activations, gradient of weights
    hidden = recipe.seq_length / x.cp * x.micro_batch_size * a.hidden_size * 2  # bytes of one activation, bf16
    layers = len(a.layers()) / x.pp
    experts = sum(1 for k in a.layers() if k.mlp == "moe") / x.pp
    found: dict[tuple[int, int], float] = defaultdict(float)
    # Sequence parallelism gathers before and scatters after attention and MLP, in both passes; once more for weights.
    again = 4 if x.recompute.granularity == "full" else 0
    _ring(found, groups(x, "tp"), (4 + 4 + 2 * (train - 2) + again) * layers * m * hidden)
    keys = recipe.seq_length / x.cp * x.micro_batch_size * 2 * a.num_query_groups * a.kv_channels * 2 / x.tp
    _ring(found, groups(x, "cp"), 3 * layers * m * keys * x.cp)
    routed = hidden / x.tp * a.moe_router_topk
    _pairs(found, groups(x, "ep"), 4 * experts * m * routed)
    for chain in groups(x, "pp"):
        for sender, receiver in pairwise(chain):
            for pair in ((sender, receiver), (receiver, sender)):
                found[pair] += (x.vp or 1) * m * hidden / x.tp
        if x.vp and x.pp > 1:  # from the last stage of one chunk to the first of the next
            for pair in ((chain[-1], chain[0]), (chain[0], chain[-1])):
                found[pair] += (x.vp - 1) * m * hidden / x.tp
    if not recipe.frozen:
        gradient = recipe.features.gradient_bytes
        # Bytes a parameter: one gather and one reduction, or under FSDP two gathers and a reduction a micro batch.
        reduced = m * (2 + 2 + gradient) if x.fsdp else 2 + gradient
        weights = stage_weights(a, x)
        per_stage = x.world // x.pp
        for name, pick in (("dp", 0), ("edp", 1)):
            for group in groups(x, name):
                _ring(found, (group,), reduced * weights[group[0] // per_stage][pick])
    return found


def _ring(found: dict[tuple[int, int], float], rings: Sequence[tuple[int, ...]], size: float) -> None:
    """Gathers or reductions of `size` bytes in all: each member sends all but its own part to the next."""
    for members in rings:
        n = len(members)
        for at, sender in enumerate(members) if n > 1 else ():
            found[sender, members[(at + 1) % n]] += size * (n - 1) / n


def _pairs(found: dict[tuple[int, int], float], teams: Sequence[tuple[int, ...]], size: float) -> None:
    """An all-to-all in which each member gives away `size` bytes evenly."""
    for members in teams:
        n = len(members)
        for sender in members if n > 1 else ():
            for receiver in members:
                if receiver != sender:
                    found[sender, receiver] += size / n


class _Board:
    """Traffic between slots of nodes, and what kind of link joins two nodes: an order is a node for each slot."""

    def __init__(self, cluster: Cluster, flows: Mapping[tuple[int, int], float]) -> None:
        per_node = cluster.gpus_per_node
        self.nodes = len(cluster.nodes)
        self.inside: dict[tuple[int, int, int], float] = defaultdict(float)
        # Between slots: on one rail (the same local rank on both sides) and on different ones.
        self.between: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for (a, b), size in flows.items():
            slot_a, slot_b = a // per_node, b // per_node
            if slot_a == slot_b:
                self.inside[slot_a, a % per_node, b % per_node] += size
            else:
                self.between[slot_a, slot_b][a % per_node != b % per_node] += size
        start = 0
        member: dict[int, int] = {}
        for number, domain in enumerate(cluster.nvlink_domains):
            member |= dict.fromkeys(domain, number)
        self.domain: list[list[int | None]] = []
        for node in cluster.nodes:
            self.domain.append([member.get(start + i) for i in range(len(node.gpus))])
            start += len(node.gpus)
        self.leaf = [switch_path(n) for n in cluster.nodes]

    def traffic(self, order: Sequence[int]) -> Traffic:
        sums = dict.fromkeys(CLASSES, 0.0)
        for (slot, a, b), size in self.inside.items():
            here = self.domain[order[slot]]
            sums["nvlink" if here[a] is not None and here[a] == here[b] else "node"] += size
        for (slot_a, slot_b), (same, other) in self.between.items():
            one, two = order[slot_a], order[slot_b]
            if self.domain[one] and self.domain[one][0] is not None and self.domain[one][0] == self.domain[two][0]:
                sums["nvlink"] += same + other
            elif self.leaf[one] and self.leaf[two]:
                sums["rail" if self.leaf[one] == self.leaf[two] else "spine"] += same + other
            else:  # a rail-optimised fabric has one leaf switch for each local rank
                sums["rail"] += same
                sums["spine"] += other
        return Traffic(**sums)

    def improved(self, order: Sequence[int]) -> Traffic:
        """The best that exchanging two nodes at a time reaches from an order; beyond 24 nodes the order itself."""
        now, best = list(order), self.traffic(order)
        while self.nodes <= 24:
            better = None
            for one in range(self.nodes):
                for two in range(one + 1, self.nodes):
                    now[one], now[two] = now[two], now[one]
                    found = self.traffic(now)
                    if found.cost < best.cost:
                        best, better = found, (one, two)
                    now[one], now[two] = now[two], now[one]
            if better is None:
                break
            one, two = better
            now[one], now[two] = now[two], now[one]
        return best


def _shuffled(count: int) -> list[int]:
    """A permutation that is the same every time (xorshift)."""
    order, seed = list(range(count)), 2463534242
    for at in range(count - 1, 0, -1):
        seed = (seed ^ seed << 13) & 0xFFFFFFFF
        seed ^= seed >> 17
        seed = (seed ^ seed << 5) & 0xFFFFFFFF
        other = seed % (at + 1)
        order[at], order[other] = order[other], order[at]
    return order


def traffic(cluster: Cluster, recipe: Recipe, layout: Layout, order: Sequence[int] | None = None) -> Comparison:
    """Bytes of one iteration by kind of link. `order[k]` is the node of `cluster.nodes` that stands k-th (None: as they
    are). Beside it the best that is known, and a random order."""
    board = _Board(cluster, sent(recipe, layout))
    plain = list(range(len(cluster.nodes)))
    given = list(order) if order is not None else plain
    place = {node.hostname: at for at, node in enumerate(cluster.nodes)}
    sorted_ = [place[n.hostname] for n in order_nodes(cluster).nodes]
    ours = board.traffic(given)
    best = min((ours, board.improved(given), board.improved(sorted_)), key=lambda t: t.cost)
    return Comparison(ours=ours, best=best, random=board.traffic(_shuffled(len(plain))))


def as_text(comparison: Comparison) -> str:
    """Three lines under a head, GB an iteration: what `--explain` prints."""
    lines = ["GB an iteration over " + "".join(f"{name:>10}" for name in CLASSES)]
    for name, t in (
        ("this order", comparison.ours),
        ("the best known", comparison.best),
        ("a random one", comparison.random),
    ):
        lines.append(f"{name:20} " + "".join(f"{getattr(t, c) / 1e9:>10,.1f}" for c in CLASSES))
    return "\n".join(lines) + "\n"

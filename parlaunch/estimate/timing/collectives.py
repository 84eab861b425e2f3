"""How long a collective takes: alpha-beta terms by topology, after NCCL's own tuning model.

A group of `size` ranks with a stride in Megatron's rank order has `inside` members in each NVLink domain, or node where that is larger
(bridges join two or four of its GPUs; the others talk over PCIe). Inside, the links' bus bandwidth counts; beyond it every member brings
the NIC of its own rail, so a ring that passes through `inside` GPUs of a domain leaves it over as many NICs.
"""

from __future__ import annotations

from parlaunch.estimate.timing.operators import Grid, collectives, measured_as
from parlaunch.estimate.timing.silicon import SOCKET_LINK, silicon_of
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import GPU_DRIVEN, Rates

# NCCL's latencies in seconds: base of a ring by protocol, and a hop over NVLink and over the network
# (NCCL src/graph/tuning.cc, baseLat and hwLat). Efficiency: flags share the cache line with data.
_PROTOCOLS = (
    # base, NVLink hop, network hop, share of the bandwidth
    (6.6e-6, 0.6e-6, 2.7e-6, 0.5),  # LL: half of each line is flags
    (14.0e-6, 1.9e-6, 4.0e-6, 0.92),  # LL128: 120 of 128 bytes
    (8.4e-6, 3.4e-6, 14.0e-6, 1.0),  # Simple
)
FABRIC_SHARE = {
    "infiniband": 0.92,
    "roce": 0.88,
    "efa": 0.80,
    "slingshot": 0.80,
    "ethernet": 0.80,
    "none": 0.80,
}
"""NCCL bus bandwidth over the wire rate, by kind of fabric (nccl-tests on rail-optimised clusters)."""

A2A_SHARE = 0.80
"""All-to-all over the ring's bus bandwidth inside an NVLink domain: many small messages, no pipelining."""

A2A_FAR = {"efa": 0.36}
"""The same between nodes, over what a ring reaches there (0.9 where it is not said): over EFA every peer is a flow of its own through
libfabric. Settled on Kimi-K2 on 128 and 256 B300; Qwen3-30B-A3B on 64 H100 over EFA, left out, says 0.25."""

BROADCAST_HOP = 8e-6
"""Seconds a hop of a ring broadcast, near or far: no rank forwards what it has not got. Settled on InternEvo, 16 to 1,024 A100 in groups
of 8 to 1,024 ranks: what broadcasts to all cost beyond those inside a node is their bytes, and this for each rank of each (NCCL's own
src/graph/tuning.cc: a hop over the network for every rank, 4 (LL128) or 28 us (a chunk of Simple))."""

PROXY_S = 1.7e-3
"""Seconds more of a trip where no GPU drives the adapter: a thread of the CPU posts the sends of DeepEP. From Kimi-K2 on 128 and 256
B300 over EFA, two proxies: slower than alltoall at micro batch 1, faster at 4."""

_PASSES = {"all_gather": 1, "all_reduce": 2, "alltoall": 1}
"""Times that a byte passes a rank's links (nccl-tests' bus bandwidth), by operation of the measured tables."""
LEAST_MEASURED, MOST_MEASURED = 1 << 17, 8
"""Bytes and ranks at the edges of those tables; anything smaller is all latency."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that communicate: how many, and how many of them need no network to."""

    size: int
    inside: int
    islands: int = 1  # of NVLink among those, in a node whose bridges join only some of its GPUs

    @property
    def crosses(self) -> bool:
        return self.inside < self.size


class Links:
    """Collective times on one machine, in seconds. Bytes are those of the full (gathered, unreduced) tensor."""

    def __init__(self, rates: Rates) -> None:
        silicon = silicon_of(rates)
        self.domain = max(1, rates.nvlink_domain)
        self.node = max(1, rates.gpus_per_node)
        measured = rates.measured
        self.nvlink = rates.nvlink_bytes_per_s * silicon.nvlink
        self._tables: dict[str, Grid] = {}
        if self.domain == 1:
            self.nvlink = rates.node_bytes_per_s * 0.6  # PCIe through the host bridge, both ways
        elif name := measured_as(rates.product):
            self._tables = {o: grid for o in _PASSES if (grid := collectives(name, o))}
        share = FABRIC_SHARE.get(rates.fabric_kind, 0.8)
        self.gpu_driven = rates.fabric_kind in GPU_DRIVEN
        self._far = A2A_FAR.get(rates.fabric_kind, 0.9)
        self.fabric = measured.get("fabric_bus_bytes_per_s", rates.fabric_bytes_per_s * share)
        self.pcie = rates.node_bytes_per_s * 0.6
        # Where NVLink joins none of a node's GPUs, or some, they still reach each other, over PCIe.
        self.reach = max(self.domain, self.node)
        self._rate = rates.nvlink_bytes_per_s  # what the tables' shares are of
        # Bus bandwidth of a large gather inside a domain: what a machine file has in place of the tables', or of the model's.
        self.bus = self._rate * self._tables["all_gather"].at(1e12, MOST_MEASURED) if self._tables else self.nvlink
        if "nvlink_bus_bytes_per_s" in measured:
            faster = measured["nvlink_bus_bytes_per_s"] / self.bus
            self.nvlink, self._rate, self.bus = self.nvlink * faster, self._rate * faster, self.bus * faster

    def group(self, size: int, stride: int) -> Group:
        """`size` ranks, `stride` apart, in Megatron's rank order."""
        inside = size if size * stride <= self.reach else max(1, min(size, self.reach // stride))
        linked = min(inside, max(1, self.domain // stride)) if self.domain > 1 else inside
        return Group(size, inside, -(-inside // linked))

    def between(self, group: Group) -> float:
        """Bytes a second from one member to another that needs no network: over NVLink if that joins them all."""
        return self.nvlink if group.islands == 1 else self.pcie

    def _bus(self, group: Group, nvlink: float) -> float:
        """Bytes a second of rings through all members that need no network: an island is left over the PCIe of each of its GPUs."""
        if group.islands == 1:
            return nvlink
        return min(nvlink, group.inside / group.islands * self.pcie, SOCKET_LINK)

    def bandwidth(self, group: Group) -> float:
        """Bytes a second of a ring."""
        if not group.crosses:
            return self._bus(group, self.nvlink)
        return min(self._bus(group, self.bus), group.inside * self.fabric)

    def gather(self, moved: float, group: Group) -> float:
        """All-gather of `moved` bytes in all."""
        return self._collective("all_gather", moved, group)

    def scatter(self, moved: float, group: Group) -> float:
        """Reduce-scatter of `moved` bytes in all: as long as an all-gather."""
        return self._collective("all_gather", moved, group)

    def reduce(self, moved: float, group: Group) -> float:
        """All-reduce: a reduce-scatter and an all-gather in one launch."""
        return self._collective("all_reduce", moved, group)

    def broadcast(self, moved: float, group: Group, times: int) -> float:
        """`moved` bytes in all from `times` ranks to all others, one rank after the other: a ring that differs by channel has the next
        root wait for the last hop of the one before."""
        if group.size <= 1 or moved <= 0:
            return 0.0
        return moved / self.bandwidth(group) + times * group.size * BROADCAST_HOP

    def all_to_all(self, moved: float, group: Group) -> float:
        """Every rank sends `moved` bytes, spread evenly over the group (its own share stays)."""
        return self._collective("alltoall", moved, group)

    def dispatch(self, near: float, far: float, group: Group, most: float | None) -> float:
        """One trip of tokens to their experts that needs no NCCL: every rank sends `near` bytes, a token once to each rank that wants it,
        and of these `far` over the network, once to each domain. `most`: bytes a second that a rank takes in over NVLink, if anything but
        the links limits it."""
        n = group.size
        seconds = near * max((n - 1) / n / (self.between(group) * 0.85), 0.0 if most is None else 1.0 / most)
        if not group.crosses:
            return seconds + 15e-6
        domains = n / group.inside
        beyond = far * (domains - 1) / domains / (self.fabric * 0.97)
        return max(seconds, beyond) + (40e-6 if self.gpu_driven else PROXY_S)

    def _collective(self, operation: str, moved: float, group: Group) -> float:
        n = group.size
        if n <= 1 or moved <= 0:
            return 0.0
        model = {"all_gather": self._gather, "all_reduce": self._reduce, "alltoall": self._all_to_all}[operation]
        table = self._tables.get(operation)
        if group.crosses or table is None or group.islands > 1:
            return model(moved, group)
        # Measured up to the GPUs of a node; a larger domain by what the model has it longer.
        at = min(n, MOST_MEASURED)
        bus = self._rate * table.at(max(moved, LEAST_MEASURED), at)
        seconds = _PASSES[operation] * max(moved, LEAST_MEASURED) * (at - 1) / at / bus
        return seconds if at == n else seconds * model(moved, group) / model(moved, Group(at, at))

    def _gather(self, moved: float, group: Group) -> float:
        n = group.size
        wire = moved * (n - 1) / n / self.bandwidth(group)
        across = (n - 1) // group.inside if group.crosses else 0
        within = n - 1 - across
        # Long rings over the network are replaced by trees and by NCCL's hierarchical algorithms: latency grows
        # with the logarithm of the number of domains once that is shorter.
        across = min(across, 4 * max(1, (n // group.inside).bit_length()))
        within = min(within, 64)
        return min(base + within * near + across * far + wire / share for base, near, far, share in _PROTOCOLS)

    def _reduce(self, moved: float, group: Group) -> float:
        return 2.0 * self._gather(moved, group) - _PROTOCOLS[0][0]

    def _all_to_all(self, moved: float, group: Group) -> float:
        n = group.size
        linked = group.inside / group.islands
        near = moved * (linked - 1) / n / (self.nvlink * A2A_SHARE)
        if group.islands > 1:
            near = max(near, moved * (group.inside - linked) / n / (self.pcie * A2A_SHARE))
        far = moved * (n - group.inside) / n / (self.fabric * self._far) if group.crosses else 0.0
        return max(near, far) + 12e-6 + (10e-6 if group.crosses else 0.0)

    def send(self, moved: float, group: Group) -> float:
        """One message to a neighbour in a group."""
        if moved <= 0:
            return 0.0
        return moved / (self.fabric if group.crosses else self.between(group)) + (18e-6 if group.crosses else 10e-6)

"""What a probe found: GPUs, NICs, nodes, and the cluster they form. `None` means "not known", never zero.

Sizes in bytes, rates in bytes/s. JSON goes in and out through `cluster_to_json` and `cluster_from_json`
(the `hardware` object of `parlaunch.plan/1` and `parlaunch.probe/1`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from parlaunch.errors import ProbeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its node numbers it (by PCI address)."""

    index: int
    name: str  # as NVML gives it: "NVIDIA H100 80GB HBM3"
    uuid: str | None = None
    pci: str | None = None  # "0000:1b:00.0": lower case, four-digit domain (longer ones stay)
    memory_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    numa: int | None = None
    nvlink_domain: int | None = (
        None  # GPUs of one node with one number reach each other over NVLink; None: alone or unknown
    )
    nvlinks: int | None = None  # active links
    fabric_id: tuple[str, int] | None = None  # (cluster UUID, clique id): GPUs of several nodes in one NVLink domain
    cpus: tuple[int, ...] | None = None  # the CPUs of its NUMA node, as far as we may use them


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One port that could carry traffic to other nodes."""

    name: str  # "mlx5_0", "rdmap113s0", "eth0"
    kind: str  # infiniband | roce | efa | ethernet
    port: int | None = None
    pci: str | None = None
    numa: int | None = None
    netdev: str | None = None
    bytes_per_s: float | None = None  # one direction
    up: bool | None = None
    rail: bool = False  # carries GPU traffic
    why_not: str | None = None  # why it is not a rail
    distances: tuple[tuple[int, str], ...] = ()  # (gpu index, PIX|PXB|PHB|NODE|SYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One host."""

    hostname: str
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    # Number of NVLinks between two GPUs, by index, as far as known; switched GPUs have all their links to each peer.
    nvlinks: tuple[tuple[int, int, int], ...] = ()
    link_type: str | None = None  # nvswitch | nvswitch_mnnvl | mesh | cube_mesh | pairs | none
    cpu_model: str | None = None
    sockets: int | None = None
    cores: int | None = None
    cpus_allowed: tuple[int, ...] | None = None
    numa_nodes: int | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None
    virtual: str | None = None  # kvm, container, …
    gpudirect: bool | None = None
    switch: str | None = None  # SLURM_TOPOLOGY_ADDR, when known


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What joins the nodes."""

    kind: str  # infiniband | roce | efa | ethernet | none
    rails: int | None = None  # ports a node
    bytes_per_s_per_gpu: float | None = None  # one direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The nodes of one job, in rank order."""

    source: str  # probe | preset dgx-h100:2 | file NAME
    nodes: tuple[Node, ...]
    nvlink_domains: tuple[tuple[int, ...], ...] = ()  # groups of global GPU numbers, two and more
    fabric: Fabric = field(default_factory=lambda: Fabric(kind="none"))
    notes: tuple[str, ...] = ()

    @property
    def gpus_per_node(self) -> int:
        """GPUs that every node has."""
        return min((len(n.gpus) for n in self.nodes), default=0)

    @property
    def world_size(self) -> int:
        return self.gpus_per_node * len(self.nodes)

    @property
    def gpu(self) -> Gpu:
        """A GPU that stands for all: the first of the commonest model."""
        every = [g for n in self.nodes for g in n.gpus]
        if not every:
            raise ProbeError("no GPU here", hint="plan for another machine with --hardware, e.g. --hardware dgx-h100:2")
        common = Counter(g.name for g in every).most_common(1)[0][0]
        return next(g for g in every if g.name == common)

    @property
    def nvlink_domain_size(self) -> int:
        """GPUs that any block of consecutive ranks can count on reaching over NVLink; 1 when there is no NVLink."""
        if not self.nvlink_domains:
            return 1
        covered = sum(len(d) for d in self.nvlink_domains)
        return min(len(d) for d in self.nvlink_domains) if covered >= self.world_size else 1


def domains_of(nodes: tuple[Node, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups of two and more global GPU numbers that reach each other over NVLink: inside nodes by `nvlink_domain`,
    across nodes by `fabric_id`."""
    groups: dict[object, list[int]] = {}
    number = 0
    for at, node in enumerate(nodes):
        for gpu in node.gpus:
            if gpu.fabric_id is not None:
                groups.setdefault(gpu.fabric_id, []).append(number)
            elif gpu.nvlink_domain is not None:
                groups.setdefault((at, gpu.nvlink_domain), []).append(number)
            number += 1
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def cluster_to_json(cluster: Cluster) -> dict[str, Any]:
    """The `hardware` object: nodes with GPUs and NICs, domains, fabric, and what follows from them."""
    out: dict[str, Any] = _plain(cluster)
    for node in out["nodes"]:
        for gpu in node["gpus"]:
            capability = gpu["compute_capability"]
            gpu["compute_capability"] = None if capability is None else f"{capability[0]}.{capability[1]}"
    return out | {"gpus_per_node": cluster.gpus_per_node, "world_size": cluster.world_size}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _make(kind: type[Any], given: Mapping[str, Any], **known: Any) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{k: _tuples(v) for k, v in given.items() if k in names} | known)


def cluster_from_json(data: Mapping[str, Any], *, where: str = "hardware") -> Cluster:
    """The cluster that `cluster_to_json` wrote. Unknown fields are skipped; raises `ProbeError` naming `where`."""
    try:
        nodes = []
        for node in data["nodes"]:
            gpus = []
            for gpu in node.get("gpus", ()):
                text = gpu.get("compute_capability")
                capability = None if text is None else tuple(int(part) for part in str(text).split("."))
                gpus.append(_make(Gpu, gpu, compute_capability=capability))
            nics = tuple(_make(Nic, nic) for nic in node.get("nics", ()))
            nodes.append(_make(Node, node, gpus=tuple(gpus), nics=nics))
        fabric = _make(Fabric, data.get("fabric") or {"kind": "none"})
        made = _make(Cluster, data, nodes=tuple(nodes), fabric=fabric)
        assert isinstance(made, Cluster)
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProbeError(f"{where} is not a machine as parlaunch writes it: {error}") from error

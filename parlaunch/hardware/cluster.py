"""What a probe found: GPUs, NICs, nodes, and the cluster they form. `None` means "not known", never zero.

Sizes in bytes, rates in bytes/s. JSON goes in and out through `cluster_to_json` and `cluster_from_json`
(the `hardware` object of `parlaunch.plan/1` and `parlaunch.probe/1`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field, fields
from math import gcd
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.frozen import dataclass
from parlaunch.typed import fits, types

UNKNOWN = "unknown"  # a name or a kind that was not to be learnt: `null` in JSON

UNLIMITED = 2**64 - 1  # what the kernel calls RLIM_INFINITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its node numbers it (by PCI address). Nothing beyond `name` need be known."""

    index: int
    name: str  # as NVML gives it: "NVIDIA H100 80GB HBM3"; UNKNOWN where a file does not say
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
    error: str | None = None  # why it cannot be used ("GPU_IS_LOST"); such a GPU stands in `Node.gpus_unusable`
    sheet: str | None = None  # the product whose data sheet stands in for this GPU's own, as the user said
    minor: int | None = None  # /dev/nvidiaN
    serial: str | None = None
    numa_memory: int | None = None  # the NUMA node of its own memory (Grace), not of the CPU beside it
    memory_used_bytes: int | None = None  # by processes, without what the driver keeps
    memory_reserved_bytes: int | None = None
    processes: tuple[tuple[int, int | None], ...] | None = None  # (pid on the host, bytes)
    clock_sm_hz: int | None = None
    clock_sm_max_hz: int | None = None
    clock_sm_app_hz: int | None = None  # the application clock, where the card has one
    clock_memory_hz: int | None = None
    clock_memory_max_hz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None  # as enforced
    power_default_w: float | None = None
    power_max_w: float | None = None
    temperature_c: int | None = None
    throttle: int | None = None  # NVML's clocks event reasons, a mask
    pstate: int | None = None
    persistence: bool | None = None
    compute_mode: str | None = None  # default | exclusive_thread | prohibited | exclusive_process
    ecc: bool | None = None
    ecc_pending: bool | None = None  # after the next reset
    ecc_uncorrected: int | None = None  # since the driver was loaded
    ecc_sram_uncorrected: int | None = None
    remapped_rows: tuple[int, int, int, int] | None = None  # correctable, uncorrectable, pending, failed
    retired_pending: bool | None = None
    recovery_action: int | None = None  # 0 none, 1 reset, 2 reboot node, 3 drain P2P, 4 drain and reset
    mig: bool | None = None  # MIG mode is on
    mig_devices: tuple[tuple[str, str, int | None], ...] = ()  # (UUID, name, bytes)
    mig_instances: tuple[tuple[int, int], ...] = ()  # (GPU instance, compute instance) of each of them
    pcie_gen: int | None = None  # drops at idle
    pcie_gen_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    nvlinks_down: tuple[int, ...] | None = None  # links that it has and that are not active
    nvlinks_assumed: int | None = None  # of those to a switch, links whose far end is hidden and taken for one
    nvlinks_switch: int | None = None  # active links that end in an NVSwitch
    nvlinks_hidden: int | None = None  # active links whose far end we cannot see (another cgroup, a VM)
    nvlink_version: str | None = None  # "4.0"
    nvlink_bytes_per_s: float | None = None  # all active links, one direction
    nvlink_errors: int | None = None  # replays, recoveries and CRC errors of all links
    fabric_state: str | None = None  # not_supported | not_started | in_progress | completed
    fabric_status: int | None = None  # an NVML return code; means something when completed
    fabric_health: tuple[str, ...] = ()  # what the health mask says is wrong: degraded_bandwidth, ...
    fabric_summary: str | None = None  # healthy | unhealthy | limited_capacity
    fabric_cluster: str | None = None  # cluster UUID as read, an all-zero one too (one node only)
    fabric_clique: int | None = None
    vbios: str | None = None
    cores: int | None = None  # CUDA cores
    memory_bus_bits: int | None = None
    vgpu: bool | None = None  # a share of a GPU that a hypervisor gives to this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One port that could carry traffic to other nodes."""

    name: str  # "mlx5_0", "rdmap113s0", "eth0"
    kind: str  # infiniband | roce | efa | slingshot | omnipath | ethernet | UNKNOWN
    port: int | None = None
    pci: str | None = None
    numa: int | None = None
    netdev: str | None = None
    bytes_per_s: float | None = None  # one direction
    up: bool | None = None
    rail: bool = False  # carries GPU traffic
    why_not: str | None = None  # why it is not a rail
    distances: tuple[tuple[int, str], ...] = ()  # (gpu index, PIX|PXB|PHB|NODE|SYS)
    state: str | None = None  # ACTIVE, DOWN, INIT, ARMED; operstate of a plain interface
    physical_state: str | None = None  # LinkUp, Polling, Disabled, ...
    rate: str | None = None  # as the kernel prints it: "400 Gb/sec (4X NDR)"
    driver: str | None = None
    model: str | None = None  # MT4129, or vendor:device
    board: str | None = None
    firmware: str | None = None
    guid: str | None = None
    mtu: int | None = None
    virtual_function: bool | None = None
    bond: str | None = None  # the bond it belongs to, or is
    uverbs: bool | None = None  # /dev/infiniband/uverbsN is here: usable from this container
    errors: tuple[tuple[str, int], ...] = ()  # port counters above zero
    addresses: tuple[str, ...] = ()  # IP addresses of the interface
    pcie_width: int | None = None  # lanes in use
    pcie_width_max: int | None = None  # lanes of the card
    pcie_transfers_per_s: float | None = None  # of one lane: 32e9 for generation 5
    pcie_transfers_per_s_max: float | None = None
    card: str | None = None  # PCI address of function 0: ports and VFs of one card agree
    # It leads to the NVSwitches of its own board, which are managed through it, and to no other node.
    manages_switches: bool | None = None
    twin: str | None = (
        None  # the function that drives the same physical port (the first of them by name): one cable for both
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One host."""

    hostname: str
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    # Number of NVLinks between two GPUs, by `Gpu.index`, as far as known; switched GPUs have all their links to each peer.
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
    gpus_unusable: tuple[Gpu, ...] = ()  # seen, and not to be used: lost, unreadable; each with its `error`
    gpus_invisible: tuple[Gpu, ...] = ()  # healthy, and taken away by CUDA_VISIBLE_DEVICES
    # Healthy, and not planned for: of another model than the GPUs that are, or cut up by MIG.
    gpus_left_out: tuple[Gpu, ...] = ()
    gpus_pci: int | None = None  # NVIDIA GPUs on the PCI bus, whatever the driver says
    nvswitches_pci: int | None = None
    gpu_distances: tuple[tuple[int, int, str], ...] = ()  # (gpu index, gpu index, PIX|PXB|PHB|NODE|SYS)
    p2p_broken: tuple[tuple[int, int, str], ...] = ()  # pairs that cannot reach each other's memory, and why
    confidential: bool | None = None  # confidential computing is on: the GPU's memory is encrypted towards the host
    nvml_error: str | None = None  # why NVML could not be asked: "LIB_RM_VERSION_MISMATCH"
    nvml_version: str | None = None
    driver_kernel: str | None = None  # version of the loaded kernel module
    driver_open: bool | None = None  # the open kernel modules
    cuda_visible_devices: str | None = None  # the variable as it was set
    cuda_visible_notes: tuple[str, ...] = ()  # what is odd about it
    cuda_visible_exact: bool | None = None  # False: CUDA's order may differ from the one shown
    gpudirect_by: str | None = None  # nvidia_peermem | nv_peer_mem | dma-buf
    gdrcopy: bool | None = None
    imex_channels: int | None = None
    acs_redirects: tuple[str, ...] | None = (
        None  # bridges above GPUs or rails that send peer traffic up; None: unreadable
    )
    iommu: str | None = None  # off | passthrough | translating
    container: str | None = None  # docker | podman | kubernetes | apptainer | enroot | lxc
    kernel: str | None = None
    cpu_limit: float | None = None  # CPUs that the cgroup's quota allows
    memory_limit_bytes: int | None = None  # cgroup
    memory_available_bytes: int | None = None
    shm_bytes: int | None = None  # size of /dev/shm
    shm_free_bytes: int | None = None  # what is left in it
    memlock_bytes: int | None = None  # ulimit -l, soft; UNLIMITED when unlimited
    nofile: int | None = None  # ulimit -n, soft; UNLIMITED when unlimited
    huge_pages: int | None = None
    huge_page_bytes: int | None = None
    transparent_huge_pages: str | None = None  # always | madvise | never
    numa_cpus: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (NUMA node, its CPUs); memory-only nodes are not here
    default_netdev: str | None = None  # the interface of the default route
    hostname_loopback: bool | None = None  # /etc/hosts sends our own name to 127.x
    xids: tuple[tuple[int, str, int], ...] | None = None  # (Xid, PCI address, seconds ago); None: no kernel log to read
    # Of NVSwitches: (SXid, PCI address, seconds ago, fatal, what the driver says of it)
    sxids: tuple[tuple[int, str, int, bool, str], ...] | None = None
    clock_ahead_s: float | None = None  # against the clock of the first node that it met, as far as that is certain
    # (package, version or None for missing), as `parlaunch.hardware.installed` names them; None: nobody looked
    software: tuple[tuple[str, str | None], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What joins the nodes."""

    kind: str  # infiniband | roce | efa | slingshot | omnipath | ethernet | none | UNKNOWN
    rails: int | None = None  # ports a node; PCI functions of one port count each
    bytes_per_s_per_gpu: float | None = None  # one direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The nodes of one job, in rank order."""

    source: str  # probe | preset dgx-h100:2 | file NAME
    nodes: tuple[Node, ...]
    nvlink_domains: tuple[tuple[int, ...], ...] = ()  # groups of global GPU numbers, two and more
    fabric: Fabric = field(default_factory=lambda: Fabric(kind="none"))
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # numbers in here that nobody read off this machine or its data sheet

    @property
    def gpus_per_node(self) -> int:
        """GPUs that every node has."""
        return min((len(n.gpus) for n in self.nodes), default=0)

    @property
    def world_size(self) -> int:
        """GPUs that a plan may use: as many of each node as every node has."""
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
        """GPUs that any aligned block of consecutive ranks can count on reaching over NVLink; 1 when there is no NVLink.

        Domains of unequal size (a rack that is filled in part) share only blocks that end where each domain ends: 72
        and 8 GPUs give 8, 72 and 40 give 8 too."""
        if sum(len(d) for d in self.nvlink_domains) < self.world_size:
            return 1  # some GPU is in no domain
        return gcd(*(len(d) for d in self.nvlink_domains)) or 1


def domains_of(nodes: tuple[Node, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups of two and more global GPU numbers that reach each other over NVLink: inside nodes by `nvlink_domain`,
    across nodes by `fabric_id`. A node known to have no IMEX channel stays alone: CUDA refuses it its neighbours' memory."""
    groups: dict[object, list[int]] = {}
    number = 0
    for at, node in enumerate(nodes):
        for gpu in node.gpus:
            if gpu.fabric_id is not None:
                alone = at if node.imex_channels == 0 else None
                groups.setdefault((alone, gpu.fabric_id), []).append(number)
            elif gpu.nvlink_domain is not None:
                groups.setdefault((at, gpu.nvlink_domain), []).append(number)
            number += 1
    return tuple(tuple(g) for g in groups.values() if len(g) > 1)


GPU_LISTS = ("gpus", "gpus_unusable", "gpus_invisible", "gpus_left_out")  # fields of Node that hold GPUs
WORDS = ("name", "kind")  # never None in a value, `null` in JSON when not known


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        out = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return out | {word: None for word in WORDS if out.get(word) == UNKNOWN}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def cluster_to_json(cluster: Cluster) -> dict[str, Any]:
    """The `hardware` object: nodes with GPUs and NICs, domains, fabric, and what follows from them."""
    out: dict[str, Any] = _plain(cluster)
    for node in out["nodes"]:
        for gpu in (g for key in GPU_LISTS for g in node[key]):
            capability = gpu["compute_capability"]
            gpu["compute_capability"] = None if capability is None else f"{capability[0]}.{capability[1]}"
    return out | {"gpus_per_node": cluster.gpus_per_node, "world_size": cluster.world_size}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _make(kind: type[Any], given: Mapping[str, Any], **known: Any) -> Any:
    wanted = types(kind)
    made = {k: _tuples(v) for k, v in given.items() if k in wanted} | known
    made |= {word: UNKNOWN for word in WORDS if word in made and made[word] is None}
    for name, value in made.items():
        if not fits(wanted[name])(value):
            raise TypeError(f"{name} of a {kind.__name__} cannot be {value!r:.60}")
    return kind(**made)


def _gpu(given: Mapping[str, Any]) -> Any:
    text = given.get("compute_capability")
    capability = None if text is None else tuple(int(part) for part in str(text).split("."))
    return _make(Gpu, given, compute_capability=capability)


def cluster_from_json(data: Mapping[str, Any], *, where: str = "hardware") -> Cluster:
    """The cluster that `cluster_to_json` wrote. Unknown fields are skipped; raises `ProbeError` naming `where`."""
    try:
        nodes = []
        for node in data["nodes"]:
            gpus = {kind: tuple(map(_gpu, node.get(kind) or ())) for kind in GPU_LISTS}
            nics = tuple(_make(Nic, nic) for nic in node.get("nics", ()))
            nodes.append(_make(Node, node, nics=nics, **gpus))
        fabric = _make(Fabric, data.get("fabric") or {"kind": "none"})
        made = _make(Cluster, data, nodes=tuple(nodes), fabric=fabric)
        assert isinstance(made, Cluster)
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProbeError(f"{where} is not a machine as parlaunch writes it: {error}") from error

"""What can be wrong with the fabric and the host around the GPUs. Rows of the preflight catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from parlaunch.doctor.finding import FAIL, INFO, WARN, Inspection, Sight, Use
from parlaunch.hardware.cluster import UNKNOWN, Nic, Node
from parlaunch.hardware.datasheet import product
from parlaunch.hardware.ports import RDMA, VERBS, family_rate
from parlaunch.hardware.ports import port_name as _port
from parlaunch.units import few

FLAPS = 5  # times that a link may have gone down since the driver was loaded
SMALL_SHM = 1 << 30
FULL_SHM = 16 << 20  # NCCL's first segments are some 10 MiB each
SMALL_MEMLOCK = 1 << 30
FEW_FILES = 4096
LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")


def _twins(nic: Nic, rails: list[Nic]) -> bool:
    """A port on the same kind of card as the rails. Where every card has one port cabled, the other is meant to be dark."""
    if nic.bond is not None or nic.kind not in {r.kind for r in rails}:
        return False
    cabled = Counter(r.card for r in rails if r.up is not False)
    if nic.card is not None and cabled[nic.card] >= max(cabled.values(), default=0) > 0:
        return False
    known = [(r.model, r.board) for r in rails if r.model or r.board]
    if nic.model or nic.board:
        return (nic.model, nic.board) in known
    return nic.kind == "infiniband" and not known  # of a list without models


def _serves_a_gpu(nic: Nic, rails: list[Nic]) -> bool:
    """Under one PCIe switch with a GPU that has no rail there."""
    near = {g for g, level in nic.distances if level in ("PIX", "PXB")}
    served = {g for r in rails for g, level in r.distances if level in ("PIX", "PXB")}
    return nic.kind in RDMA and bool(near - served) and bool(served or not rails)


def _ports_down(node: Node, use: Use) -> Iterator[Sight]:
    rails = [n for n in node.nics if n.rail and n.kind in RDMA]
    dark = bool(rails) and all(n.up is False for n in rails)
    fastest = max((n.bytes_per_s or family_rate(n) or 0.0 for n in rails), default=0.0)
    for nic in node.nics:
        if (
            (nic.rail and not dark)
            or nic.up is not False
            or nic.kind not in RDMA
            or (nic.virtual_function and nic.card in {r.card for r in rails})
        ):
            continue
        # What could carry more than the rails, alone or together, is no spare: it is what the rails were meant to be.
        alike = sum(n.up is False and n.model == nic.model and n.kind == nic.kind for n in node.nics)
        could = family_rate(nic) or 0.0
        faster = len(node.gpus) > 1 and (could > fastest or (could == fastest > 0 and alike > len(rails)))
        meant = faster or _twins(nic, rails) or _serves_a_gpu(nic, rails) or not rails
        state = f"{nic.state or 'down'}" + (f", physically {nic.physical_state}" if nic.physical_state else "")
        # A node none of whose rails works is sick, whatever runs on it; one of several matters to jobs that leave the node.
        severity = FAIL if use.spans or (dark and nic.rail and not use.known) else WARN
        if nic.kind == "infiniband" and nic.state == "INIT":
            guid = ", its GUID is zero" if nic.guid is not None and not nic.guid.strip("0:") else ""
            yield (
                severity,
                f"{_port(nic)}: the link is up and waits (INIT){guid}",
                "no subnet manager answers: start opensm or ask for it; a virtual function needs a GUID from the host",
            )
        elif nic.rail:
            yield severity, f"{_port(nic)}: {state}; a rail, as all of its kind that are down"
        elif meant:
            beside = "its twins carry" if rails else "nothing else carries"
            yield severity, f"{_port(nic)}: {state}; {beside} the GPU traffic"
        else:
            yield INFO, f"{_port(nic)}: {state}; a spare or storage port"


def _port_rates(node: Node, use: Use) -> Iterator[Sight]:
    groups: dict[tuple[str | None, str | None], list[Nic]] = {}
    for nic in node.nics:
        if (
            nic.up
            and nic.kind in RDMA
            and nic.bytes_per_s
            and (nic.model or nic.board)
            and not nic.virtual_function
            and not nic.manages_switches
            and nic.bond is None
        ):
            groups.setdefault((nic.model, nic.board), []).append(nic)
    for nics in groups.values():
        usual = Counter(n.bytes_per_s or 0.0 for n in nics)
        want = max(usual, key=lambda r: (usual[r], r))
        for nic in nics:
            if (nic.bytes_per_s or 0.0) < want:
                yield (
                    FAIL if use.spans else WARN,
                    f"{_port(nic)}: {nic.rate or 'slower'} where cards of its model run at {want * 8 / 1e9:g} Gb/s",
                )
    for nic in node.nics:
        if (
            nic.up
            and nic.rate
            and "(1X" in nic.rate
            and nic.kind in VERBS
            and not nic.manages_switches
            and (nic.bytes_per_s or 0) >= 1e9
        ):
            yield WARN, f"{_port(nic)}: {nic.rate}: one lane only"


def _slow_all(node: Node, use: Use) -> Iterator[Sight]:
    """Rails that agree with each other, at a rate that their model is made to double."""
    found: dict[tuple[str | None, float], list[Nic]] = {}
    shared = _unified(node)  # the chip beside a GB10 carries 200 Gb/s, over the lanes that it is given
    for nic in node.nics:
        if (
            nic.rail
            and nic.up
            and nic.kind in VERBS
            and nic.bytes_per_s
            and not nic.virtual_function
            and nic.bond is None
            and not shared
        ):
            found.setdefault((nic.model, nic.bytes_per_s), []).append(nic)
    carried: dict[str, float] = {}
    for nic in node.nics:
        carried[nic.card or nic.name] = carried.get(nic.card or nic.name, 0.0) + (nic.bytes_per_s or 0.0) * (
            nic.up is True
        )
    for (model, rate), nics in found.items():
        could = family_rate(nics[0])
        if could is not None and all(carried[n.card or n.name] >= could for n in nics):
            continue  # split over the ports of the card
        if could is not None and rate <= 0.5 * could and sum(m == model for m, _ in found) == 1:
            names = few([_port(n) for n in nics], 4)
            yield (
                WARN if use.spans else INFO,
                f"{names}: {rate * 8 / 1e9:g} Gb/s, all of them; {model} can do {could * 8 / 1e9:g} Gb/s",
            )


def _slots(node: Node, use: Use) -> Iterator[Sight]:
    """Cards whose PCIe link is narrower than they are, or slower: against their twins where those are faster."""
    rails = [n for n in node.nics if n.rail and n.kind in RDMA and not n.virtual_function]
    for nic in rails:
        width, lanes = nic.pcie_width, nic.pcie_width_max
        now, could = nic.pcie_transfers_per_s, nic.pcie_transfers_per_s_max
        if width and lanes and width < lanes:
            yield WARN, f"{_port(nic)}: PCIe runs with {width} of {lanes} lanes"
        if now and could and now < could:
            twins = max((n.pcie_transfers_per_s or 0.0 for n in rails if n.model == nic.model), default=0.0)
            beside = ", those of its twins at more" if twins > now else ", as the slots of its twins"
            # A card may be of a later generation than the machine around it.
            yield (
                WARN if twins > now else INFO,
                f"{_port(nic)}: PCIe runs at {now / 1e9:g} of {could / 1e9:g} GT/s a lane{beside}",
            )


def _small_frames(node: Node, use: Use) -> Iterator[Sight]:
    small = [
        n
        for n in node.nics
        if n.rail and n.kind == "roce" and n.up is not False and n.mtu is not None and n.mtu <= 1500
    ]
    if small:
        sizes = ", ".join(str(m) for m in sorted({n.mtu for n in small if n.mtu is not None}))
        yield (
            WARN if use.spans else INFO,
            f"{len(small)} RoCE rails have an MTU of {sizes}: {', '.join(_port(n) for n in small[:4])}",
        )


def _flaps(node: Node, use: Use) -> Iterator[Sight]:
    for nic in node.nics:
        errors = dict(nic.errors)
        downs = errors.get("link_downed", 0)
        if nic.rail and downs > FLAPS:
            yield WARN, f"{_port(nic)}: the link went down {downs} times since the driver was loaded"
        others = {k: v for k, v in errors.items() if k != "link_downed"}
        if nic.rail and others:
            yield INFO, f"{_port(nic)}: " + ", ".join(f"{k} {v}" for k, v in others.items())


def _no_device_nodes(node: Node, use: Use) -> Iterator[Sight]:
    hidden = [n for n in node.nics if n.uverbs is False and n.kind in RDMA and n.up is not False]
    if hidden:
        yield (
            WARN if use.spans else INFO,
            f"{len(hidden)} RDMA ports of the host have no device node here: {', '.join(_port(n) for n in hidden[:4])}",
        )


GVNIC = ("gve", "gvnic")  # drivers of Google's interface, over which GPUDirect-TCPX goes


def _no_rdma(node: Node, use: Use) -> Iterator[Sight]:
    if any(n.rail and n.driver in GVNIC for n in node.nics):
        return  # `network-plugin` says it
    if use.spans and node.gpus and not any(n.rail and n.kind in (*RDMA, UNKNOWN) for n in node.nics):
        if not node.nics:
            return
        plain = [n.name for n in node.nics if n.rail]
        yield (
            WARN,
            f"no RDMA port carries traffic between nodes: {'Ethernet ' + ', '.join(plain) if plain else 'no port at all is up'}",
        )


def _plugin(node: Node, use: Use) -> Iterator[Sight]:
    providers = {"slingshot": "cxi", "omnipath": "psm2 or opx"}  # AWS's images have the plugin for EFA
    kinds = {n.kind for n in node.nics if n.rail}
    if any(n.rail and n.driver in GVNIC for n in node.nics) and node.gpus and (use.spans or not use.known):
        yield (
            INFO,
            "gVNIC: Google's NCCL plugin brings GPUDirect over it (TCPX on a3-highgpu, TCPXO on a3-megagpu)",
            "mount the plugin of Google's image and source its nccl-env-profile.sh before the launch",
        )
    for kind in sorted(kinds & providers.keys()):
        if use.spans or not use.known:
            yield INFO, f"{kind}: NCCL reaches it through libfabric only (FI_PROVIDER={providers[kind]})"


def _gpudirect(node: Node, use: Use) -> Iterator[Sight]:
    if node.gpudirect is False and any(n.rail and n.kind in RDMA for n in node.nics):
        yield WARN if use.spans else INFO, "neither nvidia_peermem nor dma-buf: NICs cannot reach GPU memory"


def _acs(node: Node, use: Use) -> Iterator[Sight]:
    if node.acs_redirects and node.virtual is None:
        shown = ", ".join(node.acs_redirects[:4]) + (" and more" if len(node.acs_redirects) > 4 else "")
        yield WARN, f"ACS redirects peer traffic on {len(node.acs_redirects)} PCIe bridges: {shown}"


def _iommu(node: Node, use: Use) -> Iterator[Sight]:
    if node.iommu == "translating" and node.virtual is None:
        yield WARN, "the IOMMU translates the addresses of GPUs or NICs"


def _unified(node: Node) -> bool:
    """CPU and GPU of this node are one module with one memory."""
    return any(sheet.unified_memory for g in node.gpus if (sheet := product(g.name)) is not None)


def _far_nics(node: Node, use: Use) -> Iterator[Sight]:
    rails = [n for n in node.nics if n.rail and n.kind in RDMA]
    levels = [level for n in rails for _, level in n.distances]
    coherent = _unified(node) or any(s.cpu for g in node.gpus if (s := product(g.name)) is not None)
    if levels and node.virtual is None and not coherent and not any(level in ("PIX", "PXB") for level in levels):
        best = min(levels, key=LEVELS.index)
        # Through one host bridge is how machines without PCIe switches are built; beyond it the way is long.
        yield INFO if best == "PHB" else WARN, f"no rail shares a PCIe switch with a GPU: the nearest is {best}"


def _memlock(node: Node, use: Use) -> Iterator[Sight]:
    if (
        node.memlock_bytes is not None
        and node.memlock_bytes < SMALL_MEMLOCK
        and any(n.rail and n.kind in RDMA for n in node.nics)
    ):
        # Registering the first buffer fails: for a job on several nodes there is no way around it.
        severity = FAIL if use.spans and use.known else WARN if use.spans else INFO
        yield severity, f"locked memory is limited to {node.memlock_bytes >> 10} KiB (ulimit -l)"


def _files(node: Node, use: Use) -> Iterator[Sight]:
    if node.nofile is not None and node.nofile < FEW_FILES:
        yield WARN if use.nodes > 8 else INFO, f"{node.nofile} open files a process (ulimit -n)"


def _shm(node: Node, use: Use) -> Iterator[Sight]:
    size, left = node.shm_bytes, node.shm_free_bytes
    if size is None or not node.gpus:
        return
    if left is not None and left < min(SMALL_SHM, size // 2):
        yield (
            FAIL if left < FULL_SHM else WARN,
            f"/dev/shm is full: {left >> 20} of {size >> 20} MiB are left",
            "look at what earlier jobs left there (ls -la /dev/shm) and remove it",
        )
    elif size < SMALL_SHM:
        yield WARN, f"/dev/shm holds {size >> 20} MiB"


def _cpus(node: Node, use: Use) -> Iterator[Sight]:
    ranks = use.ranks_per_node or len(node.gpus)
    have = min(len(node.cpus_allowed or ()) or 1 << 30, node.cpu_limit or 1 << 30)
    if ranks and (node.cpus_allowed is not None or node.cpu_limit is not None) and have < 2 * ranks:
        yield WARN, f"{have:g} CPUs for {ranks} ranks"


def _interface(node: Node, use: Use) -> Iterator[Sight]:
    if not use.spans:
        return
    named = next((n for n in node.nics if n.netdev == node.default_netdev or n.name == node.default_netdev), None)
    if node.default_netdev is not None and named is not None and named.up is False:
        yield WARN, f"the default route leaves by {node.default_netdev}, which is down"
    if node.default_netdev is not None and node.default_netdev.startswith(
        ("docker", "virbr", "br-", "veth", "tun", "tap")
    ):
        yield WARN, f"the default route leaves by {node.default_netdev}, which other nodes do not reach"


def _own_name(node: Node, use: Use) -> Iterator[Sight]:
    if node.hostname_loopback and use.spans:
        yield WARN, f"/etc/hosts sends {node.hostname} to the loopback"


HOST_INSPECTIONS: tuple[Inspection, ...] = (
    Inspection("port-down", _ports_down, "the GPUs behind it share other rails, or NCCL stops at its first collective", "check cable and switch port; ibstat shows the state", "Azure NHC; ibstat captures"),
    Inspection("port-rate", _port_rates, "a ring runs at the rate of its slowest rail", "reseat the cable; mlxlink shows why it trained down", "treydock/infiniband_exporter#26"),
    Inspection("port-rate-all", _slow_all, "the links to the switch trained down together, or cables and switch are of an older generation", "compare with what was bought: some boards of a model are sold at half its rate; else look at cables, splitters and switch ports", "data sheets of the network cards"),
    Inspection("nic-pcie", _slots, "the card cannot bring to the host what its port carries", "reseat the card or riser, look at the slot in the BIOS; compare with its twins", "Linux, sysfs-bus-pci"),
    Inspection("port-mtu", _small_frames, "RoCE then sends 1,024 bytes a packet, a quarter of what it could", "set the interface and the switch ports to an MTU of 9000 (4200 at least)", "NVIDIA, RoCE configuration"),
    Inspection("port-errors", _flaps, "every flap stalls or ends a job", "replace the cable or transceiver", "Azure NHC"),
    Inspection("rdma-device-nodes", _no_device_nodes, "NCCL says `No device found` and falls back to sockets", "start the container with --device /dev/infiniband (and IPC_LOCK)", "clustervision/trinity#219"),
    Inspection("no-rdma", _no_rdma, "gradients go over TCP: expect a fraction of the fabric's rate", "check the state of the ports, or use a partition with RDMA", "NCCL documentation"),
    Inspection("network-plugin", _plugin, "without the aws-ofi-nccl plugin NCCL takes TCP over the same ports", "have libnccl-net.so of aws-ofi-nccl on LD_LIBRARY_PATH in the container; NCCL_DEBUG=INFO then says `Using network AWS Libfabric`", "github.com/aws/aws-ofi-nccl; CSCS documentation, NCCL"),
    Inspection("gpudirect", _gpudirect, "every byte between nodes is copied through host memory", "sudo modprobe nvidia_peermem, or the open kernel modules with Linux 5.12 and later", "NVIDIA/nccl#1537"),
    Inspection("acs", _acs, "traffic between GPUs and NICs goes up to the CPU: slow, and NCCL has hung on it", "switch ACS off on these bridges in the BIOS, or with setpci as NCCL's guide shows", "NVIDIA/nccl#2079"),
    Inspection("iommu", _iommu, "peer traffic is translated at the root: slow, and a cause of `error 4, opcode ...` completions", "boot with iommu=pt", "NVIDIA/nccl#214"),
    Inspection("nic-distance", _far_nics, "GPUDirect crosses the CPU", "move the NICs under the GPUs' switches; NCCL_NET_GDR_LEVEL decides whether NCCL uses GPUDirect so far", "NVIDIA/nccl#1453"),
    Inspection("memlock", _memlock, "RDMA pins its buffers: ibv_reg_mr fails when the limit is reached", "ulimit -l unlimited; in Docker --ulimit memlock=-1, in Slurm PropagateResourceLimitsExcept=MEMLOCK", "NCCL documentation"),
    Inspection("open-files", _files, "every connection of NCCL and Gloo is a file", "ulimit -n 65536", "NVIDIA/Megatron-LM#877"),
    Inspection("shared-memory", _shm, "NCCL and the data loader's workers die with `Bus error` when it is full", "docker run --ipc=host or --shm-size=16g; in Kubernetes mount an emptyDir with medium Memory", "PyTorch documentation"),
    Inspection("cpus", _cpus, "a rank has a training thread, NCCL's proxy and data workers: they will wait for each other", "ask for more CPUs (--cpus-per-task), or lift the container's quota", "Slurm documentation"),
    Inspection("rendezvous-interface", _interface, "the nodes meet over this interface", "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME", "NVIDIA/nccl#929"),
    Inspection("own-name", _own_name, "Gloo binds to 127.0.0.1 and the other nodes do not find it", "set GLOO_SOCKET_IFNAME, or correct /etc/hosts", "vllm-project/vllm#7074"),
)  # fmt: skip

"""What can be wrong with the fabric and the host around the GPUs. Rows of the preflight catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from parlaunch.finding import FAIL, INFO, WARN, Check, Job, Sight
from parlaunch.machine import UNKNOWN, Nic, Node

RDMA = ("infiniband", "roce", "efa")
FLAPS = 5  # times that a link may have gone down since the driver was loaded
SMALL_SHM = 1 << 30
SMALL_MEMLOCK = 1 << 30
FEW_FILES = 4096
LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")


def _port(nic: Nic) -> str:
    return nic.name if nic.port is None else f"{nic.name}:{nic.port}"


def _twins(nic: Nic, rails: list[Nic]) -> bool:
    """A port on the same kind of card as the rails."""
    if nic.bond is not None or nic.kind not in {r.kind for r in rails}:
        return False
    known = [(r.model, r.board) for r in rails if r.model or r.board]
    if nic.model or nic.board:
        return (nic.model, nic.board) in known
    return False


def _serves_a_gpu(nic: Nic, node: Node, rails: list[Nic]) -> bool:
    """Under one PCIe switch with a GPU that has no rail there."""
    near = {g for g, level in nic.distances if level in ("PIX", "PXB")}
    served = {g for r in rails for g, level in r.distances if level in ("PIX", "PXB")}
    return nic.kind in RDMA and bool(near - served) and bool(served or not rails)


def _ports_down(node: Node, job: Job) -> Iterator[Sight]:
    rails = [n for n in node.nics if n.rail and n.kind in RDMA]
    for nic in node.nics:
        if (
            nic.rail
            or nic.up is not False
            or nic.kind not in RDMA
            or (nic.virtual_function and nic.card in {r.card for r in rails})
        ):
            continue
        meant = _twins(nic, rails) or _serves_a_gpu(nic, node, rails) or not rails
        state = f"{nic.state or 'down'}" + (f", physically {nic.physical_state}" if nic.physical_state else "")
        if nic.kind == "infiniband" and nic.state == "INIT":
            guid = ", its GUID is zero" if nic.guid is not None and not nic.guid.strip("0:") else ""
            yield (
                FAIL if job.spans else WARN,
                f"{_port(nic)}: the link is up and waits (INIT){guid}",
                "no subnet manager answers: start opensm or ask for it; a virtual function needs a GUID from the host",
            )
        elif meant:
            yield FAIL if job.spans else WARN, f"{_port(nic)}: {state}; its twins carry the GPU traffic"
        else:
            yield INFO, f"{_port(nic)}: {state}; a spare or storage port"


def _port_rates(node: Node, job: Job) -> Iterator[Sight]:
    groups: dict[tuple[str | None, str | None], list[Nic]] = {}
    for nic in node.nics:
        if (
            nic.up
            and nic.kind in RDMA
            and nic.bytes_per_s
            and (nic.model or nic.board)
            and not nic.virtual_function
            and nic.bond is None
        ):
            groups.setdefault((nic.model, nic.board), []).append(nic)
    for nics in groups.values():
        usual = Counter(n.bytes_per_s or 0.0 for n in nics)
        want = max(usual, key=lambda r: (usual[r], r))
        for nic in nics:
            if (nic.bytes_per_s or 0.0) < want:
                yield (
                    FAIL if job.spans else WARN,
                    f"{_port(nic)}: {nic.rate or 'slower'} where cards of its model run at {want * 8 / 1e9:g} Gb/s",
                )
    for nic in node.nics:
        if (
            nic.up
            and nic.rate
            and "(1X" in nic.rate
            and nic.kind in ("infiniband", "roce")
            and (nic.bytes_per_s or 0) >= 1e9
        ):
            yield WARN, f"{_port(nic)}: {nic.rate}: one lane only"


def _flaps(node: Node, job: Job) -> Iterator[Sight]:
    for nic in node.nics:
        errors = dict(nic.errors)
        downs = errors.get("link_downed", 0)
        if nic.rail and downs > FLAPS:
            yield WARN, f"{_port(nic)}: the link went down {downs} times since the driver was loaded"
        others = {k: v for k, v in errors.items() if k != "link_downed"}
        if nic.rail and others:
            yield INFO, f"{_port(nic)}: " + ", ".join(f"{k} {v}" for k, v in others.items())


def _no_device_nodes(node: Node, job: Job) -> Iterator[Sight]:
    hidden = [n for n in node.nics if n.uverbs is False and n.kind in RDMA and n.up is not False]
    if hidden:
        yield (
            WARN if job.spans else INFO,
            f"{len(hidden)} RDMA ports of the host have no device node here: {', '.join(_port(n) for n in hidden[:4])}",
        )


def _no_rdma(node: Node, job: Job) -> Iterator[Sight]:
    if job.spans and node.gpus and not any(n.rail and n.kind in (*RDMA, UNKNOWN) for n in node.nics):
        plain = [n.name for n in node.nics if n.rail]
        yield (
            WARN,
            f"no RDMA port carries traffic between nodes: {'Ethernet ' + ', '.join(plain) if plain else 'no port at all is up'}",
        )


def _gpudirect(node: Node, job: Job) -> Iterator[Sight]:
    if node.gpudirect is False and any(n.rail and n.kind in RDMA for n in node.nics):
        yield WARN if job.spans else INFO, "neither nvidia_peermem nor dma-buf: NICs cannot reach GPU memory"


def _acs(node: Node, job: Job) -> Iterator[Sight]:
    if node.acs_redirects and node.virtual is None:
        shown = ", ".join(node.acs_redirects[:4]) + (" and more" if len(node.acs_redirects) > 4 else "")
        yield WARN, f"ACS redirects peer traffic on {len(node.acs_redirects)} PCIe bridges: {shown}"


def _iommu(node: Node, job: Job) -> Iterator[Sight]:
    if node.iommu == "translating" and node.virtual is None:
        yield WARN, "the IOMMU translates the addresses of GPUs or NICs"


def _far_nics(node: Node, job: Job) -> Iterator[Sight]:
    rails = [n for n in node.nics if n.rail and n.kind in RDMA]
    levels = [level for n in rails for _, level in n.distances]
    coherent = any(word in g.name for g in node.gpus for word in ("GB200", "GB300", "GH200"))
    if levels and node.virtual is None and not coherent and not any(level in ("PIX", "PXB") for level in levels):
        best = min(levels, key=LEVELS.index)
        yield WARN, f"no rail shares a PCIe switch with a GPU: the nearest is {best}"


def _memlock(node: Node, job: Job) -> Iterator[Sight]:
    if (
        node.memlock_bytes is not None
        and node.memlock_bytes < SMALL_MEMLOCK
        and any(n.rail and n.kind in RDMA for n in node.nics)
    ):
        yield WARN if job.spans else INFO, f"locked memory is limited to {node.memlock_bytes >> 10} KiB (ulimit -l)"


def _files(node: Node, job: Job) -> Iterator[Sight]:
    if node.nofile is not None and node.nofile < FEW_FILES:
        yield WARN if job.nodes > 8 else INFO, f"{node.nofile} open files a process (ulimit -n)"


def _shm(node: Node, job: Job) -> Iterator[Sight]:
    if node.shm_bytes is not None and node.shm_bytes < SMALL_SHM and len(node.gpus) > 0:
        yield WARN, f"/dev/shm holds {node.shm_bytes >> 20} MiB"


def _cpus(node: Node, job: Job) -> Iterator[Sight]:
    ranks = job.ranks_per_node or len(node.gpus)
    have = min(len(node.cpus_allowed or ()) or 1 << 30, node.cpu_limit or 1 << 30)
    if ranks and (node.cpus_allowed is not None or node.cpu_limit is not None) and have < 2 * ranks:
        yield WARN, f"{have:g} CPUs for {ranks} ranks"


def _interface(node: Node, job: Job) -> Iterator[Sight]:
    if not job.spans:
        return
    named = next((n for n in node.nics if n.netdev == node.default_netdev or n.name == node.default_netdev), None)
    if node.default_netdev is not None and named is not None and named.up is False:
        yield WARN, f"the default route leaves by {node.default_netdev}, which is down"
    if node.default_netdev is not None and node.default_netdev.startswith(
        ("docker", "virbr", "br-", "veth", "tun", "tap")
    ):
        yield WARN, f"the default route leaves by {node.default_netdev}, which other nodes do not reach"


def _own_name(node: Node, job: Job) -> Iterator[Sight]:
    if node.hostname_loopback and job.spans:
        yield WARN, f"/etc/hosts sends {node.hostname} to the loopback"


HOST_CHECKS: tuple[Check, ...] = (
    Check("port-down", _ports_down, "the GPUs behind it share other rails, or NCCL stops at its first collective", "check cable and switch port; ibstat shows the state", "Azure NHC; ibstat captures"),
    Check("port-rate", _port_rates, "a ring runs at the rate of its slowest rail", "reseat the cable; mlxlink shows why it trained down", "treydock/infiniband_exporter#26"),
    Check("port-errors", _flaps, "every flap stalls or ends a job", "replace the cable or transceiver", "Azure NHC"),
    Check("rdma-device-nodes", _no_device_nodes, "NCCL says `No device found` and falls back to sockets", "start the container with --device /dev/infiniband (and IPC_LOCK)", "clustervision/trinity#219"),
    Check("no-rdma", _no_rdma, "gradients go over TCP: expect a fraction of the fabric's rate", "check the state of the ports, or use a partition with RDMA", "NCCL documentation"),
    Check("gpudirect", _gpudirect, "every byte between nodes is copied through host memory", "sudo modprobe nvidia_peermem, or the open kernel modules with Linux 5.12 and later", "NVIDIA/nccl#1537"),
    Check("acs", _acs, "traffic between GPUs and NICs goes up to the CPU: slow, and NCCL has hung on it", "switch ACS off on these bridges in the BIOS, or with setpci as NCCL's guide shows", "NVIDIA/nccl#2079"),
    Check("iommu", _iommu, "peer traffic is translated at the root: slow, and a cause of `error 4, opcode ...` completions", "boot with iommu=pt", "NVIDIA/nccl#214"),
    Check("nic-distance", _far_nics, "GPUDirect crosses the CPU", "move the NICs under the GPUs' switches; NCCL_NET_GDR_LEVEL decides whether NCCL uses GPUDirect so far", "NVIDIA/nccl#1453"),
    Check("memlock", _memlock, "RDMA pins its buffers: ibv_reg_mr fails when the limit is reached", "ulimit -l unlimited; in Docker --ulimit memlock=-1, in Slurm PropagateResourceLimitsExcept=MEMLOCK", "NCCL documentation"),
    Check("open-files", _files, "every connection of NCCL and Gloo is a file", "ulimit -n 65536", "NVIDIA/Megatron-LM#877"),
    Check("shared-memory", _shm, "NCCL and the data loader's workers die with `Bus error` when it is full", "docker run --ipc=host or --shm-size=16g; in Kubernetes mount an emptyDir with medium Memory", "PyTorch documentation"),
    Check("cpus", _cpus, "a rank has a training thread, NCCL's proxy and data workers: they will wait for each other", "ask for more CPUs (--cpus-per-task), or lift the container's quota", "Slurm documentation"),
    Check("rendezvous-interface", _interface, "the nodes meet over this interface", "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME", "NVIDIA/nccl#929"),
    Check("own-name", _own_name, "Gloo binds to 127.0.0.1 and the other nodes do not find it", "set GLOO_SOCKET_IFNAME, or correct /etc/hosts", "vllm-project/vllm#7074"),
)  # fmt: skip

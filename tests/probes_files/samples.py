"""Texts in the formats of other tools, written here for the tests: small, of machines that we made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection over the sockets
  NODE = Connection inside a NUMA node
  PHB  = Connection over a host bridge
  PXB  = Connection over several bridges
  PIX  = Connection over one bridge
"""
NVLINKS = "  NV#  = Connection over # NVLinks\n"


def matrix(
    gpus: int,
    between: Callable[[int, int], str],
    *,
    nics: Mapping[str, Sequence[str]] | None = None,
    affinity: Callable[[int], Sequence[str]] = lambda i: ("0-63", "0"),
    headings: Sequence[str] = ("CPU Affinity", "NUMA Affinity"),
    legend: str = LEGEND + NVLINKS,
    names: Mapping[str, str] | None = None,
    rows_of_nics: bool = True,
) -> str:
    """`nvidia-smi topo -m`: `between(i, j)` is the word for two GPUs, `nics` the words from each GPU to a NIC."""
    ports = nics or {}
    labels = [*(f"GPU{i}" for i in range(gpus)), *ports]
    lines = ["\t" + "\t".join([*labels, *headings])]
    for i in range(gpus):
        cells = [" X " if i == j else between(min(i, j), max(i, j)) for j in range(gpus)]
        lines.append("\t".join([f"GPU{i}", *cells, *(ports[p][i] for p in ports), *affinity(i)]))
    if rows_of_nics:
        for port, words in ports.items():
            others = [" X " if other == port else "SYS" for other in ports]
            lines.append("\t".join([port, *words, *others, "", ""]))
    text = "\n".join(lines) + "\n" + legend
    if names:
        text += "\nNIC Legend:\n\n" + "".join(f"  {label}: {name}\n" for label, name in names.items())
    return text


def smi_q(
    name: str,
    count: int,
    *,
    attached: int | None = None,
    memory: str = "81559 MiB",
    minors: Sequence[int] | None = None,
    fabric: Mapping[str, str] | None = None,
    mig: str = "Disabled",
    slices: int = 0,
    virtual: str = "None",
    peer: str | None = None,
) -> str:
    """`nvidia-smi -q` of `count` equal GPUs."""
    lines = ["", "==============NVSMI LOG==============", "", "Driver Version                            : 570.86.15"]
    lines += [
        "CUDA Version                              : 12.8",
        "",
        f"Attached GPUs                             : {attached or count}",
    ]

    def row(depth: int, key: str, value: str | None = None) -> None:
        lines.append("    " * depth + (key if value is None else f"{key:<{42 - 4 * depth}}: {value}"))

    for i in range(count):
        lines.append(f"GPU 00000000:{0x18 + i:02X}:00.0")
        row(1, "Product Name", name)
        row(1, "MIG Mode")
        row(2, "Current", mig)
        for n in range(slices):
            row(1, "MIG Device")
            row(2, "Index", str(n))
            row(2, "GPU Instance ID", str(n + 3))
            row(2, "Compute Instance ID", "0")
            row(2, "Device Attributes")
            row(3, "Shared")
            row(4, "Multiprocessor count", "14")
            row(2, "FB Memory Usage")
            row(3, "Total", "19968 MiB")
        row(1, "GPU UUID", f"GPU-{i:08x}-1111-2222-3333-444444444444")
        row(1, "Minor Number", str((minors or range(count))[i]))
        if peer:
            row(1, "Platform Info")
            row(2, "Peer Type", peer)
        row(1, "GPU Virtualization Mode")
        row(2, "Virtualization Mode", virtual)
        row(1, "FB Memory Usage")
        row(2, "Total", memory)
        row(2, "Reserved", "500 MiB")
        row(2, "Used", "3 MiB")
        row(1, "Fabric")
        for key, value in (fabric or {"State": "N/A", "Status": "N/A"}).items():
            row(2, key, value)
    return "\n".join(lines) + "\n"


def smi_xml(name: str, count: int, *, slices: int = 0, fabric: str = "N/A", cluster: str = "N/A") -> str:
    """`nvidia-smi -q -x` of `count` equal GPUs."""
    mig = "".join(
        f"<mig_device><index>{n}</index><gpu_instance_id>{n + 3}</gpu_instance_id><compute_instance_id>0</compute_instance_id>"
        "<device_attributes><shared><multiprocessor_count>14</multiprocessor_count></shared></device_attributes>"
        "<fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device>"
        for n in range(slices)
    )
    gpus = "".join(
        f'<gpu id="00000000:{0x18 + i:02X}:00.0"><product_name>{name}</product_name>'
        f"<mig_mode><current_mig>{'Enabled' if slices else 'Disabled'}</current_mig></mig_mode><mig_devices>{mig or 'None'}</mig_devices>"
        f"<uuid>GPU-{i:08x}-1111-2222-3333-444444444444</uuid><minor_number>{i}</minor_number>"
        f"<fabric><state>{fabric}</state><status>{'Success' if fabric == 'Completed' else 'N/A'}</status><cliqueId>7</cliqueId>"
        f"<clusterUuid>{cluster}</clusterUuid></fabric>"
        "<fb_memory_usage><total>81559 MiB</total><used>3 MiB</used></fb_memory_usage>"
        "<gpu_virtualization_mode><virtualization_mode>None</virtualization_mode></gpu_virtualization_mode></gpu>"
        for i in range(count)
    )
    return (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>'
        f"<driver_version>570.86.15</driver_version><cuda_version>12.8</cuda_version><attached_gpus>{count}</attached_gpus>"
        f"{gpus}</nvidia_smi_log>\n"
    )


def nccl(cpus: Sequence[tuple[int, str]], comment: str = "") -> str:
    """An NCCL topology: (NUMA node, what is below it) for each CPU."""
    head = f"<!--\n{comment}\n-->\n" if comment else ""
    return (
        head
        + '<system version="1">\n'
        + "".join(f'<cpu numaid="{n}" arch="x86_64">{inner}</cpu>\n' for n, inner in cpus)
        + "</system>\n"
    )


def nccl_gpu(bus: str, links: Sequence[tuple[str, int, str]] = (), device: str = "0x2330", index: int = 0) -> str:
    """A GPU of a dump with its NVLinks: (target, count, class of the target)."""
    inner = "".join(f'<nvlink target="{t}" count="{n}" tclass="{c}"/>' for t, n, c in links)
    return (
        f'<pci busid="{bus}" class="0x030200" vendor="0x10de" device="{device}" link_speed="32.0 GT/s PCIe" link_width="16">'
        f'<gpu dev="{index}" sm="90" rank="{index}" gdr="1">{inner}</gpu></pci>'
    )


def nccl_nic(bus: str, name: str, *, kind: str = "0x020700", vendor: str = "0x15b3", speed: int = 400000) -> str:
    """A network card with one port."""
    return (
        f'<pci busid="{bus}" class="{kind}" vendor="{vendor}" device="0x1021">'
        f'<nic><net name="{name}" dev="0" speed="{speed}" port="1" guid="0x1" gdr="1"/></nic></pci>'
    )


def nccl_switch(bus: str, inner: str) -> str:
    """A PCIe switch and what is below it."""
    return f'<pci busid="{bus}" class="0x060400">{inner}</pci>'


def hwloc(
    packages: Sequence[tuple[int, str]], infos: Mapping[str, str] | None = None, extra: str = "", version: str = "2.0"
) -> str:
    """An hwloc topology: (NUMA node, PCI objects below it) for each package."""
    facts = "".join(f'<info name="{k}" value="{v}"/>' for k, v in (infos or {}).items())
    body = ""
    for n, inner in packages:
        nodes, cpus = f"0x{1 << n:08x}", f"0x{0xFF << 8 * n % 24:08x}"
        if version == "1":  # NUMA nodes hold what belongs to them
            body += (
                f'<object type="NUMANode" os_index="{n}" cpuset="{cpus}" nodeset="{nodes}" local_memory="1073741824">'
                f'<object type="Socket" os_index="{n}" cpuset="{cpus}" nodeset="{nodes}"><info name="CPUModel" value="Test CPU"/>'
                f"</object>{inner}</object>"
            )
        else:
            body += (
                f'<object type="Package" os_index="{n}" cpuset="{cpus}" nodeset="{nodes}"><info name="CPUModel" value="Test CPU"/>'
                f'<object type="NUMANode" os_index="{n}" cpuset="{cpus}" nodeset="{nodes}" local_memory="1073741824"/>{inner}</object>'
            )
    every = f"0x{(1 << (max((n for n, _ in packages), default=0) + 1)) - 1:08x}"
    attribute = "" if version == "1" else f' version="{version}"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "hwloc.dtd">\n<topology{attribute}>'
        f'<object type="Machine" os_index="0" cpuset="0xffffffff" nodeset="{every}">{facts}{body}</object>{extra}</topology>\n'
    )


def hwloc_root(bus: str, inner: str) -> str:
    """A host bridge."""
    return f'<object type="Bridge" gp_index="{int(bus, 16) + 9000}" bridge_type="0-1" bridge_pci="0000:[{bus}-{bus}]">{inner}</object>'


def hwloc_switch(bus: str, inner: str) -> str:
    """A PCI bridge."""
    return (
        f'<object type="Bridge" bridge_type="1-1" bridge_pci="0000:[00-ff]" pci_busid="{bus}" '
        f'pci_type="0604 [1000:c030] [0000:0000] 00">{inner}</object>'
    )


def hwloc_device(bus: str, kind: str, ids: str, inner: str = "", gp: int = 0) -> str:
    """A PCI device of a class, with the OS devices on it."""
    return f'<object type="PCIDev" gp_index="{gp}" pci_busid="{bus}" pci_type="{kind} [{ids}] [0000:0000] a1">{inner}</object>'


def hwloc_os(name: str, infos: Mapping[str, str], gp: int = 0) -> str:
    """An OS device with its facts."""
    inner = "".join(f'<info name="{k}" value="{v}"/>' for k, v in infos.items())
    return f'<object type="OSDev" gp_index="{gp}" name="{name}" osdev_type="1">{inner}</object>'


def ibstat(ports: Sequence[tuple[str, str, str, str, int, str]]) -> str:
    """`ibstat`: (name, type, state, physical state, rate, link layer)."""
    return "".join(
        f"CA '{name}'\n\tCA type: {kind}\n\tNumber of ports: 1\n\tFirmware version: 28.36.1010\n\tNode GUID: 0x0001\n"
        f"\tPort 1:\n\t\tState: {state}\n\t\tPhysical state: {physical}\n\t\tRate: {rate}\n\t\tBase lid: 1\n\t\tLink layer: {layer}\n"
        for name, kind, state, physical, rate, layer in ports
    )


# ------------------------------------------------------------------------------------------ other tools

RDMA = """link mlx5_0/1 subnet_prefix fe80:0000:0000:0000 lid 13 sm_lid 1 lmc 0 state ACTIVE physical_state LINK_UP
link mlx5_1/1 subnet_prefix fe80:0000:0000:0000 lid 14 sm_lid 1 lmc 0 state ACTIVE physical_state LINK_UP
link mlx5_2/1 state DOWN physical_state DISABLED netdev ens3f1np1
link rxe0/1 state ACTIVE physical_state LINK_UP netdev eth0
"""
LSTOPO = """Machine (2015GB total)
  Package L#0
    NUMANode L#0 (P#0 1007GB)
    HostBridge
      PCIBridge
        PCI 01:00.0 (Ethernet)
          Net "eno1"
    HostBridge
      PCIBridge
        PCIBridge
          PCI 18:00.0 (InfiniBand)
            Net "ibp24s0"
            OpenFabrics "mlx5_0"
        PCIBridge
          PCI 1b:00.0 (3D)
            CoProc(CUDA) "cuda0"
            GPU(NVML) "nvml0"
  Package L#1
    NUMANode L#1 (P#1 1008GB)
    HostBridge
      PCIBridge
        PCIBridge
          PCI 9b:00.0 (3D)
            GPU(NVML) "nvml1"
    HostBridge
      PCI c3:00.0 (VGA)
"""
NODE = """NodeName={name} Arch=x86_64 CoresPerSocket=56
   CPUAlloc=0 CPUEfctv=224 CPUTot=224 CPULoad=0.10
   Gres={gres}
   RealMemory=2063000 AllocMem=0 Sockets=2 Boards=1
   State={state} ThreadsPerCore=2 TmpDisk=0
"""
GRAPH = """=== System : maxBw 48.0 totalBw 370.8 ===
CPU/0-0 (1/2/-1)
+ SYS[16.0] - CPU/0-1
+ PCI[48.0] - PCI/0-1a000 (104c823200000000)
              + PCI[48.0] - NIC/0-18000
                            + NET[50.0] - NET/0-0 (0/d4f9fc0003ae6d94/1/50.000000)
              + PCI[48.0] - GPU/0-1b000 (0)
                            + NVL[{width}] - {far}
CPU/0-1 (1/2/-1)
+ PCI[48.0] - GPU/0-9b000 (1)
              + NVL[{width}] - {back}
=========================================="""


def nccl_log(host: str, graph: str = "", *more: str) -> str:
    lines = [
        "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.1<0>",
        "ncclCommInitRank comm 0x55d9 rank 0 nranks 4 cudaDev 0 nvmlDev 0 busId 1b000 commId 0xd8 - Init START",
        "ncclCommInitRank comm 0x55d9 rank 1 nranks 4 cudaDev 1 nvmlDev 1 busId 9b000 commId 0xd8 - Init START",
        "comm 0x1 rank 0 nRanks 4 nNodes 2 localRanks 2 localRank 0 MNNVL 0",
        *more,
        *graph.splitlines(),
    ]
    return "\n".join(f"{host}:100:200 [0] NCCL INFO {line}" for line in lines)

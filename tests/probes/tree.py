"""Synthetic file systems: a `Tree` puts PCI devices, verbs ports and interfaces under a root as the kernel lays them
out, with relative links; `dgx_h100`, `gb200_tray`, ... are whole machines that go with the fake NVML's."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

BDF = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
BRIDGE, GPU, ETHERNET_CARD, IB_CARD, NVSWITCH = "0x060400", "0x030200", "0x020000", "0x020700", "0x068000"
NVIDIA, MELLANOX, AMAZON, INTEL, CRAY = "0x10de", "0x15b3", "0x1d0f", "0x8086", "0x17db"


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "sys/class/infiniband").mkdir(parents=True, exist_ok=True)

    def put(self, path: str, value: object) -> None:
        at = self.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            at.write_bytes(value)
        else:
            at.write_text(f"{value}\n")

    def link(self, path: str, target: str) -> None:
        """Relative, as the kernel makes them, so that the tree can be moved."""
        at = self.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        if not at.is_symlink():
            at.symlink_to(os.path.relpath(self.root / target, os.path.realpath(at.parent)))

    def pci(
        self,
        chain: str,
        numa: int,
        driver: str | None = None,
        kind: str = BRIDGE,
        vendor: str = INTEL,
        device: str = "0x1234",
    ) -> str:
        """A device at the end of a chain (`pci0000:00/0000:00:02.0/...`); every new address on the way is a bridge."""
        path = "sys/devices"
        for part in chain.split("/"):
            path += f"/{part}"
            if not BDF.match(part) or (self.root / path / "numa_node").exists():
                continue
            last = path.endswith(chain)
            self.put(f"{path}/numa_node", numa)
            self.put(f"{path}/class", kind if last else BRIDGE)
            self.put(f"{path}/vendor", vendor if last else INTEL)
            self.put(f"{path}/device", device if last else "0x352a")
            self.link(f"sys/bus/pci/devices/{part}", path)
            if last and driver:
                (self.root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True, exist_ok=True)
                self.link(f"{path}/driver", f"sys/bus/pci/drivers/{driver}")
        return path

    def gpu(self, chain: str, numa: int, device: str = "0x2330", driver: str | None = "nvidia", kind: str = GPU) -> str:
        return self.pci(chain, numa, driver, kind, NVIDIA, device)

    def verbs(
        self,
        name: str,
        pci: str,
        *,
        port: int = 1,
        state: str = "4: ACTIVE",
        phys: str = "5: LinkUp",
        rate: str = "400 Gb/sec (4X NDR)",
        layer: str = "InfiniBand",
        netdev: str | None = None,
        model: str = "MT4129",
        board: str = "MT_0000000838",
        node: bool = True,
        **counters: int,
    ) -> None:
        at = f"{pci}/infiniband/{name}"
        for key, value in (("state", state), ("phys_state", phys), ("rate", rate), ("link_layer", layer)):
            self.put(f"{at}/ports/{port}/{key}", value)
        for counter in ("link_downed", "symbol_error", "port_rcv_errors"):
            self.put(f"{at}/ports/{port}/counters/{counter}", counters.get(counter, 0))
        self.put(f"{at}/hca_type", model)
        self.put(f"{at}/board_id", board)
        self.put(f"{at}/fw_ver", "28.39.1002")
        self.put(f"{at}/node_guid", "9803:9b03:0012:3456")
        self.link(f"{at}/device", pci)
        self.link(f"sys/class/infiniband/{name}", at)
        number = len(list((self.root / "sys/class/infiniband").iterdir())) - 1
        self.put(f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)
        if node:
            self.put(f"dev/infiniband/uverbs{number}", "")
        if netdev:
            self.put(f"{at}/ports/{port}/gid_attrs/ndevs/0", netdev)
            self.net(netdev, pci)

    def net(
        self,
        name: str,
        pci: str | None = None,
        *,
        state: str = "up",
        speed: int | None = 100000,
        kind: int = 1,
        **files: object,
    ) -> None:
        at = f"{pci}/net/{name}" if pci else f"sys/devices/virtual/net/{name}"
        self.put(f"{at}/operstate", state)
        self.put(f"{at}/type", kind)
        self.put(f"{at}/mtu", 1500)
        if speed is not None:
            self.put(f"{at}/speed", speed)
        if pci:
            self.link(f"{at}/device", pci)
        for key, value in files.items():
            self.put(f"{at}/{key.replace('__', '/')}", value)
        self.link(f"sys/class/net/{name}", at)

    def group(self, pci: str, number: int, kind: str) -> None:
        """Put a device into an IOMMU group."""
        self.put(f"sys/kernel/iommu_groups/{number}/type", kind)
        self.link(f"{pci}/iommu_group", f"sys/kernel/iommu_groups/{number}")

    def host(
        self,
        name: str = "node1",
        *,
        cpu: str = "Intel(R) Xeon(R) Platinum 8480C",
        sockets: int = 2,
        cores: int = 56,
        memory_gib: int = 2048,
        guest: bool = False,
        memlock: str = "unlimited",
        allowed: str | None = None,
    ) -> None:
        """What every Linux host says about itself."""
        threads = sockets * cores
        text = []
        for socket in range(sockets):
            for core in range(cores):
                text += [f"processor\t: {socket * cores + core}", f"model name\t: {cpu}", f"physical id\t: {socket}"]
                text += [f"core id\t\t: {core}", "flags\t\t: fpu vme" + (" hypervisor" if guest else ""), ""]
            cpus = f"{socket * cores}-{socket * cores + cores - 1}"
            self.put(f"sys/devices/system/node/node{socket}/cpulist", cpus)
        self.put("proc/cpuinfo", "\n".join(text))
        self.put(
            "proc/meminfo",
            f"MemTotal: {memory_gib << 20} kB\nMemAvailable: {(memory_gib - 32) << 20} kB\nHugePages_Total: 0\nHugepagesize: 2048 kB",
        )
        self.put("proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t{allowed or f'0-{threads - 1}'}")
        self.put(
            "proc/self/limits",
            f"Limit Soft Hard Units\nMax locked memory         {memlock}  {memlock}  bytes\nMax open files            1048576              1048576              files",
        )
        self.put("proc/self/cgroup", "0::/user.slice/user-1000.slice/session-3.scope")
        self.put("proc/mounts", "tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0")
        self.put("proc/sys/kernel/hostname", name)
        self.put("proc/sys/kernel/osrelease", "5.15.0-1057-generic")
        self.put(
            "proc/modules",
            "nvidia_peermem 16384 0 - Live 0x0\nnvidia 56000000 800 - Live 0x0\nib_core 440000 5 - Live 0x0",
        )
        self.put(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neno1\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0",
        )
        self.put("etc/hosts", f"127.0.0.1 localhost\n10.0.0.1 {name}")
        self.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        self.put("dev/null", "")
        self.net("lo", state="unknown", speed=None, kind=772)

    def driver(self, version: str, *, open_modules: bool = True) -> None:
        words = "NVIDIA UNIX Open Kernel Module for x86_64" if open_modules else "NVIDIA UNIX x86_64 Kernel Module"
        self.put("proc/driver/nvidia/version", f"NVRM version: {words}  {version}  Release Build\nGCC version:  gcc 12")
        self.put("sys/module/nvidia/version", version)


def acs_config(bits: int) -> bytes:
    """A config space with an ACS capability behind another one, its control word set to `bits`."""
    config = bytearray(4096)
    struct.pack_into("<I", config, 0x100, 0x0001 | 2 << 16 | 0x150 << 20)
    struct.pack_into("<I", config, 0x150, 0x000D | 1 << 16)
    struct.pack_into("<HH", config, 0x154, 0x1F, bits)
    return bytes(config)


# ---------------------------------------------------------------------- whole machines

H100_BUSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")


def dgx_h100(root: Path, *, nics: int = 8, readable_config: bool = True) -> Tree:
    """Eight GPUs, each under a switch of its own with one NDR port; two storage ports, BMC Ethernet, four NVSwitches."""
    t = Tree(root)
    t.host("dgx01")
    t.driver("550.90.07")
    for at, bus in enumerate(H100_BUSES):
        numa, number = at // 4, int(bus, 16)
        base = f"pci0000:{number - 3:02x}/0000:{number - 3:02x}:01.0/0000:{number - 2:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 1:02x}:00.0/0000:{bus}:00.0", numa)
        if at < nics:
            card = t.pci(
                f"{base}/0000:{number - 1:02x}:01.0/0000:{number + 1:02x}:00.0",
                numa,
                "mlx5_core",
                IB_CARD,
                MELLANOX,
                "0x1021",
            )
            t.verbs(f"mlx5_{at if at < 4 else at + 2}", card)
        if readable_config:
            for bridge in (
                f"{number - 3:02x}:01.0",
                f"{number - 2:02x}:00.0",
                f"{number - 1:02x}:00.0",
                f"{number - 1:02x}:01.0",
            ):
                if (t.root / f"sys/bus/pci/devices/0000:{bridge}").exists():
                    t.put(f"sys/bus/pci/devices/0000:{bridge}/config", acs_config(0))
    for at, bus in enumerate(("29", "aa")):
        card = t.pci(
            f"pci0000:{bus}/0000:{bus}:01.0/0000:{int(bus, 16) + 1:02x}:00.0",
            at,
            "mlx5_core",
            IB_CARD,
            MELLANOX,
            "0x1021",
        )
        t.verbs(f"mlx5_{4 + at}", card, board="MT_0000000834")
    for bus in ("05", "06", "07", "08"):
        t.pci(
            f"pci0000:02/0000:02:01.0/0000:03:00.0/0000:04:{bus}.0/0000:{bus}:00.0",
            0,
            "nvidia",
            NVSWITCH,
            NVIDIA,
            "0x22a3",
        )
    eno = t.pci("pci0000:00/0000:00:1c.0/0000:0a:00.0", 0, "i40e", ETHERNET_CARD)
    t.net("eno1", eno, speed=10000)
    t.net("docker0", state="down", speed=None, bridge__bridge_id="8000")
    t.group("sys/devices/pci0000:18/0000:18:01.0/0000:19:00.0/0000:1a:00.0/0000:1b:00.0", 1, "identity")
    return t


def a100_pairs(root: Path) -> Tree:
    """Four PCIe cards, two a socket, each behind its own root port; one dual-port RoCE card in a bond."""
    t = Tree(root)
    t.host("pcie-a100", cpu="AMD EPYC 7543 32-Core Processor", cores=32, memory_gib=512, memlock="65536")
    t.driver("535.161.08", open_modules=False)
    t.put("proc/modules", "nvidia 56000000 800 - Live 0x0\nib_core 440000 5 - Live 0x0")
    for at, bus in enumerate(("17", "31", "b1", "ca")):
        number = int(bus, 16)
        t.gpu(f"pci0000:{number - 1:02x}/0000:{number - 1:02x}:01.0/0000:{bus}:00.0", at // 2, "0x20b5")
    for function in (0, 1):
        card = t.pci(
            f"pci0000:60/0000:60:01.0/0000:61:00.{function}", 0, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x1017"
        )
        t.verbs(
            f"mlx5_{function}",
            card,
            rate="100 Gb/sec (4X EDR)",
            layer="Ethernet",
            netdev=f"ens1f{function}np{function}",
            model="MT4119",
            board="MT_0000000012",
        )
    return t


def gb200(root: Path, *, channel: bool = True) -> Tree:
    """A tray of four GPUs that hang off their CPUs, each CPU with two ConnectX-7 of its own."""
    t = Tree(root)
    t.host("tray07", memory_gib=960, sockets=2, cores=72)
    t.put(
        "proc/cpuinfo", "\n".join(f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n" for n in range(144))
    )
    t.put("sys/devices/system/cpu/online", "0-143")
    for n in range(144):
        t.put(f"sys/devices/system/cpu/cpu{n}/topology/physical_package_id", n // 72)
        t.put(f"sys/devices/system/cpu/cpu{n}/topology/core_id", n)
    for node in (2, 10, 18, 26):
        t.put(f"sys/devices/system/node/node{node}/cpulist", "")
    t.driver("580.65.06")
    for at, domain in enumerate(("0008", "0009", "0018", "0019")):
        t.gpu(f"pci{domain}:00/{domain}:00:00.0/{domain}:01:00.0", at // 2, "0x2941")
    for at, domain in enumerate(("0000", "0002", "0010", "0012")):
        card = t.pci(
            f"pci{domain}:00/{domain}:00:00.0/{domain}:01:00.0", at // 2, "mlx5_core", IB_CARD, MELLANOX, "0x1021"
        )
        t.verbs(f"mlx5_{at}", card)
    if channel:
        t.put("dev/nvidia-caps-imex-channels/channel0", "")
    return t


def l40s(root: Path) -> Tree:
    """Four cards, two behind each of two switches, one RoCE port behind the first; a BMC interface."""
    t = Tree(root)
    t.host("l40s-3", cpu="AMD EPYC 9354 32-Core Processor", cores=32, memory_gib=768)
    t.driver("550.90.07")
    for at, (root_bus, bus) in enumerate((("38", "3a"), ("38", "3d"), ("a4", "a6"), ("a4", "a9"))):
        up = int(root_bus, 16) + 1
        t.gpu(f"pci0000:{root_bus}/0000:{root_bus}:01.0/0000:{up:02x}:0{at}.0/0000:{bus}:00.0", at // 2, "0x26b9")
    card = t.pci("pci0000:38/0000:38:01.0/0000:39:08.0/0000:3f:00.0", 0, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101d")
    t.verbs(
        "mlx5_0",
        card,
        rate="100 Gb/sec (2X HDR)",
        layer="Ethernet",
        netdev="ens3np0",
        model="MT4125",
        board="MT_0000000359",
    )
    eno = t.pci("pci0000:00/0000:00:1c.0/0000:0a:00.0", 0, "igb", ETHERNET_CARD)
    t.net("eno1", eno, speed=1000)
    return t


def aws_p5(root: Path) -> Tree:
    """A virtual machine: eight GPUs, four EFA devices beside each, everything flat but for the switches it shows."""
    t = Tree(root)
    t.host("ip-10-0-0-7", cpu="AMD EPYC 7R13 Processor", cores=48, guest=True)
    t.put("sys/class/dmi/id/sys_vendor", "Amazon EC2")
    t.put("sys/class/dmi/id/product_name", "p5.48xlarge")
    t.driver("550.90.07")
    t.put("proc/modules", "nvidia 56000000 800 - Live 0x0\nefa 90112 0 - Live 0x0")
    for at, bus in enumerate(H100_BUSES):
        number = int(bus, 16)
        base = f"pci0000:{number - 9:02x}/0000:{number - 9:02x}:00.0/0000:{number - 8:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 7:02x}:05.0/0000:{bus}:00.0", at // 4)
        for nic in range(4):
            chain = f"{base}/0000:{number - 7:02x}:0{nic}.0/0000:{number - 6 + nic:02x}:00.0"
            card = t.pci(chain, at // 4, "efa", ETHERNET_CARD, AMAZON, "0xefa1")
            t.verbs(
                f"rdmap{number - 6 + nic}s0", card, rate="100 Gb/sec (4X EDR)", layer="Unspecified", model="", board=""
            )
    ena = t.pci("pci0000:00/0000:00:05.0", 0, "ena", ETHERNET_CARD, AMAZON, "0xec20")
    t.net("eno1", ena, speed=-1)
    return t


def h100_vm(root: Path) -> Tree:
    """A virtual machine with everything flat on one bus: GPUs, eight virtual functions of InfiniBand, virtio."""
    t = Tree(root)
    t.host("vm-17", cpu="Intel Xeon Processor (SapphireRapids)", sockets=1, cores=160, memory_gib=1800, guest=True)
    t.put("sys/class/dmi/id/sys_vendor", "QEMU")
    t.driver("535.183.01")
    for at in range(8):
        t.gpu(f"pci0000:00/0000:00:{4 + at:02x}.0", -1)
        card = t.pci(f"pci0000:00/0000:00:{16 + at:02x}.0", -1, "mlx5_core", IB_CARD, MELLANOX, "0x101e")
        t.verbs(f"mlx5_{at}", card, model="MT4126", board="MT_0000000838")
    eno = t.pci("pci0000:00/0000:00:03.0", -1, "virtio-pci", ETHERNET_CARD)
    t.put(f"{eno}/virtio1/x", "")
    t.net("eno1", f"{eno}/virtio1", speed=-1)
    return t


def cloud(root: Path, vendor: str, product: str, driver: str) -> tuple[Tree, list[tuple[int, str, int]]]:
    """A virtual machine with eight GPUs, and for each (NUMA node, the switch port beside it, a bus number there)."""
    t = Tree(root)
    t.host("vm-0", guest=True)
    t.put("sys/class/dmi/id/sys_vendor", vendor)
    t.put("sys/class/dmi/id/product_name", product)
    t.driver(driver)
    beside = []
    for at, bus in enumerate(H100_BUSES):
        number = int(bus, 16)
        base = f"pci0000:{number - 9:02x}/0000:{number - 9:02x}:00.0/0000:{number - 8:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 7:02x}:05.0/0000:{bus}:00.0", at // 4)
        beside.append((at // 4, f"{base}/0000:{number - 7:02x}:00.0", number - 6))
    return t, beside


def azure(root: Path) -> Tree:
    """Virtual functions of InfiniBand ports, each with IP over it, and a RoCE function for the accelerated network."""
    t, beside = cloud(root, "Microsoft Corporation", "Virtual Machine", "550.90.07")
    for at, (numa, _, _) in enumerate(beside):
        chain = f"pci0{at + 0x101:03x}:00/0{at + 0x101:03x}:00:00.0"  # a PCI domain of its own for each
        card = t.pci(chain, numa, "mlx5_core", IB_CARD, MELLANOX, "0x101e")
        t.verbs(f"mlx5_ib{at}", card, model="MT4126", netdev=f"ib{at}")
        t.net(f"ib{at}", card, kind=32, speed=400000)
    card = t.pci("pci9999:00/9999:00:02.0", 0, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101a")
    t.verbs("mlx5_an0", card, layer="Ethernet", model="MT4121", rate="100 Gb/sec (4X EDR)", netdev="enP39321s1")
    t.net("eth0", speed=100000)
    return t


def aws_p6(root: Path) -> Tree:
    """One EFA device of the third generation for each GPU, and the host's interface."""
    t, beside = cloud(root, "Amazon EC2", "p6-b200.48xlarge", "570.124.06")
    for numa, chain, bus in beside:
        card = t.pci(f"{chain}/0000:{bus:02x}:00.0", numa, "efa", ETHERNET_CARD, AMAZON, "0xefa3")
        t.verbs(f"rdmap{bus}s0", card, layer="Unspecified", model="", board="")
    t.net("ens5", t.pci("pci0000:00/0000:00:05.0", 0, "ena", ETHERNET_CARD, AMAZON, "0xec20"), speed=-1)
    return t


def two_ports_each(root: Path) -> Tree:
    """Two RoCE ports of 200 Gb/s beside each GPU, each with a virtual function for a pod, and one port for the host; bare metal."""
    t = Tree(root)
    t.host("oci-0")
    t.driver("550.90.07")
    for at, bus in enumerate(H100_BUSES):
        numa, number = at // 4, int(bus, 16)
        base = f"pci0000:{number - 3:02x}/0000:{number - 3:02x}:01.0/0000:{number - 2:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 1:02x}:00.0/0000:{bus}:00.0", numa)
        below, rate = f"{base}/0000:{number - 1:02x}:01.0/0000:{number + 1:02x}", "200 Gb/sec (4X HDR)"
        for port in (0, 1):
            n = 2 * at + port
            card = t.pci(f"{below}:00.{port}", numa, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x1021")
            t.verbs(f"mlx5_{n}", card, layer="Ethernet", netdev=f"rdma{n}", rate=rate)
            guest = t.pci(f"{below}:0{port}.2", numa, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101e")
            t.link(f"{guest}/physfn", card)
            t.verbs(f"mlx5_{40 + n}", guest, layer="Ethernet", model="MT4126", rate=rate, netdev=f"rdma{n}v0")
    card = t.pci("pci0000:00/0000:00:1c.0/0000:0a:00.0", 0, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101d")
    t.verbs("mlx5_30", card, layer="Ethernet", netdev="eth0", model="MT4125", rate="100 Gb/sec (4X EDR)")
    return t


def hgx_b200(
    root: Path,
    *,
    rails: int = 8,
    up: bool = True,
    model: str = "MT4129",
    rate: str = "400 Gb/sec (4X NDR)",
    vpd: bool = False,
) -> Tree:
    """Eight GPUs with an InfiniBand port each, and the four ConnectX-7 functions through which the NVSwitches are managed,
    one lane each. `vpd`: as root reads it, with the card's vital product data."""
    t = Tree(root)
    t.host("hgx-b200", cpu="Intel(R) Xeon(R) Platinum 8570")
    t.driver("570.124.06" if model == "MT4129" else "580.95.05")
    ids = {"MT4129": "0x1021", "MT4131": "0x1023"}
    for at, bus in enumerate(H100_BUSES):
        number = int(bus, 16)
        base = f"pci0000:{number - 3:02x}/0000:{number - 3:02x}:01.0/0000:{number - 2:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 1:02x}:00.0/0000:{bus}:00.0", at // 4, "0x2901")
        if at < rails:
            chain = f"{base}/0000:{number - 1:02x}:01.0/0000:{number + 1:02x}:00.0"
            card = t.pci(chain, at // 4, "mlx5_core", IB_CARD, MELLANOX, ids[model])
            state, phys = ("4: ACTIVE", "5: LinkUp") if up else ("1: DOWN", "3: Disabled")
            name = f"mlx5_{at if at < 2 else at + 4}"
            t.verbs(name, card, model=model, rate=rate if up else "10 Gb/sec (4X SDR)", state=state, phys=phys)
            t.put(f"{card}/infiniband/mlx5_{at if at < 2 else at + 4}/sys_image_guid", f"9803:9b03:0000:00{bus}")
    for function in range(4):
        card = t.pci(f"pci0000:70/0000:70:01.0/0000:71:00.{function}", 0, "mlx5_core", IB_CARD, MELLANOX, "0x1021")
        t.verbs(f"mlx5_{2 + function}", card, rate="100 Gb/sec (1X NDR)", board="MT_0000001232")
        t.put(f"{card}/infiniband/mlx5_{2 + function}/sys_image_guid", "9803:9b03:0000:0071")
        if vpd:
            t.put(f"{card}/vpd", b"\x82\x0a\x00ConnectX-7\x90\x0d\x00V2\x0aSMDL=SW_MNG\x78")
    eno = t.pci("pci0000:00/0000:00:1c.0/0000:0a:00.0", 0, "i40e", ETHERNET_CARD)
    t.net("eno1", eno, speed=10000)
    return t


def slingshot(root: Path) -> Tree:
    """Four GPUs, four Slingshot adapters of 200 Gb/s, one beside each, and the 1 Gb/s interface of the node's management."""
    t = Tree(root)
    t.host("nid001", cpu="AMD EPYC 7763 64-Core Processor", sockets=1, cores=64, memory_gib=256)
    t.driver("550.54.15", open_modules=False)
    for at, (root_bus, gpu, port) in enumerate(
        (("00", "01", "03"), ("40", "41", "42"), ("80", "81", "82"), ("c0", "c1", "c2"))
    ):
        t.gpu(f"pci0000:{root_bus}/0000:{root_bus}:03.1/0000:{gpu}:00.0", 0, "0x20b0")
        chain = f"pci0000:{root_bus}/0000:{root_bus}:01.1/0000:{port}:00.0"
        card = t.pci(chain, 0, "cxi_ss1", ETHERNET_CARD, CRAY, "0x0501")
        t.net(f"hsn{at}", card, speed=200000)
    nmn = t.pci("pci0000:c0/0000:c0:05.1/0000:c3:00.0", 0, "igb", ETHERNET_CARD)
    t.net("nmn0", nmn, speed=1000)
    return t


def one_roce(root: Path) -> Tree:
    """Eight B200 without rails of their own: one 400 Gb/s RoCE port, and the functions that manage the NVSwitches."""
    t = hgx_b200(root, rails=0)
    card = t.pci("pci0000:e0/0000:e0:01.0/0000:e1:00.0", 1, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x1021")
    t.verbs("mlx5_20", card, layer="Ethernet", netdev="ens9f0np0")
    return t


def custom_a100(root: Path) -> Tree:
    """Four GPUs of a custom product, a 100 Gb/s InfiniBand port (two lanes) under each one's root port."""
    t = Tree(root)
    t.host("lrdn0001", cpu="Intel(R) Xeon(R) Platinum 8358", sockets=1, cores=32, memory_gib=512)
    t.driver("550.54.15", open_modules=False)
    for at, (root_bus, gpu) in enumerate((("00", "01"), ("40", "41"), ("80", "81"), ("c0", "c1"))):
        t.gpu(f"pci0000:{root_bus}/0000:{root_bus}:01.0/0000:{gpu}:00.0", 0, "0x20b3")
        chain = f"pci0000:{root_bus}/0000:{root_bus}:02.0/0000:{int(root_bus, 16) + 2:02x}:00.0"
        card = t.pci(chain, 0, "mlx5_core", IB_CARD, MELLANOX, "0x101b")
        t.verbs(f"mlx5_{at}", card, model="MT4123", rate="100 Gb/sec (2X HDR)")
    return t


def thor(root: Path) -> Tree:
    """A board of its own: CPU and GPU on one chip, a USB network card, Wi-Fi, and a 1 Gb/s port."""
    t = Tree(root)
    t.host("thor", cpu="Cortex-A78AE", sockets=1, cores=14, memory_gib=122)
    t.put("proc/modules", "nvgpu 3000000 1 - Live 0x0")
    eth = t.pci("pci0000:01/0000:01:00.0", 0, "r8168", ETHERNET_CARD, "0x10ec")
    t.net("enP1p1s0", eth, speed=1000)
    wifi = t.pci("pci0001:01/0001:01:00.0", 0, "rtw89", "0x028000", "0x10ec")
    t.net("wlP1p1s0", wifi, speed=None)
    t.put(f"{wifi}/net/wlP1p1s0/wireless/status", "0x0")
    t.net("usb0", state="down", speed=None)
    return t


def google(root: Path, *, rdma: bool) -> Tree:
    """A virtual machine of Google's: two host interfaces, and for the GPUs RoCE functions named after them (a3-ultragpu)
    or plain gVNICs (a3-highgpu, GPUDirect-TCPX)."""
    t = Tree(root)
    t.host("a3-0", cpu="INTEL(R) XEON(R) PLATINUM 8481C", cores=52, guest=True)
    t.put("sys/class/dmi/id/sys_vendor", "Google")
    t.put("sys/class/dmi/id/product_name", "Google Compute Engine")
    t.driver("550.90.07")
    for at, bus in enumerate(H100_BUSES):
        number = int(bus, 16)
        base = f"pci0000:{number - 9:02x}/0000:{number - 9:02x}:00.0/0000:{number - 8:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 7:02x}:05.0/0000:{bus}:00.0", at // 4)
        chain = f"{base}/0000:{number - 7:02x}:00.0/0000:{number - 6:02x}:00.0"
        if rdma:
            card = t.pci(chain, at // 4, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101e")
            t.verbs(f"mlx5_{at}", card, layer="Ethernet", netdev=f"gpu{at}rdma0", model="MT4126")
        elif at % 2 == 0:
            t.net(f"eth{1 + at // 2}", t.pci(chain, at // 4, "gvnic", ETHERNET_CARD, "0x1ae0", "0x0042"), speed=200000)
    host = t.pci("pci0000:00/0000:00:0c.0", 0, "gvnic", ETHERNET_CARD, "0x1ae0", "0x0042")
    t.net("eth0", host, speed=200000)
    t.put(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0",
    )
    return t


def wsl2(root: Path) -> Tree:
    """Linux on Windows: no PCI device of the GPUs, one virtual interface."""
    t = Tree(root)
    t.host(
        "DESKTOP-1", cpu="AMD Ryzen Threadripper PRO 5975WX 32-Cores", sockets=1, cores=32, memory_gib=64, guest=True
    )
    t.put("proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2")
    t.put("proc/modules", "")
    t.put("dev/dxg", "")
    t.net("eth0", state="up", speed=10000)
    t.put(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0",
    )
    return t


def omnipath(root: Path) -> Tree:
    """Four PCIe cards, and one Omni-Path adapter, which calls its link layer InfiniBand."""
    t = a100_pairs(root)
    card = t.pci("pci0000:a0/0000:a0:01.0/0000:a1:00.0", 1, "hfi1", "0x020800", INTEL, "0x24f0")
    t.verbs("hfi1_0", card, model="", board="Omni-Path", rate="100 Gb/sec (4X EDR)")
    for function in (0, 1):
        t.put(f"sys/class/infiniband/mlx5_{function}/ports/1/state", "1: DOWN")
    return t


def guest(root: Path) -> Tree:
    """A KVM guest whose GPUs are shares of a card."""
    t = Tree(root)
    t.host("guest-3", cpu="AMD EPYC 9354 32-Core Processor", sockets=1, cores=16, memory_gib=128, guest=True)
    t.put("sys/class/dmi/id/sys_vendor", "QEMU")
    t.driver("550.90.07")
    for bus in ("3a", "3d", "a6", "a9"):
        t.gpu(f"pci0000:00/0000:00:{bus[0]}2.0/0000:{bus}:00.0", -1, "0x26b9")
    t.net("eth0", t.pci("pci0000:00/0000:00:03.0", -1, "virtio-pci", ETHERNET_CARD), speed=-1)
    return t


def spark(root: Path, cabled: tuple[int, ...] = (1,)) -> Tree:
    """GB10: one ConnectX-7 wired to the CPU twice, so that each of its two ports is a function of both; one port cabled."""
    t = Tree(root)
    t.host("spark-01", cpu="Cortex-X925", sockets=1, cores=20, memory_gib=120)
    t.driver("580.95.05")
    t.gpu("pci000f:00/000f:00:00.0/000f:01:00.0", 0, "0x2e12", kind="0x030000")
    for domain, name in (("0000", "p1s0"), ("0002", "P2p1s0")):
        for function in (0, 1):
            chain = f"pci{domain}:00/{domain}:00:00.0/{domain}:01:00.{function}"
            card = t.pci(chain, 0, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x1021")
            state, phys, rate = (
                ("4: ACTIVE", "5: LinkUp", "200 Gb/sec (4X HDR)")
                if function in cabled
                else ("1: DOWN", "3: Disabled", "40 Gb/sec (4X QDR)")
            )
            netdev = f"en{name}f{function}np{function}"
            verbs = f"roce{name}f{function}"
            t.verbs(verbs, card, layer="Ethernet", netdev=netdev, state=state, phys=phys, rate=rate)
            t.put(f"{card}/infiniband/roce{name}f{function}/sys_image_guid", "4cbb:4703:0000:0001")
    eth = t.pci("pci0007:00/0007:00:00.0/0007:01:00.0", 0, "r8127", ETHERNET_CARD, "0x10ec")
    t.net("enP7s7", eth, speed=1000)
    return t


def eight_bonds(root: Path) -> Tree:
    """Eight GPUs, each beside a bond of two RoCE ports, whose virtual functions are kept for guests."""
    t = Tree(root)
    t.host("h20-07", cpu="INTEL(R) XEON(R) PLATINUM 8575C", cores=48)
    t.driver("550.144.03")
    for at, bus in enumerate(H100_BUSES):
        number = int(bus, 16)
        base = f"pci0000:{number - 3:02x}/0000:{number - 3:02x}:01.0/0000:{number - 2:02x}:00.0"
        t.gpu(f"{base}/0000:{number - 1:02x}:00.0/0000:{bus}:00.0", at // 4, "0x2329")
        chain = f"{base}/0000:{number - 1:02x}:01.0/0000:{number + 1:02x}:00"
        card = t.pci(f"{chain}.0", at // 4, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x1021")
        t.verbs(f"mlx5_bond_{at}", card, layer="Ethernet", netdev=f"bond{at}")
        t.put(f"sys/class/net/bond{at}/bonding/mode", "802.3ad 4")
        guest = t.pci(f"{chain}.2", at // 4, "mlx5_core", ETHERNET_CARD, MELLANOX, "0x101e")
        t.link(f"{guest}/physfn", card)
        t.verbs(f"mlx5_{at}", guest, layer="Ethernet", model="MT4126", board="", rate="400 Gb/sec (4X NDR)")
    return t


def desktop(root: Path) -> Tree:
    """Two cards under the CPU's own root ports, one 10 Gb/s interface."""
    t = Tree(root)
    t.host(
        "tower",
        cpu="AMD Ryzen Threadripper PRO 5975WX 32-Cores",
        sockets=1,
        cores=32,
        memory_gib=256,
        memlock="8388608",
    )
    t.driver("560.35.03")
    t.put("proc/modules", "nvidia 56000000 800 - Live 0x0")
    for root_bus, bus in (("00", "01"), ("40", "41")):
        t.gpu(f"pci0000:{root_bus}/0000:{root_bus}:01.1/0000:{bus}:00.0", 0, "0x2684", kind="0x030000")
    eno = t.pci("pci0000:60/0000:60:01.0/0000:61:00.0", 0, "atlantic", ETHERNET_CARD)
    t.net("eno1", eno, speed=10000)
    return t


def container(root: Path) -> Tree:
    """One socket of a DGX H100 in a container that was given one GPU and no /dev/infiniband."""
    t = dgx_h100(root)
    t.put(
        "proc/self/cgroup",
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1234567890ab.slice/cri-containerd-00ff00ff00ff00ff.scope",
    )
    t.put("proc/mounts", "shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k 0 0")
    t.put("proc/sys/kernel/hostname", "train-worker-0")
    t.put("etc/hosts", "127.0.0.1 localhost\n10.244.1.9 train-worker-0")
    for node in (t.root / "dev/infiniband").iterdir():
        node.unlink()
    t.put("sys/fs/cgroup/memory.max", 256 << 30)
    t.put("sys/fs/cgroup/cpu.max", "1600000 100000")
    return t

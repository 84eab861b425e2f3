"""The PCI tree: who sits below which bridge, how far two devices are apart, and what the bridges do to peer traffic."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence

from parlaunch.frozen import dataclass
from parlaunch_probes.host import Host
from parlaunch_probes.text import pci_address

DEVICES = "/sys/bus/pci/devices"
NVIDIA = 0x10DE
_BDF = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
_ROOT = re.compile(r"^pci[0-9a-f]{4,8}:[0-9a-f]{2}$")
REDIRECTS = 0x4 | 0x8  # ACS: P2P request redirect, P2P completion redirect


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device sits: its host bridge, the bridges above it and itself, outermost first."""

    root: str
    chain: tuple[str, ...]

    @property
    def address(self) -> str:
        return self.chain[-1]


def place(host: Host, path: str) -> Place | None:
    """The place of a device by a path or link to it. A function of it further down (virtio2, net/eth0) will do."""
    real = host.real(path)
    if real is None:
        return None
    parts = real.split("/")
    root = next((p for p in parts if _ROOT.match(p)), None)
    chain = tuple(p for p in parts if _BDF.match(p))
    return Place(root, chain) if root and chain else None


def place_of(host: Host, address: str | None) -> Place | None:
    """Where a PCI address sits; None without an address."""
    return None if address is None else place(host, f"{DEVICES}/{address}")


def numa_of(host: Host, address: str | None) -> int | None:
    """The NUMA node of a device; None where the firmware does not say (-1)."""
    node = None if address is None else host.number(f"{DEVICES}/{address}/numa_node")
    return None if node is None or node < 0 else node


def distance(a: Place | None, b: Place | None, numa_a: int | None, numa_b: int | None, *, vm: bool) -> str | None:
    """nvidia-smi's word for the way between two devices: PIX at most one switch, PXB several, PHB through the host
    bridge, NODE another host bridge of the NUMA node, SYS another node; None when it cannot be known."""
    if a is None or b is None:
        return None
    if a.root != b.root:
        if numa_a is not None and numa_b is not None:
            return "NODE" if numa_a == numa_b else "SYS"
        return None if vm else "SYS"
    common = 0
    while common < min(len(a.chain), len(b.chain)) and a.chain[common] == b.chain[common]:
        common += 1
    if common == 0:
        if vm and numa_a is None and numa_b is None:
            return None  # a virtual machine puts everything flat on one bus: that says nothing about the hardware
        return "PHB"
    # Below the last shared bridge, a downstream port and the device are one switch.
    return "PIX" if max(len(a.chain), len(b.chain)) - common <= 2 else "PXB"


@dataclass(frozen=True, slots=True)
class Device:
    """An entry of the PCI bus that may matter to us."""

    address: str
    vendor: int
    device: int
    kind: int  # class code, three bytes
    driver: str | None


def nvidia_devices(host: Host) -> tuple[Device, ...]:
    """NVIDIA's GPUs, NVSwitches and bridges on the bus, by address."""
    found = []
    for address in host.names(DEVICES):
        at = f"{DEVICES}/{address}"
        if host.number(f"{at}/vendor") != NVIDIA:
            continue
        device, kind = host.number(f"{at}/device"), host.number(f"{at}/class")
        if device is None or kind is None or pci_address(address) is None:
            continue
        driver = host.real(f"{at}/driver")
        found.append(Device(address, NVIDIA, device, kind, driver.rpartition("/")[2] if driver else None))
    return tuple(found)


def is_gpu(device: Device) -> bool:
    """3D controllers (data-centre cards) and VGA controllers (cards with a display)."""
    return device.kind >> 8 in (0x0302, 0x0300)


def is_nvswitch(device: Device) -> bool:
    """NVSwitches are bridges of the class "other"."""
    return device.kind >> 8 == 0x0680


def _acs_control(config: bytes) -> int | str:
    """The ACS control word of a config space: 0 without the capability, "short" when we were shown 64 bytes only."""
    if len(config) <= 0x100:
        return "short"
    at, seen = 0x100, set()
    while 0x100 <= at <= len(config) - 8 and at not in seen:
        seen.add(at)
        (head,) = struct.unpack_from("<I", config, at)
        if head & 0xFFFF == 0x000D:
            (control,) = struct.unpack_from("<H", config, at + 6)
            return int(control)
        at = head >> 20
    return 0


def acs_redirects(host: Host, devices: Iterable[Place], peers: Sequence[Place]) -> tuple[str, ...] | None:
    """Bridges between one of `devices` (GPUs) and another of `peers` (GPUs and rails) that send peer traffic up to the
    root, so that it crosses the IOMMU. None when a config space cannot be read, as for anyone but root."""
    between: set[str] = set()
    for a in devices:
        for b in peers:
            if a.root != b.root or a.chain == b.chain:
                continue
            common = 0
            while common < min(len(a.chain), len(b.chain)) and a.chain[common] == b.chain[common]:
                common += 1
            between |= {*a.chain[common:-1], *b.chain[common:-1]}
    found, unread = [], False
    for bridge in sorted(between):
        control = host.digest(f"{DEVICES}/{bridge}/config", "acs control", _acs_control)
        if not isinstance(control, int):
            unread = True
        elif control & REDIRECTS:
            found.append(bridge)
    return None if unread and not found else tuple(found)


def iommu(host: Host, addresses: Iterable[str]) -> str | None:
    """off, passthrough or translating, for these devices; None when the kernel does not say."""
    if not host.exists("/sys/kernel/iommu_groups"):
        return None
    kinds = set()
    for address in addresses:
        group = host.real(f"{DEVICES}/{address}/iommu_group")
        if group is not None:
            kinds.add(host.read(f"/sys/kernel/iommu_groups/{group.rpartition('/')[2]}/type"))
    if not kinds:
        return "off" if not host.names("/sys/kernel/iommu_groups") else None
    if kinds <= {"identity"}:
        return "passthrough"
    return None if None in kinds else "translating"

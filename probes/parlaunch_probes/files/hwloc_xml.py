"""hwloc's XML (`lstopo file.xml`), versions 1, 2 and 3: PCI tree, OS devices, and the NVLinkBandwidth matrix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from parlaunch.data import load
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.datasheet import preset_of, product
from parlaunch_probes import pci
from parlaunch_probes.files.clean import whole
from parlaunch_probes.files.conclude import by_device
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

PORT_STATES = {"1": "DOWN", "2": "INIT", "3": "ARMED", "4": "ACTIVE", "5": "ACTIVE_DEFER"}  # enum ibv_port_state
WHAT = "hwloc XML"
_TYPE = re.compile(r"([0-9a-f]{4}) \[([0-9a-f]{4}):([0-9a-f]{4})\]")


@dataclass(frozen=True, slots=True)
class _Device:
    """A PCI device with what hangs on it."""

    bus: str
    kind: str  # class, four hex digits
    vendor: str
    device: str
    place: pci.Place
    numa: int | None
    element: Element


def find(root: Element) -> Facts | None:
    """The machine of a topology; None when the root is another format's."""
    if root.tag != "topology" or root.find("object") is None:
        return None
    facts = Facts(WHAT)
    cpu_nodes = _cpu_nodes(root)
    devices = list(_devices(root, cpu_nodes))
    _host(root, facts, devices)
    gpus = sorted((d for d in devices if d.vendor == "10de" and d.kind in ("0302", "0300")), key=lambda d: d.bus)
    places = {i: (d.place, d.numa) for i, d in enumerate(gpus)}
    facts.gpus = [_gpu(i, d) for i, d in enumerate(gpus)]
    switches = [
        d for d in devices if (d.vendor == "10de" and d.kind == "0680") or d.element.get("subtype") == "NVSwitch"
    ]
    if switches:
        facts.node["nvswitches_pci"] = len(switches)
        facts.switched = True
    for device in devices:
        facts.nics += _nics(device, places)
    facts.nics = _plain_last(facts.nics)
    _bandwidths(root, gpus, switches, facts)
    if not facts.gpus:
        facts.notes.append(
            "no PCI devices in this file" if not devices else "no NVIDIA GPU among the PCI devices of this file"
        )
    return facts


def _bits(mask: str | None) -> frozenset[int]:
    """The numbers in hwloc's bitmaps: "0x0000ffff,0xffffffff", words of 32 bits, highest first."""
    found: set[int] = set()
    words = (mask or "").split(",")
    if len(words) > 512:
        return frozenset()
    for at, word in enumerate(reversed(words)):
        try:
            value = int(word.strip() or "0", 16) & 0xFFFFFFFF
        except ValueError:
            continue
        found |= {at * 32 + bit for bit in range(32) if value >> bit & 1}
    return frozenset(found)


def _cpu_nodes(root: Element) -> frozenset[int]:
    """NUMA nodes that have CPUs; those of GPU memory have none."""
    nodes = [o for o in root.iter("object") if o.get("type") in ("NUMANode", "Node")]
    return frozenset(n for o in nodes if (n := whole(o.get("os_index"))) is not None and _bits(o.get("cpuset")))


def _devices(root: Element, cpu_nodes: frozenset[int]) -> Iterator[_Device]:
    # (element, host bridge, bridges above, nodes of the nearest object that has any)
    stack: list[tuple[Element, str | None, tuple[str, ...], frozenset[int]]] = [(root, None, (), frozenset())]
    while stack:
        element, bridge, chain, nodes = stack.pop()
        kind = element.get("type")
        own = _bits(element.get("nodeset")) & cpu_nodes
        if kind == "NUMANode" and (index := whole(element.get("os_index"))) in cpu_nodes:
            own = frozenset({index}) if index is not None else own
        nodes = own or nodes
        bus = pci_address(element.get("pci_busid"))
        if kind == "Bridge" and (element.get("bridge_type") or "").startswith("0-"):
            bridge, chain = f"bridge {element.get('bridge_pci')} {element.get('gp_index')}", ()
        elif kind in ("Bridge", "PCIDev") and bus is not None:
            chain = (*chain, bus)
        if kind == "PCIDev" and bus is not None and (match := _TYPE.match(element.get("pci_type") or "")):
            numa = next(iter(nodes)) if len(nodes) == 1 else None
            place = pci.Place(bridge or "machine", chain)
            yield _Device(bus, match[1], match[2], match[3], place, numa, element)
        stack += [(child, bridge, chain, nodes) for child in reversed(element) if child.tag == "object"]


def _infos(element: Element) -> dict[str, str]:
    return {i.get("name") or "": i.get("value") or "" for i in element.findall("info")}


def _inside(device: _Device) -> Iterator[tuple[str, dict[str, str], Element]]:
    for child in device.element.iter("object"):
        if child.get("type") == "OSDev":
            yield child.get("name") or "", _infos(child), child


def _gpu(index: int, device: _Device) -> Gpu:
    gpu = Gpu(index=index, name=UNKNOWN, pci=device.bus, numa=device.numa)
    for name, infos, _ in _inside(device):
        if not name.startswith(("cuda", "nvml", "opencl")):
            continue
        kilobytes = whole(infos.get("CUDAGlobalMemorySize"))
        gpu = replace(
            gpu,
            name=infos.get("GPUModel") or gpu.name,
            uuid=infos.get("NVIDIAUUID") or gpu.uuid,
            serial=infos.get("NVIDIASerial") or gpu.serial,
            memory_bytes=kilobytes * 1024 if kilobytes else gpu.memory_bytes,
        )
    return by_device(gpu, device.device)


def _nics(device: _Device, places: dict[int, tuple[pci.Place, int | None]]) -> list[Nic]:
    if device.kind not in ("0200", "0207", "0280"):
        return []
    ways = tuple(
        (index, level)
        for index, (place, numa) in places.items()
        if (level := pci.distance(place, device.place, numa, device.numa, vm=False)) is not None
    )
    inside = list(_inside(device))
    verbs = [(name, infos) for name, infos, _ in inside if "NodeGUID" in infos or "Port1State" in infos]
    named = {name for name, _ in verbs}
    netdevs = [name for name, infos, _ in inside if name not in named and not infos.get("Backend")]
    efa = device.vendor == "1d0f" and device.device.startswith("efa")
    out = []
    for name, infos in verbs:
        ports = sorted({int(m[1]) for k in infos if (m := re.fullmatch(r"Port(\d{1,2})State", k))}) or [1]
        for port in ports:
            state = infos.get(f"Port{port}State")
            kind = "efa" if efa else "infiniband" if device.kind == "0207" else "roce"
            out.append(
                Nic(
                    name=name,
                    kind=kind,
                    port=port,
                    pci=device.bus,
                    numa=device.numa,
                    netdev=netdevs[0] if netdevs else None,
                    up=None if state is None else state == "4",
                    state=PORT_STATES.get(state or ""),
                    model=_infos(device.element).get("PCIDevice") or f"{device.vendor}:{device.device}",
                    guid=infos.get("NodeGUID"),
                    distances=ways,
                    card=device.bus[:-1] + "0",
                )
            )
    slingshot = device.vendor == "17db"
    if not verbs:
        for name in netdevs[:1] if slingshot else netdevs:
            why = "IP over InfiniBand: no verbs device in this file" if device.kind == "0207" else None
            out.append(
                Nic(name=name, kind="slingshot" if slingshot else "ethernet", pci=device.bus, numa=device.numa, netdev=name,
                    distances=ways, why_not=why, model=f"{device.vendor}:{device.device}" if slingshot else None, card=device.bus[:-1] + "0")
            )  # fmt: skip
    return out


def _plain_last(nics: Sequence[Nic]) -> list[Nic]:
    return sorted(nics, key=lambda n: n.kind == "ethernet")


def _host(root: Element, facts: Facts, devices: Sequence[_Device]) -> None:
    machine = root.find("object")
    infos = _infos(machine) if machine is not None else {}
    packages = [o for o in root.iter("object") if o.get("type") in ("Package", "Socket")]
    nodes = [o for o in root.iter("object") if o.get("type") in ("NUMANode", "Node")]
    for key, value in (
        ("hostname", infos.get("HostName")),
        ("kernel", infos.get("OSRelease")),
        ("cpu_model", next((m for p in packages if (m := _infos(p).get("CPUModel"))), None)),
        ("sockets", len(packages) or None),
        ("cores", sum(o.get("type") == "Core" for o in root.iter("object")) or None),
        ("numa_nodes", len(_cpu_nodes(root)) or None),
        ("memory_bytes", sum(whole(n.get("local_memory")) or 0 for n in nodes if _bits(n.get("cpuset"))) or None),
    ):
        if value is not None:
            facts.node[key] = value
    product_name = infos.get("DMIProductName", "")
    known = preset_of(product_name) or load("presets.json")["dmi"].get(product_name)
    # A tree with its GPUs says more than the name of the box; of a cloud machine the name tells the fabric too.
    if known is not None and (not devices or infos.get("DMISysVendor") == "Amazon EC2"):
        facts.preset = known


def _bandwidths(root: Element, gpus: Sequence[_Device], switches: Sequence[_Device], facts: Facts) -> None:
    """NVLinkBandwidth: MB/s between GPUs, their switches, and POWER's packages."""
    matrix = next((d for d in root.iter() if d.get("name") == "NVLinkBandwidth"), None)
    if matrix is None or not gpus:
        return
    names = " ".join(i.text or "" for i in matrix.findall("indexes")).split()
    values = [
        int(v) for part in matrix.findall("u64values") for v in (part.text or "").split() if v.isdigit() and len(v) < 15
    ]
    count = len(names)
    if count == 0 or len(values) < count * count:
        facts.notes.append("the NVLinkBandwidth matrix is cut off: left out")
        return
    by_object: dict[str, int] = {}
    for index, device in enumerate(gpus):
        for o in device.element.iter("object"):
            if o.get("gp_index"):
                by_object[f"{o.get('type')}:{o.get('gp_index')}"] = index
                by_object.setdefault(o.get("gp_index") or "", index)
    switch_objects = {f"PCIDev:{s.element.get('gp_index')}" for s in switches}
    links: dict[tuple[int, int], int] = {}
    totals: dict[int, int] = dict.fromkeys(range(len(gpus)), 0)
    for row, a in enumerate(names):
        for column, b in enumerate(names):
            value = values[row * count + column]
            if a not in by_object or value <= 0 or row == column or by_object.get(b) == by_object[a]:
                continue
            mine = by_object[a]
            each = _one_link(facts.gpus[mine])
            lanes = max(1, round(value / each))
            if b in by_object:
                links[min(mine, by_object[b]), max(mine, by_object[b])] = lanes
                totals[mine] += lanes
            elif b in switch_objects:
                totals[mine] += lanes
    if not facts.switched:
        facts.links = links
    facts.gpus = [replace(g, nvlinks=totals[g.index]) for g in facts.gpus]


def _one_link(gpu: Gpu) -> float:
    """MB/s of one NVLink of this product in one direction."""
    sheet = product(gpu.name)
    if sheet is None or not sheet.nvlinks or sheet.nvlink_bytes_per_s is None:
        return 25000.0
    return sheet.nvlink_bytes_per_s / sheet.nvlinks / 1e6

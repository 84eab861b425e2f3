"""`lstopo` (or `hwloc-ls`) on the console: the PCI tree by indentation, with and without `-v`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch_probes import pci
from parlaunch_probes.files.conclude import by_device
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.files.hwloc_xml import PORT_STATES
from parlaunch_probes.files.topo_m import kind_of
from parlaunch_probes.text import pci_address

WHAT = "lstopo"
_LINE = re.compile(r"^(\s*)(Machine|HostBridge|PCIBridge|PCI|NUMANode|Group\d*|Package|Socket|NUMA|L3|Die)\b(.*)$")
_PCI = re.compile(r"(?:busid=)?((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\b")
_IDS = re.compile(r"\b([0-9a-f]{4}):([0-9a-f]{4})\b")
_CLASS = re.compile(r"\(([A-Za-z0-9 ]+)\)\s*$|class=[0-9a-f]{4}\(([A-Za-z0-9 ]+)\)")
_INSIDE = re.compile(r"^(\s*)(CoProc|Co-Processor|GPU|Net|Network|OpenFabrics|Block)\b(.*?)\"([\w.:-]{1,40})\"\s*$")
_STATE = re.compile(r"\bPort(\d{1,2})State=(\d)\b")
_MODEL = re.compile(r'GPUModel="([^"]{2,60})"')
GPUS, NICS = ("3D", "VGA"), ("Ethernet", "InfiniBand", "Infiniband", "Network", "Net")


@dataclass(slots=True)
class _Device:
    address: str | None
    ids: tuple[str, str] | None
    kind: str
    place: pci.Place
    numa: int | None
    inside: list[tuple[str, str, str]] = field(default_factory=list)  # what, words, name


def find(text: str) -> Facts | None:
    """The machine of a listing; None when the text is another tool's."""
    lines = [line for line in text.split("\n") if len(line) < 1000]
    start = next((at for at, line in enumerate(lines) if re.match(r"^\s{0,4}Machine( L#0)? \(", line)), None)
    if start is None:
        return None
    devices: list[_Device] = []
    stack: list[tuple[int, str]] = []  # indentation and what it is: "host N", "bridge N", "other"
    node: int | None = None
    nodes = 0
    for number, line in enumerate(lines[start:]):
        inside = _INSIDE.match(line)
        if inside and devices:
            devices[-1].inside.append((inside[2], inside[3], inside[4]))
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        depth, what, rest = len(match[1]), match[2], match[3]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if what == "NUMANode" and (index := re.search(r"P#(\d{1,4})", rest)):
            node, nodes = int(index[1]), nodes + 1
        if what == "HostBridge":
            stack.append((depth, f"host {number}"))
        elif what == "PCIBridge":
            stack.append((depth, f"bridge {number}"))
        elif what == "PCI":
            devices.append(_device(rest, stack, node, number))
            stack.append((depth, "device"))
        else:
            stack.append((depth, "other"))
    return _facts(devices, nodes)


def _device(rest: str, stack: list[tuple[int, str]], numa: int | None, number: int) -> _Device:
    root = next((what for _, what in reversed(stack) if what.startswith("host")), "machine")
    chain = tuple(what for _, what in stack if what.startswith("bridge"))
    where = _PCI.search(rest)
    without = rest.replace(where[0], "", 1) if where else rest
    ids = _IDS.search(without)
    kind = _CLASS.search(rest)
    words = next((k for k in kind.groups() if k), "") if kind else ""
    address = pci_address(where[1]) if where else None
    place = pci.Place(root, (*chain, address or f"device {number}"))
    return _Device(address, (ids[1], ids[2]) if ids else None, words, place, numa)


def _facts(devices: list[_Device], nodes: int) -> Facts | None:
    facts = Facts(WHAT)
    gpus = [d for d in devices if _is_gpu(d)]
    if nodes:
        facts.node["numa_nodes"] = nodes
    for index, device in enumerate(sorted(gpus, key=lambda d: d.address or "")):
        model = next((m[1] for _, words, _ in device.inside if (m := _MODEL.search(words))), None)
        gpu = Gpu(index=index, name=model or UNKNOWN, pci=device.address, numa=device.numa)
        facts.gpus.append(by_device(gpu, device.ids[1]) if device.ids and not model else gpu)
    ordered = sorted(gpus, key=lambda d: d.address or "")
    switches = [d for d in devices if d.ids and d.ids[0] == "10de" and d.kind == "Bridge"]
    if switches:
        facts.switched = True
        facts.node["nvswitches_pci"] = len(switches)
    for device in devices:
        facts.nics += _nics(device, ordered)
    return facts if facts.gpus or facts.nics else None


def _is_gpu(device: _Device) -> bool:
    if device.kind not in GPUS or (device.ids and device.ids[0] != "10de"):
        return False
    ours = any(name.startswith(("cuda", "nvml", "opencl")) for _, _, name in device.inside)
    other = any("RSMI" in words or name.startswith(("rsmi", "ze")) for _, words, name in device.inside)
    return not other and (ours or device.kind == "3D" or device.ids is not None)


def _nics(device: _Device, gpus: list[_Device]) -> list[Nic]:
    nets = [name for what, _, name in device.inside if what.startswith("Net")]
    verbs = [name for what, _, name in device.inside if what == "OpenFabrics"]
    states = {name: _STATE.findall(words) for what, words, name in device.inside if what == "OpenFabrics"}
    if device.kind not in NICS and not verbs:
        return []
    ways = tuple(
        (index, level)
        for index, gpu in enumerate(gpus)
        if (level := pci.distance(gpu.place, device.place, gpu.numa, device.numa, vm=False)) is not None
    )
    infiniband = device.kind.lower() == "infiniband"
    slingshot = bool(device.ids and device.ids[0] == "17db") or any(n.startswith(("hsn", "cxi")) for n in nets)
    out = []
    for name in verbs or nets[:1] or ([device.address] if device.address else []):
        kind = kind_of(name)
        if infiniband:
            kind = "infiniband"
        elif slingshot:
            kind = "slingshot"
        elif kind == UNKNOWN:
            kind = "roce" if verbs else "ethernet"
        nic = Nic(
            name=name, kind=kind, pci=device.address, numa=device.numa, netdev=nets[0] if nets else None, distances=ways,
            model=":".join(device.ids) if device.ids else None, card=device.address[:-1] + "0" if device.address else None,
            why_not="IP over InfiniBand: no verbs device in this file" if infiniband and not verbs and nets else None,
        )  # fmt: skip
        out += [
            replace(nic, port=int(port), up=state == "4", state=PORT_STATES.get(state))
            for port, state in states.get(name, [])
        ] or [nic]
    return out

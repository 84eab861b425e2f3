"""`lspci`, `lspci -nn`, `lspci -vvv`: GPUs, NVSwitches and ports by PCI; the tree and ACS where -vv shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.datasheet import Product, product, product_of_pci
from parlaunch.hardware.ports import THOR
from parlaunch_probes import pci
from parlaunch_probes.files.clean import whole
from parlaunch_probes.files.conclude import by_device
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

WHAT = "lspci"
_LINE = re.compile(
    r"^((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (?:\"?)([A-Z0-9][^:\[\"]{2,50}?)(?: \[([0-9a-f]{4})\])?: (.+)$"
)
_IDS = re.compile(r"\[([0-9a-f]{4}):([0-9a-f]{4})\]")
_BUSES = re.compile(r"primary=([0-9a-f]{2}), secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})")
_ACS = re.compile(r"ACSCtl:.*?ReqRedir([+-]) CmpltRedir([+-])")
_GPUS = ("3D controller", "VGA compatible controller", "Display controller")
# Makers whose devices a list may be too old to name: "Broadcom Inc. and subsidiaries Device 1760".
_UNNAMED = re.compile(r"^(\S.{2,60}?) Device ([0-9a-f]{4})\b")
_MAKERS = (
    ("Amazon", "1d0f"), ("AMD Pensando", "1dd8"), ("Broadcom", "14e4"), ("Cornelis", "434e"), ("Cray", "17db"), ("Google", "1ae0"),
    ("Intel", "8086"), ("Mellanox", "15b3"), ("NVIDIA", "10de"), ("Pensando", "1dd8"),
)  # fmt: skip
_GRACE = ("nvswitch_mnnvl", "grace")
_THOR = tuple(ids for _, ids, _ in THOR)


@dataclass(slots=True)
class _Device:
    bus: str
    kind: str
    text: str
    vendor: str | None
    device: str | None
    numa: int | None = None
    buses: tuple[int, int] | None = None  # a bridge's secondary and subordinate
    redirects: bool | None = None


def find(text: str) -> Facts | None:
    """The machine of a listing; None when there is no GPU and no network port in the text."""
    devices: list[_Device] = []
    acs: list[bool] = []
    for line in text.split("\n"):
        if len(line) > 2000:
            continue
        match = _LINE.match(line)
        if match is not None:
            address = pci_address(match[1])
            ids = _IDS.findall(match[4])
            if address is not None:
                vendor, device = ids[-1] if ids else _unnamed(match[4])
                devices.append(_Device(address, match[2].strip(), match[4], vendor, device))
            continue
        if found := _ACS.search(line):
            acs.append("+" in found.groups())
        if not devices or not line[:1].isspace():
            continue
        if found:
            devices[-1].redirects = acs[-1]
        elif (at := line.find("NUMA node:")) >= 0:
            devices[-1].numa = whole(line[at + 10 :])
        elif found := _BUSES.search(line):
            devices[-1].buses = (int(found[2], 16), int(found[3], 16))
    devices = list({d.bus: d for d in devices}.values())
    facts = _facts(devices)
    if acs:
        facts.acs = True
        facts.node["acs_redirects"] = tuple(sorted(d.bus for d in devices if d.redirects))
        if any(acs) and not facts.node["acs_redirects"]:
            facts.node.pop("acs_redirects")
            facts.notes.append("ACS redirects peer traffic on some bridges: which ones is not in this file")
    return None if facts.empty else facts


def _facts(devices: list[_Device]) -> Facts:
    facts = Facts(WHAT)
    places = _places(devices)
    gpus = sorted((d for d in devices if d.kind in _GPUS and _nvidia(d)), key=lambda d: d.bus)
    sheets = [_sheet(d) for d in gpus]
    grace = any(s is not None and s.board in _GRACE for s in sheets)
    numas = [_numa(d, grace) for d in gpus]
    for index, (device, sheet) in enumerate(zip(gpus, sheets, strict=True)):
        made = by_device(Gpu(index=index, name=UNKNOWN, pci=device.bus, numa=numas[index]), _number(device), sheet)
        facts.gpus.append(replace(made, name=_listed(device)) if made.name == UNKNOWN else made)
    switches = [d for d in devices if d.kind == "Bridge" and _nvidia(d)]
    if switches:
        facts.switched = True
    if gpus:
        facts.node["nvswitches_pci"] = len(switches)
    for device in devices:
        kind = _kind(device)
        if kind is None:
            continue
        numa = _numa(device, grace)
        ways = []
        for index, gpu in enumerate(gpus):
            a, b = places.get(gpu.bus), places.get(device.bus)
            level = pci.distance(a, b, numas[index], numa, vm=not places)
            if level is None and numa is not None and numas[index] is not None:
                level = "NODE" if numa == numas[index] else "SYS"
            if level is not None:
                ways.append((index, level))
        facts.nics.append(
            Nic(
                name=device.bus,
                kind=kind,
                pci=device.bus,
                numa=numa,
                model=_model(device),
                virtual_function="Virtual Function" in device.text,
                distances=tuple(ways),
                driver="gve" if "gVNIC" in device.text or (device.vendor, device.device) == ("1ae0", "0042") else None,
                card=_card(device, devices),
            )
        )
    if grace and gpus and all(d.numa is None for d in gpus):
        facts.notes.append("sockets by PCI domain, as Grace machines number them (0000-000f, 0010-001f)")
    return facts


def _unnamed(text: str) -> tuple[str | None, str | None]:
    """Vendor and device id of a device that the list only numbers; None for each that is not told."""
    match = _UNNAMED.match(text)
    if match is None:
        return None, None
    maker = next((number for name, number in _MAKERS if match[1].startswith(name)), None)
    return maker, match[2] if maker else None


def _nvidia(device: _Device) -> bool:
    return device.vendor == "10de" if device.vendor else device.text.startswith("NVIDIA")


def _sheet(device: _Device) -> Product | None:
    number = _number(device)
    found = product_of_pci(number) if number else None
    if found is None:
        names = re.findall(r"\[([^\[\]]{2,60})\]", _IDS.sub("", device.text))
        found = next((s for name in names if (s := product(name) or _in_repository(name)) is not None), None)
    return found


def _in_repository(name: str) -> Product | None:
    """The product under a name of the PCI ID Repository, which adds the board, the socket's number and the memory: "HGX GB200",
    "H100 SXM5 80GB". One with another memory (H100 SXM5 64GB) is another product."""
    match = re.fullmatch(r"(?:HGX )?(.*?)(?:(?<=SXM)\d?(?: (\d{2,3})GB)?)?", name)
    found = product(match[1]) if match is not None else None
    if found is None or match is None or match[2] is None:
        return found
    return found if abs(found.memory_bytes / (int(match[2]) << 30) - 1) < 0.1 else None


def _listed(device: _Device) -> str:
    """What the list calls a GPU that no table of ours has: "GeForce GTX 1080 Ti" of "GP102 [GeForce GTX 1080 Ti]"."""
    names = re.findall(r"\[([^\[\]]{2,60})\]", _IDS.sub("", device.text))
    return f"NVIDIA {names[-1].split(' / ')[0]}" if names else UNKNOWN


def _number(device: _Device) -> str | None:
    """The device id, which old lists of names print in place of a name."""
    match = re.search(r"\bDevice ([0-9a-f]{4})\b", device.text)
    return device.device or (match[1] if match else None)


def _numa(device: _Device, grace: bool) -> int | None:
    if device.numa is not None:
        return device.numa if device.numa >= 0 else None
    return int(device.bus.split(":")[0], 16) >> 4 if grace else None


def _kind(device: _Device) -> str | None:
    """What a port is; None for devices that are none."""
    mellanox = device.vendor == "15b3" if device.vendor else "Mellanox" in device.text
    if re.search(r"Omni-Path|HFI Silicon", device.text) or device.vendor == "434e":
        return "omnipath"
    if device.kind == "Infiniband controller":
        return "infiniband"
    if device.kind not in ("Ethernet controller", "Network controller", "Fabric controller"):
        return None
    if "Wireless" in device.text or "Wi-Fi" in device.text:
        return None
    if "Elastic Fabric Adapter" in device.text or (device.vendor == "1d0f" and (device.device or "").startswith("efa")):
        return "efa"
    if re.search(r"Cassini|Slingshot|^Cray Inc\b", device.text) or device.vendor == "17db":
        return "slingshot"
    # Broadcom's Thor (BCM5750x) and Thor 2, and AMD's Pensando cards, are sold for RoCE; on Intel's RDMA is an option.
    named = re.search(r"BCM575\d\d|BCM576\d\d|Pensando", device.text) is not None
    rdma = mellanox or named or device.vendor == "1dd8" or f"{device.vendor}:{device.device}" in _THOR
    return "roce" if rdma else "ethernet"


def _card(device: _Device, devices: list[_Device]) -> str:
    """The card by its function 0. Virtual functions stand on the bus of the card that has them."""
    own = next(
        (d.bus for d in devices if "Virtual Function" not in d.text and d.bus[:-5] == device.bus[:-5]), device.bus
    )
    return (own if "Virtual Function" in device.text else device.bus)[:-1] + "0"


def _model(device: _Device) -> str:
    if device.vendor == "1d0f" or (device.vendor and _UNNAMED.match(device.text)):
        return f"{device.vendor}:{device.device}"  # the generations of EFA share their words
    text = _IDS.sub("", re.sub(r"\(rev \w+\)", "", device.text)).strip()
    return text.removeprefix("Mellanox Technologies").strip() or device.text


def _places(devices: list[_Device]) -> dict[str, pci.Place]:
    """Where each device sits, from the bus numbers of the bridges; empty when the listing does not have them."""
    bridges = [d for d in devices if d.buses is not None]
    if not bridges:
        return {}
    places = {}
    for device in devices:
        domain, bus = device.bus.split(":")[0], int(device.bus.split(":")[1], 16)
        above = [
            b
            for b in bridges
            if b.bus.startswith(domain) and b.buses and b.buses[0] <= bus <= b.buses[1] and b is not device
        ]
        above.sort(key=lambda b: (b.buses or (0, 0))[0] - (b.buses or (0, 0))[1])
        root = (above[0].bus if above else device.bus)[: len(domain) + 3]
        places[device.bus] = pci.Place(root, (*(b.bus for b in above), device.bus))
    return places

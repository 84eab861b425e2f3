"""What the InfiniBand tools print: `ibstat`, `ibstatus`, `ibv_devinfo`, `ibv_devices`, `ibdev2netdev`, `rdma link`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from parlaunch.hardware.cluster import UNKNOWN, Nic
from parlaunch_probes import rails
from parlaunch_probes.files.clean import decimal
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.files.topo_m import kind_of
from parlaunch_probes.text import after_colon, gigabits, pci_address

_CA = re.compile(r"^\s*CA '([\w.:-]{1,60})'")
_STATUS = re.compile(r"^\s*Infiniband device '([\w.:-]{1,60})' port (\d{1,3}) status:", re.IGNORECASE)
_HCA = re.compile(r"^\s*hca_id:\s*([\w.:-]{1,60})\s*$")
_PORT = re.compile(r"^\s*(?:Port (\d{1,3}):|port:\s*(\d{1,3}))\s*$")
_PAIR = re.compile(r"^\s*([\w.' -]{2,60}?)\s*:\s*(.*?)\s*$")
# With -v the PCI address, the model and the state of the port itself stand before the arrow.
_NETDEV = re.compile(
    r"^\s*(?:([0-9a-f:.]{7,16})\s+)?([\w.-]{1,60})\s+(?:\((MT\d{4,6})\b[^)]{0,60}\).{0,160}?\s)?port\s+(\d{1,3})"
    r"\s*(?:\((\w{2,12})\s*\))?.{0,80}?==>\s+([\w.-]{1,60})\s+\((\w+)\)"
)
_LINK = re.compile(
    r"^\s*(?:link\s+)?(?:\d{1,4}/\d{1,3}:\s+)?([\w.-]{1,60})/(\d{1,3}):?\s+(.{0,160}?)\bstate\s+(\w+)\s+physical_state\s+(\w+)(?:\s+netdev\s+([\w.-]{1,60}))?"
)
_LISTED = re.compile(r"^\s{2,}([\w.-]{1,60})\s+([0-9a-f]{16})\s*$")
PHYSICAL = {"LINK_UP": "LinkUp", "DISABLED": "Disabled", "POLLING": "Polling"}
LAYERS = {"infiniband": "infiniband", "ethernet": "roce"}


@dataclass(slots=True)
class _Port:
    name: str
    port: int
    tool: str
    device: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


class _Listing:
    """What was read so far, line by line: ports under their devices, and the network interfaces of ports."""

    def __init__(self) -> None:
        self.ports: list[_Port] = []
        self.netdevs: dict[tuple[str, int], _Netdev] = {}
        self.linked: list[Nic] = []  # of `rdma link`
        self.listed: list[Nic] = []  # of `ibv_devices`
        self._name, self._tool = "", ""
        self._device: dict[str, str] = {}
        self._port: _Port | None = None

    def read(self, line: str) -> None:
        if match := _NETDEV.match(line):
            up = match[7].lower() == "up"
            self.netdevs[match[2], int(match[4])] = _Netdev(match[6], up, match[5], match[1], match[3])
        elif match := _LINK.match(line):
            self.linked.append(
                _link(match[1], int(match[2]), match[4], match[5], match[6], "subnet_prefix" in match[3])
            )
        elif match := _LISTED.match(line):
            self.listed.append(Nic(name=match[1], kind=kind_of(match[1]), guid=match[2]))
        elif (match := _CA.match(line)) or (match := _HCA.match(line)):
            self._begin(match[1], "ibstat" if line.lstrip().startswith("CA") else "ibv_devinfo")
        elif match := _STATUS.match(line):
            self._begin(match[1], "ibstatus")
            self._add(match[2])
        elif self._name:
            self._inside(line)

    def _inside(self, line: str) -> None:
        """A line of the device at hand."""
        if match := _PORT.match(line):
            self._add(match[1] or match[2])
        elif line.strip() and not line[:1].isspace():
            self._name, self._port = "", None
        elif match := _PAIR.match(line):
            into = self._device if self._port is None else self._port.words
            into.setdefault(match[1].strip().lower().replace(" ", "_"), match[2])

    def _begin(self, name: str, tool: str) -> None:
        self._name, self._tool, self._device, self._port = name, tool, {}, None

    def _add(self, number: str) -> None:
        self._port = _Port(self._name, int(number), self._tool, self._device)
        self.ports.append(self._port)


def find(text: str) -> Facts | None:
    """The ports of every listing in the text; None without one."""
    listing = _Listing()
    for line in text.split("\n"):
        if len(line) <= 400:
            listing.read(line)
    ports, listed = listing.ports, listing.listed if "node GUID" in text else []
    if not (ports or listing.netdevs or listing.linked or listed):
        return None
    tools = [*(p.tool for p in ports), *["rdma link"] * bool(listing.linked), *["ibdev2netdev"] * bool(listing.netdevs)]
    facts = Facts(" and ".join(dict.fromkeys(tools)) or "ibv_devices")
    first = {(one.name, one.port): one for one in reversed(ports)}
    facts.nics += [_nic(one) for one in ports if first[one.name, one.port] is one]
    if len({n.card for n in facts.nics}) < 2 and not _one_slot(facts.nics):
        # One GUID for all was put there by whoever hid the true ones.
        facts.nics = [replace(n, card=None) for n in facts.nics]
    facts.nics += [n for n in listing.linked if (n.name, n.port) not in first]
    _netdevs(facts, listing.netdevs)
    facts.nics += [n for n in listed if n.name not in {known.name for known in facts.nics}]
    facts.nics = list(_twins(facts.nics, ports))
    if "ibpanic" in text:
        facts.notes.append("the listing ended in an error (ibpanic): the ports before it are good")
    return facts


def _nic(one: _Port) -> Nic:
    words, device = one.words, one.device
    layer = (words.get("link_layer") or "").lower()
    named = kind_of(one.name)
    kind = named if named in ("efa", "omnipath") else LAYERS.get(layer, named)
    state = (after_colon(words.get("state")) or "").removeprefix("PORT_")
    state = re.sub(r"\s*\(\d+\)$", "", state).upper().replace("INITIALIZING", "INIT")
    said = after_colon(words.get("physical_state") or words.get("phys_state") or words.get("phys_port_state")) or ""
    said = re.sub(r"\s*\(\d+\)$", "", said)
    physical = PHYSICAL.get(said, said) or None
    up = None if not state else state == "ACTIVE"
    rate = words.get("rate")
    gbps = gigabits(rate) if rate and "Gb" in rate else decimal(rate)
    if one.tool == "ibv_devinfo" and (width := _width(words)):
        gbps = width
    return Nic(
        name=one.name,
        kind=kind,
        port=one.port,
        bytes_per_s=gbps * 1e9 / 8 if gbps and up is not False else None,
        up=up,
        state=state or None,
        physical_state=physical,
        rate=rate if rate is None or "Gb" in rate else f"{rate} Gb/sec",
        model=device.get("ca_type") or _model(device),
        board=device.get("board_id"),
        firmware=device.get("firmware_version") or device.get("fw_ver"),
        guid=device.get("node_guid"),
        bond=one.name if "bond" in one.name else None,
        card=_chip(one),
    )


def _model(device: dict[str, str]) -> str | None:
    """The model as a live machine has it, of the numbers that `ibv_devinfo` prints: MT4129, or vendor:device."""
    part, vendor = device.get("vendor_part_id"), device.get("vendor_id", "0x02c9").lower().removeprefix("0x")
    if part is None or vendor in ("02c9", "15b3"):
        return f"MT{part}" if part else None
    return f"{vendor.zfill(4)}:{int(part):04x}" if part.isascii() and part.isdigit() and len(part) < 6 else part


def _chip(one: _Port) -> str | None:
    """The chip's GUID, which the functions of one card share; a listing has no PCI address of it."""
    guid = one.device.get("system_image_guid") or one.device.get("sys_image_guid") or ""
    return guid if guid.removeprefix("0x").strip("0:") else None


def _width(words: dict[str, str]) -> float | None:
    """Gb/s of `active_width: 4X (2)` and `active_speed: 100.0 Gbps (128)`, which `ibv_devinfo -v` prints."""
    lanes, speed = decimal(words.get("active_width")), decimal(words.get("active_speed"))
    return lanes * speed if lanes and speed and "Gbps" in words.get("active_speed", "") else None


@dataclass(frozen=True, slots=True)
class _Netdev:
    """A line of ibdev2netdev: the interface of a port, and what -v says of the port."""

    name: str
    up: bool
    state: str | None
    pci: str | None
    model: str | None


def _netdevs(facts: Facts, netdevs: dict[tuple[str, int], _Netdev]) -> None:
    # Up and Down are the interface's: InfiniBand works without IP, and where few ports have it, Down says nothing.
    ups = [line.up for line in netdevs.values() if line.name.startswith("ib")]
    with_ip = 0 < len(ups) <= 2 * sum(ups)
    for (name, number), line in netdevs.items():
        bond = line.name if line.name.startswith("bond") else None
        layer = "infiniband" if line.name.startswith("ib") else "roce"
        for at, nic in enumerate(facts.nics):
            if nic.name == name and nic.port in (None, number):
                kind = layer if nic.kind == UNKNOWN else nic.kind
                facts.nics[at] = replace(nic, netdev=line.name, bond=nic.bond or bond, kind=kind)
                break
        else:
            told = line.up or with_ip or layer != "infiniband"
            up = line.state == "ACTIVE" if line.state else line.up if told else None
            state = line.state or (None if up is None else "ACTIVE" if up else "DOWN")
            facts.nics.append(
                Nic(name=name, kind=layer, port=number, netdev=line.name, bond=bond, up=up, state=state,
                    pci=pci_address(line.pci), model=line.model)
            )  # fmt: skip


def _link(name: str, port: int, state: str, physical: str, netdev: str | None, subnet: bool) -> Nic:
    """A port as `rdma link` shows it. Only InfiniBand ports have a subnet there, and Omni-Path's, which speak its verbs."""
    kind = kind_of(name)
    if kind == "omnipath":
        pass
    elif subnet or (netdev or "").startswith("ib"):
        kind = "infiniband"
    elif kind == UNKNOWN and netdev:
        kind = "roce"
    up = state == "ACTIVE"
    software = name.startswith(("rxe", "siw"))
    return Nic(
        name=name,
        kind=kind,
        port=port,
        netdev=netdev,
        up=up,
        state=state,
        physical_state=PHYSICAL.get(physical, physical),
        bond=name if "bond" in name else netdev if (netdev or "").startswith("bond") else None,
        why_not="a software device: no PCI device behind it" if software else None,
    )


def _one_slot(nics: list[Nic]) -> bool:
    """Whether the names say that the ports are functions of one card: rocep1s0f0, rocep1s0f1, roceP2p1s0f0 (GB10)."""
    slots = [re.fullmatch(r"(?:roce|ib)(?:P\d{1,4})?(p\d+s\d+)f\d+", n.name) for n in nics]
    return all(slots) and len({m[1] for m in slots if m}) == 1


def _twins(nics: list[Nic], ports: list[_Port]) -> tuple[Nic, ...]:
    """Functions of one physical port: names that differ in the PCI domain alone, on one chip (GB10, cards of two sockets)."""
    chips = {(p.name, p.port): _chip(p) for p in ports}

    def identity(nic: Nic) -> str | None:
        chip, rest = chips.get((nic.name, nic.port or 1)), re.fullmatch(r"(?:roce|ib)(?:P\d{1,4})?(p\w+)", nic.name)
        return f"{chip} {rest[1]} {nic.port}" if chip and rest else None

    return rails.with_twins(nics, [identity(n) for n in nics])


def find_json(data: Any) -> Facts | None:
    """`rdma -j link`; None for any other JSON."""
    rows = data if isinstance(data, list) else []
    if not rows or not all(
        isinstance(r, dict) and isinstance(r.get("ifname"), str) and "physical_state" in r for r in rows
    ):
        return None
    facts = Facts("rdma link")
    for row in rows:
        port = row.get("port")
        netdev = row.get("netdev")
        facts.nics.append(
            _link(row["ifname"], port if isinstance(port, int) else 1, str(row.get("state")), str(row["physical_state"]),
                  netdev if isinstance(netdev, str) else None, "subnet_prefix" in row)
        )  # fmt: skip
    return facts

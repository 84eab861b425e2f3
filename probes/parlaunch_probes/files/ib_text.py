"""What the InfiniBand tools print: `ibstat`, `ibstatus`, `ibv_devinfo`, `ibdev2netdev`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from parlaunch.machine import UNKNOWN, Nic
from parlaunch_probes.files.clean import decimal
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.files.topo_m import kind_of
from parlaunch_probes.text import after_colon, gigabits

_CA = re.compile(r"^\s*CA '([\w.:-]{1,60})'")
_STATUS = re.compile(r"^\s*Infiniband device '([\w.:-]{1,60})' port (\d{1,3}) status:", re.IGNORECASE)
_HCA = re.compile(r"^\s*hca_id:\s*([\w.:-]{1,60})\s*$")
_PORT = re.compile(r"^\s*(?:Port (\d{1,3}):|port:\s*(\d{1,3}))\s*$")
_PAIR = re.compile(r"^\s*([\w.' -]{2,60}?)\s*:\s*(.*?)\s*$")
_NETDEV = re.compile(r"^\s*(?:[0-9a-f:.]+ )?([\w.-]{1,60}) port (\d{1,3}) .*?==> ([\w.-]{1,60}) \((\w+)\)")
LAYERS = {"infiniband": "infiniband", "ethernet": "roce"}


@dataclass(slots=True)
class _Port:
    name: str
    port: int
    tool: str
    device: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def find(text: str) -> Facts | None:
    """The ports of every listing in the text; None without one."""
    ports: list[_Port] = []
    netdevs: dict[tuple[str, int], tuple[str, bool]] = {}
    device: dict[str, str] = {}
    name, tool, port = "", "", None
    for line in text.split("\n"):
        if len(line) > 400:
            continue
        if match := _NETDEV.match(line):
            netdevs[match[1], int(match[2])] = (match[3], match[4].lower() == "up")
        elif (match := _CA.match(line)) or (match := _HCA.match(line)):
            name, device, port = match[1], {}, None
            tool = "ibstat" if line.lstrip().startswith("CA") else "ibv_devinfo"
        elif match := _STATUS.match(line):
            name, device, tool = match[1], {}, "ibstatus"
            port = _Port(name, int(match[2]), tool, device)
            ports.append(port)
        elif name and (match := _PORT.match(line)):
            port = _Port(name, int(match[1] or match[2]), tool, device)
            ports.append(port)
        elif name and line.strip() and not line[:1].isspace():
            name, port = "", None
        elif name and (match := _PAIR.match(line)):
            into = device if port is None else port.words
            into.setdefault(match[1].strip().lower().replace(" ", "_"), match[2])
    if not ports and not netdevs:
        return None
    facts = Facts(" and ".join(dict.fromkeys(p.tool for p in ports)) or "ibdev2netdev")
    seen = set()
    for one in ports:
        if (one.name, one.port) not in seen:
            seen.add((one.name, one.port))
            facts.nics.append(_nic(one))
    _netdevs(facts, netdevs)
    if "ibpanic" in text:
        facts.notes.append("the listing ended in an error (ibpanic): the ports before it are good")
    return facts


def _nic(one: _Port) -> Nic:
    words, device = one.words, one.device
    layer = (words.get("link_layer") or "").lower()
    kind = "efa" if kind_of(one.name) == "efa" else LAYERS.get(layer, kind_of(one.name))
    state = (after_colon(words.get("state")) or "").removeprefix("PORT_")
    state = re.sub(r"\s*\(\d+\)$", "", state).upper()
    said = after_colon(words.get("physical_state") or words.get("phys_state") or words.get("phys_port_state")) or ""
    said = re.sub(r"\s*\(\d+\)$", "", said)
    physical = {"LINK_UP": "LinkUp", "DISABLED": "Disabled", "POLLING": "Polling"}.get(said, said) or None
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
        model=device.get("ca_type") or device.get("vendor_part_id"),
        board=device.get("board_id"),
        firmware=device.get("firmware_version") or device.get("fw_ver"),
        guid=device.get("node_guid"),
        bond=one.name if "bond" in one.name else None,
    )


def _width(words: dict[str, str]) -> float | None:
    """Gb/s of `active_width: 4X (2)` and `active_speed: 100.0 Gbps (128)`, which `ibv_devinfo -v` prints."""
    lanes, speed = decimal(words.get("active_width")), decimal(words.get("active_speed"))
    return lanes * speed if lanes and speed and "Gbps" in words.get("active_speed", "") else None


def _netdevs(facts: Facts, netdevs: dict[tuple[str, int], tuple[str, bool]]) -> None:
    for (name, number), (netdev, up) in netdevs.items():
        bond = netdev if netdev.startswith("bond") else None
        layer = "infiniband" if netdev.startswith("ib") else "roce"
        for at, nic in enumerate(facts.nics):
            if nic.name == name and nic.port in (None, number):
                kind = layer if nic.kind == UNKNOWN else nic.kind
                facts.nics[at] = replace(nic, netdev=netdev, bond=nic.bond or bond, kind=kind)
                break
        else:
            state = "ACTIVE" if up else "DOWN"
            facts.nics.append(Nic(name=name, kind=layer, port=number, netdev=netdev, bond=bond, up=up, state=state))

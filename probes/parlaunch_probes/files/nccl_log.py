"""NCCL's debug log (NCCL_DEBUG=INFO) and the heading of nccl-tests: hosts, GPUs, ports, and the graph that NCCL drew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.ports import no_way_out
from parlaunch_probes import pci
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

WHAT = "NCCL debug log"
_LINE = re.compile(
    r"([A-Za-z0-9_][\w.-]{0,62}):\d{1,9}:\d{1,9} (?:\S{1,40} )?\[\d{1,3}\] (?:\S{1,40} )?NCCL (?:INFO|WARN|TRACE|VERSION) ?(.*)$"
)
_TESTED = re.compile(
    r"Rank\s+\d{1,6}\s+(?:Group\s+\d{1,6}\s+)?Pid\s+\d{1,9}\s+on\s+(\S{1,63})\s+device\s+(\d{1,3})\s+\[([0-9a-fA-Fx:]{2,14})\]\s+(\S.{1,60}?)\s*$"
)
_RANK = re.compile(
    r"\brank (\d{1,6}) n[rR]anks (\d{1,6}) cudaDev (\d{1,3})(?: nvmlDev (\d{1,3}))? busId ([0-9a-f]{1,12})"
)
_SIZES = re.compile(r"nRanks (\d{1,6}) nNodes (\d{1,5}) localRanks (\d{1,3})")
_USING = re.compile(r"NET/(IB|Socket)\s*: Using (.*?)(?:; OOB|$)")
_PORT = re.compile(r"\[(\d{1,3})\]\s?([\w.-]{1,40}):(\d{1,3})/(\w+)")
_SOCKET = re.compile(r"\[(\d{1,3})\]\s?([\w.-]{1,40}):")
_SPEED = re.compile(r"NET/IB\s*: \[\d{1,3}\] ([\w.-]{1,40}):\w+:(\d{1,3})/(\w+) .*?speed=(\d{1,8})")
_PLUGIN = re.compile(r"NET/OFI Selected [Pp]rovider is (\w+).*?\(found (\d{1,3}) nics\)")
_CPU = re.compile(r"^CPU/(?:\d{1,4}-)?([0-9a-fA-F]{1,4})(?: \(|$)")
_EDGE = re.compile(
    r"^(\s*)\+ (PCI|NVL|NET|SYS|C2C)\[([\d.]{1,10})\] - ([A-Z]{2,4})/(?:\d{1,4}-)?([0-9a-fA-F]{1,12})(?: \(([^)]*)\))?"
)
# GB/s of one NVLink as NCCL counts it (src/graph/topo.h): V100 to A100 and early H100, H100, consumer Ampere, Blackwell.
_LINK = (20.6, 20.0, 40.1, 12.0)
_LAYERS = {"IB": "infiniband", "RoCE": "roce"}
_PROVIDERS = {"efa": "efa", "cxi": "slingshot", "psm2": "omnipath", "opx": "omnipath", "psm3": "roce"}
MOST = 64  # GPUs of one host


@dataclass(slots=True)
class _Host:
    """What the log says of one host."""

    gpus: dict[str, tuple[int, str | None]] = field(default_factory=dict)  # PCI address -> index, name
    ports: dict[int, Nic] = field(default_factory=dict)  # NCCL's number -> port
    sockets: dict[int, str] = field(default_factory=dict)
    speeds: dict[tuple[str, int], float] = field(default_factory=dict)
    graph: list[str] = field(default_factory=list)
    drawing: bool = False
    drawn: bool = False
    plugin: tuple[str, int] | None = None
    sizes: tuple[int, int, int] | None = None  # ranks, nodes, ranks on this host
    nvls: bool = False


def hosts(text: str) -> list[Facts]:
    """The hosts of a log that speaks of several; nothing for any other text."""
    found = _read(text)
    return [_facts(name, host) for name, host in found.items()] if len(found) > 1 else []


def find(text: str) -> Facts | None:
    """The host of a log; None when the text is none."""
    found = _read(text)
    return next((_facts(name, host) for name, host in found.items()), None)


def _read(text: str) -> dict[str, _Host]:
    found: dict[str, _Host] = {}
    if "NCCL" not in text and " Rank " not in text:
        return found
    for line in text.split("\n"):
        if len(line) > 8000:
            continue
        if match := _TESTED.search(line):
            host = found.setdefault(match[1], _Host())
            address = _short_bus(match[3])
            if address is not None:
                host.gpus[address] = (int(match[2]), match[4])
        elif match := _LINE.search(line):
            _heard(found.setdefault(match[1], _Host()), match[2])
    # A host that says nothing of its machine (a launcher's line) is none.
    return {name: h for name, h in found.items() if h.gpus or h.ports or h.graph or h.sockets or h.plugin}


def _short_bus(text: str) -> str | None:
    """nccl-tests writes [0x1b] or [0000:1b:00]."""
    if text.startswith("0x"):
        return pci_address(f"0000:{text[2:].zfill(2)}:00.0")
    return pci_address(text + ".0")


def _heard(host: _Host, said: str) -> None:
    """One line of a host's log."""
    if said.startswith("=== System"):  # every rank draws the same: the first drawing counts
        host.drawing, host.drawn = not host.drawn, True
    elif said.startswith("=========="):
        host.drawing = False
    elif host.drawing and (_CPU.match(said) or _EDGE.match(said)):
        host.graph.append(said)
    elif match := _USING.search(said):
        _using(host, match[1], match[2])
    elif match := _RANK.search(said):
        address = _bus(match[5])
        if address is not None:
            host.gpus.setdefault(address, (int(match[4] or match[3]), None))
    else:
        _told(host, said)


def _told(host: _Host, said: str) -> None:
    if match := _SIZES.search(said):
        host.sizes = (int(match[1]), int(match[2]), int(match[3]))
    elif match := _SPEED.search(said):
        host.speeds[match[1], int(match[2])] = int(match[4]) * 1e6 / 8
    elif match := _PLUGIN.search(said):
        host.plugin = (match[1], int(match[2]))
    elif "NVLS multicast support is available" in said:
        host.nvls = True


def _using(host: _Host, net: str, listed: str) -> None:
    """The ports of NCCL's own transports, by its numbers."""
    if net == "Socket":
        host.sockets |= {int(n): name for n, name in _SOCKET.findall(listed)}
        return
    for number, name, port, layer in _PORT.findall(listed):
        bond = name if "bond" in name else None
        host.ports[int(number)] = Nic(name=name, kind=_LAYERS.get(layer, UNKNOWN), port=int(port), up=True, bond=bond)


def _bus(text: str) -> str | None:
    """NCCL's number of a PCI address: domain, bus, device and function as hex digits, 1b000 for 0000:1b:00.0."""
    digits = text.zfill(9)
    return pci_address(f"{digits[:-5].zfill(4)}:{digits[-5:-3]}:{digits[-3:-1]}.{digits[-1]}")


def _facts(name: str, host: _Host) -> Facts:
    facts = Facts(WHAT)
    facts.node["hostname"] = name
    graph = _Graph(host.graph)
    known = {address: (index, model) for address, (index, model) in host.gpus.items()}
    for address in graph.gpus:
        known.setdefault(address, (len(known), None))
    ordered = sorted(known)[:MOST]
    for index, address in enumerate(ordered):
        numa = graph.gpus[address][1] if address in graph.gpus else None
        facts.gpus.append(Gpu(index=index, name=known[address][1] or UNKNOWN, pci=address, numa=numa))
    number = {address: index for index, address in enumerate(ordered)}
    if graph.gpus:
        facts.links = {(number[a], number[b]): n for (a, b), n in graph.links.items() if a in number and b in number}
        if graph.switched:
            facts.switched, facts.links = True, None
            facts.gpus = [replace(g, nvlinks=graph.switched.get(g.pci or "")) for g in facts.gpus]
    elif host.nvls:
        facts.switched = True
    facts.nics = list(_nics(host, graph, ordered))
    if host.sizes is not None:
        ranks, nodes, local = host.sizes
        facts.attached = local if local > len(facts.gpus) else None
        if nodes > 1:
            facts.notes.append(f"the job of this log had {ranks} ranks on {nodes} nodes")
    return facts


def _nics(host: _Host, graph: _Graph, gpus: list[str]) -> Iterator[Nic]:
    def ways(number: int) -> tuple[tuple[int, str], ...]:
        place, numa = graph.nets.get(number, (None, None, None))[:2]
        if place is None:
            return ()
        levels = (
            (index, pci.distance(graph.gpus[gpu][0], place, graph.gpus[gpu][1], numa, vm=False))
            for index, gpu in enumerate(gpus)
            if gpu in graph.gpus
        )
        # Below the CPU the graph does not show host bridges.
        return tuple((i, "NODE" if level == "PHB" else level) for i, level in levels if level is not None)

    for number, nic in sorted(host.ports.items()):
        rate = host.speeds.get((nic.name, nic.port or 1)) or graph.nets.get(number, (None, None, None))[2]
        numa = graph.nets.get(number, (None, None, None))[1]
        yield replace(nic, bytes_per_s=rate, numa=numa, distances=ways(number))
    if not host.ports and host.plugin is not None:
        kind = _PROVIDERS.get(host.plugin[0].lower(), UNKNOWN)
        for number in range(min(host.plugin[1], 128)):
            yield Nic(
                name=f"{host.plugin[0]}{number}",
                kind=kind,
                up=True,
                bytes_per_s=graph.nets.get(number, (None, None, None))[2],
                distances=ways(number),
            )
    for number, name in sorted(host.sockets.items()):
        rate = None if host.ports or host.plugin else graph.nets.get(number, (None, None, None))[2]
        yield Nic(name=name, kind="ethernet", netdev=name, up=True, bytes_per_s=rate, why_not=no_way_out(name))


class _Graph:
    """The drawing between `=== System` and the rule below it, by indentation."""

    def __init__(self, lines: list[str]) -> None:
        self.gpus: dict[str, tuple[pci.Place, int | None]] = {}
        self.nets: dict[int, tuple[pci.Place | None, int | None, float | None]] = {}
        self.links: dict[tuple[str, str], int] = {}
        self.switched: dict[str, int] = {}
        numa: int | None = None
        stack: list[tuple[int, str, str]] = []  # indentation, kind, name
        for line in lines:
            if match := _CPU.match(line):
                numa, stack = int(match[1], 16), []
                continue
            edge = _EDGE.match(line)
            if edge is None:
                continue
            depth, width, kind, name = len(edge[1]), float(edge[3]) if edge[3].count(".") < 2 else 0.0, edge[4], edge[5]
            while stack and stack[-1][0] >= depth:
                stack.pop()
            self._take(edge[2], kind, name, edge[6] or "", width, numa, stack)
            stack.append((depth, kind, name))

    def _take(
        self,
        way: str,
        kind: str,
        name: str,
        more: str,
        width: float,
        numa: int | None,
        stack: list[tuple[int, str, str]],
    ) -> None:
        chain = tuple(f"{k}/{n}" for _, k, n in stack if k in ("PCI", "NIC"))
        if kind == "GPU" and way == "PCI":
            address = _bus(name.lower())
            if address is not None:
                self.gpus[address] = (pci.Place(f"numa{numa}", (*chain, address)), numa)
        elif kind == "NET":
            rate = re.search(r"([\d.]{1,12})$", more)
            number = int(name, 16)
            speed = (
                float(rate[1]) * 1e9 if rate and rate[1].count(".") < 2 and any(c.isdigit() for c in rate[1]) else None
            )
            self.nets[number] = (pci.Place(f"numa{numa}", (*chain, f"NET/{name}")), numa, speed or None)
        elif way == "NVL" and stack and stack[-1][1] == "GPU":
            mine = _bus(stack[-1][2].lower())
            count = _links(width)
            if mine is not None and kind == "NVS":
                self.switched[mine] = count
            elif mine is not None and kind == "GPU" and (other := _bus(name.lower())) is not None:
                self.links[min(mine, other), max(mine, other)] = count


def _links(width: float) -> int:
    """How many NVLinks make a width: the rate of one that divides it best."""
    return max(1, min((abs(width / one - round(width / one)), round(width / one)) for one in _LINK)[1])

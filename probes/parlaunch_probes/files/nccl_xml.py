"""NCCL's topology XML: dumps (NCCL_TOPO_DUMP_FILE) and the files that cloud vendors publish (NCCL_TOPO_FILE).

Dumps are complete. Vendors' files are cut to what NCCL needs: PCI classes only, GPUs left out, invented switches.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from parlaunch.data import load
from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.datasheet import preset, preset_of, product
from parlaunch_probes import pci
from parlaunch_probes.files.clean import whole
from parlaunch_probes.files.conclude import by_device
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.files.topo_m import kind_of
from parlaunch_probes.text import pci_address

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

WHAT = "NCCL topology XML"
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_MACHINE = re.compile(r"[A-Za-z][\w-]*(?:[._][\w-]+)+")


@dataclass(slots=True)
class _Found:
    gpus: list[tuple[str, int | None, tuple[str, ...], Element]] = field(default_factory=list)
    nics: list[tuple[str | None, int | None, tuple[str, ...], Element]] = field(default_factory=list)
    bare: list[tuple[str, int | None, tuple[str, ...]]] = field(default_factory=list)  # neither class nor content
    switches: list[str] = field(default_factory=list)
    others: int = 0  # GPUs of another maker


def find(root: Element, text: str) -> Facts | None:
    """The machine of a topology, the first one's where it shows several; None when the root is another format's."""
    if root.tag != "system" or root.find("cpu") is None:
        return None
    cpus = root.findall("cpu")
    return _host([c for c in cpus if c.get("host_hash") == cpus[0].get("host_hash")], text)


def hosts(root: Element, text: str) -> list[Facts]:
    """The machines of a dump that NCCL wrote for several (NVLink between nodes); nothing for any other root."""
    if root.tag != "system":
        return []
    groups: dict[str | None, list[Element]] = defaultdict(list)
    for cpu in root.findall("cpu"):
        groups[cpu.get("host_hash")].append(cpu)
    if len(groups) < 2:
        return []
    found = [_host(cpus, text) for cpus in groups.values()]
    for facts in found:  # NCCL draws several hosts together only where one NVLink domain joins them
        facts.gpus = [replace(g, fabric_id=("NCCL topology", 0)) for g in facts.gpus]
    return found


def _host(cpus: list[Element], text: str) -> Facts:
    found = _Found()
    for cpu in cpus:
        _walk(cpu, whole(cpu.get("numaid")), (), found, 0)
    facts = Facts(WHAT)
    facts.preset = _named(text)
    _classify(found, facts)
    if found.others:
        facts.notes.append(f"{found.others} GPUs of another maker than NVIDIA in this file: left out")
    places: dict[int, tuple[pci.Place, int | None]] = {}
    for index, (bus, numa, chain, element) in enumerate(sorted(found.gpus, key=lambda g: g[0])):
        facts.gpus.append(_gpu(index, bus, numa, element))
        places[index] = (pci.Place(f"numa{numa}", chain), numa)
    if not found.gpus and facts.preset is not None:
        _left_out(found, facts, places)
    _links(found, facts)
    if facts.preset is None and found.gpus and all(g.name == UNKNOWN for g in facts.gpus):
        facts.preset = _by_addresses([g[0] for g in found.gpus])
        if facts.preset is not None:
            facts.notes.append(f"the PCI addresses are those of {facts.preset} and its sister sizes")
    for bus_, numa, chain, element in found.nics:
        # A port without a PCI address (a socket) is listed under every CPU.
        names = {(n.name, n.port, n.pci) for n in facts.nics}
        made = _nics(bus_, numa, chain, element, places, facts)
        facts.nics += [n for n in made if (n.name, n.port, n.pci) not in names]
    if found.switches:
        facts.switched = True
        facts.node.setdefault("nvswitches_pci", len(found.switches))
    _cpu(cpus[0], facts)
    return facts


def _walk(element: Element, numa: int | None, chain: tuple[str, ...], found: _Found, depth: int) -> None:
    if depth > 32:
        return
    for child in element:
        if child.tag in ("nic", "net") and not chain:
            found.nics.append((None, numa, (), child))
        if child.tag != "pci":
            continue
        raw = (child.get("busid") or "").lower()
        bus = pci_address(raw)
        if bus is None:  # vendors invent switches at ffff:ff:01.0
            if raw and child.find("pci") is not None:
                _walk(child, numa, (*chain, raw), found, depth + 1)
            continue
        kind = (child.get("class") or "").lower().removeprefix("0x")[:4]
        below = (*chain, bus)
        if (kind in ("0302", "0300") or child.find("gpu") is not None) and _other_maker(child):
            found.others += 1
        elif kind in ("0302", "0300") or child.find("gpu") is not None:
            found.gpus.append((bus, numa, below, child))
        elif kind in ("0200", "0207") or child.find("nic") is not None:
            found.nics.append((bus, numa, below, child))
        elif kind == "0680":
            found.switches.append(bus)
        elif not kind and child.find("pci") is None:
            found.bare.append((bus, numa, below))
        _walk(child, numa, below, found, depth + 1)


def _other_maker(element: Element) -> bool:
    return (element.get("vendor") or "0x10de").lower() != "0x10de" or element.find("gpu/xgmi") is not None


def _named(text: str) -> str | None:
    """The machine that a comment of the file names."""
    for comment in _COMMENT.findall(text[:20_000]):
        for word in _MACHINE.findall(comment):
            known = preset_of(word.strip("._-"))
            if known is not None:
                return known
    return None


def _by_addresses(buses: list[str]) -> str | None:
    table = load("presets.json")["pci_addresses"]
    return next((name for name, known in table.items() if known == sorted(buses)), None)


def _classify(found: _Found, facts: Facts) -> None:
    """Tell GPUs from NICs where the file gives neither classes nor content: by the numbers that the machine has."""
    from xml.etree.ElementTree import Element

    if not found.bare:
        return
    if facts.preset is None:
        facts.notes.append(
            f"{len(found.bare)} PCI devices have no class in this file: neither GPUs nor NICs can be told"
        )
        return
    known = preset(facts.preset)
    gpus, ports = len(known.nodes[0].gpus), known.fabric.rails or 0
    groups: dict[tuple[str, ...], list[tuple[str, int | None, tuple[str, ...]]]] = defaultdict(list)
    for device in sorted(found.bare):
        groups[device[2][:-1]].append(device)
    if len(found.bare) == ports and gpus != ports:
        parts = [(0, devices) for devices in groups.values()]
    elif len(groups) > 1 and len({len(d) for d in groups.values()}) == 1 and all(groups):
        parts = [(gpus // len(groups), devices) for devices in groups.values()]
    else:
        parts = [(gpus, sorted(found.bare))]
    for count, devices in parts:  # these vendors give the NICs the lower addresses
        for n, (bus, numa, chain) in enumerate(devices):
            if n >= len(devices) - count:
                found.gpus.append((bus, numa, chain, Element("pci")))
            else:
                found.nics.append((bus, numa, chain, Element("pci")))


def _left_out(found: _Found, facts: Facts, places: dict[int, tuple[pci.Place, int | None]]) -> None:
    """GPUs that the file leaves out, one behind each switch that the ports are behind."""
    groups = sorted({(chain[:-1], numa) for _, numa, chain, _ in found.nics if len(chain) > 1})
    known = preset(facts.preset or "").nodes[0].gpus
    if len(groups) != len(known):
        return
    facts.notes.append(f"no GPU in this file: the {len(known)} of {facts.preset}, one behind each switch")
    for gpu, (above, numa) in zip(known, groups, strict=True):
        facts.gpus.append(Gpu(index=gpu.index, name=gpu.name, numa=numa))
        places[gpu.index] = (pci.Place(f"numa{numa}", (*above, "gpu")), numa)


def _gpu(index: int, bus: str, numa: int | None, element: Element) -> Gpu:
    inner = element.find("gpu")
    sm = whole(inner.get("sm")) if inner is not None else None
    width, speed = whole(element.get("link_width")), element.get("link_speed") or ""
    generation = {
        "2.5": 1,
        "5": 2,
        "5.0": 2,
        "8": 3,
        "8.0": 3,
        "16": 4,
        "16.0": 4,
        "32": 5,
        "32.0": 5,
        "64": 6,
        "64.0": 6,
    }
    gpu = Gpu(
        index=index,
        name=UNKNOWN,
        pci=bus,
        numa=numa if numa is not None and numa >= 0 else None,
        compute_capability=(sm // 10, sm % 10) if sm else None,
        pcie_gen=generation.get(speed.split(" ")[0]),
        pcie_width=width or None,
    )
    vendor, device = element.get("vendor"), element.get("device")
    return by_device(gpu, device if vendor in (None, "0x10de") else None)


@dataclass(slots=True)
class _Ends:
    """Where the NVLinks of a file lead, in links; GPUs by their index."""

    number: dict[str | None, int]  # of the GPU at a PCI address
    links: dict[tuple[int, int], int] = field(default_factory=dict)
    totals: dict[int, int] = field(default_factory=dict)
    itself: dict[int, int] = field(default_factory=dict)  # links that lead to the GPU they start from
    switches: set[str] = field(default_factory=set)
    switched: bool = False
    unnamed: bool = False  # a switch whose address is hidden
    foreign: bool = False  # a GPU that the file does not hold

    def add(self, bus: str, link: Element) -> None:
        mine, count = self.number[bus], whole(link.get("count")) or 1
        kind, target = (link.get("tclass") or "").lower(), pci_address(link.get("target") or "")
        self.totals[mine] = self.totals.get(mine, 0) + count
        if target == bus:
            self.itself[mine] = count
        elif target in self.number:
            key = (min(mine, self.number[target]), max(mine, self.number[target]))
            self.links[key] = max(self.links.get(key, 0), count)
        elif kind.startswith("0x0680"):
            self.switched = True
            self.unnamed = self.unnamed or target is None
            self.switches |= {target} if target is not None else set()
        elif kind.startswith(("0x0302", "0x0300")):
            self.foreign = True


def _links(found: _Found, facts: Facts) -> None:
    elements = {g[0]: g[3].find("gpu") for g in found.gpus}
    if not any(e is not None for e in elements.values()):
        return
    ends = _Ends({g.pci: g.index for g in facts.gpus})
    for bus, inner in elements.items():
        for link in inner.findall("nvlink") if inner is not None else ():
            ends.add(bus, link)
    facts.switched, facts.hidden = facts.switched or ends.switched, facts.hidden or ends.foreign
    if ends.switches:
        facts.node["nvswitches_pci"] = len(ends.switches)
    if ends.itself:
        _own_ends(ends.itself, ends.links, facts)
    if ends.unnamed and not _blackwell(facts):
        facts.notes.append(
            "the NVLinks' far ends are hidden: NVSwitches that a hypervisor keeps from this machine; where the PCIe paths "
            "look flat too, give NCCL the vendor's file (NCCL_TOPO_FILE)"
        )
    if all(g.numa is None for g in facts.gpus) and facts.gpus:
        facts.notes.append("numaid is -1: PCIe locality is hidden; the vendor's NCCL_TOPO_FILE would tell")
    if ends.totals:
        facts.gpus = [replace(g, nvlinks=ends.totals.get(g.index, 0)) for g in facts.gpus]
    # A dump has every device's ids. Without them the file was written by hand, and silence on NVLink means nothing.
    dump = any(g[3].get("device") for g in found.gpus)
    if not facts.switched and (ends.links or dump):
        facts.links = ends.links


def _blackwell(facts: Facts) -> bool:
    """NVLink 5 switches show no address to anyone: nothing is hidden there."""
    return any(g.compute_capability is not None and g.compute_capability[0] >= 10 for g in facts.gpus)


def _own_ends(itself: dict[int, int], links: dict[tuple[int, int], int], facts: Facts) -> None:
    """A mistake seen in published files: every link leads to the GPU that it starts from."""
    sheet = product(facts.gpus[0].name)
    boards = sheet.board if sheet is not None else None
    if not links and boards in (None, "bridge", "pairs") and len(itself) % 2 == 0:
        order = sorted(itself)
        for a, b in zip(order[::2], order[1::2], strict=True):
            links[a, b] = itself[a]
        taken = "taken for bridges between neighbours"
    else:
        taken = "left out"
    facts.notes.append(f"every NVLink of this file leads back to its own GPU, a mistake in the file: {taken}")


def _nics(
    bus: str | None,
    numa: int | None,
    chain: tuple[str, ...],
    element: Element,
    places: dict[int, tuple[pci.Place, int | None]],
    facts: Facts,
) -> list[Nic]:
    mine = pci.Place(f"numa{numa}", chain) if chain else None
    ways = []
    for index, (place, other) in places.items():
        known = numa is not None and numa >= 0 and other is not None and other >= 0
        level = pci.distance(place, mine, other if known else None, numa if known else None, vm=not known)
        if mine is None and known:
            level = "NODE" if numa == other else "SYS"
        # The file puts everything right below the CPU that is not behind a switch: the host bridge is not known.
        ways.append((index, "NODE" if level == "PHB" else level))
    distances = tuple((i, level) for i, level in ways if level is not None)
    vendor = (element.get("vendor") or "").lower()
    infiniband = (element.get("class") or "").lower().startswith("0x0207")
    expected = preset(facts.preset).fabric.kind if facts.preset is not None else None
    nets = [element] if element.tag == "net" else element.findall("nic/net") or element.findall("net")
    out = []
    for net in (*nets,) or (None,):
        name = (net.get("name") if net is not None else None) or bus or "nic"
        kind = "infiniband" if infiniband else kind_of(name)
        if not infiniband and vendor == "0x1d0f":
            kind = "efa"
        elif not infiniband and kind == UNKNOWN:
            plain = name.startswith(("eth", "en", "bond")) and not name.startswith("mlx")
            kind = (
                "ethernet"
                if plain
                else expected or ("roce" if vendor == "0x15b3" or name.startswith("mlx") else UNKNOWN)
            )
        speed = whole(net.get("speed")) if net is not None else None
        out.append(
            Nic(
                name=name,
                kind=kind,
                port=whole(net.get("port")) if net is not None and "port" in net.attrib else None,
                pci=bus,
                numa=numa if numa is not None and numa >= 0 else None,
                bytes_per_s=speed * 1e6 / 8 if speed else None,
                guid=net.get("guid") if net is not None else None,
                distances=distances,
            )
        )
    return out


def _cpu(cpu: Element, facts: Facts) -> None:
    vendor, arch = cpu.get("vendor") or "", cpu.get("arch") or ""
    if arch.startswith("ppc64"):
        facts.node["cpu_model"] = "POWER"
    elif vendor:
        facts.node["cpu_model"] = f"{vendor} family {cpu.get('familyid')} model {cpu.get('modelid')}"

"""From what a file says to a machine: who is joined to whom, which ports are rails, what stays unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.hardware.cluster import UNKNOWN, Cluster, Fabric, Gpu, Nic, Node, domains_of
from parlaunch.hardware.datasheet import Product, name_of_pci, nvml_name, preset, product_of_pci
from parlaunch.hardware.derived import is_virtual, sheet_of
from parlaunch.hardware.ports import family_rate, no_way_out
from parlaunch_probes import rails
from parlaunch_probes.fabric import GB10, nvlink5
from parlaunch_probes.files.boards import Board, assumed, by_shape
from parlaunch_probes.files.facts import Facts, filled
from parlaunch_probes.files.lost import numbered

MANAGEMENT = 1e9 / 8  # bytes/s of the ports that servers are managed by
MOST_LINKS = 18  # of one GPU up to Blackwell, where the product is not known


def node_of(facts: Facts) -> tuple[Node, Fabric, tuple[str, ...]]:
    """The node that the facts describe, what joins it to others, and what to know about both."""
    notes = list(facts.notes)
    gpus = _named(facts, notes)
    sheet = sheet_of(gpus[0]) if gpus else None
    board = _board(facts, gpus, sheet, notes)
    gpus = [_linked(g, board, facts) for g in gpus]
    nics = _chosen(facts.nics, gpus)
    notes += rails.dark_notes(nics)
    if not (gpus or facts.lost or facts.node.get("gpus_pci")):
        notes.append("the GPUs are not in this file: add the output of `nvidia-smi -L` or `nvidia-smi -q` to it")
    if gpus and all(g.numa is None for g in gpus):
        notes.append("the NUMA nodes of the GPUs are not in this file")
    missing = facts.attached is not None and facts.attached > len(gpus) + len(facts.lost)
    if missing:
        notes.append(f"the driver counts {facts.attached} GPUs, this file shows {len(gpus)}: cut off, or GPUs missing")
    given: dict[str, Any] = {"hostname": "node0", "gpus_unusable": numbered(facts.lost, gpus)} | facts.node
    if gpus and missing:
        given.setdefault("gpus_pci", facts.attached)
    triplets = tuple((a, b, n) for (a, b), n in sorted((facts.links or {}).items()) if n)
    node = Node(**given, gpus=tuple(gpus), nics=nics, nvlinks=triplets, link_type=board.link_type)
    fabric = _fabric(facts, nics, gpus, notes)
    _mig(gpus, notes)
    return node, fabric, tuple(dict.fromkeys(notes))


def cluster_of(facts: Facts, source: str) -> Cluster:
    """A cluster of the one node that the facts describe."""
    node, fabric, notes = node_of(facts)
    return Cluster(source=source, nodes=(node,), nvlink_domains=domains_of((node,)), fabric=fabric, notes=notes)


def _named(facts: Facts, notes: list[str]) -> list[Gpu]:
    gpus = sorted(facts.gpus, key=lambda g: g.index)
    if facts.product is not None:
        given = nvml_name(facts.product)
        if gpus and any(g.name == UNKNOWN for g in gpus):
            notes.append(f"the GPU is taken to be {given}, as --gpu says")
            gpus = [replace(g, name=given) if g.name == UNKNOWN else g for g in gpus]
    if facts.preset is not None:
        known = preset(facts.preset).nodes[0].gpus
        name = known[0].name
        if not gpus:
            notes.append(f"no GPU in this file: the {len(known)} of {facts.preset}")
            # What the preset knows of its links is concluded again below, with everything else.
            gpus = [Gpu(index=g.index, name=g.name) for g in known]
        elif all(g.name == UNKNOWN for g in gpus):
            notes.append(f"the GPU model is not in this file: {name} as {facts.preset} has it")
            gpus = [replace(g, name=name) for g in gpus]
    elif gpus and all(g.name == UNKNOWN for g in gpus) and not facts.unsure:
        notes.append("the GPU model is not in this file: add the output of `nvidia-smi -L` or `nvidia-smi -q` to it")
    whole = []
    for gpu in gpus:
        sheet = sheet_of(gpu)
        if sheet is not None and gpu.compute_capability is None:
            gpu = replace(gpu, compute_capability=sheet.compute_capability)
        if gpu.vgpu is None and is_virtual(gpu.name):
            gpu = replace(gpu, vgpu=True)
        whole.append(gpu)
    return whole


def _board(facts: Facts, gpus: list[Gpu], sheet: Product | None, notes: list[str]) -> Board:
    usable = [g for g in gpus if not g.mig]
    wired = [g for g in usable if g.nvlinks != 0] or usable
    if facts.links is not None:
        return _seen(facts, usable, sheet, notes)
    if facts.switched and gpus:
        everyone = tuple(g.index for g in wired)
        kind = "nvswitch_mnnvl" if sheet is not None and sheet.board == "nvswitch_mnnvl" else "nvswitch"
        return Board(kind, (everyone,) if len(everyone) > 1 else ())
    if facts.preset is not None and gpus:
        row = preset(facts.preset).nodes[0]
        groups = {g.nvlink_domain for g in row.gpus if g.nvlink_domain is not None}
        notes.append(f"NVLink is not in this file: {row.link_type} as {facts.preset} has it")
        size = len(row.gpus) // len(groups) if groups else 0
        found = tuple(tuple(g.index for g in gpus[i : i + size]) for i in range(0, len(gpus), size)) if size > 1 else ()
        return Board(row.link_type, tuple(g for g in found if len(g) > 1))
    virtual = facts.node.get("virtual") is not None
    board = assumed(
        wired or gpus, sheet, power=(facts.node.get("cpu_model") or "").startswith("POWER"), virtual=virtual
    )
    if sheet is None and usable:
        board = by_shape(usable, facts.nics)
    if gpus and not usable:
        board = replace(board, groups=())
    if board.groups:
        waiting = [g.index for g in usable if g.fabric_state in ("in_progress", "not_started")]
        if waiting and board.link_type in ("nvswitch", "nvswitch_mnnvl"):
            notes.append(
                f"GPU {', '.join(map(str, waiting))} is not registered with the NVSwitch fabric: not usable yet"
            )
            board = replace(board, groups=tuple(tuple(i for i in g if i not in waiting) for g in board.groups))
    if board.note and (board.groups or board.link_type == "none"):
        notes.append(board.note)
    return replace(board, groups=tuple(g for g in board.groups if len(g) > 1))


def _seen(facts: Facts, gpus: list[Gpu], sheet: Product | None, notes: list[str]) -> Board:
    """The kind of links from their number between each pair."""
    links = facts.links or {}
    indices = [g.index for g in gpus]
    groups = components(indices, links)
    if not groups:
        if facts.hidden:
            return Board(None)
        return Board("none")
    pair = {(a, b): n for (a, b), n in links.items() if n}
    complete = all(_key(a, b) in pair for g in groups for a in g for b in g if a < b)
    most = max(sum(n for (a, b), n in pair.items() if i in (a, b)) for i in indices)
    limit = (sheet.nvlinks if sheet is not None else None) or MOST_LINKS
    highest = max(pair.values())
    sxm = sheet is not None and sheet.board in ("nvswitch", "nvswitch_mnnvl")
    grace = any(g.numa_memory is not None for g in gpus) and highest >= MOST_LINKS and len(gpus) > 2
    alone = [i for i in indices if not any(i in g for g in groups)]
    # Behind switches every pair shows all links of a GPU; shared out among its neighbours, they lead there directly.
    shared_out = complete and most == limit and all(len(g) > 2 for g in groups)
    if (sheet is not None and sheet.board == "nvswitch_mnnvl" and not shared_out) or grace:
        kind = "nvswitch_mnnvl"
    elif facts.switched or most > limit or (sxm and highest == limit and _pairs_of_two(groups)):
        kind = "nvswitch"
    elif not complete:
        kind = "cube_mesh"
    elif _pairs_of_two(groups):
        # All links to one other GPU: two of a board with switches. Several such pairs are bridged (H200 NVL has 18 too).
        alone_together = len(groups) == 1 and highest >= MOST_LINKS
        unnamed = sheet is None and alone_together and not any(g.numa_memory is not None for g in gpus)
        kind = "nvswitch" if unnamed else "pairs"
    else:
        kind = "mesh"
    if alone and kind in ("nvswitch", "nvswitch_mnnvl"):
        notes.append(
            f"GPU {', '.join(map(str, alone))} has no NVLink on a machine with NVSwitches: lost from the fabric "
            "(`nvidia-smi nvlink -s`, `nvidia-smi -q` Fabric); reset it or leave it out"
        )
    fewer = sorted({n for n in pair.values() if kind in ("nvswitch", "nvswitch_mnnvl") and n < highest})
    if fewer:
        low = sorted({i for (a, b), n in pair.items() if n < highest for i in (a, b)})
        notes.append(f"fewer NVLinks than {highest} between some pairs of GPUs {low}: links are down")
    return Board(kind, groups)


def components(indices: Sequence[int], links: Mapping[tuple[int, int], int]) -> tuple[tuple[int, ...], ...]:
    """Groups of two and more that reach each other over links."""
    group = {i: i for i in indices}
    for (a, b), count in links.items():
        if count and a in group and b in group and group[a] != group[b]:
            old, new = max(group[a], group[b]), min(group[a], group[b])
            group = {i: new if g == old else g for i, g in group.items()}
    found: dict[int, list[int]] = {}
    for i in indices:
        found.setdefault(group[i], []).append(i)
    return tuple(tuple(g) for g in found.values() if len(g) > 1)


def _pairs_of_two(groups: Sequence[Sequence[int]]) -> bool:
    return all(len(g) == 2 for g in groups)


def _key(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _linked(gpu: Gpu, board: Board, facts: Facts) -> Gpu:
    domain = next((n for n, group in enumerate(board.groups) if gpu.index in group), None)
    nvlinks = gpu.nvlinks
    if nvlinks is None and facts.links is not None and not facts.hidden:
        mine = [n for (a, b), n in facts.links.items() if gpu.index in (a, b) and n]
        switched = board.link_type in ("nvswitch", "nvswitch_mnnvl")
        nvlinks = max(mine, default=0) if switched else sum(mine)
    return replace(gpu, nvlink_domain=domain, nvlinks=nvlinks)


def _chosen(nics: Sequence[Nic], gpus: Sequence[Gpu]) -> tuple[Nic, ...]:
    """Rails chosen as on a live machine. Kinds and rates that the file does not say are filled in for the choice only."""
    if not nics:
        return ()
    cards = {n.card for n in nics if n.virtual_function is False}
    tried = []
    unrated = any(n.kind == "ethernet" and (n.bytes_per_s or family_rate(n)) is None for n in nics)
    if any(g.compute_capability == GB10 for g in gpus) and not any(n.twin for n in nics):
        nics = rails.with_twins(
            nics, [re.sub(r"^roce(P\d+)?p", "p", n.name) if n.name.startswith("roce") else None for n in nics]
        )
    for nic in rails.without_management(nics, nvlink5=nvlink5(gpus)):
        why = nic.why_not or no_way_out(nic.netdev or nic.name)
        if why is None and nic.kind == "ethernet" and re.match(r"ib[\dps]", nic.name):
            why = "IP over InfiniBand: the port itself is used"
        if why is None and nic.virtual_function and nic.card in cards:
            why = f"a virtual function of the card {nic.card}, which is here itself"
        bonded = nic.bond or (nic.name if "bond" in nic.name else None)
        kind = "roce" if nic.kind == UNKNOWN else nic.kind
        rate = nic.bytes_per_s or family_rate(nic)
        if why is None and kind == "ethernet" and rate is not None and rate <= MANAGEMENT and unrated:
            why = "a port for management beside others of an unknown rate"
        tried.append(
            replace(nic, kind=kind, bytes_per_s=rate if nic.up is not False else None, why_not=why, bond=bonded)
        )
    picked = rails.choose(tried, len(gpus))
    return tuple(
        replace(after, kind=before.kind, bytes_per_s=before.bytes_per_s, why_not=_words(after, before))
        for before, after in zip(nics, picked, strict=True)
    )


def _words(after: Nic, before: Nic) -> str | None:
    why = after.why_not
    if why is not None and before.why_not is None and before.bytes_per_s is None and "Gb/s" in why:
        return "a slower or other kind of port than the rails"
    return why


def _fabric(facts: Facts, nics: tuple[Nic, ...], gpus: Sequence[Gpu], notes: list[str]) -> Fabric:
    if nics:
        if any(n.rail for n in nics):
            found = rails.fabric_of(nics, gpus)
            if facts.preset is not None:
                known = preset(facts.preset).fabric
                if found.kind == UNKNOWN or (found.kind in ("ethernet", "roce") and known.kind in ("efa", "roce")):
                    found = replace(found, kind=known.kind)
                if all(n.name == n.pci for n in nics if n.rail) and (found.rails or 0) < (known.rails or 0):
                    notes.append(f"the file lists network cards by PCI address; {facts.preset} has {known.rails} ports")
                    found = replace(found, rails=known.rails)
                if found.bytes_per_s_per_gpu is None:
                    found = replace(found, bytes_per_s_per_gpu=known.bytes_per_s_per_gpu)
            if found.bytes_per_s_per_gpu is None and gpus:
                notes.append("the rate of the network ports is not in this file")
            return found
        notes.append("no network port here can carry GPU traffic between nodes")
        return Fabric(kind="none")
    if facts.preset is not None:
        notes.append(f"no network port in this file: {preset(facts.preset).fabric.kind} as {facts.preset} has it")
        return preset(facts.preset).fabric
    notes.append("the network is not in this file")
    return Fabric(kind=UNKNOWN)


def _mig(gpus: Sequence[Gpu], notes: list[str]) -> None:
    on = [g for g in gpus if g.mig]
    if on:
        slices = sum(len(g.mig_devices) for g in on)
        notes.append(
            f"MIG is on for GPU {', '.join(str(g.index) for g in on)} ({slices} slices): slices have no NVLink and no NCCL "
            "between them; turn MIG off (`nvidia-smi -mig 0`) to train on the whole GPU"
        )


def with_board(node: Node, notes: list[str]) -> Node:
    """The node of a file tree with what joins its GPUs: NVSwitches on the bus, else the board of the product."""
    if not node.gpus or node.link_type is not None:
        return node
    facts = Facts("", gpus=list(node.gpus), switched=True if node.nvswitches_pci else None)
    facts.node = {"cpu_model": node.cpu_model or "", "virtual": node.virtual}
    sheet = sheet_of(node.gpus[0])
    board = _board(facts, list(node.gpus), sheet, notes)
    return replace(node, gpus=tuple(_linked(g, board, facts) for g in node.gpus), link_type=board.link_type)


def by_device(gpu: Gpu, device: str | None, sheet: Product | None = None) -> Gpu:
    """The GPU under the name that the driver gives to this PCI device id, where the file knew only the device; `sheet` is its
    product where the file told more."""
    sheet = sheet or (product_of_pci(device) if device else None)
    if sheet is not None:
        return filled(gpu, Gpu(index=gpu.index, name=nvml_name(sheet), compute_capability=sheet.compute_capability))
    name = name_of_pci(device) if device else None
    return gpu if name is None else filled(gpu, Gpu(index=gpu.index, name=name))

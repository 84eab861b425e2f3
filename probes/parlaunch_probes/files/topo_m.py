"""`nvidia-smi topo -m`: the matrix of GPUs and NICs, with the affinity columns of every driver and both legends.

Rows are read cell by cell, not by columns: pastes lose tabs ("PXBNODE") and terminals cut lines.
"""

from __future__ import annotations

import re
from dataclasses import replace

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch_probes.files.clean import commands
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import cpu_list

WHAT = "nvidia-smi topo -m"
LEVELS = {"PIX": "PIX", "PXB": "PXB", "PHB": "PHB", "NODE": "NODE", "SYS": "SYS", "SOC": "SYS", "PSB": "PIX"}
_LABEL = re.compile(r"GPU\d{1,3}|NIC\d{1,3}|[A-Za-z][\w.:-]{1,40}")
_CELL = re.compile(
    r"[ \t]*(NV\d{1,2}|NODE|SYS|SOC|PHB|PXB|PIX|PSB|N/A|X)(?=[ \t]|$|NV\d|NODE|SYS|SOC|PHB|PXB|PIX|PSB|X)"
)
_AFFINITY = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
# Beginnings of names that drivers and rdma-core give to devices, and what they tell of the fabric.
_KINDS = (
    ("rdmap", "efa"), ("efa", "efa"), ("bnxt_re", "roce"), ("irdma", "roce"), ("roce", "roce"), ("erdma", "roce"),
    ("ionic", "roce"), ("mana", "roce"), ("ibp", "infiniband"), ("ibs", "infiniband"), ("qib", "infiniband"),
    ("mlx5_ib", "infiniband"), ("mlx5_eth", "roce"), ("mlx5_an", "roce"),  # Azure's rules, and others after them
    ("hfi1", "omnipath"), ("opap", "omnipath"), ("cxi", "slingshot"), ("hsn", "slingshot"),
)  # fmt: skip
_LEGEND = re.compile(r"^\s*(NIC\d{1,3})\s*[:=]\s*([\w.:-]{1,60})\s*$")


@dataclass(frozen=True, slots=True)
class _Row:
    cells: tuple[str, ...]
    affinity: tuple[str, str, str]  # CPU, NUMA, GPU's own NUMA node; "" where there is none


def find(text: str) -> Facts | None:
    """The machine of the first matrix in the text; None when there is none."""
    lines = text.split("\n")
    blank: Facts | None = None
    for at, line in enumerate(lines):
        labels = _header(line)
        if labels is not None:
            rows, end = _rows(lines, at, labels)
            if any(label in rows for label in labels if label.startswith("GPU")):
                facts = _facts(lines, at, end, labels, rows)
                if any(len(row.cells) > 1 for row in rows.values()) or len(labels) == 1:
                    return facts
                blank = blank or facts  # `nvidia-smi topo -p2p`: as many GPUs, no paths
    return blank


def _header(line: str) -> list[str] | None:
    """The labels of the nodes, when this is the first line of a matrix."""
    bare = re.split("|".join(_AFFINITY), line, maxsplit=1)[0]
    if not bare.strip().startswith("GPU"):
        return None
    labels: list[str] = []
    for word in bare.split():
        joined = re.findall(r"GPU\d{1,3}|NIC\d{1,3}", word)
        if joined and "".join(joined) == word:
            labels += joined
        elif _LABEL.fullmatch(word):
            labels.append(word)
        else:
            return None
    gpus = [name for name in labels if re.fullmatch(r"GPU\d{1,3}", name)]
    # A row starts with its own label followed by cells; a header holds labels only, each once.
    if not gpus or len(set(labels)) != len(labels) or any(name in LEVELS or name in ("X", "OK") for name in labels):
        return None
    return labels


def _rows(lines: list[str], header: int, labels: list[str]) -> tuple[dict[str, _Row], int]:
    rows: dict[str, _Row] = {}
    end = header
    for at in range(header + 1, len(lines)):
        line = lines[at]
        label = line.split(maxsplit=1)[0] if line.strip() else ""
        if not label:
            if rows:
                break
            continue
        if label not in labels or label in rows:
            if rows or at > header + 3:
                break
            continue
        rows[label] = _row(line, line.index(label) + len(label), len(labels), lines[header])
        end = at
    return rows, end


def _row(line: str, start: int, count: int, header: str) -> _Row:
    cells: list[str] = []
    at = start
    while len(cells) < count and (match := _CELL.match(line, at)) is not None:
        cells.append(match[1])
        at = match.end()
    return _Row(tuple(cells), _affinity(line, at, header) if len(cells) == count else ("", "", ""))


def _affinity(line: str, at: int, header: str) -> tuple[str, str, str]:
    """CPU affinity may be blank, and people turn tabs into spaces: values go by their order where all are there, else
    by place, where the first heading takes only a value that starts below it."""
    rest = line[at:]
    names = [name for name in _AFFINITY if name in header]
    values = [(m.start() + at, m[0]) for m in re.finditer(r"[^\s]+", rest)]
    if len(values) >= len(names):
        found = dict(zip(names, (value for _, value in values), strict=False))
    elif "\t" in rest:
        fields = [f.strip() for f in rest.strip(" ").split("\t")][1:]
        fields = [*fields[:2], *(f for f in fields[2:] if f)]
        found = dict(zip(names, fields, strict=False))
    else:
        blank = bool(values) and names[:1] == ["CPU Affinity"] and values[0][0] > header.index("CPU Affinity") + 3
        found = dict(zip(names[1:] if blank else names, (value for _, value in values), strict=False))
    cpus, numa, own = (found.get(name, "") for name in _AFFINITY)
    return cpus, numa, own


def _facts(lines: list[str], header: int, end: int, labels: list[str], rows: dict[str, _Row]) -> Facts:
    facts = Facts(WHAT)
    gpus = [name for name in labels if re.fullmatch(r"GPU\d{1,3}", name)]
    nics = [name for name in labels if name not in gpus]
    column = {name: n for n, name in enumerate(labels)}

    def cell(a: str, b: str) -> str | None:
        for one, other in ((a, b), (b, a)):
            row = rows.get(one)
            if row is not None and column[other] < len(row.cells) and row.cells[column[other]] not in ("X", "N/A"):
                return row.cells[column[other]]
        return None

    number = {name: int(name[3:]) for name in gpus}
    links: dict[tuple[int, int], int] = {}
    far: list[tuple[int, int, str]] = []
    shown = False
    for n, a in enumerate(gpus):
        for b in gpus[n + 1 :]:
            word = cell(a, b)
            if word is None:
                continue
            shown = True
            if word.startswith("NV"):
                links[number[a], number[b]] = int(word[2:])
            else:
                far.append((number[a], number[b], LEVELS[word]))
    missing = [name for name in gpus if name not in rows or len(rows[name].cells) < len(labels)]
    if not shown and len(gpus) > 1:
        facts.notes.append(
            "this matrix shows no paths between GPUs (`nvidia-smi topo -p2p`?): give `nvidia-smi topo -m`"
        )
    elif missing:
        facts.notes.append(f"the rows of {', '.join(missing)} are cut off: filled from the other side of the matrix")
    facts.links = _links(lines, header, links, shown, len(gpus), facts)
    facts.gpus = _gpus(gpus, number, rows, facts, far, column="NUMA Affinity" in lines[header])
    facts.node["gpu_distances"] = tuple(far)
    names = {m[1]: m[2] for line in lines[end:] if len(line) < 200 and (m := _LEGEND.match(line))}
    for label in nics:
        ways = tuple((number[g], LEVELS[w]) for g in gpus if (w := cell(g, label)) in LEVELS)
        name = names.get(label, label)
        facts.nics.append(Nic(name=name, kind=kind_of(name), distances=ways, bond=name if "bond" in name else None))
    beside = [[at for at, other in enumerate(nics) if cell(label, other) == "PIX"] for label in nics]
    facts.nics = _guests(facts.nics, beside)
    if any(g.numa_memory is not None for g in facts.gpus):
        facts.nics = _front_ends(facts.nics, beside, len(gpus))
    return facts


def _guests(nics: list[Nic], beside: list[list[int]]) -> list[Nic]:
    """The functions that a bonded card has for guests: more ports behind the bond's one bridge than it has GPUs, all as far from
    every GPU as it is. The card's own ports are in the bond and do not show."""
    out = list(nics)
    for at, bond in enumerate(nics):
        near = sum(level in ("PIX", "PXB") for _, level in bond.distances)
        functions = [n for n in beside[at] if nics[n].bond is None and nics[n].distances == bond.distances]
        if bond.bond is not None and len(functions) >= 4 and len(functions) > near:
            out[at] = replace(bond, card=bond.name, virtual_function=False)
            for n in functions:
                out[n] = replace(nics[n], card=bond.name, virtual_function=True)
    return out


def _front_ends(nics: list[Nic], beside: list[list[int]], gpus: int) -> list[Nic]:
    """Grace's ports are beside no GPU. Rails are cards of one port there, one for each GPU; cards of two are BlueFields for the
    front end and storage (NVIDIA's GB200 NVL72 tray)."""
    alone = [at for at, others in enumerate(beside) if not others]
    if len(alone) != gpus or any(level in ("PIX", "PXB") for n in nics for _, level in n.distances):
        return nics
    why = "a card of two ports where the rails have a card each: a storage or front-end port"
    return [n if at in alone else replace(n, why_not=why) for at, n in enumerate(nics)]


def _links(
    lines: list[str], header: int, links: dict[tuple[int, int], int], shown: bool, gpus: int, facts: Facts
) -> dict[tuple[int, int], int] | None:
    """None where the matrix cannot tell: `topo -mp` leaves NVLink out, and its legend does not speak of NV#."""
    if links or gpus == 1 or not shown:
        return links if links else None
    asked = [c for c in commands("\n".join(lines[: header + 1])) if "topo" in c]
    without = bool(asked) and re.search(r"\s-(mp|m?p2p)\b", asked[-1]) is not None
    legend = [line for line in lines[header:] if re.match(r"\s*(X|SYS|SOC|NODE|PHB|PXB|PIX|NV#)\s+=\s", line)]
    old = any(re.match(r"\s*SOC\s+=\s", line) for line in legend)  # drivers from before NVLink
    if without or (legend and not old and not any("NV#" in line for line in legend)):
        facts.notes.append(
            "only PCIe paths are in this matrix (`nvidia-smi topo -mp`?): NVLink is not known; `nvidia-smi topo -m` shows it"
        )
        return None
    if not legend:
        facts.notes.append("no legend below the matrix: taken for `nvidia-smi topo -m`, so no NVLink here")
    return {}


def _gpus(
    names: list[str],
    number: dict[str, int],
    rows: dict[str, _Row],
    facts: Facts,
    far: list[tuple[int, int, str]],
    *,
    column: bool,
) -> list[Gpu]:
    gpus = []
    masked: dict[str, list[str]] = {}
    ranges = {rows[n].affinity[1] for n in names if n in rows}
    for name in names:
        cpus, numa, own = rows[name].affinity if name in rows else ("", "", "")
        nodes = cpu_list(numa) if re.search(r"\d", numa) else None
        node = None
        if nodes and (len(nodes) == 1 or own.isdigit() or (len(ranges) == len(names) > 1 and not _apart(nodes))):
            node = nodes[0]  # on Grace the CPU's node comes first, memory nodes follow
        elif nodes:
            masked.setdefault(numa, []).append(name)
        listed = cpu_list(cpus) if re.search(r"\d", cpus) else None
        gpus.append(
            Gpu(
                index=number[name],
                name=UNKNOWN,
                numa=node,
                numa_memory=int(own) if own.isdigit() and len(own) < 9 else None,
                cpus=listed or None,
            )
        )
    for numa, those in masked.items():
        facts.notes.append(
            f"NUMA affinity {numa} of {', '.join(those)} is a range, not a node: the job sees a part of the CPUs"
        )
    if not column:
        gpus = _by_cpus(gpus, far, facts)
    return _grace_pairs(gpus, facts)


def _apart(nodes: tuple[int, ...]) -> bool:
    """A plain range from 0, as a masked affinity shows it."""
    return nodes == tuple(range(len(nodes)))


def _by_cpus(gpus: list[Gpu], far: list[tuple[int, int, str]], facts: Facts) -> list[Gpu]:
    """Old drivers have no NUMA column: GPUs with the same CPUs share a node, numbered by first CPU."""
    if any(g.cpus is None for g in gpus):
        return gpus
    sets = sorted({g.cpus for g in gpus if g.cpus})
    if len(sets) == 1 and any(level == "SYS" for _, _, level in far):
        return gpus  # the CPUs are masked: they tell nothing apart
    facts.notes.append("no NUMA column: nodes numbered by the GPUs' CPUs")
    return [replace(g, numa=sets.index(g.cpus)) if g.cpus else g for g in gpus]


def _grace_pairs(gpus: list[Gpu], facts: Facts) -> list[Gpu]:
    """Two GPUs hang on one Grace. When one of a pair is cut off, the other tells its node."""
    known = [g for g in gpus if g.numa_memory is not None and g.numa is not None]
    nodes = [g.numa for g in known]
    if len(gpus) != 4 or not known or len(set(nodes)) == len(nodes):
        return gpus
    by = {g.index: g.numa for g in gpus}
    filled = [g if g.numa is not None else replace(g, numa=by.get(g.index ^ 1)) for g in gpus]
    if filled != gpus:
        facts.notes.append("a GPU without affinity has the node of its neighbour on the same Grace")
    return filled


def kind_of(name: str) -> str:
    """What a verbs device's name tells of its fabric."""
    low = name.lower()  # rdma-core writes the PCI domain as P: roceP2p1s0f0, ibP18p3s0
    return next((kind for start, kind in _KINDS if low.startswith(start)), "roce" if "bond" in low else UNKNOWN)

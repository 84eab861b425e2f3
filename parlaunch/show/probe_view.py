"""What a probe found, on one screen: the host, the GPUs and their links, the ports and their place, what is wrong."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from parlaunch.doctor.finding import FAIL, INFO, WARN, Finding, numbers
from parlaunch.doctor.preflight import examine
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNKNOWN, Cluster, Gpu, Nic, Node
from parlaunch.hardware.installed import PACKAGES
from parlaunch.units import few

GIB = 1 << 30
STYLES = {"bad": "\x1b[1;31m", "odd": "\x1b[33m", "good": "\x1b[32m", "dim": "\x1b[2m", "head": "\x1b[1m"}
SEVERITY_STYLE = {FAIL: "bad", WARN: "odd", INFO: "dim"}
KINDS = {
    "nvswitch": "NVSwitch",
    "nvswitch_mnnvl": "NVSwitch beyond the node (multi-node NVLink)",
    "mesh": "direct links, all to all",
    "cube_mesh": "direct links, not between all",
    "pairs": "bridged pairs",
    "none": "none: PCIe only",
}
ROWS = 16  # ports that get a row each
LEVELS = ("PIX", "PXB", "PHB", "NODE", "SYS")


@dataclass(frozen=True, slots=True)
class Cell:
    """A word of a table, with its style."""

    text: str
    style: str = ""
    right: bool = False

    def __len__(self) -> int:
        return len(self.text)


def _paint(text: str, style: str, colour: bool) -> str:
    return f"{STYLES[style]}{text}\x1b[0m" if colour and style and text.strip() else text


def _table(rows: Sequence[Sequence[Cell]], width: int, colour: bool) -> list[str]:
    """Columns two blanks apart; the last one is cut at `width`."""
    columns = max((len(row) for row in rows), default=0)
    # The last cell of a row may run on: it makes no column wider.
    wide = [max((len(row[at]) for row in rows if len(row) > at + 1), default=0) for at in range(columns)]
    lines = []
    for row in rows:
        parts, used = ["  "], 2
        for at, cell in enumerate(row):
            text = cell.text
            if at == len(row) - 1 and used + len(text) > width:
                text = text[: max(1, width - used - 1)] + "…"
            pad = max(0, wide[at] - len(text)) if at < columns - 1 else 0
            shown = _paint(text, cell.style, colour)
            parts.append(" " * pad + shown if cell.right else shown + " " * pad)
            used += len(text) + pad
            if at < len(row) - 1:
                parts.append("  ")
                used += 2
        lines.append("".join(parts).rstrip())
    return lines


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)


def _size(number: int | float) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number / (1 << 20):.0f} MiB"


def _rate(bytes_per_s: float | None) -> str:
    return "rate ?" if bytes_per_s is None else f"{bytes_per_s * 8 / 1e9:g} Gb/s"


def _host(node: Node, width: int, colour: bool) -> list[str]:
    cpu = node.cpu_model
    if cpu and node.sockets and node.cores:
        cpu += f", {node.sockets} socket{'s' if node.sockets > 1 else ''}, {node.cores} cores"
    memory = f"{_size(node.memory_bytes)} memory" if node.memory_bytes else None
    if memory and node.memory_limit_bytes:
        memory += f" ({_size(node.memory_limit_bytes)} for us)"
    numa = f"{node.numa_nodes} NUMA nodes" if node.numa_nodes and node.numa_nodes > 1 else None
    driver = f"driver {node.driver}" if node.driver else None
    if driver and node.cuda:
        driver += f", CUDA {node.cuda}"
    allowed = f"{len(node.cpus_allowed)} CPUs for us" if node.cpus_allowed else None
    if allowed and node.cpu_limit:
        allowed += f" (quota {node.cpu_limit:g})"
    guest = f"virtual machine ({node.virtual})" if node.virtual else None
    inside = f"container ({node.container})" if node.container else None
    kernel = f"Linux {node.kernel}" if node.kernel else None
    have = dict(node.software or ())
    software = [f"{words} {have[package]}" for package, words in PACKAGES.items() if have.get(package)]
    missing = [words for package, words in PACKAGES.items() if package in have and have[package] is None]
    absent = f"not installed: {', '.join(missing)}" if missing else None
    lines = [_paint(node.hostname, "head", colour)]
    for parts in ((cpu, memory, numa), (allowed, driver, kernel), (guest, inside), (*software, absent)):
        text = " · ".join(p for p in parts if p)
        lines += _wrapped(text, width) if text else []
    return lines


def _title(node: Node) -> list[str]:
    """How many GPUs of which kind, and how they are linked."""
    if not node.gpus:
        return ["no GPU that a job could use"]
    models = Counter((g.name, g.memory_bytes, g.compute_capability) for g in node.gpus)
    lines = []
    for (name, size, capability), count in models.items():
        text = f"{count} x {'GPU of an unknown model' if name == UNKNOWN else name}"
        text += f", {_size(size)}" if size else ""
        text += f", compute capability {capability[0]}.{capability[1]}" if capability else ""
        lines.append(text)
    kind = node.link_type or ""
    text = "NVLink: " + (KINDS.get(kind, kind) if kind else "not known")
    rates = sorted({(g.nvlinks, g.nvlink_bytes_per_s) for g in node.gpus if g.nvlinks}, reverse=True, key=str)
    if rates and kind not in ("", "none"):
        links, rate = rates[0]
        text += f"; {links} links" + (f", {rate / 1e9:g} GB/s each way" if rate else "") + " a GPU"
        text += "" if len(rates) == 1 else " at best"
    groups: dict[int, list[int]] = {}
    for gpu in node.gpus:
        if gpu.nvlink_domain is not None:
            groups.setdefault(gpu.nvlink_domain, []).append(gpu.index)
    if groups:
        text += "; together: " + " | ".join(numbers(g) for g in groups.values())
    lines.append(text)
    return lines


def _link_cell(node: Node, a: Gpu, b: Gpu) -> Cell:
    if a.index == b.index:
        return Cell("·", "dim", True)
    pair = (min(a.index, b.index), max(a.index, b.index))
    links = next((n for x, y, n in node.nvlinks if (min(x, y), max(x, y)) == pair), 0)
    if links:
        return Cell(f"NV{links}", "good", True)
    level = next((w for x, y, w in node.gpu_distances if (min(x, y), max(x, y)) == pair), None)
    return Cell(level or "?", "" if level in LEVELS[:3] else "dim", True)


def _nearest(node: Node, gpu: Gpu) -> Cell:
    """The rails nearest to a GPU, and how near."""
    best: dict[str, list[str]] = {}
    for nic in node.nics:
        if nic.rail:
            for index, level in nic.distances:
                if index == gpu.index and level in LEVELS:
                    best.setdefault(level, []).append(nic.name)
    if not best:
        return Cell("")
    level = min(best, key=LEVELS.index)
    return Cell(f"{level} {few(best[level], 2)}", "good" if level in ("PIX", "PXB") else "")


def _gpus(node: Node, findings: Sequence[Finding], width: int, colour: bool) -> list[str]:
    lines = [_paint(line, "head", colour) for text in _title(node) for line in _wrapped(text, width, "")]
    gpus = node.gpus
    if not gpus and not node.gpus_unusable:
        return lines
    matrix = len(gpus) > 1 and 48 + 6 * len(gpus) <= width
    head = [Cell("GPU", "dim", True), Cell("PCI", "dim"), Cell("NUMA", "dim", True), Cell("in use", "dim", True)]
    head += [Cell(str(g.index), "dim", True) for g in gpus] if matrix else [Cell("links", "dim")]
    rows = [[*head, Cell("nearest rails" if any(n.rail and n.distances for n in node.nics) else "", "dim")]]
    for gpu in gpus:
        used = "?" if gpu.memory_used_bytes is None else f"{gpu.memory_used_bytes / GIB:.1f} GiB"
        bad = next(
            (f for f in findings if f.saw.startswith("GPU ") and _names(f.saw, gpu.index) and f.severity != INFO), None
        )
        style = SEVERITY_STYLE[bad.severity] if bad else ""
        row = [Cell(str(gpu.index), style, True), Cell(gpu.pci or "?", style)]
        row += [Cell("?" if gpu.numa is None else str(gpu.numa), "", True), Cell(used, "", True)]
        row += [_link_cell(node, gpu, other) for other in gpus] if matrix else [Cell(_summary(node, gpu))]
        rows.append([*row, _nearest(node, gpu)])
    for gpu in node.gpus_unusable:
        lost = [
            Cell(str(gpu.index), "bad", True),
            Cell(gpu.pci or "?", "bad"),
            Cell("?", "", True),
            Cell("?", "", True),
        ]
        rows.append([*lost, Cell(f"unusable: {gpu.error}", "bad")])
    return lines + _table(rows, width, colour)


def _names(saw: str, index: int) -> bool:
    """Whether `GPU 0-3, 5: ...` is about this GPU."""
    for part in saw[4:].partition(":")[0].split(","):
        first, _, last = part.strip().partition(" ")[0].partition("-")
        if first.isdigit() and int(first) <= index <= (int(last) if last.isdigit() else int(first)):
            return True
    return False


def _summary(node: Node, gpu: Gpu) -> str:
    """The links of one GPU in words, where a matrix would be too wide: `NV6 to 15`."""
    counts = Counter(n for x, y, n in node.nvlinks if gpu.index in (x, y))
    return ", ".join(f"NV{n} to {many}" for n, many in sorted(counts.items(), reverse=True)) or "none"


def _near(nic: Nic) -> str:
    """The GPUs nearest to a port: `PIX GPU 0, 1`."""
    known = [(level, index) for index, level in nic.distances if level in LEVELS]
    if not known:
        return ""
    best = min((level for level, _ in known), key=LEVELS.index)
    return f"{best} GPU {numbers(index for level, index in known if level == best)}"


def _nics(cluster: Cluster, node: Node, width: int, colour: bool) -> list[str]:
    made_up = [n for n in node.nics if n.kind == "ethernet" and n.pci is None and not n.rail and n.bond is None]
    shown = [n for n in node.nics if n not in made_up]
    rails = [n for n in shown if n.rail]
    none = "not known" if not shown and cluster.fabric.kind == UNKNOWN else "no port to other nodes"
    kind = "" if rails and rails[0].kind == UNKNOWN else f" {rails[0].kind}" if rails else ""
    fabric = f"{len(rails)}{kind} rail{'s' if len(rails) > 1 else ''}" if rails else none
    each = cluster.fabric.bytes_per_s_per_gpu
    fabric += f", {_rate(each)} a GPU" if rails and each else ""
    extras = []
    if any(n.rail and n.kind != "ethernet" for n in node.nics):
        by = f"GPUDirect by {node.gpudirect_by}" if node.gpudirect_by else "GPUDirect"
        extras = ["GPUDirect: not known" if node.gpudirect is None else by if node.gpudirect else "no GPUDirect"]
    lines = [_paint(" · ".join([f"Fabric: {fabric}", *extras]), "head", colour)]
    if shown:
        rows = [[Cell(w, "dim") for w in ("port", "fabric", "rate", "state", "NUMA", "near", "")]]
        for alike in _ports(sorted(shown, key=lambda n: not n.rail)):
            nic = alike[0]
            state = nic.state or {True: "up", False: "down", None: "?"}[nic.up]
            name = nic.name if nic.port in (None, 1) else f"{nic.name}:{nic.port}"
            rows.append(
                [
                    Cell(name if len(alike) == 1 else f"{name} and {len(alike) - 1} more"),
                    Cell(nic.kind),
                    Cell("" if nic.up is False else _rate(nic.bytes_per_s)),
                    Cell(state.lower(), "bad" if nic.up is False else ""),
                    Cell("?" if nic.numa is None else str(nic.numa)),
                    Cell(_near(nic)),
                    Cell("rail", "good") if nic.rail else Cell(nic.why_not or "", "dim"),
                ]
            )
        lines += _table(rows, width, colour)
    if made_up:
        lines += _wrapped(f"not for jobs: {few([n.name for n in made_up], 8)}", width)
    return lines


def _ports(nics: Sequence[Nic]) -> list[list[Nic]]:
    """Ports one a row; more than a screen takes, and those that are alike in all that a row says share one."""
    if len(nics) <= ROWS:
        return [[nic] for nic in nics]
    groups: dict[tuple[object, ...], list[Nic]] = {}
    for nic in nics:
        key = (nic.kind, nic.bytes_per_s, nic.state, nic.up, nic.numa, _near(nic), nic.rail, nic.why_not)
        groups.setdefault(key, []).append(nic)
    return list(groups.values())


def _wrong(findings: Sequence[Finding], width: int, colour: bool, several: bool) -> list[str]:
    told = [f for f in findings if f.severity != INFO]
    if not told:
        return [_paint("Nothing wrong was found.", "good", colour)]
    lines = [_paint("What is wrong (parlaunch doctor says why it matters and what to do)", "head", colour)]
    for f in told:
        where = f"{f.node}: " if several and f.node else ""
        first, *rest = textwrap.wrap(f"{where}{f.saw}", width - 8, break_long_words=False) or [""]
        lines.append(f"  {_paint(f.severity, SEVERITY_STYLE[f.severity], colour)}  {first}")
        lines += [f"        {line}" for line in rest]
    return lines


def _alike(node: Node) -> tuple[object, ...]:
    """What must agree for two nodes to be shown as one."""
    return (
        tuple((g.name, g.memory_bytes, g.numa, g.nvlinks, g.nvlink_domain) for g in node.gpus),
        tuple((n.kind, n.rail, n.bytes_per_s) for n in node.nics if n.rail),
        node.link_type,
        node.driver,
        len(node.gpus_unusable),
    )


def _groups(nodes: Iterable[Node]) -> list[list[Node]]:
    found: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        found.setdefault(_alike(node), []).append(node)
    return list(found.values())


def _sides(cluster: Cluster) -> list[str]:
    """NVLink domains that reach over nodes."""
    home = [at for at, node in enumerate(cluster.nodes) for _ in node.gpus]
    wide = [d for d in cluster.nvlink_domains if len({home[i] for i in d if i < len(home)}) > 1]
    return (
        [
            f"NVLink reaches over nodes: {', '.join(f'{len(d)} GPUs on {len({home[i] for i in d if i < len(home)})} nodes' for d in wide)}"
        ]
        if wide
        else []
    )


def probe_to_text(cluster: Cluster, *, colour: bool, width: int = 100) -> str:
    """The cluster on one screen of `width` columns; nodes that are alike are shown once. Ends with a line feed."""
    width = max(80, width)
    findings = examine(cluster)
    several = len(cluster.nodes) > 1
    lines: list[str] = []
    if several:
        text = f"{len(cluster.nodes)} nodes, {cluster.world_size} GPUs"
        lines += [_paint(text, "head", colour), *_sides(cluster), ""]
    for alike in _groups(cluster.nodes):
        node = alike[0]
        mine = [f for f in findings if f.node == node.hostname]
        if several:
            names = few([n.hostname for n in alike], 8)
            lines += _wrapped(f"{len(alike)} alike: {names}", width, "") if len(alike) > 1 else []
        lines += [*_host(node, width, colour), "", *_gpus(node, mine, width, colour), ""]
        lines += [*_nics(cluster, node, width, colour), ""]
    lines += _wrong(findings, width, colour, several)
    shown = {f"GPU {g.index} left out: {g.error}" for node in cluster.nodes for g in node.gpus_unusable}
    told = [n for n in cluster.notes if n not in shown and (" left out: " not in n or n.startswith("GPU "))]
    if told:
        lines += ["", _paint("Notes", "head", colour)]
        for note in told:
            lines += _wrapped(note, width)
    return "\n".join(lines) + "\n"

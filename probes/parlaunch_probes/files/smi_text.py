"""What else nvidia-smi prints: its table, `-L`, and `nvlink -s`."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch.hardware.datasheet import nvml_name, product, products_like
from parlaunch_probes.files import lost
from parlaunch_probes.files.clean import mebibytes
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

# Jetson's UUIDs have no "GPU-" in front, and two blanks before them; whoever shows a list to others hides them.
_LISTED = re.compile(r"^\s{0,4}GPU (\d{1,3}): (.{2,80}?)\s+\(UUID: ([^()]{1,60})\)")
_UUID = re.compile(r"(?:GPU-)?[0-9a-fA-F-]{8,40}")
_NO_UUID = re.compile(
    r"^\s{0,4}GPU (\d{1,3}): (.{0,80}?)\s*\(UUID: \[?(Unknown Error|GPU is lost|GPU requires reset|ERR!)\]?\)"
)
# As PyTorch's collect_env and its kin write it: "GPU 0: NVIDIA L40S", "GPU 0,1,2,3: NVIDIA L40S".
_NAMED = re.compile(r"^\s{0,4}GPU (\d{1,3}(?:,\d{1,3}){0,31}): ((?:NVIDIA|Tesla|Quadro|GeForce) [\w .()/-]{1,60}?)\s*$")
_DRIVER = re.compile(r"^\s*(?:Nvidia driver version|CUDA Driver Version)\s*:\s*([\d.]{3,20})", re.MULTILINE)
_SLICE = re.compile(r"^\s+MIG (\S{2,30})\s+Device\s+\d{1,3}: \(UUID: (MIG-[\w/-]{8,80})\)")
_LINK = re.compile(r"^\s+Link (\d{1,2}): (?:([0-9.]{1,10}) GB/s|<?(inactive)>?)", re.IGNORECASE)
_DOWN = re.compile(r"all links are in[Aa]ctive")
_ROW = re.compile(
    r"^\|\s+(\d{1,3})\s+(\S.*?)\s+(?:On|Off|N/A)?\s*\|\s+([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\s"
)
_MEMORY = re.compile(r"\|\s+\d{1,7}MiB\s*/\s*(\d{1,7}MiB)\s*\|")
# From the 610 series on the heads are called KMD and CUDA UMD.
_VERSIONS = re.compile(
    r"(?:NVIDIA-SMI \S+ +)?(?:Driver|KMD) Version: ([\d.]{3,20})(?: +CUDA (?:UMD )?Version: ([\d.]{3,10}))?"
)
_MIG_ROW = re.compile(
    r"^\|\s+(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+\d{1,3}\s+\|\s+\d{1,7}MiB\s*/\s*(\d{1,7})MiB\s*\|\s*(\d{1,4})?"
)
_LAST_CELL = re.compile(r"\|\s*(Enabled|Disabled)\*?\s*\|\s*$")


class _List:
    """What was read so far, line by line: GPUs, and of the one at hand its slices and links, by index."""

    def __init__(self) -> None:
        self.gpus: dict[int, Gpu] = {}
        self.dead: dict[int, Gpu] = {}
        self.slices: dict[int, list[tuple[str, str, int | None]]] = {}
        self.links: dict[int, dict[int, bool]] = {}
        self._current: int | None = None

    def read(self, line: str) -> None:
        if match := _NO_UUID.match(line):
            index, why = int(match[1]), lost.reason([match[3]]) or match[3]
            self.dead[index] = lost.lost(index, None, why, match[2] or UNKNOWN)
        elif match := _LISTED.match(line):
            self._current = int(match[1])
            uuid = match[3] if _UUID.fullmatch(match[3]) else None
            self.gpus.setdefault(self._current, Gpu(index=self._current, name=match[2], uuid=uuid))
        elif match := _NAMED.match(line):
            for number in match[1].split(","):
                self.gpus.setdefault(int(number), Gpu(index=int(number), name=match[2]))
        elif self._current is not None:
            self._below(self._current, line)

    def _below(self, current: int, line: str) -> None:
        """A line under the one that names a GPU."""
        if match := _SLICE.match(line):
            self.slices.setdefault(current, []).append((match[2], f"MIG {match[1]}", None))
        elif match := _LINK.match(line):
            self.links.setdefault(current, {})[int(match[1])] = match[3] is None
        elif _DOWN.search(line):
            self.links.setdefault(current, {})


def find_list(text: str) -> Facts | None:
    """`nvidia-smi -L`, and `nvidia-smi nvlink -s`, which repeats its lines with the links below."""
    listed = _List()
    for line in text.split("\n"):
        listed.read(line)
    if not listed.gpus and not listed.dead:
        return None
    links, slices = listed.links, listed.slices
    facts = Facts("nvidia-smi nvlink -s" if links else "nvidia-smi -L", lost=list(listed.dead.values()))
    if (driver := _DRIVER.search(text)) is not None:
        facts.node["driver"] = driver[1]
    for index, gpu in sorted(listed.gpus.items()):
        if links:
            gpu = _with_links(gpu, links.get(index), facts)
        if index in slices:
            gpu = replace(gpu, mig=True, mig_devices=tuple(slices[index]))
        facts.gpus.append(gpu)
    if links and all(not g.nvlinks for g in facts.gpus):
        facts.links = {}
    return facts


def _with_links(gpu: Gpu, states: dict[int, bool] | None, facts: Facts) -> Gpu:
    """Links by number; which GPU they lead to is not in this listing, so the board is concluded from the product."""
    up = sum((states or {}).values())
    down = tuple(sorted(n for n, active in (states or {}).items() if not active))
    sheet = product(gpu.name)
    expected = sheet.nvlinks if sheet is not None else None
    if expected and up < expected:
        facts.notes.append(
            f"GPU {gpu.index} has {up} of {expected} NVLinks: "
            + (
                "out of the NVLink domain; leave it out or reset it"
                if up == 0
                else "degraded, collectives slow down to it"
            )
        )
    return replace(gpu, nvlinks=up, nvlinks_down=down or None)


def find_table(text: str) -> Facts | None:
    """The table of plain `nvidia-smi`. Names that the table cuts ("RTX 6000 Ada Gene...") are completed when one product fits."""
    facts = Facts("nvidia-smi")
    lines = text.split("\n")
    slices: dict[int, list[tuple[str, str, int | None]]] = {}
    for at, line in enumerate(lines):
        if len(line) > 300:
            continue
        if match := _MIG_ROW.match(line):
            name = f"{match[5]} SMs" if match[5] else "a slice"
            slices.setdefault(int(match[1]), []).append((f"gi {match[2]} ci {match[3]}", name, int(match[4]) * 2**20))
        match = _ROW.match(line)
        if match is None or any(g.index == int(match[1]) for g in (*facts.gpus, *facts.lost)):
            continue
        block = list(itertools.takewhile(lambda row: not row.startswith("+"), lines[at : at + 4]))
        index, address = int(match[1]), pci_address(match[3])
        # A fan or a power meter that fails says ERR! too; a GPU without a name or a memory is gone.
        cells = [cell.strip() for row in block[1:2] for cell in row.split("|")[2:3]]
        gone = match[2].startswith("ERR!") or any(cell.startswith("ERR!") for cell in cells)
        if (why := lost.reason(["ERR!" if gone else None, *block])) is not None:
            facts.lost.append(lost.lost(index, address, why))
            continue
        memory = mebibytes(_spaced(next((m[1] for row in block if (m := _MEMORY.search(row))), None)))
        mig = next((m[1] == "Enabled" for row in block if (m := _LAST_CELL.search(row))), None)
        name = _whole_name(match[2], memory, facts)
        facts.gpus.append(Gpu(index=index, name=name, pci=address, memory_bytes=memory, mig=mig))
    if not facts.gpus and not facts.lost:
        return None
    facts.gpus = [
        replace(g, mig=True, mig_devices=tuple(slices[g.index])) if g.index in slices else g for g in facts.gpus
    ]
    if versions := _VERSIONS.search(text):
        facts.node = {k: v for k, v in (("driver", versions[1]), ("cuda", versions[2])) if v}
    return facts


def _spaced(memory: str | None) -> str | None:
    return None if memory is None else memory.replace("MiB", " MiB")


def _whole_name(name: str, memory: int | None, facts: Facts) -> str:
    """A name that the table cut ("NVIDIA A100-SXM..."): the one product that begins so and has this memory. Of several
    the user must say which."""
    name = re.sub(r"\s+(On|Off)$", "", name.strip())
    if not name.endswith(".."):
        return name
    start = name.rstrip(". ")
    # Drivers have called products NVIDIA, Tesla and Quadro: the words are no part of the comparison.
    known = products_like(start)
    fits = [s for s in known if memory is None or abs(s.memory_bytes / memory - 1) < 0.06] or known
    names = sorted({nvml_name(s) for s in fits})
    if len(names) > 1:
        facts.may_be(f"the name {name!r} is cut, and may be {', '.join(names)}: say which with --gpu")
    if not names:
        return start  # no product of ours: its generation may still be told
    return names[0] if len(names) == 1 else UNKNOWN


_COLUMNS = {
    "index": "index", "name": "name", "gpu_name": "name", "uuid": "uuid", "gpu_uuid": "uuid", "pci.bus_id": "pci",
    "gpu_bus_id": "pci", "memory.total": "memory", "driver_version": "driver", "serial": "serial",
    "mig.mode.current": "mig", "compute_cap": "capability",
}  # fmt: skip


def find_csv(text: str) -> Facts | None:
    """`nvidia-smi --query-gpu=... --format=csv`, with its heading or without."""
    facts = Facts("nvidia-smi --query-gpu")
    columns: list[str] = []
    for line in text.split("\n"):
        cells = [c.strip() for c in line.split(",")] if len(line) < 2000 else []
        names = [c.split(" [")[0] for c in cells]
        if (
            not columns
            and len(cells) > 1
            and ("name" in names or "gpu_name" in names)
            and set(names) & {"memory.total", "uuid", "index", "pci.bus_id", "gpu_bus_id", "gpu_uuid"}
        ):
            columns = names
        elif columns and len(cells) == len(columns):
            row = {_COLUMNS[name]: cell for name, cell in zip(columns, cells, strict=True) if name in _COLUMNS}
            gpu = _of_row(len(facts.gpus) + len(facts.lost), row)
            if (why := lost.reason(row.values())) is not None:
                facts.lost.append(replace(gpu, name=UNKNOWN, uuid=None, memory_bytes=None, error=why))
                continue
            if any(g.index == gpu.index for g in facts.gpus):
                break  # another node's list
            facts.gpus.append(gpu)
            if row.get("driver"):
                facts.node["driver"] = row["driver"]
        elif columns:
            break
    return facts if facts.gpus or facts.lost else _without_heading(text)


_NAME = re.compile(r"(?:NVIDIA|Tesla|Quadro|GeForce|GRID) [\w .()/-]{1,60}")


def _without_heading(text: str) -> Facts | None:
    """`--format=csv,noheader`: rows with a GPU's name in one column; others tell by their look what they are."""
    facts = Facts("nvidia-smi --query-gpu")
    width = 0
    for line in text.split("\n"):
        cells = [c.strip() for c in line.split(",")] if len(line) < 300 else []
        row = _by_look(cells) if width in (0, len(cells)) else None
        if row is None:
            if facts.gpus:
                break
            continue
        gpu = _of_row(len(facts.gpus), row)
        if any(g.index == gpu.index for g in facts.gpus):
            break  # another node's list
        width = len(cells)
        facts.gpus.append(gpu)
        if row.get("driver"):
            facts.node["driver"] = row["driver"]
    return facts if facts.gpus else None


def _by_look(cells: list[str]) -> dict[str, str] | None:
    """The columns of one row without a heading; None where it is no row of a GPU."""
    names = [c for c in cells if _NAME.fullmatch(c)]
    if len(cells) < 2 or len(names) != 1:
        return None
    row = {"name": names[0]}
    for cell in cells:
        if re.fullmatch(r"\d{1,3}", cell, re.ASCII):
            row.setdefault("index", cell)
        elif mebibytes(cell) is not None:  # of used, free and total memory the total is the largest
            row["memory"] = max(row.get("memory", cell), cell, key=lambda c: mebibytes(c) or 0)
        elif re.fullmatch(r"GPU-[0-9a-fA-F-]{8,40}", cell):
            row["uuid"] = cell
        elif re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]", cell):
            row["pci"] = cell
        elif re.fullmatch(r"\d{3}\.\d{2,3}(?:\.\d{2})?", cell, re.ASCII):
            row["driver"] = cell
    told = row.keys() & {"memory", "uuid", "pci"} or ("index" in row and product(names[0]) is not None)
    return row if told else None


def _of_row(at: int, row: dict[str, str]) -> Gpu:
    memory = row.get("memory") or ""
    capability = re.fullmatch(r"(\d{1,2})\.(\d)", row.get("capability") or "")
    index = row.get("index") or ""
    return Gpu(
        index=int(index) if index.isascii() and index.isdigit() and len(index) < 4 else at,
        name=row.get("name") or UNKNOWN,
        uuid=row.get("uuid"),
        pci=pci_address(row.get("pci")),
        memory_bytes=mebibytes(memory if not memory.isdigit() else f"{memory} MiB"),
        mig={"Enabled": True, "Disabled": False}.get(row.get("mig") or ""),
        compute_capability=(int(capability[1]), int(capability[2])) if capability else None,
    )

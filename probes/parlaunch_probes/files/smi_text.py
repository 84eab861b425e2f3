"""What else nvidia-smi prints: its table, `-L`, and `nvlink -s`."""

from __future__ import annotations

import re
from dataclasses import replace

from parlaunch.datasheet import nvml_name, product, product_names
from parlaunch.machine import UNKNOWN, Gpu
from parlaunch_probes.files.clean import mebibytes
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

_LISTED = re.compile(r"^\s{0,4}GPU (\d{1,3}): (.{2,80}?) \(UUID: (GPU-[0-9a-fA-F-]{8,40})\)")
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
_VERSIONS = re.compile(r"(?:NVIDIA-SMI \S+ +)?Driver Version: ([\d.]{3,20})(?: +CUDA Version: ([\d.]{3,10}))?")


def find_list(text: str) -> Facts | None:
    """`nvidia-smi -L`, and `nvidia-smi nvlink -s`, which repeats its lines with the links below."""
    gpus: dict[int, Gpu] = {}
    slices: dict[int, list[tuple[str, str, int | None]]] = {}
    links: dict[int, dict[int, bool]] = {}
    current: int | None = None
    for line in text.split("\n"):
        if match := _LISTED.match(line):
            current = int(match[1])
            gpus.setdefault(current, Gpu(index=current, name=match[2], uuid=match[3]))
        elif match := _NAMED.match(line):
            for number in match[1].split(","):
                gpus.setdefault(int(number), Gpu(index=int(number), name=match[2]))
        elif current is not None and (match := _SLICE.match(line)):
            slices.setdefault(current, []).append((match[2], f"MIG {match[1]}", None))
        elif current is not None and (match := _LINK.match(line)):
            links.setdefault(current, {})[int(match[1])] = match[3] is None
        elif current is not None and _DOWN.search(line):
            links.setdefault(current, {})
    if not gpus:
        return None
    facts = Facts("nvidia-smi nvlink -s" if links else "nvidia-smi -L")
    if (driver := _DRIVER.search(text)) is not None:
        facts.node["driver"] = driver[1]
    for index in sorted(gpus):
        gpu = gpus[index]
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
    for at, line in enumerate(lines):
        match = _ROW.match(line) if len(line) < 300 else None
        if match is None or any(g.index == int(match[1]) for g in facts.gpus):
            continue
        memory = next((m[1] for below in lines[at : at + 3] if (m := _MEMORY.search(below))), None)
        facts.gpus.append(
            Gpu(
                index=int(match[1]),
                name=_whole_name(match[2]),
                pci=pci_address(match[3]),
                memory_bytes=mebibytes(_spaced(memory)),
            )
        )
    if not facts.gpus:
        return None
    if versions := _VERSIONS.search(text):
        facts.node = {k: v for k, v in (("driver", versions[1]), ("cuda", versions[2])) if v}
    return facts


def _spaced(memory: str | None) -> str | None:
    return None if memory is None else memory.replace("MiB", " MiB")


def _whole_name(name: str) -> str:
    name = re.sub(r"\s+(On|Off)$", "", name.strip())
    if not name.endswith("..."):
        return name
    start = name.removesuffix("...").rstrip()
    full = {nvml_name(s) for p in product_names() if (s := product(p)) is not None}
    fits = sorted(n for n in full if n.startswith(start))
    return fits[0] if len(fits) == 1 else UNKNOWN


_COLUMNS = {
    "index": "index", "name": "name", "gpu_name": "name", "uuid": "uuid", "gpu_uuid": "uuid", "pci.bus_id": "pci",
    "gpu_bus_id": "pci", "memory.total": "memory", "driver_version": "driver", "serial": "serial",
    "mig.mode.current": "mig", "compute_cap": "capability",
}  # fmt: skip


def find_csv(text: str) -> Facts | None:
    """`nvidia-smi --query-gpu=... --format=csv` with its heading."""
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
            gpu = _of_row(len(facts.gpus), row)
            if any(g.index == gpu.index for g in facts.gpus):
                break  # another node's list
            facts.gpus.append(gpu)
            if row.get("driver"):
                facts.node["driver"] = row["driver"]
        elif columns:
            break
    return facts if facts.gpus else None


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

"""What else nvidia-smi prints: its table, `-L`, and `nvlink -s`."""

from __future__ import annotations

import re
from dataclasses import replace

from parlaunch.datasheet import nvml_name, product, product_names
from parlaunch.machine import UNKNOWN, Gpu
from parlaunch_probes.files.clean import mebibytes
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

_LISTED = re.compile(r"^GPU (\d{1,3}): (.{2,80}?) \(UUID: (GPU-[0-9a-fA-F-]{8,40})\)")
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
        elif current is not None and (match := _SLICE.match(line)):
            slices.setdefault(current, []).append((match[2], f"MIG {match[1]}", None))
        elif current is not None and (match := _LINK.match(line)):
            links.setdefault(current, {})[int(match[1])] = match[3] is None
        elif current is not None and _DOWN.search(line):
            links.setdefault(current, {})
    if not gpus:
        return None
    facts = Facts("nvidia-smi nvlink -s" if links else "nvidia-smi -L")
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

"""GPUs that nvidia-smi names and cannot use, in every form that it prints them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

WHAT = "nvidia-smi's errors"
_HANDLE = re.compile(
    r"Unable to determine the device handle for (?:GPU|gpu)\s?(\d{1,3}(?=:\s))?:?\s*([0-9A-Fa-f]{1,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\s*:?\s*(.{0,80})"
)
# What nvidia-smi prints for a value that a dead GPU does not give, and NVML's name of the error behind it.
_WORDS = (
    (re.compile(r"GPU is lost", re.IGNORECASE), "GPU_IS_LOST"),
    (re.compile(r"requires reset|reset required", re.IGNORECASE), "RESET_REQUIRED"),
    (re.compile(r"Insufficient Permissions|No Permission", re.IGNORECASE), "NO_PERMISSION"),
    (re.compile(r"Unknown Error|^ERR!$", re.IGNORECASE), "UNKNOWN"),
)


def reason(values: Iterable[str | None]) -> str | None:
    """NVML's name of the error that the first of these values stands for; None when the GPU gives values."""
    for value in values:
        for pattern, name in _WORDS:
            if value and pattern.search(value.strip(" []|")):
                return name
    return None


def find(text: str) -> Facts | None:
    """GPUs for which nvidia-smi got no handle; None without one."""
    facts = Facts(WHAT)
    for line in text.split("\n"):
        match = _HANDLE.search(line) if len(line) < 400 else None
        if match is None:
            continue
        address = pci_address(match[2])
        if address is None or any(g.pci == address for g in facts.lost):
            continue
        why = reason([match[3]]) or match[3].strip(" .") or "no device handle"
        facts.lost.append(lost(int(match[1]) if match[1] else None, address, why))
        facts.notes.append(f"GPU {match[1] or address} cannot be used: {match[3].strip() or 'no device handle'}")
    return facts if facts.lost else None


def lost(index: int | None, address: str | None, why: str, name: str = UNKNOWN) -> Gpu:
    """A GPU that cannot be used. Without a number of its own it has none: -1 until the others are known."""
    return Gpu(index=-1 if index is None else index, name=name, pci=address, error=why)


def numbered(found: list[Gpu], usable: list[Gpu]) -> tuple[Gpu, ...]:
    """Lost GPUs, each with the lowest free number in the order of PCI addresses where nvidia-smi gave none."""
    taken = {g.index for g in (*usable, *found) if g.index >= 0}
    out = []
    for gpu in sorted(found, key=lambda g: (g.index < 0, g.index, g.pci or "")):
        if gpu.index < 0:
            free = next(n for n in range(len(taken) + 1) if n not in taken)
            taken.add(free)
            gpu = replace(gpu, index=free)
        out.append(gpu)
    return tuple(out)

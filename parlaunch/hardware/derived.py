"""The data sheet to plan any GPU with: its product's own, one that the user named, or one made from its generation and
what NVML says. A sheet that was made says so (`derived`), names every number that is no measurement, and widens the band."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch.hardware.datasheet import (
    Product,
    capability_of,
    generation,
    name_key,
    nvml_name,
    product,
    product_names,
    products_like,
    spellings,
)

# A virtual GPU: "GRID A100D-40C", "NVIDIA L40S-48Q", "GRID A100-3-20C" (on a MIG device). The letter is the licence.
_VGPU = re.compile(r"^(?:GRID|NVIDIA|Quadro)\s+(\S.*?)-(?:(\d)-)?(\d{1,3})[ABCQ](?:ME)?$")
# What stands behind the product in such a name: X and XM for SXM, D for the larger memory, L for NVL; DC for the server's.
_VARIANT = re.compile(r"^(.*\d|.*Blackwell)(D?XM?|D|L|XL|XS|S| DC)$", re.IGNORECASE)
# Source: NVIDIA vGPU user guide, types of virtual GPUs. Names that are another product's, as a whole.
_GRID = {
    "A100X": "A100 SXM 40GB", "RTX6000": "Quadro RTX 6000", "RTX6000P": "Quadro RTX 6000", "RTX8000": "Quadro RTX 8000",
    "RTX8000P": "Quadro RTX 8000",
}  # fmt: skip
# A MIG device: "NVIDIA A100-SXM4-40GB MIG 3g.20gb".
_MIG = re.compile(r"^(.+?)\s+MIG\s+(?:(\d)c\.)?(\d)g\.(\d{1,3})gb")
_SLICES = 8  # of a GPU's memory; seven of its SMs' share are sold
_LANE_BYTES_PER_S = {
    1: 0.25e9,
    2: 0.5e9,
    3: 1e9,
    4: 2e9,
    5: 4e9,
    6: 8e9,
}  # PCIe, one lane, one direction, as data sheets round
OLDEST = (6, 0)  # before it there is no float16 arithmetic, and nothing that Megatron is built on runs any more
NEWEST = 10  # major compute capability of the newest generations in the table: 10 for data centres, 12 for workstations
_LIKE_ENOUGH = (
    3.6  # what `_likeness` of two names of one family reaches: a common beginning of three characters and more
)


def sheet_of(gpu: Gpu) -> Product | None:
    """The data sheet of a GPU; None where its generation cannot be told, or where nobody said what it is."""
    known = product(gpu.name)
    if known is not None:
        return known
    if gpu.sheet is not None:
        return product(gpu.sheet)
    if gpu.name == UNKNOWN:
        return None
    return _derived(_Told.of(gpu))


@dataclass(frozen=True, slots=True)
class _Told:
    """What a sheet is derived from: the parts of a `Gpu` that it depends on."""

    name: str
    capability: tuple[int, int] | None
    memory_bytes: int | None
    cores: int | None
    clock_hz: int | None
    memory_clock_hz: int | None
    bus_bits: int | None
    nvlinks: int | None
    nvlink_bytes_per_s: float | None
    pcie_gen: int | None
    pcie_width: int | None
    power_w: float | None

    @classmethod
    def of(cls, gpu: Gpu) -> _Told:
        links = None if gpu.nvlinks is None else gpu.nvlinks + len(gpu.nvlinks_down or ())
        return cls(
            gpu.name, gpu.compute_capability, gpu.memory_bytes, gpu.cores, gpu.clock_sm_max_hz, gpu.clock_memory_max_hz,
            gpu.memory_bus_bits, links, gpu.nvlink_bytes_per_s if not gpu.nvlinks_down else None, gpu.pcie_gen_max,
            gpu.pcie_width_max, gpu.power_default_w,
        )  # fmt: skip


@cache
def _derived(told: _Told) -> Product | None:
    if match := _MIG.match(told.name):
        mine = replace(told, memory_bytes=told.memory_bytes or int(match[4]) << 30)
        return _share(mine, match[1], int(match[3]), f"{match[3]} of 7 compute slices of")
    if match := _VGPU.match(told.name):
        size = int(match[3]) << 30
        whole = _physical(told, match[1], size)
        if whole is None:
            return None
        mine = replace(told, memory_bytes=told.memory_bytes or size)
        return _share(mine, whole.name, int(match[2]) if match[2] else 7, "a virtual GPU of")
    if told.capability is None:
        if _several(told):
            return None
        told = replace(told, capability=capability_of(told.name))
    if too_old(told.name, told.capability):
        return None
    family = _nearest(told)
    if family is None:
        return None
    return _adapted(told, family)


def is_virtual(name: str) -> bool:
    """Whether a GPU of this name is a share that a hypervisor hands out."""
    return _VGPU.match(name) is not None


def too_old(name: str, capability: tuple[int, int] | None) -> bool:
    """Whether a GPU is of a generation from before 2016."""
    if capability is not None:
        return capability < OLDEST
    return (
        re.search(r"tesla [ckm]\d|gtx [4-9]\d\d\b|quadro [km]\d|geforce gt \d{3}\b|grid [km]\d", name.lower())
        is not None
    )


def _several(told: _Told) -> bool:
    """Whether the name is the beginning of several products' ("NVIDIA H100"), and nothing else tells which is meant."""
    fits = products_like(told.name)
    if told.memory_bytes:
        fits = tuple(s for s in fits if abs(s.memory_bytes / told.memory_bytes - 1) < 0.06)
    if told.nvlinks:
        fits = tuple(s for s in fits if s.nvlinks == told.nvlinks)
    return len(fits) > 1


def _physical(told: _Told, name: str, size: int) -> Product | None:
    """The board that a virtual GPU of this name and memory runs on."""
    known = product(_GRID.get(name.upper(), name))
    if known is not None:
        return known
    match = _VARIANT.match(name)
    base, variant = (match[1], match[2].upper()) if match else (name, "")
    fits = [s for s in products_like(base) if s.memory_bytes >= 0.9 * size]
    if not fits:
        return _nearest(_renamed(told, base), at_least=size)

    def unlike(s: Product) -> tuple[bool, bool, bool, int]:
        words = s.name.upper()
        return (
            ("SXM" in words) != ("X" in variant), ("NVL" in words) != ("L" in variant),
            ("SERVER" in words) != ("DC" in variant), s.memory_bytes if "D" not in variant else -s.memory_bytes,
        )  # fmt: skip

    return min(fits, key=unlike)


def _renamed(told: _Told, name: str) -> _Told:
    """The GPU that this one is a part of, whose memory is not known."""
    return replace(told, name=name, memory_bytes=None)


def _share(told: _Told, whole: str, slices: int, words: str) -> Product | None:
    """A part of a GPU: its own memory, a share of the SMs, bandwidth as its memory, no NVLink."""
    parent = product(whole) or _derived(_renamed(told, whole))
    if parent is None:
        return None
    sms = parent.sms if slices >= 7 else max(1, parent.sms * slices // _SLICES)
    memory = told.memory_bytes or parent.memory_bytes
    part = min(1.0, max(1, round(_SLICES * memory / parent.memory_bytes)) / _SLICES) if slices < 7 else 1.0
    flops = {name: peak * sms / parent.sms for name, peak in parent.flops.items()}
    assumed = ("flops", "sms", "hbm_bytes_per_s", *(() if told.memory_bytes else ("memory_bytes",)))
    return replace(
        parent, name=told.name, memory_bytes=memory, sms=sms, flops=flops, hbm_bytes_per_s=parent.hbm_bytes_per_s * part,
        nvlinks=0, nvlink_bytes_per_s=None, board="pcie", pci=(), assumed=assumed, derived=f"{words} {parent.name}",
        source=parent.source,
    )  # fmt: skip


def _adapted(told: _Told, family: Product) -> Product:
    """The sheet of the nearest product of the generation, with what is known of this GPU in place of it."""
    made = {name: (value, measured) for name, value, measured in _numbers(told, family)}
    sms, clock = made["sms"][0], made["boost_clock_hz"][0]
    silicon = sms * clock / (family.sms * family.boost_clock_hz)
    flops = {f: peak * silicon for f, peak in family.flops.items()}
    own = generation(told.capability) if told.capability else None
    if own is not None and own != generation(family.compute_capability):  # no product of its generation is in the table
        flops = {f: float(rate) * sms * clock for f, rate in own["flop_per_sm_clock"].items()}
    assumed = tuple(name for name, (_, measured) in made.items() if not measured)
    values: dict[str, Any] = {name: value for name, (value, _) in made.items()}
    board = family.board if values["nvlinks"] or not family.nvlinks else "pcie"
    return replace(
        family, **values, name=told.name, flops=flops, pci=(),
        board=board, assumed=("flops", *assumed), derived=f"as {family.name} where NVML says nothing",
        compute_capability=told.capability or family.compute_capability,
    )  # fmt: skip


def _numbers(told: _Told, family: Product) -> list[tuple[str, Any, bool]]:
    """(field, value, whether it is known of this very GPU)."""
    each = cores_of(told.capability or family.compute_capability)
    wide = told.bus_bits and told.memory_clock_hz
    lane = _LANE_BYTES_PER_S.get(told.pcie_gen or 0)
    memory = told.memory_bytes or (
        _memory_in(told.name) if family.cpu is None else None
    )  # Grace's names count its CPU's
    links = told.nvlinks if told.nvlinks is not None else family.nvlinks
    per_link = (family.nvlink_bytes_per_s or 0.0) / family.nvlinks if family.nvlinks else 0.0
    rate = told.nvlink_bytes_per_s or (per_link * links if links else None) or None
    return [
        ("memory_bytes", memory or family.memory_bytes, told.memory_bytes is not None),
        ("sms", told.cores // each if told.cores and told.cores >= each else family.sms, bool(told.cores)),
        ("boost_clock_hz", float(told.clock_hz or family.boost_clock_hz), told.clock_hz is not None),
        # Two transfers a clock, as NVML counts it, over the width of the bus.
        ("hbm_bytes_per_s", 2.0 * (told.memory_clock_hz or 0) * (told.bus_bits or 0) / 8 if wide else family.hbm_bytes_per_s, bool(wide)),
        ("nvlinks", links, told.nvlinks is not None),
        ("nvlink_bytes_per_s", rate, told.nvlink_bytes_per_s is not None or not links),
        ("pcie_bytes_per_s", lane * told.pcie_width if lane and told.pcie_width else family.pcie_bytes_per_s, bool(lane and told.pcie_width)),
        ("power_w", told.power_w or family.power_w, told.power_w is not None),
    ]  # fmt: skip


def cores_of(capability: tuple[int, int]) -> int:
    """CUDA cores of one SM: each makes two operations a clock in float32."""
    family = generation(capability)
    rate: Mapping[str, float] = family["flop_per_sm_clock"] if family is not None else {"fp32": 256}
    return int(rate["fp32"] // 2)


def _memory_in(name: str) -> int | None:
    """ "NVIDIA A100-SXM-64GB" has 64 GiB, less or more a little."""
    match = re.search(r"(?<!\d)(\d{1,3})\s?GB\b", name)
    return int(match[1]) << 30 if match else None


def _nearest(told: _Told, at_least: int = 0) -> Product | None:
    """The product that this GPU resembles most: of its generation, where that is known; by name, memory and NVLink."""
    sheets = [s for n in product_names() if (s := product(n)) is not None]
    likeness = {s.name: _likeness(told.name, s) for s in sheets}
    if told.capability is None:
        if max(likeness.values(), default=0.0) < _LIKE_ENOUGH:
            return None
        best = max(sheets, key=lambda s: likeness[s.name])
        capability = best.compute_capability
    else:
        capability = told.capability
    same = [s for s in sheets if s.compute_capability == capability]
    same = same or [s for s in sheets if s.compute_capability[0] == capability[0]]
    same = same or [s for s in sheets if s.compute_capability[0] >= NEWEST]  # newer than the table
    same = [s for s in same if s.memory_bytes >= 0.9 * at_least] or same
    memory = told.memory_bytes or _memory_in(told.name)

    def nearness(s: Product) -> tuple[float, float, float]:
        # GeForce is sold with half its tensor cores' rate: only another GeForce stands in for one.
        geforce = ("geforce" in told.name.lower()) == ("GeForce" in nvml_name(s))
        apart = abs(s.memory_bytes / memory - 1) if memory else 0.0
        linked = told.nvlinks is None or bool(told.nvlinks) == bool(s.nvlinks)
        return (likeness[s.name] - 2.0 * min(apart, 2.0) + linked + 6.0 * geforce, -apart, s.sms)

    return max(same, key=nearness, default=None)


def _likeness(name: str, sheet: Product) -> float:
    """How much a GPU's name is like the product's, in the spelling that is nearest."""
    return max(_alike(name_key(name), spelling) for spelling in spellings(sheet))


def _alike(a: str, b: str) -> float:
    """Characters of the common beginning of two names, and what share of the names they have in common."""
    common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    whole = a.startswith(b) and not a[len(b) : len(b) + 1].isdigit()
    series = re.match(r"[a-z]*", a), re.match(r"[a-z]*", b)  # "b" of B100 and B200, "rtx"
    same_series = bool(series[0] and series[1] and series[0][0] and series[0][0] == series[1][0])
    return min(common, 8) + whole + 2.0 * same_series + SequenceMatcher(None, a, b).ratio()

"""Data sheets: what a GPU product and a machine of a known name can do. Numbers live in `data/`, each with its source."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from parlaunch.catalog import load
from parlaunch.errors import UsageError
from parlaunch.machine import Cluster, Fabric, Gpu, Nic, Node, domains_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One GPU product. Rates per second, one direction; FLOP/s dense."""

    name: str
    arch: str  # pascal | volta | turing | ampere | ada | hopper | blackwell | rubin
    compute_capability: tuple[int, int]
    memory_bytes: int
    hbm_bytes_per_s: float
    sms: int
    boost_clock_hz: float
    flops: Mapping[str, float]  # by format: fp32, tf32, fp16, bf16, fp8, nvfp4
    nvlinks: int | None
    nvlink_bytes_per_s: float | None
    pcie_bytes_per_s: float
    source: str
    l2_bytes: int | None = None
    power_w: float | None = None  # the most that the board may draw
    # How servers join GPUs of this product: nvswitch | nvswitch_mnnvl | sxm2 (cube mesh or pairs) | grace |
    # pairs (sold with a bridge) | bridge (one may be fitted) | pcie
    board: str = "pcie"
    pci: tuple[str, ...] = ()  # device ids of vendor 10de
    assumed: tuple[str, ...] = ()  # fields recalled or derived, not read from the source

    def peak_flops(self, precision: str) -> float:
        """Dense peak for a training precision (`fp8mx`, `bf16`, …); the nearest wider format where this GPU lacks it."""
        chain = {"nvfp4": ("nvfp4", "fp8", "bf16", "fp16"), "fp32": ("tf32", "fp32"), "fp16": ("fp16",)}
        formats = chain.get(precision) or (("fp8", "bf16", "fp16") if precision.startswith("fp8") else ("bf16", "fp16"))
        return next(self.flops[f] for f in (*formats, "fp32") if f in self.flops)


@cache
def _product(name: str) -> Product:
    row = load("products.json")["products"][name]
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "match"}
    return Product(name=name, **given)


def _key(gpu_name: str) -> str:
    """A name without the maker's words and punctuation, which drivers changed over time: "Tesla V100-SXM2-16GB" and
    "NVIDIA V100-SXM2-16GB" agree. Everything that tells products apart stays: "RTX A4000" is not "A40"."""
    words = re.sub(r"\b(nvidia|corporation|tesla|geforce)\b", " ", gpu_name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


@cache
def _by_key() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, row in load("products.json")["products"].items():
        for spelling in (name, *row["match"]):
            found.setdefault(_key(spelling), name)
    return found


def product(gpu_name: str) -> Product | None:
    """The data sheet of a GPU as NVML, or we ourselves, name it; None when it is not in the table."""
    name = _by_key().get(_key(gpu_name))
    return None if name is None else _product(name)


def product_of_pci(device: str) -> Product | None:
    """The data sheet of an NVIDIA PCI device id ("2330", any case, with or without 0x); None when unknown or shared."""
    wanted = device.lower().removeprefix("0x")
    names = [name for name, row in load("products.json")["products"].items() if wanted in row["pci"]]
    return _product(names[0]) if len(names) == 1 else None


def nvml_name(sheet: Product) -> str:
    """The name that NVML gives this product."""
    name = load("products.json")["products"][sheet.name]["match"][0]
    assert isinstance(name, str)
    return name


def product_names() -> tuple[str, ...]:
    """Every product in the table."""
    return tuple(load("products.json")["products"])


@cache
def _spellings() -> Mapping[str, str]:
    """Every accepted spelling of a preset in lower case; Azure's also without its prefix."""
    data = load("presets.json")
    found = {alias: name for alias, name in data["aliases"].items()}
    for name in data["presets"]:
        found[name.lower()] = name
        found.setdefault(name.lower().removeprefix("standard_"), name)
    return found


def preset_names() -> tuple[str, ...]:
    """Names that `preset` takes: those of the table, then the short ones."""
    data = load("presets.json")
    return (*data["presets"], *data["aliases"])


def preset_of(text: str) -> str | None:
    """The preset that a vendor's machine name means ("p5.48xlarge", "Standard_ND96asr_v4", "dgx-h100"), or None."""
    return _spellings().get(text.strip().lower())


def _row(name: str) -> Mapping[str, Any]:
    known = preset_of(name)
    if known is None:
        near = difflib.get_close_matches(name.lower(), _spellings(), n=4, cutoff=0.4)
        raise UsageError(
            f"unknown machine {name!r}: neither a preset nor a file",
            hint=("nearest: " + ", ".join(near) if near else "presets: " + ", ".join(load("presets.json")["presets"])),
        )
    row = load("presets.json")["presets"][known]
    assert isinstance(row, Mapping)
    return row


def preset(name: str, nodes: int = 1) -> Cluster:
    """A cluster of `nodes` machines of a known kind. Raises `UsageError` with the nearest names.

    A job larger than one NVLink rack takes the same number of nodes of each, as `sbatch --segment` asks for: the most
    that divide `nodes`. Where that is less than half a rack, racks are filled in order and the last one is a part."""
    row = _row(name)
    if nodes < 1:
        raise UsageError(f"{name}:{nodes} has no node", hint=f"write {name}:1 or more")
    sheet = _product(row["gpu"])
    count, group = row["gpus_per_node"], row["nvlink_group"]
    fabric, ports, cpu = row["fabric"], row["fabric"]["ports_per_node"], row["cpu"]
    sockets = cpu["sockets"]
    gpus = tuple(
        Gpu(
            index=i,
            name=nvml_name(sheet),
            memory_bytes=sheet.memory_bytes,
            compute_capability=sheet.compute_capability,
            numa=i * sockets // count if sockets else None,
            nvlink_domain=i // group if group > 1 else None,
            nvlinks=sheet.nvlinks if group > 1 else 0,
        )
        for i in range(count)
    )
    nics = tuple(
        Nic(name=f"nic{i}", kind=fabric["kind"], bytes_per_s=fabric["bytes_per_s_per_port"], up=True, rail=True)
        for i in range(ports)
    )
    rack_nodes = row["nvlink_domain_nodes"]
    even = max(n for n in range(1, min(nodes, rack_nodes) + 1) if nodes % n == 0)
    made = []
    for at in range(nodes):
        rack = at // (even if 2 * even >= rack_nodes or nodes <= rack_nodes else rack_nodes)
        shared = row["nvlink_domain_nodes"] > 1
        mine = tuple(replace(g, fabric_id=(f"rack-{rack}", 0)) for g in gpus) if shared else gpus
        made.append(
            Node(
                hostname=f"{name}-{at:05d}",
                gpus=mine,
                nics=nics,
                link_type=row["link_type"],
                cpu_model=cpu["model"],
                sockets=sockets,
                cores=cpu["cores"],
                memory_bytes=cpu["memory_bytes"],
            )
        )
    return Cluster(
        source=f"preset {name}:{nodes}",
        nodes=tuple(made),
        nvlink_domains=domains_of(tuple(made)),
        fabric=Fabric(
            kind=fabric["kind"],
            rails=ports,
            bytes_per_s_per_gpu=fabric["bytes_per_s_per_port"] * ports / count,
        ),
    )

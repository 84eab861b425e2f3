"""Data sheets: what a GPU product and a machine of a known name can do. Numbers live in `data/`, each with its source."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from parlaunch.catalog import load
from parlaunch.errors import UsageError
from parlaunch.machine import Cluster, Fabric, Gpu, Nic, Node, domains_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One GPU product. Rates per second, one direction; FLOP/s dense."""

    name: str
    arch: str  # volta | turing | ampere | ada | hopper | blackwell | rubin
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

    def peak_flops(self, precision: str) -> float:
        """Dense peak for a training precision (`fp8mx`, `bf16`, …); the nearest wider format where this GPU lacks it."""
        chain = {"nvfp4": ("nvfp4", "fp8", "bf16", "fp16"), "fp32": ("tf32", "fp32"), "fp16": ("fp16",)}
        formats = chain.get(precision) or (("fp8", "bf16", "fp16") if precision.startswith("fp8") else ("bf16", "fp16"))
        return next(self.flops[f] for f in (*formats, "fp32") if f in self.flops)


def _product(name: str) -> Product:
    row = load("products.json")["products"][name]
    given = {k: v for k, v in row.items() if k not in ("match", "compute_capability")}
    return Product(name=name, compute_capability=tuple(row["compute_capability"]), **given)


def product(gpu_name: str) -> Product | None:
    """The data sheet of a GPU as NVML, or we ourselves, name it; None when it is not in the table."""
    table = load("products.json")["products"]
    if gpu_name in table:
        return _product(gpu_name)
    return next((_product(name) for name, row in table.items() if gpu_name in row["match"]), None)


def preset_names() -> tuple[str, ...]:
    data = load("presets.json")
    return (*data["presets"], *data["aliases"])


def preset(name: str, nodes: int = 1) -> Cluster:
    """A cluster of `nodes` machines of a known kind. Raises `UsageError` with the nearest names."""
    data = load("presets.json")
    row = data["presets"].get(data["aliases"].get(name, name))
    if row is None:
        near = difflib.get_close_matches(name, preset_names(), n=4, cutoff=0.4)
        raise UsageError(
            f"unknown machine {name!r}: neither a preset nor a file",
            hint=("nearest: " + ", ".join(near) if near else "presets: " + ", ".join(data["presets"])),
        )
    if nodes < 1:
        raise UsageError(f"{name}:{nodes} has no node", hint=f"write {name}:1 or more")
    sheet = _product(row["gpu"])
    count, group = row["gpus_per_node"], row["nvlink_group"]
    fabric, ports = row["fabric"], row["fabric"]["ports_per_node"]
    gpus = tuple(
        Gpu(
            index=i,
            name=load("products.json")["products"][row["gpu"]]["match"][0],
            memory_bytes=sheet.memory_bytes,
            compute_capability=sheet.compute_capability,
            nvlink_domain=i // group if group > 1 else None,
            nvlinks=sheet.nvlinks if group > 1 else 0,
        )
        for i in range(count)
    )
    nics = tuple(
        Nic(name=f"nic{i}", kind=fabric["kind"], bytes_per_s=fabric["bytes_per_s_per_port"], up=True, rail=True)
        for i in range(ports)
    )
    made = []
    for at in range(nodes):
        rack = at // row["nvlink_domain_nodes"]
        shared = row["nvlink_domain_nodes"] > 1
        mine = tuple(replace(g, fabric_id=(f"rack-{rack}", 0)) for g in gpus) if shared else gpus
        made.append(Node(hostname=f"{name}-{at:05d}", gpus=mine, nics=nics, link_type=row["link_type"]))
    rate = fabric["bytes_per_s_per_port"]
    return Cluster(
        source=f"preset {name}:{nodes}",
        nodes=tuple(made),
        nvlink_domains=domains_of(tuple(made)),
        fabric=Fabric(
            kind=fabric["kind"],
            rails=ports,
            bytes_per_s_per_gpu=None if rate is None else rate * ports / count,
        ),
    )

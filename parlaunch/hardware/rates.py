"""What the planner computes with: one machine boiled down to sizes and rates, with every assumed number named."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from math import inf
from typing import Any

from parlaunch.data import load
from parlaunch.errors import ProbeError, UsageError
from parlaunch.frozen import HashedOnce, dataclass
from parlaunch.hardware.cluster import UNKNOWN, Cluster, Gpu
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.datasheet import Product, product, products_like
from parlaunch.hardware.derived import sheet_of, too_old
from parlaunch.hardware.paces import (
    Pace,
    SplitPace,
    paces_from_json,
    paces_to_json,
    splits_from_json,
    splits_to_json,
)
from parlaunch.hardware.ports import family_rate, is_verbs

GPU_DRIVEN = ("infiniband", "roce")
"""Networks whose adapters a GPU's own kernels drive; over the others a thread of the CPU posts what they send."""
HEADROOM = 0.08
"""Share of a GPU's memory that a plan leaves free where nobody asks for another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates(HashedOnce):
    """Sizes in GPUs and bytes; rates in bytes/s one direction, per GPU."""

    product: Product
    memory_bytes: int
    gpus_per_node: int
    world_size: int
    nvlink_domain: int  # consecutive ranks that share NVLink; 1: none
    nvlink_bytes_per_s: float  # inside the domain; PCIe when there is no NVLink
    node_bytes_per_s: float  # between GPUs of one node outside the domain
    fabric_bytes_per_s: float  # between nodes
    fabric_kind: str
    assumed: tuple[str, ...] = ()
    # What `parlaunch calibrate` measured, by name: shares of the data sheet (`gemm_bf16`, `hbm`, …) and rates
    # (`nvlink_bus_bytes_per_s`, `fabric_bus_bytes_per_s`). It stands in for the constants of the GPU's generation.
    measured: Mapping[str, float] = field(default_factory=dict, hash=False)
    models: tuple[Pace, ...] = ()  # what it learnt of single models beside them
    splits: tuple[SplitPace, ...] = ()  # and of single splits
    measured_in: str | None = None  # the machine file that says it
    roaming: str | None = (
        None  # why ranks are not bound to the CPUs beside their GPU; None: they are, or all are beside it
    )


SYSTEM_BYTES = 12 * 2**30
"""What the operating system and the host side of training (Python, CUDA, data loading) take of a memory that CPU and GPU
share: by judgement, about a tenth of a DGX Spark's."""


def rates_of(cluster: Cluster, *, machine_file: Mapping[str, object] | None = None) -> Rates:
    """Boil a cluster down; `machine_file` is what `parlaunch.check.calibrate` wrote for this machine.

    Where GPUs differ, all of them go at the pace of the slowest and use the memory of the smallest. Raises `ProbeError`
    without a GPU, for one whose generation cannot be told, and for GPUs that MIG has cut up.
    """
    gpu = cluster.gpu
    _whole(cluster)
    sheets = _sheets(cluster)
    sheet = _slowest(sheets)
    calibrated = calibrated_by(machine_file, sheet.name)
    measured = calibrated["measured"]
    assumed = list(cluster.assumed)
    memory, words = _memory(cluster, sheet)
    assumed += words
    nvlink = cluster.nvlink_domain_size
    joined = nvlink > 1 and sheet.nvlink_bytes_per_s is not None
    used = ["flops"] * ("gemm_bf16" not in measured) + ["hbm_bytes_per_s"] * ("hbm" not in measured)
    used += ["sms", "compute_capability", "nvlink_bytes_per_s" if joined else "pcie_bytes_per_s"]
    assumed += sheet.assumes(*used)
    if gpu.sheet is not None and product(gpu.name) is None:
        assumed.append(f"{gpu.name} is planned with the data sheet of {sheet.name}")
    fabric = cluster.fabric.bytes_per_s_per_gpu
    if fabric is None:
        fabric, words_of_it = _by_cards(cluster)
        if len(cluster.nodes) > 1:
            assumed.append(words_of_it)
    return Rates(
        product=sheet,
        memory_bytes=memory,
        gpus_per_node=cluster.gpus_per_node,
        world_size=cluster.world_size,
        nvlink_domain=nvlink,
        nvlink_bytes_per_s=(
            sheet.nvlink_bytes_per_s if nvlink > 1 and sheet.nvlink_bytes_per_s else sheet.pcie_bytes_per_s
        ),
        node_bytes_per_s=sheet.pcie_bytes_per_s,
        fabric_bytes_per_s=fabric,
        fabric_kind=cluster.fabric.kind,
        assumed=tuple(assumed),
        **calibrated,
    )


def _by_cards(cluster: Cluster) -> tuple[float, str]:
    """Bytes/s a GPU of a fabric whose rate nobody read, and a sentence on it: what the cards of its rails can do."""
    rails = [n for n in cluster.nodes[0].nics if n.rail] if cluster.nodes else []
    could = [family_rate(n) for n in rails]
    total = sum(rate for rate in could if rate is not None)
    if not could or None in could or cluster.gpus_per_node == 0:
        wired = bool(rails) and all(map(is_verbs, rails)) and cluster.gpus_per_node > 0
        sheet = sheet_of(cluster.nodes[0].gpus[0]) if wired else None
        if sheet is not None and (lanes := sheet.network_bytes_per_s) is not None:
            return (
                lanes,
                f"fabric {lanes / 1e9:.3g} GB/s a GPU: its rate is not known, this is what {sheet.name} is sold with",
            )
        return 12.5e9, "fabric 12.5 GB/s a GPU: its rate is not known"
    each = total / cluster.gpus_per_node
    return (
        each,
        f"fabric {each / 1e9:.3g} GB/s a GPU: its rate is not known, this is what {len(rails)} {rails[0].model} can do",
    )


def _whole(cluster: Cluster) -> None:
    """Raise `ProbeError` where MIG leaves no whole GPUs and more than one process would need one."""
    cut = sorted({g.index for n in cluster.nodes for g in n.gpus if g.mig and not _is_slice(g)})
    if cut and cluster.world_size > 0:
        raise ProbeError(
            f"MIG is on for GPU {', '.join(map(str, cut))}: a process sees one slice, without peers and NVLink",
            hint="nvidia-smi -mig 0 for whole GPUs; or CUDA_VISIBLE_DEVICES=MIG-UUID and one rank for a single slice",
        )


def _is_slice(gpu: Gpu) -> bool:
    """The GPU stands for one of its MIG devices, the one that CUDA shows."""
    return gpu.uuid is not None and any(uuid == gpu.uuid for uuid, _, _ in gpu.mig_devices)


def _sheets(cluster: Cluster) -> list[Product]:
    """The data sheets of the cluster's GPUs, each once."""
    found: dict[str, Product] = {}
    for gpu in dict.fromkeys(map(_kind, dict.fromkeys(g for n in cluster.nodes for g in n.gpus))):
        sheet = CPU_RANK if gpu.name == CPU_RANK.name else sheet_of(gpu)
        if sheet is None and gpu.name == UNKNOWN:
            raise ProbeError(
                f"the GPU model is not known: {cluster.source} does not say it",
                hint="name it with --gpu, or append the output of `nvidia-smi -L` or `nvidia-smi -q` to the file",
            )
        if sheet is None and too_old(gpu.name, gpu.compute_capability):
            raise ProbeError(
                f"{gpu.name!r} is older than every GPU that Megatron's libraries still run on",
                hint="plans begin with Pascal (P100); CUDA_VISIBLE_DEVICES leaves it out where others are beside it",
            )
        if sheet is None and (fits := products_like(gpu.name)):
            raise ProbeError(
                f"{gpu.name!r} may be {', '.join(s.name for s in fits[:6])}",
                hint=f"say which with --gpu, for example --gpu {fits[0].name.replace(' ', '-')}",
            )
        if sheet is None:
            raise ProbeError(
                f"{gpu.name!r}: neither its data sheet nor its generation is known",
                hint="name the nearest product with --gpu, for example --gpu A100-SXM-80GB; `parlaunch calibrate` measures the rest",
            )
        found.setdefault(sheet.name, sheet)
    return list(found.values())


def _kind(gpu: Gpu) -> Gpu:
    """The GPU without what tells it from its twins."""
    return replace(gpu, index=0, uuid=None, pci=None, serial=None, minor=None, numa=None, cpus=None, processes=None)


def _slowest(sheets: Sequence[Product]) -> Product:
    """One sheet for all: the slowest GPU's, with the least of every rate and size."""
    slowest = min(sheets, key=lambda s: s.peak_flops("bf16"))
    if len(sheets) == 1:
        return slowest
    links = [s.nvlink_bytes_per_s for s in sheets]
    return replace(
        slowest,
        memory_bytes=min(s.memory_bytes for s in sheets),
        hbm_bytes_per_s=min(s.hbm_bytes_per_s for s in sheets),
        pcie_bytes_per_s=min(s.pcie_bytes_per_s for s in sheets),
        nvlink_bytes_per_s=None if None in links else min(rate for rate in links if rate is not None),
        compute_capability=min(s.compute_capability for s in sheets),
    )


def _memory(cluster: Cluster, sheet: Product) -> tuple[int, list[str]]:
    """Bytes that a rank can have: of the GPU with the least memory; of a memory that the CPU shares, what is left."""
    if sheet.unified_memory:
        known = [n.memory_bytes for n in cluster.nodes if n.memory_bytes]
        whole = min(known, default=sheet.memory_bytes)
        sisters = ", and others have its name: --gpu says which" if sheet.shares_its_name else ""
        source = "" if known else f" (data sheet of {sheet.name}{sisters})"
        left = max(whole - SYSTEM_BYTES, whole // 2)
        taken = (whole - left) / 2**30
        return left, [
            f"CPU and GPU share {whole / 2**30:.0f} GiB of memory{source}: {taken:.0f} GiB are left to the system and to the host "
            "side of training"
        ]
    sizes = [g.memory_bytes for n in cluster.nodes for g in n.gpus if g.memory_bytes]
    if sizes:
        return min(sizes), []
    return sheet.memory_bytes, [f"GPU memory {sheet.memory_bytes / 2**30:.0f} GiB: data sheet of {sheet.name}"]


def named_in(machine_file: Mapping[str, object] | None) -> str | None:
    """Where a machine file was read from, as whoever read it noted."""
    return None if machine_file is None or not machine_file.get("read_from") else str(machine_file["read_from"])


def calibrated_by(machine_file: Mapping[str, object] | None, gpu: str) -> dict[str, Any]:
    """What a machine file says of this product, by the fields of `Rates`: `measured`, `models`, `splits` and `measured_in`. Raises
    `ProbeError` for another product's, or another kind of file."""
    measured = _measured(machine_file, gpu)
    models = paces_from_json((machine_file or {}).get("models", []))
    splits = splits_from_json((machine_file or {}).get("splits", []))
    file = named_in(machine_file) if measured or models or splits else None
    return {"measured": measured, "models": models, "splits": splits, "measured_in": file}


def _measured(machine_file: Mapping[str, object] | None, gpu: str) -> dict[str, float]:
    if machine_file is None:
        return {}
    values = machine_file.get("measured")
    if machine_file.get("schema") != "parlaunch.machine/1" or not isinstance(values, Mapping):
        raise ProbeError(
            "this is not a machine file: it has no schema parlaunch.machine/1",
            hint="write one with `parlaunch calibrate`",
        )
    if machine_file.get("gpu") != gpu:
        raise ProbeError(
            f"the machine file was measured on {machine_file.get('gpu')!r}, this machine has {gpu!r}",
            hint="run `parlaunch calibrate` here",
        )
    known = load("schemas/machine.json")["properties"]["measured"]["properties"]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3) or sorted(known)
            raise ProbeError(
                f"the machine file has {name!r}, which is no rate", hint=f"did you mean {' or '.join(near)}?"
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        most = known[name].get("maximum", inf)
        if not number or not 0 < value <= most or value == inf:
            limit = "a number above 0" + (f", {most} at most: a share of the peak" if most < inf else "")
            raise ProbeError(
                f"the machine file has {name} {json.dumps(value)}: it is {limit}",
                hint="write one with `parlaunch calibrate`",
            )
    return {str(k): float(v) for k, v in values.items()}


def rates_to_json(rates: Rates) -> dict[str, Any]:
    """The `rates` object of `parlaunch.plan/1`: the product by its name in the data sheets, or whole where it was derived."""
    values = {f.name: getattr(rates, f.name) for f in fields(Rates)}
    sheet = rates.product
    known = sheet in (CPU_RANK, product(sheet.name))
    return values | {
        "product": sheet.name if known else asdict(sheet), "assumed": list(rates.assumed), "measured": dict(rates.measured),
        "models": paces_to_json(rates.models), "splits": splits_to_json(rates.splits),
    }  # fmt: skip


def rates_from_json(data: Mapping[str, Any], *, where: str) -> Rates:
    """The rates that `rates_to_json` wrote. Raises `UsageError` naming `where` for a product without a data sheet
    here, KeyError and TypeError for anything else."""
    name = data["product"]
    if isinstance(name, Mapping):
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in name.items()}
        sheet: Product | None = Product(**given)
    else:
        sheet = CPU_RANK if name == CPU_RANK.name else product(name)
    if sheet is None:
        raise UsageError(f"{where}: no data sheet for {name!r}", hint="plan anew with this version of parlaunch")
    values = {f.name: data[f.name] for f in fields(Rates) if f.name in data}
    learnt = {"models": paces_from_json(data.get("models", [])), "splits": splits_from_json(data.get("splits", []))}
    return Rates(**values | {"product": sheet, "assumed": tuple(data["assumed"])} | learnt)

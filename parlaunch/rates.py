"""What the planner computes with: one machine boiled down to sizes and rates, with every assumed number named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parlaunch.cpu import CPU_RANK
from parlaunch.datasheet import Product, product
from parlaunch.errors import ProbeError
from parlaunch.machine import UNKNOWN, Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
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
    measured: Mapping[str, float] = field(default_factory=dict)


def rates_of(cluster: Cluster, *, machine_file: Mapping[str, object] | None = None) -> Rates:
    """Boil a cluster down; `machine_file` is what `parlaunch.calibrate` wrote for this machine.

    Raises `ProbeError` without a GPU or for a product without a data sheet.
    """
    gpu = cluster.gpu
    sheet = CPU_RANK if gpu.name == CPU_RANK.name else product(gpu.name)
    if sheet is None and gpu.name == UNKNOWN:
        raise ProbeError(
            f"the GPU model is not known: {cluster.source} does not say it",
            hint="append the output of `nvidia-smi -L` or `nvidia-smi -q` to the file",
        )
    if sheet is None:
        raise ProbeError(
            f"no data sheet for {gpu.name!r}",
            hint="measure it with `parlaunch calibrate`, or plan for the nearest product with --hardware",
        )
    assumed = []
    memory = gpu.memory_bytes
    if memory is None:
        memory = sheet.memory_bytes
        assumed.append(f"GPU memory {memory / 2**30:.0f} GiB: data sheet of {sheet.name}")
    nvlink = cluster.nvlink_domain_size
    fabric = cluster.fabric.bytes_per_s_per_gpu
    if fabric is None:
        fabric = 12.5e9
        if len(cluster.nodes) > 1:
            assumed.append("fabric 12.5 GB/s a GPU: its rate is not known")
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
        measured=_measured(machine_file, sheet.name),
    )


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
    return {str(k): float(v) for k, v in values.items()}

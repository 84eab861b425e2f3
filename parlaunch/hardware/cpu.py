"""A machine without GPUs as the planner sees it: gloo ranks that share the CPUs of one host.

The rates are orders of magnitude for a plan that has to be legal, not fast: one rank on a shared core of 2020s server
hardware. They are measured by nobody; `--device cpu` says so.
"""

from __future__ import annotations

from dataclasses import replace

from parlaunch.hardware.cluster import Cluster, Fabric, Gpu
from parlaunch.hardware.datasheet import Product

CPU_RANK = Product(
    name="CPU rank",
    arch="cpu",
    compute_capability=(0, 0),
    memory_bytes=4 * 2**30,
    hbm_bytes_per_s=10e9,
    sms=1,
    boost_clock_hz=2.5e9,
    flops={"fp32": 20e9, "bf16": 20e9, "fp16": 20e9},
    nvlinks=None,
    nvlink_bytes_per_s=None,
    pcie_bytes_per_s=2e9,
    source="order of magnitude of one shared x86 core",
)


def device_of(cluster: Cluster) -> str:
    """`cpu` where gloo ranks stand in for GPUs, else `cuda`."""
    return "cpu" if cluster.gpu.name == CPU_RANK.name else "cuda"


def with_cpu_ranks(probed: Cluster, ranks: int) -> Cluster:
    """The probed machine with `ranks` gloo ranks a node in place of GPUs; memory is shared out evenly."""
    nodes = []
    for node in probed.nodes:
        memory = (node.memory_bytes or ranks * CPU_RANK.memory_bytes) // ranks
        gpus = tuple(
            Gpu(index=i, name=CPU_RANK.name, memory_bytes=memory, compute_capability=(0, 0), nvlink_domain=0)
            for i in range(ranks)
        )
        nodes.append(replace(node, gpus=gpus, link_type="none"))
    # Shared memory joins every rank of a host: for the rule that tensor parallelism stays where links are fast.
    domains = tuple(tuple(range(i * ranks, (i + 1) * ranks)) for i in range(len(nodes))) if ranks > 1 else ()
    return replace(probed, nodes=tuple(nodes), nvlink_domains=domains, fabric=Fabric(kind="ethernet"))

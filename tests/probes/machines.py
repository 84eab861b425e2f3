"""Whole machines for tests: a synthetic file tree and what the fake NVML answers beside it. `scripts/make/machines.py`
saves each as a capture under `tests/machines/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parlaunch_probes import Host
from parlaunch_probes.capture import Capture, take
from parlaunch_probes.nvml import LibraryNvml
from tests.fake_nvml import Fake
from tests.probes import tree


@dataclass(frozen=True)
class Machine:
    """One row: descriptions for the fake NVML, the file tree, the environment, and where the machine comes from."""

    nvml: tuple[str, ...]
    files: Callable[[Path], tree.Tree]
    about: str
    extra: str = ""
    visible: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[tree.Tree], None] | None = None


def _port_down(t: tree.Tree) -> None:
    at = "sys/class/infiniband/mlx5_7/ports/1"
    t.put(f"{at}/state", "1: DOWN")
    t.put(f"{at}/phys_state", "2: Polling")
    t.put("sys/class/infiniband/mlx5_2/ports/1/rate", "200 Gb/sec (2X NDR)")


def _acs(t: tree.Tree) -> None:
    t.put("sys/bus/pci/devices/0000:1a:00.0/config", tree.acs_config(0x1D))
    t.put("sys/kernel/iommu_groups/1/type", "DMA-FQ")


def _proc_gpus(t: tree.Tree) -> None:
    for number, bus in enumerate(tree.H100_BUSES):
        t.put(
            f"proc/driver/nvidia/gpus/0000:{bus}:00.0/information",
            f"Model: \t\t NVIDIA H100 80GB HBM3\nGPU UUID: \t GPU-11000000-000{number}-4a5b-8c9d-11001100000{number}\n"
            f"Bus Location: \t 0000:{bus}:00.0\nDevice Minor: \t {number}\nGPU Excluded:\t No",
        )


def _plain(root: Path) -> tree.Tree:
    """A host of which only the operating system is known: NVML says the rest."""
    t = tree.Tree(root)
    t.host()
    return t


H100 = "DGX H100 as its user guide draws it: a switch, an NDR port and a GPU together, eight times"
MACHINES: Mapping[str, Machine] = {
    "nvml-dgx-h100": Machine(("dgx_h100",), tree.dgx_h100, f"{H100}; healthy"),
    "nvml-dgx-h100-gpu-lost": Machine(("dgx_h100", "x_gpu_lost"), tree.dgx_h100, f"{H100}; GPU 3 fell off the bus"),
    "nvml-dgx-h100-sick": Machine(
        ("dgx_h100", "x_ecc_errors", "x_throttled", "x_busy"),
        tree.dgx_h100,
        f"{H100}; ECC, heat, a power cap, a narrow slot and another user's process",
    ),
    "nvml-dgx-h100-ports": Machine(
        ("dgx_h100", "x_nvlink_down"),
        tree.dgx_h100,
        f"{H100}; two NVLinks and a port down, a port at half rate",
        change=_port_down,
    ),
    "nvml-dgx-h100-acs": Machine(
        ("dgx_h100",), tree.dgx_h100, f"{H100}; ACS redirects below one switch, the IOMMU translates", change=_acs
    ),
    "nvml-dgx-h100-driver-updated": Machine(
        ("dgx_h100", "x_driver_mismatch"),
        tree.dgx_h100,
        f"{H100}; the driver was updated and the node not rebooted",
        change=_proc_gpus,
    ),
    "nvml-h100-pod": Machine(
        ("dgx_h100",),
        tree.container,
        "a Kubernetes pod on a DGX H100 with one GPU and without /dev/infiniband",
        visible="5",
    ),
    "nvml-h100-vm": Machine(
        ("h100_vm",), tree.h100_vm, "eight H100 in a KVM guest that hides switches and NUMA (NVIDIA/nccl#1182)"
    ),
    "nvml-aws-p5": Machine(
        ("dgx_h100",), tree.aws_p5, "an AWS p5.48xlarge as its topology file draws it: four EFA devices a GPU"
    ),
    "nvml-hgx-b200-off-fabric": Machine(
        ("hgx_b200",),
        _plain,
        "HGX B200 whose GPU 2 left the fabric (leptonai/gpud#1085)",
        extra="nvdown 2 *\nset 2 fab=1,0,0,0,0",
    ),
    "nvml-hgx-b200-switch-ports": Machine(
        ("hgx_b200",),
        lambda root: tree.hgx_b200(root, rails=4, vpd=True),
        "HGX B200 with four of its eight rails fitted; the card that manages its NVSwitches says so in its VPD, as root reads it",
    ),
    "nvml-hgx-b300-rails-down": Machine(
        ("hgx_b300",),
        lambda root: tree.hgx_b200(root, model="MT4131", up=False),
        "HGX B300 with all eight ConnectX-8 ports down, the four functions of its NVSwitches up (siderolabs/extensions#893)",
    ),
    "nvml-dgx-spark": Machine(
        ("gb10",), tree.spark, "DGX Spark: memory shared with the system, two functions for each port, one port cabled"
    ),
    "nvml-slingshot": Machine(
        ("hgx_a100_4",), tree.slingshot, "four A100 with four Slingshot adapters and a 1 Gb/s interface for management"
    ),
    "nvml-h20-bonds": Machine(
        ("hgx_h20",), tree.eight_bonds, "eight H20, each beside a bond of two RoCE ports; virtual functions for guests"
    ),
    "nvml-b200-one-roce": Machine(
        ("hgx_b200",),
        tree.one_roce,
        "eight B200 whose only port is one 400 Gb/s RoCE beside the functions of the NVSwitches",
    ),
    "nvml-a100-64gb": Machine(
        ("hgx_a100_4",),
        tree.custom_a100,
        "four A100 of a custom product with 64 GB, which has no data sheet, and four InfiniBand ports",
        extra="set * name=NVIDIA_A100-SXM-64GB mem=65536,640,0 cores=7936 buswidth=4096 maxclk=1410,1410,1600,1290",
    ),
    "nvml-jetson-thor": Machine(
        ("thor",), tree.thor, "Jetson Thor: memory shared with the system; Wi-Fi and USB beside one network port"
    ),
    "nvml-h200-nvl-pairs": Machine(("h200_nvl_pairs",), _plain, "four H200 NVL, two bridges of 18 links each"),
    "nvml-azure-nd-h100": Machine(
        ("dgx_h100",),
        tree.azure,
        "an Azure virtual machine: InfiniBand through virtual functions, one a GPU, IP over each",
    ),
    "nvml-aws-p6": Machine(("hgx_b200",), tree.aws_p6, "an AWS p6-b200.48xlarge: one EFA device of 400 Gb/s a GPU"),
    "nvml-roce-two-ports": Machine(
        ("dgx_h100",),
        tree.two_ports_each,
        "bare metal with two RoCE ports a GPU, each with a virtual function for a pod",
    ),
    "nvml-gcp-a3-ultra": Machine(
        ("dgx_h100",),
        lambda root: tree.google(root, rdma=True),
        "a Google Cloud machine with a RoCE function for each GPU, named after it, and its host interface",
    ),
    "nvml-gcp-a3-tcpx": Machine(
        ("dgx_h100",),
        lambda root: tree.google(root, rdma=False),
        "a Google Cloud a3-highgpu-8g: four gVNICs beside the GPUs for GPUDirect-TCPX, one for the host",
    ),
    "nvml-wsl2": Machine(("rtx4090_x2",), tree.wsl2, "two RTX 4090 seen from Linux on Windows (WSL2)"),
    "nvml-vgpu": Machine(
        ("l40s",),
        tree.guest,
        "four shares of L40S in a KVM guest",
        extra="set * name=NVIDIA_L40S-24Q mem=24576,200,0 virt=2",
    ),
    "nvml-omnipath": Machine(("a100_pcie_pairs",), tree.omnipath, "four A100 PCIe with one Omni-Path adapter"),
    "nvml-h100-seven": Machine(("dgx_h100",), _plain, "seven H100 of a board of eight", visible="0,1,2,3,4,5,6"),
    "nvml-h100-mig": Machine(
        ("dgx_h100",),
        _plain,
        "eight H100, all in MIG mode, one slice each",
        extra="set * mig=1,1 remap=!NOT_SUPPORTED\n"
        + "\n".join(
            f"mig {n} name=NVIDIA_H100_80GB_HBM3_MIG_3g.40gb uuid=MIG-0000000{n}-9d2b-5b1e-8a5c-3f6a1c2b0d01 gi=1 ci=0 cc=9,0 mem=40448,0,0 slices=60,3,3"
            for n in range(8)
        ),
    ),
    "nvml-gb200-tray": Machine(("gb200_tray",), tree.gb200, "a GB200 NVL72 tray; fabric ids as in leptonai/gpud#1106"),
    "nvml-gb200-no-imex": Machine(
        ("gb200_tray",),
        lambda root: tree.gb200(root, channel=False),
        "a GB200 NVL72 tray whose container has no IMEX channel",
    ),
    "nvml-gb200-fabric-stuck": Machine(
        ("gb200_tray", "x_fabric_stuck"), tree.gb200, "a GB200 tray whose fabric registration does not end"
    ),
    "nvml-a100-pairs": Machine(
        ("a100_pcie_pairs",), tree.a100_pairs, "four A100 PCIe with two bridges, RoCE without GPUDirect"
    ),
    "nvml-a100-one-bridge": Machine(
        ("a100_pcie_pairs",),
        tree.a100_pairs,
        "the same with one bridge not up (NVIDIA/k8s-device-plugin#436)",
        extra="nvdown 2-3 *",
    ),
    "nvml-hgx-a100-4": Machine(
        ("hgx_a100_4",),
        _plain,
        "HGX A100 4-GPU: four links between any two, minors reversed",
    ),
    "nvml-slurm-cgroup": Machine(
        ("hgx_a100_4",),
        _plain,
        "two GPUs of an HGX A100 in a Slurm job with device cgroups: ordinals count from 0",
        visible="1,3",
        environ={"CUDA_VISIBLE_DEVICES": "0,1"},
    ),
    "nvml-a100-mig": Machine(("a100_mig",), _plain, "two A100, the first cut into three MIG devices"),
    "nvml-dgx1-v100": Machine(("dgx1_v100",), _plain, "DGX-1: the hybrid cube mesh of NVIDIA/nccl#671"),
    "nvml-dgx2-v100": Machine(("dgx2_v100",), _plain, "DGX-2: sixteen V100 behind NVSwitches"),
    "nvml-l40s": Machine(
        ("l40s",), tree.l40s, "four L40S, two behind each of two switches, one RoCE port behind the first"
    ),
    "nvml-rtx4090-x2": Machine(
        ("rtx4090_x2",), tree.desktop, "two RTX 4090: the driver refuses peer access (noonghunna/club-3090#1229)"
    ),
    "nvml-mixed": Machine(
        ("mixed",),
        _plain,
        "a display card before two A100 (vllm-project/vllm#53834)",
        environ={"CUDA_VISIBLE_DEVICES": "0,1"},
    ),
}


def capture(name: str, fake: Fake, root: Path) -> Capture:
    """Build the machine under `root` and probe it."""
    machine = MACHINES[name]
    built = machine.files(root)
    if machine.change is not None:
        machine.change(built)
    variables = fake.variables(*machine.nvml, extra=machine.extra, visible=machine.visible)
    return take(Host(root), LibraryNvml({**variables, "PATH": "/usr/bin:/bin"}), environ=machine.environ)

"""Every entry of the failure catalogue that a probe can see is found, with the severity that stops or warns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.doctor.finding import Comparison, Finding, Inspection, numbers
from parlaunch.doctor.preflight import COMPARISONS, INSPECTIONS, examine, findings_to_json, findings_to_text, worst
from parlaunch.doctor.unread import unread
from parlaunch.doctor.xid import xids
from parlaunch.hardware.cluster import Cluster, Gpu, Nic, Node
from parlaunch_probes import Host, capture
from parlaunch_probes.files import read_hardware
from parlaunch_probes.node import cluster_of
from parlaunch_probes.nvml import NvmlReading
from tests.fake_nvml import MACHINES as FAKES
from tests.probes import tree
from tests.probes.chaos import SAVED, read_here
from tests.probes.machines import MACHINES

Change = Callable[[tree.Tree], object]


@dataclass(frozen=True)
class Case:
    """A fault, seen through the fake NVML and a synthetic tree, and the finding that must come of it."""

    entry: str  # of the catalogue, or what the row is about
    want: str  # "FAIL nvlink-links: words of the sight"
    nvml: tuple[str, ...] = ("dgx_h100",)
    extra: str = ""
    files: Callable[[Path], tree.Tree] = tree.dgx_h100
    change: Change = lambda t: None
    environ: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None  # NVML does not start
    job: Mapping[str, object] = field(default_factory=dict)


def put(path: str, value: object) -> Change:
    return lambda t: t.put(path, value)


def link(name: str, **files: object) -> Change:
    return every(*(put(f"sys/class/infiniband/{name}/device/{k}", v) for k, v in files.items()))


def every(*changes: Change) -> Change:
    return lambda t: [change(t) for change in changes]


def port(name: str, **files: object) -> Change:
    return every(*(put(f"sys/class/infiniband/{name}/ports/1/{k}", v) for k, v in files.items()))


def bare(root: Path) -> tree.Tree:
    t = tree.Tree(root)
    t.host()
    return t


TWO = {"nodes": 2}
CASES = [
    # NVLink and fabric
    Case("A1 fabric manager not running", r"FAIL nvswitch-fabric: GPU 0-7: the NVSwitch fabric is not started", extra="set * fab=1,0,0,0,0"),
    Case("A1 do names the service", r"FAIL nvswitch-fabric: .* \| start nvidia-fabricmanager", extra="set * fab=1,0,0,0,0"),
    Case("A2 registration stuck", r"FAIL nvswitch-fabric: GPU 0-3: the NVSwitch fabric is in progress: CUDA answers error 802", ("gb200_tray", "x_fabric_stuck"), files=tree.gb200),
    Case("fabric without resources", r"FAIL nvswitch-fabric: GPU 0-3: registration with the NVSwitch fabric ended with error 23", ("gb200_tray", "x_fabric_no_resources"), files=tree.gb200),
    Case("A4 one GPU off the fabric", r"FAIL nvlink-off-fabric: GPU 2: reaches no other GPU over NVLink, 7 others", ("hgx_b200",), "nvdown 2 *", bare),
    Case("A4 its links", r"FAIL nvlink-links: GPU 2: 0 active NVLinks where its twins have 18", ("hgx_b200",), "nvdown 2 *", bare),
    Case("A5 some links down", r"FAIL nvlink-links: GPU 2: 16 active NVLinks where its twins have 18 \(down: 4, 11\)", ("dgx_h100", "x_nvlink_down")),
    Case("A5 on V100", r"FAIL nvlink-links: GPU 5: 5 active NVLinks where its twins have 6 \(down: 2\)", ("dgx1_v100",), "nvdown 5 2", bare),
    Case("A6 one bridge not up", r"WARN nvlink-links: GPU 2-3: 0 active NVLinks where its twins have 12", ("a100_pcie_pairs",), "nvdown 2-3 *", tree.a100_pairs),
    Case("A7 no bridge at all", r"INFO nvlink-links: every NVLink of every card is down: no bridge is fitted", ("l40s",), "nvidle * 4", tree.l40s),
    Case("A8 one GPU's switches hidden", r"WARN nvlink-hidden: GPU 0: the far ends of its NVLinks cannot be seen", extra="nvdown 0 *\nnvfar 0 18 255 -"),
    Case("A9 zero UUID asked to span nodes", r"FAIL multi-node-nvlink: the cluster UUID is all zero", job={"multi_node_nvlink": True, **TWO}),
    Case("A10 partitions inside a node", r"FAIL multi-node-nvlink: its GPUs are in 2 NVLink partitions: cliques 4026, 4027", ("gb200_tray", "x_fabric_other_clique"), files=tree.gb200),
    Case("A11 unhealthy mask", r"FAIL nvswitch-fabric: GPU 1: its NVSwitch fabric is unhealthy: route_unhealthy", ("gb200_tray",), "set 1 fab=3,0,4026,0x19A,2", tree.gb200),
    Case("A11 wrong partition", r"FAIL nvswitch-fabric: GPU 1: its NVSwitch fabric is unhealthy: no_partition", ("gb200_tray",), "set 1 fab=3,0,4026,0x4AA,0", tree.gb200),
    Case("A11 degraded only", r"WARN nvswitch-fabric: GPU 1: its NVSwitch fabric runs with degraded_bandwidth", ("gb200_tray",), "set 1 fab=3,0,4026,0x1A9,0", tree.gb200),
    Case("A12 IMEX missing, asked for", r"FAIL multi-node-nvlink: no IMEX channel", ("gb200_tray",), files=lambda r: tree.gb200(r, channel=False), job={"multi_node_nvlink": True, **TWO}),
    Case("A12 IMEX missing, not asked", r"WARN multi-node-nvlink: no IMEX channel", ("gb200_tray",), files=lambda r: tree.gb200(r, channel=False), job=TWO),
    Case("A15 a GPU waits for a reset", r"FAIL gpu-recovery: GPU 2: the driver asks to reset it", ("dgx_h100", "x_recovery")),
    # Driver and container
    Case("B1 driver updated", r"FAIL nvml: driver library and kernel module have different versions: .* \(kernel module 550.90.07\) \| reboot", error="LIB_RM_VERSION_MISMATCH"),
    Case("B1 seen by versions", r"FAIL driver-versions: driver library 550.90.07, kernel module 550.54.15", change=every(put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release"))),
    Case("B2 GPU lost", r"FAIL gpu-lost: GPU 3: GPU_IS_LOST \| read dmesg", ("dgx_h100", "x_gpu_lost")),
    Case("B2 lost in mid-probe", r"FAIL gpu-lost: GPU 3 GPU-11000000-0003-.* at 0000:61:00.0: GPU_IS_LOST", ("dgx_h100", "x_gpu_lost_later")),
    Case("B3 handle unknown", r"FAIL gpu-lost: GPU 6: UNKNOWN", extra="fail 6 UNKNOWN nvmlDeviceGetHandleByIndex_v2"),
    Case("B4 container lost its GPUs", r"FAIL nvml: the driver refuses to answer; in a container its device cgroup was rewritten .* \| restart the container", error="UNKNOWN"),
    Case("B5 driver not loaded", r"FAIL nvml: the NVIDIA kernel module is not loaded .*\| sudo modprobe nvidia", error="DRIVER_NOT_LOADED"),
    Case("B5 no library", r"FAIL nvml: libnvidia-ml.so.1 is not here", error="LIBRARY_NOT_FOUND"),
    Case("a hung driver", r"FAIL nvml: NVML did not answer \(TIMEOUT", error="TIMEOUT: no answer to nvmlInit within 10 s"),
    Case("no GPU at all", r"FAIL gpu-count: no GPU that a job could use, 0 on the PCI bus", ("dgx_h100",), files=bare, change=lambda t: (t.root / "sys/bus/pci/devices").mkdir(parents=True), error="LIBRARY_NOT_FOUND"),
    Case("B6 one GPU absent", r"WARN gpu-absent: 8 GPUs on the PCI bus, NVML lists 4", ("hgx_a100_4",)),
    Case("B6 others not granted", r"INFO gpu-absent: .* the others are not granted to us", ("hgx_a100_4",), change=put(".dockerenv", "")),
    Case("B7 MIG on", r"FAIL mig: GPU 0: MIG mode is on \(3 devices\)", ("a100_mig",), files=bare),
    Case("B8 UUID that is not here", r"FAIL cuda-visible-devices: CUDA_VISIBLE_DEVICES=GPU-99: 'GPU-99' ends the list", environ={"CUDA_VISIBLE_DEVICES": "GPU-99"}),
    Case("B9 owned GPU in use", r"FAIL gpu-busy: GPU 0: 60.0 of 79.6 GiB are taken already by process 4711", ("dgx_h100", "x_busy"), environ={"CUDA_VISIBLE_DEVICES": "0"}),
    Case("B9 a little in use", r"WARN gpu-busy: GPU 0: 4.0 of 79.6 GiB are taken already", extra="set 0 mem=81559,551,4096"),
    Case("B10 physical index in a cgroup", r"FAIL cuda-visible-devices: CUDA_VISIBLE_DEVICES=6: '6' ends the list: it names none of the 4 GPUs here .*\| .* in a Slurm job ordinals count from 0", ("hgx_a100_4",), files=bare, environ={"CUDA_VISIBLE_DEVICES": "6"}),
    Case("B11 order is CUDA's secret", r"WARN cuda-visible-devices: .*which GPU an ordinal means is CUDA's secret", ("mixed",), files=bare, environ={"CUDA_VISIBLE_DEVICES": "0,1"}),
    Case("fewer GPUs than ranks", r"FAIL gpu-count: 2 GPUs for 8 ranks", environ={"CUDA_VISIBLE_DEVICES": "0,1"}, job={"ranks_per_node": 8}),
    # Health of the GPUs
    Case("remap failed", r"FAIL gpu-memory-broken: GPU 6: row remapping failed", ("dgx_h100", "x_ecc_errors")),
    Case("SRAM errors", r"FAIL gpu-memory-broken: GPU 4: 2 uncorrectable SRAM errors", extra="set 4 eccloc7=0,0,2,2"),
    Case("remap pending", r"WARN gpu-memory-pending: GPU 5: a row remap is pending", ("dgx_h100", "x_ecc_errors")),
    Case("pages to retire", r"WARN gpu-memory-pending: GPU 1: memory pages wait to be retired", ("dgx1_v100",), "set 1 retpend=1", bare),
    Case("DRAM errors", r"WARN gpu-memory-pending: GPU 5: 1 uncorrectable memory errors", ("dgx_h100", "x_ecc_errors")),
    Case("ECC changes", r"WARN ecc: GPU 7: ECC is off and will be on after a reset", ("dgx_h100", "x_ecc_errors")),
    Case("ECC off", r"WARN ecc: GPU 1: ECC is off: a flipped bit", extra="set 1 ecc=0,0"),
    Case("heat", r"WARN gpu-throttled: GPU 1: clocks are held down at 91 °C: software thermal slowdown, hardware thermal slowdown", ("dgx_h100", "x_throttled")),
    Case("power cap", r"WARN gpu-power: GPU 4: power limit 400 W, default 700 W", ("dgx_h100", "x_throttled")),
    Case("unequal clocks", r"WARN gpu-power: application clocks differ: 1410 MHz, 1980 MHz", extra="set 3 appclk=1410,1410,2619,-"),
    Case("C4 narrow slot", r"WARN pcie-link: GPU 2: PCIe runs with 8 of 16 lanes", ("dgx_h100", "x_throttled")),
    Case("C4 slow at full clocks", r"WARN pcie-link: GPU 2: PCIe runs at generation 3 of 5, at full clocks", extra="set 2 pcie=3,16,5,16 pstate=0"),
    Case("compute mode", r"FAIL compute-mode: GPU 1: compute mode is PROHIBITED", extra="set 1 cmode=2"),
    Case("mixed models", r"WARN gpu-mixed: GPU models differ: 2 x NVIDIA A100-PCIE-40GB, 1 x NVIDIA RTX A4000", ("mixed",), files=bare),
    Case("memory differs", r"WARN gpu-mixed: GPU memory differs: 39.6 to 79.6 GiB", extra="set 1 mem=40559,551,0"),
    Case("firmware differs", r"INFO gpu-mixed: VBIOS versions differ: 96.00.01, 96.00.02", extra="set * vbios=96.00.01\nset 1 vbios=96.00.02"),
    Case("virtual GPUs", r"WARN gpu-shared: GPU 0-3: a virtual GPU: others may share it", ("l40s",), "set * virt=2", tree.l40s),
    Case("WSL2", r"WARN gpu-shared: this is WSL2: no GPUDirect", ("rtx4090_x2",), files=tree.desktop, change=put("proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2")),
    Case("persistence mode", r"INFO persistence: GPU 0-7: persistence mode is off", extra="set * pm=0"),
    # Peer access, PCIe, IOMMU
    Case("linked GPUs without peer access", r"FAIL p2p: GPU 0-1: peer access is refused: CHIPSET_NOT_SUPPORTED although NVLink joins them", ("hgx_a100_4",), "p2p 0 1 1 0", bare),
    Case("C1 ACS redirects", r"WARN acs: ACS redirects peer traffic on 1 PCIe bridges: 0000:1a:00.0", change=put("sys/bus/pci/devices/0000:1a:00.0/config", tree.acs_config(0x1D))),
    Case("C2 IOMMU translates", r"WARN iommu: the IOMMU translates .*\| boot with iommu=pt", change=put("sys/kernel/iommu_groups/1/type", "DMA-FQ")),
    Case("C3 GeForce", r"INFO p2p: GPU 0-1: peer access is refused: GPU_NOT_SUPPORTED", ("rtx4090_x2",), files=tree.desktop),
    # Ports
    Case("D1 compute port down", r"FAIL port-down: mlx5_7:1: DOWN, physically Polling; its twins carry the GPU traffic", change=port("mlx5_7", state="1: DOWN", phys_state="2: Polling"), job=TWO),
    Case("D1 on one node", r"WARN port-down: mlx5_7:1: DOWN", change=port("mlx5_7", state="1: DOWN", phys_state="3: Disabled")),
    Case("D1 storage port down", r"INFO port-down: mlx5_4:1: DOWN, physically Polling; a spare or storage port", change=port("mlx5_4", state="1: DOWN", phys_state="2: Polling"), job=TWO),
    Case("D2 no subnet manager", r"FAIL port-down: mlx5_2:1: the link is up and waits \(INIT\), its GUID is zero \| no subnet manager", change=every(port("mlx5_2", state="2: INIT"), put("sys/class/infiniband/mlx5_2/node_guid", "0000:0000:0000:0000")), job=TWO),
    Case("D4 slow rail", r"FAIL port-rate: mlx5_2:1: 200 Gb/sec \(2X NDR\) where cards of its model run at 400 Gb/s", change=port("mlx5_2", rate="200 Gb/sec (2X NDR)"), job=TWO),
    Case("D4 one lane", r"WARN port-rate: mlx5_2:1: 100 Gb/sec \(1X NDR\): one lane only", change=port("mlx5_2", rate="100 Gb/sec (1X NDR)")),
    Case("D6 flapping link", r"WARN port-errors: mlx5_3:1: the link went down 17 times", change=port("mlx5_3", **{"counters/link_downed": 17})),
    Case("symbol errors", r"INFO port-errors: mlx5_3:1: symbol_error 4", change=port("mlx5_3", **{"counters/symbol_error": 4})),
    Case("D7 no verbs in the container", r"WARN rdma-device-nodes: 10 RDMA ports of the host have no device node here", files=tree.container, job=TWO),
    Case("D7 falls to sockets", r"WARN no-rdma: no RDMA port carries traffic between nodes: Ethernet eno1", files=tree.container, job=TWO),
    Case("D8 GPUDirect off", r"WARN gpudirect: neither nvidia_peermem nor dma-buf", ("a100_pcie_pairs",), files=tree.a100_pairs, job=TWO),
    Case("far NICs", r"WARN nic-distance: no rail shares a PCIe switch with a GPU: the nearest is NODE", ("a100_pcie_pairs",), files=tree.a100_pairs),
    Case("every rail down beside the switches' ports", r"FAIL port-down: mlx5_0:1: DOWN, physically Disabled; a rail, as all of its kind that are down", ("hgx_b200",), files=lambda r: tree.hgx_b200(r, up=False)),
    Case("the same for a job of one node", r"WARN port-down: mlx5_11:1: DOWN, physically Disabled; a rail", ("hgx_b200",), files=lambda r: tree.hgx_b200(r, up=False), job={"nodes": 1}),
    Case("a second port without a cable", r"INFO port-down: rocep1s0f0:1: DOWN, physically Disabled; a spare or storage port", ("gb10",), files=tree.spark, job=TWO),
    Case("Slingshot", r"INFO network-plugin: slingshot: NCCL reaches it through libfabric only \(FI_PROVIDER=cxi\) \| have libnccl-net.so of aws-ofi-nccl", ("hgx_a100_4",), files=tree.slingshot, job=TWO),
    # Host
    Case("locked memory", r"FAIL memlock: locked memory is limited to 64 KiB", ("a100_pcie_pairs",), files=tree.a100_pairs, job=TWO),
    Case("E5 open files", r"WARN open-files: 1024 open files a process", change=put("proc/self/limits", "Max open files            1024                 4096                 files"), job={"nodes": 64}),
    Case("small /dev/shm", r"WARN shared-memory: /dev/shm holds 64 MiB", files=tree.container),
    Case("one CPU for all ranks", r"WARN cpus: 1 CPUs for 8 ranks", change=put("proc/self/status", "Cpus_allowed_list:\t5")),
    Case("all rails at half rate", r"WARN port-rate-all: mlx5_.* and \d more: 200 Gb/s, all of them; MT4129 can do 400 Gb/s", change=every(*(port(f"mlx5_{i}", rate="200 Gb/sec (2X NDR)") for i in range(12))), job=TWO),
    Case("a rail in half a slot", r"WARN nic-pcie: mlx5_3:1: PCIe runs with 8 of 16 lanes", change=link("mlx5_3", current_link_width=8, max_link_width=16)),
    Case("a rail trained down", r"WARN nic-pcie: mlx5_3:1: PCIe runs at 8 of 32 GT/s a lane, those of its twins at more", change=every(link("mlx5_3", current_link_speed="8.0 GT/s PCIe", max_link_speed="32.0 GT/s PCIe"), link("mlx5_0", current_link_speed="32.0 GT/s PCIe", max_link_speed="32.0 GT/s PCIe"))),
    Case("an older machine around the card", r"INFO nic-pcie: mlx5_3:1: PCIe runs at 16 of 32 GT/s a lane, as the slots", change=link("mlx5_3", current_link_speed="16.0 GT/s PCIe", max_link_speed="32.0 GT/s PCIe")),
    Case("NVLink errors", r"WARN nvlink-errors: GPU 3: 450 NVLink errors", extra="set 3 fi38=50 fi52=400"),
    Case("a few NVLink errors", r"INFO nvlink-errors: GPU 3: 18 NVLink errors", extra="set 3 fi38=18"),
    Case("locked clocks", r"WARN gpu-clocks: GPU 2: clocks are set to 900 of 1980 MHz", extra="set 2 appclk=900,900,2619,-"),
    Case("dead fabric manager on A100", r"FAIL nvswitch-fabric: no NVLink of any GPU is active beside 4 NVSwitches", ("hgx_a100_4",), "nvdown * *"),
    Case("CPU quota", r"WARN cpus: 2.5 CPUs for 8 ranks", change=put("sys/fs/cgroup/cpu.max", "250000 100000")),
    Case("E1 wrong interface", r"WARN rendezvous-interface: the default route leaves by docker0", change=put("proc/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\ndocker0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0"), job=TWO),
    Case("E4 own name on the loopback", r"WARN own-name: /etc/hosts sends dgx01 to the loopback", change=put("etc/hosts", "127.0.1.1 dgx01"), job=TWO),
]  # fmt: skip


def probed(case: Case, root: Path, library: Path) -> Cluster:
    built = case.files(root)
    case.change(built)
    if case.error is not None:
        reading = NvmlReading(error=case.error)
    else:
        text = root / "machine.txt"
        text.write_text("".join((FAKES / f"{name}.txt").read_text() + "\n" for name in case.nvml) + case.extra + "\n")
        reading = read_here(library, text)
    return cluster_of(Host(root), reading, case.environ)


def lines(found: tuple[Finding, ...]) -> list[str]:
    return [f"{f.severity} {f.check}: {f.saw} | {f.do}" for f in found]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.entry)
def test_a_fault_is_found(case: Case, tmp_path: Path, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NVML_MACHINE", "")
    found = lines(examine(probed(case, tmp_path, fake_nvml_library), **case.job))  # type: ignore[arg-type]
    assert any(re.match(case.want, line) for line in found), "\n".join(found)


HEALTHY: dict[str, list[str]] = {
    "nvml-dgx-h100": [],
    "nvml-gb200-tray": [],
    "nvml-hgx-a100-4": [],
    "nvml-dgx1-v100": [],
    "nvml-dgx2-v100": [],
    "nvml-l40s": ["INFO port-mtu"],
    "nvml-aws-p5": [],
    "nvml-h100-vm": [],
    "nvml-slurm-cgroup": [],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_machine_makes_no_finding_of_weight(name: str) -> None:
    found = examine(capture.read(SAVED / name))
    assert [f"{f.severity} {f.check}" for f in found] == HEALTHY[name]


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("nvml-dgx-h100-gpu-lost", {"gpu-lost"}),
        ("nvml-dgx-h100-sick", {"gpu-memory-broken", "gpu-busy"}),
        ("nvml-dgx-h100-driver-updated", {"nvml"}),
        ("nvml-hgx-b200-off-fabric", {"nvlink-off-fabric", "nvlink-links", "nvswitch-fabric"}),
        ("nvml-gb200-fabric-stuck", {"nvswitch-fabric"}),
        ("nvml-a100-mig", {"mig"}),
        ("nvml-dgx-h100-acs", set()),
        ("nvml-a100-one-bridge", set()),
        ("nvml-mixed", set()),
    ],
)
def test_what_stops_a_launch(name: str, fails: set[str]) -> None:
    assert {f.check for f in examine(capture.read(SAVED / name)) if f.severity == "FAIL"} == fails


def test_xids_are_named_by_gpu_and_explained_and_old_ones_only_where_they_are_fatal() -> None:
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    xids = (
        (79, "0000:43:00.0", 600),
        (79, "0000:43:00.0", 660),
        (31, "0000:43:00.0", 60),
        (94, "0000:52:00.0", 60),
        (48, "0000:1b:00.0", 90_000),
        (63, "0000:ff:00.0", 5),
    )
    found = [
        f"{f.severity} {f.saw}"
        for f in examine(Cluster(source="probe", nodes=(replace(node, xids=xids),)))
        if f.check == "xid"
    ]
    assert found == [
        "FAIL GPU 1: Xid 79 (the GPU has fallen off the bus) 10 minutes ago",
        "WARN GPU 0: Xid 48 (uncorrectable memory error) 25 hours ago; a reset since then would have mended it",
        "WARN GPU at 0000:ff:00.0: Xid 63 (row remapped or page retired) 0 minutes ago",
        "WARN GPU 2: Xid 94 (contained memory error) 1 minutes ago",
    ]


ROWS: tuple[Inspection | Comparison, ...] = (*INSPECTIONS, *COMPARISONS)


def several(*changes: Callable[[Node], Node]) -> Cluster:
    """Four equal nodes; the last ones changed."""
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    nodes = [replace(node, hostname=f"n{i}") for i in range(4)]
    for at, change in enumerate(reversed(changes)):
        nodes[3 - at] = change(nodes[3 - at])
    return Cluster(source="probe", nodes=tuple(nodes))


def gpus(**fields: object) -> Callable[[Node], Node]:
    return lambda n: replace(n, gpus=tuple(replace(g, **fields) for g in n.gpus))  # type: ignore[arg-type]


NODES: list[tuple[str, Callable[[Node], Node], str]] = [
    ("nodes-gpu-count", lambda n: replace(n, gpus=n.gpus[:7]), "FAIL n3: 7 GPUs; most nodes: 8 GPUs"),
    (
        "nodes-gpu-count",  # a file of several hosts: the other nodes have given up what this one lacks
        lambda n: replace(n, gpus=n.gpus[:7], gpus_left_out=(replace(n.gpus[7], name="NVIDIA T400"),)),
        "FAIL n3: 7 GPUs; most nodes: 8 GPUs",
    ),
    ("nodes-gpu-model", gpus(name="NVIDIA H200"), "WARN n3: NVIDIA H200; most nodes: NVIDIA H100 80GB HBM3"),
    ("nodes-gpu-memory", gpus(memory_bytes=40 << 30), "WARN n3: 40 GiB a GPU; most nodes: 79.5 GiB a GPU"),
    (
        "nodes-driver",
        lambda n: replace(n, driver="535.1", driver_kernel="535.1"),
        "WARN n3: driver 535.1; most nodes: driver 550.90.07",
    ),
    ("nodes-nvlink", lambda n: replace(n, link_type="none"), "WARN n3: NVLink: none; most nodes: NVLink: nvswitch"),
    (
        "nodes-rails",
        lambda n: replace(n, nics=tuple(replace(x, rail=x.rail and x.name != "mlx5_0") for x in n.nics)),
        "FAIL n3: 7 infiniband rails at 400 Gb/s; most nodes: 8 infiniband rails at 400 Gb/s",
    ),
    (
        "nodes-gpudirect",
        lambda n: replace(n, gpudirect=False),
        "WARN n3: GPUDirect RDMA off; most nodes: GPUDirect RDMA on",
    ),
    (
        "nodes-power",
        gpus(power_limit_w=500.0, power_default_w=500.0),
        "WARN n3: power limit 500 W; most nodes: power limit 700 W",
    ),
    (
        "nodes-nic-firmware",
        lambda n: replace(n, nics=tuple(replace(x, firmware="28.1.1") for x in n.nics)),
        "INFO n3: firmware MT4129 28.1.1; most nodes: firmware MT4129 28.39.1002",
    ),
    (
        "nodes-clocks",
        gpus(clock_sm_app_hz=1.2e9),
        "WARN n3: GPU clocks up to 1200 MHz; most nodes: GPU clocks up to 1980 MHz",
    ),
    (
        "nodes-kernel",
        lambda n: replace(n, kernel="6.8.0"),
        "INFO n3: Linux 6.8.0; most nodes: Linux 5.15.0-1057-generic",
    ),
    ("nodes-name", lambda n: replace(n, hostname="n0"), "WARN : 2 nodes call themselves n0"),
]


@pytest.mark.parametrize(("check", "change", "want"), NODES, ids=[n for n, _, _ in NODES])
def test_the_node_that_differs_is_named(check: str, change: Callable[[Node], Node], want: str) -> None:
    found = [f"{f.severity} {f.node}: {f.saw}" for f in examine(several(change)) if f.check == check]
    assert found == [want]
    assert not [f for f in examine(several()) if f.check == check]


def test_trays_of_different_racks_cannot_share_nvlink() -> None:
    (tray,) = capture.read(SAVED / "nvml-gb200-tray").nodes
    other = replace(
        tray, gpus=tuple(replace(g, fabric_id=("9c6f5af3-53bf-49b5-a436-b66766c413c3", 7)) for g in tray.gpus)
    )
    nodes = tuple(replace(n, hostname=f"t{i}") for i, n in enumerate((tray, tray, other)))
    found = examine(Cluster(source="probe", nodes=nodes), multi_node_nvlink=True)
    assert [f"{f.severity} {f.node}" for f in found if f.check == "nodes-nvlink-domain"] == ["FAIL t2"]
    assert not [f for f in examine(Cluster(source="probe", nodes=nodes)) if f.check == "nodes-nvlink-domain"]


def test_a_tray_without_imex_is_named_among_those_with_it() -> None:
    (tray,) = capture.read(SAVED / "nvml-gb200-tray").nodes
    nodes = tuple(replace(tray, hostname=f"t{i}", imex_channels=0 if i == 1 else 1) for i in range(3))
    found = examine(Cluster(source="probe", nodes=nodes))
    assert [f.node for f in found if f.check == "nodes-imex"] == ["t1"]


def test_seven_gpus_of_a_board_of_eight_are_a_finding() -> None:
    cluster = capture.read(SAVED / "nvml-dgx-h100")
    node = replace(cluster.nodes[0], gpus=cluster.nodes[0].gpus[:7], gpus_pci=7)

    def found(**changes: object) -> list[str]:
        mine = replace(cluster, nodes=(replace(node, **changes),))  # type: ignore[arg-type]
        return [f"{f.severity} {f.saw}" for f in examine(mine) if f.check == "gpu-board"]

    assert found() == ["WARN 7 H100 SXM where boards of theirs have 8"]
    assert found(container="docker")[0].startswith("INFO 7 H100 SXM")
    assert found(gpus=node.gpus[:4]) == []


def test_the_tests_above_cover_the_catalogue() -> None:
    seen = {case.want.split()[1].rstrip(":") for case in CASES} | {name for name, _, _ in NODES}
    seen |= {"nodes-imex", "nodes-nvlink-domain", "gpu-board", "port-mtu", "nodes-software", "nodes-vbios"}
    seen |= {"xid", "nvswitch-sxid", "nodes-clock"}
    listed = {row.name for row in ROWS if not row.name.startswith("software-")}  # test_software.py
    assert listed - seen == {"nvlink-spare"}  # its own test follows
    assert seen <= listed


def test_small_frames_are_named_on_roce_alone() -> None:
    def node(kind: str, mtu: int | None) -> Node:
        return Node(hostname="x", nics=(Nic(name="mlx5_0", port=1, kind=kind, rail=True, up=True, mtu=mtu),))

    def found(kind: str, mtu: int | None) -> list[str]:
        seen = examine(Cluster(source="probe", nodes=(node(kind, mtu),)), nodes=2)
        return [f"{f.severity} {f.saw}" for f in seen if f.check == "port-mtu"]

    assert found("roce", 1500) == ["WARN 1 RoCE rails have an MTU of 1500: mlx5_0:1"]
    assert found("roce", 9000) == found("roce", None) == found("infiniband", 1500) == []


def test_the_node_with_other_software_is_named() -> None:
    nodes = tuple(
        Node(hostname=f"n{i}", software=(("nccl", "2.26.2" if i == 1 else "2.27.3"), ("torch", "2.8.0")))
        for i in range(3)
    )
    found = [f for f in examine(Cluster(source="probe", nodes=nodes)) if f.check == "nodes-software"]
    assert [(f.severity, f.node, f.saw) for f in found] == [("FAIL", "n1", "NCCL 2.26.2; most nodes: 2.27.3")]


def test_the_node_with_another_vbios_is_named() -> None:
    found = examine(several(*[gpus(vbios="96.00.30")] * 3, gpus(vbios="96.00.99")))
    assert [f"{f.severity} {f.node}: {f.saw}" for f in found if f.check == "nodes-vbios"] == [
        "INFO n3: VBIOS 96.00.99; most nodes: VBIOS 96.00.30"
    ]


def test_what_one_node_has_comes_before_what_all_have() -> None:
    cluster = several(gpus(clock_sm_app_hz=600_000_000))
    cluster = replace(cluster, nodes=tuple(replace(n, shm_bytes=64 << 20) for n in cluster.nodes))
    warned = [(f.check, f.node) for f in examine(cluster) if f.severity == "WARN"]
    assert warned[:2] == [("gpu-clocks", "n3"), ("nodes-clocks", "n3")]
    assert [check for check, _ in warned[2:]] == ["shared-memory"] * 4


def test_links_that_all_twins_lack_are_no_fault() -> None:
    (node,) = capture.read(SAVED / "nvml-hgx-a100-4").nodes
    spare = replace(node, gpus=tuple(replace(g, nvlinks_down=(12, 13)) for g in node.gpus))
    found = [f for f in examine(Cluster(source="probe", nodes=(spare,))) if f.check == "nvlink-spare"]
    assert [(f.severity, f.saw) for f in found] == [("INFO", "GPU 0-3: 2 NVLinks are not active, on its twins too")]


def test_every_row_says_why_what_to_do_and_where_that_is_from() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    for row in ROWS:
        assert row.why, row.name
        assert row.source, row.name
        assert row.do or row.name in ("nvml", "gpu-lost"), row.name  # these say it error by error


def test_what_was_not_read_is_unknown_and_no_finding() -> None:
    bare = Cluster(source="file", nodes=(Node(hostname="x"),))
    assert examine(bare) == ()
    assert [u.what for u in unread(bare)] == ["its GPUs were not read"]
    gpus = (Gpu(index=0, name="NVIDIA H100 80GB HBM3"),)
    two = Cluster(source="file", nodes=tuple(Node(hostname=f"n{i}", gpus=gpus) for i in range(2)))
    assert examine(two) == ()
    assert [(u.what.split(":")[0], u.nodes) for u in unread(two)] == [
        ("the kernel log may not be read", ("n0", "n1")), ("its network ports were not read", ("n0", "n1")),
    ]  # fmt: skip
    said = findings_to_text((), nodes=("n0", "n1"), unknown=unread(two))
    assert said == (
        "2 nodes: all well\nnothing to report\n"
        "not known: all 2 nodes: the kernel log may not be read: recent errors of GPUs and NVSwitches are not\n"
        "           known\nnot known: all 2 nodes: its network ports were not read\n"
    )


def test_findings_come_worst_first_and_as_text_and_json(golden: Callable[[str, str], None]) -> None:
    found = examine(capture.read(SAVED / "nvml-dgx-h100-sick"))
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=("FAIL", "WARN", "INFO").index)
    assert worst(found) == "FAIL"
    golden("doctor_sick.txt", findings_to_text(found))
    golden("doctor_sick.json", json.dumps(findings_to_json(found), indent=2) + "\n")
    golden("doctor_sick_colour.txt", findings_to_text(found, colour=True, width=70))
    nodes = several(lambda n: replace(n, gpudirect=False, gpus=n.gpus[:7], gpus_pci=7))
    names = [n.hostname for n in nodes.nodes]
    golden("doctor_nodes.txt", findings_to_text(examine(nodes), nodes=names, unknown=unread(nodes)))


def a_thousand() -> Cluster:
    """A cluster whose faults are few and of several kinds, among a habit that all nodes have."""
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    nodes = [replace(node, hostname=f"n{i:04}", shm_bytes=64 << 20, xids=(), sxids=()) for i in range(1000)]
    lost = replace(node.gpus[3], error="GPU_IS_LOST")
    nodes[17] = replace(nodes[17], gpus=(*node.gpus[:3], *node.gpus[4:]), gpus_unusable=(lost,))
    for at in (40, 41, 42, 901):
        nodes[at] = replace(nodes[at], driver="535.1", driver_kernel="535.1")
    for at in range(100, 140):
        nodes[at] = replace(nodes[at], xids=((94, node.gpus[at % 8].pci or "", 60 * (at - 99)),))
    nodes[500] = replace(nodes[500], sxids=((20034, "0000:05:00.0", 120, True, "Link 30 LTSSM Fault Up"),))
    nodes[600] = replace(nodes[600], clock_ahead_s=-45.25)
    return Cluster(source="probe", nodes=tuple(replace(n, clock_ahead_s=n.clock_ahead_s or 0.0) for n in nodes))


def test_a_thousand_nodes_make_one_screen_with_the_outliers_first(golden: Callable[[str, str], None]) -> None:
    cluster = a_thousand()
    found = examine(cluster)
    said = findings_to_text(found, nodes=[n.hostname for n in cluster.nodes], unknown=unread(cluster))
    assert len(said.splitlines()) < 60
    assert said.startswith("1,000 nodes: FAIL on 2 (n[0017,0500])")
    golden("doctor_thousand.txt", said)
    hit: dict[tuple[str, str], set[str]] = {}
    for f in found:
        hit.setdefault((f.severity, f.check), set()).add(f.node)
    order = list(dict.fromkeys((f.severity, f.check) for f in found))
    for severity in ("FAIL", "WARN"):
        counts = [len(hit[key]) for key in order if key[0] == severity]
        assert counts == sorted(counts)


def test_clocks_are_compared_with_most_nodes_and_not_with_the_first() -> None:
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes

    def odd(*ahead: float | None) -> list[str]:
        nodes = tuple(replace(node, hostname=f"n{i}", clock_ahead_s=a) for i, a in enumerate(ahead))
        return [f"{f.node}: {f.saw}" for f in examine(Cluster(source="probe", nodes=nodes)) if f.check == "nodes-clock"]

    assert odd(0.0, 4.0, 4.0, 4.0) == ["n0: its clock is 4.0 s behind that of most nodes"]
    assert odd(0.0, 0.4, -0.3, 90.25) == ["n3: its clock is 90.2 s ahead of that of most nodes"]
    assert odd(0.0, None, None) == []
    assert odd(0.0, 30.0) == ["n1: its clock is 30.0 s ahead of that of n0"]
    assert odd(0.0, -30.0) == ["n0: its clock is 30.0 s ahead of that of n1"]
    assert odd(0.0, 1.5) == ["n1: its clock is 1.5 s ahead of that of n0"]
    assert odd(0.0, 0.9) == odd(0.0) == odd(0.0, None) == []
    assert odd(5.0, 0.2, 0.0, 5.1) == [
        f"{n}: its clock is {s} s ahead of that of n[1-2]" for n, s in (("n0", 4.8), ("n3", 4.9))
    ]


def test_of_two_nodes_that_differ_neither_is_said_to_be_as_most_are() -> None:
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    nodes = tuple(replace(node, hostname=f"n{i}", driver=driver) for i, driver in enumerate(("570.1", "580.2")))
    (found,) = (f for f in examine(Cluster(source="probe", nodes=nodes)) if f.check == "nodes-driver")
    assert (found.node, found.saw) == ("n0", "driver 570.1; n1: driver 580.2")


def test_errors_of_nvswitches_weigh_as_the_driver_says() -> None:
    (node,) = capture.read(SAVED / "nvml-dgx-h100").nodes
    sxids = (
        (20034, "0000:05:00.0", 600, True, "Link 30 LTSSM Fault Up"),
        (20034, "0000:05:00.0", 610, True, "Link 31 LTSSM Fault Up"),
        (22003, "0000:06:00.0", 90_000, True, "Link 2 NCISOC CHK parity"),
        (28006, "0000:07:00.0", 60, False, "Link 46 MC TS crumbstore MCTO (First)"),
        (28006, "0000:08:00.0", 90_000, False, "Link 46 MC TS crumbstore MCTO (First)"),
    )
    found = examine(Cluster(source="probe", nodes=(replace(node, sxids=sxids),)))
    assert [f"{f.severity} {f.saw}" for f in found if f.check == "nvswitch-sxid"] == [
        "FAIL NVSwitch at 0000:05:00.0: SXid 20034 (fatal: Link 30 LTSSM Fault Up), 2 times 10 minutes ago",
        "WARN NVSwitch at 0000:06:00.0: SXid 22003 (fatal: Link 2 NCISOC CHK parity) 25 hours ago; a reset since then would "
        "have mended it",
        "INFO NVSwitch at 0000:07:00.0: SXid 28006 (not fatal: Link 46 MC TS crumbstore MCTO (First)) 1 minutes ago",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "left", "want"),
    [
        (64 << 20, None, ["WARN /dev/shm holds 64 MiB"]),
        (64 << 20, 60 << 20, ["WARN /dev/shm holds 64 MiB"]),
        (512 << 30, 5 << 20, ["FAIL /dev/shm is full: 5 of 524288 MiB are left"]),
        (512 << 30, 200 << 20, ["WARN /dev/shm is full: 200 of 524288 MiB are left"]),
        (512 << 30, 400 << 30, []),
        (512 << 30, None, []),
        (None, None, []),
    ],
)
def test_shared_memory_is_small_or_full(size: int | None, left: int | None, want: list[str]) -> None:
    node = Node(hostname="x", gpus=(Gpu(index=0, name="NVIDIA B200"),), shm_bytes=size, shm_free_bytes=left)
    found = examine(Cluster(source="probe", nodes=(node,)))
    assert [f"{f.severity} {f.saw}" for f in found if f.check == "shared-memory"] == want


def test_nothing_found_is_said() -> None:
    assert findings_to_text(()) == "nothing to report\n"
    assert findings_to_json(()) == {
        "schema": "parlaunch.doctor/1",
        "ok": True,
        "nodes": [],
        "counts": {"FAIL": 0, "WARN": 0, "INFO": 0},
        "findings": [],
        "unknown": [],
    }
    assert worst(()) is None


def test_numbers_are_written_as_runs() -> None:
    assert numbers([0, 1, 2, 3, 7]) == "0-3, 7"
    assert numbers([5]) == "5"
    assert numbers([]) == ""


def test_the_machines_above_are_the_ones_on_disk() -> None:
    assert {p.name for p in SAVED.glob("nvml-*")} == set(MACHINES)


@pytest.mark.parametrize("number", [46, 109, 110, 136, 140, 158])
def test_xids_that_end_a_job_are_failures(number: int) -> None:
    node = Node(
        hostname="x",
        gpus=(Gpu(index=0, name="NVIDIA H100 80GB HBM3", pci="0000:1b:00.0"),),
        xids=((number, "0000:1b:00.0", 60),),
    )
    (finding,) = [f for f in examine(Cluster(source="probe", nodes=(node,))) if f.check == "xid"]
    assert finding.severity == "FAIL"


def test_what_the_catalogue_resets_at_once_is_a_failure_and_what_it_ignores_is_none() -> None:
    """Retired resources and errors of the links' software wait for the end of the job."""
    for number, xid in xids().items():
        if re.search(r"immediate action (RESET_GPU|RESTART_BM)", xid.source) and number not in (155, 156):
            assert xid.fatal, number
        if re.search(r"immediate action (IGNORE|RESTART_APP)", xid.source):
            assert not xid.fatal, number


@pytest.mark.parametrize("number", [*range(144, 151), 121, 137, 154, 155, 156, 157])
def test_xids_of_nvlink_5_and_of_resources_are_warnings(number: int) -> None:
    node = Node(
        hostname="x", gpus=(Gpu(index=0, name="NVIDIA B200", pci="0000:1b:00.0"),), xids=((number, "0000:1b:00.0", 60),)
    )
    (finding,) = [f for f in examine(Cluster(source="probe", nodes=(node,))) if f.check == "xid"]
    assert finding.severity == "WARN"


def test_a_file_without_ports_is_not_a_machine_whose_ports_are_down() -> None:
    gpus = (Gpu(index=0, name="NVIDIA H100 80GB HBM3"),)
    found = examine(Cluster(source="file", nodes=tuple(Node(hostname=f"n{i}", gpus=gpus) for i in range(2))))
    assert not [f for f in found if f.check == "no-rdma"]


def test_small_locked_memory_ends_a_job_on_several_nodes_and_is_known_on_one() -> None:
    rail = Nic(name="mlx5_0", kind="infiniband", up=True, rail=True, bytes_per_s=50e9)
    node = Node(hostname="x", gpus=(Gpu(index=0, name="NVIDIA H100 80GB HBM3"),), nics=(rail,), memlock_bytes=65536)
    said = {
        n: [f.severity for f in examine(Cluster(source="probe", nodes=(node,)), nodes=n) if f.check == "memlock"]
        for n in (None, 1, 4)
    }
    assert said == {None: ["INFO"], 1: ["INFO"], 4: ["FAIL"]}


@pytest.mark.parametrize(
    ("changes", "do"),
    [
        ({"gpus_pci": 0}, "call it on a node that has GPUs"),
        ({"gpus_pci": 8}, "ask for them: --gpus-per-node of srun"),
        ({"gpus_invisible": (Gpu(index=0, name="NVIDIA H100 80GB HBM3"),)}, "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_without_a_gpu_what_to_do_depends_on_where_they_are(changes: dict[str, Any], do: str) -> None:
    """A laptop, a container without a grant, a variable that hides them: fewer ranks help none of them."""
    node = replace(Node(hostname="n1"), **changes)
    (found,) = [f for f in examine(Cluster(source="probe", nodes=(node,))) if f.check == "gpu-count"]
    assert found.do.startswith(do)


def test_a_file_of_hosts_with_different_counts_names_the_odd_one(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    lines = [f"n{n}: GPU {i}: NVIDIA GB200 (UUID: GPU-{n}{i})" for n in range(4) for i in range(3 if n == 2 else 4)]
    path.write_text("\n".join(lines))
    (found,) = [f for f in examine(read_hardware(path)) if f.check == "nodes-gpu-count"]
    assert (found.severity, found.node, found.saw) == ("FAIL", "n2", "3 GPUs; most nodes: 4 GPUs")

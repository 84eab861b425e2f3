"""What the host around the GPUs says about itself, all of it under one root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parlaunch.hardware.cluster import UNLIMITED
from parlaunch_probes import Host, system
from parlaunch_probes.host import line_of, sxid_of, xid_of
from parlaunch_probes.node import probe
from parlaunch_probes.nvml import NoNvml
from tests.fake_nvml import Fake
from tests.probes import tree
from tests.probes.tree import Tree


def test_a_two_socket_x86_host(tmp_path: Path) -> None:
    Tree(tmp_path).host("n7", allowed="0-3,56-59")
    n = probe(Host(tmp_path), NoNvml(), environ={}).nodes[0]
    assert (n.hostname, n.cpu_model, n.sockets, n.cores) == ("n7", "Intel(R) Xeon(R) Platinum 8480C", 2, 112)
    assert n.cpus_allowed == (0, 1, 2, 3, 56, 57, 58, 59)
    assert (n.numa_nodes, n.numa_cpus[1]) == (2, (1, tuple(range(56, 112))))
    assert (n.memory_bytes, n.memory_available_bytes) == (2048 << 30, 2016 << 30)
    assert (n.memlock_bytes, n.nofile) == (UNLIMITED, 1048576)
    assert (n.huge_pages, n.huge_page_bytes, n.transparent_huge_pages) == (0, 2 << 20, "madvise")
    assert (n.virtual, n.container, n.kernel) == (None, None, "5.15.0-1057-generic")
    assert (n.default_netdev, n.hostname_loopback, n.shm_bytes) == ("eno1", False, None)


def test_grace_has_no_cpuinfo_to_speak_of_and_memory_only_nodes(tmp_path: Path) -> None:
    tree.gb200(tmp_path)
    n = probe(Host(tmp_path), NoNvml(), environ={}).nodes[0]
    assert (n.cpu_model, n.sockets, n.cores) == ("Arm Neoverse-V2 (NVIDIA Grace)", 2, 144)
    assert n.numa_nodes == 2
    assert n.imex_channels == 1


def test_the_memory_of_gpus_that_are_numa_nodes_is_not_the_hosts(tmp_path: Path) -> None:
    """Grace and POWER9: /proc/meminfo counts HBM too."""
    t = Tree(tmp_path)
    t.host(memory_gib=960)
    for node in (0, 1):
        t.put(f"sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       {240 << 20} kB")
    assert probe(Host(tmp_path), NoNvml(), environ={}).nodes[0].memory_bytes == 960 << 30, "no node without CPUs"
    t.put("sys/devices/system/node/node2/cpulist", "")
    assert probe(Host(tmp_path), NoNvml(), environ={}).nodes[0].memory_bytes == 480 << 30


def test_limits_of_every_control_group_above_count(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("proc/self/cgroup", "0::/slurm/job_12/step_0")
    t.put("sys/fs/cgroup/slurm/job_12/step_0/memory.max", "max")
    t.put("sys/fs/cgroup/slurm/job_12/memory.max", 64 << 30)
    t.put("sys/fs/cgroup/slurm/memory.max", 128 << 30)
    t.put("sys/fs/cgroup/slurm/job_12/cpu.max", "800000 100000")
    t.put("sys/fs/cgroup/slurm/cpu.max", "max 100000")
    assert system.cgroup_limits(Host(tmp_path)) == (64 << 30, 8.0)


def test_limits_of_version_1_groups(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("proc/self/cgroup", "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc")
    t.put("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", 32 << 30)
    t.put("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    t.put("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", 250000)
    t.put("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", 100000)
    t.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    assert system.cgroup_limits(Host(tmp_path)) == (32 << 30, 2.5)


def test_in_a_group_namespace_the_own_group_is_the_root(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("proc/self/cgroup", "0::/../../outside")
    t.put("sys/fs/cgroup/memory.max", 16 << 30)
    assert system.cgroup_limits(Host(tmp_path)) == (16 << 30, None)


@pytest.mark.parametrize(
    ("files", "environ", "want"),
    [
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/1/cgroup": "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope"}, {}, "kubernetes"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({".singularity.d/x": ""}, {}, "apptainer"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
        ({"run/systemd/container": "lxc"}, {}, "lxc"),
        ({"proc/self/cgroup": "0::/user.slice"}, {}, None),
    ],
)
def test_containers_show_themselves(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], want: str | None
) -> None:
    t = Tree(tmp_path)
    for path, text in files.items():
        t.put(path, text)
    assert probe(Host(tmp_path), NoNvml(), environ=environ).nodes[0].container == want


@pytest.mark.parametrize(
    ("vendor", "product", "guest", "want"),
    [
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", True, "kvm"),
        ("Microsoft Corporation", "Virtual Machine", True, "hyper-v"),
        ("VMware, Inc.", "VMware7,1", True, "vmware"),
        ("Google", "Google Compute Engine", True, "kvm"),
        ("Amazon EC2", "p5.48xlarge", True, "kvm"),
        ("Amazon EC2", "g4dn.metal", False, None),
        ("NVIDIA", "DGXH100", False, None),
        ("Nutanix", "AHV", True, "unknown hypervisor"),
    ],
)
def test_virtual_machines_are_told_from_metal(
    tmp_path: Path, vendor: str, product: str, guest: bool, want: str | None
) -> None:
    t = Tree(tmp_path)
    t.host(guest=guest)
    t.put("sys/class/dmi/id/sys_vendor", vendor)
    t.put("sys/class/dmi/id/product_name", product)
    assert probe(Host(tmp_path), NoNvml(), environ={}).nodes[0].virtual == want


@pytest.mark.parametrize(
    ("hosts", "want"),
    [
        ("127.0.1.1 n7\n", True),
        ("10.0.0.7 n7 n7.example\n", False),
        ("# 127.0.1.1 n7\n", False),
        ("::1 n7\n127.0.0.1 localhost", False),
    ],
)
def test_a_name_that_leads_to_the_loopback(tmp_path: Path, hosts: str, want: bool) -> None:
    t = Tree(tmp_path)
    t.put("proc/sys/kernel/hostname", "n7")
    t.put("etc/hosts", hosts)
    assert system.own_name_is_loopback(Host(tmp_path), "n7") is want


def test_the_shared_memory_of_a_docker_container(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("proc/mounts", "overlay / overlay rw 0 0\nshm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k 0 0")
    assert system.shared_memory(Host(tmp_path)) == (64 << 20, None)


def test_the_shared_memory_of_this_machine_says_what_is_left() -> None:
    size, left = system.shared_memory(Host("/"))
    assert size is not None
    assert left is not None
    assert 0 <= left <= size


def test_gpus_of_the_kernel_module_when_nvml_is_silent(tmp_path: Path) -> None:
    t = tree.dgx_h100(tmp_path)
    for number, bus in enumerate(("1b", "43")):
        t.put(
            f"proc/driver/nvidia/gpus/0000:{bus}:00.0/information",
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 300\nGPU UUID: \t GPU-{number}\nBus Location: \t 0000:{bus}:00.0\nDevice Minor: \t {number}\nGPU Excluded:\t No",
        )
    cluster = probe(Host(tmp_path), NoNvml("LIB_RM_VERSION_MISMATCH"), environ={})
    gpus = cluster.nodes[0].gpus
    assert [(g.name, g.uuid, g.pci, g.minor, g.numa) for g in gpus] == [
        ("NVIDIA H100 80GB HBM3", "GPU-0", "0000:1b:00.0", 0, 0),
        ("NVIDIA H100 80GB HBM3", "GPU-1", "0000:43:00.0", 1, 0),
    ]
    assert gpus[0].memory_bytes is None
    assert cluster.nodes[0].link_type is None
    assert "NVML: LIB_RM_VERSION_MISMATCH" in cluster.notes
    assert (cluster.nodes[0].driver_kernel, cluster.nodes[0].driver_open) == ("550.90.07", True)


def test_gpus_of_the_pci_bus_when_no_driver_is_there(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.gpu("pci0000:10/0000:10:00.0", 0, "0x2330", None)
    t.gpu("pci0000:20/0000:20:00.0", 0, "0x9999", None)
    t.gpu("pci0000:30/0000:30:00.0", 1, "0x2330", "vfio-pci")
    cluster = probe(Host(tmp_path), NoNvml("LIBRARY_NOT_FOUND"), environ={})
    (n,) = cluster.nodes
    assert [g.name for g in n.gpus] == ["NVIDIA H100 80GB HBM3", "NVIDIA GPU 10de:9999"]
    assert [(g.pci, g.error) for g in n.gpus_unusable] == [("0000:30:00.0", "bound to the driver vfio-pci")]
    assert n.gpus_pci == 3


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (root / "etc/hostname").symlink_to("../../secret")
    (root / "etc/absolute").symlink_to("/etc/hostname")
    os.mkfifo(root / "etc/pipe")
    host = Host(root)
    assert host.read("/etc/hostname") is None
    assert host.read("/etc/absolute") is None
    assert host.read("/etc/pipe") is None  # does not wait for a writer
    assert host.read("/../secret") is None
    assert host.real("/etc/hostname") is None
    assert host.names("/etc") == ("absolute", "hostname", "pipe")
    assert host.read("/etc") is None


def test_an_empty_root_is_a_machine_about_which_nothing_is_known(tmp_path: Path) -> None:
    cluster = probe(Host(tmp_path), NoNvml(), environ={})
    (n,) = cluster.nodes
    assert (n.gpus, n.nics, n.memory_bytes, n.cpu_model, n.gpus_pci, n.imex_channels) == (
        (),
        (),
        None,
        None,
        None,
        None,
    )
    assert cluster.fabric.kind == "none"


def test_xids_are_read_from_the_kernel_log_and_nothing_else_is() -> None:
    text = "NVRM: Xid (PCI:0000:1B:00): 79, pid=4711, name=python, GPU has fallen off the bus.\n DEVICE=x"
    line = f"4,2211,3600000000,-;{text}"
    assert line_of(line, 3700.4) == (text, 100)
    assert line_of(line, 3500.0) == (text, 0)
    assert xid_of(text, 100) == [79, "0000:1b:00", 100]
    assert xid_of(text.replace("1B:00", "1B:00.0"), 0) == [79, "0000:1b:00.0", 0]
    assert sxid_of(text, 0) is None
    assert xid_of("NVRM: loading", 0) is None
    for other in ("", "junk;NVRM: Xid (PCI:0000:1B:00): 79", "6,1,x,-;NVRM: Xid (PCI:0:1): 79"):
        assert line_of(other, 1.0) is None
    assert Host().xids() is None or all(len(x) == 3 for x in Host().xids() or ())


def test_sxids_are_read_with_their_weight_and_without_the_raw_data_that_follows() -> None:
    head = "nvidia-nvswitch3: SXid (PCI:0000:C1:00.0): "
    said = [
        "28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)",
        "28006, Severity 0 Engine instance 46 Sub-engine instance 00",
        "28006, Data {0x00140004, 0x00100000}",
        "20034, Fatal, Link 30 LTSSM Fault Up",
    ]
    assert [x for text in said if (x := sxid_of(head + text, 5))] == [
        [28006, "0000:c1:00.0", 5, False, "Link 46 MC TS crumbstore MCTO (First)"],
        [20034, "0000:c1:00.0", 5, True, "Link 30 LTSSM Fault Up"],
    ]
    assert xid_of(head + said[3], 5) is None


def test_the_files_of_this_machine_may_be_mounted_elsewhere(
    tmp_path: Path, fake_nvml: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.dgx_h100(tmp_path / "host")
    fake_nvml.use("dgx_h100")
    monkeypatch.setenv("PARLAUNCH_SYSROOT", str(tmp_path / "host"))
    n = probe().nodes[0]
    assert (n.hostname, n.link_type, len(n.gpus)) == ("dgx01", "nvswitch", 8)
    assert [x.name for x in n.nics if x.rail] == [f"mlx5_{i}" for i in (0, 1, 2, 3, 6, 7, 8, 9)]
    assert probe(Host(tmp_path / "host")).nodes[0].nvml_error == "not asked: these are the files of another machine"


def test_this_machine_itself_can_be_probed() -> None:
    n = probe(environ={}).nodes[0]
    assert n.hostname
    assert n.cpus_allowed
    assert n.memory_bytes
    assert n.nofile

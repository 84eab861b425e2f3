"""NCCL's and hwloc's XML: PCI trees, NVLinks, ports, and what vendors leave out or get wrong."""

from __future__ import annotations

import pytest

from parlaunch.hardware.cluster import UNKNOWN
from tests.probes_files.conftest import Read
from tests.probes_files.samples import (
    hwloc,
    hwloc_device,
    hwloc_os,
    hwloc_root,
    hwloc_switch,
    nccl,
    nccl_gpu,
    nccl_nic,
    nccl_switch,
)

SWITCH = "0x068000"


def dgx(kind: str = "0x020700") -> str:
    """Eight GPUs with a port each behind a switch each, four a socket, joined by two NVSwitches."""
    cpus = []
    for socket in range(2):
        inner = ""
        for n in range(4):
            i = 4 * socket + n
            ends = [("0000:f0:00.0", 9, SWITCH), ("0000:f1:00.0", 9, SWITCH)]
            pair = nccl_gpu(f"0000:{0x11 + 0x10 * i:02x}:00.0", ends, index=i) + nccl_nic(
                f"0000:{0x12 + 0x10 * i:02x}:00.0", f"mlx5_{i}", kind=kind
            )
            inner += nccl_switch(f"0000:{0x10 + 0x10 * i:02x}:00.0", pair)
        cpus.append((socket, inner))
    return nccl(cpus)


def test_a_dump_gives_switched_gpus_with_their_rails(read: Read) -> None:
    cluster = read(dgx())
    node = cluster.nodes[0]
    assert node.link_type == "nvswitch"
    assert node.nvswitches_pci == 2
    assert [g.nvlinks for g in node.gpus] == [18] * 8
    assert [g.name for g in node.gpus] == ["NVIDIA H100 80GB HBM3"] * 8
    assert [g.numa for g in node.gpus] == [0] * 4 + [1] * 4
    assert node.nics[2].distances == (
        (0, "NODE"), (1, "NODE"), (2, "PIX"), (3, "NODE"), (4, "SYS"), (5, "SYS"), (6, "SYS"), (7, "SYS"),
    )  # fmt: skip
    assert (cluster.fabric.kind, cluster.fabric.rails, cluster.fabric.bytes_per_s_per_gpu) == ("infiniband", 8, 50e9)


def test_an_ethernet_class_with_mellanox_ports_is_roce_and_with_amazons_efa(read: Read) -> None:
    assert read(dgx("0x020000")).fabric.kind == "roce"
    amazon = dgx("0x020000").replace('vendor="0x15b3"', 'vendor="0x1d0f"').replace("mlx5_", "rdmap")
    assert read(amazon).fabric.kind == "efa"


def test_direct_links_are_pairs_by_their_targets(read: Read) -> None:
    a, b = "0001:00:00.0", "0002:00:00.0"
    gpus = nccl_gpu(a, [(b, 12, "0x030200")], "0x20b5") + nccl_gpu(b, [(a, 12, "0x030200")], "0x20b5")
    node = read(nccl([(0, gpus)])).nodes[0]
    assert node.link_type == "pairs"
    assert node.nvlinks == ((0, 1, 12),)


def test_links_that_lead_back_to_their_own_gpu_are_a_mistake_that_is_named(read: Read) -> None:
    buses = [f"000{i}:00:00.0" for i in range(1, 5)]
    text = nccl([(i, nccl_gpu(bus, [(bus, 12, "0x030200")], "0x20b5")) for i, bus in enumerate(buses)])
    cluster = read(text)
    assert cluster.nvlink_domains == ((0, 1), (2, 3))
    assert any("mistake in the file" in note for note in cluster.notes)


def test_a_virtual_machine_hides_switches_and_locality(read: Read) -> None:
    gpus = "".join(nccl_gpu(f"0000:0{i}:00.0", [("fffffff:ff:ff.0", 18, SWITCH)], index=i) for i in range(1, 9))
    cluster = read(nccl([(-1, gpus + nccl_nic("0000:0d:00.0", "mlx5_0", kind="0x020000"))]))
    node = cluster.nodes[0]
    assert node.link_type == "nvswitch"
    assert len(cluster.nvlink_domains[0]) == 8
    assert [g.numa for g in node.gpus] == [None] * 8
    assert node.nics[0].distances == ()
    assert any("hypervisor" in note for note in cluster.notes)


def test_gpus_of_another_maker_are_left_out_and_told(read: Read) -> None:
    other = nccl_gpu("0000:03:00.0").replace("0x10de", "0x1002")
    cluster = read(nccl([(0, nccl_gpu("0000:01:00.0") + other)]))
    assert [g.pci for g in cluster.nodes[0].gpus] == ["0000:01:00.0"]
    assert any("another maker" in note for note in cluster.notes)


def test_a_real_dump_without_links_has_none(read: Read) -> None:
    text = nccl([(0, nccl_gpu("0000:01:00.0", device="0x26b9") + nccl_gpu("0000:02:00.0", device="0x26b9"))])
    assert read(text).nodes[0].link_type == "none"


def test_a_vendors_file_that_names_its_machine_is_filled_from_it_and_says_so(read: Read) -> None:
    leaf = '<pci busid="0000:{bus:02x}:00.0" link_speed="32 GT/s" link_width="16"/>'
    cpus = []
    for socket in range(2):
        inner = ""
        for group in range(4):
            base = 0x10 + 0x40 * socket + 8 * group
            inner += nccl_switch(f"0000:{base:02x}:00.0", "".join(leaf.format(bus=base + n) for n in range(1, 5)))
        cpus.append((socket, inner.replace(' class="0x060400"', "")))
    cluster = read(nccl(cpus, "Topology for the `p5.48xlarge` platform type."))
    node = cluster.nodes[0]
    assert [g.name for g in node.gpus] == ["NVIDIA H100 80GB HBM3"] * 8
    assert [g.numa for g in node.gpus] == [0] * 4 + [1] * 4
    assert node.link_type == "nvswitch"
    assert (cluster.fabric.kind, cluster.fabric.rails, cluster.fabric.bytes_per_s_per_gpu) == ("efa", 32, 50e9)
    assert [g for g, way in node.nics[0].distances if way == "PIX"] == [0]
    assert any("p5.48xlarge" in note for note in cluster.notes)


def test_devices_without_a_class_are_told_apart_by_what_the_machine_has(read: Read) -> None:
    leaves = "".join(f'<pci busid="0000:00:{n:02x}.0"/>' for n in (0x1A, 0x1B, 0x1C, 0x1D, 0x15))
    low = "".join(f'<pci busid="0000:00:{n:02x}.0"/>' for n in (0x16, 0x17, 0x18, 0x19))
    cluster = read(nccl([(0, low), (1, leaves)], "for `g5.48xlarge`"))
    assert [n.pci for n in cluster.nodes[0].nics] == ["0000:00:15.0"]
    assert [g.numa for g in cluster.nodes[0].gpus] == [0] * 4 + [1] * 4
    unnamed = read(nccl([(0, low + nccl_gpu("0000:01:00.0"))]))
    assert any("no class" in note for note in unnamed.notes)


def test_published_addresses_name_the_machine_when_nothing_else_does(read: Read) -> None:
    gpus = "".join(f'<pci busid="000{i}:00:00.0" class="0x030200"/>' for i in range(1, 9))
    cluster = read(nccl([(0, gpus)]))
    assert cluster.nodes[0].link_type == "cube_mesh"
    assert cluster.nodes[0].gpus[0].name == "Tesla V100-SXM2-32GB"
    assert any("Standard_ND40rs_v2" in note for note in cluster.notes)


def test_eight_unnamed_gpus_with_ports_of_their_own_are_taken_for_nvswitch_and_four_are_not(read: Read) -> None:
    def box(count: int) -> str:
        return nccl(
            [
                (0, nccl_switch(
                    f"ffff:ff:{i:02x}.0",
                    f'<pci busid="0000:{0x10 + i:02x}:00.0" class="0x030200"/><pci busid="0000:{0x40 + i:02x}:00.0" class="0x020700"/>',
                ))
                for i in range(count)
            ]
        )  # fmt: skip

    eight = read(box(8))
    assert eight.nodes[0].link_type == "nvswitch"
    assert any("taken for an NVSwitch board" in note for note in eight.notes)
    four = read(box(4))
    assert four.nodes[0].link_type is None
    assert four.nodes[0].gpus[0].name == UNKNOWN


# ------------------------------------------------------------------------------------------------ hwloc


def gpu(bus: str, ids: str, name: str, gp: int, uuid: str = "") -> str:
    infos = {"GPUVendor": "NVIDIA Corporation", "GPUModel": name}
    return hwloc_device(
        bus, "0302", ids,
        hwloc_os(f"nvml{gp}", infos | ({"NVIDIAUUID": uuid} if uuid else {}), gp=gp + 100)
        + hwloc_os(f"cuda{gp}", {"CUDAGlobalMemorySize": str(16 * 2**20)}), gp=gp,
    )  # fmt: skip


def hca(bus: str, name: str, netdev: str, state: int = 4) -> str:
    return hwloc_device(
        bus, "0207", "15b3:1021",
        hwloc_os(netdev, {"Address": "00:00:00:00:00:01"})
        + hwloc_os(name, {"NodeGUID": "0000:0000:0000:0001", "Port1State": str(state)}),
    )  # fmt: skip


@pytest.mark.parametrize("version", ["1", "2.0", "3.0"])
def test_gpus_and_ports_hang_on_their_sockets(read: Read, version: str) -> None:
    package = [
        (n, hwloc_root(f"{0x10 + 0x40 * n:02x}", hwloc_switch(
            f"0000:{0x11 + 0x40 * n:02x}:00.0",
            gpu(f"0000:{0x12 + 0x40 * n:02x}:00.0", "10de:1eb8", "Tesla T4", n, f"GPU-0000000{n}")
            + hca(f"0000:{0x13 + 0x40 * n:02x}:00.0", f"mlx5_{n}", f"ib{n}"),
        )))
        for n in range(2)
    ]  # fmt: skip
    cluster = read(hwloc(package, {"HostName": "tester"}, version=version))
    node = cluster.nodes[0]
    assert node.hostname == "tester"
    assert [(g.numa, g.uuid, g.memory_bytes) for g in node.gpus] == [
        (0, "GPU-00000000", 2**34),
        (1, "GPU-00000001", 2**34),
    ]
    assert [(n.name, n.netdev, n.numa, n.up) for n in node.nics] == [
        ("mlx5_0", "ib0", 0, True),
        ("mlx5_1", "ib1", 1, True),
    ]
    assert node.nics[0].distances == ((0, "PIX"), (1, "SYS"))
    assert (node.link_type, cluster.fabric.kind, cluster.fabric.rails) == ("none", "infiniband", 2)


def test_the_bandwidth_matrix_gives_links_between_gpus_and_to_switches(read: Read) -> None:
    gpus = "".join(gpu(f"0000:{0x20 + n:02x}:00.0", "10de:15f9", "Tesla P100-SXM2-16GB", n) for n in range(2))
    matrix = (
        '<distances2hetero nbobjs="2" kind="25" name="NVLinkBandwidth"><indexes length="9">OSDev:100 OSDev:101</indexes>'
        '<u64values length="9">1000000 40000 40000 1000000</u64values></distances2hetero>'
    )
    node = read(hwloc([(0, hwloc_root("20", gpus))], extra=matrix)).nodes[0]
    assert node.nvlinks == ((0, 1, 2),), "40 GB/s over Pascal's 20 GB/s links"
    assert node.link_type == "pairs"
    switch = hwloc_device("0000:30:00.0", "0680", "10de:1ac2", gp=7)
    v100 = "".join(gpu(f"0000:{0x20 + n:02x}:00.0", "10de:1db8", "Tesla V100-SXM3-32GB", n) for n in range(2))
    matrix = (
        '<distances2hetero nbobjs="3" kind="25" name="NVLinkBandwidth"><indexes length="9">OSDev:100 OSDev:101 PCIDev:7</indexes>'
        '<u64values length="9">0 0 150000 0 0 150000 0 0 0</u64values></distances2hetero>'
    )
    switched = read(hwloc([(0, hwloc_root("20", v100 + switch))], extra=matrix)).nodes[0]
    assert (switched.link_type, switched.nvswitches_pci) == ("nvswitch", 1)
    assert [g.nvlinks for g in switched.gpus] == [6, 6]
    cut = read(hwloc([(0, hwloc_root("20", gpus))], extra=matrix.replace("150000", "")))
    assert any("cut off" in note for note in cut.notes)


def test_nodes_of_gpu_memory_are_no_nodes_of_cpus(read: Read) -> None:
    text = hwloc([(0, hwloc_root("20", gpu("0000:20:00.0", "10de:2342", "NVIDIA GH200 480GB", 0)))])
    memory = '<object type="NUMANode" os_index="252" cpuset="0x0" nodeset="0x00000000"/>'
    node = read(text.replace('<object type="Package"', memory + '<object type="Package"')).nodes[0]
    assert node.numa_nodes == 1
    assert node.gpus[0].numa == 0


def test_gpus_of_one_power_socket_are_linked(read: Read) -> None:
    packages = [
        (n, hwloc_root(f"{0x20 + n:02x}", "".join(
            gpu(f"0000:{0x20 + 0x10 * n + m:02x}:00.0", "10de:1db1", "Tesla V100-SXM2-16GB", 2 * n + m) for m in range(2)
        )))
        for n in range(2)
    ]  # fmt: skip
    cluster = read(hwloc(packages).replace("Test CPU", "POWER9, altivec supported"))
    assert cluster.nodes[0].link_type == "pairs"
    assert cluster.nvlink_domains == ((0, 1), (2, 3))


def test_the_firmwares_product_name_fills_a_tree_without_devices(read: Read) -> None:
    cluster = read(hwloc([(0, "")], {"DMIProductName": "NVIDIA_DGX_Spark"}))
    assert [g.name for g in cluster.nodes[0].gpus] == ["NVIDIA GB10"]
    assert any("dgx-spark" in note for note in cluster.notes)


def test_efa_ports_away_from_gpus_are_no_rails(read: Read) -> None:
    def efa(bus: str, name: str) -> str:
        return hwloc_device(
            bus, "0200", "1d0f:efa3", hwloc_os(name, {"NodeGUID": "0000:0000:0000:0000", "Port1State": "4"})
        )

    ena = hwloc_device("0000:32:00.0", "0200", "1d0f:ec20", hwloc_os("ens45", {}))
    near = hwloc_root(
        "24",
        hwloc_switch(
            "0000:24:00.0", efa("0000:27:00.0", "rdmap39s0") + gpu("0000:29:00.0", "10de:2941", "NVIDIA GB200", 0)
        ),
    )
    far = hwloc_root("2f", hwloc_switch("0000:2f:00.0", ena + efa("0000:36:00.0", "rdmap54s0")))
    infos = {"DMIProductName": "p6e-gb200.36xlarge", "DMISysVendor": "Amazon EC2"}
    cluster = read(hwloc([(0, near + far)], infos))
    assert {n.name: n.rail for n in cluster.nodes[0].nics} == {"rdmap39s0": True, "rdmap54s0": False, "ens45": False}
    assert cluster.nodes[0].link_type == "nvswitch_mnnvl"


def test_xml_after_a_prompt_and_cut_off_in_the_middle_is_still_read(read: Read) -> None:
    text = dgx()
    assert len(read("user@host:~$ cat topo.xml\n" + text).nodes[0].gpus) == 8
    cut = read(text[: text.index("mlx5_5")])
    assert 5 <= len(cut.nodes[0].gpus) <= 6
    assert any("cut off" in note for note in cut.notes)

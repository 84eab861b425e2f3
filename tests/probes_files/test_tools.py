"""lspci, the InfiniBand tools, racks of several nodes, and captured trees."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from parlaunch.errors import ProbeError
from parlaunch_probes.files import read_hardware
from tests.probes_files.conftest import Read
from tests.probes_files.samples import ibstat, matrix

# Two switches below one root each: a GPU and a ConnectX-7 behind the first, a ConnectX-6 Dx behind another port of it.
LSPCI = """\
00:01.0 PCI bridge: Intel Corporation Device 352a (rev 04)
	NUMA node: 0
	Bus: primary=00, secondary=10, subordinate=1f, sec-latency=0
10:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch
	NUMA node: 0
	Bus: primary=10, secondary=11, subordinate=1f, sec-latency=0
	Capabilities: [148 v1] Access Control Services
		ACSCap:	SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl+ DirectTrans+
		ACSCtl:	SrcValid- TransBlk- ReqRedir{acs} CmpltRedir{acs} UpstreamFwd- EgressCtrl- DirectTrans-
11:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330] (rev a1)
	NUMA node: 0
12:00.0 Ethernet controller: Mellanox Technologies MT2910 Family [ConnectX-7]
	NUMA node: 0
13:00.0 Ethernet controller: Mellanox Technologies MT2892 Family [ConnectX-6 Dx]
	NUMA node: 0
80:01.0 PCI bridge: Intel Corporation Device 352a (rev 04)
	NUMA node: 1
	Bus: primary=80, secondary=90, subordinate=9f, sec-latency=0
90:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330] (rev a1)
	NUMA node: 1
91:00.0 Bridge: NVIDIA Corporation GH100 [H100 NVSwitch] [10de:22a3] (rev a1)
	NUMA node: 1
92:00.0 Audio device: NVIDIA Corporation High Definition Audio Controller (rev a1)
"""


def test_lspci_gives_the_tree_the_switches_and_the_rail_of_the_faster_family(read: Read) -> None:
    node = read(LSPCI.format(acs="-")).nodes[0]
    assert [g.pci for g in node.gpus] == ["0000:11:00.0", "0000:90:00.0"]
    assert [g.name for g in node.gpus] == ["NVIDIA H100 80GB HBM3"] * 2
    assert [g.numa for g in node.gpus] == [0, 1]
    assert node.nvswitches_pci == 1
    assert node.link_type == "nvswitch"
    assert {n.pci: n.rail for n in node.nics} == {"0000:12:00.0": True, "0000:13:00.0": False}
    assert node.nics[0].distances == ((0, "PIX"), (1, "SYS"))
    assert node.acs_redirects == ()


def test_bridges_that_redirect_peer_traffic_are_listed(read: Read) -> None:
    assert read(LSPCI.format(acs="+")).nodes[0].acs_redirects == ("0000:10:00.0",)


def test_grace_sockets_follow_from_pci_domains(read: Read) -> None:
    text = "".join(
        f"{d}:01:00.0 3D controller: NVIDIA Corporation Device 2941 (rev a1)\n"
        for d in ("0008", "0009", "0018", "0019")
    )
    text += "".join(
        f"{d}:03:00.0 Infiniband controller: Mellanox Technologies MT2910 Family [ConnectX-7]\n"
        for d in ("0000", "0010")
    )
    text += "0006:03:00.0 Ethernet controller: Mellanox Technologies MT43244 BlueField-3 integrated ConnectX-7 network controller (rev 01)\n"
    cluster = read(text)
    node = cluster.nodes[0]
    assert node.link_type == "nvswitch_mnnvl"
    assert [g.numa for g in node.gpus] == [0, 0, 1, 1]
    assert node.nics[0].distances == ((0, "NODE"), (1, "NODE"), (2, "SYS"), (3, "SYS"))
    assert cluster.fabric.kind == "infiniband"
    assert [n.rail for n in node.nics] == [True, True, False]


def test_ibstat_gives_ports_and_the_class_that_carries_most_is_the_rails(read: Read) -> None:
    ports = [(f"mlx5_{n}", "MT4129", "Active", "LinkUp", 400, "Ethernet") for n in range(3)]
    ports += [
        ("mlx5_3", "MT4129", "Down", "Polling", 40, "Ethernet"),
        ("mlx5_4", "MT4125", "Active", "LinkUp", 100, "Ethernet"),
    ]
    cluster = read(ibstat(ports))
    nics = {n.name: n for n in cluster.nodes[0].nics}
    assert [n for n, nic in nics.items() if nic.rail] == ["mlx5_0", "mlx5_1", "mlx5_2"]
    down = nics["mlx5_3"]
    assert (down.up, down.state, down.physical_state, down.bytes_per_s) == (False, "DOWN", "Polling", None)
    assert "DOWN" in (down.why_not or "")
    assert nics["mlx5_4"].why_not is not None
    assert (cluster.fabric.kind, cluster.fabric.rails) == ("roce", 3)


def test_infiniband_goes_before_an_ethernet_port_of_the_same_rate(read: Read) -> None:
    ports = [(f"mlx5_{n}", "MT4126", "Active", "LinkUp", 200, "InfiniBand" if n else "Ethernet") for n in range(3)]
    cluster = read(ibstat(ports) + "ibpanic: [42] main: stat of IB device 'mlx5_9' failed: No such file or directory\n")
    assert cluster.fabric.kind == "infiniband"
    assert [n.name for n in cluster.nodes[0].nics if n.rail] == ["mlx5_1", "mlx5_2"]
    assert any("ibpanic" in note for note in cluster.notes)


def test_ibstatus_and_devinfo_say_the_same(read: Read) -> None:
    status = (
        "Infiniband device 'mlx5_0' port 1 status:\n\tdefault gid:\t fe80::1\n\tstate:\t\t 4: ACTIVE\n\tphys state:\t 5: LinkUp\n"
        "\trate:\t\t 400 Gb/sec (4X NDR)\n\tlink_layer:\t InfiniBand\n"
    )
    devinfo = (
        "hca_id:\tmlx5_0\n\ttransport:\t\t\tInfiniBand (0)\n\tfw_ver:\t\t\t\t28.36\n\tvendor_part_id:\t\t\t4129\n\t\tport:\t1\n"
        "\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n\t\t\tactive_width:\t\t4X (2)\n\t\t\tactive_speed:\t\t100.0 Gbps (128)\n"
        "\t\t\tphys_state:\t\tLINK_UP (5)\n\t\t\tlink_layer:\t\tInfiniBand\n"
    )
    for text in (status, devinfo):
        nic = read(text).nodes[0].nics[0]
        assert (nic.name, nic.kind, nic.up, nic.state, nic.physical_state, nic.bytes_per_s) == (
            "mlx5_0", "infiniband", True, "ACTIVE", "LinkUp", 50e9,
        )  # fmt: skip


def test_commands_in_one_file_complete_each_other(read: Read) -> None:
    nics = {f"NIC{n}": ["PIX" if n == g else "SYS" for g in range(2)] for n in range(2)} | {"NIC2": ["SYS", "SYS"]}
    topo = matrix(2, lambda a, b: "NV18", nics=nics, names={"NIC0": "mlx5_0", "NIC1": "mlx5_1", "NIC2": "mlx5_2"})
    devices = "mlx5_0 port 1 ==> ibs1 (Up)\nmlx5_1 port 1 ==> ibs2 (Down)\nmlx5_2 port 1 ==> bond0 (Up)\n"
    host = "Model name:            Xeon Test\nSocket(s):             2\nCore(s) per socket:    48\nNUMA node0 CPU(s):     0-47\n"
    numa = "available: 2 nodes (0-1)\nnode 0 cpus: 0 1\nnode 0 size: 1000 MB\nnode 1 cpus:\nnode 1 size: 90000 MB\n"
    text = f"ops@gpu-07:~$ nvidia-smi topo -m\n{topo}\nops@gpu-07:~$ ibdev2netdev\n{devices}\nops@gpu-07:~$ lscpu\n{host}\n{numa}"
    cluster = read(text)
    node = cluster.nodes[0]
    assert node.hostname == "gpu-07"
    assert (node.cpu_model, node.sockets, node.cores) == ("Xeon Test", 2, 96)
    assert node.memory_bytes == 1000 * 2**20, "a node without CPUs holds a GPU's memory"
    nics_ = {n.name: n for n in node.nics}
    assert [n for n, nic in nics_.items() if nic.rail] == ["mlx5_0"]
    assert (nics_["mlx5_0"].kind, nics_["mlx5_0"].netdev) == ("infiniband", "ibs1")
    assert nics_["mlx5_1"].up is False
    assert nics_["mlx5_2"].bond == "bond0"


# ------------------------------------------------------------------------------------------ several nodes


def imex(states: list[str], table: list[list[str]] | None = None, state: str = "UP") -> str:
    nodes = "".join(f"Node #{i:<3} - 10.0.0.{i + 1:<10} - {s:<20} - Version: 570.172\n" for i, s in enumerate(states))
    rows = table or [["C"] * len(states)] * len(states)
    matrix_ = " Nodes From\\To  " + "  ".join(str(i) for i in range(len(states))) + "\n"
    matrix_ += "".join(f"{i:>8}        " + "  ".join(row) + "\n" for i, row in enumerate(rows))
    return f"Connectivity Table Legend:\nC - Connected - Ready for operation\n\n1/1/2026 10:00:00.000\nNodes:\n{nodes}\n{matrix_}\nDomain State: {state}\n"


def test_an_imex_domain_is_one_nvlink_domain_of_its_trays(read: Read) -> None:
    cluster = read(imex(["READY"] * 18))
    assert len(cluster.nodes) == 18
    assert cluster.nvlink_domains == (tuple(range(72)),)
    assert cluster.nodes[3].hostname == "10.0.0.4"


def test_nodes_that_are_not_ready_or_cut_off_leave_the_domain(read: Read) -> None:
    cluster = read(
        imex(["READY", "READY", "UNAVAILABLE"], [["C", "C", "N"], ["C", "C", "N"], ["N", "N", "N"]], state="DEGRADED")
    )
    assert (len(cluster.nodes[2].gpus), len(cluster.nodes[0].gpus)) == (4, 4)
    assert sorted(map(len, cluster.nvlink_domains)) == [4, 8]
    assert any("#2 is UNAVAILABLE" in note for note in cluster.notes)


def test_an_imex_domain_of_one_node_reaches_no_other(read: Read) -> None:
    cluster = read(imex(["READY"]))
    assert cluster.nvlink_domains == ((0, 1, 2, 3),)
    assert any("domain of one node" in note for note in cluster.notes)


def test_trays_of_a_rack_manager_share_a_domain_by_its_uuid(read: Read) -> None:
    rows = [
        {
            "DomainUUID": uuid,
            "GpuIDList": ["a", "b", "c", "d"],
            "Health": health,
            "Name": f"tray{n}",
            "LocationInfo": {"SlotID": n},
        }
        for n, (uuid, health) in enumerate([("u-1", "HEALTHY"), ("u-2", "HEALTHY"), ("u-1", "DEGRADED")])
    ]
    cluster = read(json.dumps(rows))
    assert sorted(map(len, cluster.nvlink_domains)) == [4, 8]
    assert any("tray2: health DEGRADED" in note for note in cluster.notes)


def test_a_fabric_listing_gives_hosts_with_their_leaf_switches(read: Read) -> None:
    text = "#\n# Topology file: generated on a day\n#\nvendid=0x2c9\n"
    text += 'Switch\t65 "S-01"\t\t# "MF0;leaf1:MQM9701/U1" enhanced port 0 lid 7 lmc 0\n[1]\t"H-01"[1](01)\t\t# "node1 mlx5_0" lid 1 4xNDR\n\n'
    for host in ("node1", "node2"):
        for n in range(2):
            text += f'Ca\t1 "H-{host}{n}"\t\t# "{host} mlx5_{n}"\n[1](0{n}) \t"S-01"[{n}]\t\t# lid 1 lmc 0 "MF0;leaf{n}:MQM9701/U1" lid 7 4xNDR\n\n'
    text += 'Ca\t1 "H-agg"\t\t# "Mellanox Technologies Aggregation Node"\n'
    cluster = read(text)
    assert [n.hostname for n in cluster.nodes] == ["node1", "node2"]
    assert cluster.nodes[0].switch == "leaf0,leaf1"
    assert cluster.nodes[0].nics[0].bytes_per_s == 50e9
    assert any("5 channel adapters" in note and "1 switches" in note for note in cluster.notes)


# ------------------------------------------------------------------------------------------ captured trees

FILES = {
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/class": "0x020700",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/vendor": "0x15b3",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/device": "0x1021",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/numa_node": "1",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0/ports/1/phys_state": "5: LinkUp",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0/ports/1/link_layer": "InfiniBand",
    "sys/devices/pci0000:10/0000:10:01.0/0000:12:00.0/class": "0x030200",
    "sys/devices/pci0000:10/0000:10:01.0/0000:12:00.0/vendor": "0x10de",
    "sys/devices/pci0000:10/0000:10:01.0/0000:12:00.0/device": "0x2330",
    "sys/devices/pci0000:10/0000:10:01.0/0000:12:00.0/numa_node": "1",
    "proc/sys/kernel/hostname": "captured",
}
LINKS = {
    "sys/class/infiniband/mlx5_0": "../../devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0",
    "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0/infiniband/mlx5_0/device": "../..",
    "sys/bus/pci/devices/0000:11:00.0": "../../../devices/pci0000:10/0000:10:01.0/0000:11:00.0",
    "sys/bus/pci/devices/0000:12:00.0": "../../../devices/pci0000:10/0000:10:01.0/0000:12:00.0",
}


def archive(mode: Any, prefix: str = "", links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for path, text in FILES.items():
            info = tarfile.TarInfo(prefix + path)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for path, target in (LINKS | (links or {})).items():
            info = tarfile.TarInfo(prefix + path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "node-07/", "./"])
def test_a_tar_of_sys_is_a_machine_wherever_the_tree_begins(read: Read, mode: str, prefix: str) -> None:
    cluster = read(archive(mode, prefix))
    node = cluster.nodes[0]
    assert node.hostname == "captured"
    assert [(n.name, n.pci, n.numa, n.bytes_per_s) for n in node.nics] == [("mlx5_0", "0000:11:00.0", 1, 50e9)]
    assert [(g.name, g.pci, g.numa) for g in node.gpus] == [("NVIDIA H100 80GB HBM3", "0000:12:00.0", 1)]
    assert node.nics[0].distances == ((0, "PIX"),)
    assert node.link_type == "nvswitch"


def test_a_folder_and_its_tar_are_one_machine(read: Read, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    packed = read(archive("w:gz"))
    for given in (root, root / "sys"):
        assert read_hardware(given).nodes == packed.nodes


def test_links_that_lead_out_or_in_circles_end_there(read: Read) -> None:
    bad = {
        "sys/class/infiniband/loop": "loop",
        "sys/class/infiniband/out": "../../../../../../etc",
        "sys/class/net/eth0": "/etc/passwd",
        "../outside": "/",
    }
    node = read(archive("w:", links=bad)).nodes[0]
    assert [n.name for n in node.nics if n.rail] == ["mlx5_0"]


def test_a_damaged_archive_gives_what_stands_before_the_damage(read: Read) -> None:
    whole = archive("w:")
    cluster = read(whole[: len(whole) * 2 // 3])
    assert cluster.nodes[0].hostname is not None
    with pytest.raises(ProbeError, match="archive"):
        read(b"BZh9" + b"\x00" * 100)


def test_an_archive_of_something_else_is_refused(read: Read) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO(b""))
    with pytest.raises(ProbeError, match="without a captured /sys"):
        read(out.getvalue())


def test_a_gigabit_port_is_no_rail_beside_ports_whose_rate_no_list_tells(read: Read) -> None:
    gpu = "0000:01:00.0 3D controller: NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330] (rev a1)\n"
    slow = "0000:05:00.0 Ethernet controller: Intel Corporation I350 Gigabit Network Connection\n"
    fast = "0000:03:00.0 Ethernet controller: Google, Inc. Compute Engine Virtual Ethernet [gVNIC]\n"
    assert {n.pci: n.rail for n in read(gpu + fast + slow).nodes[0].nics} == {
        "0000:03:00.0": True,
        "0000:05:00.0": False,
    }
    assert [n.rail for n in read(gpu + slow).nodes[0].nics] == [True], "it is the only way out"

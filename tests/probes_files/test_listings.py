"""Listings of ports, nodes and logs that other tools print: `rdma link`, `ibdev2netdev`, `lstopo`, `scontrol`, NCCL."""

from __future__ import annotations

import json

import pytest

from parlaunch.hardware.cluster import UNKNOWN
from parlaunch.hardware.rates import rates_of
from parlaunch_probes.files import replicate
from tests.probes_files.conftest import Read
from tests.probes_files.samples import GRAPH, LSTOPO, NODE, RDMA, ibstat, matrix, nccl_log, smi_xml


def numbers(count: int) -> list[str]:
    return [f"mlx5_{n}" for n in range(count)]


def test_rdma_link_tells_the_fabric_of_each_port_and_its_state(read: Read) -> None:
    cluster = read(RDMA)
    assert cluster.fabric.kind == "infiniband"
    nics = {n.name: n for n in cluster.nodes[0].nics}
    assert [n for n, nic in nics.items() if nic.rail] == ["mlx5_0", "mlx5_1"]
    assert (nics["mlx5_2"].kind, nics["mlx5_2"].up, nics["mlx5_2"].physical_state) == ("roce", False, "Disabled")
    assert nics["rxe0"].why_not == "a software device: no PCI device behind it"


def test_rdma_link_as_json_says_the_same(read: Read) -> None:
    rows = [
        {"ifindex": 0, "ifname": "rocep1s0f0", "port": 1, "state": "DOWN", "physical_state": "DISABLED", "netdev": "enp1s0f0np0"},
        {"ifindex": 1, "ifname": "roceP2p1s0f1", "port": 1, "state": "ACTIVE", "physical_state": "LINK_UP", "netdev": "enP2p1s0f1np1"},
    ]  # fmt: skip
    nics = read(json.dumps(rows)).nodes[0].nics
    assert [(n.name, n.kind, n.up, n.rail) for n in nics] == [
        ("rocep1s0f0", "roce", False, False),
        ("roceP2p1s0f1", "roce", True, True),
    ]


def test_an_infiniband_port_without_ip_is_not_taken_for_a_dead_one(read: Read) -> None:
    """NVIDIA's own note: Up and Down of ibdev2netdev are those of the interface."""
    nics = read(
        "mlx5_0 port 1 ==> ibp26s0 (Down)\nmlx5_1 port 1 ==> enp27s0f0np0 (Up)\nmlx5_2 port 1 ==> ibp60s0 (Down)\n"
    )
    assert [(n.name, n.up, n.rail) for n in nics.nodes[0].nics] == [
        ("mlx5_0", None, True),
        ("mlx5_1", True, False),
        ("mlx5_2", None, True),
    ]


def test_ibdev2netdev_with_v_says_what_the_port_does_and_where_it_sits(read: Read) -> None:
    line = "0000:{bus}:00.0 mlx5_{n} (MT4129 - MCX75310AAS-NEAT) ConnectX-7 HHHL adapter card, 400GbE / NDR IB fw 28.39.1002 port 1 ({state}) ==> ibp{n}s0 (Down)\n"
    text = line.format(bus="1b", n=0, state="ACTIVE") + line.format(bus="43", n=1, state="DOWN  ")
    nics = read(text).nodes[0].nics
    assert [(n.pci, n.model, n.up, n.rail) for n in nics] == [
        ("0000:1b:00.0", "MT4129", True, True),
        ("0000:43:00.0", "MT4129", False, False),
    ]


def test_lstopo_on_the_console_is_a_pci_tree(read: Read) -> None:
    node = read("user@gpu-9:~$ nvidia-smi -L\nGPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-1111)\n"
                "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-00000000-2222)\nuser@gpu-9:~$ lstopo\n" + LSTOPO).nodes[0]  # fmt: skip
    assert [(g.name, g.pci, g.numa) for g in node.gpus] == [
        ("NVIDIA H100 80GB HBM3", "0000:1b:00.0", 0),
        ("NVIDIA H100 80GB HBM3", "0000:9b:00.0", 1),
    ]
    rail = next(n for n in node.nics if n.rail)
    assert (rail.name, rail.kind, rail.netdev) == ("mlx5_0", "infiniband", "ibp24s0")
    assert rail.distances == ((0, "PIX"), (1, "SYS"))


def test_scontrol_shows_the_nodes_that_have_gpus_and_are_up(read: Read) -> None:
    text = "\n".join(
        [
            NODE.format(name="gpu01", gres="gpu:nvidia_h100_80gb_hbm3:8(S:0-1),nvme:1", state="IDLE"),
            NODE.format(name="gpu02", gres="gpu:nvidia_h100_80gb_hbm3:8(S:0-1)", state="DOWN*+DRAIN"),
            NODE.format(name="cpu01", gres="(null)", state="IDLE"),
            NODE.format(name="gpu[03-04]", gres="gpu:nvidia_h100_80gb_hbm3:8", state="MIXED"),
        ]
    )
    cluster = read(text)
    assert [n.hostname for n in cluster.nodes] == ["gpu01", "gpu03", "gpu04"]
    assert [len(d) for d in cluster.nvlink_domains] == [8, 8, 8]
    assert cluster.nodes[0].memory_bytes == 2063000 << 20
    assert (cluster.nodes[0].sockets, cluster.nodes[0].cores) == (2, 112)
    assert any("gpu02 not up: left out" in n for n in cluster.notes)


def test_a_gres_type_that_fits_several_products_asks_which(read: Read) -> None:
    cluster = read(NODE.format(name="n1", gres="gpu:h100:4", state="IDLE"))
    assert {g.name for g in cluster.nodes[0].gpus} == {UNKNOWN}
    assert any("'h100' may be " in n and "H100 SXM" in n and "--gpu" in n for n in cluster.notes)


def test_the_log_of_nccl_names_hosts_ports_and_the_graph(read: Read) -> None:
    graph = GRAPH.format(width="370.8", far="NVS/0-0", back="NVS/0-0")
    cluster = read(nccl_log("node01", graph) + "\n" + nccl_log("node02", graph))
    assert [n.hostname for n in cluster.nodes] == ["node01", "node02"]
    node = cluster.nodes[0]
    assert [(g.pci, g.numa, g.nvlinks) for g in node.gpus] == [("0000:1b:00.0", 0, 18), ("0000:9b:00.0", 1, 18)]
    assert node.link_type == "nvswitch"
    assert (cluster.fabric.kind, cluster.fabric.rails, cluster.fabric.bytes_per_s_per_gpu) == ("infiniband", 1, 25e9)
    assert node.nics[0].distances == ((0, "PIX"), (1, "SYS"))
    assert any("4 ranks on 2 nodes" in n for n in cluster.notes)


def test_direct_links_in_the_log_are_counted(read: Read) -> None:
    graph = GRAPH.format(width="80.0", far="GPU/0-9b000", back="GPU/0-1b000")
    node = read(nccl_log("node01", graph)).nodes[0]
    assert node.nvlinks == ((0, 1, 4),)


def test_the_heading_of_nccl_tests_names_the_gpus_and_the_plugin_the_fabric(read: Read) -> None:
    ranks = [
        f"#  Rank {r:2d} Group  0 Pid 20176 on   swat-0{r // 2} device {r % 2:2d} [0x{bus}] NVIDIA A100-SXM4-80GB"
        for r, bus in enumerate(["07", "0b"] * 2)
    ]
    said = [
        f"swat-0{n}:1:1 [0] NCCL INFO NET/OFI Selected provider is cxi, fabric is cxi (found 4 nics)" for n in (0, 1)
    ]
    cluster = read("# nThread 1 nGpus 2\n" + "\n".join([*ranks, *said]))
    assert [len(n.gpus) for n in cluster.nodes] == [2, 2]
    assert {g.name for n in cluster.nodes for g in n.gpus} == {"NVIDIA A100-SXM4-80GB"}
    assert (cluster.fabric.kind, cluster.fabric.rails) == ("slingshot", 4)


LISTED = "GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-0000000{host}-0000-4000-8000-00000000000{i})"


def gpus(host: int, count: int = 4) -> list[str]:
    return [LISTED.format(i=i, host=host) for i in range(count)]


SEVERAL = {
    "a list that begins anew": "\n".join([*gpus(1), *gpus(2)]),
    "pdsh": "\n".join(f"node{h}: {line}" for i in range(4) for h in (1, 2) for line in gpus(h)[i : i + 1]),
    "srun --label": "\n".join(f"{h}: {line}" for h in (0, 1) for line in gpus(h)),
    "clush -b": "---------------\nnode[1-2] (2)\n---------------\n" + "\n".join(gpus(1)),
    "banners": "\n".join(["=== node1 ===", *gpus(1), "=== node2 ===", *gpus(2)]),
    "banners of hosts that are called after their GPUs": "\n".join(
        ["==== gpu-node1 ====", *gpus(1), "==== gpu02.local ====", *gpus(2)]
    ),
    "ansible": "\n".join(["n1 | CHANGED | rc=0 >>", *gpus(1), "n2 | CHANGED | rc=0 >>", *gpus(2)]),
    "xml": smi_xml("NVIDIA H100 80GB HBM3", 4) + smi_xml("NVIDIA H100 80GB HBM3", 4),
    "prompts": "\n".join(["me@n1:~$ nvidia-smi -L", *gpus(1), "me@n2:~$ nvidia-smi -L", *gpus(2)]),
}


@pytest.mark.parametrize("how", SEVERAL)
def test_a_dump_of_two_hosts_is_two_nodes(read: Read, how: str) -> None:
    cluster = read(SEVERAL[how])
    assert [len(n.gpus) for n in cluster.nodes] == [4, 4]
    assert [len(d) for d in cluster.nvlink_domains] == [4, 4]
    assert len({n.hostname for n in cluster.nodes}) == 2


ONE = {
    "headings of commands": "=== nvidia-smi -L ===\n"
    + "\n".join(gpus(1))
    + "\n=== nvidia-smi topo -m ===\n"
    + matrix(4, lambda a, b: "NV18"),
    "headings of sections": "=== cards ===\n"
    + "\n".join(gpus(1))
    + "\n=== links ===\n"
    + matrix(4, lambda a, b: "NV18"),
    "headings of devices": "\n".join(["=== gpu-list ===", *gpus(1), "=== GPU0 ===", "fine", "=== GPU1 ===", "fine"]),
    "the same list twice": "\n".join([*gpus(1), *gpus(1)]),
    "one host, prefixed": "\n".join(f"node7: {line}" for line in gpus(1)),
    "ports of one host": "\n".join(gpus(1))
    + "\n"
    + ibstat([(f"mlx5_{n}", "MT4129", "Active", "LinkUp", 400, "InfiniBand") for n in range(2)]),
}


@pytest.mark.parametrize("how", ONE)
def test_several_listings_of_one_host_are_one_node(read: Read, how: str) -> None:
    cluster = read(ONE[how])
    assert [len(n.gpus) for n in cluster.nodes] == [4]


def management(rails: str, count: int, *, chips: bool = True) -> str:
    """ibstat of a board whose NVSwitches are managed through four functions of one ConnectX-7."""
    text = ibstat([(f"mlx5_{n}", "MT4129", *rails.split(), "InfiniBand") for n in range(count)])  # type: ignore[misc]
    text += ibstat([(f"mlx5_{20 + n}", "MT4129", "Active", "LinkUp", 100, "InfiniBand") for n in range(4)])
    if not chips:
        return text
    lines = []
    for line in text.split("\n"):
        lines.append(line)
        if line.startswith("CA '"):
            number = int(line.split("_")[1].rstrip("'"))
            lines.append(f"\tSystem image GUID: 0xcc40f303{min(number, 20):08x}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "rails", "fabric"),
    [
        pytest.param(management("Active LinkUp 400", 8), numbers(8), "infiniband", id="rails up"),
        pytest.param(management("Active LinkUp 400", 1), numbers(1), "infiniband", id="one rail, four functions of one chip"),
        pytest.param(management("Down Polling 10", 8), numbers(8), "infiniband", id="rails down"),
        pytest.param(management("Down Polling 10", 8, chips=False), numbers(8), "infiniband", id="rails down, chips not told"),
        pytest.param("\n".join(gpus(1)) + "\n" + management("Active LinkUp 400", 0), ["mlx5_20", "mlx5_21", "mlx5_22", "mlx5_23"],
                     "infiniband", id="Hopper has no such functions: four slow rails"),
    ],
)  # fmt: skip
def test_ports_through_which_nvswitches_are_managed_are_no_rails_in_a_listing(
    read: Read, text: str, rails: list[str], fabric: str
) -> None:
    cluster = read(text)
    assert [n.name for n in cluster.nodes[0].nics if n.rail] == rails
    assert cluster.fabric.kind == fabric


def test_a_topology_of_two_hosts_is_two_nodes(read: Read) -> None:
    cpu = (
        '<cpu host_hash="{h}" numaid="0" arch="arm64"><pci busid="0008:01:00.0" class="0x030200" vendor="0x10de" device="0x2941">'
        '<gpu dev="0" sm="100" rank="{r}"><nvlink target="fffffff:ffff:ff" count="18" tclass="0x068000"/></gpu></pci></cpu>'
    )
    cluster = read(f'<system version="1">{cpu.format(h="0x1", r=0)}{cpu.format(h="0x2", r=1)}</system>')
    assert [len(n.gpus) for n in cluster.nodes] == [1, 1]
    assert cluster.nvlink_domains == ((0, 1),), "NCCL draws them together because NVLink joins them"
    assert not any("hypervisor" in n for n in cluster.notes), "a hidden far end is NVLink 5's usual one"


def test_slices_that_slurm_counts_are_no_whole_gpus(read: Read) -> None:
    text = "NodeName=n1 CoresPerSocket=32\n   Gres=gpu:a100_3g.20gb:8(S:0-1),gpu:nvidia_a100-sxm4-40gb:2\n   Sockets=2\n   State=IDLE\n"
    found = read(text)
    assert [(g.name, g.mig, len(g.mig_devices)) for g in found.nodes[0].gpus] == [
        (UNKNOWN, True, 8),
        ("NVIDIA A100-SXM4-40GB", None, 0),
        ("NVIDIA A100-SXM4-40GB", None, 0),
    ]
    assert any("'a100_3g.20gb' is 8 MIG slices" in n for n in found.notes)


def test_omni_path_is_told_from_infiniband_by_its_name(read: Read) -> None:
    line = (
        "link hfi1_{n}/1 subnet_prefix fe80:0000:0000:0000 lid 4 sm_lid 1 lmc 0 state ACTIVE physical_state LINK_UP\n"
    )
    found = read("".join(line.format(n=n) for n in range(2)))
    assert found.fabric.kind == "omnipath"
    assert [n.rail for n in found.nodes[0].nics] == [True, True]


def test_a_file_without_gpus_says_so_and_what_to_add(read: Read) -> None:
    found = read("mlx5_0 port 1 ==> ibs10 (Up)\n")
    assert any("the GPUs are not in this file: add the output of `nvidia-smi -L`" in n for n in found.notes)


def test_lstopo_with_v_says_which_port_is_down_and_what_its_card_can_do(read: Read) -> None:
    bridge = "    HostBridge L#{n} (buses=0000:[{bus}-{bus}])\n      PCIBridge L#{n} (busid=0000:{bus}:01.0 id=8086:352a class=0604(PCIBridge))\n"
    card = (
        "        PCI L#{n} (busid=0000:{bus}:00.0 id=15b3:1021 class=0207(InfiniBand) link=63.02GB/s)\n"
        '          OpenFabrics L#{n} (NodeGUID=a088:c203:0012:345{n} Port1State={state} Port1LID=0x10) "mlx5_{n}"\n'
    )
    gpu = (
        "        PCI L#9{n} (busid=0000:{bus}:08.0 id=10de:2330 class=0302(3D))\n"
        '          Co-Processor(CUDA) L#9{n} (Backend=CUDA GPUModel="NVIDIA H100 80GB HBM3") "cuda{n}"\n'
    )
    text = "Machine (P#0 total=1056640316KB Backend=Linux)\n  Package L#0 (P#0)\n    NUMANode L#0 (P#0 local=1056640316KB)\n"
    for n, bus, state in ((0, "18", 4), (1, "9a", 1)):
        text += (bridge + card + gpu).format(n=n, bus=bus, state=state)
    cluster = read(text)
    assert [(n.name, n.port, n.state, n.rail) for n in cluster.nodes[0].nics] == [
        ("mlx5_0", 1, "ACTIVE", True),
        ("mlx5_1", 1, "DOWN", False),
    ]
    assert rates_of(replicate(cluster, 2)).fabric_bytes_per_s == 25e9  # one port of 400 Gb/s for two GPUs

"""Listings that say less than they seem to, or more: dead GPUs among failing fans, nearest products, cards' own rates, racks."""

from __future__ import annotations

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.errors import ProbeError
from parlaunch.hardware.mixed import even
from parlaunch.hardware.rates import rates_of
from parlaunch_probes.files import replicate
from tests.probes_files.conftest import Read
from tests.probes_files.samples import ibstat

TABLE = """|   0  NVIDIA RTX A6000                On  |   00000000:16:00.0 Off |                    0 |
| N/A   34C    P8             20W /  300W |       4MiB /  49140MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA RTX A6000                On  |   00000000:34:00.0 Off |                    0 |
|ERR!   34C    P8            ERR! /  300W |{memory}|      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
"""


def listed(*names: str) -> str:
    return "".join(f"GPU {at}: {name} (UUID: GPU-00000000-{at:04}-aaaa)\n" for at, name in enumerate(names))


def test_a_row_of_errors_is_a_lost_gpu_and_a_failing_fan_is_none(read: Read) -> None:
    dead = read(TABLE.format(memory="       ERR! /      ERR! ")).nodes[0]
    assert [(g.index, g.pci) for g in dead.gpus_unusable] == [(1, "0000:34:00.0")]
    fan = read(TABLE.format(memory="       4MiB /  49140MiB ")).nodes[0]
    assert len(fan.gpus) == 2
    assert fan.gpus_unusable == ()


@pytest.mark.parametrize(
    ("display", "why"),
    [
        ("NVIDIA DGX Display", "alone are faster"),
        ("NVIDIA T400 4GB", "alone are faster"),
        ("GeForce GT 710", "too old"),
    ],
)
def test_a_display_card_is_left_out_whatever_it_is(read: Read, display: str, why: str) -> None:
    cluster = even(read(listed("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", display, "NVIDIA A100-SXM4-80GB")))
    assert [g.index for g in cluster.nodes[0].gpus] == [0, 1, 3]
    assert any(f"GPU 2 ({display}) left out" in n and why in n for n in cluster.notes)
    assert rates_of(cluster).product.name == "A100 SXM 80GB"


def test_the_architecture_that_q_names_is_enough_to_plan_with(read: Read) -> None:
    text = "GPU 00000000:01:00.0\n    Product Name : NVIDIA Xyz 9000\n    Product Architecture : Hopper\n    FB Memory Usage\n        Total : 65536 MiB\n"
    rates = rates_of(read(text))
    assert rates.memory_bytes == 64 << 30
    assert rates.product.compute_capability == (9, 0)
    assert any("derived, as" in words for words in rates.assumed)


def test_a_card_that_no_table_has_keeps_the_name_of_the_list(read: Read) -> None:
    cluster = read("01:00.0 VGA compatible controller: NVIDIA Corporation GP102 [GeForce GTX 1080 Ti] (rev a1)\n")
    assert [g.name for g in cluster.nodes[0].gpus] == ["NVIDIA GeForce GTX 1080 Ti"]
    assert rates_of(cluster).product.compute_capability == (6, 1)


def test_gvnic_in_a_list_of_pci_devices_says_what_it_needs(read: Read) -> None:
    lines = ["04:00.0 3D controller [0302]: NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330] (rev a1)"]
    lines += [
        f"{bus}:00.0 Ethernet controller [0200]: Google, Inc. Compute Engine Virtual Ethernet [gVNIC] [1ae0:0042]"
        for bus in ("06", "0c")
    ]
    found = examine(read("\n".join(lines) + "\n"))
    assert [f.saw.split(":")[0] for f in found if f.check == "network-plugin"] == ["gVNIC"]


def test_ports_without_a_rate_are_planned_at_what_their_cards_can_do(read: Read) -> None:
    """Unknown in the probe, and named in the plan."""
    hca = (
        "hca_id:\tmlx5_{n}\n\tnode_guid:\t0c42:a103:0000:00{n:02}\n\tsys_image_guid:\t0c42:a103:0000:00{n:02}\n\tvendor_id:\t0x02c9\n"
        "\tvendor_part_id:\t4129\n\t\tport:\t1\n\t\t\tstate:\tPORT_ACTIVE (4)\n\t\t\tlink_layer:\tInfiniBand\n\n"
    )
    cluster = replicate(read(listed(*["NVIDIA H200"] * 8) + "".join(hca.format(n=n) for n in range(8))), 2)
    assert cluster.fabric.bytes_per_s_per_gpu is None
    rates = rates_of(cluster)
    assert rates.fabric_bytes_per_s == 50e9
    assert any("fabric 50 GB/s a GPU: its rate is not known, this is what 8 MT4129 can do" in a for a in rates.assumed)


HCA = (
    "hca_id:\t{name}\n\tsys_image_guid:\t{guid}\n\tvendor_id:\t{vendor}\n\tvendor_part_id:\t{part}\n"
    "\t\tport:\t1\n\t\t\tstate:\tPORT_ACTIVE (4)\n\t\t\tlink_layer:\t{layer}\n\n"
)


@pytest.mark.parametrize(
    ("name", "vendor", "part", "layer", "model", "rate"),
    [
        ("bnxt_re{n}", "0x14e4", 0x1760, "Ethernet", "14e4:1760", 50e9),
        ("rdmap{n}s0", "0x1d0f", 0xEFA2, "Unspecified", "1d0f:efa2", 25e9),
        ("irdma{n}", "0x8086", 0x1592, "Ethernet", "8086:1592", 12.5e9),
    ],
)
def test_cards_of_every_maker_are_known_by_their_numbers(
    read: Read, name: str, vendor: str, part: int, layer: str, model: str, rate: float
) -> None:
    ports = "".join(
        HCA.format(name=name.format(n=n), guid=f"5e25:73ff:fe00:000{n}", vendor=vendor, part=part, layer=layer)
        for n in range(8)
    )
    front = HCA.format(name="mlx5_0", guid="5e25:73ff:fe00:0010", vendor="0x02c9", part=4125, layer="Ethernet")
    cluster = replicate(read(listed(*["NVIDIA H200"] * 8) + ports + front), 2)
    assert [n.model for n in cluster.nodes[0].nics if n.rail] == [model] * 8
    assert rates_of(cluster).fabric_bytes_per_s == rate


def test_many_ports_of_an_unknown_rate_go_before_one_that_is_known(read: Read) -> None:
    ports = "".join(f"link bnxt_re{n}/1 state ACTIVE physical_state LINK_UP netdev ens{n}np0\n" for n in range(8))
    front = HCA.format(name="mlx5_0", guid="5e25:73ff:fe00:0010", vendor="0x02c9", part=4125, layer="Ethernet")
    nics = read(listed(*["NVIDIA H200"] * 8) + ports + front).nodes[0].nics
    assert {n.name for n in nics if n.rail} == {f"bnxt_re{n}" for n in range(8)}


def test_interfaces_named_for_rdma_are_the_rails(read: Read) -> None:
    ports = "".join(f"link mlx5_{n}/1 state ACTIVE physical_state LINK_UP netdev rdma{n}\n" for n in range(8))
    nics = (
        read(
            listed(*["NVIDIA H100 80GB HBM3"] * 8)
            + ports
            + "link mlx5_8/1 state ACTIVE physical_state LINK_UP netdev eth0\n"
        )
        .nodes[0]
        .nics
    )
    assert [n.name for n in nics if not n.rail] == ["mlx5_8"]
    assert "eth0 is not named for RDMA" in (nics[8].why_not or "")


@pytest.mark.parametrize(("with_ip", "down"), [(7, ["mlx5_7"]), (1, [])])
def test_down_is_a_port_only_where_most_have_an_interface_up(read: Read, with_ip: int, down: list[str]) -> None:
    ports = "".join(f"mlx5_{n} port 1 ==> ib{n} ({'Up' if n < with_ip else 'Down'})\n" for n in range(8))
    cluster = read(listed(*["NVIDIA H100 80GB HBM3"] * 8) + ports)
    assert [n.name for n in cluster.nodes[0].nics if n.up is False] == down
    assert [f.severity for f in examine(cluster) if f.check == "port-down"] == ["WARN"] * len(down)


def test_a_port_that_waits_for_a_subnet_manager_is_told_so(read: Read) -> None:
    ports = [(f"mlx5_{n}", "MT4129", "Active", "LinkUp", 400, "InfiniBand") for n in range(7)]
    cluster = read(
        listed(*["NVIDIA H200"] * 8)
        + ibstat([*ports, ("mlx5_7", "MT4129", "Initializing", "LinkUp", 400, "InfiniBand")])
    )
    assert cluster.nodes[0].nics[7].state == "INIT"
    assert any("waits (INIT)" in f.saw for f in examine(cluster))


def test_ports_that_share_a_card_share_its_rate(read: Read) -> None:
    """ConnectX-8 as two ports of 400 Gb/s carries its 800."""
    ports = [(f"mlx5_{n}", "MT4131", "Active", "LinkUp", 400, "Ethernet") for n in range(16)]
    text = listed(*["NVIDIA B300 SXM6 AC"] * 8) + ibstat(ports)
    assert [f.check for f in examine(read(text)) if f.check == "port-rate-all"] == ["port-rate-all"]
    for n in range(16):
        text = text.replace(f"CA 'mlx5_{n}'\n", f"CA 'mlx5_{n}'\n\tSystem image GUID: 0x{n // 2 + 1:016x}\n", 1)
    assert not [f for f in examine(read(text)) if f.check == "port-rate-all"]


def test_slow_functions_beside_dark_rails_are_none_though_each_has_a_card_of_its_own(read: Read) -> None:
    ports = [
        (f"mlx5_{n}", "MT4129", *("Active LinkUp 100" if 4 <= n < 8 else "Down Polling 400").split(), "InfiniBand")
        for n in range(12)
    ]
    text = ibstat(ports)  # type: ignore[arg-type]
    lines = [
        line
        for at, one in enumerate(text.split("CA '")[1:])
        for line in (f"CA '{one}".replace("\tPort 1:", f"\tSystem image GUID: 0x{at + 1:016x}\n\tPort 1:"),)
    ]
    cluster = read(listed(*["NVIDIA B200"] * 8) + "".join(lines))
    assert [n.name for n in cluster.nodes[0].nics if n.rail] == [f"mlx5_{n}" for n in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert {f.check for f in examine(cluster) if f.severity == "FAIL"} == {"port-down"}


def test_the_dark_port_of_a_spark_is_no_fault_in_a_listing_either(read: Read) -> None:
    hca = (
        "hca_id:\t{name}\n\tsys_image_guid:\t4cbb:4700:0000:0001\n\tvendor_id:\t0x02c9\n\tvendor_part_id:\t4129\n"
        "\t\tport:\t1\n\t\t\tstate:\tPORT_{state}\n\t\t\tlink_layer:\tEthernet\n\n"
    )
    names = {
        "rocep1s0f0": "ACTIVE (4)",
        "rocep1s0f1": "DOWN (1)",
        "roceP2p1s0f0": "ACTIVE (4)",
        "roceP2p1s0f1": "DOWN (1)",
    }
    cluster = replicate(
        read(listed("NVIDIA GB10") + "".join(hca.format(name=name, state=state) for name, state in names.items())), 2
    )
    assert [n.name for n in cluster.nodes[0].nics if n.rail] == ["rocep1s0f0", "roceP2p1s0f0"]
    bare = read(
        listed("NVIDIA GB10") + "rocep1s0f0 port 1 ==> enp1s0f0np0 (Up)\nroceP2p1s0f0 port 1 ==> enP2p1s0f0np0 (Up)\n"
    )
    assert rates_of(replicate(bare, 2)).fabric_bytes_per_s == 25e9
    assert not [f for f in examine(cluster) if f.severity == "FAIL" or f.check == "port-rate-all"]


def test_trays_that_slurm_lists_fill_racks_in_order_and_say_so(read: Read) -> None:
    tray = "NodeName=r{n} CoresPerSocket=72\n   Gres=gpu:nvidia_gb200:4(S:0-1)\n   Sockets=2\n   State=IDLE\n"
    cluster = read("".join(tray.format(n=n) for n in range(20)))
    assert [len(d) for d in cluster.nvlink_domains] == [72, 8]
    assert any("taken for trays of NVLink racks, 18 to a rack" in n for n in cluster.notes)


def test_nodes_that_slurm_would_start_are_there_and_those_that_are_down_where_no_other_is(read: Read) -> None:
    node = "NodeName=g{n} CoresPerSocket=64\n   Gres=gpu:nvidia_l40s:4\n   Sockets=2\n   State={state}\n"
    asleep = node.format(n=1, state="IDLE+CLOUD+POWERED_DOWN")
    down = node.format(n=2, state="DOWN*+DRAIN")
    both = read(asleep + down)
    assert [n.hostname for n in both.nodes] == ["g1"]
    assert "g2 not up: left out" in both.notes
    alone = read(down)
    assert [n.hostname for n in alone.nodes] == ["g2"]
    assert "g2 not up: planned for as if up" in alone.notes


@pytest.mark.parametrize(
    ("listed_as", "name"),
    [
        ("H200 SXM 141GB", "NVIDIA H200"),
        ("H100 SXM5 80GB", "NVIDIA H100 80GB HBM3"),
        ("H100 SXM5 64GB", "NVIDIA H100 SXM5 64GB"),
        ("HGX GB200", "NVIDIA GB200"),
    ],
)
def test_names_of_the_pci_repository_are_those_of_products(read: Read, listed_as: str, name: str) -> None:
    cluster = read(f"01:00.0 3D controller: NVIDIA Corporation GH100 [{listed_as}] (rev a1)\n")
    assert [g.name for g in cluster.nodes[0].gpus] == [name]


@pytest.mark.parametrize(
    ("listed_as", "kind", "model", "rate"),
    [
        ("Ethernet controller: Broadcom Inc. and subsidiaries Device 1760 (rev 11)", "roce", "14e4:1760", 50e9),
        ("Ethernet controller: Cray Inc Device 0501", "slingshot", "17db:0501", 25e9),
        ("Ethernet controller: Amazon.com, Inc. Device efa2", "efa", "1d0f:efa2", 25e9),
        ("Fabric controller: Cornelis Networks Device 0001 (rev 10)", "omnipath", "434e:0001", 50e9),
        ("Infiniband controller: Mellanox Technologies Device 1023", "infiniband", "15b3:1023", 100e9),
        ("Ethernet controller: Unheard Of Inc. Device 1760", "ethernet", "Unheard Of Inc. Device 1760", None),
    ],
)
def test_devices_that_the_list_only_numbers_are_known(
    read: Read, listed_as: str, kind: str, model: str, rate: float | None
) -> None:
    gpu = "01:00.0 3D controller: NVIDIA Corporation Device 2901 (rev a1)\n"
    cluster = read(f"{gpu}02:00.0 {listed_as}\n")
    assert [g.name for g in cluster.nodes[0].gpus] == ["NVIDIA B200"]
    assert [(n.kind, n.model) for n in cluster.nodes[0].nics] == [(kind, model)]
    assert rates_of(replicate(cluster, 2)).fabric_bytes_per_s == (rate or 12.5e9)


def lspci_b200(*more: str) -> str:
    gpus = [f"{bus}:00.0 3D controller: NVIDIA Corporation GB100 [B200] (rev a1)" for bus in ("03", "23", "43", "63")]
    return "\n".join((*gpus, *more)) + "\n"


def test_many_functions_of_one_card_on_a_b200_board_manage_its_switches(read: Read) -> None:
    """Also where a list of PCI devices has no rates."""
    functions = [f"75:00.{n} Infiniband controller: Mellanox Technologies MT2910 Family [ConnectX-7]" for n in range(4)]
    front = "c5:00.0 Ethernet controller: Mellanox Technologies MT43244 BlueField-3 integrated ConnectX-7"
    nics = read(lspci_b200(*functions, front)).nodes[0].nics
    assert [n.pci for n in nics if n.rail] == ["0000:c5:00.0"]
    assert {n.manages_switches for n in nics if not n.rail} == {True}
    two = read(lspci_b200(*functions[:2])).nodes[0].nics
    assert [n.rail for n in two] == [True, True]


@pytest.mark.parametrize(
    "card",
    [
        "Broadcom Inc. and subsidiaries BCM57508 NetXtreme-E 10Gb/25Gb/40Gb/50Gb/100Gb/200Gb Ethernet",
        "AMD Pensando Systems DSC Ethernet Controller",
    ],
)
def test_cards_sold_for_roce_are_rails_beside_plain_ethernet(read: Read, card: str) -> None:
    plain = "46:00.0 Ethernet controller: Intel Corporation Ethernet Controller X710 for 10GBASE-T (rev 02)"
    nics = read(lspci_b200(f"06:00.0 Ethernet controller: {card}", plain)).nodes[0].nics
    assert [(n.pci, n.kind) for n in nics if n.rail] == [("0000:06:00.0", "roce")]


def test_a_node_with_more_gpus_than_another_is_judged_with_all_of_them(read: Read) -> None:
    hosts = "".join(
        f"[ops@{host} ~]$ nvidia-smi -L\n{listed(*['NVIDIA H200'] * n)}" for host, n in (("a1", 8), ("a2", 7))
    )
    cluster = read(hosts)
    assert [len(n.gpus) for n in cluster.nodes] == [7, 7]
    assert [f.node for f in examine(cluster) if f.check == "gpu-board"] == ["a2"]


def test_gpus_of_another_maker_are_named_as_what_they_are(read: Read) -> None:
    with pytest.raises(ProbeError, match="another maker than NVIDIA"):
        read(
            '<system version="1"><cpu numaid="0"><pci busid="0000:01:00.0" class="0x030200" vendor="0x1002"/></cpu></system>'
        )

"""Ports from sysfs: what each is, which are the rails, and why the others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.hardware.cluster import Fabric, Gpu, Nic
from parlaunch_probes import Host, fabric, rails
from parlaunch_probes.node import probe
from parlaunch_probes.nvml import NoNvml
from tests.probes import tree
from tests.probes.tree import AMAZON, ETHERNET_CARD, IB_CARD, MELLANOX, Tree


def ports(root: Path, gpus: tuple[Gpu, ...] = ()) -> dict[str, Nic]:
    return {n.name: n for n in rails.choose(fabric.read(Host(root), gpus, vm=False))}


def card(
    t: Tree,
    bus: str,
    numa: int = 0,
    driver: str = "mlx5_core",
    kind: str = IB_CARD,
    vendor: str = MELLANOX,
    device: str = "0x1021",
) -> str:
    return t.pci(f"pci0000:{bus}/0000:{bus}:01.0/0000:{int(bus, 16) + 1:02x}:00.0", numa, driver, kind, vendor, device)


def test_an_infiniband_port_is_read_whole(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("dev/null", "")
    t.verbs("mlx5_0", card(t, "10", 1), link_downed=2, symbol_error=0)
    nic = ports(tmp_path)["mlx5_0"]
    assert (nic.kind, nic.port, nic.pci, nic.numa) == ("infiniband", 1, "0000:11:00.0", 1)
    assert (nic.bytes_per_s, nic.up, nic.state, nic.physical_state) == (50e9, True, "ACTIVE", "LinkUp")
    assert (nic.rate, nic.driver, nic.model, nic.board) == (
        "400 Gb/sec (4X NDR)",
        "mlx5_core",
        "MT4129",
        "MT_0000000838",
    )
    assert (nic.rail, nic.why_not, nic.errors, nic.uverbs) == (True, None, (("link_downed", 2),), True)
    assert (nic.virtual_function, nic.bond, nic.card) == (False, None, "0000:11:00.0")


def test_roce_is_told_by_its_link_layer_not_by_its_rate(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.verbs("mlx5_0", card(t, "10", kind=ETHERNET_CARD), layer="Ethernet", netdev="ens1np0")
    nic = ports(tmp_path)["mlx5_0"]
    assert (nic.kind, nic.netdev, nic.mtu) == ("roce", "ens1np0", 1500)
    assert "ens1np0" not in ports(tmp_path)  # the interface of a port is no port of its own


@pytest.mark.parametrize("driver", ["efa", None])
def test_efa_is_told_by_driver_or_device_not_by_class(tmp_path: Path, driver: str | None) -> None:
    t = Tree(tmp_path)
    at = t.pci("pci0000:10/0000:10:00.0", 0, driver, ETHERNET_CARD, AMAZON, "0xefa2")
    t.verbs("rdmap16s0", at, layer="Unspecified", rate="100 Gb/sec (4X EDR)")
    assert (ports(tmp_path)["rdmap16s0"].kind, ports(tmp_path)["rdmap16s0"].rail) == ("efa", True)


def test_a_port_that_is_down_has_no_rate(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.verbs("mlx5_0", card(t, "10"))
    t.verbs("mlx5_1", card(t, "20"), state="1: DOWN", phys="2: Polling", rate="40 Gb/sec (4X QDR)")
    t.verbs("mlx5_2", card(t, "30"), state="2: INIT")
    found = ports(tmp_path)
    assert (found["mlx5_1"].bytes_per_s, found["mlx5_1"].up, found["mlx5_1"].rail) == (None, False, False)
    assert found["mlx5_1"].why_not == "its state is DOWN, the link Polling"
    assert found["mlx5_2"].why_not == "its state is INIT: no subnet manager has configured it"


def test_the_rails_are_the_fast_ports_beside_the_gpus(tmp_path: Path) -> None:
    tree.dgx_h100(tmp_path)
    cluster = probe(Host(tmp_path), NoNvml(), environ={})
    (node,) = cluster.nodes
    assert [n.name for n in node.nics if n.rail] == [f"mlx5_{i}" for i in (0, 1, 2, 3, 6, 7, 8, 9)]
    why = {n.name: n.why_not for n in node.nics}
    assert why["mlx5_4"] == "shares no PCIe switch with a GPU, as the rails do: a storage or front-end port"
    assert why["eno1"] == "plain Ethernet: 8 infiniband ports carry the GPU traffic"
    assert why["docker0"] == "made by software (bridge, container or tunnel)"
    assert cluster.fabric == Fabric(kind="infiniband", rails=8, bytes_per_s_per_gpu=50e9)
    by = {n.name: dict(n.distances) for n in node.nics}
    assert (by["mlx5_0"][0], by["mlx5_0"][1], by["mlx5_0"][7]) == ("PIX", "NODE", "SYS")
    assert "mlx5_4:1 left out: " + (why["mlx5_4"] or "") in cluster.notes


def test_front_end_ports_of_another_speed_are_no_rails(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for at in range(8):
        t.verbs(f"mlx5_{at}", card(t, f"{0x10 + 8 * at:02x}"), layer="Ethernet")
    for at in range(4):
        t.verbs(
            f"mlx5_1{at}", card(t, f"{0x80 + 8 * at:02x}"), layer="Ethernet", rate="100 Gb/sec (2X HDR)", model="MT4125"
        )
    t.verbs("mlx5_bond_0", card(t, "f0"), layer="Ethernet", rate="200 Gb/sec (4X HDR)")
    found = ports(tmp_path)
    assert [n for n, nic in found.items() if nic.rail] == [f"mlx5_{at}" for at in range(8)]
    assert found["mlx5_10"].why_not == "100 Gb/s where the rails run at 400 Gb/s"
    assert found["mlx5_bond_0"].why_not == "200 Gb/s where the rails run at 400 Gb/s"
    assert found["mlx5_bond_0"].bond == "mlx5_bond_0"


def test_bonds_are_rails_where_there_is_nothing_else(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for at in range(4):
        t.verbs(f"mlx5_bond_{at}", card(t, f"{0x10 + 8 * at:02x}"), layer="Ethernet", rate="200 Gb/sec (4X HDR)")
    assert all(n.rail for n in ports(tmp_path).values())


def test_a_slow_rail_is_left_out_and_says_so(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for at in range(4):
        t.verbs(
            f"mlx5_{at}",
            card(t, f"{0x10 + 8 * at:02x}"),
            rate="200 Gb/sec (2X NDR)" if at == 2 else "400 Gb/sec (4X NDR)",
        )
    assert ports(tmp_path)["mlx5_2"].why_not == "200 Gb/s where the rails run at 400 Gb/s"


def test_infiniband_goes_before_one_ethernet_port_of_equal_rate(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.verbs("mlx5_0", card(t, "10"), layer="Ethernet", rate="200 Gb/sec (4X HDR)")
    for at in range(1, 9):
        t.verbs(f"mlx5_{at}", card(t, f"{0x10 + 8 * at:02x}"), rate="200 Gb/sec (4X HDR)")
    found = ports(tmp_path)
    assert [n for n, nic in found.items() if nic.rail] == [f"mlx5_{at}" for at in range(1, 9)]
    assert found["mlx5_0"].why_not == "roce at 200 Gb/s: the rails are infiniband"


def test_software_devices_have_no_card_behind_them(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("sys/devices/virtual/infiniband/rxe0/x", "")
    t.verbs("rxe0", "sys/devices/virtual", layer="Ethernet")
    t.verbs("mlx5_0", card(t, "10"))
    assert ports(tmp_path)["rxe0"].why_not == "a software device: no PCI device behind it"


def test_a_flat_copy_without_device_links_is_taken_as_it_is(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for at in (0, 1):
        for key, value in (
            ("state", "4: ACTIVE"),
            ("phys_state", "5: LinkUp"),
            ("rate", "400 Gb/sec (4X NDR)"),
            ("link_layer", "InfiniBand"),
        ):
            t.put(f"sys/class/infiniband/mlx5_{at}/ports/1/{key}", value)
    found = ports(tmp_path)
    assert [nic.rail for nic in found.values()] == [True, True]
    assert {nic.pci for nic in found.values()} == {None}


def test_virtual_functions_beside_their_card_are_for_guests(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.verbs("mlx5_0", card(t, "10"))
    for at in range(1, 4):
        vf = t.pci(f"pci0000:10/0000:10:01.0/0000:11:00.{at}", 0, "mlx5_core", IB_CARD, MELLANOX)
        t.link(f"{vf}/physfn", "sys/devices/pci0000:10/0000:10:01.0/0000:11:00.0")
        t.verbs(f"mlx5_{at}", vf)
    found = ports(tmp_path)
    assert [n for n, nic in found.items() if nic.rail] == ["mlx5_0"]
    assert found["mlx5_1"].virtual_function is True
    assert found["mlx5_1"].card == "0000:11:00.0"
    assert found["mlx5_1"].why_not == "a virtual function of the card 0000:11:00.0, which is here itself"


def test_ports_without_their_device_node_cannot_be_used_here(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.put("dev/null", "")
    t.verbs("mlx5_0", card(t, "10"), node=False)
    eth = t.pci("pci0000:00/0000:00:03.0", 0, "ena", ETHERNET_CARD, AMAZON)
    t.net("eth0", eth, speed=25000)
    found = ports(tmp_path)
    assert found["mlx5_0"].uverbs is False
    assert (
        found["mlx5_0"].why_not
        == "the host has it, but its /dev/infiniband node is not here: this container cannot use it"
    )
    assert found["eth0"].rail
    # A copied tree without /dev cannot say, and nothing is concluded from that.
    (tmp_path / "dev/null").unlink()
    assert ports(tmp_path)["mlx5_0"].rail


def test_a_device_that_vanishes_between_list_and_read_is_survived(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.verbs("mlx5_0", card(t, "10"))
    (tmp_path / "sys/class/infiniband/mlx5_8").symlink_to("../../gone")
    assert list(ports(tmp_path)) == ["mlx5_0"]


def test_a_second_port_has_an_interface_of_its_own(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    at = card(t, "10")
    t.verbs("mlx4_0", at)
    t.verbs("mlx4_0", at, port=2)
    for number, name in enumerate(("ib0", "ib1")):
        t.net(name, at, kind=32, dev_port=number)
    found = fabric.read(Host(tmp_path), (), vm=False)
    assert [(n.port, n.netdev) for n in found if n.name == "mlx4_0"] == [(1, "ib0"), (2, "ib1")]


def test_plain_ethernet_and_what_is_none(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for at, name in enumerate(("ens1", "ens2", "ens3")):
        t.net(name, card(t, f"{0x10 + 8 * at:02x}", driver="ice", kind=ETHERNET_CARD), speed=100000)
    t.net("eno1", card(t, "40", driver="igb", kind=ETHERNET_CARD), speed=1000)
    t.net("eno2", card(t, "48", driver="igb", kind=ETHERNET_CARD), state="down", speed=None)
    t.net("bond0", speed=200000, bonding__slaves="ens1 ens2")
    for name in ("ens1", "ens2"):
        t.link(f"sys/class/net/{name}/master", "sys/class/net/bond0")
    for name in ("veth1", "docker0", "br-12ab", "tun0", "flannel.1", "virbr0"):
        t.net(name, speed=10000, kind=65534 if name == "tun0" else 1)
    t.net("lo", state="unknown", speed=None, kind=772)
    t.put("sys/class/net/bonding_masters", "bond0")
    found = ports(tmp_path)
    assert [n for n, nic in found.items() if nic.rail] == ["bond0"]
    assert (found["bond0"].bytes_per_s, found["bond0"].bond) == (25e9, "bond0")
    assert found["ens1"].why_not == "part of the bond bond0"
    assert found["ens3"].why_not == "100 Gb/s where the rails run at 200 Gb/s"
    assert found["eno2"].why_not == "its state is down"
    assert "lo" not in found
    assert all(not found[n].rail for n in ("veth1", "docker0", "br-12ab", "tun0", "flannel.1", "virbr0"))


def test_a_virtio_interface_is_found_at_its_parent_and_has_no_speed(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    at = t.pci("pci0000:00/0000:00:03.0", -1, "virtio-pci", ETHERNET_CARD)
    t.put(f"{at}/virtio2/x", "")
    t.net("eth0", f"{at}/virtio2", speed=-1)
    nic = ports(tmp_path)["eth0"]
    assert (nic.pci, nic.bytes_per_s, nic.rail) == ("0000:00:03.0", None, True)


def test_in_a_pod_the_default_route_is_the_way_out(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.net("eth0", speed=10000)  # one end of a veth pair: no device behind it
    t.put(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0",
    )
    cluster = probe(Host(tmp_path), NoNvml(), environ={})
    assert cluster.nodes[0].default_netdev == "eth0"
    assert cluster.fabric == Fabric(kind="ethernet", rails=1)


@pytest.mark.parametrize(
    ("files", "open_modules", "want"),
    [
        ({"sys/module/nvidia_peermem/version": "1"}, None, (True, "nvidia_peermem")),
        ({"proc/modules": "nvidia_peermem 16384 0 - Live 0x0"}, None, (True, "nvidia_peermem")),
        ({"sys/kernel/mm/memory_peers/nv_mem/version": "1.3"}, None, (True, "nv_peer_mem")),
        ({"proc/sys/kernel/osrelease": "5.15.0-1", "proc/modules": "nvidia 1"}, True, (True, "dma-buf")),
        ({"proc/sys/kernel/osrelease": "5.4.0-1", "proc/modules": "nvidia 1"}, True, (False, None)),
        ({"proc/sys/kernel/osrelease": "5.15.0-1", "proc/modules": "nvidia 1"}, False, (False, None)),
        ({"proc/sys/kernel/osrelease": "5.15.0-1"}, False, (None, None)),
        ({}, None, (None, None)),
    ],
)
def test_gpudirect_is_on_off_or_unknown(
    tmp_path: Path, files: dict[str, str], open_modules: bool | None, want: tuple[bool | None, str | None]
) -> None:
    t = Tree(tmp_path)
    for path, text in files.items():
        t.put(path, text)
    assert fabric.gpudirect(Host(tmp_path), open_modules) == want


NICS = st.builds(
    Nic,
    name=st.sampled_from([f"mlx5_{n}" for n in range(12)]),
    kind=st.sampled_from(["infiniband", "roce", "efa", "ethernet"]),
    bytes_per_s=st.sampled_from([None, 12.5e9, 25e9, 50e9]),
    up=st.sampled_from([True, True, True, False, None]),
    why_not=st.sampled_from([None, None, None, "left out"]),
    distances=st.sampled_from([(), ((0, "PIX"),), ((0, "NODE"),), ((0, "SYS"), (1, "PXB"))]),
    bond=st.sampled_from([None, None, "bond0"]),
)


@settings(max_examples=200)
@given(st.lists(NICS, max_size=12, unique_by=lambda n: n.name))
def test_rails_are_usable_equal_ports_and_every_other_port_says_why(nics: list[Nic]) -> None:
    chosen = rails.choose(nics)
    taken = [n for n in chosen if n.rail]
    assert [replace(n, rail=False, why_not=None) for n in chosen] == [
        replace(n, rail=False, why_not=None) for n in nics
    ]
    assert all((n.why_not is None) == n.rail for n in chosen)
    assert len({(n.kind, n.bytes_per_s) for n in taken}) <= 1
    assert all(n.up is not False for n in taken)
    usable = [n for n in nics if n.why_not is None and n.up is not False]
    assert bool(taken) == bool(usable)
    assert rails.choose(tuple(replace(n, rail=False, why_not=None) if n.rail else n for n in chosen)) == chosen


def dark(t: Tree, buses: tuple[str, ...], **more: str) -> None:
    for at, bus in enumerate(buses):
        t.verbs(f"mlx5_{at}", card(t, bus), state="1: DOWN", phys="3: Disabled", rate="10 Gb/sec (4X SDR)", **more)  # type: ignore[arg-type]


def gpus(count: int) -> list[Gpu]:
    return [Gpu(index=at, name="x") for at in range(count)]


def chosen(root: Path, gpus: int) -> list[str]:
    return [n.name for n in rails.choose(fabric.read(Host(root), (), vm=False), gpus) if n.rail]


def test_fast_ports_that_are_all_down_are_the_rails_and_not_the_slow_one_that_is_up(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    dark(t, ("10", "20", "30", "40"))
    t.net("eno1", card(t, "60", driver="i40e", kind=ETHERNET_CARD), speed=10000)
    t.verbs("mlx5_9", card(t, "70"), model="MT4125", rate="100 Gb/sec (4X EDR)", layer="Ethernet")
    assert chosen(tmp_path, 8) == ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]
    found = fabric.read(Host(tmp_path), (), vm=False)
    assert rails.fabric_of(rails.choose(found, 8), gpus(8)) == Fabric(kind="infiniband", rails=4)
    assert rails.dark_notes(rails.choose(found, 8)) == ["all 4 rails are down: mlx5_0:1, mlx5_1:1, mlx5_2:1, mlx5_3:1"]


def test_ports_beside_the_gpus_that_are_all_down_are_the_rails_whatever_storage_port_is_up(tmp_path: Path) -> None:
    """Of one model, as in a DGX: what is up is beside no GPU."""
    t = Tree(tmp_path)
    places = []
    for at, bus in enumerate(("10", "20", "30", "40")):
        base = f"pci0000:{bus}/0000:{bus}:01.0/0000:{int(bus, 16) + 1:02x}:00.0"
        t.gpu(f"{base}/0000:{int(bus, 16) + 2:02x}:00.0/0000:{int(bus, 16) + 3:02x}:00.0", 0)
        places.append(Gpu(index=at, name="x", pci=f"0000:{int(bus, 16) + 3:02x}:00.0", numa=0))
        port = t.pci(
            f"{base}/0000:{int(bus, 16) + 2:02x}:01.0/0000:{int(bus, 16) + 4:02x}:00.0",
            0, "bnxt_en", ETHERNET_CARD, "0x14e4", "0x1760",
        )  # fmt: skip
        driver = "Broadcom NetXtreme-C/E RoCE Driver HCA"
        t.verbs(f"bnxt_re{at}", port, state="1: DOWN", phys="3: Disabled", layer="Ethernet", model=driver)
    storage = t.pci("pci0000:60/0000:60:01.0/0000:61:00.0", 0, "bnxt_en", ETHERNET_CARD, "0x14e4", "0x1760")
    t.verbs("bnxt_re9", storage, layer="Ethernet", model="")
    found = rails.choose(fabric.read(Host(tmp_path), places, vm=False), 4)
    assert {n.model for n in found} == {"14e4:1760"}
    assert [n.name for n in found if n.rail] == [f"bnxt_re{at}" for at in range(4)]


def test_an_unplugged_card_of_a_workstation_is_no_set_of_rails(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for function in (0, 1):
        at = t.pci(f"pci0000:10/0000:10:01.0/0000:11:00.{function}", 0, "mlx5_core", IB_CARD, MELLANOX, "0x1021")
        t.verbs(f"mlx5_{function}", at, state="1: DOWN", phys="3: Disabled")
    t.net("eno1", card(t, "60", driver="i40e", kind=ETHERNET_CARD), speed=10000)
    assert chosen(tmp_path, 2) == ["eno1"]


@pytest.mark.parametrize("vpd", [True, False])
def test_functions_that_manage_nvswitches_are_known_by_their_vpd_or_by_their_pattern(tmp_path: Path, vpd: bool) -> None:
    tree.hgx_b200(tmp_path, vpd=vpd)
    found = {
        n.name: n for n in fabric.read(Host(tmp_path), [Gpu(index=0, name="x", compute_capability=(10, 0))], vm=False)
    }
    assert [n for n, nic in found.items() if nic.manages_switches] == ["mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5"]
    assert ("taken for" in (found["mlx5_2"].why_not or "")) is not vpd


def test_one_rail_that_lost_its_lanes_is_slow_and_no_management_function(tmp_path: Path) -> None:
    t = tree.hgx_b200(tmp_path, vpd=True)
    t.put("sys/class/infiniband/mlx5_6/ports/1/rate", "100 Gb/sec (1X NDR)")
    found = {
        n.name: n for n in fabric.read(Host(tmp_path), [Gpu(index=0, name="x", compute_capability=(10, 0))], vm=False)
    }
    assert found["mlx5_6"].manages_switches is None


def test_hopper_has_no_management_functions_whatever_runs_slow(tmp_path: Path) -> None:
    tree.hgx_b200(tmp_path)
    found = fabric.read(Host(tmp_path), [Gpu(index=0, name="x", compute_capability=(9, 0))], vm=False)
    assert not [n for n in found if n.manages_switches]


def test_two_functions_of_one_port_carry_its_rate_once(tmp_path: Path) -> None:
    """A card wired to both sockets: one chip, one port, two PCI functions."""
    t = Tree(tmp_path)
    for at, bus in enumerate(("10", "80")):
        made = card(t, bus, at)
        t.verbs(f"mlx5_{at}", made)
        t.put(f"{made}/infiniband/mlx5_{at}/sys_image_guid", "9803:9b03:0000:0042")
    nics = rails.choose(fabric.read(Host(tmp_path), (), vm=False), 2)
    assert [n.twin for n in nics] == ["mlx5_0", "mlx5_0"]
    assert rails.fabric_of(nics, gpus(2)) == Fabric(kind="infiniband", rails=2, bytes_per_s_per_gpu=25e9)


@pytest.mark.parametrize("cabled", [(1,), (0, 1)])
def test_a_spark_reaches_its_ports_through_lanes_for_one_of_them(tmp_path: Path, cabled: tuple[int, ...]) -> None:
    tree.spark(tmp_path, cabled)
    gb10 = [Gpu(index=0, name="NVIDIA GB10", compute_capability=(12, 1))]
    nics = rails.choose(fabric.read(Host(tmp_path), gb10, vm=False), 1)
    assert len([n for n in nics if n.rail]) == 2 * len(cabled)
    assert rails.fabric_of(nics, gb10).bytes_per_s_per_gpu == 25e9


def test_slingshot_is_seen_without_its_interfaces(tmp_path: Path) -> None:
    """In a container with a network of its own the adapters stand under /sys/class/cxi alone."""
    t = Tree(tmp_path)
    at = t.pci("pci0000:00/0000:00:01.1/0000:01:00.0", 0, "cxi_ss1", ETHERNET_CARD, "0x17db", "0x0501")
    t.put(f"{at}/cxi/cxi0/x", "")
    t.link(f"{at}/cxi/cxi0/device", at)
    t.link("sys/class/cxi/cxi0", f"{at}/cxi/cxi0")
    t.put(f"{at}/port/speed", "BS_200G")
    t.put(f"{at}/port/link", "up")
    nic = ports(tmp_path)["cxi0"]
    assert (nic.kind, nic.bytes_per_s, nic.up, nic.rail) == ("slingshot", 25e9, True, True)
    t.net("hsn0", at, speed=200000)
    assert [n for n, nic in ports(tmp_path).items() if nic.rail] == ["hsn0"], "the interface, when it is shown"


def test_side_doors_are_never_rails(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    for name in ("wlan0", "wlp3s0", "usb0", "enx001122334455", "tmfifo_net0", "tailscale0", "bmc0"):
        t.net(name, card(t, f"{0x10 + len(name) * 4:02x}", driver="x", kind=ETHERNET_CARD), speed=100000)
    wifi = card(t, "b0", driver="iwlwifi", kind="0x028000")
    t.net("eth7", wifi, speed=100000)
    t.put(f"{wifi}/net/eth7/phy80211/name", "phy0")
    assert not [n for n, nic in ports(tmp_path).items() if nic.rail]

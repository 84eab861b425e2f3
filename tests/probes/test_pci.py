"""Where devices sit on the PCI bus, how far apart they are, and what the bridges between them do."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch_probes import Host, pci
from parlaunch_probes.text import cpu_list, pci_address
from tests.probes.tree import ETHERNET_CARD, IB_CARD, MELLANOX, Tree, acs_config, dgx_h100


def dgx1(tree: Tree) -> dict[str, str]:
    """Two sockets; under each one host bridge with two switches, each with two GPUs and a port."""
    paths = {}
    for socket, root, ports in ((0, "00", ("02", "03")), (1, "80", ("02", "03"))):
        names = (("06", "07", "05"), ("0a", "0b", "0c")) if socket == 0 else (("85", "86", "84"), ("89", "8a", "8b"))
        for port, (a, b, nic) in zip(ports, names, strict=True):
            base = f"pci0000:{root}/0000:{root}:{port}.0/0000:{a[0]}{4 + socket}:{port}.0"
            for slot, bus in enumerate((a, b)):
                paths[bus] = tree.gpu(
                    f"{base}/0000:{a[0]}{4 + socket}:1{slot}.{slot}/0000:{bus}:00.0", socket, "0x1db5"
                )
            paths[nic] = tree.pci(
                f"{base}/0000:{a[0]}{4 + socket}:18.0/0000:{nic}:00.0", socket, "mlx5_core", IB_CARD, MELLANOX
            )
    return paths


def between(host: Host, a: str, b: str, *, vm: bool = False) -> str | None:
    return pci.distance(pci.place_of(host, a), pci.place_of(host, b), pci.numa_of(host, a), pci.numa_of(host, b), vm=vm)


@pytest.mark.parametrize(
    ("a", "b", "level"),
    [("06", "05", "PIX"), ("06", "07", "PIX"), ("06", "0c", "PHB"), ("06", "84", "SYS"), ("89", "8b", "PIX")],
)
def test_levels_on_a_dgx1(tmp_path: Path, a: str, b: str, level: str) -> None:
    dgx1(Tree(tmp_path))
    host = Host(tmp_path)
    assert between(host, f"0000:{a}:00.0", f"0000:{b}:00.0") == level
    assert between(host, f"0000:{b}:00.0", f"0000:{a}:00.0") == level


def test_levels_through_several_switches_and_host_bridges(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.pci("pci0001:00/0001:00:01.0/0001:01:00.0/0001:02:00.0/0001:03:00.0/0001:04:00.0/0001:05:00.0", 0)
    t.pci("pci0001:00/0001:00:01.0/0001:01:00.0/0001:02:08.0/0001:06:00.0", 0)
    t.pci("pci0001:40/0001:40:01.0/0001:41:00.0", 0)
    t.pci("pci0001:80/0001:80:01.0/0001:81:00.0", -1)
    host = Host(tmp_path)
    assert between(host, "0001:05:00.0", "0001:06:00.0") == "PXB"
    assert between(host, "0001:05:00.0", "0001:41:00.0") == "NODE"
    assert between(host, "0001:05:00.0", "0001:81:00.0") == "SYS"
    assert between(host, "0001:05:00.0", "dead:00:00.0") is None
    assert pci.numa_of(host, "0001:81:00.0") is None


def test_the_flat_bus_of_a_virtual_machine_says_nothing(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    t.gpu("pci0000:00/0000:00:05.0", -1)
    t.pci("pci0000:00/0000:00:06.0", -1, "virtio-pci", ETHERNET_CARD)
    t.pci("pci0001:00/0001:00:06.0", -1, "virtio-pci", ETHERNET_CARD)
    host = Host(tmp_path)
    assert between(host, "0000:00:05.0", "0000:00:06.0", vm=True) is None
    assert between(host, "0000:00:05.0", "0001:00:06.0", vm=True) is None
    assert between(host, "0000:00:05.0", "0000:00:06.0") == "PHB"


def test_bridges_that_redirect_between_a_gpu_and_its_port_are_named(tmp_path: Path) -> None:
    t = dgx_h100(tmp_path)
    host = Host(tmp_path)
    gpu, nic = pci.place_of(host, "0000:1b:00.0"), pci.place_of(host, "0000:1c:00.0")
    assert gpu is not None
    assert nic is not None
    assert pci.acs_redirects(host, [gpu], [gpu, nic]) == ()
    t.put("sys/bus/pci/devices/0000:1a:00.0/config", acs_config(0x1D))
    assert pci.acs_redirects(host, [gpu], [gpu, nic]) == ("0000:1a:00.0",)
    # A bridge above both is not between them, and source validation alone does not redirect.
    t.put("sys/bus/pci/devices/0000:1a:00.0/config", acs_config(0x01))
    t.put("sys/bus/pci/devices/0000:18:01.0/config", acs_config(0x1D))
    assert pci.acs_redirects(host, [gpu], [gpu, nic]) == ()


def test_a_config_space_cut_for_users_is_unknown_not_off(tmp_path: Path) -> None:
    t = dgx_h100(tmp_path, readable_config=False)
    for bridge in ("0000:1a:00.0", "0000:1a:01.0"):
        t.put(f"sys/bus/pci/devices/{bridge}/config", acs_config(0x1D)[:64])
    host = Host(tmp_path)
    places = [p for a in ("0000:1b:00.0", "0000:1c:00.0") if (p := pci.place_of(host, a)) is not None]
    assert pci.acs_redirects(host, places[:1], places) is None


@pytest.mark.parametrize(
    "config", [b"", b"\0" * 64, b"\xff" * 4096, acs_config(0x1D)[:0x153], b"\x0d\x00\x01\x10" * 1024]
)
def test_odd_config_spaces_end(tmp_path: Path, config: bytes) -> None:
    t = dgx_h100(tmp_path, readable_config=False)
    for bridge in ("0000:1a:00.0", "0000:1a:01.0"):
        t.put(f"sys/bus/pci/devices/{bridge}/config", config)
    host = Host(tmp_path)
    places = [p for a in ("0000:1b:00.0", "0000:1c:00.0") if (p := pci.place_of(host, a)) is not None]
    assert pci.acs_redirects(host, places[:1], places) in (None, (), ("0000:1a:00.0", "0000:1a:01.0"))


def test_what_the_iommu_does_to_a_device(tmp_path: Path) -> None:
    t = Tree(tmp_path)
    gpu = t.gpu("pci0000:00/0000:00:05.0", 0)
    host = Host(tmp_path)
    assert pci.iommu(host, ["0000:00:05.0"]) is None
    (tmp_path / "sys/kernel/iommu_groups").mkdir(parents=True)
    assert pci.iommu(host, ["0000:00:05.0"]) == "off"
    t.group(gpu, 7, "DMA-FQ")
    assert pci.iommu(host, ["0000:00:05.0"]) == "translating"
    t.put("sys/kernel/iommu_groups/7/type", "identity")
    assert pci.iommu(host, ["0000:00:05.0"]) == "passthrough"


def test_nvidia_devices_by_their_class(tmp_path: Path) -> None:
    dgx_h100(tmp_path)
    found = pci.nvidia_devices(Host(tmp_path))
    assert sum(map(pci.is_gpu, found)) == 8
    assert sum(map(pci.is_nvswitch, found)) == 4
    assert {d.driver for d in found} == {"nvidia"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("00000000:1B:00.0", "0000:1b:00.0"),
        ("0000:1b:00.0", "0000:1b:00.0"),
        ("1B:00.0", "0000:1b:00.0"),
        ("00010000:00:00.0", "10000:00:00.0"),
        ("00000008:01:00.0", "0008:01:00.0"),
        ("FFFFFFFF:FFFF:FF.0", None),
        ("fffffff:ff:ff.0", None),
        ("FFFFFFFF:FF:FF.0", None),
        ("000:BA:80.0", "0000:ba:80.0"),
        ("", None),
        (None, None),
        ("0000:1b:00", None),
    ],
)
def test_pci_addresses_in_every_writing(text: str | None, want: str | None) -> None:
    assert pci_address(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("", ()),
        ("5", (5,)),
        ("3-1", ()),
        ("0-4294967295", None),
        ("a", None),
        ("1-", (1,)),
        (None, None),
        ("²", None),
    ],
)
def test_lists_of_cpus(text: str | None, want: tuple[int, ...] | None) -> None:
    assert cpu_list(text) == want

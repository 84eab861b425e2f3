"""Ports to other nodes, from sysfs: InfiniBand, RoCE, EFA, Slingshot and plain Ethernet, each with its state and place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.ports import no_way_out
from parlaunch_probes import pci, rails
from parlaunch_probes.host import Host
from parlaunch_probes.text import after_colon, gigabits

VERBS = "/sys/class/infiniband"
NET = "/sys/class/net"
CXI = "/sys/class/cxi"
COUNTERS = (
    "link_downed",
    "link_error_recovery",
    "symbol_error",
    "port_rcv_errors",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
)
LAYERS = {"InfiniBand": "infiniband", "Ethernet": "roce"}
OMNIPATH = ("hfi1", "hfi2")  # drivers; their link layer calls itself InfiniBand
SLINGSHOT = ("cxi_ss1", "cxi_core", "cxi_eth")  # drivers of HPE's Cassini
AMAZON = 0x1D0F
GB10 = (
    12,
    1,
)  # its ConnectX-7 is wired to the CPU by two links, so that each port shows as two functions (NVIDIA's DGX Spark user guide)
ETHERNET, IPOIB, LOOPBACK = 1, 32, 772


def _link_name(host: Host, path: str) -> str | None:
    real = host.real(path)
    return None if real is None else real.rpartition("/")[2]


def _numbered(names: Iterable[str]) -> list[int]:
    return sorted(int(n) for n in names if n.isascii() and n.isdigit() and len(n) < 6)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which mlx5_10 comes after mlx5_9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def read(host: Host, gpus: Iterable[Gpu], *, vm: bool) -> tuple[Nic, ...]:
    """Every port, with `why_not` set on those that cannot be rails whatever the others are."""
    gpus = tuple(gpus)
    places = {g.index: (pci.place_of(host, g.pci), g.numa) for g in gpus}
    addresses = host.addresses()
    ports = [nic for device in sorted(host.names(VERBS), key=_natural) for nic in _verbs(host, device)]
    taken = {n.netdev for n in ports if n.netdev}
    plain = [nic for name in sorted(host.names(NET), key=_natural) if (nic := _plain(host, name, taken)) is not None]
    seen = {n.pci for n in plain}
    bare = [nic for device in host.names(CXI) if (nic := _cxi(host, device)).pci not in seen]
    out = []
    for nic in (*ports, *plain, *bare):
        mine = pci.place_of(host, nic.pci)
        far = tuple(
            (index, level)
            for index, (place, numa) in places.items()
            if (level := pci.distance(place, mine, numa, nic.numa, vm=vm)) is not None
        )
        found = tuple(addresses.get(nic.netdev or nic.name, ()))
        out.append(replace(nic, distances=far, addresses=found))
    capabilities = {g.compute_capability for g in gpus}
    whole = rails.with_twins(out, [_physical_port(host, n, spark=GB10 in capabilities) for n in out])
    return _only_shown(rails.without_management(_vital(host, whole), nvlink5=nvlink5(gpus)))


def nvlink5(gpus: Iterable[Gpu]) -> bool | None:
    """Whether these GPUs are of a generation whose NVSwitches are managed through ConnectX-7 functions: data-centre
    Blackwell and later. None when no capability is known."""
    known = [g.compute_capability for g in gpus if g.compute_capability is not None]
    return any(c[0] == 10 or c[0] > 12 for c in known) if known else None


def _physical_port(host: Host, nic: Nic, *, spark: bool) -> str | None:
    """An identity that the functions of one physical port share: the chip's GUID and the function's number, as on cards
    that are wired to two sockets; on GB10 the address without its domain."""
    if nic.pci is None or nic.port is None or nic.virtual_function:
        return None
    if spark:
        return f"{nic.model} {nic.pci.partition(':')[2]} {nic.port}"
    guid = host.read(f"{VERBS}/{nic.name}/sys_image_guid")
    return None if guid is None or not guid.strip("0:") else f"{guid} {nic.pci[-1]} {nic.port}"


def _vital(host: Host, nics: tuple[Nic, ...]) -> tuple[Nic, ...]:
    """What the vital product data of InfiniBand cards says of being a way to the board's NVSwitches. Reading it takes
    long and root, so only one function is asked of each card that has several, or one that runs slow."""
    count: dict[str | None, int] = {}
    for nic in nics:
        count[nic.card] = count.get(nic.card, 0) + (nic.kind == "infiniband" and nic.virtual_function is False)
    said = {
        card: host.digest(f"{pci.DEVICES}/{card}/vpd", "manages NVSwitches", lambda content: b"SW_MNG" in content)
        for card, functions in count.items()
        if card is not None and functions > 1
    }
    return tuple(
        replace(n, manages_switches=answer) if isinstance(answer := said.get(n.card or ""), bool) else n for n in nics
    )


def _verbs(host: Host, device: str) -> list[Nic]:
    at = f"{VERBS}/{device}"
    numbers = _numbered(host.names(f"{at}/ports"))
    place = pci.place(host, f"{at}/device")
    # Without a `device` link the tree is a partial copy; a link that leads to no PCI device is a software one.
    software = place is None and host.exists(f"{at}/device")
    driver = _link_name(host, f"{at}/device/driver")
    vendor, product = host.number(f"{at}/device/vendor"), host.number(f"{at}/device/device")
    efa = driver == "efa" or (vendor == AMAZON and product is not None and product >> 4 == 0xEFA)
    virtual = place is not None and host.exists(f"{at}/device/physfn")
    nics = []
    for number in numbers:
        port = f"{at}/ports/{number}"
        layer = host.read(f"{port}/link_layer")
        kind = "efa" if efa else "omnipath" if driver in OMNIPATH else LAYERS.get(layer or "")
        state, physical = after_colon(host.read(f"{port}/state")), after_colon(host.read(f"{port}/phys_state"))
        rate = host.read(f"{port}/rate")
        up = None if state is None else state == "ACTIVE"
        gbps = gigabits(rate)
        netdev = _netdev(host, at, port, number, len(numbers))
        bond = _link_name(host, f"{NET}/{netdev}/master") if netdev else None
        bond = bond if bond and host.exists(f"{NET}/{bond}/bonding") else device if "bond" in device else None
        why = None
        if software or device.startswith(("scif", "rxe", "siw")):
            why = "a software device: no PCI device behind it"
        elif kind is None:
            why = f"its link layer is {layer or 'not known'}"
        nics.append(
            Nic(
                name=device,
                kind=kind or UNKNOWN,
                port=number,
                pci=place.address if place else None,
                numa=pci.numa_of(host, place.address) if place else None,
                netdev=netdev,
                bytes_per_s=gbps * 1e9 / 8 if gbps and up is not False else None,
                up=up,
                why_not=why,
                state=state,
                physical_state=physical,
                rate=rate,
                driver=driver,
                model=_model(host.read(f"{at}/hca_type"), vendor, product),
                board=host.read(f"{at}/board_id"),
                firmware=host.read(f"{at}/fw_ver"),
                guid=host.read(f"{at}/node_guid"),
                mtu=host.number(f"{NET}/{netdev}/mtu") if netdev else None,
                virtual_function=virtual if place else None,
                bond=bond,
                uverbs=_uverbs(host, device),
                errors=_errors(host, port),
                card=_card(host, at, place),
                pcie_width=host.number(f"{at}/device/current_link_width") or None,
                pcie_width_max=host.number(f"{at}/device/max_link_width") or None,
                pcie_transfers_per_s=_transfers(host.read(f"{at}/device/current_link_speed")),
                pcie_transfers_per_s_max=_transfers(host.read(f"{at}/device/max_link_speed")),
            )
        )
    return nics


def _model(said: str | None, vendor: int | None, product: int | None) -> str | None:
    """Mellanox's own name of the card; others write their driver's there, and are known by vendor:device."""
    if vendor and product and not re.match(r"MT\d", said or ""):
        return f"{vendor:04x}:{product:04x}"
    return said


def _transfers(said: str | None) -> float | None:
    """`32.0 GT/s PCIe` as transfers a second; None for `Unknown`, and for a function without a link of its own."""
    match = re.match(r"([0-9]{1,3}(?:\.[0-9]{1,2})?) GT/s", said or "")
    return float(match[1]) * 1e9 if match else None


def _card(host: Host, at: str, place: pci.Place | None) -> str | None:
    """Ports are functions of one device, VFs hang on a PF: one card, named by its function 0."""
    physical = pci.place(host, f"{at}/device/physfn") or place
    return None if physical is None else physical.address[:-1] + "0"


def _netdev(host: Host, at: str, port: str, number: int, ports: int) -> str | None:
    """The interface of a port. The GID table says it, but its unused entries refuse the read."""
    for entry in _numbered(host.names(f"{port}/gid_attrs/ndevs"))[:4]:
        name = host.read(f"{port}/gid_attrs/ndevs/{entry}")
        if name:
            return name
    names = host.names(f"{at}/device/net")
    if ports > 1:  # one device, several ports: the interface says which port is its own, counting from 0
        mine = [n for n in names if host.number(f"{at}/device/net/{n}/dev_port") == number - 1]
        return mine[0] if len(mine) == 1 else None
    return names[0] if names else None


def _errors(host: Host, port: str) -> tuple[tuple[str, int], ...]:
    counts = ((name, host.number(f"{port}/counters/{name}")) for name in COUNTERS)
    return tuple((name, count) for name, count in counts if count)


def _uverbs(host: Host, device: str) -> bool | None:
    """Whether the device node that libibverbs opens is here. A tree whose /dev was not copied cannot say."""
    if not host.exists("/dev/null"):
        return None
    for node in host.names("/sys/class/infiniband_verbs"):
        if host.read(f"/sys/class/infiniband_verbs/{node}/ibdev") == device:
            return host.exists(f"/dev/infiniband/{node}")
    return None if host.names("/dev/infiniband") else False


def _only_shown(nics: tuple[Nic, ...]) -> tuple[Nic, ...]:
    """Leave out what cannot be used from here: ports without their device node, and VFs that the host keeps for guests."""
    whole = {n.card for n in nics if n.virtual_function is False}
    out = []
    for nic in nics:
        why = nic.why_not
        if why is None and nic.uverbs is False:
            why = "the host has it, but its /dev/infiniband node is not here: this container cannot use it"
        if why is None and nic.virtual_function and nic.card in whole:
            why = f"a virtual function of the card {nic.card}, which is here itself"
        out.append(replace(nic, why_not=why))
    return tuple(out)


def _plain(host: Host, name: str, taken: set[str]) -> Nic | None:
    """An interface of /sys/class/net as a port of its own; None for the interface of an RDMA port, and for `lo`."""
    at = f"{NET}/{name}"
    kind = host.number(f"{at}/type")
    if name in taken or kind == LOOPBACK or kind is None:
        return None
    real = host.real(at) or ""
    place = pci.place(host, f"{at}/device")
    state = host.read(f"{at}/operstate")
    speed = host.number(f"{at}/speed")  # EINVAL on a link that is down, -1 or 2**32-1 where a driver has no idea
    bond = _link_name(host, f"{at}/master")
    bond = bond if bond and host.exists(f"{NET}/{bond}/bonding") else None
    driver = _link_name(host, f"{at}/device/driver")
    return Nic(
        name=name,
        kind="slingshot" if driver in SLINGSHOT else "ethernet",
        pci=place.address if place else None,
        numa=pci.numa_of(host, place.address) if place else None,
        netdev=name,
        bytes_per_s=speed * 1e6 / 8 if speed and 0 < speed < 2**32 - 1 and state != "down" else None,
        up={"up": True, "down": False, "lowerlayerdown": False, "notpresent": False}.get(state or ""),
        why_not=_why_not_plain(host, name, at, kind, real, bond),
        state=state,
        driver=driver,
        mtu=host.number(f"{at}/mtu"),
        bond=name if host.exists(f"{at}/bonding") else bond,
        virtual_function=host.exists(f"{at}/device/physfn") if place else None,
        card=place.address[:-1] + "0" if place else None,
    )


def _cxi(host: Host, device: str) -> Nic:
    """A Slingshot adapter whose interface (hsn0) is not shown here, as in a container with a network of its own."""
    at = f"{CXI}/{device}/device"
    place = pci.place(host, at)
    speed = re.search(r"([0-9]{2,4})G", host.read(f"{at}/port/speed") or "")
    link = host.read(f"{at}/port/link")
    return Nic(
        name=device,
        kind="slingshot",
        pci=place.address if place else None,
        numa=pci.numa_of(host, place.address) if place else None,
        bytes_per_s=int(speed[1]) * 1e9 / 8 if speed and link != "down" else None,
        up={"up": True, "down": False}.get(link or ""),
        state=link,
        driver=_link_name(host, f"{at}/driver"),
        card=place.address[:-1] + "0" if place else None,
    )


def _why_not_plain(host: Host, name: str, at: str, kind: int, real: str, bond: str | None) -> str | None:
    if kind == IPOIB:
        return "IP over InfiniBand: the port itself is used"
    if kind != ETHERNET:
        return "a tunnel, not an Ethernet interface"
    if host.exists(f"{at}/bonding"):
        return None  # a bond is what carries the traffic of its members
    if bond is not None:
        return f"part of the bond {bond}"
    if host.exists(f"{at}/bridge"):
        return "made by software (bridge, container or tunnel)"
    if (named := no_way_out(name)) is not None:
        return named
    if host.exists(f"{at}/wireless") or host.exists(f"{at}/phy80211"):
        return "Wi-Fi"
    if "/devices/virtual/" in real:
        return "virtual: no device behind it"
    return "on USB" if re.search(r"/usb\d+/", real) else None


def default_interface(host: Host) -> str | None:
    """The interface of the IPv4 default route with the lowest metric."""
    default = r"^(\S+)\t00000000\t\S+\t\S+\t\S+\t\S+\t([0-9]{1,10})\t00000000\t"
    found = [(int(metric), name) for name, metric in host.find("/proc/net/route", "default", default) or ()]
    return min(found)[1] if found else None


def only_way_out(nics: tuple[Nic, ...], default: str | None) -> tuple[Nic, ...]:
    """In a pod the one interface is virtual; when nothing else can carry traffic, the default route does."""
    if default is None or any(n.why_not is None and n.up is not False for n in nics):
        return nics
    return tuple(replace(n, why_not=None) if n.name == default and n.kind == "ethernet" else n for n in nics)


def gpudirect(host: Host, driver_open: bool | None) -> tuple[bool | None, str | None]:
    """Whether NICs can reach GPU memory, and by what: NVIDIA's peer module, or dma-buf (open kernel modules and Linux
    5.12). False only when the loaded modules could be listed and none is there."""
    listed = host.find("/proc/modules", "peer memory", r"^(nvidia_peermem|nv_peer_mem) ")
    modules = {name for (name,) in listed or ()}
    if host.exists("/sys/module/nvidia_peermem") or "nvidia_peermem" in modules:
        return True, "nvidia_peermem"
    if (
        any(host.read(f"/sys/kernel/mm/memory_peers/{m}/version") for m in ("nv_mem", "nv_mem_nc"))
        or "nv_peer_mem" in modules
    ):
        return True, "nv_peer_mem"
    release = re.match(r"(\d{1,4})\.(\d{1,4})", host.read("/proc/sys/kernel/osrelease") or "")
    if driver_open and release and (int(release[1]), int(release[2])) >= (5, 12):
        return True, "dma-buf"
    return (False if listed is not None and driver_open is not None else None), None

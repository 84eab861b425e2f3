"""What one node needs: its GPUs in their order, the HCAs that carry GPU traffic, the interface that reaches the others.

A rule speaks only where NCCL or Gloo would go wrong by itself: both find a single network without help.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from parlaunch.hardware.cluster import Cluster, Nic, Node
from parlaunch.hardware.placement import visible_devices
from parlaunch.hardware.ports import is_verbs, no_way_out, port_name
from parlaunch.planning.plan import Variable

NCCL_GUIDE = "NCCL user guide, environment variables"


def node_rules(cluster: Cluster, node_index: int, current: Mapping[str, str]) -> Iterator[tuple[Variable, str | None]]:
    """Variables of one node, each with what the user's own value would do. An empty value: nothing to set."""
    node = cluster.nodes[node_index]
    yield _visible(node), _visible_danger(current.get("CUDA_VISIBLE_DEVICES"))
    if len(cluster.nodes) == 1:
        return
    yield _hcas(node), _hca_danger(node, current.get("NCCL_IB_HCA"))
    chosen, why = interface(cluster, node_index)
    by_nccl = _nccl_alone(node)
    value = f"={chosen}" if chosen and chosen != by_nccl else ""
    yield (
        Variable(
            name="NCCL_SOCKET_IFNAME", value=value, reason=f"{chosen} {why}; NCCL might take another", source=NCCL_GUIDE
        ),
        _interface_danger(node, current.get("NCCL_SOCKET_IFNAME")),
    )
    gloo = chosen if chosen and node.hostname_loopback else ""
    yield (
        Variable(
            name="GLOO_SOCKET_IFNAME", value=gloo or "",
            reason=f"{node.hostname} resolves to a loopback address here, which Gloo would give to the other nodes",
            source="pytorch torch/csrc/distributed/c10d/ProcessGroupGloo.cpp",
        ),
        _gloo_danger(node, current.get("GLOO_SOCKET_IFNAME")),
    )  # fmt: skip


# --- GPUs -------------------------------------------------------------------------------------------------------------


def _visible(node: Node) -> Variable:
    return Variable(
        name="CUDA_VISIBLE_DEVICES", value=visible_devices(node) or "",
        reason="only the GPUs that are planned for: the others are slower, cut up, or more than every node has" if node.gpus_left_out
        else "GPUs that share NVLinks get neighbouring local ranks", source="CUDA C++ Programming Guide, environment variables",
    )  # fmt: skip


def _visible_danger(value: str | None) -> str | None:
    if value is not None and value.strip() in ("", "-1"):
        return "CUDA sees no GPU: every rank stops with 'No CUDA GPUs are available'"
    return None


# --- HCAs -------------------------------------------------------------------------------------------------------------


def _verbs(node: Node) -> list[Nic]:
    """The ports of NCCL's InfiniBand transport that it knows by name: a list of PCI devices has no such names."""
    return [n for n in node.nics if is_verbs(n) and n.name != n.pci]


def _hcas(node: Node) -> Variable:
    """The rails by name, exactly, where a port that is none is up beside them: NCCL would use that one too."""
    verbs = _verbs(node)
    rails = [n for n in verbs if n.rail]
    others = [n for n in verbs if not n.rail and n.up is not False and n.uverbs is not False]
    if not rails or not others:
        return Variable(name="NCCL_IB_HCA", value="", reason="every port that is up is a rail", source=NCCL_GUIDE)
    names = ",".join(map(port_name, rails))
    left = ", ".join(f"{n.name} ({n.why_not or 'no rail'})" for n in others[:3])
    return Variable(
        name="NCCL_IB_HCA", value=f"={names}", reason=f"only the rails; left out: {left}", source=NCCL_GUIDE
    )


def _hca_danger(node: Node, value: str | None) -> str | None:
    known = _verbs(node)
    if value is None or not known:
        return None
    if not any(_hca_matches(value, n) for n in known):
        return f"it matches none of {', '.join(n.name for n in known[:4])}: NCCL falls back to TCP sockets"
    down = [n.name for n in known if n.up is False and _hca_matches(value, n) and not value.startswith("^")]
    return f"it names {down[0]}, which is down" if down and value.lstrip("=").startswith(tuple(down)) else None


def _hca_matches(value: str, nic: Nic) -> bool:
    found = re.fullmatch(r"(\^?)(=?)(.*)", value)
    assert found is not None
    hit = False
    for part in found[3].split(","):
        name, _, port = part.partition(":")
        same = nic.name == name if found[2] else nic.name.startswith(name)
        hit |= bool(name) and same and (not port or nic.port is None or str(nic.port) == port)
    return hit != bool(found[1])


# --- Interfaces -------------------------------------------------------------------------------------------------------


def _interfaces(node: Node) -> dict[str, list[ipaddress.IPv4Address]]:
    """Interfaces with an IPv4 address that another host could reach, in the order they are listed."""
    found: dict[str, list[ipaddress.IPv4Address]] = {}
    for nic in node.nics:
        name = nic.netdev or (nic.name if nic.kind == "ethernet" else None)
        if name is None or nic.up is False or no_way_out(name):
            continue
        for text in nic.addresses:
            try:
                address = ipaddress.ip_address(text.split("/")[0].split("%")[0])
            except ValueError:
                continue
            if isinstance(address, ipaddress.IPv4Address) and not (address.is_loopback or address.is_link_local):
                found.setdefault(name, []).append(address)
    return found


def interface(cluster: Cluster, node_index: int) -> tuple[str | None, str]:
    """The interface of a node that reaches every other node, and why; (None, "") where that cannot be told.

    Netmasks are not known: the interface whose network (first 24, then 16 bits) every other node has an address in; the
    default route decides between several, and alone where no network is shared.
    """
    node = cluster.nodes[node_index]
    mine = _interfaces(node)
    others = [_interfaces(n) for i, n in enumerate(cluster.nodes) if i != node_index]
    fast = {
        n.netdev or n.name for n in node.nics if n.rail and n.kind == "slingshot"
    }  # IP goes over it too, and to every node
    for bits in (24, 16):
        shared = [
            name
            for name, addresses in mine.items()
            if others
            and all(any(_near(a, b, bits) for a in addresses for found in o.values() for b in found) for o in others)
        ]
        if own := sorted(fast.intersection(shared)):
            return own[0], "is the Slingshot network of all nodes"
        if node.default_netdev in shared:
            return node.default_netdev, "is on the network of the other nodes, and the default route"
        if shared:
            return shared[0], "is on the network of the other nodes"
    if node.default_netdev in mine:
        return node.default_netdev, "is the default route"
    return None, ""


def _near(a: ipaddress.IPv4Address, b: ipaddress.IPv4Address, bits: int) -> bool:
    return int(a) >> (32 - bits) == int(b) >> (32 - bits)


def _nccl_alone(node: Node) -> str | None:
    """The interface NCCL is sure to find by itself; None when it might take any of several."""
    names = {n.netdev or n.name for n in node.nics if n.addresses and n.up is not False}
    usable = {n for n in names if not n.startswith(("lo", "docker"))}
    preferred = {n for n in usable if n.startswith("ib")} or usable
    return next(iter(preferred)) if len(preferred) == 1 else None


def _interface_danger(node: Node, value: str | None) -> str | None:
    have = {n.netdev or n.name for n in node.nics if n.netdev or n.kind == "ethernet"}
    if not value or not have:
        return None
    if value.lstrip("=") == "lo":
        return "the loopback interface reaches no other node"
    if value.startswith("^"):
        return None
    parts = value.lstrip("=").split(",")
    matches = any(h == p if value.startswith("=") else h.startswith(p) for h in have for p in parts)
    return (
        None if matches else f"this node has no such interface, only {', '.join(sorted(have))}: NCCL stops at start-up"
    )


def _gloo_danger(node: Node, value: str | None) -> str | None:
    if not value:
        return None
    if value.startswith(("^", "=")):
        return "Gloo takes plain names: ^ and = are NCCL's, and it looks for an interface of that very name"
    return _interface_danger(node, "=" + value)

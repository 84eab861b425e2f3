"""Facts about network ports: kinds of fabric, what a card of a model can do, names that are never a way to other nodes."""

from __future__ import annotations

import re

from parlaunch.hardware.cluster import UNKNOWN, Nic

VERBS = ("infiniband", "roce")
"""Fabrics that NCCL's own InfiniBand transport drives."""

RDMA = (*VERBS, "efa", "slingshot", "omnipath")
"""Fabrics whose ports reach memory without the kernel; the last three through libfabric."""

THOR = (
    ("BCM57608", "14e4:1760", 400e9 / 8),
    ("BCM57508", "14e4:1750", 200e9 / 8),
    ("BCM57504", "14e4:1751", 100e9 / 8),
)
"""Broadcom's cards that are sold for RoCE, Thor 2 and Thor: chip, ids, and what one port can do in bytes/s."""

# What one port of a card can do in bytes/s, by words of its model or ids: the makers' data sheets. The first match counts.
_FAMILIES: tuple[tuple[str, float], ...] = (
    (r"ConnectX-9|MT4133", 1600e9 / 8),
    (r"ConnectX-8|MT4131|15b3:1023", 800e9 / 8),
    (r"ConnectX-7|MT2910|MT4129|15b3:1021", 400e9 / 8),
    (r"BlueField-3|MT41692|MT43244|15b3:a2dc", 200e9 / 8),
    (r"ConnectX-6 Dx|MT2892|MT4125|BlueField-2|MT41686|MT42822|15b3:(?:101d|a2d6)", 100e9 / 8),
    (r"ConnectX-6 Lx|MT2894|MT4127|15b3:101f", 25e9 / 8),
    (r"ConnectX-6|MT28908|MT4123|MT4124|15b3:101[bc]", 200e9 / 8),
    (r"ConnectX-5|MT28800|MT27800|MT4119|MT4121|15b3:101[79]", 100e9 / 8),
    (r"ConnectX-4 Lx|MT27710|15b3:1015", 25e9 / 8),
    (r"ConnectX-4|MT27700|15b3:1013", 100e9 / 8),
    (r"(?i)1d0f:efa3", 400e9 / 8),  # AWS p6
    (r"(?i)1d0f:efa2", 200e9 / 8),  # p5en
    (r"(?i)1d0f:efa[01]", 100e9 / 8),  # p4d and p5
    (r"Cassini 2|Slingshot 400|(?i:17db:0502)", 400e9 / 8),
    (r"Cassini|Slingshot|(?i:17db:0501)", 200e9 / 8),
    *((rf"{chip}|(?i:{ids})", rate) for chip, ids, rate in THOR),
    (r"Pollara", 400e9 / 8),
    (r"E830", 200e9 / 8),
    (r"E810-XXV|(?i:8086:159[9ab])", 25e9 / 8),
    (r"E810|(?i:8086:159[123])", 100e9 / 8),
    (r"CN5000|(?i:434e:0001)", 400e9 / 8),
    (r"10[- ]?G(?:igabit|b)|10GBASE|X5[45]0|82599", 10e9 / 8),
    (r"Gigabit|I2[12][0-9]|I350|BCM57(?:1\d|2\d)\b", 1e9 / 8),
    (r"Omni-Path|HFI Silicon 100|(?i:8086:24f[01])", 100e9 / 8),
)

# Software and side doors: bridges, containers and tunnels; USB, Wi-Fi, and the links to a service processor or a DPU.
_SOFTWARE = re.compile(
    r"^(lo$|docker|br-|veth|virbr|vnet|cni|flannel|cali|cilium|lxc|tunl|podman|vxlan|geneve|tun|tap|wg|ppp|tailscale|zt|kube"
    r"|nodelocaldns|dummy|ifb|sit|gre|ip6tnl|macvtap|bonding_masters)"
)
_SIDE = re.compile(r"^(wl|ww|usb|enx[0-9a-f]{12}$|idrac|bmc|ipmi|oob_|tmfifo)")


def no_way_out(name: str) -> str | None:
    """Why an interface of this name never carries a job's traffic; None where the name does not tell.

    NCCL itself skips only lo and docker*."""
    if _SOFTWARE.match(name):
        return "made by software (bridge, container or tunnel)"
    if _SIDE.match(name):
        return "Wi-Fi, USB or management: no way to other nodes"
    return None


def is_verbs(nic: Nic) -> bool:
    """Whether NCCL's own InfiniBand transport drives this port: also one that a listing of RDMA devices names without its
    fabric (mlx5_0), which is InfiniBand or RoCE."""
    return nic.kind in VERBS or nic.kind == UNKNOWN


def family_rate(nic: Nic) -> float | None:
    """What a port of this card's model can do, in bytes/s one direction, whatever it does now; None for an unknown model."""
    return next((rate for pattern, rate in _FAMILIES if nic.model and re.search(pattern, nic.model)), None)


def port_name(nic: Nic) -> str:
    """`mlx5_0:1`, `eth0`."""
    return nic.name if nic.port is None else f"{nic.name}:{nic.port}"

"""Files that speak of several nodes: `nvidia-imex-ctl -N`, the compute nodes of NetQ or NMX, `ibnetdiscover`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.hardware.cluster import UNKNOWN, Cluster, Fabric, Gpu, Nic, Node, domains_of

TRAY = 4  # GPUs of a compute tray of every NVLink rack: NVIDIA's GB200, GB300 and Vera Rubin NVL72
_IMEX_NODE = re.compile(r"^Node #(\d{1,4})\s+[-*]*\s*-?\s*(\S+)\s+-\s+(\w+)(?:\s+-\s+Version:\s*(\S+))?")
_IMEX_ROW = re.compile(r"^\s+(\d{1,4})\s+((?:[INRDAC]|!V!|!M!)(?:\s+(?:[INRDAC]|!V!|!M!))*)\s*$")
_CA = re.compile(r'^Ca\s+(\d{1,3})\s+"(\S{1,40})"\s+#\s+"([^"]{0,120})"')
_SWITCH = re.compile(r'^Switch\s+(\d{1,4})\s+"(\S{1,40})"\s+#\s+"([^"]{0,120})"')
_CA_PORT = re.compile(
    r'^\[(\d{1,3})\]\([0-9a-fx]{1,20}\)\s+"(\S{1,40})"\[\d{1,4}\]\s+#.*?"([^"]{0,120})".*?(\d{1,2})x([A-Z]{2,4})\s*$'
)
_GBPS = {"SDR": 2.5, "DDR": 5, "QDR": 10, "FDR10": 10, "FDR": 14, "EDR": 25, "HDR": 50, "NDR": 100, "XDR": 200}


def _tray(at: int, hostname: str, key: tuple[str, int] | None, count: int = TRAY, **more: Any) -> Node:
    gpus = tuple(
        Gpu(
            index=i,
            name=UNKNOWN,
            nvlink_domain=0 if count > 1 else None,
            fabric_id=key,
            fabric_state="completed" if key else None,
        )
        for i in range(count)
    )
    return Node(hostname=hostname or f"node{at}", gpus=gpus, link_type="nvswitch_mnnvl", **more)


def _cluster(nodes: Sequence[Node], source: str, notes: Sequence[str]) -> Cluster:
    whole = tuple(nodes)
    unknown = ("the GPU model is not in this file", "the network between racks is not in this file")
    return Cluster(
        source=source,
        nodes=whole,
        nvlink_domains=domains_of(whole),
        fabric=Fabric(kind=UNKNOWN),
        notes=(*notes, *unknown),
    )


def find_imex(text: str, source: str) -> Cluster | None:
    """The NVLink domain that the IMEX daemons of several nodes form. Nodes that are not ready are left out of it."""
    if "Domain State:" not in text and "Nodes From\\To" not in text:
        return None
    listed = [(int(m[1]), m[2], m[3], m[4]) for line in text.split("\n") if (m := _IMEX_NODE.match(line))]
    if not listed:
        return None
    rows = {int(m[1]): m[2].split() for line in text.split("\n") if (m := _IMEX_ROW.match(line))}
    state = (re.search(r"Domain State:\s*(\w+)", text) or [None, None])[1]
    notes = [
        f"IMEX domain {state or 'of unknown state'}, {len(listed)} nodes; {TRAY} GPUs a node, as NVLink racks have"
    ]
    good = _connected([n for n, _, ready, _ in listed if ready == "READY"], [n for n, _, _, _ in listed], rows)
    for number, _, ready, _ in listed:
        if number not in good:
            why = ready if ready != "READY" else "not connected to the others"
            notes.append(f"node #{number} is {why}: left out of the NVLink domain")
    if state == "DOWN":
        notes.append("the domain is DOWN: no multi-node NVLink")
        good = []
    shared = len(good) > 1
    if not shared:
        notes.append(
            "a domain of one node: no NVLink between nodes, although the state is UP"
            if len(good) == 1
            else "no multi-node NVLink"
        )
    nodes = [
        _tray(at, host, ("imex domain", 0) if shared and number in good else None, imex_channels=None, driver=version)
        for at, (number, host, _, version) in enumerate(listed)
    ]
    return _cluster(nodes, source, notes)


def _connected(ready: list[int], order: list[int], rows: Mapping[int, list[str]]) -> list[int]:
    """The ready nodes that are all connected with each other: the one with most gaps leaves until there is none."""
    column = {number: at for at, number in enumerate(order)}

    def gaps(number: int, among: list[int]) -> int:
        row = rows.get(number, [])
        return sum(column[other] < len(row) and row[column[other]] != "C" for other in among)

    left = list(ready)
    while left and (worst := max(left, key=lambda n: gaps(n, left))) is not None and gaps(worst, left):
        left.remove(worst)
    return left


def is_netq(data: Any) -> bool:
    """Whether JSON is a list of compute nodes as NetQ and NMX give it."""
    rows = data.get("computeNodes", data.get("ComputeNodes")) if isinstance(data, Mapping) else data
    return isinstance(rows, list) and bool(rows) and all(isinstance(r, Mapping) and "DomainUUID" in r for r in rows)


def netq(data: Any, source: str) -> Cluster:
    """Trays by the NVLink domain that they share."""
    rows = data.get("computeNodes", data.get("ComputeNodes")) if isinstance(data, Mapping) else data
    notes, nodes = [], []
    for at, row in enumerate(rows):
        domain, listed = row.get("DomainUUID"), row.get("GpuIDList")
        count = len(listed) if isinstance(listed, list) and 0 < len(listed) <= 64 else TRAY
        if isinstance(row.get("Health"), str) and row["Health"] != "HEALTHY":
            notes.append(f"{row.get('Name')}: health {row['Health']}")
        place = row.get("LocationInfo")
        slot = (
            f"chassis {place.get('ChassisSerialNumber')} slot {place.get('SlotID')}"
            if isinstance(place, Mapping)
            else None
        )
        key = (domain, 0) if isinstance(domain, str) and domain.strip("0-") else None
        nodes.append(_tray(at, str(row.get("Name") or ""), key, count, switch=slot))
    return _cluster(nodes, source, notes)


def find_ibnetdiscover(text: str, source: str) -> Cluster | None:
    """Hosts and their ports in an InfiniBand fabric, with the leaf switches that each is on. No GPUs in such a file."""
    if not re.search(r"^(vendid=0x|# Topology file: generated)", text, re.MULTILINE):
        return None
    ports: dict[str, list[Nic]] = defaultdict(list)
    leaves: dict[str, set[str]] = defaultdict(set)
    adapters = switches = 0
    host = name = ""
    for line in text.split("\n"):
        if _SWITCH.match(line):
            switches += 1
            host = ""
        elif match := _CA.match(line):
            adapters += 1
            words = match[3].split()
            host, name = (words[0], words[-1]) if len(words) == 2 else ("", match[3])
        elif host and (match := _CA_PORT.match(line)):
            gbps = int(match[4]) * _GBPS.get(match[5], 0)
            ports[host].append(
                Nic(name=name, kind="infiniband", port=int(match[1]), up=True, rail=True, state="ACTIVE", rate=f"{gbps:g} Gb/sec ({match[4]}X {match[5]})",
                    bytes_per_s=gbps * 1e9 / 8 or None)
            )  # fmt: skip
            leaves[host].add(match[3].split(":")[0].removeprefix("MF0;"))
    if not adapters and not switches:
        return None
    nodes = tuple(Node(hostname=h, nics=tuple(n), switch=",".join(sorted(leaves[h]))) for h, n in sorted(ports.items()))
    notes = (
        f"{adapters} channel adapters (aggregation nodes of the switches among them) and {switches} switches",
        "an InfiniBand fabric without its GPUs: good for placing nodes, not for planning",
    )
    rails = min((len(n.nics) for n in nodes), default=None)
    return Cluster(source=source, nodes=nodes, fabric=Fabric(kind="infiniband", rails=rails), notes=notes)

"""NVLink: what is at the far end of every link, which GPUs form a domain, and what kind of board that makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from parlaunch.frozen import dataclass
from parlaunch_probes.text import pci_address

GPU, NPU, SWITCH = 0, 1, 2  # nvmlIntNvLinkDeviceType_t
# nvmlNvlinkVersion_t: its name, and the bytes/s that one link carries in one direction (NVIDIA's data sheets:
# 160 GB/s over 4 links both ways on P100, 300 over 6 on V100, 600 over 12 on A100, 900 over 18 on H100, 1800 over 18
# on B200, 3600 over 36 on Rubin).
VERSIONS: Mapping[int, tuple[str, float]] = {
    1: ("1.0", 20e9),
    2: ("2.0", 25e9),
    3: ("2.2", 25e9),
    4: ("3.0", 25e9),
    5: ("3.1", 25e9),
    6: ("4.0", 25e9),
    7: ("5.0", 50e9),
    8: ("6.0", 50e9),
}
STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
SUMMARIES = {1: "healthy", 2: "unhealthy", 3: "limited_capacity"}
# Two-bit fields of the fabric's health mask: 1 is bad, 2 is good, 0 is not said.
HEALTH = {0: "degraded_bandwidth", 2: "route_recovery", 4: "route_unhealthy", 6: "access_timeout_recovery"}
MISCONFIGURED = {
    2: "incorrect_system_guid",
    3: "incorrect_chassis_serial",
    4: "no_partition",
    5: "insufficient_nvlinks",
    6: "incompatible_gpu_firmware",
    7: "invalid_location",
    8: "gpu_state_invalid",
}


@dataclass(frozen=True, slots=True)
class Fabric:
    """A GPU's membership in an NVSwitch fabric, as NVML tells it."""

    state: str
    status: int
    cluster: str
    clique: int
    health: tuple[str, ...]
    summary: str | None

    @property
    def ready(self) -> bool:
        """Registered without error: it can talk through the switches."""
        return self.state == "completed" and self.status == 0

    @property
    def key(self) -> tuple[str, int] | None:
        """What GPUs of several nodes must share; an all-zero UUID is a fabric of one node."""
        return (self.cluster, self.clique) if self.ready and self.cluster.strip("0-") else None


def fabric_of(answer: Mapping[str, Any] | None) -> Fabric | None:
    """The fabric answer of a reading; None when the driver knows no fabric for this GPU."""
    if answer is None or answer.get("state", 0) == 0:
        return None
    text = str(answer.get("uuid", "")).ljust(32, "0")
    mask = int(answer.get("mask", 0))
    bad = [name for shift, name in HEALTH.items() if mask >> shift & 3 == 1]
    configured = mask >> 8 & 15
    if configured > 1:
        bad.append(MISCONFIGURED.get(configured, f"incorrect_configuration_{configured}"))
    return Fabric(
        state=STATES.get(answer["state"], f"state {answer['state']}"),
        status=int(answer.get("status", 0)),
        cluster=f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}",
        clique=int(answer.get("clique", 0)),
        health=tuple(bad),
        summary=SUMMARIES.get(answer.get("summary") or 0),
    )


@dataclass(frozen=True, slots=True)
class Ends:
    """One GPU's active links by what they lead to."""

    peers: Mapping[int, int] = field(default_factory=dict)  # GPU index -> links
    switch: int = 0
    assumed: int = 0  # of those, links whose far end is hidden and taken for a switch
    hidden: int = 0  # lead to a GPU that we are not shown
    cpu: int = 0  # POWER's NVLink to the processor
    down: tuple[int, ...] = ()
    bytes_per_s: float | None = None
    version: str | None = None

    @property
    def active(self) -> int:
        return sum(self.peers.values()) + self.switch + self.hidden


def ends_of(links: Sequence[Mapping[str, Any]], by_pci: Mapping[str, int], gpus_on_bus: frozenset[str]) -> Ends:
    """Sort a GPU's links. `by_pci` are the GPUs that NVML lists; `gpus_on_bus` those that PCI shows besides."""
    peers: Counter[int] = Counter()
    switch = assumed = hidden = cpu = 0
    rate, known, version = 0.0, True, None
    for link in links:
        if not link.get("up"):
            continue
        far = pci_address(link.get("pci"))
        kind = link.get("type")
        if kind == NPU:
            cpu += 1
            continue
        if kind == SWITCH:
            switch += 1
        elif far is not None and far in by_pci:
            peers[by_pci[far]] += 1
        elif far is not None and (kind == GPU or far in gpus_on_bus):
            hidden += 1
        else:  # an empty or impossible address: the switches of a virtual machine and of GB200 look like this
            switch, assumed = switch + 1, assumed + 1
        row = VERSIONS.get(link.get("version") or 0)
        known = known and row is not None
        rate += row[1] if row else 0.0
        version = row[0] if row else version
    down = tuple(int(link["link"]) for link in links if link.get("up") is False)
    active = sum(peers.values()) + switch + hidden
    return Ends(dict(peers), switch, assumed, hidden, cpu, down, rate if known and active else None, version)


@dataclass(frozen=True, slots=True)
class Board:
    """The NVLink picture of one node."""

    domains: tuple[tuple[int, ...], ...]  # GPU indexes, two and more
    links: tuple[tuple[int, int, int], ...]
    kind: str | None  # nvswitch | nvswitch_mnnvl | mesh | cube_mesh | pairs | none; None: not known


def board(ends: Mapping[int, Ends], fabrics: Mapping[int, Fabric | None], refused: frozenset[tuple[int, int]]) -> Board:
    """Domains of GPUs: joined by a direct link, or by switches of one fabric, unless the driver refused the pair
    (`refused`: P2P over NVLink is not OK)."""
    indexes = sorted(ends)
    group = {i: i for i in indexes}
    found: list[tuple[int, int, int]] = []
    switched = False
    for at, a in enumerate(indexes):
        for b in indexes[at + 1 :]:
            if (a, b) in refused or (b, a) in refused:
                continue
            direct = max(ends[a].peers.get(b, 0), ends[b].peers.get(a, 0))
            shared = min(ends[a].switch, ends[b].switch) if _one_fabric(fabrics.get(a), fabrics.get(b)) else 0
            if not direct and not shared:
                continue
            switched = switched or bool(shared)
            found.append((a, b, direct or shared))
            old, new = group[b], group[a]
            group = {i: new if g == old else g for i, g in group.items()}
    gathered: dict[int, list[int]] = {}
    for i in indexes:
        gathered.setdefault(group[i], []).append(i)
    domains = tuple(tuple(g) for g in gathered.values() if len(g) > 1)
    spans = any((f := fabrics.get(i)) is not None and f.key is not None for i in indexes)
    return Board(domains, tuple(found), _kind(ends, domains, found, switched, spans))


def _one_fabric(a: Fabric | None, b: Fabric | None) -> bool:
    """Whether switches join the two: before Hopper the driver knows no fabric, and then nothing speaks against it."""
    known = [f for f in (a, b) if f is not None]
    if not all(f.ready for f in known):
        return False
    return len(known) < 2 or (known[0].cluster, known[0].clique) == (known[1].cluster, known[1].clique)


def _kind(
    ends: Mapping[int, Ends],
    domains: Sequence[Sequence[int]],
    found: Sequence[tuple[int, int, int]],
    switched: bool,
    spans: bool,
) -> str | None:
    if not ends:
        return None
    # A single GPU of a board with switches, or one whose fabric is not up, still hangs on switches.
    if switched or any(e.switch for e in ends.values()):
        return "nvswitch_mnnvl" if spans else "nvswitch"
    if not domains:
        return "none"
    pairs = {(a, b) for a, b, _ in found}
    if all(len(d) == 2 for d in domains):
        return "pairs"
    complete = all((a, b) in pairs for d in domains for i, a in enumerate(d) for b in d[i + 1 :])
    return "mesh" if complete else "cube_mesh"

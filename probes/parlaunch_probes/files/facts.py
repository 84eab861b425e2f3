"""What one part of a file says, and how parts are put together. A file may hold the output of several commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from parlaunch.hardware.cluster import UNKNOWN, Gpu, Nic
from parlaunch.hardware.datasheet import Product

Either = TypeVar("Either", Gpu, Nic)
_EMPTY: tuple[Any, ...] = (None, (), UNKNOWN)


@dataclass(slots=True)
class Facts:
    """One command's output, read. GPUs are in the order of their index."""

    what: str  # "nvidia-smi topo -m"
    gpus: list[Gpu] = field(default_factory=list)
    lost: list[Gpu] = field(default_factory=list)  # named, and not to be used; each with its `error`
    nics: list[Nic] = field(default_factory=list)
    links: dict[tuple[int, int], int] | None = None  # NVLinks between two GPUs by index; {}: shown, and there are none
    switched: bool | None = None  # the links end in NVSwitches
    hidden: bool = False  # links are active and nothing says where they lead
    attached: int | None = None  # GPUs that the driver counted, where the file shows fewer
    product: Product | None = None  # of the GPUs, as the user says where the file does not
    preset: str | None = None  # the machine is a known one, and the file says so
    node: dict[str, Any] = field(default_factory=dict)  # fields of Node
    acs: bool = False  # the ACS state of the bridges was shown
    notes: list[str] = field(default_factory=list)
    unsure: bool = False  # a note says which products the GPUs may be

    def may_be(self, note: str) -> None:
        """Say, once, which products the GPUs may be."""
        self.unsure = True
        if note not in self.notes:
            self.notes.append(note)

    @property
    def empty(self) -> bool:
        return not (self.gpus or self.lost or self.nics or self.node or self.preset or self.acs)


def filled(known: Either, other: Either) -> Either:
    """`known`, with what it lacks from `other`. Its place in the list (`index`) is its own."""
    gained = {
        f.name: there
        for f in fields(known)
        if f.name != "index" and getattr(known, f.name) in _EMPTY and (there := getattr(other, f.name)) not in _EMPTY
    }
    return replace(known, **gained) if gained else known


def join(parts: Sequence[Facts]) -> Facts:
    """All parts as one. Earlier parts win where two speak of the same thing."""
    whole = Facts(what=" and ".join(dict.fromkeys(p.what for p in parts)))
    for part in parts:
        pairs = _gpus(whole, part)
        if part.links is not None and whole.links is None and pairs is not None:
            whole.links = {_pair(pairs[a], pairs[b]): n for (a, b), n in part.links.items()}
        _nics(whole, part, pairs)
        whole.lost += [g for g in part.lost if not any(_same_lost(g, known) for known in whole.lost)]
        whole.switched = part.switched if whole.switched is None else whole.switched
        whole.hidden = whole.hidden or part.hidden
        whole.attached = whole.attached or part.attached
        whole.preset = whole.preset or part.preset
        whole.acs = whole.acs or part.acs
        whole.unsure = whole.unsure or part.unsure
        whole.node = part.node | whole.node
        whole.notes += [n for n in part.notes if n not in whole.notes]
    return whole


def _same_lost(a: Gpu, b: Gpu) -> bool:
    return (a.pci is not None and a.pci == b.pci) or (None in (a.pci, b.pci) and a.index == b.index >= 0)


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _gpus(whole: Facts, part: Facts) -> dict[int, int] | None:
    """Put the GPUs of a part to those that are there. Its numbers as ours; None when they cannot be matched."""
    if not part.gpus:
        return {g.index: g.index for g in whole.gpus}
    if not whole.gpus:
        whole.gpus = list(part.gpus)
        return {g.index: g.index for g in part.gpus}
    pairs = {}
    for theirs in part.gpus:
        for ours in whole.gpus:
            if (ours.uuid and ours.uuid == theirs.uuid) or (ours.pci and ours.pci == theirs.pci):
                pairs[theirs.index] = ours.index
    if not pairs and len(part.gpus) == len(whole.gpus) and not _at_odds(whole, part):
        pairs = {b.index: a.index for a, b in zip(whole.gpus, part.gpus, strict=True)}
    if not pairs:
        whole.notes.append(f"the GPUs of {part.what} are not those shown before it: left out")
        return None
    at = {g.index: n for n, g in enumerate(whole.gpus)}
    for theirs in part.gpus:
        if theirs.index in pairs:
            n = at[pairs[theirs.index]]
            whole.gpus[n] = filled(whole.gpus[n], theirs)
    return pairs if len(pairs) == len(part.gpus) else None


def _at_odds(whole: Facts, part: Facts) -> bool:
    """Both name their GPUs by the same mark, and none of the marks agree: two machines."""
    return any(
        all(getattr(g, mark) for g in whole.gpus) and all(getattr(g, mark) for g in part.gpus)
        for mark in ("uuid", "pci")
    )


def _nics(whole: Facts, part: Facts, pairs: dict[int, int] | None) -> None:
    if not part.nics:
        return
    mapped = pairs or {}
    theirs = [replace(n, distances=tuple((mapped[g], far) for g, far in n.distances if g in mapped)) for n in part.nics]
    if not whole.nics:
        whole.nics = theirs
        return
    for nic in theirs:
        for at, ours in enumerate(whole.nics):
            same_port = ours.port is None or nic.port is None or ours.port == nic.port
            if same_port and (ours.name == nic.name or (ours.pci is not None and ours.pci == nic.pci)):
                whole.nics[at] = _joined_nic(ours, nic)
                break
        else:
            # A list by PCI address beside one by verbs name shows the same ports twice.
            if not (nic.name == nic.pci and any(n.name != n.pci for n in whole.nics)):
                whole.nics.append(nic)


def _joined_nic(ours: Nic, nic: Nic) -> Nic:
    named = replace(ours, name=nic.name) if ours.name == ours.pci and nic.name != nic.pci else ours
    plain = named.kind == "ethernet" and nic.kind in ("roce", "efa")  # PCI's class for both is Ethernet
    return filled(replace(named, kind=nic.kind) if plain else named, nic)

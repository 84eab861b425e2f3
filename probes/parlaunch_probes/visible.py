"""CUDA_VISIBLE_DEVICES as the CUDA driver reads it, resolved on the GPUs that NVML lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from parlaunch.frozen import dataclass

_LEGACY_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU that CUDA could show. `mig` lists its slices as (UUID, GPU instance, compute instance); None: MIG is off."""

    uuid: str
    model: str
    pci: str = ""
    mig: tuple[tuple[str, int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Visible:
    """UUIDs in CUDA's order, what is odd about the setting, and whether NVML can tell which GPU an ordinal means."""

    devices: tuple[str, ...]
    notes: tuple[str, ...] = ()
    exact: bool = True


def _leading_int(token: str) -> int | None:
    """As strtol reads: `1gpu2` is 1, `+2` is 2, `x` is no number."""
    match = re.match(r"[+-]?[0-9]{1,9}", token)
    return int(match[0]) if match else None


def _by_name(token: str, gpus: Sequence[Candidate], notes: list[str]) -> str | None:
    """The one device whose UUID starts with the token; letter case counts."""
    legacy = _LEGACY_MIG.fullmatch(token)  # drivers before R470 name a slice by its GPU and instance numbers
    if legacy:
        gi, ci = int(legacy[2][:9]), int(legacy[3][:9])
        hits = [m for g in gpus if g.uuid.startswith(legacy[1]) for m, a, b in g.mig or () if (a, b) == (gi, ci)]
    elif token.startswith("MIG-"):
        hits = [m for g in gpus for m, _, _ in g.mig or () if m.startswith(token)]
    else:
        hits = [g.uuid for g in gpus if g.uuid.startswith(token)]
    if len(hits) > 1:
        notes.append(f"{token!r} is the start of {len(hits)} UUIDs")
    return hits[0] if len(hits) == 1 else None


def _listed(value: str, gpus: Sequence[Candidate], notes: list[str]) -> tuple[list[str], str | None]:
    """The devices that a list names, and its form. The first entry fixes the form; the first bad one ends the list."""
    chosen: list[str] = []
    form: str | None = None
    for raw in value.split(","):
        token = raw.strip()
        if token != raw:
            notes.append(f"space around {token!r}: parsers disagree about it; write the list without spaces")
        number = _leading_int(token)
        kind = "name" if token.startswith(("GPU-", "MIG-")) else "ordinal" if number is not None else None
        form = form or kind
        if kind is None or kind != form:
            what = (
                "it is empty" if not token else "no ordinal and no UUID" if kind is None else f"the list is of {form}s"
            )
            notes.append(f"{token!r} ends the list ({what}): what comes after is ignored")
            break
        if number is not None and kind == "ordinal":
            if str(number) != token:
                notes.append(f"{token!r} is read as {number}")
            hit = gpus[number].uuid if 0 <= number < len(gpus) else None
        else:
            hit = _by_name(token, gpus, notes)
        if hit is None:
            notes.append(
                f"{token!r} ends the list: "
                + ("-1 stands for no GPU" if number == -1 else f"it names none of the {len(gpus)} GPUs here")
            )
            break
        if hit in chosen:
            notes.append(f"{token!r} names a GPU twice: CUDA shows none at all")
            return [], form
        chosen.append(hit)
    return chosen, form


def resolve(value: str | None, gpus: Sequence[Candidate], order: str | None = None) -> Visible:
    """What CUDA shows with CUDA_VISIBLE_DEVICES=`value` (None: unset) and CUDA_DEVICE_ORDER=`order`.

    `gpus` are those that NVML lists and that work, in its order, which is that of PCI addresses. With PCI_BUS_ID
    ordinals count by PCI address; by default the fastest comes first, which only CUDA itself can tell among models
    that differ: then `exact` is False.
    """
    notes: list[str] = []
    if order == "PCI_BUS_ID":
        gpus = sorted(gpus, key=lambda g: g.pci)
    form = None
    if value is None:
        chosen = [g.uuid for g in gpus]
    elif not value.strip():
        return Visible((), ("it is set to the empty string: no GPU is visible",))
    else:
        chosen, form = _listed(value, gpus, notes)
    exact = not (form == "ordinal" and order != "PCI_BUS_ID" and len({g.model for g in gpus}) > 1)
    if not exact:
        notes.append(
            "GPU models differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID: which GPU an ordinal means is CUDA's secret"
        )
    return Visible(tuple(_one_slice(chosen, gpus, notes)), tuple(notes), exact)


def _one_slice(chosen: Sequence[str], gpus: Sequence[Candidate], notes: list[str]) -> list[str]:
    """A process sees one MIG device at most, and with it nothing else."""
    slices: Mapping[str, tuple[tuple[str, int, int], ...] | None] = {g.uuid: g.mig for g in gpus}
    every = {m for found in slices.values() for m, _, _ in found or ()}
    named = next((u for u in chosen if u in every), None)
    if named is not None:
        if len(chosen) > 1:
            notes.append("with a MIG device in the list only the first MIG device is visible")
        return [named]
    whole: list[str] = []
    for uuid in chosen:
        mine = slices[uuid]
        if mine is None:
            whole.append(uuid)
        elif mine:
            notes.append(f"{uuid} is in MIG mode: only its first MIG device is visible")
            return [mine[0][0]]
        else:
            notes.append(f"{uuid} is in MIG mode without a MIG device: it is not visible")
    return whole

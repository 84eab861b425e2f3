"""`scontrol show node`: what Slurm knows of the nodes of a cluster. Good for planning before there is a job."""

from __future__ import annotations

import itertools
import re

from parlaunch.errors import ParlaunchError
from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch.hardware.datasheet import nvml_name, product, products_like
from parlaunch.where.nodelist import hostnames
from parlaunch_probes.files.clean import whole
from parlaunch_probes.files.facts import Facts

WHAT = "scontrol show node"
MOST = 64  # GPUs of one node
_NODE = re.compile(r"^\s*NodeName=(\S+)", re.MULTILINE)
_GRES = re.compile(r"gpu(?::([^:,()\s=]+))?[:=](\d{1,3})\b")
# What Slurm's detection and sites call a slice: "a100_3g.20gb", "nvidia_h100_80gb_hbm3_1g.10gb", "1g.5gb".
_SLICE = re.compile(r"^(.*?)[_-]?((?:\dc\.)?\dg\.\d{1,3}gb\S*)$", re.IGNORECASE)
# Base states and flags of `State=IDLE+CLOUD+POWERED_DOWN`; what is powered down Slurm starts when a job wants it.
_AWAY = re.compile(r"(?:^|\+)(?:DOWN|DRAIN|FAIL|NOT_RESPONDING|NO_RESPOND|UNKNOWN|MAINT|FUTURE|ERROR|INVAL)")


def find(text: str) -> list[Facts]:
    """The nodes that have GPUs, in the order listed; those that are not up are left out where others are, and a note says so."""
    starts = [m.start() for m in _NODE.finditer(text)]
    blocks = [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
    found: list[Facts] = []
    away: list[Facts] = []
    for block in blocks:
        fields = dict(re.findall(r"(?:^|\s)([A-Za-z]\w{1,30})=(\S*)", block))
        gres = fields.get("Gres", "")
        kinds = [(name, int(n)) for name, n in _GRES.findall(gres)]
        count = sum(n for _, n in kinds)
        if not 0 < count <= MOST:
            continue
        try:
            names = hostnames(fields["NodeName"])
        except ParlaunchError:
            names = (fields["NodeName"],)
        into = away if _AWAY.search(fields.get("State", "")) else found
        into += [_facts(name, kinds, fields) for name in names]
    if away:
        named = ", ".join(f.node["hostname"] for f in away[:4]) + (" and more" if len(away) > 4 else "")
        said = f"{named} not up: left out" if found else f"{named} not up: planned for as if up"
        (found or away)[0].notes.append(said)
    return found or away


def _facts(name: str, kinds: list[tuple[str, int]], fields: dict[str, str]) -> Facts:
    facts = Facts(WHAT)
    for kind, count in kinds:
        if (slice_ := _SLICE.match(kind)) is not None:
            # Slurm counts slices here, and says nowhere how many GPUs they were cut from.
            name_of = _product(slice_[1], facts)
            facts.gpus.append(
                Gpu(index=len(facts.gpus), name=name_of, mig=True, mig_devices=(("", slice_[2], None),) * count)
            )
            facts.notes.append(f"GRES type {kind!r} is {count} MIG slices: of how many GPUs is not in this file")
        else:
            facts.gpus += [Gpu(index=len(facts.gpus) + i, name=_product(kind, facts)) for i in range(count)]
    facts.node["hostname"] = name
    if memory := whole(fields.get("RealMemory")):
        facts.node["memory_bytes"] = memory << 20
    if (sockets := whole(fields.get("Sockets"))) and (each := whole(fields.get("CoresPerSocket"))):
        facts.node |= {"sockets": sockets, "cores": sockets * each}
    return facts


def _product(kind: str, facts: Facts) -> str:
    """NVML's name of a GRES type. Sites choose the types: Slurm's own detection writes NVML's name, people "h100"."""
    words = kind.replace("_", " ").strip()
    sheet = product(words)
    if sheet is not None:
        return nvml_name(sheet)
    fits = products_like(words) if words else ()
    if len(fits) == 1:
        return nvml_name(fits[0])
    if fits:
        facts.may_be(f"GRES type {kind!r} may be {', '.join(s.name for s in fits)}: name it with --gpu")
    return UNKNOWN

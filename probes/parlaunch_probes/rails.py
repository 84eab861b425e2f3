"""Which ports carry the traffic of the GPUs: the fastest class of usable ports, near GPUs. The others say why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from parlaunch.machine import Fabric, Nic

NEAR = ("PIX", "PXB")
RDMA = ("infiniband", "roce", "efa")
Class = tuple[str, float | None, bool]  # fabric, bytes/s, a bond


def _rate(nic: Nic) -> str:
    return "an unknown rate" if nic.bytes_per_s is None else f"{nic.bytes_per_s * 8 / 1e9:g} Gb/s"


def _near(nic: Nic) -> bool:
    return any(level in NEAR for _, level in nic.distances)


def choose(nics: Iterable[Nic]) -> tuple[Nic, ...]:
    """The same ports with `rail` and `why_not` set. A port that has its `why_not` already stays out.

    RDMA ports go before plain Ethernet. Of those that are up, the class (fabric and rate) that carries most wins;
    where some of that class share a PCIe switch with a GPU, the others of the class are storage or front-end ports.
    """
    every = tuple(nics)
    free = [n for n in every if n.why_not is None]
    down = [n for n in free if n.up is False]
    up = [n for n in free if n.up is not False]
    pool = [n for n in up if n.kind in RDMA] or [n for n in up if n.kind == "ethernet"]
    classes: dict[Class, list[Nic]] = defaultdict(list)
    for nic in pool:
        classes[nic.kind, nic.bytes_per_s, nic.bond is not None].append(nic)
    if not classes:
        return tuple(_out(n, _why_down(n)) if n in down else replace(n, rail=False) for n in every)
    # Rate counts times the number of ports: eight ports of 100 are the rails beside one of 200.
    best = max(
        classes,
        key=lambda c: (
            (c[1] or 0.0) * len(classes[c]),
            len(classes[c]),
            not c[2],
            c[1] or 0.0,
            c[0] == "infiniband",
            c[0],
        ),
    )
    chosen = classes[best]
    near = [n for n in chosen if _near(n)]
    if near and len(near) < len(chosen):
        chosen = near
    names = {(n.name, n.port) for n in chosen}
    out = []
    for nic in every:
        if (nic.name, nic.port) in names and nic in free:
            out.append(replace(nic, rail=True, why_not=None))
        elif nic.why_not is not None:
            out.append(replace(nic, rail=False))
        elif nic in down:
            out.append(_out(nic, _why_down(nic)))
        else:
            out.append(_out(nic, _why_other(nic, best, chosen)))
    return tuple(out)


def _out(nic: Nic, why: str) -> Nic:
    return replace(nic, rail=False, why_not=nic.why_not or why)


def _why_down(nic: Nic) -> str:
    if nic.kind == "infiniband" and nic.state == "INIT":
        return "its state is INIT: no subnet manager has configured it"
    physical = f", the link {nic.physical_state}" if nic.physical_state and nic.physical_state != "LinkUp" else ""
    return f"its state is {nic.state or 'down'}{physical}"


def _why_other(nic: Nic, best: Class, chosen: Sequence[Nic]) -> str:
    kind, rate, bonded = best
    if nic.kind not in RDMA and kind in RDMA:
        return f"plain Ethernet: {len(chosen)} {kind} ports carry the GPU traffic"
    if nic.kind != kind:
        return f"{nic.kind} at {_rate(nic)}: the rails are {kind}"
    if nic.bytes_per_s != rate:
        return f"{_rate(nic)} where the rails run at {_rate(chosen[0])}"
    if (nic.bond is not None) != bonded:
        return (
            f"of the bond {nic.bond}: a front-end or storage network" if nic.bond else "not in a bond, as the rails are"
        )
    return "shares no PCIe switch with a GPU, as the rails do: a storage or front-end port"


def fabric_of(nics: Iterable[Nic], gpus: int) -> Fabric:
    """What joins this node to others: the kind of its rails, their number, and the bandwidth that a GPU gets of them."""
    rails = [n for n in nics if n.rail]
    if not rails:
        return Fabric(kind="none")
    rates = [n.bytes_per_s for n in rails]
    known = [r for r in rates if r is not None]
    total = sum(known) if len(known) == len(rates) else None
    return Fabric(
        kind=rails[0].kind, rails=len(rails), bytes_per_s_per_gpu=total / gpus if total is not None and gpus else None
    )

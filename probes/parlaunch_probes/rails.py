"""Which ports carry the traffic of the GPUs: the fastest class of usable ports, near GPUs. The others say why not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from parlaunch.hardware.cluster import Fabric, Gpu, Nic
from parlaunch.hardware.datasheet import product
from parlaunch.hardware.ports import RDMA, family_rate, port_name

NEAR = ("PIX", "PXB")
Class = tuple[str, float | None, bool]  # fabric, bytes/s, a bond
UNRATED = 100e9 / 8  # bytes/s that an RDMA port of unknown rate is taken for beside others, for the choice only
MANAGEMENT = "a management function of the board's NVSwitches"


def _rate(nic: Nic) -> str:
    return "an unknown rate" if nic.bytes_per_s is None else f"{nic.bytes_per_s * 8 / 1e9:g} Gb/s"


def _near(nic: Nic) -> bool:
    return any(level in NEAR for _, level in nic.distances)


def choose(nics: Iterable[Nic], gpus: int = 0) -> tuple[Nic, ...]:
    """The same ports with `rail` and `why_not` set. A port that has its `why_not` already stays out.

    RDMA ports go before plain Ethernet. Of those that are up, the class (fabric and rate) that carries most wins;
    where some of that class share a PCIe switch with a GPU, the others of the class are storage or front-end ports.
    Where the machine (of `gpus` GPUs) is built for faster ports and all of those are down, they are the rails, down.
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
        dark = _dark_rails(down, (), gpus)
        return tuple(_settled(n, dark, down) for n in every)

    def rate(c: Class) -> float:
        return c[1] or (UNRATED if c[0] in RDMA else 0.0)

    # Rate counts times the number of ports: eight ports of 100 are the rails beside one of 200.
    best = max(
        classes,
        key=lambda c: (
            rate(c) * len(classes[c]),
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
    said = [n for n in chosen if "rdma" in (n.netdev or n.name)]  # OCI's rdma0, Google's gpu0rdma0 beside eth0
    if len(chosen) > len(said) > 1:
        chosen = said
    if dark := _dark_rails(down, chosen, gpus):
        return tuple(_settled(n, dark, down) for n in every)
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


def _dark_rails(down: Sequence[Nic], up: Sequence[Nic], gpus: int) -> list[Nic]:
    """The rails of a machine whose rails are all down: RDMA ports of one model on a card for every second GPU at least, that
    could carry four times what is up; or more than that, where they are beside the GPUs and nothing that is up is. Elsewhere a
    model that is up as well has its rails already; an unplugged card of a workstation is no set of rails."""
    groups: dict[tuple[str, str | None, bool], list[Nic]] = defaultdict(list)
    alive = {(n.kind, n.model) for n in up}
    far = not any(map(_near, up))
    for nic in down:
        beside = far and _near(nic)
        if nic.kind in RDMA and not nic.virtual_function and (beside or (nic.kind, nic.model) not in alive):
            groups[nic.kind, nic.model, beside].append(nic)
    carried = sum(n.bytes_per_s or family_rate(n) or 0.0 for n in up if n.kind in RDMA)

    def could(nics: Sequence[Nic]) -> float:
        return sum(family_rate(n) or (UNRATED if n.model else 0.0) for n in nics)

    def cards(nics: Sequence[Nic]) -> int:
        return len({n.card or n.name for n in nics})

    need = max(2, (gpus + 1) // 2)
    many = [
        g
        for (_, _, beside), g in groups.items()
        if cards(g) >= need and could(g) >= max(1.0, carried if beside else 4 * carried)
    ]
    return max(many, key=lambda g: (could(g), len(g)), default=[])


def _settled(nic: Nic, dark: Sequence[Nic], down: Sequence[Nic]) -> Nic:
    """A port of a machine that has no rail up."""
    if nic in dark:
        return replace(nic, rail=True, why_not=None)
    if nic.why_not is not None:
        return replace(nic, rail=False)
    if nic in down:
        return _out(nic, _why_down(nic))
    if not dark:
        return replace(nic, rail=False)
    return _out(nic, f"the rails are the {len(dark)} {dark[0].kind} ports, which are down")


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
    if _near(nic) or not any(map(_near, chosen)):
        return (
            f"its interface {nic.netdev} is not named for RDMA, as those of the rails are: a storage or front-end port"
        )
    return "shares no PCIe switch with a GPU, as the rails do: a storage or front-end port"


def without_management(nics: Sequence[Nic], *, nvlink5: bool | None) -> tuple[Nic, ...]:
    """The same ports; those through which the NVSwitches of an HGX B200 or B300 are managed marked, and out of the choice.

    Their VPD says so, which only root may read. Without it: InfiniBand ports that run at a quarter or less of what their
    card can, several functions of one card; or, where a listing does not tell cards apart, several such ports on a board
    with NVLink 5 switches (`nvlink5`; False: it has none, and then no port is suspected); or, whatever the card, beside more
    ports that are faster and down; or, where no rate is told, three and more functions of one card there. Source: NVIDIA Fabric Manager user guide (`SMDL=SW_MNG`); siderolabs/extensions#893 (four functions).
    """
    slow = [n for n in nics if n.manages_switches is None and _one_lane(n)] if nvlink5 is not False else []
    cards: Counter[str | None] = Counter(n.card for n in slow if n.card)
    functions: Counter[str | None] = Counter(n.card for n in nics if n.kind == "infiniband" and not n.virtual_function)
    dark = [n for n in nics if n.up is False and n.kind in RDMA and n.why_not is None]

    def many_of_one(nic: Nic) -> bool:
        told = nic.bytes_per_s is not None or nic.card is None or nic.virtual_function or nic.manages_switches is False
        return bool(nvlink5) and nic.kind == "infiniband" and not told and functions[nic.card] > 2

    def suspected(nic: Nic) -> bool:
        if nic not in slow:
            return many_of_one(nic)
        faster = [n for n in dark if (family_rate(n) or 0.0) >= 4 * (nic.bytes_per_s or 0.0)]
        if nic.card is not None:
            # Two ports of one card may be slow for another reason, when nothing says that they have one lane.
            single = nvlink5 or (nic.rate or "").find("(1X") >= 0
            return cards[nic.card] > (1 if single else 2) or (bool(nvlink5) and len(faster) > len(slow) > 1)
        return (bool(nvlink5) and len(slow) > 1) or len(faster) > len(slow)

    out = []
    for nic in nics:
        known = nic.manages_switches
        guessed = known is None and suspected(nic)
        if known or guessed:
            seen = (
                f"one of {functions[nic.card]} functions of a card"
                if many_of_one(nic)
                else f"{_rate(nic)}, far below what its card can"
            )
            why = MANAGEMENT if known else f"{seen}: taken for {MANAGEMENT}"
            nic = replace(nic, manages_switches=True, why_not=nic.why_not or why)
        out.append(nic)
    return tuple(out)


def _one_lane(nic: Nic) -> bool:
    most = family_rate(nic)
    if nic.kind != "infiniband" or nic.up is False or not nic.bytes_per_s or most is None or nic.virtual_function:
        return False
    wide = nic.rate is not None and "X" in nic.rate and "(1X" not in nic.rate
    return 4 * nic.bytes_per_s <= most and not wide


def dark_notes(nics: Iterable[Nic]) -> list[str]:
    """One sentence about rails that are down, if there are any."""
    dark = [n for n in nics if n.rail and n.up is False]
    return [f"all {len(dark)} rails are down: {', '.join(map(port_name, dark))}"] if dark else []


def fabric_of(nics: Iterable[Nic], gpus: Sequence[Gpu]) -> Fabric:
    """What joins this node to others: the kind of its rails, their number, and the bandwidth that a GPU gets of them.
    Functions that share a port (`twin`) share its rate, and ports together carry no more than a chip's lanes to them."""
    rails = [n for n in nics if n.rail]
    if not rails:
        return Fabric(kind="none")
    ports = {(n.twin or n.name, n.port): n.bytes_per_s for n in rails}
    known = [r for r in ports.values() if r is not None]
    if len(known) < len(ports) or not gpus:
        return Fabric(kind=rails[0].kind, rails=len(rails))
    lanes = next((sheet.network_bytes_per_s for g in gpus if (sheet := product(g.name)) is not None), None)
    each = sum(known) / len(gpus)
    return Fabric(kind=rails[0].kind, rails=len(rails), bytes_per_s_per_gpu=each if lanes is None else min(each, lanes))


def with_twins(nics: Sequence[Nic], ports: Sequence[str | None]) -> tuple[Nic, ...]:
    """The same ports with `twin` set on PCI functions that lead to one physical port: those that agree in `ports`, the
    identity of the physical port as far as known, two at most (a card between two sockets, or the two halves of GB10's)."""
    groups: dict[str, list[int]] = defaultdict(list)
    for at, port in enumerate(ports):
        if port is not None:
            groups[port].append(at)
    out = list(nics)
    for group in groups.values():
        if len(group) == 2 and len({nics[at].name for at in group}) == 2:
            first = min(nics[at].name for at in group)
            for at in group:
                out[at] = replace(out[at], twin=first)
    return tuple(out)

"""What joins GPUs where a file does not show it: the boards that each product is sold on.

The conclusion is an assumption, and its note says so. Sources: NVIDIA's data sheets of the boards (HGX, DGX, NVL72),
IBM's of the POWER machines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Gpu, Nic
from parlaunch.hardware.datasheet import Product


@dataclass(frozen=True, slots=True)
class Board:
    """How the GPUs of a node are joined: the link type of `Node`, and the groups by GPU index."""

    link_type: str | None
    groups: tuple[tuple[int, ...], ...] = ()
    note: str = ""


def assumed(gpus: Sequence[Gpu], sheet: Product | None, *, power: bool = False, virtual: bool = False) -> Board:
    """The board that GPUs of one product sit on, as far as the product tells. `power`: the host is an IBM POWER."""
    if sheet is None:
        return Board(None)
    every = tuple(g.index for g in gpus)
    together = (every,) if len(every) > 1 else ()
    where = f"NVLink is not in this file: {sheet.name} GPUs"
    match sheet.board:
        case "nvswitch_mnnvl" if all(g.fabric_state == "not_supported" for g in gpus):
            if not together:
                return Board("none")  # a workstation's
            return Board("mesh", together, f"{where} without a fabric to register with are linked directly: assumed")
        case "nvswitch_mnnvl":
            return Board(
                "nvswitch_mnnvl", together, f"{where} sit in NVLink racks; the rack's other nodes are not known"
            )
        case "nvswitch":
            if _four_board(gpus, sheet, virtual):
                return Board("mesh", together, f"{where} on boards of four are linked directly: assumed")
            return Board("nvswitch", together, f"{where} sit on NVSwitch boards: assumed")
        case "sxm2":
            return _sxm2(gpus, every, where, power)
        case "pairs":
            pairs = tuple(every[i : i + 2] for i in range(0, len(every) - 1, 2))
            return Board(
                "pairs" if pairs else "none", pairs, f"{where} are sold with bridges between neighbours: assumed"
            )
        case "grace" if len(every) > 1:
            return Board("mesh", together, f"{where} of one node are linked directly: assumed")
        case "bridge" if len(every) > 1:
            return Board("none", (), f"{where} may have bridges; none assumed (`nvidia-smi topo -m` shows them)")
    return Board("none")


def by_shape(gpus: Sequence[Gpu], nics: Sequence[Nic]) -> Board:
    """Eight or sixteen GPUs of an unnamed model, with ports beside them for at least every second one: only machines
    with NVSwitches are built so. Compute capabilities that no data-centre board of the kind has speak against it."""
    near = {(n.card or n.pci or n.name) for n in nics if any(way in ("PIX", "PXB") for _, way in n.distances)}
    served = {g for n in nics for g, way in n.distances if way in ("PIX", "PXB")}
    if len(gpus) not in (8, 16) or 2 * len(near) < len(gpus) or len(served) < len(gpus):
        return Board(None)
    if any(g.compute_capability not in (None, (8, 0), (9, 0), (10, 0), (10, 3)) for g in gpus):
        return Board(None)
    note = (
        f"NVLink is not in this file: {len(gpus)} GPUs with network ports of their own are taken for an NVSwitch board"
    )
    return Board("nvswitch", (tuple(g.index for g in gpus),), note)


def _four_board(gpus: Sequence[Gpu], sheet: Product, virtual: bool) -> bool:
    """HGX boards of four have no switch. A host with more GPUs than it shows, or a VM, may be half a board of eight."""
    if len(gpus) != 4 or sheet.arch not in ("ampere", "hopper") or virtual:
        return False
    if sheet.arch == "hopper":  # only behind switches is there a fabric to register with
        return all(g.fabric_state == "not_supported" for g in gpus)
    return all(g.minor is not None and g.minor < 4 for g in gpus)


def _sxm2(gpus: Sequence[Gpu], every: tuple[int, ...], where: str, power: bool) -> Board:
    if power:
        sockets: dict[int | None, list[int]] = defaultdict(list)
        for gpu in gpus:
            sockets[gpu.numa].append(gpu.index)
        groups = tuple(tuple(g) for g in sockets.values() if len(g) > 1)
        kind = "pairs" if all(len(g) == 2 for g in groups) else "mesh"
        return Board(kind if groups else "none", groups, f"{where} of one POWER socket are linked: assumed")
    if len(every) == 8:
        return Board("cube_mesh", (every,), f"{where} in eights form a hybrid cube mesh: assumed")
    if len(every) > 1:
        return Board("mesh" if len(every) > 2 else "pairs", (every,), f"{where} are linked directly: assumed")
    return Board(None)

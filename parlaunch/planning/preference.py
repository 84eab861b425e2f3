"""What decides between layouts whose times the model cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log2
from typing import TypeVar

from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate
from parlaunch.planning.search import RESOLUTION, kind_of
from parlaunch.planning.space import inside, reach
from parlaunch.units import percent


@dataclass(frozen=True, slots=True)
class Charges:
    """What a layout is charged, as a share of its iteration time, for costs and risks that the model does not see.

    They are judgement, not measurement: what stands between layouts that NVIDIA tuned and those that our estimate likes a little
    better, settled on its choices as a whole (docs/against-nvidia.md); what each of them does is in docs/near-ties.md.
    """

    block: float  # each doubling of TP·CP: traffic in every layer, and kernels cut smaller
    crossing: float  # experts that leave the NVLink domain: a network shared with others
    narrowing: float  # each halving of EP below the domain or a quarter of the experts: more kernels a GPU
    memory: float  # times the share of the GPU's memory that is used: room for what the estimate misses
    recompute: float  # each module that is recomputed; whole layers count as four


CHARGES = {
    "dense": Charges(block=0.03, crossing=0.0, narrowing=0.0, memory=0.02, recompute=0.005),
    "experts": Charges(block=0.06, crossing=0.08, narrowing=0.07, memory=0.15, recompute=0.01),
}

YIELDS = {"dense": 0.03, "experts": 0.05}
"""How much slower than the fastest layout, by our estimate, the choice itself may be, as a share: with experts about what measured layouts
of one model are apart by in their errors, and where the agreement with NVIDIA's layouts is best (docs/near-ties.md). Those beside it
are in the order of charges within `RESOLUTION`."""

CANDIDATES = {"dense": 8, "experts": 30}
"""Grids that the choice is made among: enough to hold those within `RESOLUTION` that matter."""

Option = TypeVar("Option")

_WORDS = {
    "block": "has less tensor and context parallelism",
    "crossing": "keeps experts inside an NVLink domain",
    "narrowing": "spreads experts wider",
    "memory": "needs less memory",
    "recompute": "recomputes less",
}


def charged(c: Candidate, recipe: Recipe, rates: Rates, charges: Mapping[str, Charges] = CHARGES) -> dict[str, float]:
    """Shares of its time that a layout is charged, by the names of `Charges`."""
    x, charge = c.layout, charges[kind_of(recipe)]
    experts = recipe.architecture.num_moe_experts or 1
    wide = min(1 << reach(rates).bit_length() - 1, max(1, experts // 4), x.world)
    again = 4 if x.recompute.granularity == "full" else len(x.recompute.modules)
    return {
        "block": charge.block * log2(x.tp * x.cp),
        "crossing": 0.0 if inside(x.ep * x.etp, rates, x.world) else charge.crossing,
        "narrowing": charge.narrowing * max(0.0, log2(wide / x.ep)),
        "memory": charge.memory * c.memory.peak / c.memory.capacity,
        "recompute": charge.recompute * again,
    }


def by_charges(
    options: Iterable[Option],
    kind: str,
    *,
    seconds: Callable[[Option], float],
    world: Callable[[Option], int],
    charge: Callable[[Option], float],
) -> list[Option]:
    """The options in order: within `RESOLUTION` of the fastest by more GPUs, then by time and charge, a share of it; the rest by
    time. The first of all is the first of those within `YIELDS`. At least one option."""
    options = list(options)
    fastest = min(map(seconds, options))

    def place(option: Option) -> tuple[float, float]:
        time = seconds(option)
        if time > fastest * (1 + RESOLUTION[kind]):  # charges count for nothing there, and take long
            return (0.0, time)
        return (-world(option), time * (1 + charge(option)))

    order = sorted(options, key=place)
    order.insert(0, order.pop(next(at for at, o in enumerate(order) if seconds(o) <= fastest * (1 + YIELDS[kind]))))
    return order


def preferred(
    ranked: Sequence[Candidate], recipe: Recipe, rates: Rates, *, more: Callable[[Candidate], float] = lambda _c: 0.0
) -> list[Candidate]:
    """The candidates, the choice first, `by_charges`. `more` is charged beside `CHARGES`, as a share of the time."""
    return by_charges(
        ranked,
        kind_of(recipe),
        seconds=lambda c: c.estimate.iteration_time_s,
        world=lambda c: c.layout.world,
        charge=lambda c: sum(charged(c, recipe, rates).values()) + more(c),
    )


def near_tie(chosen: Candidate, ranked: Sequence[Candidate], recipe: Recipe, rates: Rates) -> tuple[str, ...]:
    """Why it is not the fastest by a share that the model cannot tell; nothing when it is, by what is printed of times."""
    fastest = min(ranked, key=lambda c: c.estimate.iteration_time_s)
    share = 1 - fastest.estimate.iteration_time_s / chosen.estimate.iteration_time_s
    if share < 0.005:
        return ()
    band = percent(RESOLUTION[kind_of(recipe)])
    said = f"{fastest.layout} is {percent(share)} faster by our estimate, which cannot tell layouts within {band} apart: this one"
    if chosen.layout.world > fastest.layout.world:
        return (f"{said} uses more GPUs.",)
    mine, other = charged(chosen, recipe, rates), charged(fastest, recipe, rates)
    saved = {name: other[name] - mine[name] for name in mine if other[name] - mine[name] > 0.005}
    merits = sorted(saved, key=lambda name: -saved[name])[:2]
    return (f"{said} {' and '.join(_WORDS[m] for m in merits)}.",) if merits else ()

"""What decides between layouts whose times the model cannot tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log2
from typing import TypeVar

from parlaunch.estimate.values import breakdown
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates
from parlaunch.model.recipe import Recipe
from parlaunch.planning.alternatives import Prospect, in_turn, prospect
from parlaunch.planning.plan import Candidate
from parlaunch.planning.search import RESOLUTION, Grid, grid_of, kind_of
from parlaunch.planning.space import reach
from parlaunch.units import percent


@dataclass(frozen=True, slots=True)
class Charges:
    """What a layout is charged, as a share of its iteration time, for costs and risks that the model does not see.

    They are judgement, not measurement: what stands between layouts that NVIDIA tuned and those that our estimate likes a little
    better, settled on its choices as a whole (docs/against-nvidia.md); what each of them does is in docs/near-ties.md.
    """

    block: float  # each doubling of TP·CP: traffic in every layer, and kernels cut smaller
    narrowing: float  # each halving of EP below the domain or a quarter of the experts: more kernels a GPU
    room: float  # each halving of what is left for activations: with experts, routing decides what a GPU has to hold


CHARGES = {
    "dense": Charges(block=0.08, narrowing=0.0, room=0.0),
    "experts": Charges(block=0.08, narrowing=0.04, room=0.2),
}

YIELDS = {"dense": 0.03, "experts": 0.05}
"""How much slower than the fastest layout, by our estimate, the choice itself may be, as a share: with experts about what measured layouts
of one model are apart by in their errors, and where the agreement with NVIDIA's layouts is best (docs/near-ties.md)."""

CANDIDATES = {"dense": 8, "experts": 30}
"""Grids that the choice and its alternatives are taken from: enough to hold those within `RESOLUTION` that matter."""

Option = TypeVar("Option")

_WORDS = {
    "block": "has less tensor and context parallelism",
    "narrowing": "spreads experts wider",
    "room": "leaves more room for activations",
}


def _nothing(_candidate: Candidate) -> float:
    return 0.0


def charged(c: Candidate, recipe: Recipe, rates: Rates, charges: Mapping[str, Charges] = CHARGES) -> dict[str, float]:
    """Shares of its time that a layout is charged, by the names of `Charges`."""
    x, m, charge = c.layout, c.memory, charges[kind_of(recipe)]
    experts = recipe.architecture.num_moe_experts or 1
    wide = min(1 << reach(rates).bit_length() - 1, max(1, experts // 4), x.world)
    # The peak itself tells little: micro batch and recomputation fill what there is, and give it back.
    room = max(1, m.capacity - m.peak + m.activations + m.logits)
    return {
        "block": charge.block * log2(x.tp * x.cp),
        "narrowing": charge.narrowing * max(0.0, log2(wide / x.ep)),
        "room": charge.room * log2(m.capacity / room),
    }


def favourite(
    options: Iterable[Option],
    kind: str,
    *,
    seconds: Callable[[Option], float],
    world: Callable[[Option], int],
    charge: Callable[[Option], float],
) -> Option:
    """Of the options within `YIELDS` of the fastest those with most GPUs, and of these the one that takes least time and charge, a share
    of it. At least one option."""
    options = list(options)
    most = min(map(seconds, options)) * (1 + YIELDS[kind])
    near = [option for option in options if seconds(option) <= most]
    return min(near, key=lambda option: (-world(option), seconds(option) * (1 + charge(option))))


def preferred(
    ranked: Sequence[Candidate], recipe: Recipe, rates: Rates, *, more: Callable[[Candidate], float] = _nothing
) -> Candidate:
    """The choice, the `favourite`. `more` is charged beside `CHARGES`, as a share of the time."""
    return favourite(
        ranked,
        kind_of(recipe),
        seconds=lambda c: c.estimate.iteration_time_s,
        world=lambda c: c.layout.world,
        charge=lambda c: sum(charged(c, recipe, rates).values()) + more(c),
    )


def worth_a_try(
    chosen: Candidate,
    others: Iterable[Candidate],
    recipe: Recipe,
    rates: Rates,
    count: int,
    *,
    more: Callable[[Candidate], float] = _nothing,
) -> list[Candidate]:
    """`count` of the others, each the best of its grid, `in_turn` beside the choice; charges count as for the choice."""

    def seen(c: Candidate) -> Prospect:
        charge = sum(charged(c, recipe, rates).values()) + more(c)
        return prospect(c.estimate.iteration_time_s, breakdown(c.estimate).values(), charge)

    best: dict[Grid, tuple[Prospect, Candidate]] = {}
    for other in others:
        here, grid = seen(other), grid_of(other.layout)
        if grid not in best or here.expected < best[grid][0].expected:
            best[grid] = (here, other)
    rest = sorted(best.values(), key=lambda both: both[0].expected)
    return [rest[place][1] for place in in_turn(seen(chosen), [here for here, _ in rest], count)]


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

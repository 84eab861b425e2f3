"""The best layouts of the space, without visiting all of it.

Three observations let most of the space go unseen, and lose nothing (a test compares with a visit to every layout):

- **A bound on time.** The micro batch's way through all layers takes `c` seconds, whatever number of stages they stand on.
  The slowest of PP stages works at least c/PP on each of its M micro batches, and the pipeline fills and drains over the
  others: no layout with these sizes is faster than c/PP · (M + (PP-1)/VP). Layouts are looked at in the order of that bound,
  and the search ends when it passes what has been found.
- **A bound on memory.** Weights, gradients and optimizer spread over TP·PP and PP·EP·ETP; where their mean over the stages does
  not fit, the fullest stage does not.
- **Recomputation only costs time.** Where a layout fits without, the same layout with recomputation is slower; where it does
  not fit with full recomputation, nothing less helps.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import NamedTuple

from parlaunch.estimate.memory import estimate_memory, peak_and_spare
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.values import Memory
from parlaunch.frozen import replaced
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.floor import Floor
from parlaunch.planning.ladder import Ladder, Step
from parlaunch.planning.passes import Core, Passes, bound_of, core_of
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.space import (
    cp_sizes,
    cuts,
    divisors,
    exchange,
    expert_sizes,
    interleavings,
    micro_batches,
    module_sets,
    recomputes,
    stage_counts,
    tp_sizes,
    worlds,
)
from parlaunch.rules import why_not

RESOLUTION = {"dense": 0.03, "experts": 0.12}
"""Share of the iteration time below which the model cannot tell two layouts of one model on one machine apart. Without experts what the
errors of two measured layouts of one group are apart in half of the pairs (`docs/near-ties.md`); with experts one pair of runs differs in
nothing but the layout, so it is the band of a time (`estimate.timing.bands`). The search looks at every layout of a grid within it;
beyond, a grid's first one stands for it. The choice itself yields less (`planning.preference.YIELDS`)."""


def kind_of(recipe: Recipe) -> str:
    """Which `RESOLUTION` counts, and whatever else differs with experts."""
    return "experts" if recipe.architecture.num_moe_experts else "dense"


class Grid(NamedTuple):
    """Layouts of one grid differ in micro batch, VP, split and recomputation."""

    world: int
    tp: int
    pp: int
    cp: int
    ep: int
    etp: int
    fsdp: bool


def grid_of(layout: Layout) -> Grid:
    """The grid that a layout belongs to."""
    return Grid(layout.world, layout.tp, layout.pp, layout.cp, layout.ep, layout.etp, layout.fsdp)


@dataclass(slots=True)
class Found:
    """What a search saw. `ranked`: the best fitting layout of each grid, best first."""

    ranked: list[Candidate] = field(default_factory=list)
    closest: tuple[Layout, Memory] | None = None  # when nothing fits: the layout that misses by least
    legal: int = 0  # layouts whose peak was estimated
    timed: int = 0


class Bounded(NamedTuple):
    """A layout, and the seconds of an iteration that it cannot be faster than."""

    bound: float
    layout: Layout


class _Entry(NamedTuple):
    """What waits to be looked at: compared by its bound, then by its turn."""

    bound: float
    number: int
    layout: Layout
    ladder: Ladder | None  # None: a node, of which no layout was made yet


class Search:
    """One search. Estimates are remembered, so that planner and advice may ask again."""

    def __init__(
        self,
        recipe: Recipe,
        rates: Rates,
        wishes: Wishes,
        *,
        at: Callable[[Layout, Recompute], Recipe] | None = None,
        forbids: Callable[[Layout, Recipe], str | None] | None = None,
        like: Search | None = None,
        crowded: bool = False,
    ) -> None:
        """`at` gives the recipe with the switches that a layout allows while it recomputes that; `recipe` is then with all that help
        anywhere, and no layout is faster than what it makes of it. None: the recipe is as it is in every layout. `forbids` says why a layout
        cannot run for reasons that are not Megatron's. `like` is a search with other switches: what it found leanest is asked first.
        `crowded`: layouts that leave the allocator too little to run at speed are taken as well."""
        self.crowded: bool = crowded if like is None else like.crowded
        self.turned_away = False  # some that fit were not taken for it
        self.recipe, self.rates, self.wishes, self._at, self._forbids = recipe, rates, wishes, at, forbids
        self.seen: list[Bounded] = []  # nodes that the walk came by
        self.tight: set[tuple[Grid, int]] = set()  # grids and micro batches of which some layout did not fit
        self.fsdp = recipe.features.fsdp if wishes.fsdp is None else wishes.fsdp
        self.layers = len(recipe.architecture.layers())
        self.found = Found()
        self.passes = Passes(recipe, rates, wishes, fsdp=self.fsdp)
        self.floor = Floor(recipe, rates, wishes)
        self._candidates: dict[Layout, Candidate] = {}
        self._peaks: dict[tuple[Layout, Recompute], tuple[int, int]] = {}
        self._known_steps: dict[tuple[Core, int, Features], list[Step]] = {}
        self._sets: dict[tuple[Core, Features], dict[tuple[str, ...], float]] = {}
        # The number of the leanest split.
        self._leanest: dict[tuple[int, int, int, int, int], int] = dict(like._leanest) if like is not None else {}
        self._dead: dict[Grid, int] = {}  # the smallest micro batch that nothing makes fit
        self._needed: dict[Layout, float | None] = {}
        self._limit = rates.memory_bytes * (1 - wishes.headroom)

    # --- estimates ----------------------------------------------------------------------------------------------------

    def at(self, layout: Layout, recompute: Recompute | None = None) -> Recipe:
        """The recipe as it is in this layout, with that recomputed in place of the layout's own."""
        return self.recipe if self._at is None else self._at(layout, recompute or layout.recompute)

    def memory(self, layout: Layout) -> Memory:
        """What the layout needs, with the switches that it has here."""
        return estimate_memory(self.at(layout), layout, self.rates, headroom=self.wishes.headroom)

    def peak(self, base: Layout, recompute: Recompute | None = None) -> int:
        """Bytes that the fullest GPU holds, with that recomputed in place of the layout's own: no layout is made for it, since most
        do not fit."""
        return self._peak_and_spare(base, recompute)[0]

    def _peak_and_spare(self, base: Layout, recompute: Recompute | None) -> tuple[int, int]:
        again = recompute or base.recompute
        key = (base, again)
        known = self._peaks.get(key)
        if known is None:
            self.found.legal += 1
            known = self._peaks[key] = peak_and_spare(self.at(base, again), base, self.rates, again)
        return known

    def fits(self, base: Layout, recompute: Recompute | None = None) -> bool:
        """It fits, and runs at speed, unless `crowded` ones are looked for too."""
        peak, spare = self._peak_and_spare(base, recompute)
        if peak > self._limit:
            return False
        if self.crowded or peak + spare <= self.rates.memory_bytes:
            return True
        self.turned_away = True
        return False

    def candidate(self, layout: Layout) -> Candidate:
        """The layout with its memory and time, made once."""
        known = self._candidates.get(layout)
        if known is None:
            self.found.timed += 1
            recipe = self.at(layout)
            known = self._candidates[layout] = Candidate(
                layout=layout, memory=self.memory(layout), estimate=estimate_time(recipe, layout, self.rates),
                features=None if self._at is None else recipe.features,
            )  # fmt: skip
        return known

    def held(self, layout: Layout) -> Candidate | None:
        """The layout as a candidate; None where Megatron refuses it, or where not even a GPU's whole memory holds it."""
        if not self.legal(layout) or self.peak(layout) > self.rates.memory_bytes:
            return None
        return self.candidate(layout)

    def bound(self, layout: Layout) -> float:
        """Seconds that no layout with these sizes can beat, whatever it recomputes and however layers are split."""
        return bound_of(self.passes.one(core_of(layout)), layout.pp, layout.vp, layout.num_microbatches)

    def roomy(self, node: Layout) -> bool:
        """Whether every layout of the node that was looked at fits as it is, with nothing switched off for its sake."""
        m = node.num_microbatches
        most = interleavings(self.recipe, self.wishes, node.pp, m)[-1]
        tight = (grid_of(node), node.micro_batch_size) in self.tight
        return node in self._needed and not tight and self.at(replaced(node, vp=most)) is self.recipe

    def pass_of(self, node: Layout) -> float:
        """Seconds of one of the node's micro batches through all layers."""
        return self.passes.one(core_of(node))

    # --- the walk -----------------------------------------------------------------------------------------------------

    def nodes(self, world: int, *, everything: bool = False) -> Iterator[Bounded]:
        """Sizes without VP, split and recomputation, each with the bound for the most interleaving that it allows.

        `everything`: also where weights, gradients and optimizer alone cannot fit.
        """
        for layout in self._sizes(world, everything=everything):
            m = layout.num_microbatches
            most = interleavings(self.recipe, self.wishes, layout.pp, m)[-1]
            yield Bounded(bound_of(self.passes.one(core_of(layout)), layout.pp, most, m), layout)

    def _sizes(self, world: int, *, everything: bool) -> Iterator[Layout]:
        r, gbs = self.recipe, self.recipe.global_batch_size
        pps = stage_counts(r, self.wishes, world, self.fsdp)
        experts = expert_sizes(r, self.rates, self.wishes, world)
        for tp in tp_sizes(r, self.rates, self.wishes, world):
            for cp in cp_sizes(r, self.wishes, world):
                comm = exchange(r, self.wishes, cp)
                for pp in pps:
                    if world % (tp * cp * pp):
                        continue
                    dp = world // (tp * cp * pp)
                    if gbs % dp:
                        continue
                    mbss = micro_batches(r, self.wishes, gbs // dp, r.seq_length // cp)
                    for ep, etp in experts:
                        if world % (pp * ep * etp):
                            continue
                        edp = world // (pp * ep * etp)
                        if not everything and not self.fsdp and not self.floor.fits(tp, pp, ep, etp, dp * cp, edp):
                            continue
                        for mbs in mbss:
                            yield Layout(
                                world=world, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs,
                                global_batch_size=gbs, fsdp=self.fsdp, cp_comm_type=comm,
                            )  # fmt: skip

    def bases(self, node: Layout, more: float = 0.0) -> Iterator[Bounded]:
        """The node's layouts without recomputation: every VP, every split, with the bound for at least `more` seconds of
        recomputation a micro batch."""
        m, again = node.num_microbatches, self.wishes.recompute or NO_RECOMPUTE
        for vp in interleavings(self.recipe, self.wishes, node.pp, m):
            base = replaced(node, vp=vp, recompute=again)
            once = self._pass_at(base) + more
            for split in cuts(self.recipe.architecture, self.wishes, node.pp, vp):
                yield Bounded(bound_of(once, node.pp, vp, m), replaced(base, layers_per_chunk=split))

    def _pass_at(self, base: Layout) -> float:
        """Seconds of a pass with the switches that the base allows."""
        return self.passes.with_switches(self.at(base), core_of(base))

    def _steps(self, base: Layout) -> list[Step]:
        """What may be recomputed beside nothing, by the seconds that it costs a micro batch; empty when that is pinned."""
        if self.wishes.recompute is not None:
            return []
        chunk = self._chunk(base)
        key = (core_of(base), chunk, self.at(base).features)
        known = self._known_steps.get(key)
        if known is not None:
            return known
        # With everything on: no layout needs less for it.
        useful, prices = self._useful(base), self.passes.prices(self.recipe, core_of(base))
        steps: list[Step] = []
        for r in recomputes(self.recipe, self.wishes, chunk):
            if r.granularity == "selective" and r.modules in useful:
                steps.append(Step(useful[r.modules], r, frozenset(r.modules)))
            elif r.granularity == "full":
                steps.append(Step(prices.more(r, chunk), r))
        known = self._known_steps[key] = sorted(steps, key=_cost)
        return known

    def _useful(self, base: Layout) -> dict[tuple[str, ...], float]:
        """Sets of modules that free more than every cheaper set, with their seconds a micro batch.

        Bytes and seconds of modules add up, and both scale with layers and micro batches alike: what one stage with one
        micro batch frees orders the sets for all layouts of these sizes.
        """
        core, recipe = core_of(base), self.at(base)
        known = self._sets.get((core, recipe.features))
        if known is not None:
            return known
        alone = replaced(self.passes.alone(core), cp_comm_type=base.cp_comm_type)

        def peak(r: Recompute) -> int:
            return peak_and_spare(recipe, alone, self.rates, r)[0]

        plain = peak(NO_RECOMPUTE)
        sets = module_sets(self.recipe.architecture)
        frees = {
            m: plain - peak(Recompute(granularity="selective", modules=(m,))) for m in {m for s in sets for m in s}
        }
        prices = self.passes.prices(self.recipe, core)
        priced = sorted(
            (prices.more(Recompute(granularity="selective", modules=s), 1), -sum(frees[m] for m in s), s) for s in sets
        )
        known, most = {}, 0
        for more, freed, modules in priced:
            if -freed > most:
                most = -freed
                known[modules] = more
        self._sets[core, recipe.features] = known
        return known

    def _least(self, node: Layout, below: float) -> float | None:
        """Seconds of recomputation a micro batch that the node needs at least to fit, without interleaving and with its
        leanest split; None when nothing makes it fit for less than `below`. Interleaving only takes more memory."""
        if self.wishes.recompute is not None:
            return 0.0
        if node.micro_batch_size >= self._dead.get(grid_of(node), node.micro_batch_size + 1):
            return None  # a smaller micro batch did not fit
        whole = cuts(self.recipe.architecture, self.wishes, node.pp, None) or (None,)
        forms = [replaced(node, layers_per_chunk=s) for s in whole]
        # The split that is leanest for one micro batch nearly always is for the next: ask for the others only when it fails.
        sizes = (node.tp, node.pp, node.cp, node.ep, node.etp)
        at = self._leanest.get(sizes)
        if at is None or not self.fits(forms[at], FULL_RECOMPUTE):
            peak, at = min((self.peak(form, FULL_RECOMPUTE), i) for i, form in enumerate(forms))
            self._leanest[sizes] = at
            if peak > self._limit:
                grid = grid_of(node)
                self._dead[grid] = min(node.micro_batch_size, self._dead.get(grid, node.micro_batch_size))
                return None
        least = None
        # The split that is leanest with everything recomputed need not be with less.
        for base in (forms[at], *forms[:at], *forms[at + 1 :]):
            found = self._cheapest(base, below)
            if found is not None:
                least = below = found
            if least == 0.0:
                break
        return least

    def _cheapest(self, base: Layout, below: float) -> float | None:
        """Seconds of recomputation a micro batch with which the base fits; None when nothing makes it fit for less than `below`."""
        if self.fits(base):
            return 0.0
        steps = self._steps(base)
        if below < float("inf"):
            steps = steps[: bisect_left(steps, below, key=_cost)]
            most = next((step.recompute for step in reversed(steps) if step.recompute.method == "block"), None)
            if most is not None and not self.fits(base, most):
                steps = [step for step in steps if step.recompute.method != "block"]
        ladder = Ladder(base)
        ladder.stand(steps, self.fits)
        step = ladder.next(self.fits)
        while step is not None:
            if self.fits(base, step.recompute):
                return step.cost
            step = ladder.next(self.fits, step.modules)
        return None

    def _rungs(self, base: Layout, floor: float, than: float) -> list[Step]:
        """Everything that may be recomputed and costs at least `floor`, by rising bound up to `than` seconds; empty when not even
        all of it makes the base fit."""
        if self.wishes.recompute is not None or not self.fits(base, FULL_RECOMPUTE):
            return []
        m, chunk = base.num_microbatches, self._chunk(base)
        rungs = []
        for more, again, modules in self._steps(base):
            if more >= floor * (1 - 1e-9):
                bound = bound_of(self._pass_again(base, again, chunk), base.pp, base.vp, m)
                if bound <= than:
                    rungs.append(Step(bound, again, modules))
        return sorted(rungs, key=_cost)

    def _chunk(self, base: Layout) -> int:
        """Layers of the largest chunk."""
        return max(base.layers_per_chunk) if base.layers_per_chunk else self.layers // base.chunks

    def _pass_again(self, base: Layout, recompute: Recompute, chunk: int) -> float:
        """Seconds of one micro batch through all layers that recomputes so, with the switches that this allows."""
        prices = self.passes.prices(self.at(base, recompute), core_of(base))
        return prices.once + prices.more(recompute, chunk)

    def legal(self, layout: Layout) -> bool:
        """Whether Megatron runs it, and the switches can be on in it."""
        recipe = self.at(layout)
        if why_not(layout, recipe, self.rates) is not None:
            return False
        return self._forbids is None or self._forbids(layout, recipe) is None

    def faster(self, nodes: Iterable[Layout], than: float) -> Candidate | None:
        """The best layout of these nodes, where it takes less than so many seconds."""
        heap: list[_Entry] = []
        number, best = count(), None
        for node in nodes:
            m = node.num_microbatches
            most = interleavings(self.recipe, self.wishes, node.pp, m)[-1]
            bound = bound_of(self.passes.one(core_of(node)), node.pp, most, m)
            if bound < than:
                heap.append(_Entry(bound, next(number), node, None))
        heapq.heapify(heap)
        while heap and heap[0].bound < than:
            bound, _, layout, ladder = heapq.heappop(heap)
            made = self._look(layout, bound, ladder, heap, number, than)
            if made is not None and made.estimate.iteration_time_s < than:
                best, than = made, made.estimate.iteration_time_s
        return best

    def _look(
        self,
        layout: Layout,
        bound: float,
        ladder: Ladder | None,
        heap: list[_Entry],
        number: Iterator[int],
        than: float,
    ) -> Candidate | None:
        """The layout as a candidate where it runs and fits; else what it stands for, or the next to recompute, joins the heap,
        unless it takes more than `than` seconds: nobody waits for it."""
        if ladder is None:
            self._open(layout, bound, heap, number, than)
            return None
        base, again = ladder.base, layout.recompute
        if self.fits(base, again) and (layout is base or self.legal(layout)):
            return self.candidate(layout)
        self.tight.add((grid_of(layout), layout.micro_batch_size))
        if ladder.steps is None:
            ladder.stand(self._rungs(base, ladder.floor, than), self.fits)
        failed = frozenset(again.modules) if again.granularity == "selective" else frozenset()
        if (step := ladder.next(self.fits, failed)) is not None:
            heapq.heappush(heap, _Entry(step.cost, next(number), ladder.recomputing(step.recompute), ladder))
        return None

    def run(self, *, keep: int = 6, sizes: tuple[int, ...] | None = None) -> Found:
        """The best layout and those that the model cannot tell from it (within `RESOLUTION`), each the best of its grid; then
        other grids with their first fitting layout, `keep` in all.

        `sizes`: the numbers of GPUs to use (default: all that `worlds` names). Equal times keep the order in which the
        space is laid out: smaller sizes first.
        """
        heap: list[_Entry] = []
        number = count()
        best: dict[Grid, Candidate] = {}
        near = float("inf")  # beyond, nothing is left that the model could confuse with the best
        band, enough = RESOLUTION[kind_of(self.recipe)], keep + keep // 2
        waiting = list(sizes if sizes is not None else worlds(self.rates))
        while heap or waiting:
            self._admit(waiting, heap, number, near)
            if not heap:
                continue
            bound, _, layout, ladder = heapq.heappop(heap)
            if bound > near and len(best) >= enough:
                break
            grid = grid_of(layout)
            mine = best[grid].estimate.iteration_time_s if grid in best else float("inf")
            if bound >= mine or (grid in best and bound > near):
                continue  # this grid has a layout that no other can beat, or is known to be slower than the best
            than = min(mine, near) if grid in best else near if len(best) >= enough else float("inf")
            made = self._look(layout, bound, ladder, heap, number, than)
            if made is not None and made.estimate.iteration_time_s < mine:
                best[grid] = made
                near = min(near, made.estimate.iteration_time_s * (1 + band))
        self.found.ranked = sorted(best.values(), key=_order)[:keep]
        return self.found

    def _admit(self, waiting: list[int], heap: list[_Entry], number: Iterator[int], near: float) -> None:
        """Open the numbers of GPUs whose turn it is: a smaller one once the larger ones have nothing left that could be
        faster than it, and none that only has what is slower than `near`."""
        while waiting and (not heap or self._opening(waiting[0]) <= min(heap[0].bound, near)):
            world = waiting.pop(0)
            if self._opening(world) > near:
                waiting.clear()
                return
            opened = list(self.nodes(world))
            self.seen += opened
            for bound, node in opened:
                heapq.heappush(heap, _Entry(bound, next(number), node, None))

    def _open(self, node: Layout, bound: float, heap: list[_Entry], number: Iterator[int], than: float) -> None:
        """Replace a node by what it stands for; first by itself again, when the recomputation it needs makes it wait. What takes
        more than `than` seconds is left out."""
        if node not in self._needed:
            m = node.num_microbatches
            most = interleavings(self.recipe, self.wishes, node.pp, m)[-1]
            once = self.passes.one(core_of(node))
            # Seconds a micro batch; a little more, because they were not added up in this order.
            room = than / bound_of(1.0, node.pp, most, m) * (1 + 1e-9) - once
            more = self._least(node, room)
            if more != 0.0:
                self.tight.add((grid_of(node), node.micro_batch_size))
            if more is not None or room == float("inf"):
                self._needed[node] = more  # else it may fit for more than was asked
            if more is None:
                return
            tighter = bound_of(once + more, node.pp, most, m)
            if tighter > bound:
                heapq.heappush(heap, _Entry(tighter, next(number), node, None))
                return
        floor = self._needed[node] or 0.0
        for tighter, base in self.bases(node, floor):
            if tighter <= than and self.legal(base):
                heapq.heappush(heap, _Entry(tighter, next(number), base, Ladder(base, floor=floor)))

    def least(self, *, keep: int = 6, sizes: tuple[int, ...] | None = None) -> Found:
        """The `keep` grids that need least memory. `closest` is the leanest layout of all when even that does not fit.

        The leanest form of a grid has the smallest micro batch, no interleaving and everything recomputed.
        """
        best: dict[Grid, tuple[int, Layout]] = {}
        for world in sizes if sizes is not None else worlds(self.rates):
            for node in self._lean_nodes(world):
                grid = grid_of(node)
                for layout in self._lean_forms(node):
                    peak = self.peak(layout)
                    if (grid not in best or peak < best[grid][0]) and self.legal(layout):
                        best[grid] = (peak, layout)
            if best:
                break  # fewer GPUs need no less
        leanest = sorted(best.values(), key=lambda b: (b[0], grid_of(b[1])))[:keep]
        self.found.closest = (leanest[0][1], self.memory(leanest[0][1])) if leanest else None
        self.found.ranked = [self.candidate(layout) for _, layout in leanest if self.fits(layout)]
        return self.found

    def _lean_nodes(self, world: int) -> Iterator[Layout]:
        """One node a grid: the one with the smallest micro batch."""
        seen: set[Grid] = set()
        for layout in self._sizes(world, everything=True):
            grid = grid_of(layout)
            if grid not in seen:
                seen.add(grid)
                yield layout

    def _lean_forms(self, node: Layout) -> Iterator[Layout]:
        choices = (FULL_RECOMPUTE, NO_RECOMPUTE) if self.wishes.recompute is None else (self.wishes.recompute,)
        vps = interleavings(self.recipe, self.wishes, node.pp, node.num_microbatches)
        for vp in vps[:1] if self.wishes.vp is None else vps:
            for split in cuts(self.recipe.architecture, self.wishes, node.pp, vp):
                for again in choices:
                    yield replaced(node, vp=vp, layers_per_chunk=split, recompute=again)

    def _opening(self, world: int) -> float:
        """Seconds that no layout on so many GPUs can beat: the fastest pass known, spread without any bubble."""
        fastest = self.passes.fastest
        return fastest * self.recipe.global_batch_size / world if fastest < float("inf") else 0.0


_cost = attrgetter("cost")


def _order(candidate: Candidate) -> tuple[float, int, int, int, int]:
    x = candidate.layout
    return (candidate.estimate.iteration_time_s, x.model_parallel, x.ep, x.vp or 1, x.micro_batch_size)


def nearest_batches(recipe: Recipe, step: int) -> tuple[int, ...]:
    """Global batches next to the recipe's that are multiples of `step`, a micro batch on each replica."""
    gbs = recipe.global_batch_size
    return tuple(dict.fromkeys(b for b in (gbs // step * step, -(-gbs // step) * step) if b))


def nearest_worlds(recipe: Recipe, world: int, block: int, micro_batch: int) -> tuple[int, ...]:
    """Other numbers of GPUs near `world` that make whole replicas of `block` GPUs which share the recipe's batch evenly, in micro
    batches of that size; none where these do not make a batch."""
    batches, over = divmod(recipe.global_batch_size, micro_batch)
    fitting = [] if over or not batches else [block * d for d in divisors(batches) if block * d != world]
    below, above = [w for w in fitting if w <= world], [w for w in fitting if w > world]
    return (*reversed(below[-2:]), *above[:1])

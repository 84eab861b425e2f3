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
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from parlaunch.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.memory import estimate_memory
from parlaunch.parameters import embedding_weights, head_weights, layer_weights, mtp_weights
from parlaunch.plan import Candidate, Memory, Wishes
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.rules import why_not
from parlaunch.space import (
    cp_comm_type,
    cp_sizes,
    divisors,
    expert_sizes,
    interleavings,
    micro_batches,
    module_sets,
    recomputes,
    splits,
    stage_counts,
    tp_sizes,
    worlds,
)
from parlaunch.states import bytes_a_parameter
from parlaunch.timing import estimate_time, micro_batch_time

BAND = {"dense": 0.03, "experts": 0.12}
"""Share of the iteration time below which the model cannot tell two layouts of one model on one machine apart. With experts about
the worst error on today's published runs; without, about the mean: dense layouts of one model share most of what is wrong. The
search looks at every layout of a grid within it; beyond, a grid's first one stands for it."""


def kind_of(recipe: Recipe) -> str:
    """Which `BAND` counts, and whatever else differs with experts."""
    return "experts" if recipe.architecture.num_moe_experts else "dense"


Grid = tuple[int, int, int, int, int, int, bool]
"""(world, tp, pp, cp, ep, etp, fsdp): layouts of one grid differ in micro batch, VP, split and recomputation."""

_Core = tuple[int, int, int, int, int]
"""(tp, cp, ep, etp, micro batch): what the time of one micro batch through all layers depends on."""


def grid_of(layout: Layout) -> Grid:
    """The grid that a layout belongs to."""
    return (layout.world, layout.tp, layout.pp, layout.cp, layout.ep, layout.etp, layout.fsdp)


@dataclass(slots=True)
class Found:
    """What a search saw. `ranked`: the best fitting layout of each grid, best first."""

    ranked: list[Candidate] = field(default_factory=list)
    closest: tuple[Layout, Memory] | None = None  # when nothing fits: the layout that misses by least
    legal: int = 0  # layouts whose memory was estimated
    timed: int = 0


@dataclass(slots=True)
class _Ladder:
    """What may still be recomputed to make `base` fit, by rising bound."""

    base: Layout
    steps: list[tuple[float, Recompute]] | None = None  # None: not asked for yet
    at: int = 0
    floor: float = 0.0  # seconds of recomputation a micro batch below which nothing fits
    short: list[frozenset[str]] = field(default_factory=list)  # sets of modules that did not free enough
    block: int | None = None  # the fewest layers of a block that free enough; None: not asked for yet

    def recomputing(self, recompute: Recompute) -> Layout:
        """The base, recomputing that."""
        return replace(self.base, recompute=recompute)


_Entry = tuple[float, int, Layout, _Ladder | None]
"""(bound, order of entry, layout, its ladder); a node has no ladder yet."""


class Search:
    """One search. Estimates are remembered, so that planner and advice may ask again."""

    def __init__(self, recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
        self.recipe, self.rates, self.wishes = recipe, rates, wishes
        self.fsdp = recipe.features.fsdp if wishes.fsdp is None else wishes.fsdp
        self.layers = len(recipe.architecture.layers())
        self.found = Found()
        self._passes: dict[tuple[_Core, Recompute], float] = {}
        self._fastest = float("inf")  # GPU seconds a sequence, of the passes known
        self._candidates: dict[Layout, Candidate] = {}
        self._memory: dict[Layout, Memory] = {}
        self._known_steps: dict[tuple[_Core, int], list[tuple[float, Recompute]]] = {}
        self._sets: dict[_Core, dict[tuple[str, ...], float]] = {}
        self._leanest: dict[tuple[int, int, int, int, int], int] = {}  # the number of the leanest split
        self._dead: dict[Grid, int] = {}  # the smallest micro batch that nothing makes fit
        self._needed: dict[Layout, float | None] = {}
        self._floor: dict[tuple[int, int, int, int, int, int], bool] = {}
        self._dense: dict[int, float] = {}
        each = bytes_a_parameter(recipe.precision, recipe.features, rates.product.arch)
        trained = not recipe.frozen
        self._held = min(each.layer_weight, each.other_weight) + (each.gradient if trained else 0.0)
        self._optimizer = each.optimizer if trained else 0.0
        self._limit = rates.memory_bytes * (1 - wishes.headroom)

    # --- estimates ----------------------------------------------------------------------------------------------------

    def memory(self, layout: Layout) -> Memory:
        known = self._memory.get(layout)
        if known is None:
            self.found.legal += 1
            known = estimate_memory(self.recipe, layout, self.rates, headroom=self.wishes.headroom)
            self._memory[layout] = known
            best = self.found.closest
            if not known.fits and (best is None or known.peak < best[1].peak):
                self.found.closest = (layout, known)
        return known

    def candidate(self, layout: Layout) -> Candidate:
        known = self._candidates.get(layout)
        if known is None:
            self.found.timed += 1
            estimate = estimate_time(self.recipe, layout, self.rates)
            known = self._candidates[layout] = Candidate(layout=layout, memory=self.memory(layout), estimate=estimate)
        return known

    def one_pass(self, core: _Core, recompute: Recompute = NO_RECOMPUTE) -> float:
        """Seconds of one micro batch forward and backward through all layers, on GPUs that hold them all."""
        known = self._passes.get((core, recompute))
        if known is None:
            tp, cp, ep, etp, mbs = core
            alone = Layout(
                world=tp * cp, tp=tp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs, global_batch_size=mbs,
                recompute=recompute, fsdp=self.fsdp, cp_comm_type=cp_comm_type(self.recipe, cp),
            )  # fmt: skip
            known = self._passes[core, recompute] = micro_batch_time(self.recipe, alone, self.rates)
            self._fastest = min(self._fastest, known * tp * cp / mbs)
        return known

    def bound(self, layout: Layout) -> float:
        """Seconds that no layout with these sizes can beat, whatever it recomputes and however layers are split."""
        return _bound(self.one_pass(_core_of(layout)), layout.pp, layout.vp, layout.num_microbatches)

    def _static_fits(self, tp: int, pp: int, ep: int, etp: int, dp_cp: int, edp: int) -> bool:
        """Whether weights, gradients and optimizer would fit if stages were perfectly even."""
        if self.fsdp:
            return True
        key = (tp, pp, ep, etp, dp_cp, edp)
        known = self._floor.get(key)
        if known is None:
            dense, routed = self._parameters(tp)
            spread, experts = (dp_cp, edp) if self.recipe.features.distributed_optimizer else (1, 1)
            needed = dense / pp * (self._held + self._optimizer / spread)
            needed += routed / (pp * ep * etp) * (self._held + self._optimizer / experts)
            known = self._floor[key] = needed <= self._limit
        return known

    def _parameters(self, tp: int) -> tuple[float, float]:
        """Parameters of the model outside and inside routed experts: on one TP rank, and in all."""
        a = self.recipe.architecture
        known = self._dense.get(tp)
        if known is None:
            weights = embedding_weights(a, tp).plus(head_weights(a, tp)).plus(mtp_weights(a))
            kinds = a.layers()
            for kind in set(kinds):
                weights = weights.plus(layer_weights(a, kind).times(kinds.count(kind)))
            known = self._dense[tp] = weights.replicated + weights.sharded / tp
            self._routed = float(weights.routed)
        return known, self._routed

    # --- the walk -----------------------------------------------------------------------------------------------------

    def nodes(self, world: int, *, everything: bool = False) -> Iterator[tuple[float, Layout]]:
        """Sizes without VP, split and recomputation, each with the bound for the most interleaving that it allows.

        `everything`: also where weights, gradients and optimizer alone cannot fit.
        """
        for layout in self._sizes(world, everything=everything):
            m = layout.num_microbatches
            most = interleavings(self.recipe, self.wishes, layout.pp, m)[-1]
            yield _bound(self.one_pass(_core_of(layout)), layout.pp, most, m), layout

    def _sizes(self, world: int, *, everything: bool) -> Iterator[Layout]:
        r, gbs = self.recipe, self.recipe.global_batch_size
        pps = stage_counts(r, self.wishes, world, self.fsdp)
        experts = expert_sizes(r, self.rates, self.wishes, world)
        for tp in tp_sizes(r, self.rates, self.wishes, world):
            for cp in cp_sizes(r, self.wishes, world):
                comm = cp_comm_type(r, cp)
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
                        if not everything and not self._static_fits(tp, pp, ep, etp, dp * cp, edp):
                            continue
                        for mbs in mbss:
                            yield Layout(
                                world=world, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs,
                                global_batch_size=gbs, fsdp=self.fsdp, cp_comm_type=comm,
                            )  # fmt: skip

    def bases(self, node: Layout, more: float = 0.0) -> Iterator[tuple[float, Layout]]:
        """The node's layouts without recomputation: every VP, every split, with the bound for at least `more` seconds of
        recomputation a micro batch."""
        once, m = self.one_pass(_core_of(node)) + more, node.num_microbatches
        again = self.wishes.recompute or NO_RECOMPUTE
        for vp in interleavings(self.recipe, self.wishes, node.pp, m):
            for split in splits(self.recipe.architecture, node.pp, vp):
                yield _bound(once, node.pp, vp, m), replace(node, vp=vp, layers_per_chunk=split, recompute=again)

    def _steps(self, base: Layout) -> list[tuple[float, Recompute]]:
        """What may be recomputed beside nothing, by the seconds that it costs a micro batch; empty when that is pinned."""
        if self.wishes.recompute is not None:
            return []
        chunk = max(base.layers_per_chunk) if base.layers_per_chunk else self.layers // base.chunks
        key = (_core_of(base), chunk)
        known = self._known_steps.get(key)
        if known is not None:
            return known
        useful = self._useful(base)
        steps: list[tuple[float, int, Recompute]] = []
        for i, r in enumerate(recomputes(self.recipe, self.wishes, chunk)):
            if r.granularity == "selective" and r.modules in useful:
                steps.append((useful[r.modules], i, r))
            elif r.granularity == "full":
                steps.append((self._again(base, r, chunk), i, r))
        known = [(more, r) for more, _, r in sorted(steps, key=lambda t: t[:2])]
        self._known_steps[key] = known
        return known

    def _useful(self, base: Layout) -> dict[tuple[str, ...], float]:
        """Sets of modules that free more than every cheaper set, with their seconds a micro batch.

        Bytes and seconds of modules add up, and both scale with layers and micro batches alike: what one stage with one
        micro batch frees orders the sets for all layouts of these sizes.
        """
        core = _core_of(base)
        known = self._sets.get(core)
        if known is not None:
            return known
        tp, cp, ep, etp, mbs = core
        alone = Layout(
            world=tp * cp, tp=tp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs, global_batch_size=mbs, fsdp=self.fsdp,
            cp_comm_type=base.cp_comm_type,
        )  # fmt: skip

        def peak(r: Recompute) -> int:
            made = estimate_memory(self.recipe, replace(alone, recompute=r), self.rates, headroom=0.0)
            return made.peak

        plain = peak(NO_RECOMPUTE)
        sets = module_sets(self.recipe.architecture)
        frees = {
            m: plain - peak(Recompute(granularity="selective", modules=(m,))) for m in {m for s in sets for m in s}
        }
        priced = sorted(
            (self._again(base, Recompute(granularity="selective", modules=s), 1), -sum(frees[m] for m in s), s)
            for s in sets
        )
        known, most = {}, 0
        for more, freed, modules in priced:
            if -freed > most:
                most = -freed
                known[modules] = more
        self._sets[core] = known
        return known

    def _least(self, node: Layout) -> float | None:
        """Seconds of recomputation a micro batch that the node needs at least to fit, without interleaving and with its
        leanest split; None when nothing makes it fit. Interleaving only takes more memory."""
        if self.wishes.recompute is not None:
            return 0.0
        if node.micro_batch_size >= self._dead.get(grid_of(node), node.micro_batch_size + 1):
            return None  # a smaller micro batch did not fit
        forms = [replace(node, layers_per_chunk=s) for s in splits(self.recipe.architecture, node.pp, None) or (None,)]
        # The split that is leanest for one micro batch nearly always is for the next: ask for the others only when it fails.
        sizes = (node.tp, node.pp, node.cp, node.ep, node.etp)
        at = self._leanest.get(sizes)
        if at is None or not self.memory(replace(forms[at], recompute=FULL_RECOMPUTE)).fits:
            peak, at = min((self.memory(replace(f, recompute=FULL_RECOMPUTE)).peak, i) for i, f in enumerate(forms))
            self._leanest[sizes] = at
            if peak > self._limit:
                grid = grid_of(node)
                self._dead[grid] = min(node.micro_batch_size, self._dead.get(grid, node.micro_batch_size))
                return None
        base = forms[at]
        if self.memory(base).fits:
            return 0.0
        ladder = _Ladder(base, self._steps(base))
        ladder.short = self._short(ladder)
        step = self._next(ladder, base)
        while step is not None:
            if self.memory(step[1]).fits:
                return step[0]
            step = self._next(ladder, step[1])
        return None

    def _rungs(self, base: Layout, floor: float) -> list[tuple[float, Recompute]]:
        """Everything that may be recomputed and costs at least `floor`, by rising bound; empty when not even all of it makes
        the base fit."""
        if self.wishes.recompute is not None or not self.memory(replace(base, recompute=FULL_RECOMPUTE)).fits:
            return []
        once, m = self.one_pass(_core_of(base)), base.num_microbatches
        return [
            (_bound(once + more, base.pp, base.vp, m), r) for more, r in self._steps(base) if more >= floor * (1 - 1e-9)
        ]

    def _next(self, ladder: _Ladder, failed: Layout) -> tuple[float, Layout] | None:
        """The next step, given that `failed` does not fit. What a set of modules does not free, no subset of it frees, and what
        a block of layers does not free, no smaller one."""
        if failed.recompute.granularity == "selective":
            ladder.short.append(frozenset(failed.recompute.modules))
        for bound, again in (ladder.steps or [])[ladder.at :]:
            ladder.at += 1
            if again.granularity == "selective" and any(frozenset(again.modules) <= s for s in ladder.short):
                continue
            if again.method == "block":
                if ladder.block is None:
                    ladder.block = self._least_block(ladder)
                if (again.num_layers or 0) < ladder.block:
                    continue
            return bound, ladder.recomputing(again)
        return None

    def _least_block(self, ladder: _Ladder) -> int:
        """The fewest layers of a block whose recomputation makes the base fit; one more than there are when none does."""
        blocks = {r.num_layers or 0: r for _, r in ladder.steps or [] if r.method == "block"}
        sizes = sorted(blocks)
        at = bisect_left(sizes, True, key=lambda n: self.memory(ladder.recomputing(blocks[n])).fits)
        return sizes[at] if at < len(sizes) else sizes[-1] + 1

    def _short(self, ladder: _Ladder) -> list[frozenset[str]]:
        """The largest sets of modules that do not make it fit: asked first, since they speak for all their subsets."""
        short: list[frozenset[str]] = []
        selective = [r for _, r in ladder.steps or [] if r.granularity == "selective"]
        for again in sorted(selective, key=lambda r: -len(r.modules)):
            modules = frozenset(again.modules)
            if any(modules <= s for s in short):
                continue
            if self.memory(ladder.recomputing(again)).fits:
                break
            short.append(modules)
        return short

    def _again(self, base: Layout, recompute: Recompute, chunk: int) -> float:
        """Seconds of recomputation for one micro batch. Modules add up; a block is its share of full."""
        core = _core_of(base)
        once = self.one_pass(core)
        if recompute.granularity == "selective":
            return sum(
                self.one_pass(core, Recompute(granularity="selective", modules=(m,))) - once for m in recompute.modules
            )
        if recompute.granularity == "full":
            share = min(1.0, (recompute.num_layers or 1) / chunk) if recompute.method == "block" else 1.0
            return share * (self.one_pass(core, FULL_RECOMPUTE) - once)
        return 0.0

    def legal(self, layout: Layout) -> bool:
        return why_not(layout, self.recipe, self.rates) is None

    def run(self, *, keep: int = 6, sizes: tuple[int, ...] | None = None) -> Found:
        """The best layout and those that the model cannot tell from it (within `BAND`), each the best of its grid; then
        other grids with their first fitting layout, `keep` in all.

        `sizes`: the numbers of GPUs to use (default: all that `worlds` names). Equal times keep the order in which the
        space is laid out: smaller sizes first.
        """
        heap: list[_Entry] = []
        number = count()
        best: dict[Grid, Candidate] = {}
        near = float("inf")  # beyond, nothing is left that the model could confuse with the best
        band = BAND[kind_of(self.recipe)]
        waiting = list(sizes if sizes is not None else worlds(self.rates))
        while heap or waiting:
            # A smaller world is opened once the larger ones have nothing left that could be faster than it.
            while waiting and (not heap or self._opening(waiting[0]) <= min(heap[0][0], near)):
                world = waiting.pop(0)
                if self._opening(world) > near:
                    waiting.clear()
                    break
                for bound, node in self.nodes(world):
                    heapq.heappush(heap, (bound, next(number), node, None))
            if not heap:
                continue
            bound, _, layout, ladder = heapq.heappop(heap)
            if bound > near and len(best) >= keep + keep // 2:
                break
            grid = grid_of(layout)
            mine = best[grid].estimate.iteration_time_s if grid in best else float("inf")
            if bound >= mine or (grid in best and bound > near):
                continue  # this grid has a layout that no other can beat, or is known to be slower than the best
            if ladder is None:
                self._open(layout, bound, heap, number)
                continue
            if self.memory(layout).fits and (layout is ladder.base or self.legal(layout)):
                made = self.candidate(layout)
                if made.estimate.iteration_time_s < mine:
                    best[grid] = made
                    near = min(near, made.estimate.iteration_time_s * (1 + band))
                continue
            if ladder.steps is None:
                ladder.steps = self._rungs(ladder.base, ladder.floor)
                ladder.short = self._short(ladder)
            if (step := self._next(ladder, layout)) is not None:
                heapq.heappush(heap, (step[0], next(number), step[1], ladder))
        self.found.ranked = sorted(best.values(), key=_order)[:keep]
        return self.found

    def _open(self, node: Layout, bound: float, heap: list[_Entry], number: Iterator[int]) -> None:
        """Replace a node by what it stands for; first by itself again, when the recomputation it needs makes it wait."""
        if node not in self._needed:
            self._needed[node] = self._least(node)
            more = self._needed[node]
            if more is None:
                return
            m = node.num_microbatches
            most = interleavings(self.recipe, self.wishes, node.pp, m)[-1]
            tighter = _bound(self.one_pass(_core_of(node)) + more, node.pp, most, m)
            if tighter > bound:
                heapq.heappush(heap, (tighter, next(number), node, None))
                return
        floor = self._needed[node] or 0.0
        for tighter, base in self.bases(node, floor):
            if self.legal(base):
                heapq.heappush(heap, (tighter, next(number), base, _Ladder(base, floor=floor)))

    def least(self, *, keep: int = 6, sizes: tuple[int, ...] | None = None) -> Found:
        """The `keep` grids that need least memory. `closest` is the leanest layout of all when even that does not fit.

        The leanest form of a grid has the smallest micro batch, no interleaving and everything recomputed.
        """
        best: dict[Grid, tuple[int, Layout]] = {}
        for world in sizes if sizes is not None else worlds(self.rates):
            for node in self._lean_nodes(world):
                grid = grid_of(node)
                for layout in self._lean_forms(node):
                    peak = self.memory(layout).peak
                    if (grid not in best or peak < best[grid][0]) and self.legal(layout):
                        best[grid] = (peak, layout)
            if best:
                break  # fewer GPUs need no less
        leanest = sorted(best.values(), key=lambda b: (b[0], grid_of(b[1])))[:keep]
        self.found.closest = (leanest[0][1], self.memory(leanest[0][1])) if leanest else None
        self.found.ranked = [self.candidate(layout) for _, layout in leanest if self.memory(layout).fits]
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
            for split in splits(self.recipe.architecture, node.pp, vp):
                for again in choices:
                    yield replace(node, vp=vp, layers_per_chunk=split, recompute=again)

    def _opening(self, world: int) -> float:
        """Seconds that no layout on so many GPUs can beat: the fastest pass known, spread without any bubble."""
        return self._fastest * self.recipe.global_batch_size / world if self._passes else 0.0


def _core_of(layout: Layout) -> _Core:
    return (layout.tp, layout.cp, layout.ep, layout.etp, layout.micro_batch_size)


def _bound(once: float, pp: int, vp: int | None, microbatches: int) -> float:
    return once / pp * (microbatches + (pp - 1) / (vp or 1))


def _order(candidate: Candidate) -> tuple[float, int, int, int, int]:
    x = candidate.layout
    return (candidate.estimate.iteration_time_s, x.model_parallel, x.ep, x.vp or 1, x.micro_batch_size)


def nearest_batches(recipe: Recipe, step: int) -> tuple[int, ...]:
    """Global batches next to the recipe's that are multiples of `step`, a micro batch on each replica."""
    gbs = recipe.global_batch_size
    return tuple(dict.fromkeys(b for b in (gbs // step * step, -(-gbs // step) * step) if b))


def nearest_worlds(recipe: Recipe, world: int, block: int) -> tuple[int, ...]:
    """Numbers of GPUs near `world` that make whole replicas of `block` GPUs which share the recipe's batch evenly."""
    fitting = [block * d for d in divisors(recipe.global_batch_size)]
    below, above = [w for w in fitting if w <= world], [w for w in fitting if w > world]
    return (*reversed(below[-2:]), *above[:1])

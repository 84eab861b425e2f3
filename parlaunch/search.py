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
    recomputes,
    splits,
    stage_counts,
    tp_sizes,
    worlds,
)
from parlaunch.states import bytes_a_parameter
from parlaunch.timing import estimate_time

NEAR = 0.02
"""Share of the iteration time below which the model cannot tell two layouts apart."""

Grid = tuple[int, int, int, int, int, int, bool]
"""(world, tp, pp, cp, ep, etp, fsdp): layouts of one grid differ in micro batch, VP, split and recomputation."""

_Core = tuple[int, int, int, int, int]
"""(tp, cp, ep, etp, micro batch): what the time of one micro batch through all layers depends on."""


def grid_of(layout: Layout) -> Grid:
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
    steps: list[tuple[float, Layout]] | None = None  # None: not asked for yet
    at: int = 0
    short: list[frozenset[str]] = field(default_factory=list)  # sets of modules that did not free enough

    def next(self, failed: Layout) -> tuple[float, Layout] | None:
        """The next step, given that `failed` does not fit. What a set of modules does not free, no subset of it frees."""
        if failed.recompute.granularity == "selective":
            self.short.append(frozenset(failed.recompute.modules))
        for step in (self.steps or [])[self.at :]:
            self.at += 1
            again = step[1].recompute
            modules = frozenset(again.modules)
            if again.granularity != "selective" or not any(modules <= s for s in self.short):
                return step
        return None


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
        self._floor: dict[tuple[int, int, int, int, int, int], bool] = {}
        self._dense: dict[int, float] = {}
        each = bytes_a_parameter(recipe.precision, recipe.features, rates.product.arch)
        trained = recipe.task != "peft"
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
            parts = estimate_time(self.recipe, alone, self.rates).breakdown
            known = self._passes[core, recompute] = parts.compute_s + parts.tp_s + parts.cp_s + parts.ep_s
            self._fastest = min(self._fastest, known * tp * cp / mbs)
        return known

    def bound(self, layout: Layout) -> float:
        """Seconds that no layout with these sizes can beat, whatever it recomputes and however layers are split."""
        core = (layout.tp, layout.cp, layout.ep, layout.etp, layout.micro_batch_size)
        return _bound(self.one_pass(core), layout.pp, layout.vp, layout.num_microbatches)

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
            core = (layout.tp, layout.cp, layout.ep, layout.etp, layout.micro_batch_size)
            m = layout.num_microbatches
            most = interleavings(self.recipe, self.wishes, layout.pp, m)[-1]
            yield _bound(self.one_pass(core), layout.pp, most, m), layout

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

    def bases(self, node: Layout) -> Iterator[tuple[float, Layout]]:
        """The node's layouts without recomputation: every VP, every split."""
        core = (node.tp, node.cp, node.ep, node.etp, node.micro_batch_size)
        once, m = self.one_pass(core), node.num_microbatches
        for vp in interleavings(self.recipe, self.wishes, node.pp, m):
            for split in splits(self.recipe.architecture, node.pp, vp):
                base = replace(node, vp=vp, layers_per_chunk=split, recompute=self.wishes.recompute or NO_RECOMPUTE)
                yield _bound(once, node.pp, vp, m), base

    def _ladder(self, base: Layout) -> list[tuple[float, Layout]]:
        """The base with everything that may be recomputed, by rising bound; empty when not even all of it makes it fit."""
        chunk = max(base.layers_per_chunk) if base.layers_per_chunk else self.layers // base.chunks
        choices = recomputes(self.recipe, self.wishes, chunk)
        if len(choices) == 1 or not self.memory(replace(base, recompute=FULL_RECOMPUTE)).fits:
            return []
        m = base.num_microbatches
        once = self.one_pass((base.tp, base.cp, base.ep, base.etp, base.micro_batch_size))
        rungs = [
            (_bound(once + self._again(base, r, chunk), base.pp, base.vp, m), i)
            for i, r in enumerate(choices)
            if r != NO_RECOMPUTE
        ]
        return [(bound, replace(base, recompute=choices[i])) for bound, i in sorted(rungs)]

    def _short(self, steps: list[tuple[float, Layout]]) -> list[frozenset[str]]:
        """The largest sets of modules that do not make it fit: asked first, since they speak for all their subsets."""
        short: list[frozenset[str]] = []
        selective = [s for _, s in steps if s.recompute.granularity == "selective"]
        for layout in sorted(selective, key=lambda s: -len(s.recompute.modules)):
            modules = frozenset(layout.recompute.modules)
            if any(modules <= s for s in short):
                continue
            if self.memory(layout).fits:
                break
            short.append(modules)
        return short

    def _again(self, base: Layout, recompute: Recompute, chunk: int) -> float:
        """Seconds of recomputation for one micro batch. Modules add up; a block is its share of full."""
        core = (base.tp, base.cp, base.ep, base.etp, base.micro_batch_size)
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
        """The best layout and those that the model cannot tell from it (within `NEAR`), each the best of its grid; then
        other grids with their first fitting layout, `keep` in all.

        `sizes`: the numbers of GPUs to use (default: all that `worlds` names). Equal times keep the order in which the
        space is laid out: smaller sizes first.
        """
        heap: list[tuple[float, int, Layout, _Ladder | None]] = []
        number = count()
        best: dict[Grid, Candidate] = {}
        near = float("inf")  # beyond, nothing is left that the model could confuse with the best
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
                if self._could_fit(layout):
                    for tighter, base in self.bases(layout):
                        if self.legal(base):
                            heapq.heappush(heap, (tighter, next(number), base, _Ladder(base)))
                continue
            if self.memory(layout).fits and (layout is ladder.base or self.legal(layout)):
                made = self.candidate(layout)
                if made.estimate.iteration_time_s < mine:
                    best[grid] = made
                    near = min(near, made.estimate.iteration_time_s * (1 + NEAR))
                continue
            if ladder.steps is None:
                ladder.steps = self._ladder(ladder.base)
                ladder.short = self._short(ladder.steps)
            if (step := ladder.next(layout)) is not None:
                heapq.heappush(heap, (step[0], next(number), step[1], ladder))
        self.found.ranked = sorted(best.values(), key=_order)[:keep]
        return self.found

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

    def _could_fit(self, node: Layout) -> bool:
        """Whether any split of this node fits without interleaving and with everything recomputed."""
        if self.wishes.recompute is not None:
            return True
        return any(
            self.memory(replace(node, layers_per_chunk=split, recompute=FULL_RECOMPUTE)).fits
            for split in splits(self.recipe.architecture, node.pp, None) or (None,)
        )


def _bound(once: float, pp: int, vp: int | None, microbatches: int) -> float:
    return once / pp * (microbatches + (pp - 1) / (vp or 1))


def _order(candidate: Candidate) -> tuple[float, int, int, int, int]:
    x = candidate.layout
    return (candidate.estimate.iteration_time_s, x.model_parallel, x.ep, x.vp or 1, x.micro_batch_size)


def nearest_batches(recipe: Recipe, world: int) -> tuple[int, ...]:
    """Global batches near the recipe's that `world` GPUs can share evenly with DP alone."""
    gbs = recipe.global_batch_size
    below, above = gbs // world * world, -(-gbs // world) * world
    return tuple(dict.fromkeys(b for b in (below, above) if b))


def nearest_worlds(recipe: Recipe, world: int) -> tuple[int, ...]:
    """Numbers of GPUs at and below `world` that divide the recipe's global batch."""
    return tuple(d for d in reversed(divisors(recipe.global_batch_size)) if d <= world)[:3]

"""What the time of one micro batch through all layers depends on, what recomputing adds to it, and the bound that follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from parlaunch.estimate.timing import micro_batch_time
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.space import exchange


class Core(NamedTuple):
    """What the time of one micro batch through all layers depends on."""

    tp: int
    cp: int
    ep: int
    etp: int
    micro_batch_size: int


def core_of(layout: Layout) -> Core:
    """The sizes of a layout that a pass depends on."""
    return Core(layout.tp, layout.cp, layout.ep, layout.etp, layout.micro_batch_size)


def bound_of(once: float, pp: int, vp: int | None, microbatches: int) -> float:
    """Seconds of an iteration that no split of the layers beats, where a micro batch takes `once` seconds through all of them."""
    return once / pp * (microbatches + (pp - 1) / (vp or 1))


class Passes:
    """Seconds of one micro batch forward and backward through all layers, on GPUs that hold them all, remembered."""

    def __init__(self, recipe: Recipe, rates: Rates, wishes: Wishes, *, fsdp: bool) -> None:
        self.recipe, self.rates, self.wishes, self.fsdp = recipe, rates, wishes, fsdp
        self.fastest = float("inf")  # GPU seconds a sequence, of the passes known
        self._known: dict[tuple[Core, Recompute], float] = {}
        # The same with less on, where a layout forbids it.
        self._switched: dict[tuple[Core, Features, Recompute], float] = {}
        self._prices: dict[tuple[Core, Features], Prices] = {}

    def one(self, core: Core, recompute: Recompute = NO_RECOMPUTE) -> float:
        """Seconds with the recipe as it is."""
        known = self._known.get((core, recompute))
        if known is None:
            known = self._known[core, recompute] = micro_batch_time(
                self.recipe, self.alone(core, recompute), self.rates
            )
            self.fastest = min(self.fastest, known * core.tp * core.cp / core.micro_batch_size)
        return known

    def with_switches(self, recipe: Recipe, core: Core, recompute: Recompute = NO_RECOMPUTE) -> float:
        """Seconds with the recipe's other switches."""
        if recipe is self.recipe:
            return self.one(core, recompute)
        key = (core, recipe.features, recompute)
        known = self._switched.get(key)
        if known is None:
            known = self._switched[key] = micro_batch_time(recipe, self.alone(core, recompute), self.rates)
        return known

    def alone(self, core: Core, recompute: Recompute = NO_RECOMPUTE) -> Layout:
        """One micro batch on GPUs that hold all layers."""
        tp, cp, ep, etp, mbs = core
        return Layout(
            world=tp * cp, tp=tp, cp=cp, ep=ep, etp=etp, micro_batch_size=mbs, global_batch_size=mbs,
            recompute=recompute, fsdp=self.fsdp, cp_comm_type=exchange(self.recipe, self.wishes, cp),
        )  # fmt: skip

    def prices(self, recipe: Recipe, core: Core) -> Prices:
        """What recomputing costs with these sizes and switches."""
        key = (core, recipe.features)
        known = self._prices.get(key)
        if known is None:
            known = self._prices[key] = Prices(self, recipe, core, self.with_switches(recipe, core))
        return known


@dataclass(slots=True)
class Prices:
    """Seconds of one micro batch through all layers, and what recomputing adds: everything, and each module, once asked for."""

    passes: Passes
    recipe: Recipe
    core: Core
    once: float
    everything: float | None = None
    modules: dict[str, float] = field(default_factory=dict)

    def more(self, recompute: Recompute, chunk: int) -> float:
        """Seconds of recomputation in stages with chunks of so many layers. Modules add up; a block is its share of full."""
        each = self.modules
        if recompute.granularity == "selective":
            for m in recompute.modules:
                if m not in each:
                    each[m] = self._added(Recompute(granularity="selective", modules=(m,)))
            return sum(each[m] for m in recompute.modules)
        if recompute.granularity == "full":
            if self.everything is None:
                self.everything = self._added(FULL_RECOMPUTE)
            share = min(1.0, (recompute.num_layers or 1) / chunk) if recompute.method == "block" else 1.0
            return share * self.everything
        return 0.0

    def _added(self, recompute: Recompute) -> float:
        return self.passes.with_switches(self.recipe, self.core, recompute) - self.once

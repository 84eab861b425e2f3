"""What may be recomputed to make a layout fit, by rising cost, and which of it can be passed over unseen."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from parlaunch.frozen import replaced
from parlaunch.model.layout import Layout, Recompute

Fits = Callable[[Layout, Recompute], bool]
"""Whether a layout fits with that recomputed in place of its own."""


class Step(NamedTuple):
    """What may be recomputed, and what that costs: seconds a micro batch, or the bound that they lead to."""

    cost: float
    recompute: Recompute
    modules: frozenset[str] = frozenset()  # those of a selective one


@dataclass(slots=True)
class Ladder:
    """What may still be recomputed to make `base` fit, by rising bound."""

    base: Layout
    steps: list[Step] | None = None  # None: not asked for yet
    at: int = 0
    floor: float = 0.0  # seconds of recomputation a micro batch below which nothing fits
    short: list[frozenset[str]] = field(default_factory=list)  # sets of modules that did not free enough
    block: int | None = None  # the fewest layers of a block that free enough; None: not asked for yet

    def recomputing(self, recompute: Recompute) -> Layout:
        """The base, recomputing that."""
        return replaced(self.base, recompute=recompute)

    def stand(self, steps: list[Step], fits: Fits) -> None:
        """Take these steps, and ask first what speaks for most of them: the largest sets of modules that do not free enough, which
        say it for all their subsets."""
        self.steps, self.short = steps, []
        selective = [step for step in steps if step.modules]
        for step in sorted(selective, key=lambda step: -len(step.modules)):
            if any(step.modules <= s for s in self.short):
                continue
            if fits(self.base, step.recompute):
                break
            self.short.append(step.modules)

    def next(self, fits: Fits, failed: frozenset[str] = frozenset()) -> Step | None:
        """The next step, given that recomputing the modules `failed` does not free enough. What a set of them does not free, no
        subset of it frees, and what a block of layers does not free, no smaller one."""
        if failed:
            self.short.append(failed)
        for step in (self.steps or [])[self.at :]:
            self.at += 1
            again = step.recompute
            if step.modules and any(step.modules <= s for s in self.short):
                continue
            if again.method == "block":
                if self.block is None:
                    self.block = self._least_block(fits)
                if (again.num_layers or 0) < self.block:
                    continue
            return step
        return None

    def _least_block(self, fits: Fits) -> int:
        """The fewest layers of a block whose recomputation makes the base fit; one more than there are when none does."""
        again = [step.recompute for step in self.steps or []]
        blocks = {r.num_layers or 0: r for r in again if r.method == "block"}
        sizes = sorted(blocks)
        at = bisect_left(sizes, True, key=lambda n: fits(self.base, blocks[n]))
        return sizes[at] if at < len(sizes) else sizes[-1] + 1

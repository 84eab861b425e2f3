"""What a rule is: Megatron's own condition on a layout, answered with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe

Check = Callable[[Layout, Recipe, Rates], str | None]
"""None: the layout keeps the rule. Else one sentence that says with numbers what is wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition without which Megatron (or Megatron Bridge) refuses to run."""

    id: str
    formula: str
    source: str  # file:line in Megatron-LM (megatron/…) or Megatron Bridge (bridge/…)
    check: Check

    def __call__(self, layout: Layout, recipe: Recipe, rates: Rates) -> str | None:
        return self.check(layout, recipe, rates)


class Chapter(list[Rule]):
    """The rules of one subject, in the order in which they are asked."""

    def rule(self, id: str, formula: str, source: str) -> Callable[[Check], Check]:
        """Enter the decorated function under Megatron's rule id."""

        def enter(check: Check) -> Check:
            self.append(Rule(id, formula, source, check))
            return check

        return enter

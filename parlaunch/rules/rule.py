"""What a rule is: Megatron's own condition on a layout, answered with a sentence."""

from __future__ import annotations

from collections.abc import Callable

from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe

Condition = Callable[[Layout, Recipe, Rates], str | None]
"""None: the layout keeps the rule. Else one sentence that says with numbers what is wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition without which Megatron (or Megatron Bridge) refuses to run."""

    id: str
    formula: str
    source: str  # file:line in Megatron-LM (megatron/…) or Megatron Bridge (bridge/…) of the releases in requirements/bridge.txt
    condition: Condition

    def __call__(self, layout: Layout, recipe: Recipe, rates: Rates) -> str | None:
        return self.condition(layout, recipe, rates)


class Chapter(list[Rule]):
    """The rules of one subject, in the order in which they are asked."""

    def rule(self, id: str, formula: str, source: str) -> Callable[[Condition], Condition]:
        """Enter the decorated function under Megatron's rule id."""

        def enter(condition: Condition) -> Condition:
            self.append(Rule(id, formula, source, condition))
            return condition

        return enter

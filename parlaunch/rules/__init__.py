"""Megatron's own conditions on a layout: one small function a rule, each answering with a sentence.

The rules that bear on a layout or on what a plan sets, of the 131 that Megatron-Core and Megatron Bridge enforce; the
others are about settings that a plan leaves to the recipe, or are met by how a layout is made: sequence parallelism
exactly with TP (sp-needs-tp, sp-moe), ETP given whenever EP is (grid-etp-default-*), padded vocabularies (tp-vocab-pad),
the rank order that ends in pp (grid-pp-last).
"""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.rules.experts import EXPERTS
from parlaunch.rules.grid import GRID, fewest_gpus
from parlaunch.rules.pipeline import PIPELINE
from parlaunch.rules.rule import Rule
from parlaunch.rules.tensor import TENSOR
from parlaunch.rules.working import WORKING

__all__ = ["RULES", "Rule", "broken", "fewest_gpus", "violations", "why_not"]

RULES: tuple[Rule, ...] = (*TENSOR, *EXPERTS, *GRID, *PIPELINE, *WORKING)


def broken(layout: Layout, recipe: Recipe, rates: Rates) -> Rule | None:
    """The first rule that the layout breaks; None for a legal layout."""
    for rule in RULES:
        if rule.check(layout, recipe, rates) is not None:
            return rule
    return None


def why_not(layout: Layout, recipe: Recipe, rates: Rates) -> str | None:
    """The first reason why Megatron would refuse this layout; None when it would run."""
    for rule in RULES:
        sentence = rule.check(layout, recipe, rates)
        if sentence is not None:
            return sentence
    return None


def violations(layout: Layout, recipe: Recipe, rates: Rates) -> tuple[tuple[Rule, str], ...]:
    """Every rule that the layout breaks, with its sentence."""
    found = ((rule, rule.check(layout, recipe, rates)) for rule in RULES)
    return tuple((rule, sentence) for rule, sentence in found if sentence is not None)

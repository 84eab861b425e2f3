"""Megatron's own conditions on a layout: one small function a rule, each answering with a sentence.

The rules that bear on a layout or on what a plan sets, of the 131 that Megatron-Core and Megatron Bridge enforce; the
others are about settings that a plan leaves to the recipe, or are met by how a layout is made: sequence parallelism
exactly with TP (sp-needs-tp, sp-moe), ETP given whenever EP is (grid-etp-default-*), padded vocabularies (tp-vocab-pad),
the rank order that ends in pp (grid-pp-last).
"""

from __future__ import annotations

from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.experts import EXPERTS
from parlaunch.rules.grid import GRID, fewest_gpus
from parlaunch.rules.models import MODELS
from parlaunch.rules.pipeline import PIPELINE
from parlaunch.rules.rule import Rule
from parlaunch.rules.tensor import TENSOR, cp_comm_type
from parlaunch.rules.working import WORKING

__all__ = ["RULES", "Rule", "cp_comm_type", "fewest_gpus", "violations", "why_not"]

RULES: tuple[Rule, ...] = (*TENSOR, *EXPERTS, *GRID, *PIPELINE, *WORKING, *MODELS)


def why_not(layout: Layout, recipe: Recipe, rates: Rates) -> str | None:
    """The first reason why Megatron would refuse this layout; None when it would run."""
    for rule in RULES:
        sentence = rule.condition(layout, recipe, rates)
        if sentence is not None:
            return sentence
    return None


def violations(layout: Layout, recipe: Recipe, rates: Rates) -> tuple[tuple[Rule, str], ...]:
    """Every rule that the layout breaks, with its sentence."""
    found = ((rule, rule.condition(layout, recipe, rates)) for rule in RULES)
    return tuple((rule, sentence) for rule, sentence in found if sentence is not None)

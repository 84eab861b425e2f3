"""How wrong an estimate may be: the share within which two of three published runs of this kind of plan lie."""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe


def error_band(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    """± share of the iteration time."""
    return 0.10

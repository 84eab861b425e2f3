"""The recipe as it is written, on this machine: its own layout and its own switches, started by Bridge's own script."""

from __future__ import annotations

from dataclasses import replace

from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.cpu import device_of
from parlaunch.hardware.placement import several_numa
from parlaunch.hardware.rates import HEADROOM, Rates
from parlaunch.model.layout import NO_RECOMPUTE, Layout
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import AsRecipe, Candidate
from parlaunch.rules import cp_comm_type, why_not

UNBOUND = "Megatron Bridge's scripts/training binds no rank"
"""Its scripts/performance starts every rank of a benchmark under numactl (utils/executors.py:183); the launcher of its library's recipes
leaves that to the user (scripts/training/README.md:83, :304)."""


def as_started(cluster: Cluster, recipe: Recipe, rates: Rates) -> Rates:
    """The machine as Bridge's own script for such a recipe leaves it: whether ranks roam over several NUMA nodes."""
    roams = device_of(cluster) == "cuda" and not recipe.benchmark and several_numa(cluster.nodes[0])
    return replace(rates, roaming=UNBOUND) if roams and rates.roaming is None else rates


def own_layout(recipe: Recipe, rates: Rates) -> Layout | None:
    """The layout that the recipe comes with, spread over these GPUs; None where it comes without one, as far as is known."""
    d, cp = recipe.defaults, recipe.defaults.cp or 1
    if d.tp is None or d.pp is None:
        return None
    return Layout(
        world=rates.world_size, tp=d.tp, pp=d.pp, vp=d.vp, cp=cp, ep=d.ep or 1, etp=d.etp or 1,
        micro_batch_size=d.micro_batch_size or 1, global_batch_size=recipe.global_batch_size, fsdp=recipe.features.fsdp,
        recompute=d.recompute or NO_RECOMPUTE, layers_per_chunk=d.layers_per_chunk,
        cp_comm_type=cp_comm_type(recipe.architecture, cp),
    )  # fmt: skip


def evaluated(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = HEADROOM) -> Candidate:
    """A layout with the recipe's own switches, whether it fits or not."""
    return Candidate(
        layout=layout, memory=estimate_memory(recipe, layout, rates, headroom=headroom),
        estimate=estimate_time(recipe, layout, rates),
    )  # fmt: skip


def as_recipe(recipe: Recipe, rates: Rates, *, headroom: float = HEADROOM) -> AsRecipe | None:
    """What the recipe as written would do here; None where it comes without a layout."""
    layout = own_layout(recipe, rates)
    if layout is None:
        return None
    if reason := why_not(layout, recipe, rates):
        return AsRecipe(iteration_time_s=None, peak_bytes=None, fits=False, why_not=reason)
    made = evaluated(recipe, layout, rates, headroom=headroom)
    return AsRecipe(iteration_time_s=made.estimate.iteration_time_s, peak_bytes=made.memory.peak, fits=made.memory.fits)

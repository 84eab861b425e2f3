"""The fewest GPUs that hold a recipe: the smallest world on which its leanest layout fits.

Not the product of all sizes: experts reuse the GPUs of tensor and context parallelism, so that a layout needs
PP·max(TP·CP, EP·ETP) GPUs. The search tries every legal layout of a world, recomputed and sharded as far as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parlaunch.errors import ParlaunchError
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.search import Search

MOST_GPUS = 4096
MACHINES = {
    "h100": "dgx-h100", "b200": "dgx-b200", "b300": "dgx-b300", "r100": "dgx-r100",
    "gb200": "gb200-nvl72", "gb300": "gb300-nvl72", "vr200": "vr200-nvl72",
}  # fmt: skip
"""A preset for each GPU that recipes are written for."""


def fewest_gpus(recipe: Recipe, rates: Rates) -> Candidate | None:
    """The leanest layout on the fewest GPUs, doubling from one; None when `MOST_GPUS` are too few."""
    world = 1
    while world <= MOST_GPUS:
        here = replace(
            rates,
            world_size=world,
            gpus_per_node=min(world, rates.gpus_per_node),
            nvlink_domain=min(world, rates.nvlink_domain),
        )
        try:
            found = Search(recipe, here, Wishes(evidence=False, top=0)).least(keep=1, sizes=(world,))
        except ParlaunchError:
            return None
        if found.ranked:
            return found.ranked[0]
        world *= 2
    return None


def machines_for(recipe: Recipe) -> Iterator[tuple[str, Candidate]]:
    """Preset with the count of nodes, and the leanest layout there: of the GPU the recipe was written for, and another."""
    own = str(recipe.hardware or "h100").lower()
    for gpu in dict.fromkeys((own, "b200" if own == "h100" else "h100")):
        name = MACHINES.get(gpu)
        if name is None:
            continue
        rates = rates_of(preset(name))
        if (found := fewest_gpus(recipe, rates)) is not None:
            yield f"{name}:{-(-found.layout.world // rates.gpus_per_node)}", found

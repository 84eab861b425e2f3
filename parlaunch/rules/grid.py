"""How many GPUs a layout needs, and how the batch spreads over them."""

from __future__ import annotations

from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.rule import Chapter

GRID = Chapter()


def fewest_gpus(layout: Layout) -> int:
    """PP · max(TP·CP, EP·ETP): attention and experts share the same GPUs, so the sizes do not all multiply."""
    return layout.pp * max(layout.tp * layout.cp, layout.ep * layout.etp)


@GRID.rule("grid-dense", "world % (TP*PP*CP) == 0; DP = world/(TP*PP*CP)", "megatron/core/parallel_state.py:823")
def dense_grid(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if min(x.tp, x.pp, x.cp, x.world) < 1:
        return f"every size is 1 or more, and this is {x}"
    if x.world % x.model_parallel == 0:
        return None
    return (
        f"{x.world} GPUs do not divide into TP·PP·CP = {x.tp}·{x.pp}·{x.cp} = {x.model_parallel}: "
        f"data parallelism would be {x.world / x.model_parallel:.3g}"
    )


@GRID.rule("grid-expert", "world % (ETP*EP*PP) == 0; EDP = world/(ETP*EP*PP)", "megatron/core/parallel_state.py:882")
def expert_grid(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if min(x.ep, x.etp) < 1:
        return f"every size is 1 or more, and this is {x}"
    grid = x.pp * x.ep * x.etp
    if x.world % grid == 0:
        return None
    return (
        f"{x.world} GPUs do not divide into PP·EP·ETP = {x.pp}·{x.ep}·{x.etp} = {grid}: "
        f"the layout needs at least {fewest_gpus(x)} GPUs"
    )


@GRID.rule("gbs-divides", "GBS % (MBS*DP) == 0 and GBS >= MBS*DP", "megatron/core/num_microbatches_calculator.py:381")
def batch_divides(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    step = x.micro_batch_size * x.dp
    if step < 1 or x.global_batch_size < 1:
        return f"micro batch {x.micro_batch_size} and global batch {x.global_batch_size} must be 1 or more"
    if x.global_batch_size % step == 0:
        return None
    return (
        f"a global batch of {x.global_batch_size} is no multiple of micro batch times DP = "
        f"{x.micro_batch_size}·{x.dp} = {step}"
    )


@GRID.rule("mbs-offline-pack", "offline packing -> MBS == 1", "bridge/training/config.py:1467")
def packed_alone(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.packing != "offline" or x.micro_batch_size == 1:
        return None
    return f"sequences packed offline need micro batch 1, not {x.micro_batch_size}: a pack is the batch"


@GRID.rule("mbs-inbatch-pack", "in-batch packing -> MBS > 1", "bridge/training/config.py:1480")
def packed_together(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.packing != "in_batch" or x.micro_batch_size > 1:
        return None
    return "sequences packed inside a micro batch need at least two of them: micro batch 1 is too small"

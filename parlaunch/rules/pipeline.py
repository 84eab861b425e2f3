"""How layers go onto pipeline stages, and what interleaving asks of the batch."""

from __future__ import annotations

from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.rule import Chapter

PIPELINE = Chapter()


@PIPELINE.rule("vp-needs-pp", "VP -> PP > 1", "megatron/core/parallel_state.py:829")
def interleaving_needs_stages(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if x.vp is None or x.pp > 1:
        return None
    return f"VP {x.vp} interleaves pipeline stages, and PP is 1"


@PIPELINE.rule(
    "pp-hybrid-bridge", "hybrid -> VP is None and no explicit split",
    "bridge/models/hybrid/hybrid_provider.py:295",
)  # fmt: skip
def hybrid(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if not r.architecture.hybrid_layer_pattern or (x.vp is None and x.layers_per_chunk is None):
        return None
    what = f"VP {x.vp}" if x.vp is not None else "an uneven split"
    return f"hybrid models take their stages from the layer pattern: {what} is refused"


@PIPELINE.rule("pp-layers", "num_layers % PP == 0", "megatron/core/transformer/transformer_block.py:150")
def layers_divide(x: Layout, r: Recipe, _m: Rates) -> str | None:
    layers = len(r.architecture.layers())
    if x.layers_per_chunk is not None or layers % x.pp == 0:
        return None
    return f"{layers} layers do not divide over PP {x.pp}"


@PIPELINE.rule(
    "pp-bf16-ends", "fp8 and first_last_layers_bf16 -> layers in bf16 at either end <= num_layers // PP",
    "megatron/core/transformer/transformer_config.py:1411",
)  # fmt: skip
def wide_ends(x: Layout, r: Recipe, _m: Rates) -> str | None:
    held = len(r.architecture.layers()) // x.pp
    most = max(r.features.wide_ends(r.precision))
    if not r.precision.startswith("fp8") or most <= held:
        return None
    return f"{most} layers at one end stay in bf16, and a stage of PP {x.pp} has {held}"


@PIPELINE.rule("vp-layers", "(num_layers/PP) % VP == 0", "megatron/core/transformer/transformer_block.py:169")
def layers_interleave(x: Layout, r: Recipe, _m: Rates) -> str | None:
    layers = len(r.architecture.layers())
    if x.layers_per_chunk is not None or x.vp is None or layers % x.pp or layers // x.pp % x.vp == 0:
        return None
    return f"the {layers // x.pp} layers of a stage do not divide into VP {x.vp} chunks"


@PIPELINE.rule(
    "pp-layout-len", "len(layout) == PP*VP", "megatron/core/transformer/pipeline_parallel_layer_layout.py:40"
)
def split_length(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if x.layers_per_chunk is None or len(x.layers_per_chunk) == x.chunks:
        return None
    return f"{len(x.layers_per_chunk)} chunks of layers were given for PP·VP = {x.chunks}"


@PIPELINE.rule(
    "pp-layout-content", "sum(layout) == num_layers; only the ends may hold no decoder layer",
    "megatron/core/transformer/pipeline_parallel_layer_layout.py:94",
)  # fmt: skip
def split_content(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.layers_per_chunk is None:
        return None
    layers = len(r.architecture.layers())
    if sum(x.layers_per_chunk) != layers:
        return f"the chunks hold {sum(x.layers_per_chunk)} layers, and the model has {layers}"
    if min(x.layers_per_chunk) < 0 or 0 in x.layers_per_chunk[1:-1]:
        return "a virtual stage between the ends would hold no layer"
    return None


@PIPELINE.rule("vp-group", "VP -> num_microbatches >= PP", "megatron/core/pipeline_parallel/schedules.py:1141")
def enough_microbatches(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if x.vp is None or x.num_microbatches >= x.pp:
        return None
    return f"interleaving needs at least PP {x.pp} micro batches, and there are {x.num_microbatches}"


@PIPELINE.rule("vp-remainder", "VP -> num_microbatches % PP == 0", "megatron/core/pipeline_parallel/schedules.py:1153")
def microbatch_groups(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if x.vp is None or x.num_microbatches < x.pp or x.num_microbatches % x.pp == 0:
        return None
    return f"interleaving works in groups of PP {x.pp} micro batches, and {x.num_microbatches} leave a rest"


@PIPELINE.rule(
    "pp-layout-mtp-stage", "MTP layers stand together in one stage, not the first",
    "megatron/core/transformer/multi_token_prediction.py:701",
)  # fmt: skip
def mtp_stage(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if not r.architecture.mtp_num_layers or x.layers_per_chunk is None or x.chunks > 1:
        return None
    return "an explicit split puts multi-token prediction behind the first stage, and there is only one"

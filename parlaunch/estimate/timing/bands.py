"""How wrong an estimate may be: ± the share of the iteration time within which two of three measured runs lie.

Every source of rows, and every model, was left out in turn and predicted with the constants that fit the others best: the numbers hold
two of three to three of four of those residuals (`docs/accuracy.md`, Error bands; half of those with experts, whose rows are few and
far apart), and none is under 5 %. What no open row covers is wider by judgement, and says so here.
"""

from __future__ import annotations

from parlaunch.data import load
from parlaunch.estimate.frameworks import framework_of
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe

BRIDGE = {"dense": 0.055, "moe": 0.115, "graphed": 0.065, "hybrid": 0.05, "adapters": 0.075}
"""Megatron Bridge and its relatives on Hopper and Blackwell, by kind of model; `graphed`: a mixture of experts whose whole iteration
is one CUDA graph, so that no host is waited for."""
FP4 = 0.08
"""NVFP4: the tables' kernels are those of inference, and how much faster training's are is one number for all."""
WARM, WARM_EXPERTS = 0.09, 0.14
"""16-bit training on Blackwell: boards of one product keep between 0.55 and 0.75 of their burst (SimuMax's B200 against the model
zoo's GB200 and Bridge's GB300), most of all on experts."""
UNMEASURED = 0.03  # a GPU without measured operators of its own
WIDE = 0.11
"""From this band on a plan advises to measure."""
UNSEEN = 0.20
"""GPU generations, and kinds of model, without a single open row."""
DERIVED = 0.30
"""A GPU whose rates were derived from its generation: nobody published them."""
SEEN = ("ampere", "hopper", "blackwell")
BRIDGE_ON_AMPERE = 0.12
"""No open row runs Bridge on Ampere; other frameworks' clusters of A100 were up to a fifth slower than NVIDIA's own."""

# What widens a band (no or few open rows have it), and by how much.
SPARSE = 0.05  # sparse, compressed or linear attention
CROSSING = 0.03  # experts or tensors over more than one NVLink domain
SHARDED = 0.03  # FSDP, offload
NO_NVLINK = 0.05
MANY, FAR_RANKS = 0.03, 512
"""What gradients that are summed over more ranks than that widen it by: between 16 and 2,048 GPUs of DGX Cloud, over 1,024 ranks, Nemotron-4
15B lost 4 and 5 % of its pace where 1.6 % are predicted, and no row has more."""


def _kind(recipe: Recipe) -> str:
    a = recipe.architecture
    if recipe.task == "peft":
        return "adapters"
    if a.hybrid_layer_pattern or a.linear_attention_pattern:
        return "hybrid"
    if not a.num_moe_experts:
        return "dense"
    return "graphed" if recipe.features.cuda_graph == "full_iteration" else "moe"


def settled(recipe: Recipe, rates: Rates) -> tuple[str, float]:
    """What rows say of a kind of run, whatever its layout: the kind, and ± the share of the iteration time."""
    framework = framework_of(recipe.features.framework)
    own, kinds = framework.band, {_kind(recipe): BRIDGE[_kind(recipe)]}
    if own is not None:
        kinds = {next(iter(framework.starts), "another framework"): own}
    if rates.product.arch == "blackwell" and recipe.precision in ("bf16", "fp16"):
        if recipe.architecture.num_moe_experts:
            kinds["experts in 16 bits"] = WARM_EXPERTS
        elif own is None:
            kinds["16 bits"] = WARM
    if own is None and recipe.precision == "nvfp4":
        kinds["nvfp4"] = FP4
    return max(kinds.items(), key=lambda kind: kind[1])


def error_band(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    """± share of the iteration time."""
    a, f = recipe.architecture, recipe.features
    bridge = framework_of(f.framework).band is None
    _, band = settled(recipe, rates)
    if rates.product.name not in load("operators.json")["shares"]:
        band += UNMEASURED
    if rates.product.derived is not None:
        band = max(band, DERIVED)
    elif rates.product.arch not in SEEN or a.kind == "diffusion":
        band = max(band, UNSEEN)
    elif rates.product.arch == "ampere" and bridge:
        band = max(band, BRIDGE_ON_AMPERE)
    if a.experimental_attention_variant or a.csa_compress_ratios:
        band += SPARSE
    if layout.ep * layout.etp > rates.nvlink_domain or layout.tp > rates.nvlink_domain:
        band += CROSSING
    if layout.fsdp or f.fsdp or f.cpu_offload_layers or f.offload_modules or f.optimizer_offload:
        band += SHARDED
    if rates.nvlink_domain == 1 and rates.gpus_per_node > 1:
        band += NO_NVLINK
    if layout.dp * layout.cp > FAR_RANKS:
        band += MANY
    return round(min(band, 0.40), 3)

"""How wrong an estimate may be: ± the share of the iteration time within which two of three measured runs lie.

The numbers are the 68th percentile of the residuals over the open rows of each kind of plan (`docs/accuracy.md` prints
them beside the band), rounded up: runs that were never looked at are a little worse. What no open row covers is wider by
judgement, and says so here.
"""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe

BRIDGE = {"dense": 0.07, "moe": 0.08, "hybrid": 0.10}
"""Megatron Bridge on Hopper and Blackwell, by kind of model."""
OLDER = {
    "megatron-lm": 0.05, "megatron-core": 0.10, "megatron-deepspeed (blocking": 0.17, "megatron-deepspeed": 0.11,
    "internevo": 0.22, "gpt-neox": 0.22,
}  # fmt: skip
"""Other frameworks, by the start of their names."""
UNSEEN_GPU = 0.20
"""GPU generations without a single open row."""
SEEN = ("ampere", "hopper", "blackwell")
BRIDGE_ON_AMPERE = 0.12
"""No open row runs Bridge on Ampere; other frameworks' clusters of A100 were up to a fifth slower than NVIDIA's own."""

# What widens a band (no or few open rows have it), and by how much.
SPARSE = 0.05  # sparse, compressed or linear attention
CONTEXT = 0.02  # context parallelism
CROSSING = 0.03  # experts or tensors over more than one NVLink domain
SHARDED = 0.03  # FSDP, offload
NO_NVLINK = 0.05


def error_band(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    """± share of the iteration time."""
    a, f = recipe.architecture, recipe.features
    framework = (f.framework or "megatron-bridge").lower()
    older = next((band for name, band in OLDER.items() if framework.startswith(name)), None)
    kind = "hybrid" if a.hybrid_layer_pattern or a.linear_attention_pattern else "moe" if a.num_moe_experts else "dense"
    band = BRIDGE[kind] if older is None else older
    if rates.product.arch not in SEEN:
        band = max(band, UNSEEN_GPU)
    elif rates.product.arch == "ampere" and older is None:
        band = max(band, BRIDGE_ON_AMPERE)
    if a.experimental_attention_variant or a.csa_compress_ratios:
        band += SPARSE
    if layout.cp > 1:
        band += CONTEXT
    if layout.ep * layout.etp > rates.nvlink_domain or layout.tp > rates.nvlink_domain:
        band += CROSSING
    if layout.fsdp or f.fsdp or f.cpu_offload_layers or f.offload_modules or f.optimizer_offload:
        band += SHARDED
    if rates.nvlink_domain == 1 and rates.gpus_per_node > 1:
        band += NO_NVLINK
    return round(min(band, 0.40), 3)

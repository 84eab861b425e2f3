"""Casting weights to 8 or 4 bits, which products of those formats read."""

from __future__ import annotations

from functools import lru_cache

from parlaunch.estimate.states import NEEDS_TRANSPOSE, low_copies
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.pieces import QUANTISE_KERNELS, TRANSPOSED
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.matrices import TORCH, layer_matrices
from parlaunch.model.recipe import Recipe

MEASURED_FIRST = ("fp8cs", "nvfp4")
"""Formats that are scaled by the largest value of a whole tensor, which is read for it once more."""


def cast_time(recipe: Recipe, layout: Layout, kernels: Kernels) -> float:
    """Seconds an iteration in which weights are made ready for products in 8 or 4 bits.

    Those kept in 16 bits are cast in the first micro batch and stay so until the optimizer has changed them, or in every one
    (`is_first_microbatch`, and None of it without the transpose cache: megatron/core/extensions/transformer_engine.py). Those
    gathered in MXFP8 travel in 16 bits and are cast behind (`_post_param_sync`, distributed/param_and_grad_buffer.py); those with
    one scale a tensor come as they are and are transposed where need be. A stage casts when the micro batch reaches it.
    """
    p, f, arch = recipe.precision, recipe.features, kernels.product.arch
    copies = low_copies(p, arch, f.transpose_cache)
    if not copies or "fp8" not in kernels.product.flops:
        return 0.0
    moved, again = (4.0 if p in MEASURED_FIRST else 2.0) + copies, 1
    if not f.gathered_low(p):
        again = 1 if f.transpose_cache else layout.num_microbatches
    elif recipe.frozen or layout.fsdp or f.fsdp or (p != "fp8mx" and arch not in NEEDS_TRANSPOSE):
        return 0.0
    elif p != "fp8mx":
        moved = TRANSPOSED
    elements, count = _held(recipe.architecture, layout.tp, layout.ep, layout.etp, f.wide_ends(p))
    one = kernels.stream(moved * elements / layout.pp, kernels=QUANTISE_KERNELS[p] * count / layout.pp)
    return one * (again + (layout.pp - 1) / (layout.vp or 1))


@lru_cache(maxsize=4096)
def _held(a: Architecture, tp: int, ep: int, etp: int, wide: tuple[int, int]) -> tuple[float, float]:
    """Elements and number of all layers' matrices on one rank, were it the only stage, but for so many first and last layers."""
    elements, count = 0.0, 0.0
    layers = a.layers()
    for kind in layers[wide[0] : len(layers) - wide[1]] + a.mtp_layers():
        for m in layer_matrices(a, kind):
            if m.module not in TORCH:
                outputs, inputs = m.shape(tp, etp)
                many = m.streams * max(1, m.experts // ep)
                elements, count = elements + many * outputs * inputs, count + many
    return elements, count

"""Which cross entropy a recipe runs, and what one logit costs in it."""

from __future__ import annotations

from dataclasses import replace

from parlaunch.estimate.states import keeping_of
from parlaunch.model.recipe import Recipe

LOGIT = {"te": (2, 2), "te_wide": (6, 4), "native": (10, 4), "unfused": (6, 4)}
"""Bytes of one logit: at the worst moment, and kept until backward. Transformer Engine's loss works in place in bf16; in 2.18 it makes
the gradient in float32 beside them (`pytorch/triton/cross_entropy.py`, `grad_input`). The native one (Megatron Core, `fusions/fused_cross_entropy.py`) keeps the softmax in float32; its backward
pass, as torch compiles it, makes a second one for the scatter and the gradient in bf16 (`tests/model/test_cross_entropy.py`); unfused
(`tensor_parallel/cross_entropy.py`) it works in place and makes the gradient alone."""

CAPPED = 2
"""Bytes of one logit that a tanh over the logits keeps: its output, in bf16 (Bridge, `models/gemma/gemma2_provider.py`)."""


def loss_of(recipe: Recipe) -> str:
    """Which cross entropy, a key of `LOGIT`: as the features say, Transformer Engine's in benchmarks that do not, else as the framework
    has it unless told otherwise."""
    f = recipe.features
    return f.cross_entropy or ("te" if recipe.benchmark else keeping_of(f.framework).loss)


WIDE_LOSS = (2, 18)
"""The Transformer Engine from which on its loss makes gradients in float32."""


def with_loss_of(recipe: Recipe, transformer_engine: tuple[int, ...] | None) -> Recipe:
    """The recipe with the cross entropy that this version has under the name that it asks for; None: not known."""
    if transformer_engine is None or transformer_engine < WIDE_LOSS or loss_of(recipe) != "te":
        return recipe
    return replace(recipe, features=replace(recipe.features, cross_entropy="te_wide"))

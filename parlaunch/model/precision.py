"""Training precisions: our short names, Megatron Bridge's, and what a name switches on beside the arithmetic."""

from __future__ import annotations

from typing import Any

BRIDGE_NAMES = {
    "bf16": "bf16_mixed",
    "fp16": "fp16_mixed",
    "fp8cs": "bf16_with_fp8_current_scaling_mixed",
    "fp8ds": "bf16_with_fp8_delayed_scaling_mixed",
    "fp8sc": "bf16_with_fp8_subchannel_scaling_mixed",
    "fp8mx": "bf16_with_mxfp8_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}
"""Our short names to those of Megatron Bridge's `MIXED_PRECISION_RECIPES` (training/mixed_precision.py); fp32 is none of them."""

SCALINGS = {"tensorwise": "fp8cs", "delayed": "fp8ds", "blockwise": "fp8sc", "mxfp8": "fp8mx"}
"""Megatron's words for how FP8 is scaled (`fp8_recipe`), and our short names."""

QUANTIZED = ("fp8", "nvfp4")
"""Beginnings of the precisions that multiply in 8 or 4 bits."""

USER_BUFFERED = ("bf16", "fp16", "fp32", "fp8cs", "fp8ds", "fp8mx")
"""Precisions whose operands Transformer Engine's user buffers gather; another one's stop the first step with "Unsupported quantizer
for Userbuffers" (transformer_engine/pytorch/module/base.py, `fill_userbuffers_buffer_for_all_gather`)."""

_PARTS = (
    ("nanov2_bf16_with_fp8_current_scaling", "fp8sc"), ("nvfp4", "nvfp4"), ("mxfp8", "fp8mx"), ("fp8_current_scaling", "fp8cs"),
    ("fp8_delayed_scaling", "fp8ds"), ("fp8_subchannel", "fp8sc"), ("fp16_mixed", "fp16"), ("bf16_mixed", "bf16"),
)  # fmt: skip
"""What a name of Bridge contains; the first that fits. Models have names of their own: nemotron_h_bf16_with_…. One of those scales blocks,
whatever it is called."""

_WIDE_ENDS = (
    ("nemotron_h_", (2, 2)), ("nanov2_", (2, 2)), ("nemotron_3_super_bf16_with_nvfp4", (0, 14)),
    ("nemotron_3_ultra_bf16_with_nvfp4", (0, 16)), ("fp8_current_scaling", (1, 1)),
)  # fmt: skip
"""First and last layers that a name leaves in 16 bits (`first_last_layers_bf16`); the first that fits."""


def short_name(bridge_name: str) -> str | None:
    """Ours for a mixed precision name of Bridge's; None for one that it does not have.

    >>> short_name("bf16-with-mxfp8-mixed"), short_name("nemotron_h_bf16_with_fp8_current_scaling_mixed"), short_name("fp12")
    ('fp8mx', 'fp8cs', None)
    """
    name = bridge_name.replace("-", "_")
    return next((short for part, short in _PARTS if part in name), None)


def switched(bridge_name: str) -> dict[str, Any]:
    """The features that a mixed precision name sets, as `parlaunch.model.recipe.Features` calls them.

    Its sections override the model's, the optimizer's and DDP's own (`MixedPrecisionConfig.setup`).
    """
    short = short_name(bridge_name)
    name = bridge_name.replace("-", "_")
    half = name.startswith("fp16")
    return {
        "grad_reduce_fp32": not half,
        "fp8_param_gather": short in ("fp8cs", "fp8ds", "fp8mx") or "current_scaling" in name,
        "fp4_param_gather": short == "nvfp4",
        "fp8_attention": False,
        "bf16_ends": next((ends for part, ends in _WIDE_ENDS if part in name), (0, 0)),
    }


def product_format(precision: str) -> str:
    """What matrix products are in, whatever scales them.

    >>> product_format("fp8mx"), product_format("nvfp4"), product_format("fp16")
    ('fp8', 'fp4', 'bf16')
    """
    if precision == "nvfp4":
        return "fp4"
    return "fp8" if precision.startswith("fp8") else "fp32" if precision == "fp32" else "bf16"

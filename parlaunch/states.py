"""Bytes that one parameter costs: its weight, its gradient, its share of the optimizer.

Megatron's mixed precision: a weight in the training format, a main gradient in bf16 or float32, and, for Adam, a float32
master weight with two moments, which the distributed optimizer spreads over the data-parallel group.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from parlaunch.recipe import Features


class Bytes(NamedTuple):
    """Bytes a parameter."""

    layer_weight: float  # of a matrix in a layer, with its quantized copies
    other_weight: float  # of embedding and output: never quantized
    gradient: float
    optimizer: float  # before it is spread over data-parallel ranks


MOMENT = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "uint8": 1, "float8_e4m3fn": 1}

NEEDS_TRANSPOSE = ("ada", "hopper")
"""Generations whose FP8 matrix units take one operand order only, so that every weight exists transposed as well."""


def _quantized(precision: str, gpu_arch: str) -> float:
    """Bytes of a weight's low-precision copies: row-wise, and column-wise where the backward pass cannot read the first."""
    if precision in ("fp8cs", "fp8ds"):
        return 2.0 if gpu_arch in NEEDS_TRANSPOSE else 1.0
    if precision == "fp8sc":
        return 2 * (1 + 4 / 128**2)
    if precision == "fp8mx":
        return 2 * (1 + 1 / 32)
    if precision == "nvfp4":
        return 2 * (0.5 + 1 / 16)
    return 0.0


@lru_cache(maxsize=512)
def bytes_a_parameter(precision: str, f: Features, gpu_arch: str) -> Bytes:
    """What Megatron keeps for each parameter that it trains.

    - `fp8_param_gather`: the low-precision copy is the weight; else it stands beside a bf16 one, cached over micro batches.
    - precision-aware optimizer: moments in `f.moments`, and of a bf16 weight only the 16 bits of its float32 master that
      the weight itself lacks (`store_param_remainders`; not with FP8 weights).
    """
    if precision == "fp32":
        return Bytes(4, 4, 4, 8)
    quantized = _quantized(precision, gpu_arch)
    kept_low = quantized > 0 and f.fp8_param_gather
    layer = quantized if kept_low else 2 + quantized
    gradient = 4 if f.grad_reduce_fp32 else 2
    moments = 2 * MOMENT.get(f.moments, 4) if f.precision_aware_optimizer else 8
    remainder_only = f.precision_aware_optimizer and precision != "fp16" and not kept_low and f.distributed_optimizer
    master = 2 if remainder_only else 4
    return Bytes(layer, 2, gradient, (master + moments) * (1 - f.optimizer_offload))

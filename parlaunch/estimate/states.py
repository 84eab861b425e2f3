"""Bytes that one parameter costs: its weight, its gradient, its share of the optimizer.

Megatron's mixed precision: a weight in the training format, a main gradient in bf16 or float32, and, for Adam, a float32
master weight with two moments, which the distributed optimizer spreads over the data-parallel group. Tables of runs come
from other frameworks as well; what those keep on top is in `KEEPING`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from parlaunch.estimate.frameworks import framework_of
from parlaunch.frozen import dataclass
from parlaunch.model.recipe import Features


class Bytes(NamedTuple):
    """Bytes a parameter."""

    layer_weight: float  # of a matrix in a layer, with its quantized copies
    other_weight: float  # of embedding and output: never quantized
    gradient: float
    optimizer: float  # before it is spread over data-parallel ranks


MOMENT = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "uint8": 1, "float8_e4m3fn": 1}

NEEDS_TRANSPOSE = ("ada", "hopper")
"""Generations whose FP8 matrix units take one operand order only, so that every weight exists transposed as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What a framework holds beyond weights, main gradients and optimizer."""

    gradients: Mapping[str, float]  # bytes of a gradient by precision; others: as the features say
    sharded: float = 0.0  # bytes a parameter, spread as the optimizer is; not there where that is whole
    # Bytes of flat communication buffers by precision, with a sharded optimizer.
    buckets: Mapping[str, float] | None = None
    slack: float = 0.02  # share of what comes and goes that the caching allocator cannot use again
    fragments: float = 0.0  # without growing segments: blocks as large as the largest tensor that stay empty
    communicators: int = 2  # beyond one for each parallel dimension: the world, and the embedding's two ends
    # Gradients that fused accumulation returns to autograd: one for each shape, the output matrix's with them ("reused") or not
    # ("layers"), one at a time ("passing"), or "none".
    dummies: str = "reused"
    loss: str = "native"  # which cross entropy it runs unless told otherwise: a key of `cross_entropy.LOGIT`
    stage_outputs: bool = False  # what a stage sent on stays until its backward pass
    measured: str = "today"  # which runs its error is from: a key of `memory.PEAK_BAND`
    loading: float = 0.0  # GiB of kernels that CUDA before 11.7 loads whether they run or not


BUCKET = 500_000_000
"""Elements: DeepSpeed's defaults `reduce_bucket_size` and `allgather_bucket_size`."""

FRAGMENTS = 2.6
"""Empty blocks of the size of the largest tensor that comes and goes, where segments do not grow: such a tensor (a gradient of the
vocabulary's matrix, the logits) fits in no hole that smaller ones left, so each of its kinds gets a segment. Settled on
runs of Llama 3 70B and DeepSeek-V2 on B200 with their reserved memory: docs/memory.md has how many each left, and how far off that is."""

KEEPING: Mapping[str, Keeping] = {
    # Expandable segments are on in every Megatron Bridge recipe, and in our environment.
    "megatron": Keeping(gradients={}),
    # Megatron-LM's training script makes gradients of bf16 float32 unless told otherwise.
    "megatron-core": Keeping(gradients={"bf16": 4}, slack=0.0, fragments=FRAGMENTS, loss="unfused"),
    # NeMo's containers: Transformer Engine before 2.4 in MLPerf Training v5.0 and older, Megatron Core before 0.15 in v5.1.
    "nemo-2025": Keeping(gradients={}, dummies="passing"),
    "nemo": Keeping(gradients={}, dummies="layers"),
    # PyTorch's: gradients are tensors of their own and nobody fuses the loss; segments do not grow unless told to.
    "pytorch": Keeping(gradients={}, slack=0.0, fragments=FRAGMENTS, communicators=1, dummies="none", loss="unfused"),
    # In 2022 its authors count float32 gradients with fp16 too (arXiv:2205.05198).
    "megatron-lm": Keeping(gradients={"bf16": 4, "fp16": 4}, slack=0.08, loading=0.9, dummies="none", loss="unfused", measured="2022"),
    # DeepSpeed, ZeRO-1. fp16 (`stage_1_and_2.py`): the partition's float32 gradients, two reduce buckets, one all-gather
    # bucket. bf16 (`bf16_optimizer.py`): float32 gradients of all parameters beside the bf16 ones that autograd makes, a
    # float32 bucket with its flattened copy, an all-gather bucket. Pipeline neighbours talk through groups of two,
    # and a stage's buffers hold inputs and outputs of every micro batch in flight (`pipe/engine.py`).
    "deepspeed": Keeping(
        gradients={"bf16": 6, "fp16": 2}, sharded=4, buckets={"fp16": 3 * 2 * BUCKET, "bf16": (2 * 4 + 2) * BUCKET},
        slack=0.10, communicators=6, stage_outputs=True, loading=0.9, dummies="none", loss="unfused", measured="2022",
    ),
}  # fmt: skip


def keeping_of(framework: str | None) -> Keeping:
    """What the framework of that name keeps, as tables of runs write it; Megatron Bridge's for None and unknown names."""
    return KEEPING[framework_of(framework).keeping]


def low_copies(precision: str, gpu_arch: str, transposes: bool) -> float:
    """Bytes of a weight's low-precision copies: row-wise, and column-wise where the backward pass cannot read the first."""
    if precision in ("fp8cs", "fp8ds"):
        return 2.0 if gpu_arch in NEEDS_TRANSPOSE and transposes else 1.0
    if precision == "fp8sc":
        return 2 * (1 + 4 / 128**2)
    if precision == "fp8mx":
        return 2 * (1 + 1 / 32)
    if precision == "nvfp4":
        return 2 * (0.5 + 1 / 16)
    return 0.0


@lru_cache(maxsize=512)
def bytes_a_parameter(precision: str, f: Features, gpu_arch: str) -> Bytes:
    """What is kept for each parameter that is trained.

    - weights gathered in FP8 or FP4: the low-precision copy is the weight; else it stands beside a bf16 one, cached over micro
      batches.
    - precision-aware optimizer: moments in `f.moments`, and of a bf16 weight only the 16 bits of its float32 master that
      the weight itself lacks (`store_param_remainders`; not with FP8 or FP4 weights).
    """
    keeping = keeping_of(f.framework)
    if precision == "fp32":
        return Bytes(4, 4, 4, 8)
    quantized = low_copies(precision, gpu_arch, f.transpose_cache)
    kept_low = quantized > 0 and f.gathered_low(precision)
    layer = quantized if kept_low else 2 + quantized
    gradient = keeping.gradients.get(precision, f.gradient_bytes)
    moments = 2 * MOMENT.get(f.moments, 4) if f.precision_aware_optimizer else 8
    remainder_only = f.precision_aware_optimizer and precision != "fp16" and not kept_low and f.distributed_optimizer
    master = 2 if remainder_only or (f.precision_aware_optimizer and f.master == "float16") else 4
    # What is offloaded leaves its float32 master on the GPU, unless the optimizer is precision-aware.
    here = 1 - f.optimizer_offload
    return Bytes(layer, 2, gradient, moments * here + master * (here if f.precision_aware_optimizer else 1))

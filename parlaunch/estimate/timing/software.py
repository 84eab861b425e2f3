"""What a generation of training software does and does not do: fused attention, overlap, sharding, host speed.

Planning always means Megatron Bridge as it is today; the older generations are here because most published tables of
runs come from them, and a model that cannot tell them apart would learn their slowness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from parlaunch.estimate.frameworks import framework_of
from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """One generation. Booleans say what it does."""

    fused_attention: bool = True  # flash attention; else scores go through memory
    first_flash: bool = False  # the first FlashAttention
    sequence_parallel: bool = True  # norms and residuals are split by TP
    backward_overlap: float = 0.75  # share of TP's backward collectives that hides under the weight-gradient product
    collective_s: float = (
        0.0  # what a blocking collective costs beside its traffic: streams and ranks wait for each other
    )
    dp_overlap: bool = True  # gradients are reduced under the backward pass, weights gathered under the forward pass
    p2p_overlap: bool = True  # interleaved pipelines send while they compute
    distributed_optimizer: bool = True
    dealt_tensors: int = (
        0  # of a layer, whole to one rank of that optimizer, which broadcasts; 0: equal shares are gathered
    )
    step_bytes: float = 0.0  # bytes that the step moves for a parameter; 0: a fused one's
    fused_accumulation: bool = True  # products of weight gradients add to the main gradient themselves
    float32_sums: bool = True  # where they do not: bf16 gradients go on to an fp32 buffer after every micro batch
    amax_in_norm: bool = True  # norms find the largest value of what current scaling quantises (Transformer Engine 2.7)
    blackwell: float = 1.0  # time of kernels on Blackwell over today's
    fused_elementwise: float = 1.0  # bytes moved by norms, activations, dropout over those of fused kernels
    softmax_batch: int = 1  # the fused softmax kernel wants this many (sequence, head) pairs, or a multiple
    dropout: bool = False  # GPT-2-era recipes drop out after attention and MLP, and inside attention
    logits_bytes: float | None = (
        None  # bytes read and written a logit in the loss, both ways; None: as `layers.LOSS` has its kind
    )
    host: float = 1.0  # CPU time a kernel over today's
    blocking: bool = False  # CUDA_LAUNCH_BLOCKING=1: the CPU waits for every kernel before it issues the next
    iteration_s: float = 0.010  # data loader, logging, timers: once an iteration


MEGATRON_2021 = Software(
    fused_attention=False, fused_accumulation=False, softmax_batch=4, sequence_parallel=False, backward_overlap=0.0, collective_s=8e-5,
    dp_overlap=False, p2p_overlap=False, distributed_optimizer=False, fused_elementwise=1.2, dropout=True, logits_bytes=18.0,
    host=4.4,
)  # fmt: skip
"""Megatron-LM of the SC21 paper and its forks under DeepSpeed: tensor parallelism by all-reduce, nothing overlapped."""

SOFTWARE: Mapping[str, Software] = {
    # Megatron Bridge over Megatron-Core and Transformer Engine.
    "megatron-bridge": Software(collective_s=5e-5),
    "megatron-core": Software(collective_s=5e-5),
    # NeMo's containers up to 25.04, with Transformer Engine up to 2.3. Their kernels were the first on Blackwell: 21 runs of six models on
    # B200 and GB200 (NeMo's pages, DGX Cloud, MLPerf 4.1 and 5.0) took 8 % longer than the same is predicted to take today, with their
    # switches as their scripts have them; on Hopper they did not.
    "nemo-2025": Software(collective_s=5e-5, amax_in_norm=False, blackwell=1.08),
    # Megatron-LM with sequence parallelism and selective recompute (Korthikanti et al. 2022).
    "megatron-lm-2022": Software(
        fused_attention=False, backward_overlap=0.5, softmax_batch=4, dp_overlap=False, distributed_optimizer=False, dropout=True,
        logits_bytes=18.0, iteration_s=0.015,
    ),
    "megatron-lm-2021": MEGATRON_2021,
    # The same with `CUDA_LAUNCH_BLOCKING=1`.
    "megatron-lm-2021-blocking": replace(MEGATRON_2021, blocking=True),
    # Its table is of 2023, of InternLM 0.1 on PyTorch 1.13 and FlashAttention 1 (configs/7B_sft.py, doc/en/install.md). Its tensors: the
    # weights and biases of `Wqkv` and `out_proj`, `w1`, `w2`, `w3`, two norms (internlm/model/). Its step, in bytes a
    # parameter: `_check_overflow` 10, `compute_norm` 10, flattened gradients 4 and in float32 6, scaled 8, AdamW over one tensor
    # operator by operator 88, weights 6 (hybrid_zero_optim.py; torch/optim/adamw.py, `_single_tensor_adamw`).
    "internevo": Software(
        first_flash=True, sequence_parallel=False, fused_accumulation=False, float32_sums=False, dealt_tensors=9, step_bytes=132.0,
        logits_bytes=24.0, fused_elementwise=2.0, iteration_s=0.020,
    ),
    # Eager PyTorch with FlashAttention 2, as InternEvo is with the first. Its gradients come as tensors of their own and go on to a buffer,
    # norms, activations and the loss are made of PyTorch's kernels, AdamW works operator by operator over all tensors at once.
    "pytorch": Software(
        sequence_parallel=True, fused_accumulation=False, float32_sums=False, step_bytes=88.0, logits_bytes=24.0, fused_elementwise=2.0,
        iteration_s=0.020,
    ),
}  # fmt: skip


def software_of(framework: str | None) -> Software:
    """The generation behind a framework's name as tables of runs write it; today's for None and unknown names."""
    return SOFTWARE[framework_of(framework).software]

"""What a GPU generation reaches of its data sheet: a few shares and latencies, each with unit, meaning and source.

None of these is fitted to a row of training runs; they come from kernel benchmarks that vendors and users publish.
A machine file (`parlaunch.calibrate`) replaces them by what was measured on the machine itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from parlaunch.rates import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """One GPU generation. Shares are of the data sheet's dense peak at the same format, or of its bandwidth."""

    gemm_bf16: float  # large GEMM, real data, clocks settled under the power limit
    gemm_fp8: float
    gemm_fp4: float
    tile: tuple[int, int]  # output tile one SM (or SM pair's half) works on
    fill: float  # µs a tile spends in prologue and epilogue, not hidden by its neighbour
    attention_forward: float  # fused attention, head dim 128, long causal sequence, share of the 16-bit peak
    attention_backward: float
    hbm: float  # streaming kernels, share of HBM bandwidth
    kernel: float  # s between the end of one kernel and the start of the next that depends on it
    nvlink: float  # NCCL bus bandwidth, share of the links' one-direction rate
    host: float  # s of CPU time to issue one kernel from eager PyTorch


# gemm_*: maximum achievable matmul tables (A100 271 of 312, H100 795 of 989 in bf16 for seconds-long runs; sustained
# training loads settle some 8 % lower under the board's power limit). attention_*: figures of FlashAttention-2 (A100),
# FlashAttention-3 and cuDNN (H100), cuDNN 9 (B200). nvlink: NCCL's tuning constants a link (20.0, 20.6, 40.1 GB/s of
# 25, 25, 50). hbm: STREAM-like copies. kernel: CUDA launch latency on a busy stream.
GENERATIONS: Mapping[str, Silicon] = {
    "volta": Silicon(
        gemm_bf16=0.76, gemm_fp8=0.76, gemm_fp4=0.76, tile=(128, 128), fill=1.6, attention_forward=0.35,
        attention_backward=0.30, hbm=0.82, kernel=2.5e-6, nvlink=0.80, host=8e-6,
    ),
    "turing": Silicon(
        gemm_bf16=0.70, gemm_fp8=0.70, gemm_fp4=0.70, tile=(128, 128), fill=1.6, attention_forward=0.35,
        attention_backward=0.30, hbm=0.82, kernel=2.5e-6, nvlink=0.80, host=8e-6,
    ),
    "ampere": Silicon(
        gemm_bf16=0.83, gemm_fp8=0.83, gemm_fp4=0.83, tile=(128, 256), fill=1.8, attention_forward=0.62,
        attention_backward=0.52, hbm=0.84, kernel=2.0e-6, nvlink=0.80, host=8e-6,
    ),
    "ada": Silicon(
        gemm_bf16=0.72, gemm_fp8=0.65, gemm_fp4=0.65, tile=(128, 128), fill=1.6, attention_forward=0.55,
        attention_backward=0.45, hbm=0.82, kernel=2.0e-6, nvlink=0.80, host=7e-6,
    ),
    "hopper": Silicon(
        gemm_bf16=0.72, gemm_fp8=0.68, gemm_fp4=0.68, tile=(128, 256), fill=1.5, attention_forward=0.60,
        attention_backward=0.50, hbm=0.86, kernel=1.8e-6, nvlink=0.824, host=6e-6,
    ),
    "blackwell": Silicon(
        gemm_bf16=0.74, gemm_fp8=0.70, gemm_fp4=0.62, tile=(128, 256), fill=0.6, attention_forward=0.58,
        attention_backward=0.46, hbm=0.86, kernel=1.8e-6, nvlink=0.802, host=5e-6,
    ),
    "rubin": Silicon(
        gemm_bf16=0.74, gemm_fp8=0.66, gemm_fp4=0.60, tile=(128, 256), fill=0.5, attention_forward=0.58,
        attention_backward=0.46, hbm=0.86, kernel=1.8e-6, nvlink=0.802, host=5e-6,
    ),
}  # fmt: skip


def silicon_of(rates: Rates) -> Silicon:
    """The generation's constants, with what a machine file measured in their place."""
    base = GENERATIONS.get(rates.product.arch, GENERATIONS["hopper"])
    names = {f for f in Silicon.__dataclass_fields__ if f != "tile"}
    measured = {k: v for k, v in rates.measured.items() if k in names}
    return replace(base, **measured) if measured else base

"""What a GPU generation reaches of its data sheet: a few shares and latencies, each with unit, meaning and source.

Sizes come from kernel benchmarks: maximum achievable matmul FLOPS of A100 and H100 (ml-engineering: 271 of 312 and 795 of 989
TFLOP/s for short runs; sustained training settles lower under the power limit), FlashAttention-2 and -3 and cuDNN for attention,
NCCL's tuning constants a link (20.0, 20.6 and 40.1 GB/s of 25, 25 and 50) for `nvlink`. Where those leave room, mostly on
Blackwell, the share was settled on published training runs as a whole, never for one model (`docs/accuracy.md`).
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
    attention_forward: float  # fused attention, head dim 128, long causal sequence, share of the 16-bit peak
    attention_backward: float
    epilogue: float  # share of the traffic of a GEMM's results that no other tile's work hides
    wave: float = (
        0.5  # share of the idle time in a GEMM's last wave of tiles that scheduling along k does not take back
    )
    fill: float = 1.0  # µs a tile waits for its first operands
    tile: tuple[int, int] = (128, 256)  # output tile one SM works on
    scan: float = 220.0  # FLOP an SM and clock in state-space scans (Mamba-2's kernels on A100)
    hbm: float = 0.84  # streaming kernels, share of HBM bandwidth
    kernel: float = 2.0e-6  # s between the end of one kernel and the start of the next that depends on it
    nvlink: float = 0.80  # NCCL bus bandwidth, share of the links' one-direction rate
    host: float = 8e-6  # s of CPU time to issue one kernel from eager PyTorch


GENERATIONS: Mapping[str, Silicon] = {
    "volta": Silicon(
        gemm_bf16=0.74, gemm_fp8=0.74, gemm_fp4=0.74, attention_forward=0.35, attention_backward=0.30,
        epilogue=0.7, tile=(128, 128), hbm=0.82, kernel=2.5e-6,
    ),
    "turing": Silicon(
        gemm_bf16=0.70, gemm_fp8=0.70, gemm_fp4=0.70, attention_forward=0.35, attention_backward=0.30,
        epilogue=0.7, tile=(128, 128), hbm=0.82, kernel=2.5e-6,
    ),
    "ampere": Silicon(
        gemm_bf16=0.83, gemm_fp8=0.83, gemm_fp4=0.83, attention_forward=0.62, attention_backward=0.52, epilogue=0.9, fill=3.5,
    ),
    "ada": Silicon(
        gemm_bf16=0.72, gemm_fp8=0.65, gemm_fp4=0.65, attention_forward=0.55, attention_backward=0.45,
        epilogue=0.6, tile=(128, 128), hbm=0.82, host=8e-6,
    ),
    "hopper": Silicon(
        gemm_bf16=0.72, gemm_fp8=0.64, gemm_fp4=0.64, attention_forward=0.60, attention_backward=0.50,
        epilogue=0.6, fill=0.8, hbm=0.86, kernel=1.8e-6, nvlink=0.824, host=8e-6,
    ),
    "blackwell": Silicon(
        gemm_bf16=0.72, gemm_fp8=0.57, gemm_fp4=0.55, attention_forward=0.54, attention_backward=0.44,
        epilogue=0.3, fill=0.6, hbm=0.78, kernel=1.8e-6, nvlink=0.802, host=6e-6,
    ),
    "rubin": Silicon(
        gemm_bf16=0.74, gemm_fp8=0.66, gemm_fp4=0.60, attention_forward=0.58, attention_backward=0.46,
        epilogue=0.3, fill=0.5, hbm=0.86, kernel=1.8e-6, nvlink=0.802, host=8e-6,
    ),
}  # fmt: skip


ULTRA = {
    "gemm_bf16": 0.80, "gemm_fp8": 0.66, "gemm_fp4": 0.50, "attention_forward": 0.60, "attention_backward": 0.48,
}  # fmt: skip
"""Blackwell Ultra (B300, GB300) over Blackwell: a sixth more board power at the same 8- and 16-bit peak, so the clocks
settle higher; twice the rate of exponentials, which fused attention waits for; half as much more 4-bit peak."""


GRACE = ("GH", "GB2", "GB3")
"""How products begin that sit beside a Grace CPU."""
GRACE_HOST = 8e-6
"""`host` there: its cores run single threads slower than the x86 hosts of the same GPUs."""


def silicon_of(rates: Rates) -> Silicon:
    """The generation's constants, with what a machine file measured in their place."""
    base = GENERATIONS.get(rates.product.arch, GENERATIONS["hopper"])
    known = set(Silicon.__dataclass_fields__) - {"tile"}
    changes = dict(ULTRA) if rates.product.compute_capability == (10, 3) else {}
    if rates.product.name.startswith(GRACE):
        changes["host"] = GRACE_HOST
    changes |= {k: v for k, v in rates.measured.items() if k in known}
    for name, value in changes.items():
        base = replace(base, **{name: value})  # type: ignore[arg-type]
    return base

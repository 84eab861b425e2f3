"""How long one kernel takes: matrix products by shape and format, fused and unfused attention, streaming kernels."""

from __future__ import annotations

from math import ceil

from parlaunch.rates import Rates
from parlaunch.timing.silicon import Silicon, silicon_of

# Bytes of one operand element by GEMM format; products are written in 16 bits.
OPERAND_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "vector": 2.0,  # 16 bits that the tensor cores do not take
    "fp8": 1.0,
    "mx": 1.03,
    "fp4": 0.56,
}

GROUPED_SHARE = 0.87
"""Grouped products over one product of the same size: uneven tails (DeepGEMM's figures for grouped and dense on H800)."""
MX_SHARE = 0.93
"""Products of block-scaled FP8 over those scaled by tensor: the scales travel along."""

# Smaller tiles keep more SMs busy and reuse less: (rows, columns, share of the big tile's rate).
_TILES = ((1.0, 1.0, 1.0), (1.0, 0.5, 0.84), (0.5, 0.5, 0.73), (0.5, 0.25, 0.55))


class Kernels:
    """Kernel times on one GPU, in seconds. Results are remembered: a search asks for few shapes, often."""

    def __init__(self, rates: Rates) -> None:
        self.silicon: Silicon = silicon_of(rates)
        self.product = rates.product
        self.hbm = rates.product.hbm_bytes_per_s * self.silicon.hbm
        self._gemm: dict[tuple[int, int, int, str, int, bool], float] = {}
        share = {"bf16": self.silicon.gemm_bf16, "fp16": self.silicon.gemm_bf16, "fp32": self.silicon.gemm_bf16,
                 "fp8": self.silicon.gemm_fp8, "fp4": self.silicon.gemm_fp4}  # fmt: skip
        precision = {
            "bf16": "bf16",
            "fp16": "fp16",
            "fp32": "fp32",
            "fp8": "fp8cs",
            "fp4": "nvfp4",
        }
        self.rate = {f: rates.product.peak_flops(precision[f]) * share[f] for f in share}
        self.rate["vector"] = rates.product.flops.get("fp32", self.rate["bf16"] / 16) * share["fp32"]
        self.rate["mx"] = self.rate["fp8"] * MX_SHARE
        self.scan_rate = self.silicon.scan * rates.product.sms * rates.product.boost_clock_hz
        self.attention_peak = rates.product.peak_flops("bf16")

    def gemm(
        self,
        m: int,
        n: int,
        k: int,
        fmt: str,
        *,
        groups: int = 1,
        accumulate: bool = False,
    ) -> float:
        """`groups` products of [m, k] by [k, n] in one launch. `accumulate`: the product is added to fp32 memory."""
        key = (m, n, k, fmt, groups, accumulate)
        known = self._gemm.get(key)
        if known is None:
            known = self._gemm[key] = self._gemm_time(m, n, k, fmt, groups, accumulate)
        return known

    def _gemm_time(self, m: int, n: int, k: int, fmt: str, groups: int, accumulate: bool) -> float:
        if m <= 0 or n <= 0 or k <= 0:
            return 0.0
        rate, sms = self.rate[fmt] * (GROUPED_SHARE if groups > 1 else 1.0), self.product.sms
        rows, columns = self.silicon.tile
        best = float("inf")
        for down, across, share in _TILES:
            tm, tn = rows * down, columns * across
            tiles = groups * min(ceil(m / tm) * ceil(n / tn), ceil(m / tn) * ceil(n / tm))
            # One SM works a tile at its share of the whole GPU's rate. The last wave is rarely full; a scheduler that
            # splits tiles along k (stream-K, split-K) takes a part of that loss back.
            waves = tiles / sms
            waves += self.silicon.wave * (ceil(waves) - waves)
            tile = 2.0 * tm * tn * k / (rate / sms * share) + self.silicon.fill * 1e-6
            best = min(best, waves * tile)
        element = OPERAND_BYTES[fmt]
        result = groups * (8.0 if accumulate else 2.0) * m * n
        moved = groups * element * (m * k + k * n) + result
        return max(best + self.silicon.epilogue * result / self.hbm, moved / self.hbm) + self.silicon.kernel

    def stream(self, moved: float, *, kernels: float = 1.0) -> float:
        """Kernels that only read and write `moved` bytes."""
        return moved / self.hbm + kernels * self.silicon.kernel

    def attention(
        self,
        *,
        flops: float,
        sequence: int,
        head_dim: int,
        backward: bool,
        heads: int,
        value_dim: int | None = None,
    ) -> float:
        """Fused attention over `flops` (already halved when causal); short sequences and odd head sizes reach less."""
        s = self.silicon
        share = s.attention_backward if backward else s.attention_forward
        width = min(head_dim, value_dim or head_dim)
        # Softmax and tile overheads are per score, products per score and head element.
        share *= 2.0 * width / (width + 128.0) if width < 128 else 1.0
        share *= sequence / (sequence + 512.0)
        return flops / (self.attention_peak * share) + s.kernel * (3.0 if backward else 1.0)

"""How long one kernel takes: matrix products by shape and format, fused and unfused attention, streaming kernels."""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.estimate.timing.operators import (
    NEAREST,
    Grid,
    attention,
    measured_as,
    narrow_attention,
    products,
    tail,
    waves,
    window_edge,
)
from parlaunch.estimate.timing.silicon import CLOCK, SCALED_JOULES, Silicon, silicon_of
from parlaunch.hardware.datasheet import product
from parlaunch.hardware.rates import Rates

# Bytes of one operand element by GEMM format; products are written in 16 bits.
OPERAND_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "vector": 2.0,  # 16 bits that the tensor cores do not take
    "fp8": 1.0,
    "block": 1.03,
    "mx": 1.03,
    "fp4": 0.56,
}

SCALED_BURST = {"mx": 1.05, "block": SCALED_JOULES["block"]}
"""Time of a product in FP8 with a scale a block over one with a scale a tensor, whose table it takes: twelve of a layer in Transformer
Engine's benchmark (docs/examples/gemm_profiling): on B300, operands quantised before, 7.16 and 6.81 ms; on H200 as in `SCALED_JOULES`."""
GROUPED_SHARE = 0.90
"""Weight gradients of experts over one product of the same size: every expert's own sum in fp32 (SimuMax's 36 on B200: 0.99)."""
SIDE_BY_SIDE = 2
"""Products of experts, forward and for the input, that share the multiprocessors: what one leaves idle at its start and its last tiles,
another takes. Transformer Engine issues them on four streams (common/gemm/cublaslt_gemm.cu, `multi_stream_cublas_gemm`); of SimuMax's
72 on B200 one by one is 1.06 in the median, two are 0.99, four 0.90."""
PADDING = 64
"""Rows that a group of a grouped product adds on average: half a tile of 128, as counts of tokens end anywhere in one."""
VECTOR_SHARE = 0.72
"""Share of their peak that units other than tensor cores reach: whatever the shape, with operands that are read unaligned."""
CUT = 0.9
"""A multiprocessor's matrix units are slower by design under this rate over the measured one's, not by another clock or another count."""
LARGE = 8192
"""Rows, columns and depth of the product whose burst the power limit is held against."""
PRECISION_OF = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp32": "fp32",
    "fp8": "fp8cs",
    "block": "fp8sc",
    "mx": "fp8mx",
    "fp4": "nvfp4",
}
"""A precision whose products are in that format."""
_MEASURED = {"mx": "fp8", "block": "fp8", "fp8": "fp8", "fp4": "fp4"}
"""Formats whose products have tables of their own; all others are as far from their peak as 16 bits are."""
_HEAD_SIZES = (64, 128, 256, 512)


def _behind(share: float, units: float) -> float:
    """The share of their peak that matrix units reach which are slower by a factor: what keeps them waiting takes as long."""
    return 1.0 / (1.0 + units * (1.0 / share - 1.0))


class Kernels:
    """Kernel times on one GPU, in seconds. Results are remembered: a search asks for few shapes, often."""

    def __init__(self, rates: Rates) -> None:
        self.silicon: Silicon = silicon_of(rates)
        self.product = rates.product
        self.hbm = rates.product.hbm_bytes_per_s * self.silicon.hbm
        self._gemm: dict[tuple[int, int, int, str, int, bool, bool], float] = {}
        self.rate = {f: rates.product.peak_flops(p) for f, p in PRECISION_OF.items()}
        self.rate["vector"] = rates.product.flops["fp32"]
        self._stands_for = measured_as(rates.product) or NEAREST["ampere"]
        self._units = {f: self._slower(p) for f, p in PRECISION_OF.items()} | {"vector": 1.0}
        self._tails = {f: tail(self._stands_for, self._measured(f)) for f in self.rate}
        self._kept = {f: self._sustained(f, rates.measured) for f in self.rate}
        self.scan_rate = self.silicon.scan * rates.product.sms * rates.product.boost_clock_hz
        self.attention_peak = rates.product.peak_flops("bf16")

    def reached(self, fmt: str) -> float:
        """Share of the data sheet's peak that a large product of a format reaches in training: `gemm_bf16` and its like of a
        machine file, where one was measured."""
        return self._kept[fmt] * self._burst(fmt)

    def _burst(self, fmt: str) -> float:
        return self._share(fmt, LARGE, LARGE, LARGE)

    def _slower(self, precision: str) -> float:
        """Rate of a multiprocessor's matrix units over that of the measured GPU's, where it is the same one with less of them."""
        stands_for = product(self._stands_for)
        assert stands_for is not None
        if stands_for.compute_capability != self.product.compute_capability:
            return 1.0
        own, other = (p.peak_flops(precision) / (p.sms * p.boost_clock_hz) for p in (self.product, stands_for))
        return own / other if own < CUT * other else 1.0

    def _share(self, fmt: str, m: int, n: int, k: int) -> float:
        """What a product reaches of what the data sheet allows for its shape, as a burst."""
        share, shown = _behind(self._table(fmt).at(m, n, k), self._units[fmt]), self._tails[fmt]
        share /= SCALED_BURST.get(fmt, 1.0)
        return share / waves(m, n, self.product.sms, shown) if shown else share

    def _sustained(self, fmt: str, measured: Mapping[str, float]) -> float:
        burst, name = self._burst(fmt), f"gemm_{_MEASURED.get(fmt, 'bf16')}"
        if name in measured:
            return measured[name] / burst / SCALED_JOULES.get(fmt, 1.0)
        kept = self.silicon.sustained(fmt, burst * self.rate[fmt], self.product.power_w)
        # FP4's tables hold less than training reaches, but no more of its peak than products in FP8 have of theirs.
        return min(kept, self._burst("fp8") / burst) if fmt == "fp4" else kept

    def _clocked(self, fmt: str, share: float, size: int) -> float:
        """What a product of rows times columns times depth keeps of its burst under the power limit. One that is larger than that which the
        limit is held against and yet reached less was slowed by it when it was measured: it draws less, and loses the less clock for it."""
        kept, most = self._kept[fmt], self._burst(fmt)
        if size < LARGE**3 or share >= most or fmt in ("fp4", "vector"):
            return kept
        regained: float = (most / share) ** CLOCK
        return max(kept, min(1.0, kept * regained))

    def _table(self, fmt: str) -> Grid:
        found = products(self._stands_for, self._measured(fmt))
        assert found is not None
        return found

    def _measured(self, fmt: str) -> str:
        """The format whose table stands for one."""
        own = _MEASURED.get(fmt, "bf16")
        return own if products(self._stands_for, own) else "bf16"

    def gemm(
        self,
        m: int,
        n: int,
        k: int,
        fmt: str,
        *,
        groups: int = 1,
        accumulate: bool = False,
        fused: bool = False,
    ) -> float:
        """`groups` products of [m, k] by [k, n]. `accumulate`: the product is added to fp32 memory. `fused`: one launch for all
        groups, where else each has its own."""
        key = (m, n, k, fmt, groups, accumulate, fused)
        known = self._gemm.get(key)
        if known is None:
            known = self._gemm[key] = self._gemm_time(m, n, k, fmt, groups, accumulate, fused)
        return known

    def _gemm_time(self, m: int, n: int, k: int, fmt: str, groups: int, accumulate: bool, fused: bool) -> float:
        if m <= 0 or n <= 0 or k <= 0:
            return 0.0
        s = self.silicon
        # One launch works groups off side by side, as the tiles of one product with all their rows would be.
        beside = groups if fused else 1 if accumulate else min(SIDE_BY_SIDE, groups)
        share = VECTOR_SHARE if fmt == "vector" else self._share(fmt, m * beside, n, k)
        kept = self._clocked(fmt, share, m * beside * n * k)
        share *= GROUPED_SHARE if groups > 1 and accumulate else 1.0
        rows = m + PADDING if groups > 1 and not accumulate else m
        moved = OPERAND_BYTES[fmt] * groups * (m * k + k * n) + groups * 2.0 * m * n
        # The power limit lowers the clock of what the tensor cores do, not the memory's.
        compute = 2.0 * groups * rows * n * k / (self.rate[fmt] * kept)
        seconds = max(max(compute, moved / self.product.hbm_bytes_per_s) / share, s.kernel)
        if fmt == "fp4":
            # In front of each a kernel multiplies the two tensors' scales (Transformer Engine, `nvte_nvfp4_compute_per_tensor_scale`).
            seconds += s.kernel * (1 if fused else groups / min(SIDE_BY_SIDE, groups))
        # A sum in fp32 is read and written beside the product, and only a part of it hides.
        return seconds + (s.epilogue * 6.0 * groups * m * n / self.hbm if accumulate else 0.0)

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
        fmt: str = "bf16",
        whole: bool = False,
    ) -> float:
        """Fused attention of `heads` heads in all sequences over `flops` (already halved when causal; `whole`: it is not)."""
        s, value = self.silicon, value_dim or head_dim
        share = _behind(self._attention_share(sequence, heads, head_dim, value), self._units["bf16"]) * s.flash
        gain = s.flash_backward if backward else 1.0
        if fmt != "bf16":
            form = str(head_dim) if head_dim == value else f"{head_dim},{value}"
            measured = narrow_attention(self.product, form, fmt, sequence=sequence, backward=backward, whole=whole)
            gain = measured or gain
        share *= gain
        return flops / (self.attention_peak * share) + s.kernel * (3.0 if backward else 1.0)

    def window_edge(self, head_dim: int, sequence: int, heads: int) -> float:
        """Keys that a query of windowed attention costs beside those in its window; `heads` of all sequences."""
        return window_edge(self._stands_for, head_dim, max(1, sequence), heads)

    def _attention_share(self, sequence: int, heads: int, head_dim: int, value_dim: int) -> float:
        """Share of the 16-bit peak of a forward pass, as it was measured; between head sizes in proportion."""
        if head_dim != value_dim and (grid := attention(self._stands_for, "192,128")):
            return grid.at(max(1, sequence), heads)
        known = [(size, grid) for size in _HEAD_SIZES if (grid := attention(self._stands_for, str(size)))]
        below = [found for found in known if found[0] <= head_dim] or known[:1]
        above = [found for found in known if found[0] >= head_dim] or known[-1:]
        (low, one), (high, other) = below[-1], above[0]
        first = one.at(max(1, sequence), heads)
        if low == high:
            # Softmax and tile overheads are per score, products per score and head element.
            return first * min(1.0, head_dim / low)
        weight = (head_dim - low) / (high - low)
        return first + weight * (other.at(max(1, sequence), heads) - first)

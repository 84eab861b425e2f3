"""Measured operators of a GPU: the share of its data sheet that products, attention and collectives reach by shape.

The tables are `data/operators.json`, made by `scripts/make/operators.py` from public measurements on silicon (named there and
in NOTICE). A cell is a share of what the data sheet allows for that shape: between the points that were measured it changes
slowly where times do not, so it is interpolated, in logarithms (collectives: their time, in bytes), and beyond the last point it
stays. They are bursts on a cool GPU, back to back; what training keeps of them is said in `silicon`.
"""

from __future__ import annotations

from base64 import b64decode
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, exp, log
from typing import Any

from parlaunch.data import load
from parlaunch.hardware.datasheet import Product

STEP = 0.02
"""A cell is a byte: minus the logarithm of the share, in these steps."""

TILES = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.92), (64, 128, 0.75), (128, 64, 0.75), (64, 64, 0.55))
"""(rows, columns, rate over that of the largest) of the tiles that libraries cut a product into."""

NEAREST = {
    "ampere": "A100 SXM 80GB", "ada": "L40S", "hopper": "H100 SXM", "blackwell": "B200", "rubin": "GB300",
}  # fmt: skip
"""The measured product whose shares a GPU of the same generation takes when it was not measured itself."""
NARROW = {"hopper": "H200 SXM", "blackwell": "GB200", "blackwell_ultra": "GB300", "rubin": "GB300"}
"""The product whose attention in FP8 stands for a generation's."""
CONSUMER_BLACKWELL = "RTX PRO 6000 Blackwell Server"
"""The same for compute capability 12, whose tensor cores are not those of B200."""


class Grid:
    """Shares on a grid of sizes, interpolated in the logarithms of sizes and share; outside, the edge's."""

    __slots__ = ("_axes", "_cells", "_known", "_strides")

    def __init__(self, axes: Sequence[Sequence[float]], cells: bytes) -> None:
        self._axes = [[log(size) for size in axis] for axis in axes]
        self._cells = cells
        self._known: dict[tuple[float, ...], float] = {}  # a search asks for the same shapes again and again
        self._strides = [1] * len(axes)
        for i in range(len(axes) - 2, -1, -1):
            self._strides[i] = self._strides[i + 1] * len(axes[i + 1])

    def at(self, *sizes: float) -> float:
        """The share at a point, one size for each axis."""
        share = self._known.get(sizes)
        if share is None:
            share = self._known[sizes] = self._interpolated(sizes)
        return share

    def _interpolated(self, sizes: Sequence[float]) -> float:
        corners: list[tuple[int, float]] = [(0, 1.0)]
        for axis, stride, size in zip(self._axes, self._strides, sizes, strict=True):
            x = log(size)
            i = min(max(bisect_right(axis, x) - 1, 0), len(axis) - 2)
            w = min(max((x - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)
            corners = [
                (at + (i + up) * stride, part * weight)
                for at, part in corners
                for up, weight in ((0, 1.0 - w), (1, w))
                if weight
            ]
        return exp(-STEP * sum(self._cells[at] * part for at, part in corners))


class Lines(Grid):
    """A grid whose first axis is bytes on their way: between two sizes the time of a collective is a line, of a latency and of bytes
    over a bandwidth, and the share follows from it."""

    __slots__ = ("_bytes",)

    def __init__(self, axes: Sequence[Sequence[float]], cells: bytes) -> None:
        super().__init__(axes, cells)
        self._bytes = axes[0]

    def _interpolated(self, sizes: Sequence[float]) -> float:
        moved, *others = sizes
        i = bisect_right(self._bytes, moved)
        if not 0 < i < len(self._bytes):
            return super()._interpolated(sizes)
        low, high = self._bytes[i - 1], self._bytes[i]
        weight = (moved - low) / (high - low)
        # Times, but for a factor that they share.
        first, last = low / super()._interpolated((low, *others)), high / super()._interpolated((high, *others))
        return moved / (first + weight * (last - first))


def encode(shares: Sequence[float]) -> bytes:
    """Shares as cells of a grid."""
    return bytes(min(255, max(0, round(-log(share) / STEP))) for share in shares)


def measured_as(product: Product) -> str | None:
    """The measured product that stands for a GPU: itself, or the nearest of its generation; None where none is near."""
    if product.name in load("operators.json")["shares"]:
        return product.name
    return CONSUMER_BLACKWELL if product.compute_capability[0] == 12 else NEAREST.get(product.arch)


@cache
def _grid(kind: str, name: str, form: str) -> Grid | None:
    table: Mapping[str, Any] = load("operators.json")
    cells = table["shares"].get(name, {}).get(kind, {}).get(form)
    made = Lines if kind == "nccl" else Grid
    return None if cells is None else made(table["axes"][kind], b64decode(cells))


@cache
def waves(m: int, n: int, sms: int, shown: float = 1.0) -> float:
    """Time of an [m, n] product's tiles over that of the same work spread evenly: tiles reach over the edges, SMs work off whole ones,
    and the last round of them is rarely full. Of several cuts the fastest, and never more than two: products of few tiles are cut along
    their depth as well. `shown`: what the last round counts, as an exponent; edges, which no other SM takes over, twice that up to all."""
    edges = min(1.0, 2.0 * shown)
    fewest: float = 2.0**edges
    for rows, columns, rate in TILES:
        tiles = ceil(m / rows) * ceil(n / columns)
        over, late = tiles * rows * columns / (m * n), ceil(tiles / sms) * sms / tiles
        fewest = min(fewest, (over / rate) ** edges * late**shown)
    return fewest


def tail(name: str, fmt: str) -> float:
    """How much of the rounds of tiles a GPU's products of a format show (`waves`): 0 where kernels stay on their SM and share the last
    tiles, 1 where every tile is started anew."""
    return float(load("operators.json")["tails"].get(name, {}).get(fmt, 0.0))


def products(name: str, fmt: str) -> Grid | None:
    """Matrix products by (rows, columns, depth): share of max(FLOPs over the peak, bytes over HBM bandwidth), to be divided by the
    `waves` that the `tail` shows."""
    return _grid("gemm", name, fmt)


def attention(name: str, form: str) -> Grid | None:
    """Causal attention forward in 16 bits by (sequence, batch times heads): share of the peak. `form`: head size or sizes."""
    return _grid("attention", name, form)


def window_edge(name: str, head_dim: int, sequence: int, heads: int) -> float:
    """Keys that a query of windowed attention costs beside those in its window, at the pace of whole attention of that shape: tiles that
    the window cuts, and what every tile of queries begins and ends with. Of the nearest head size that was measured in a window, and of
    a GPU on which none was as on Ada, which runs the same FlashAttention-2."""
    if "window" not in load("operators.json")["shares"].get(name, {}):
        name = NEAREST["ada"]
    known = [form.split(",") for form in load("operators.json")["shares"][name]["window"]]
    size, window = min(known, key=lambda form: abs(int(form[0]) - head_dim))
    within, whole = _grid("window", name, f"{size},{window}"), attention(name, size)
    assert within is not None
    assert whole is not None
    seen = int(window) - int(window) ** 2 / (2.0 * sequence)
    return max(0.0, seen * (whole.at(sequence, heads) / within.at(sequence, heads) - 1.0))


def narrow_attention(
    product: Product, form: str, fmt: str, *, sequence: int, backward: bool, whole: bool
) -> float | None:
    """Rate of attention in FP8 (`fp8`) or MXFP8 (`mx`) over that of `attention`, the forward pass in 16 bits; of one that nobody measured
    that of heads of 128, or of FP8; None where no GPU of the generation was. `whole`: no causal mask."""
    name = "" if product.compute_capability[0] == 12 else NARROW.get(product.silicon, "")
    way = f"{'backward' if backward else 'forward'} {'whole' if whole else 'causal'}"
    for known in (f"{form} {fmt}", f"128 {fmt}", "128 fp8"):
        if grid := _grid("narrow", name, f"{known} {way}"):
            return 2.0 * grid.at(max(1, sequence))
    return None


def collectives(name: str, operation: str) -> Grid | None:
    """NCCL inside a node by (bytes of the whole tensor, ranks): share of the links' rate that its bus bandwidth reaches."""
    return _grid("nccl", name, operation)

"""The operators that a plan asks of its GPUs, by shape: what a machine is calibrated on for it.

They are what the time model asks its kernels and links for, written down as it asks, so that nothing is measured that no plan
needs and nothing that it needs is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.pieces import split_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe


class Product(NamedTuple):
    """[m, k] by [k, n], in a format of the kernels (bf16, fp8, mx, fp4, …)."""

    m: int
    n: int
    k: int
    format: str


class Attention(NamedTuple):
    """Fused causal attention of so many heads in all, each over so many tokens."""

    sequence: int
    heads: int
    head_dim: int
    value_dim: int


class Collective(NamedTuple):
    """`bytes` of the whole tensor among `ranks`, of which `inside` share an NVLink domain."""

    operation: str  # all_gather | all_reduce | alltoall
    bytes: int
    ranks: int
    inside: int


class Shapes(NamedTuple):
    """What one micro batch of a plan asks for, each once, the largest first."""

    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    collectives: tuple[Collective, ...]


class _Asked(Kernels):
    """Kernels that write down what they are asked for."""

    def __init__(self, rates: Rates) -> None:
        self.products: set[Product] = set()
        self.attended: set[Attention] = set()
        super().__init__(rates)

    def gemm(self, m: int, n: int, k: int, fmt: str, **how: Any) -> float:
        if min(m, n, k) > 0:
            self.products.add(Product(m, n, k, fmt))
        return super().gemm(m, n, k, fmt, **how)

    def attention(self, *, sequence: int, heads: int, head_dim: int, value_dim: int | None = None, **how: Any) -> float:
        self.attended.add(Attention(sequence, heads, head_dim, value_dim or head_dim))
        return super().attention(sequence=sequence, heads=heads, head_dim=head_dim, value_dim=value_dim, **how)


class _Sent(Links):
    """Links that write down what they carry."""

    def __init__(self, rates: Rates) -> None:
        self.carried: set[Collective] = set()
        super().__init__(rates)

    def _collective(self, operation: str, moved: float, group: Group) -> float:
        if group.size > 1 and moved > 0:
            self.carried.add(Collective(operation, int(moved), group.size, group.inside))
        return super()._collective(operation, moved, group)


def shapes_of(recipe: Recipe, layout: Layout, rates: Rates) -> Shapes:
    """The products, attention and collectives of the layers and ends of this layout."""
    kernels, links = _Asked(rates), _Sent(rates)
    layers = Layers(recipe, software_of(recipe.features.framework), kernels, links)
    split = split_of(layout)
    layers.of(split)
    layers.ends(split)
    return Shapes(
        tuple(sorted(kernels.products, key=lambda p: (-p.m * p.n * p.k, p))),
        tuple(sorted(kernels.attended, key=lambda a: (-(a.sequence**2) * a.heads * a.head_dim, a))),
        tuple(sorted(links.carried, key=lambda c: (-c.bytes, c))),
    )

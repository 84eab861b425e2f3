"""The operators that a plan asks of its GPUs, by shape: what a machine is calibrated on for it.

They are what the time of an iteration asks its kernels and links for, written down as it asks: layers and ends, the traffic of tensor,
context, expert and data parallelism, and what pipeline stages send each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.iteration import ask_of
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe


class Product(NamedTuple):
    """[m, k] by [k, n], in a format of the kernels (bf16, fp8, mx, fp4, …). Of products of several experts, one."""

    m: int
    n: int
    k: int
    format: str
    accumulate: bool = False  # added to fp32 memory, as gradients of weights are


class Attention(NamedTuple):
    """Fused causal attention of so many heads in all, each over so many tokens."""

    sequence: int
    heads: int
    head_dim: int
    value_dim: int


class Collective(NamedTuple):
    """`bytes` of the whole tensor among `ranks`, of which `inside` share an NVLink domain, or a node."""

    operation: (
        str  # all_gather | reduce_scatter | all_reduce | alltoall: what each rank sends | send: to the next of them
    )
    bytes: int
    ranks: int
    inside: int


class Shapes(NamedTuple):
    """What one iteration of a plan asks for, each once, the largest first."""

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
            self.products.add(Product(m, n, k, fmt, how.get("accumulate", False)))
        return super().gemm(m, n, k, fmt, **how)

    def attention(self, *, sequence: int, heads: int, head_dim: int, value_dim: int | None = None, **how: Any) -> float:
        self.attended.add(Attention(sequence, heads, head_dim, value_dim or head_dim))
        return super().attention(sequence=sequence, heads=heads, head_dim=head_dim, value_dim=value_dim, **how)


class _Sent(Links):
    """Links that write down what they carry."""

    def __init__(self, rates: Rates) -> None:
        self.carried: set[Collective] = set()
        super().__init__(rates)

    def _carry(self, operation: str, moved: float, group: Group) -> None:
        if group.size > 1 and moved >= 1:
            self.carried.add(Collective(operation, int(moved), group.size, group.inside))

    def gather(self, moved: float, group: Group) -> float:
        self._carry("all_gather", moved, group)
        return super().gather(moved, group)

    def scatter(self, moved: float, group: Group) -> float:
        self._carry("reduce_scatter", moved, group)
        return super().scatter(moved, group)

    def reduce(self, moved: float, group: Group) -> float:
        self._carry("all_reduce", moved, group)
        return super().reduce(moved, group)

    def all_to_all(self, moved: float, group: Group) -> float:
        self._carry("alltoall", moved, group)
        return super().all_to_all(moved, group)

    def dispatch(self, near: float, far: float, group: Group, most: float | None) -> float:
        """The same bytes all to all: those of NVLink in each domain, those of the network between ranks of one rail."""
        self._carry("alltoall", near, Group(group.inside, group.inside))
        self._carry("alltoall", far, Group(-(-group.size // group.inside), 1))
        return super().dispatch(near, far, group, most)

    def send(self, moved: float, group: Group) -> float:
        self._carry("send", moved, group)
        return super().send(moved, group)


def shapes_of(recipe: Recipe, layout: Layout, rates: Rates) -> Shapes:
    """The products, attention and collectives that an iteration of this layout takes its time with."""
    kernels, links = _Asked(rates), _Sent(rates)
    ask_of(kernels, links, recipe, layout, rates)
    return Shapes(
        tuple(sorted(kernels.products, key=lambda p: (-p.m * p.n * p.k, p))),
        tuple(sorted(kernels.attended, key=lambda a: (-(a.sequence**2) * a.heads * a.head_dim, a))),
        tuple(sorted(links.carried, key=lambda c: (-c.bytes, c))),
    )

"""Sums over rows whose errors are alike in part, and the linear algebra that they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log

from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Sums:
    """Products of columns over rows, under the inverse of the rows' covariance, and the logarithm of its determinant. The last
    column is the scale of what rows share."""

    products: list[list[float]]
    log_determinant: float

    @staticmethod
    def of(row: Sequence[float], variance: float) -> Sums:
        """One row alone."""
        return Sums([[a * b / variance for b in row] for a in row], log(variance))


def joined(parts: Iterable[Sums], shared: float) -> Sums:
    """Several that also share an error of this deviation, in proportion to their scales (Sherman and Morrison)."""
    products = [
        [sum(values) for values in zip(*rows, strict=True)] for rows in zip(*(p.products for p in parts), strict=True)
    ]
    total = sum(p.log_determinant for p in parts)
    scale = products[-1]
    grown = 1 + shared**2 * scale[-1]
    less = shared**2 / grown
    return Sums(
        [
            [value - less * a * b for value, b in zip(row, scale, strict=True)]
            for row, a in zip(products, scale, strict=True)
        ],
        total + log(grown),
    )


def unit(i: int, n: int) -> list[float]:
    """The i-th of n unit vectors."""
    return [float(k == i) for k in range(n)]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """The scalar product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """The lower triangle L of a positive definite matrix, L·Lᵀ."""
    lower: list[list[float]] = []
    for i, given in enumerate(matrix):
        row: list[float] = []
        for j in range(i + 1):
            left = given[j] - sum(a * b for a, b in zip(row, lower[j] if j < i else row, strict=False))
            row.append(left**0.5 if j == i else left / lower[j][j])
        lower.append(row)
    return lower


def log_determinant(lower: Sequence[Sequence[float]]) -> float:
    """Of L·Lᵀ, its logarithm."""
    return 2 * sum(log(row[-1]) for row in lower)


def solve(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of L·Lᵀ·x = right."""
    half: list[float] = []
    for row, value in zip(lower, right, strict=True):
        half.append((value - sum(a * b for a, b in zip(row, half, strict=False))) / row[-1])
    out = [0.0] * len(half)
    for i in reversed(range(len(half))):
        out[i] = (half[i] - sum(lower[k][i] * out[k] for k in range(i + 1, len(half)))) / lower[i][i]
    return out

"""What rows of measurements make likely of coefficients, and the linear algebra that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log


def expected(
    rows: Sequence[Mapping[int, float]], values: Sequence[float], variances: Sequence[float], prior: Sequence[float]
) -> tuple[list[float], float]:
    """The coefficients to expect, and the logarithm of how likely the values are, but for a constant.

    A value is the sum of coefficients times what its row has of them, and an error of its own variance; before any row is known
    each coefficient is 0, give or take its `prior` (a standard deviation).
    """
    matrix = [[float(i == k) / deviation**2 for i in range(len(prior))] for k, deviation in enumerate(prior)]
    right = [0.0] * len(prior)
    for row, value, variance in zip(rows, values, variances, strict=True):
        for i, a in row.items():
            right[i] += a * value / variance
            for k, b in row.items():
                matrix[i][k] += a * b / variance
    factor = cholesky(matrix)
    mean = solve(factor, right)
    spread = log_determinant(factor) + 2 * sum(map(log, prior))
    own = sum(value**2 / variance + log(variance) for value, variance in zip(values, variances, strict=True))
    return mean, (dot(right, mean) - spread - own) / 2


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

"""Which layouts are worth a try beside the choice, and in which turn.

Errors of two layouts of one model on one machine are mostly the same error: a layout that differs little from the choice is as good
or as bad as it is predicted, and there is little to find out. What may surprise is what spends its time on something else. So the
estimate of a layout is taken as uncertain in each part of the time, the same way for all layouts, and each next alternative
is the one that can be expected to save most beside every one before it, as batches of experiments are chosen by their expected
improvement (Ginsbourger, Le Riche and Carraro, "Kriging is well-suited to parallelize optimization", 2010): who measures the first N and
keeps the fastest (`parlaunch verify --top N`) gets most from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import erfc, exp, log, pi, sqrt
from typing import NamedTuple

OWN = 0.034
"""How far apart the errors of any two layouts lie, as a share of the time, whatever their times consist of."""
PART = 0.28
"""How wrong each part of the time is by itself, as a share of it. Both are the least squares through what Megatron-Core's measured pairs
are apart by, squared, over the squared differences of their parts' shares; those of other software bear it out (docs/near-ties.md)."""


class Prospect(NamedTuple):
    """What is expected of a layout: the logarithm of its seconds, charges included, and the share of the time that each part takes."""

    expected: float
    shares: tuple[float, ...]


def prospect(seconds: float, parts: Iterable[float], charge: float) -> Prospect:
    """Of an iteration of so many seconds, made of these parts, that is charged that share of its time."""
    return Prospect(log(seconds * (1 + charge)), tuple(part / seconds for part in parts))


def in_turn(choice: Prospect, others: Sequence[Prospect], count: int) -> list[int]:
    """The places of `count` of the others, in the order in which they are worth a try; of equals, the one that stands first."""
    saves = {place: _saving(other, choice) for place, other in enumerate(others)}
    order: list[int] = []
    while saves and len(order) < count:
        taken = max(saves, key=lambda place: saves[place])
        order.append(taken)
        del saves[taken]
        saves = {place: min(known, _saving(others[place], others[taken])) for place, known in saves.items()}
    return order


def _saving(one: Prospect, than: Prospect) -> float:
    """The share of the time that one layout can be expected to save against another that was tried: where it is slower, nothing."""
    apart = sqrt(OWN**2 + PART**2 * sum((a - b) ** 2 for a, b in zip(one.shares, than.shares, strict=True)))
    behind = (one.expected - than.expected) / apart
    return apart * (exp(-(behind**2) / 2) / sqrt(2 * pi) - behind * erfc(behind / sqrt(2)) / 2)

"""Which nodes of an allocation run the job, when it has more than are needed and some are sick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.where.nodelist import short

Answer = Mapping[str, Any]
"""What a node brought to the agreement: `sick` and `warned` (sentences of doctor), `agreement.hostname`."""


def healthy(came: Sequence[Answer], *, nnodes: int, spares: int, force: bool = False) -> list[Answer]:
    """The `nnodes - spares` best of the nodes that came, in their order; the others are spares.

    A node with a preflight FAIL goes first, then one with more warnings, then the last in the list. Raises
    `ParlaunchError` that names every sick node when more are sick than may be left out; `force` launches on them anyway.
    """
    needed = max(1, nnodes - spares)
    worst_first = sorted(
        range(len(came)), key=lambda i: (len(_sick(came[i])), len(came[i].get("warned") or ()), i), reverse=True
    )
    left_out = set(worst_first[: max(0, len(came) - needed)])
    kept = [mine for i, mine in enumerate(came) if i not in left_out]
    sick = [mine for mine in kept if _sick(mine)]
    if sick and not force:
        words = "; ".join(f"{_name(mine)}: {', '.join(_sick(mine))}" for mine in sick[:8])
        more = f"; and {len(sick) - 8} more" if len(sick) > 8 else ""
        raise ParlaunchError(
            f"preflight: {short(tuple(_name(m) for m in sick))} cannot run this job: {words}{more}",
            hint="--spares N with N nodes more than needed runs without them; --force launches anyway",
        )
    return kept


def _sick(mine: Answer) -> Sequence[str]:
    return mine.get("sick") or ()


def _name(mine: Answer) -> str:
    return str(mine["agreement"]["hostname"])

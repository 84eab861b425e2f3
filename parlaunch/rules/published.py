"""Which published recipes are known not to run as they are written."""

from __future__ import annotations

from collections.abc import Collection

from parlaunch.data import rows
from parlaunch.model.layout import Layout

MENDED = frozenset({"seq-match"})
"""Rules that a published recipe breaks and a plan of it does not: it says the length of model and data, both."""


def mended(violations: Collection[str] | None) -> bool:
    """Whether these are all that is wrong with a recipe, and a plan says it right."""
    return bool(violations) and MENDED.issuperset(violations or ())


def broken_as_published(name: str, layout: Layout) -> bool:
    """Whether this is the layout of a published recipe that is known not to run as written."""
    for row in rows("evidence.json", "name", name):
        if row.get("feasible", True) or mended(row.get("violations")):
            continue
        x = row["layout"]
        sizes = (x["tp"], x["pp"], x.get("vp"), x.get("cp") or 1, x.get("ep") or 1, x["mbs"])
        return sizes == (layout.tp, layout.pp, layout.vp, layout.cp, layout.ep, layout.micro_batch_size)
    return False

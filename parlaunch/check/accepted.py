"""Predictions beside those that were last accepted: what a change of the estimate moves, and which sources it makes worse.

A record is `{"tables": {name: {"sources": {source: {"time": share, "memory": share}}, "rows": {id: [seconds, GB or GiB]}}}, "rises": [{…}]}`:
mean absolute errors of each source in a table, and every row's predicted iteration time and peak memory, in the row's own unit. A mean
that rises needs a reason, which stays in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from parlaunch.check.validate import errors_of, share_of, validate
from parlaunch.frozen import dataclass

SAME = 0.001
"""Share by which a prediction may differ from the accepted one and still be the same: rounding, other versions of Python."""
SLACK = 0.0005
"""Rise of a source's mean error, as a share, that needs no reason."""
QUANTITIES = ("time", "memory")


@dataclass(frozen=True, slots=True)
class Moved:
    """One prediction that is not what was accepted; None: the row is new, or gone."""

    table: str
    row: str
    quantity: str
    accepted: float | None
    now: float | None

    def __str__(self) -> str:
        if not self.accepted or not self.now:
            return f"{self.table} {self.row}: {self.quantity} {'new' if self.now else 'gone'}"
        return f"{self.table} {self.row}: {self.quantity} {self.accepted:.4g} -> {self.now:.4g} ({self.now / self.accepted - 1:+.1%})"


def record(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The predictions of today for tables of measured runs, by name."""
    return {"tables": {name: _table(rows) for name, rows in sorted(tables.items())}, "rises": []}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entries = [e for e in validate(rows)["rows"] if e["predicted"]]
    scored = [e for e in entries if e["scored"] and e["measured"].get("status") != "oom"]
    sources: dict[str, dict[str, float]] = {}
    for source in sorted({e["source"] for e in scored}):
        for quantity in QUANTITIES:
            shares = [s for e in scored if e["source"] == source and (s := share_of(e, quantity)) is not None]
            if errors := errors_of(shares):
                sources.setdefault(source, {})[quantity] = round(errors["mean"], 5)
    found: dict[str, Any] = {"sources": sources}
    found["rows"] = {
        e["id"]: [float(f"{e['predicted'][name]:.6g}") for name in ("iteration_time_s", "peak_memory_gb")]
        for e in entries
    }
    return found


def moved(accepted: Mapping[str, Any], now: Mapping[str, Any]) -> list[Moved]:
    """Every prediction that differs by more than `SAME`, the largest change first; then those that are new or gone."""
    out = []
    for table in sorted({*accepted["tables"], *now["tables"]}):
        before = accepted["tables"].get(table, {"rows": {}})["rows"]
        after = now["tables"].get(table, {"rows": {}})["rows"]
        for row in dict.fromkeys((*before, *after)):
            for at, quantity in enumerate(QUANTITIES):
                old = before[row][at] if row in before else None
                new = after[row][at] if row in after else None
                if old is None or new is None or abs(new - old) > SAME * abs(old):
                    out.append(Moved(table, row, quantity, old, new))
    return sorted(out, key=_size, reverse=True)


def _size(change: Moved) -> float:
    """Share by which a prediction moved; 0 for rows that are new or gone."""
    return abs(change.now / change.accepted - 1.0) if change.accepted and change.now else 0.0


def risen(accepted: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for every source whose mean error rose."""
    out = []
    for table, before in accepted["tables"].items():
        after = now["tables"].get(table, {"sources": {}})["sources"]
        for source, errors in before["sources"].items():
            for quantity, old in errors.items():
                new = after.get(source, {}).get(quantity)
                if new is not None and new > old + SLACK:
                    out.append(f"{table}, {source}: the mean error of {quantity} rises from {old:.2%} to {new:.2%}")
    return out


def summary(changes: Sequence[Moved], *, most: int = 20) -> str:
    """What moved, in words: how many, by how much on average, and the largest."""
    if not changes:
        return "no prediction moved"
    sizes = [_size(c) for c in changes if _size(c)]
    mean = f", by {fmean(sizes):.1%} on average" if sizes else ""
    shown = [f"  {change}" for change in changes[:most]]
    more = [f"  and {len(changes) - most} more"] if len(changes) > most else []
    return "\n".join([f"{len(changes)} predictions moved{mean}:", *shown, *more])

"""Predictions beside those that were last accepted: what a change of the estimate moves, and which sources it makes worse.

A record is `{"tables": {name: {"sources": {source: {"time": share, "memory": share}}, "rows": {id: [seconds, GB or GiB]}}}, "rises": [{…}]}`:
mean absolute errors of each source in a table, and every row's predicted iteration time and peak memory, in the row's own unit. One that
was accepted holds the best mean that a source ever had since it last rose; a mean above that, and a source or a row that is there no
longer, needs a reason, and `rises` keeps them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

from parlaunch.check.validate import errors_of, share_of, validate
from parlaunch.frozen import dataclass

SAME = 0.001
"""Share by which a prediction may differ from the accepted one and still be the same: rounding, other versions of Python."""
SLACK = 0.0005
"""What a source's mean error may be above the best that was accepted, as a share, without a reason."""
_RISE = re.compile(r"(?P<of>.+) rises from [\d.]+% to (?P<to>[\d.]+)%")
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


@dataclass(frozen=True, slots=True)
class Worse:
    """One mean error that rose, or something that is held no longer."""

    of: str
    best: float = 0.0
    now: float | None = None

    def __str__(self) -> str:
        return f"{self.of} is gone" if self.now is None else f"{self.of} rises from {self.best:.2%} to {self.now:.2%}"

    def explained(self, rise: Mapping[str, str]) -> bool:
        """Whether an entry of `rises` gives the reason for it."""
        if self.now is None:
            return rise["what"] == str(self)
        said = _RISE.fullmatch(rise["what"])
        return said is not None and said["of"] == self.of and self.now <= float(said["to"]) / 100 + 0.5e-4


def worse(accepted: Mapping[str, Any], now: Mapping[str, Any], *, slack: float = SLACK) -> list[Worse]:
    """Every mean error above the accepted best, and every one and every row that is there no longer."""
    means, out = dict(_means(now)), []
    for of, best in _means(accepted):
        mean = means.get(of)
        if mean is None or mean > best + slack:
            out.append(Worse(of, best, mean))
    for table, before in accepted["tables"].items():
        rows = now["tables"].get(table, {"rows": {}})["rows"]
        out += [Worse(f"{table}: {row}") for row in before["rows"] if row not in rows]
    return out


def _means(held: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for table, found in held["tables"].items():
        for source, errors in found["sources"].items():
            for quantity, mean in errors.items():
                yield _of(table, source, quantity), mean


def _of(table: str, source: str, quantity: str) -> str:
    return f"{table}, {source}: the mean error of {quantity}"


def accept(accepted: Mapping[str, Any], now: Mapping[str, Any], because: str) -> dict[str, Any]:
    """What is held from now on: today's rows, each source's best mean, and the reason for what is worse."""
    risen = worse(accepted, now)
    best, reset = dict(_means(accepted)), {w.of for w in risen}
    tables = {}
    for table, found in now["tables"].items():
        sources: dict[str, dict[str, float]] = {}
        for source, errors in found["sources"].items():
            for quantity, mean in errors.items():
                of = _of(table, source, quantity)
                sources.setdefault(source, {})[quantity] = mean if of in reset else min(mean, best.get(of, mean))
        tables[table] = {"sources": sources, "rows": found["rows"]}
    return {"tables": tables, "rises": [*accepted["rises"], *({"what": str(w), "because": because} for w in risen)]}


def unexplained(before: Mapping[str, Any], accepted: Mapping[str, Any]) -> list[str]:
    """What an accepted record lost since an earlier one without a reason: reasons themselves, bests, sources, rows."""
    kept = len(before["rises"])
    lost = [
        f"rises: {old['what']!r} is gone"
        for old, new in zip_longest(before["rises"], accepted["rises"][:kept])
        if old != new
    ]
    new = accepted["rises"][kept:]
    return lost + [str(w) for w in worse(before, accepted, slack=0.0) if not any(w.explained(rise) for rise in new)]


def summary(changes: Sequence[Moved], *, most: int = 20) -> str:
    """What moved, in words: how many, by how much on average, and the largest."""
    if not changes:
        return "no prediction moved"
    sizes = [_size(c) for c in changes if _size(c)]
    mean = f", by {fmean(sizes):.1%} on average" if sizes else ""
    shown = [f"  {change}" for change in changes[:most]]
    more = [f"  and {len(changes) - most} more"] if len(changes) > most else []
    return "\n".join([f"{len(changes)} predictions moved{mean}:", *shown, *more])

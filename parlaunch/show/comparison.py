"""One recipe on several machines, side by side: as a table, as JSON, as a page."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

from parlaunch.estimate.training import training_to_json
from parlaunch.frozen import dataclass
from parlaunch.planning.plan import Plan, candidate_to_json
from parlaunch.units import count, gib, percent, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One machine, with a number changed or as it is, and the plan for it; or why there is none."""

    hardware: str
    what_if: str = ""
    plan: Plan | None = None
    refused: str = ""


def _total(e: Entry) -> float:
    assert e.plan is not None
    return e.plan.chosen.estimate.tokens_per_s_per_gpu * e.plan.layout.world


def _each(e: Entry) -> float:
    assert e.plan is not None
    return e.plan.chosen.estimate.tokens_per_s_per_gpu


def _thrift(e: Entry) -> float | None:
    assert e.plan is not None
    training = e.plan.training
    return None if training is None or training.cost_per_billion_tokens is None else -training.cost_per_billion_tokens


BEST = {"fastest": _total, "per GPU": _each, "cheapest": _thrift}
"""What a machine may be best at, among two and more."""


def marks(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """For each entry what it is best at; where two are equal, both are."""
    planned = [e for e in entries if e.plan is not None]
    found: list[tuple[str, ...]] = [() for _ in entries]
    for word, figure in BEST.items():
        figures = {id(e): value for e in planned if (value := figure(e)) is not None}
        if len(figures) < 2:
            continue
        top = max(figures.values())
        found = [(*m, word) if figures.get(id(e)) == top else m for m, e in zip(found, entries, strict=True)]
    return found


def _cells(e: Entry, best: tuple[str, ...], first: Entry) -> dict[str, str]:
    name = e.hardware if not e.what_if else f"  with {e.what_if}"
    if e.plan is None:
        return {"machine": name, "layout": e.refused}
    c, t = e.plan.chosen, e.plan.training
    cells = {
        "machine": name, "GPUs": f"{e.plan.cluster.world_size:,}", "layout": re.sub(r" dp=\d+", "", c.layout.sizes), "memory": gib(c.memory.peak),
        "iteration": seconds(c.estimate.iteration_time_s), "tok/s/GPU": f"{c.estimate.tokens_per_s_per_gpu:,.0f}",
        "tok/s": count(_total(e)), "MFU": percent(c.estimate.mfu),
    }  # fmt: skip
    if t is not None and t.days is not None:
        cells["days"] = f"{t.days:,.1f}"
    if t is not None and t.cost is not None:
        cells["cost"] = f"{t.cost:,.0f}"
    elif t is not None and t.cost_per_billion_tokens is not None:
        cells["cost/B tok"] = f"{t.cost_per_billion_tokens:,.2f}"
    if e is not first and first.plan is not None:
        cells["vs 1st"] = f"{_total(e) / _total(first) - 1:+.1%}"
    return cells | ({"best": ", ".join(best)} if best else {})


LEFT = ("machine", "layout", "best")


def _table(entries: Sequence[Entry]) -> tuple[list[str], list[dict[str, str]]]:
    rows = [_cells(e, m, entries[0]) for e, m in zip(entries, marks(entries), strict=True)]
    order = ("machine", "GPUs", "layout", "memory", "iteration", "tok/s/GPU", "tok/s", "MFU", "days", "cost",
             "cost/B tok", "vs 1st", "best")  # fmt: skip
    return [name for name in order if any(name in row for row in rows)], rows


def to_text(entries: Sequence[Entry], *, width: int = sys.maxsize) -> str:
    """A line a machine, columns aligned; a refusal takes the place of the layout and all behind it. Where no line of that width
    holds it, a paragraph a machine."""
    head, rows = _table(entries)
    lines = _aligned(head, rows, width)
    if max(map(len, lines)) > width:
        lines = [line for row in rows for line in _paragraph(head, row, width)]
    return "\n".join(lines) + "\n"


def _paragraph(head: Sequence[str], row: Mapping[str, str], width: int) -> list[str]:
    """The machine and what it is best at, then each figure with its name, as many as a line holds."""
    if len(row) <= 2:
        return wrap(f"{row['machine']}: {row['layout']}", width, subsequent_indent="    ")
    best = f": {row['best']}" if "best" in row else ""
    # What belongs together does not break: its spaces come back when the lines are made.
    figures = (
        f"{row[n]}" if n == "layout" else f"{n} {row[n]}" for n in head if n not in ("machine", "best") and n in row
    )
    joined = " · ".join(figure.replace(" ", "\0") for figure in figures).replace(" · ", "\0· ")
    made = wrap(joined, width, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    return [f"{row['machine']}{best}", *(line.replace("\0", " ").rstrip(" ·") for line in made)]


def _aligned(head: Sequence[str], rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    whole = [row for row in rows if len(row) > 2]
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in whole), 0) for name in head} if whole else {}
    widths["machine"] = max(len(row["machine"]) for row in (*rows, {"machine": "machine"}))
    lines = []
    for row in ({name: name for name in head}, *rows):
        if len(row) <= 2:
            refusal = f"{row['machine']:<{widths['machine']}}  {row['layout']}"
            lines += wrap(refusal, width, subsequent_indent=" " * (widths["machine"] + 2), drop_whitespace=False)
            continue
        cells = (row.get(n, "").ljust(widths[n]) if n in LEFT else row.get(n, "").rjust(widths[n]) for n in head)
        lines.append("  ".join(cells).rstrip())
    return lines


def to_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The object `parlaunch.compare/1`: one of `machines` for each, with the fields of `parlaunch.plan/1`."""
    return {
        "schema": "parlaunch.compare/1",
        "machines": [_row(e, m) for e, m in zip(entries, marks(entries), strict=True)],
    }


def _row(e: Entry, best: Sequence[str]) -> dict[str, Any]:
    asked = {"hardware": e.hardware, "what_if": e.what_if or None, "best": list(best), "refused": e.refused or None}
    if e.plan is None:
        return asked
    return asked | {
        "gpus": e.plan.cluster.world_size, "gpu": e.plan.cluster.gpu.name, "nodes": len(e.plan.cluster.nodes),
        "tokens_per_s": _total(e), **candidate_to_json(e.plan.chosen, e.plan.recipe), "training": training_to_json(e.plan.training),
    }  # fmt: skip


STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap }
th.l, td.l { text-align: left }
tr.best td { font-weight: 600 }
"""


def to_html(entries: Sequence[Entry], *, title: str, notes: Sequence[str] = ()) -> str:
    """The table as one page that needs nothing else."""
    head, rows = _table(entries)

    def cells(row: Mapping[str, str], tag: str) -> str:
        if len(row) <= 2:
            name, reason = escape(row["machine"]), escape(row["layout"])
            return f'<td class="l">{name}</td><td class="l" colspan="{len(head) - 1}">{reason}</td>'
        return "".join(f"<{tag}{' class=l' if n in LEFT else ''}>{escape(row.get(n, ''))}</{tag}>" for n in head)

    body = "\n".join(f"<tr{' class=best' if 'best' in row else ''}>{cells(row, 'td')}</tr>" for row in rows)
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        f'<div class="wide"><table>\n<tr>{cells({n: n for n in head}, "th")}</tr>\n{body}\n</table></div>\n{said}</html>\n'
    )

"""The object `parlaunch.validate/1` as a table, as Markdown, and as a chart: predicted against measured, log-log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Any

from parlaunch.units import few

NAMES = {
    "iteration_time_s": ("s", "iteration"), "tokens_per_s_per_gpu": ("tok/s", "tokens/s/GPU"),
    "model_tflops_per_gpu": ("TF", "model TFLOP/s/GPU"), "tflops_per_gpu": ("TF", "TFLOP/s/GPU as printed"),
    "peak_memory_gb": ("GB", "peak memory"), "peak_mem": ("GB", "peak memory"),
}  # fmt: skip
COLOURS = ("#1b6ca8", "#c8553d", "#4f7942", "#8e5ea2", "#c9a227", "#3aa6a6", "#7a5230", "#d16ba5", "#5a6472", "#94b447")


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share as per cent with one digit; a dash when there is none."""
    if share is None:
        return "-"
    return f"{100 * share:+.1f} %" if signed else f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def main_quantity(entry: Mapping[str, Any]) -> str | None:
    """The quantity that a row is shown by: the first that was measured and predicted."""
    if not entry["predicted"]:
        return None
    return next((name for name in NAMES if entry["measured"].get(name) and name in entry["predicted"]), None)


def _table(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def validation_to_text(result: Mapping[str, Any]) -> str:
    """Rows and summary for a terminal."""
    table = [["row", "layout", "measured", "predicted", "error", "fits"]]
    notes = []
    for entry in result["rows"]:
        name = main_quantity(entry)
        fits = {True: "yes", False: "no", None: "-"}[entry["fits"]]
        if entry["measured"].get("status") == "oom":
            fits += " (was OOM)"
        if name is None:
            table.append([entry["id"], entry.get("layout") or "-", "-", "-", "-", fits])
            if not entry["predicted"]:
                notes.append(f"{entry['id']}: {entry['note']}")
            continue
        unit, measured, predicted = NAMES[name][0], entry["measured"][name], entry["predicted"][name]
        table.append(
            [
                entry["id"],
                entry["layout"],
                f"{_number(measured)} {unit}",
                f"{_number(predicted)} {unit}",
                percent(predicted / measured - 1, signed=True),
                fits,
            ]
        )
    lines = _table(table, left=2)
    if notes:
        lines += ["", "Not predicted:", *(f"  {note}" for note in notes)]
    if result["machine_file"] is not None:
        lines += ["", f"Predicted with the machine file {result['machine_file']}"]
    return "\n".join([*lines, "", *_summary_lines(result["summary"])])


def _error_row(name: str, e: Mapping[str, Any]) -> list[str]:
    return [
        name, str(e["count"]), percent(e["mean"]), percent(e["median"]), percent(e["p95"]), percent(e["max"]),
        percent(e["bias"], signed=True),
    ]  # fmt: skip


HEAD = ["", "rows", "mean", "median", "p95", "max", "bias"]


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"{summary['predicted']} of {summary['rows']} rows predicted"]
    rows = [HEAD]
    rows += [_error_row(NAMES[name][1], e) for name, e in summary["quantities"].items() if e]
    for title, key in (("source", "time_by_source"), ("machine", "time_by_machine")):
        rows += [_error_row(f"time, {title} {name}", e) for name, e in summary[key].items() if e]
    if len(rows) > 1:
        lines += ["", *_table(rows)]
    if summary["time_within_band"] is not None:
        lines.append(f"measured time inside the error band: {percent(summary['time_within_band'])} of the rows")
    if regret := summary["regret"]:
        lines.append(
            f"regret over {regret['groups']} groups of layouts: {percent(regret['mean'])} mean, {percent(regret['max'])} worst"
        )
    if rank := summary["rank_correlation"]:
        lines.append(f"rank correlation over {rank['groups']} groups: {rank['mean']:.2f} mean, {rank['min']:.2f} worst")
    if summary["oom_rows"]:
        wrong = summary["oom_called_fitting"]
        lines.append(f"out of memory: {summary['oom_rows']} rows, {len(wrong)} of them called fitting" + _some(wrong))
    if summary["fitting_called_oom"]:
        lines.append(
            f"ran but called too big: {len(summary['fitting_called_oom'])}" + _some(summary["fitting_called_oom"])
        )
    return lines


def _some(names: Sequence[str]) -> str:
    return f": {few(names, 6)}" if names else ""


def error_table(rows: Sequence[tuple[str, Mapping[str, Any]]], first: str) -> list[str]:
    """A Markdown table of error summaries."""
    lines = ["| " + " | ".join([first, *HEAD[1:]]) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    return lines + ["| " + " | ".join(_error_row(name, e)) + " |" for name, e in rows]


def validation_to_markdown(result: Mapping[str, Any]) -> str:
    """Summary tables first, then every row."""
    summary = result["summary"]
    lines = ["# Predicted and measured", "", f"{summary['predicted']} of {summary['rows']} rows predicted.", ""]
    if summary["quantities"]:
        lines += [*error_table([(NAMES[n][1], e) for n, e in summary["quantities"].items() if e], "quantity"), ""]
    for title_of, key in (("source", "time_by_source"), ("machine", "time_by_machine"), ("model", "time_by_model")):
        if summary[key]:
            lines += [*error_table([(n, e) for n, e in summary[key].items() if e], f"time by {title_of}"), ""]
    tail = [
        line
        for line in _summary_lines(summary)
        if line.startswith(("measured time", "regret", "rank", "out of", "ran but"))
    ]
    lines += [f"- {line}" for line in tail] + ([""] if tail else [])
    lines += ["| row | machine | layout | measured | predicted | error | fits |", "|---|---|---|---:|---:|---:|---|"]
    for entry in result["rows"]:
        name = main_quantity(entry)
        fits = {True: "yes", False: "no", None: "-"}[entry["fits"]]
        if name is None:
            reason = entry["note"] if not entry["predicted"] else entry["measured"].get("status") or ""
            lines.append(
                f"| {entry['id']} | {entry.get('machine') or ''} | {entry.get('layout') or ''} | | | {reason} | {fits} |"
            )
            continue
        unit, measured, predicted = NAMES[name][0], entry["measured"][name], entry["predicted"][name]
        lines.append(
            f"| {entry['id']} | {entry['machine']} | {entry['layout']} | {_number(measured)} {unit} | "
            f"{_number(predicted)} {unit} | {percent(predicted / measured - 1, signed=True)} | {fits} |"
        )
    return "\n".join(lines) + "\n"


# --- chart --------------------------------------------------------------------------------------------------------

SIZE, MARGIN = 560, 64


def validation_to_svg(result: Mapping[str, Any]) -> str:
    """Predicted over measured on logarithmic axes, one colour a machine; lines at equality and at ±10 %.

    Times are drawn as they are, rates as a thousand over the rate, so that up and right is slower for all.
    """
    points: dict[str, list[tuple[float, float, str]]] = {}
    for entry in result["rows"]:
        name = main_quantity(entry)
        if name is None or name.startswith("peak"):
            continue
        measured, predicted = float(entry["measured"][name]), float(entry["predicted"][name])
        if name != "iteration_time_s":
            measured, predicted = 1000 / measured, 1000 / predicted
        points.setdefault(entry["machine"], []).append((measured, predicted, entry["id"]))
    every = [v for found in points.values() for m, p, _ in found for v in (m, p)]
    low, high = (min(every) / 1.3, max(every) * 1.3) if every else (0.1, 10.0)
    span = log10(high / low)

    def x(value: float) -> float:
        return MARGIN + log10(value / low) / span * SIZE

    def y(value: float) -> float:
        return MARGIN + SIZE - log10(value / low) / span * SIZE

    width, height = SIZE + 2 * MARGIN + 150, SIZE + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        "<title>Predicted against measured</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#444"/>',
    ]
    for tick in _ticks(low, high):
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{MARGIN}" x2="{x(tick):.1f}" y2="{MARGIN + SIZE}" stroke="#e4e4e4"/>'
        )
        parts.append(
            f'<line x1="{MARGIN}" y1="{y(tick):.1f}" x2="{MARGIN + SIZE}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>'
        )
        parts.append(f'<text x="{x(tick):.1f}" y="{MARGIN + SIZE + 18}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for factor, dash in ((1.0, ""), (1.1, "4 4"), (1 / 1.1, "4 4")):
        start, end = max(low, low / factor), min(high, high / factor)
        parts.append(
            f'<line x1="{x(start):.1f}" y1="{y(start * factor):.1f}" x2="{x(end):.1f}" y2="{y(end * factor):.1f}" '
            f'stroke="#888" stroke-dasharray="{dash}"/>'
        )
    for i, (machine, found) in enumerate(sorted(points.items())):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<g fill="{colour}" fill-opacity="0.65">')
        for measured, predicted, name in found:
            tip = f"{name}: {percent(predicted / measured - 1, signed=True)}"
            parts.append(
                f'<circle cx="{x(measured):.1f}" cy="{y(predicted):.1f}" r="3.5"><title>{escape(tip)}</title></circle>'
            )
        parts.append("</g>")
        parts.append(f'<circle cx="{MARGIN + SIZE + 18}" cy="{MARGIN + 12 + 20 * i}" r="5" fill="{colour}"/>')
        label = f"{machine} ({len(found)})"
        parts.append(f'<text x="{MARGIN + SIZE + 30}" y="{MARGIN + 16 + 20 * i}">{escape(label)}</text>')
    middle = MARGIN + SIZE / 2
    parts.append(
        f'<text x="{middle}" y="{height - 14}" text-anchor="middle">measured: seconds, or 1000 over the rate</text>'
    )
    parts.append(f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">predicted</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    ticks = []
    for power in range(floor(log10(low)), floor(log10(high)) + 1):
        ticks += [step * 10.0**power for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    return ticks

"""What came of runs that were held against their plans, as text and as the object `parlaunch.verify/1`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from parlaunch.check.verdict import WARM_UP, Compared, Measured, Verdict
from parlaunch.frozen import dataclass
from parlaunch.model.layout import Layout, layout_to_json
from parlaunch.units import gib, seconds

SCHEMA = "parlaunch.verify/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One run as it is shown. `seconds`: how long it took in all, None for one that ran long ago. Logs are paths."""

    layout: Layout
    verdict: Verdict
    measured: Measured
    log: str
    seconds: float | None = None
    rank_log: str | None = None
    returncode: int | None = None
    sampled_peak: int | None = None
    machine_file: str | None = None  # that the prediction rests on


def mark(c: Compared) -> str:
    """`ok`, `NO` for what fails the run, `off` for what is news only; blank where nothing could be compared."""
    return "" if c.ok is None else "ok" if c.ok else "NO" if c.counts else "off"


def run_to_text(run: Shown, *, verbose: bool = False) -> str:
    """One run: all that was compared, with both sides, then what went wrong in sentences, the way out, and where to read on."""
    verdict = run.verdict
    took = "" if run.seconds is None else f" in {run.seconds:.0f} s"
    lines = [f"{run.layout.sizes}: {'passed' if verdict.ok else verdict.status}{took}"]
    names, predicted = (max(len(getattr(c, n)) for c in verdict.compared) for n in ("name", "predicted"))
    for c in verdict.compared:
        lines.append(
            f"  {mark(c):<3} {c.name:<{names}}  predicted {c.predicted:<{predicted}}  measured {c.measured}".rstrip()
        )
    if run.machine_file is not None:
        lines.append(f"  predicted with the machine file {run.machine_file}")
    lines += [f"  {sentence}" for sentence in verdict.sentences]
    if verdict.last_lines or (verbose and not verdict.ok):
        lines += ["  the log ends with:", *(f"    {line}" for line in verdict.last_lines or run.measured.last_lines)]
    if not verdict.ok:
        if run.rank_log is not None:
            lines.append(f"  its log: {run.rank_log}")
        lines.append(f"  the whole log: {run.log}")
    else:
        lines.append(f"  {_judged(verdict)}")
    return "\n".join(lines)


def _judged(verdict: Verdict) -> str:
    """What a passed run was held to, and what was only looked at."""
    held = [c.name for c in verdict.compared if c.ok is not None and c.counts]
    news = [c.name for c in verdict.compared if c.ok is not None and not c.counts]
    said = f"judged by: {', '.join(held)}"
    return said + (f"; reported only: {', '.join(news)} (--tolerance 0.2 judges them)" if news else "")


def table_to_text(runs: Sequence[Shown]) -> str:
    """One line a run, the fastest that passed first, then the others."""
    rows = [("layout", "result", "iteration", "loss", "peak memory")]
    rows += [
        (r.layout.sizes, "passed" if r.verdict.ok else r.verdict.status, _time(r), _loss(r), _peak(r))
        for r in sorted(runs, key=lambda r: (not r.verdict.ok, r.measured.iteration_time_s or float("inf")))
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _time(run: Shown) -> str:
    took = run.measured.iteration_time_s
    return "-" if took is None else seconds(took)


def _loss(run: Shown) -> str:
    return "-" if run.measured.loss is None else f"{run.measured.loss:.4f}"


def _peak(run: Shown) -> str:
    peak = run.measured.peak_allocated or run.sampled_peak or run.measured.host_peak
    return "-" if peak is None else gib(peak)


def outcome_to_json(runs: Sequence[Shown], *, told: int | None) -> dict[str, Any]:
    """The object `parlaunch.verify/1`: bytes, seconds and shares as numbers; unknown is null. Fields are added, never renamed."""
    passed = [r for r in runs if r.verdict.ok and r.measured.iteration_time_s is not None]
    winner = min(passed, key=lambda r: r.measured.iteration_time_s or 0.0, default=None)
    return {
        "schema": SCHEMA,
        "ok": any(r.verdict.ok for r in runs),
        "signal": told,
        "winner": None if winner is None else list(runs).index(winner),
        "runs": [_run_to_json(r) for r in runs],
    }


def _number(value: float | None) -> float | None:
    """A number as JSON can say it: what is not finite is none."""
    return value if value is not None and math.isfinite(value) else None


def _run_to_json(run: Shown) -> dict[str, Any]:
    v, m = run.verdict, run.measured
    flops = [i.tflops for i in m.iterations[WARM_UP:] if i.tflops]
    return {
        "layout": str(run.layout), "sizes": layout_to_json(run.layout), "status": v.status, "returncode": run.returncode,
        "machine_file": run.machine_file, "seconds": run.seconds, "log": run.log, "rank_log": run.rank_log, "sentences": list(v.sentences),
        "last_lines": list(v.last_lines),
        "failed_rank": None if m.failed_rank is None else asdict(m.failed_rank),
        "failures": [asdict(f) for f in m.failures],
        "checks": [
            {
                "name": c.name, "predicted": c.predicted, "measured": c.measured, "ok": c.ok, "counts": c.counts,
                "expected": _number(c.expected), "found": _number(c.found), "band": _number(c.band),
            }
            for c in v.compared
        ],
        "iteration_time_s": m.iteration_time_s, "iterations": [
            {"number": i.number, "seconds": i.seconds, "loss": _number(i.loss), "grad_norm": _number(i.grad_norm), "skipped": i.skipped}
            for i in m.iterations
        ],
        "model_tflops_per_gpu": statistics.median(flops) if flops else None,
        "steps": m.steps, "skipped": m.skipped, "loss": _number(m.loss), "layout_in_log": dict(m.layout),
        "peak_allocated_bytes": m.peak_allocated, "peak_reserved_bytes": m.peak_reserved,
        "early_allocated_bytes": m.early_allocated, "host_peak_bytes": m.host_peak, "sampled_peak_bytes": run.sampled_peak,
    }  # fmt: skip

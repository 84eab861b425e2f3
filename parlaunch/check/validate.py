"""Predicted beside measured for a table of runs: the pure part of `parlaunch validate`.

`validate` answers the object `parlaunch.validate/1`, which `parlaunch.check.report` shows. Predictions are physics
and data sheets alone (or a machine file): published evidence never enters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from parlaunch.check.measured import TIMES, Machines, Run, measured_seconds, memory_of, run_of, seen_of, speeds
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.rates import named_in
from parlaunch.rules import why_not

RATES = TIMES[1:]
"""Of those that say how long an iteration takes, the ones that fall as it gets longer."""
MEMORIES = ("peak_memory_gb", "peak_mem")

STANDARD = ("iteration_time_s", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "peak_memory_gb")
"""Predicted for every row, whatever was measured of it."""


def validate(rows: Sequence[Mapping[str, Any]], *, machine: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Predict every row and sum up how wrong the predictions are.

    `machine`: a machine file from `parlaunch.check.calibrate`. A row that cannot be predicted stays in the list and says why.
    """
    machines = Machines(machine)
    out, kept = [], []
    for number, row in enumerate(rows):
        name = str(row.get("id") or f"row {number + 1}")
        try:
            run = run_of(row, machines)
            entry = _predict(run) | {"id": name}
        except ParlaunchError as error:
            measured = {k: row[k] for k in (*TIMES, "peak_memory_gb", "peak_mem") if row.get(k) is not None}
            out.append({"id": name, "predicted": None, "measured": measured, "fits": None, "note": _told(error)})
            continue
        out.append(entry)
        kept.append((run, entry))
    return {
        "schema": "parlaunch.validate/1", "machine_file": named_in(machine), "rows": out,
        "summary": _summary(kept, total=len(out)),
    }  # fmt: skip


def _told(error: ParlaunchError) -> str:
    """What is wrong with a row, and what to try."""
    return f"{error.problem}: {error.hint}" if error.hint else str(error.problem)


def _predict(run: Run) -> dict[str, Any]:
    estimate = estimate_time(run.recipe, run.layout, run.rates)
    memory = memory_of(run)
    peak = seen_of(run, memory) / run.memory_unit
    every = speeds(run, estimate) | {"peak_memory_gb": peak, "peak_mem": peak}
    wanted = dict.fromkeys((*run.measured, *STANDARD))
    notes = list(run.notes)
    broken = why_not(run.layout, run.recipe, run.rates)
    if broken:
        notes.append(f"Megatron refuses this layout: {broken}")
    return {
        "id": run.id,
        "source": run.source,
        "machine": run.machine,
        "group": run.group,
        "layout": str(run.layout),
        "predicted": {k: every[k] for k in wanted}
        | {
            "band": estimate.error_band,
            "memory_band": memory.error_band,
        },
        "measured": dict(run.measured) | ({"status": "oom"} if run.oom else {}),
        "fits": estimate_memory(run.recipe, run.layout, run.rates, headroom=0.0).runs,
        "scored": run.scored,
        "note": "; ".join(notes) or None,
    }


# --- summary ------------------------------------------------------------------------------------------------------


def errors_of(values: Iterable[float]) -> dict[str, float] | None:
    """Mean, median, 95th percentile and largest absolute share, and the mean with its sign."""
    signed = list(values)
    if not signed:
        return None
    sizes = sorted(abs(v) for v in signed)
    return {
        "count": len(sizes),
        "mean": fmean(sizes),
        "median": median(sizes),
        "p95": sizes[min(len(sizes) - 1, round(0.95 * (len(sizes) - 1)))],
        "max": sizes[-1],
        "bias": fmean(signed),
    }


def _share(predicted: float, measured: float) -> float:
    return predicted / measured - 1.0


def share_of(entry: Mapping[str, Any], quantity: str) -> float | None:
    """Predicted over measured `time` or `memory` of a row of `validate`, less one; None where it was not measured."""
    names, predicted, measured = TIMES if quantity == "time" else MEMORIES, entry["predicted"], entry["measured"]
    for name in names:
        if predicted and measured.get(name):
            share = _share(predicted[name], measured[name])
            return share if name not in RATES else 1.0 / (1.0 + share) - 1.0
    return None


def _seconds(run: Run) -> tuple[float, float] | None:
    """(predicted, measured) seconds of one iteration; None when the row has no quantity that says."""
    estimate = estimate_time(run.recipe, run.layout, run.rates)
    measured = measured_seconds(run, estimate)
    return None if measured is None else (estimate.iteration_time_s, measured)


def _summary(kept: Sequence[tuple[Run, Mapping[str, Any]]], *, total: int) -> dict[str, Any]:
    quantities: dict[str, list[float]] = defaultdict(list)
    by_source: dict[str, list[float]] = defaultdict(list)
    by_machine: dict[str, list[float]] = defaultdict(list)
    by_model: dict[str, list[float]] = defaultdict(list)
    times: list[float] = []
    inside = 0
    groups: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for run, entry in kept:
        if run.oom or not run.scored:
            continue
        for name, value in run.measured.items():
            if value:
                quantities[name].append(_share(entry["predicted"][name], value))
        pair = _seconds(run)
        if pair is None:
            continue
        share = _share(*pair)
        times.append(share)
        inside += abs(share) <= entry["predicted"]["band"]
        by_source[run.source].append(share)
        by_machine[run.machine].append(share)
        by_model[run.recipe.name].append(share)
        if run.group:
            groups[run.group].append((pair[0], pair[1], entry["layout"]))
    oom = [entry for run, entry in kept if run.oom]
    alive = [entry for run, entry in kept if not run.oom]
    choices = {name: choice for name, found in groups.items() if (choice := _choice(found)) is not None}
    regrets = [c["regret"] for c in choices.values()]
    ranks = [c["rank_correlation"] for c in choices.values() if c["rank_correlation"] is not None]
    return {
        "rows": total,
        "predicted": len(kept),
        "time": errors_of(times),
        "time_within_band": inside / len(times) if times else None,
        "quantities": {name: errors_of(values) for name, values in sorted(quantities.items())},
        "time_by_source": {name: errors_of(values) for name, values in sorted(by_source.items())},
        "time_by_machine": {name: errors_of(values) for name, values in sorted(by_machine.items())},
        "time_by_model": {name: errors_of(values) for name, values in sorted(by_model.items())},
        "groups": choices,
        "regret": {"groups": len(regrets), "mean": fmean(regrets), "max": max(regrets)} if regrets else None,
        "rank_correlation": {"groups": len(ranks), "mean": fmean(ranks), "min": min(ranks)} if ranks else None,
        "oom_rows": len(oom),
        "oom_called_fitting": [entry["id"] for entry in oom if entry["fits"]],
        "fitting_called_oom": [entry["id"] for entry in alive if not entry["fits"]],
    }


def _choice(found: Sequence[tuple[float, float, str]]) -> dict[str, Any] | None:
    """What the prediction would have chosen in a group of layouts; None where there is nothing to choose.

    Runs of one layout that were repeated count once, with the median of their times.
    """
    layouts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for predicted, measured, layout in found:
        layouts[layout].append((predicted, measured))
    if len(layouts) < 2:
        return None
    each = [(min(p for p, _ in runs), median(m for _, m in runs), name) for name, runs in layouts.items()]
    best = min(m for _, m, _ in each)
    picked = min(each)
    return {
        "layouts": len(each),
        "picked": picked[2],
        "best": min(each, key=lambda e: e[1])[2],
        "regret": picked[1] / best - 1.0,
        "rank_correlation": spearman([p for p, _, _ in each], [m for _, m, _ in each]),
    }


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing the mean of their ranks; None below three pairs or when one side is constant."""
    if len(left) < 3:
        return None
    a, b = _ranks(left), _ranks(right)
    mean_a, mean_b = fmean(a), fmean(b)
    across = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    if not across:
        return None
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return float(both / across**0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for i in order[at : end + 1]:
            ranks[i] = (at + end) / 2.0
        at = end + 1
    return ranks

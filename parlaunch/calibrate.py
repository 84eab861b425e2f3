"""Fit what a machine reaches: from micro-benchmarks, or from measured runs, to a machine file that `rates_of` reads.

A machine file is `{"schema": "parlaunch.machine/1", "gpu", "measured": {name: value}, "fit"}`. Names are those of
`parlaunch.timing.silicon.Silicon` (shares of the data sheet), and `nvlink_bus_bytes_per_s`, `fabric_bus_bytes_per_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp, log
from statistics import fmean, median
from typing import Any

from parlaunch.datasheet import product
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.measured import Machines, Run, run_of
from parlaunch.rates import Rates
from parlaunch.timing import estimate_time
from parlaunch.timing.collectives import Links
from parlaunch.timing.kernels import Kernels
from parlaunch.timing.silicon import silicon_of

SCHEMA = "parlaunch.machine/1"
SHARES = {"bf16": "gemm_bf16", "fp16": "gemm_bf16", "fp8": "gemm_fp8", "fp4": "gemm_fp4"}
"""Format of a matrix product, and the share it calibrates."""
LARGE = 0.2
"""Products of at least this share of the largest one's FLOPs say what sustained products reach; the rest is shape."""


def machine_file(gpu: str, measured: Mapping[str, float], fit: Mapping[str, Any]) -> dict[str, Any]:
    """The machine file; values are rounded to what a measurement can say."""
    return {
        "schema": SCHEMA,
        "gpu": gpu,
        "measured": {name: float(f"{value:.4g}") for name, value in sorted(measured.items())},
        "fit": dict(fit),
    }


def from_microbenchmarks(results: Mapping[str, Any]) -> dict[str, Any]:
    """A machine file from what `parlaunch_launch.microbench.measure` timed. Raises `UsageError` when nothing is usable.

    `results`: `gpu` (as NVML names it), `gemm` [{m, n, k, format, seconds}], `stream` [{bytes, seconds}],
    `launch` [{seconds}] a kernel, `nvlink` and `fabric` [{operation, bytes, ranks, seconds}].
    """
    sheet = product(str(results.get("gpu")))
    if sheet is None:
        raise UsageError(
            f"no data sheet for {results.get('gpu')!r}", hint="the products are in `parlaunch probe --help`"
        )
    rates = Rates(
        product=sheet, memory_bytes=sheet.memory_bytes, gpus_per_node=8, world_size=8, nvlink_domain=8,
        nvlink_bytes_per_s=sheet.nvlink_bytes_per_s or sheet.pcie_bytes_per_s, node_bytes_per_s=sheet.pcie_bytes_per_s,
        fabric_bytes_per_s=12.5e9, fabric_kind="none",
    )  # fmt: skip
    measured: dict[str, float] = {}
    for share, rows in _by_share(results.get("gemm") or ()).items():
        largest = max(row["m"] * row["n"] * row["k"] for row in rows)
        big = [row for row in rows if row["m"] * row["n"] * row["k"] >= LARGE * largest]
        measured[share] = median(_share_of(row, share, rates) for row in big)
    if streams := [row for row in results.get("stream") or () if row["seconds"] > 0]:
        measured["hbm"] = median(row["bytes"] / row["seconds"] for row in streams) / sheet.hbm_bytes_per_s
    if launches := [row["seconds"] for row in results.get("launch") or () if row["seconds"] > 0]:
        measured["host"] = median(launches)
    for name in ("nvlink", "fabric"):
        if found := [_bus(row) for row in results.get(name) or () if row["seconds"] > 0 and row["ranks"] > 1]:
            measured[f"{name}_bus_bytes_per_s"] = max(found)
    if not measured:
        raise UsageError(
            "no measurement to fit", hint="`parlaunch calibrate` times products, copies and collectives on a GPU"
        )
    above = [name for name, value in measured.items() if name in ("hbm", *SHARES.values()) and value > 1.02]
    notes = [f"{name} is above the data sheet: {measured[name]:.2f}; is it this GPU?" for name in above]
    return machine_file(sheet.name, measured, {"method": "micro-benchmarks", "notes": notes})


def _by_share(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        share = SHARES.get(str(row.get("format")))
        if share is not None and row["seconds"] > 0:
            found.setdefault(share, []).append(row)
    return found


def _share_of(row: Mapping[str, Any], share: str, rates: Rates) -> float:
    """The share of the peak at which our model of this product takes the time that was measured."""

    def seconds(value: float) -> float:
        kernels = Kernels(replace(rates, measured={share: value}))
        return kernels.gemm(int(row["m"]), int(row["n"]), int(row["k"]), str(row["format"]))

    low, high = 0.01, 1.5
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if seconds(middle) > row["seconds"] else (low, middle)
    return float((low * high) ** 0.5)


def _bus(row: Mapping[str, Any]) -> float:
    """Bus bandwidth in bytes/s, as nccl-tests define it: what each rank's links carried."""
    n, moved = int(row["ranks"]), float(row["bytes"])
    factor = {"all_reduce": 2.0 * (n - 1) / n, "send": 1.0}.get(str(row["operation"]), (n - 1) / n)
    return factor * moved / float(row["seconds"])


# --- from runs ----------------------------------------------------------------------------------------------------

PRIOR = {
    "gemm_bf16": 0.15, "gemm_fp8": 0.15, "gemm_fp4": 0.20, "hbm": 0.10, "attention_forward": 0.15,
    "attention_backward": 0.15, "host": 0.40, "nvlink_bus_bytes_per_s": 0.25, "fabric_bus_bytes_per_s": 0.40,
}  # fmt: skip
"""How far a value may be from the data sheet's, as the standard deviation of its logarithm: few rows move little."""
NOISE = 0.03
"""Standard deviation of the logarithm of a measured iteration time, run to run."""


def from_runs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A machine file from measured runs of one machine. Raises `UsageError` when none can be used.

    The values that make the predictions of all rows likeliest, given how far each may be from the data sheet's: with few
    rows they move little, and a value that no row depends on stays as it is and is left out.
    """
    machines, runs, skipped = Machines(), [], []
    for row in rows:
        try:
            run = run_of(row, machines)
        except ParlaunchError as error:
            skipped.append(str(error.problem))
            continue
        seconds = measured_seconds(run)
        if seconds is not None and not run.oom:
            runs.append((run, seconds))
    if not runs:
        raise UsageError(
            "no row with a measured time can be used",
            hint=skipped[0] if skipped else "give iteration_time_s or tokens_per_s_per_gpu",
        )
    gpus = sorted({run.rates.product.name for run, _ in runs})
    if len(gpus) > 1:
        raise UsageError(
            f"the rows are from {len(gpus)} kinds of GPU: {', '.join(gpus)}", hint="calibrate one machine at a time"
        )
    start = _start(runs[0][0].rates)

    def residuals(logs: Mapping[str, float]) -> list[float]:
        values = {name: start[name] * exp(change) for name, change in logs.items() if change}
        known: dict[int, Rates] = {}
        out = []
        for run, seconds in runs:
            rates = known.setdefault(id(run.rates), replace(run.rates, measured=_joint(run.rates, values, start)))
            out.append(log(estimate_time(run.recipe, run.layout, rates).iteration_time_s / seconds))
        return out

    logs = _fit(residuals, list(start))
    before, after = residuals(dict.fromkeys(start, 0.0)), residuals(logs)
    moved = {name: start[name] * exp(change) for name, change in logs.items() if abs(change) > 0.005}
    return machine_file(
        gpus[0],
        moved,
        {
            "method": "measured runs",
            "rows": len(runs),
            "mean_error_before": round(fmean(abs(exp(r) - 1) for r in before), 4),
            "mean_error_after": round(fmean(abs(exp(r) - 1) for r in after), 4),
            "notes": [f"skipped: {reason}" for reason in skipped],
        },
    )


def measured_seconds(run: Run) -> float | None:
    """Measured seconds of one iteration, from whichever quantity the row has."""
    if value := run.measured.get("iteration_time_s"):
        return value
    estimate = estimate_time(run.recipe, run.layout, run.rates)
    if value := run.measured.get("tokens_per_s_per_gpu"):
        return estimate.iteration_time_s * estimate.tokens_per_s_per_gpu / value
    if value := run.measured.get("model_tflops_per_gpu"):
        return estimate.iteration_time_s * estimate.model_tflops_per_gpu / value
    if value := run.measured.get("tflops_per_gpu"):
        return estimate.iteration_time_s * estimate.model_tflops_per_gpu * run.recomputed / value
    return None


def _start(rates: Rates) -> dict[str, float]:
    silicon, links = silicon_of(rates), Links(rates)
    start = {name: float(getattr(silicon, name)) for name in PRIOR if hasattr(silicon, name)}
    return start | {"nvlink_bus_bytes_per_s": links.nvlink, "fabric_bus_bytes_per_s": links.fabric}


def _joint(rates: Rates, values: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """The fitted values for one of the rows' machines: fabrics may differ in rate, so theirs is scaled."""
    out = dict(rates.measured) | dict(values)
    if "fabric_bus_bytes_per_s" in values:
        out["fabric_bus_bytes_per_s"] = (
            Links(rates).fabric * values["fabric_bus_bytes_per_s"] / start["fabric_bus_bytes_per_s"]
        )
    return out


STEP = 0.02
"""Change of a logarithm with which slopes are taken."""
ROUNDS = 4


def _fit(residuals: Callable[[Mapping[str, float]], list[float]], names: Sequence[str]) -> dict[str, float]:
    """Logarithms of the changes that minimise squared residuals and squared changes, each over its deviation.

    Gauss-Newton: the times are nearly linear in the logarithms, so a few rounds settle it.
    """
    logs = dict.fromkeys(names, 0.0)
    for _ in range(ROUNDS):
        here = residuals(logs)
        slopes = []
        for name in names:
            there = residuals(logs | {name: logs[name] + STEP})
            slopes.append([(b - a) / STEP for a, b in zip(here, there, strict=True)])
        matrix, right = [], []
        for i, name in enumerate(names):
            row = [sum(a * b for a, b in zip(slopes[i], other, strict=True)) / NOISE**2 for other in slopes]
            row[i] += 1.0 / PRIOR[name] ** 2
            matrix.append(row)
            pull = sum(a * b for a, b in zip(slopes[i], here, strict=True)) / NOISE**2
            right.append(-pull - logs[name] / PRIOR[name] ** 2)
        change = _solve(matrix, right)
        logs = {name: logs[name] + max(-0.5, min(0.5, step)) for name, step in zip(names, change, strict=True)}
    return logs


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of matrix·x = right, by elimination with row exchange; the matrix is positive definite here."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i and rows[r][i]:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]

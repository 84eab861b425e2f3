"""Fit what a machine reaches: from micro-benchmarks, or from measured runs, to a machine file that `rates_of` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp
from statistics import fmean, median
from typing import Any

from parlaunch.check.fit import LEAST, Fit, Learnt, Observed
from parlaunch.check.machine_file import PEAK_SHARES, SHARES, machine_file
from parlaunch.check.measured import INVENTED, Machines, measured_seconds, run_of
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import silicon_of
from parlaunch.hardware.cluster import Gpu
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.derived import sheet_of
from parlaunch.hardware.rates import Rates

LARGE = 0.2
"""Products of at least this share of the largest one's FLOPs say what sustained products reach, and collectives of the largest one's bytes
what a link does; the rest is shape."""
BUSES = (1e6, 1e13)
"""Bytes a second between which a link's are looked for."""
SENDERS = {
    "all_gather": Links.gather, "reduce_scatter": Links.scatter, "all_reduce": Links.reduce, "alltoall": Links.all_to_all,
    "send": Links.send,
}  # fmt: skip
"""What has the time of an operation, as it is called in rows of `nvlink` and `fabric`."""


def from_microbenchmarks(
    results: Mapping[str, Any], sheet: Product | None = None, *, fabric_kind: str = "none"
) -> dict[str, Any]:
    """A machine file from what `parlaunch_launch.microbench.measure` timed. `sheet` is the data sheet that this machine's
    plans are made with (None: that of the GPU's name), `fabric_kind` its network. Raises `UsageError` when nothing is usable.

    `results`: `gpu` (as NVML names it), `gemm` [{m, n, k, format, accumulate, seconds}], `attention` [{sequence, heads, head_dim, value_dim,
    backward, seconds}] (causal), `stream` [{bytes, seconds}],
    `launch` [{seconds}] a kernel, `nvlink` and `fabric` [{operation, bytes, ranks, inside, seconds}], `unmeasured` sentences.
    """
    sheet = sheet or sheet_of(Gpu(index=0, name=str(results.get("gpu"))))
    if sheet is None:
        raise UsageError(
            f"neither the data sheet nor the generation of {results.get('gpu')!r} is known",
            hint="calibrate on the machine itself, whose driver tells it; or from measured runs: parlaunch calibrate FILE",
        )
    rates = Rates(
        product=sheet, memory_bytes=sheet.memory_bytes, gpus_per_node=8, world_size=8, nvlink_domain=8,
        nvlink_bytes_per_s=sheet.nvlink_bytes_per_s or sheet.pcie_bytes_per_s, node_bytes_per_s=sheet.pcie_bytes_per_s,
        fabric_bytes_per_s=12.5e9, fabric_kind=fabric_kind,
    )  # fmt: skip
    measured: dict[str, float] = {}
    for share, rows in _by_share(results.get("gemm") or ()).items():
        largest = max(row["m"] * row["n"] * row["k"] for row in rows)
        big = [row for row in rows if row["m"] * row["n"] * row["k"] >= LARGE * largest]
        measured[share] = median(_share_of(row, share, rates) for row in big)
    measured |= _attention_shares(results.get("attention") or (), rates)
    if streams := [row for row in results.get("stream") or () if row["seconds"] > 0]:
        measured["hbm"] = median(row["bytes"] / row["seconds"] for row in streams) / sheet.hbm_bytes_per_s
    if launches := [row["seconds"] for row in results.get("launch") or () if row["seconds"] > 0]:
        measured["host"] = median(launches)
    for name in ("nvlink", "fabric"):
        # What passes NVLink on its way to the network is as fast as was measured first.
        found = _carried(results.get(name) or (), name, replace(rates, measured=dict(measured)))
        if found is not None:
            measured[f"{name}_bus_bytes_per_s"] = found
    if not measured:
        raise UsageError(
            "no measurement to fit", hint="`parlaunch calibrate` times products, copies and collectives on a GPU"
        )
    for name in PEAK_SHARES:
        if measured.get(name, 0.0) > 1.02:
            raise UsageError(
                f"{name} is above the data sheet: {measured[name]:.2f} of the peak of {sheet.name}",
                hint="is it this GPU? measure again with nothing else on it",
            )
        if name in measured:
            measured[name] = min(1.0, measured[name])  # what a clock is off by
    notes = [f"not measured: {sentence}" for sentence in results.get("unmeasured") or ()]
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
        added = bool(row.get("accumulate"))
        return kernels.gemm(int(row["m"]), int(row["n"]), int(row["k"]), str(row["format"]), accumulate=added)

    return _found(seconds, row["seconds"], 0.01, 1.5)


def _found(seconds: Callable[[float], float], measured: float, low: float, high: float) -> float:
    """The rate between two at which something takes the seconds that were measured."""
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if seconds(middle) > measured else (low, middle)
    return float((low * high) ** 0.5)


def _attention_shares(rows: Sequence[Mapping[str, Any]], rates: Rates) -> dict[str, float]:
    """Attention forward over the tables' burst, and its rate backward over forward."""
    kernels, silicon = Kernels(rates), silicon_of(rates)
    faster: dict[bool, list[float]] = {False: [], True: []}
    for row in rows:
        if row["seconds"] > 0:
            shape: dict[str, Any] = {name: int(row[name]) for name in ("sequence", "heads", "head_dim", "value_dim")}
            # Under a causal mask half of the scores; backward they are made again.
            flops = 1.0 * shape["sequence"] ** 2 * shape["heads"] * (shape["head_dim"] + shape["value_dim"])
            back = bool(row["backward"])
            model = kernels.attention(flops=flops * (2.5 if back else 1.0), backward=back, **shape)
            faster[back].append(model / row["seconds"])
    found = {}
    if faster[False]:
        found["flash"] = silicon.flash * median(faster[False])
    if faster[True]:
        found["flash_backward"] = (
            silicon.flash_backward * median(faster[True]) * silicon.flash / found.get("flash", silicon.flash)
        )
    return found


def _carried(rows: Sequence[Mapping[str, Any]], link: str, rates: Rates) -> float | None:
    """Bus bandwidth of a link in bytes/s at which our model of the larger collectives takes the time that was measured; None: nothing tells."""
    timed = [row for row in rows if row["seconds"] > 0 and row["ranks"] > 1]
    largest: dict[str, float] = {}
    for row in timed:
        largest[row["operation"]] = max(row["bytes"], largest.get(row["operation"], 0))
    large = [row for row in timed if row["bytes"] >= LARGE * largest[row["operation"]]]
    found = [bus for row in large if (bus := _bus(row, link, rates)) is not None]
    return median(found) if found else None


def _bus(row: Mapping[str, Any], link: str, rates: Rates) -> float | None:
    """The same of one collective; None where not this link, but another or the latency makes it take as long."""
    ranks = int(row["ranks"])
    group = Group(ranks, int(row.get("inside", ranks if link == "nvlink" else 1)))
    name = f"{link}_bus_bytes_per_s"

    def seconds(value: float) -> float:
        links = Links(replace(rates, measured={**rates.measured, name: value}))
        return SENDERS[str(row["operation"])](links, float(row["bytes"]), group)

    bus = _found(seconds, row["seconds"], *BUSES)
    return bus if 1.001 * BUSES[0] < bus < BUSES[1] / 1.001 else None


FEWEST = 3
"""Runs of different models or layouts that it takes to tell a machine from what the estimate misses of single runs."""
ABSURD = 30.0
"""Times that no machine is slower, or faster, than its tables have it: a unit is wrong, or a number."""


def from_runs(
    rows: Sequence[Mapping[str, Any]], *, gpu: str | None = None, here: str | None = None, doubtful: bool = False
) -> dict[str, Any]:
    """A machine file from measured runs of one machine; of rows from several kinds of GPU only those on `gpu`, or else on the
    GPU that is `here`. Raises `UsageError` when none can be used.

    The changes of the tables' values that make all rows likeliest, times how sure the rows are that the machine is another than its
    tables have it: with few rows values move little, and one that no row depends on stays as it is and is left out. A row far from
    what the others say counts little. No value is changed, and `fit` says why, where the runs are too few or that share of the
    changes is too small to tell, and where every recipe (where there is one alone, every run) left out in turn is predicted no
    better from the others. `doubtful`: changed all the same, and by all of it, to see what the rows would make of the values.
    What the runs of one model, and those with one split, have in common beside the machine is kept for them (`models`, `splits`), values
    changed or not.
    """
    timed, skipped = _usable(rows, gpu, here)
    name = timed[0].run.rates.product.name
    fit = Fit(timed)
    before, (kind, left) = fmean(fit.errors(fit.still, Learnt())), fit.left_out()
    logs, sure = fit.settle(doubtful=doubtful)
    reason = None if doubtful else _refusal(fit, before, logs, kind, left)
    if reason:
        logs = fit.still
    learnt = fit.learnt(logs)
    after = fmean(fit.errors(logs, learnt))
    moved = {key: fit.start[key] * exp(change) for key, change in logs.items() if abs(change) > LEAST}
    return machine_file(
        name,
        moved,
        {
            "method": "measured runs",
            "rows": len(timed),
            "recipes": len({t.recipe for t in timed}),
            "mean_error_before": round(before, 4),
            "mean_error_after": round(after, 4),
            "sure": round(sure, 3),
            "left_out": None
            if left is None
            else {"by": kind, "before": round(before, 4), "after": round(left[not reason], 4)},
            "changed": bool(moved),
            "notes": [
                *(f"skipped: {s}" for s in skipped),
                *_mixed(timed),
                *([f"the tables' values stay: {reason}"] if reason else []),
            ],
        },
        learnt.models,
        learnt.splits,
    )


def _mixed(timed: Sequence[Observed]) -> list[str]:
    """That the rows name machines of several networks, if they do: one file cannot be right for all."""
    named = {(t.run.rates.fabric_kind, t.run.rates.fabric_bytes_per_s): t.run.machine for t in timed}
    if len(named) < 2:
        return []
    return [
        f"the rows name {len(named)} machines, which are learnt as one: {', '.join(sorted(named.values()))}; one file for each is nearer"
    ]


def _refusal(
    fit: Fit, before: float, logs: Mapping[str, float], kind: str, left: Mapping[bool, float] | None
) -> str | None:
    """Why the rows do not say that the machine is another than its tables have it; None when they do."""
    if fit.different < FEWEST or left is None:
        return (
            f"runs of {fit.different} model{'s' * (fit.different != 1)} or layout{'s' * (fit.different != 1)} may be what estimates miss "
            f"of single ones; {FEWEST} are the least"
        )
    if all(abs(change) <= LEAST for change in logs.values()):
        return (
            f"these runs are off by {before:.1%}, which is likelier what estimates miss of single runs than the machine; "
            "more runs of other models may tell"
        )
    if left[True] >= left[False]:
        return (
            f"each {kind} predicted from the others with other values is off by {left[True]:.1%}, without {left[False]:.1%}; "
            "more runs of other models may tell"
        )
    return None


def _usable(rows: Sequence[Mapping[str, Any]], gpu: str | None, here: str | None) -> tuple[list[Observed], list[str]]:
    """The rows with a time, on the machine as the tables have it, and why others are none."""
    machines, timed, skipped, first = Machines(), [], [], None
    for row in rows:
        try:
            run = run_of(row, machines)
        except ParlaunchError as error:
            skipped.append(str(error.problem))
            first = first or f"{error.problem}{'; ' * bool(error.hint)}{error.hint or ''}"
            continue
        # A row of the history may have been planned with an earlier machine file; a fit starts from the tables.
        run = replace(run, rates=replace(run.rates, measured={}, models=(), splits=()))
        estimate = estimate_time(run.recipe, run.layout, run.rates)
        seconds = measured_seconds(run, estimate)
        if seconds is None or run.oom:
            continue
        if not run.scored:
            skipped.append(f"row {run.id}: {next(note for note in run.notes if note.endswith(INVENTED))}")
        elif not 1 / ABSURD < seconds / estimate.iteration_time_s < ABSURD:
            skipped.append(
                f"row {run.id}: {seconds:,.2f} s an iteration where {estimate.iteration_time_s:,.2f} s are predicted: is its unit "
                "another, or its model, batch or number of GPUs?"
            )
        else:
            timed.append(Observed(run, seconds))
    if not timed:
        raise UsageError(
            "no row with a measured time can be used",
            hint=first or next(iter(skipped), "give iteration_time_s or tokens_per_s_per_gpu"),
        )
    kinds = sorted({t.run.rates.product.name for t in timed})
    if gpu is None and len(kinds) > 1 and here in kinds:
        gpu = here
    if gpu is None and len(kinds) > 1:
        raise UsageError(
            f"the rows are from {len(kinds)} kinds of GPU: {', '.join(kinds)}",
            hint=f"calibrate one machine at a time, for example --gpu '{kinds[0]}'",
        )
    if gpu is not None:
        kept = [t for t in timed if t.run.rates.product.name == gpu]
        if not kept:
            raise UsageError(f"no row ran on {gpu!r}", hint=f"the rows are from {', '.join(kinds)}")
        if len(kept) < len(timed):
            others = len(timed) - len(kept)
            skipped.append(f"{others} row{'s' * (others > 1)} of another GPU than {gpu}")
        timed = kept
    return timed, skipped

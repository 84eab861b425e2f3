"""Fit what a machine reaches: from micro-benchmarks, or from measured runs, to a machine file that `rates_of` reads.

A machine file is `{"schema": "parlaunch.machine/1", "gpu", "measured": {name: value}, "fit"}`. Names are those of
`parlaunch.estimate.timing.silicon.Silicon`, `gemm_bf16` and its like (share of the peak that a large product reaches), and
`nvlink_bus_bytes_per_s`, `fabric_bus_bytes_per_s`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import exp, inf, log, log1p
from statistics import fmean, median
from typing import Any

from parlaunch.check.measured import Machines, Run, measured_seconds, run_of
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import silicon_of
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Gpu
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.derived import sheet_of
from parlaunch.hardware.rates import Rates

SCHEMA = "parlaunch.machine/1"
SHARES = {"bf16": "gemm_bf16", "fp16": "gemm_bf16", "fp8": "gemm_fp8", "fp4": "gemm_fp4"}
"""Format of a matrix product, and the share it calibrates."""
PEAK_SHARES = ("hbm", *dict.fromkeys(SHARES.values()))
"""Values that are a share of the data sheet's: none is above 1."""
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


def machine_to_text(file: Mapping[str, Any]) -> str:
    """A machine file for the screen: what it changes, and how far off the runs are before and after."""
    fit, lines = file["fit"], [f"{file['gpu']}, {file['fit']['method']}"]
    lines += [f"  {name:<26} {value:.4g}" for name, value in file["measured"].items()]
    if "mean_error_before" in fit:
        lines.append(f"  runs: {fit['rows']}, recipes: {fit['recipes']}; mean error of the time")
        before, after = fit["mean_error_before"], fit["mean_error_after"]
        lines.append(f"    of these runs              {before:.1%} -> {after:.1%}")
        if left := fit["left_out"]:
            lines.append(f"    each {left['by']} left out in turn {left['before']:.1%} -> {left['after']:.1%}")
    return "\n".join([*lines, *(f"  {note}" for note in fit["notes"])])


def from_microbenchmarks(results: Mapping[str, Any], sheet: Product | None = None) -> dict[str, Any]:
    """A machine file from what `parlaunch_launch.microbench.measure` timed. `sheet` is the data sheet that this machine's
    plans are made with (None: that of the GPU's name). Raises `UsageError` when nothing is usable.

    `results`: `gpu` (as NVML names it), `gemm` [{m, n, k, format, seconds}], `attention` [{sequence, heads, head_dim, value_dim,
    backward, seconds}] (causal), `stream` [{bytes, seconds}],
    `launch` [{seconds}] a kernel, `nvlink` and `fabric` [{operation, bytes, ranks, seconds}].
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
        fabric_bytes_per_s=12.5e9, fabric_kind="none",
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
        if found := [_bus(row) for row in results.get(name) or () if row["seconds"] > 0 and row["ranks"] > 1]:
            measured[f"{name}_bus_bytes_per_s"] = max(found)
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
    return machine_file(sheet.name, measured, {"method": "micro-benchmarks", "notes": []})


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


def _attention_shares(rows: Sequence[Mapping[str, Any]], rates: Rates) -> dict[str, float]:
    """Attention forward over the tables' burst, and its rate backward over forward."""
    kernels, silicon = Kernels(rates), silicon_of(rates)
    faster: dict[bool, list[float]] = {False: [], True: []}
    for row in rows:
        if row["seconds"] > 0:
            shape = {name: int(row[name]) for name in ("sequence", "heads", "head_dim", "value_dim")}
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


def _bus(row: Mapping[str, Any]) -> float:
    """Bus bandwidth in bytes/s, as nccl-tests define it: what each rank's links carried."""
    n, moved = int(row["ranks"]), float(row["bytes"])
    factor = {"all_reduce": 2.0 * (n - 1) / n, "send": 1.0}.get(str(row["operation"]), (n - 1) / n)
    return factor * moved / float(row["seconds"])


# --- from runs ----------------------------------------------------------------------------------------------------

PRIOR = {
    "gemm_bf16": 0.04, "gemm_fp8": 0.03, "gemm_fp4": 0.04, "hbm": 0.02, "flash": 0.03, "flash_backward": 0.02, "host": 0.06,
    "nvlink_bus_bytes_per_s": 0.04, "fabric_bus_bytes_per_s": 0.08,
}  # fmt: skip
"""How far a value alone may be from the tables', as the standard deviation of its logarithm where the band is `USUAL`."""
TOGETHER = {name: 0.03 if name.endswith("bytes_per_s") else 0.05 for name in PRIOR if name != "host"}
"""The same for what moves all of them alike: clocks, power limits and old software slow the whole machine down."""
USUAL = 0.08
"""Error band of an estimate (`Estimate.error_band`) for which these deviations are; those of wider bands are wider."""
FASTER = 0.3
"""Share of the deviations for a machine that is faster than its tables: they are of machines that run well, and more can
slow a machine down than speed it up. Of the published sites those that are slower are so by 12 % (root mean square), those
that are faster by 3 %."""
WIDER = (1.0, 2.0, 4.0)
"""Shares of the deviations for a machine that is slower: few are far from the tables, twice as far half as many."""
MISSES = {"model": 0.03, "layout": 0.06, "run": 0.04}
"""Standard deviation of the logarithm of a measured time beside what the machine explains, in parts: what the estimate misses
of all runs of a model and task alike, of all with one layout, and of a single run. The likeliest for the published runs of
`validation/` by sites; many runs of one model say less than as many models. They grow as the root of the band."""
TAILS = 6.0
"""Degrees of freedom of these errors' distribution (Student's): one may be several deviations."""
OUTLIER = 2.0
"""Rows whose residual is more than this many deviations weigh less, so that none decides alone."""
FEWEST = 3
"""Runs of different models or layouts that it takes to tell a machine from what the estimate misses of single runs."""
WORSE = 0.2
"""Share of the rows that may come off worse when they are left out: of four, none."""


@dataclass(frozen=True, slots=True)
class _Timed:
    """A run on the machine that the tables describe, how long it took, and the band of its estimate."""

    run: Run
    seconds: float
    band: float

    @property
    def model(self) -> tuple[object, ...]:
        return self.run.recipe.architecture, self.run.recipe.task

    @property
    def layout(self) -> tuple[object, ...]:
        """Rows that are alike here share most of what the estimate misses of them, whatever their precision."""
        return (*self.model, self.run.recipe.seq_length, self.run.layout)

    @property
    def recipe(self) -> tuple[object, ...]:
        return (*self.model, self.run.recipe.precision, self.run.recipe.seq_length)


def from_runs(
    rows: Sequence[Mapping[str, Any]], *, gpu: str | None = None, here: str | None = None, doubtful: bool = False
) -> dict[str, Any]:
    """A machine file from measured runs of one machine; of rows from several kinds of GPU only those on `gpu`, or else on the
    GPU that is `here`. Raises `UsageError` when none can be used.

    The values that make the predictions of all rows likeliest, given how far each may be from the data sheet's: with few
    rows they move little, and a value that no row depends on stays as it is and is left out. Nothing is changed, and `fit` says
    why, unless the rows are likelier with changed values than by the tables, still so without any one of them, and predicted
    better from the others: every recipe (where there is one alone, every run) is left out in turn. `doubtful`: changed all the
    same, to see what the rows would make of the values.
    """
    timed, skipped = _usable(rows, gpu, here)
    name = timed[0].run.rates.product.name
    fit = _Fit(timed)
    before = [abs(exp(r) - 1) for r in fit.tables]
    kind, left = fit.left_out()
    reason = None if doubtful else _refusal(fit, before, kind, left)
    logs = fit.still if reason else fit.settle()
    after = [abs(exp(r) - 1) for r in fit.residuals(logs)]
    moved = {key: fit.start[key] * exp(change) for key, change in logs.items() if abs(change) > 0.005}
    return machine_file(
        name,
        moved,
        {
            "method": "measured runs",
            "rows": len(timed),
            "recipes": len({t.recipe for t in timed}),
            "mean_error_before": round(fmean(before), 4),
            "mean_error_after": round(fmean(after), 4),
            "left_out": None
            if left is None
            else {"by": kind, "before": round(fmean(before), 4), "after": round(fmean(left), 4)},
            "changed": bool(moved),
            "notes": [*(f"skipped: {s}" for s in skipped), *([f"nothing is changed: {reason}"] if reason else [])],
        },
    )


def _refusal(fit: _Fit, before: Sequence[float], kind: str, left: Sequence[float] | None) -> str | None:
    """Why the rows do not say that the machine is another than its tables have it; None when they do."""
    if fit.different < FEWEST or left is None:
        return (
            f"{fit.different} run{'s' * (fit.different != 1)} of different models or layouts may be what estimates miss of "
            f"single ones; {FEWEST} are the least"
        )
    if not fit.evident():
        return (
            f"these runs are off by {fmean(before):.1%}, which is as likely what estimates miss of single runs as it is the "
            "machine; more runs of other models may tell"
        )
    worse = sum(new > old for old, new in zip(before, left, strict=True))
    if worse > WORSE * len(left) or fmean(left) >= fmean(before):
        return (
            f"each {kind} predicted from the others is off by {fmean(left):.1%}, by the tables {fmean(before):.1%} "
            f"({worse} of {len(left)} come off worse); more runs of other models may tell"
        )
    return None


def _usable(rows: Sequence[Mapping[str, Any]], gpu: str | None, here: str | None) -> tuple[list[_Timed], list[str]]:
    """The rows with a time, on the machine as the tables have it, and why others are none."""
    machines, timed, skipped = Machines(), [], []
    for row in rows:
        try:
            run = run_of(row, machines)
        except ParlaunchError as error:
            skipped.append(str(error.problem))
            continue
        # A row of the history may have been planned with an earlier machine file; a fit starts from the tables.
        run = replace(run, rates=replace(run.rates, measured={}))
        estimate = estimate_time(run.recipe, run.layout, run.rates)
        seconds = measured_seconds(run, estimate)
        if seconds is not None and not run.oom:
            timed.append(_Timed(run, seconds, estimate.error_band))
    if not timed:
        raise UsageError(
            "no row with a measured time can be used",
            hint=skipped[0] if skipped else "give iteration_time_s or tokens_per_s_per_gpu",
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


STEP = 0.02
"""Change of a logarithm with which slopes are taken."""
FELT = 1e-3
"""Slope from which a row depends on a value at all."""
ROUNDS = 4


class _Fit:
    """Logarithms of changes of the tables' values that explain the rows' times."""

    def __init__(self, timed: Sequence[_Timed]) -> None:
        self.timed = timed
        self.start = _start(timed[0].run.rates)
        self.still = dict.fromkeys(self.start, 0.0)
        self.everything = range(len(timed))
        self.scales = [(t.band / USUAL) ** 0.5 for t in timed]
        self.width = median(t.band for t in timed) / USUAL
        moved = {name: self.residuals(self.still | {name: STEP}) for name in self.start}
        slopes = {name: [(to - at) / STEP for to, at in zip(moved[name], self.tables, strict=True)] for name in moved}
        self.names = [name for name, every in slopes.items() if max(map(abs, every)) > FELT]
        # By row and value: the change of a residual for one of a logarithm, at the tables' values.
        self._slopes = [[slopes[name][i] for name in self.names] for i in self.everything]
        self.still = dict.fromkeys(self.names, 0.0)

    @property
    def different(self) -> int:
        """How many runs of different models or layouts there are."""
        return len({t.layout for t in self.timed})

    def residuals(self, logs: Mapping[str, float]) -> list[float]:
        """log(predicted / measured) of the rows."""
        return [self._residual(timed, logs) for timed in self.timed]

    def _residual(self, timed: _Timed, logs: Mapping[str, float]) -> float:
        values = {name: self.start[name] * exp(change) for name, change in logs.items() if change}
        rates = replace(timed.run.rates, measured=_joint(timed.run.rates, values, self.start))
        return log(estimate_time(timed.run.recipe, timed.run.layout, rates).iteration_time_s / timed.seconds)

    @cached_property
    def tables(self) -> list[float]:
        """The residuals by the tables."""
        return self.residuals(self.still)

    @cached_property
    def _precision(self) -> list[list[float]]:
        """Inverse covariance of the changes before any row is known."""
        own = [(self.width * PRIOR[name]) ** 2 for name in self.names]
        common = [self.width * TOGETHER.get(name, 0.0) for name in self.names]
        sums = _joined(
            [_Sums.of([*_unit(i, len(own)), c], v) for i, (v, c) in enumerate(zip(own, common, strict=True))], 1.0
        )
        return [row[:-1] for row in sums.products[:-1]]

    def _deviation(self, i: int) -> float:
        """Of a row's residual, beside what the machine explains."""
        return float(self.scales[i] * sum(miss**2 for miss in MISSES.values()) ** 0.5)

    def _own(self, weights: Sequence[float]) -> list[float]:
        """The variance of each row alone; one that weighs less has a larger one."""
        return [
            (MISSES["run"] * self.scales[i]) ** 2 + self._deviation(i) ** 2 * (1 / weight - 1)
            for i, weight in enumerate(weights)
        ]

    def _layouts(self, rows: Sequence[int], residuals: Sequence[float], own: Sequence[float]) -> _ByModel:
        """What these rows say, by model and layout."""
        models: dict[object, dict[object, list[_Sums]]] = {}
        for i in rows:
            alike = models.setdefault(self.timed[i].model, {}).setdefault(self.timed[i].layout, [])
            alike.append(_Sums.of([*self._slopes[i], residuals[i], self.scales[i]], own[i]))
        return {
            model: {layout: _joined(alike, MISSES["layout"]) for layout, alike in layouts.items()}
            for model, layouts in models.items()
        }

    def _sums(self, rows: Sequence[int], residuals: Sequence[float], own: Sequence[float]) -> _Sums:
        """What these rows say, with what those of a layout and those of a model share."""
        models = self._layouts(rows, residuals, own)
        return _joined([_joined(layouts.values(), MISSES["model"]) for layouts in models.values()], 0.0)

    def _likeliest(self, sums: _Sums, share: float) -> tuple[list[float], float, float]:
        """The changes, by how much they lower the sum of squares, and the logarithm of what they cost in prior. `share`: of the
        prior's deviations."""
        n = len(self.names)
        prior = [[value / share**2 for value in row] for row in self._precision]
        matrix = [
            [a + b for a, b in zip(row[:n], more, strict=True)]
            for row, more in zip(sums.products[:n], prior, strict=True)
        ]
        right = [-row[n] for row in sums.products[:n]]
        factor = _cholesky(matrix)
        change = _solve(factor, right)
        return change, _dot(right, change), _log_determinant(factor) - _log_determinant(_cholesky(prior))

    def _evidence(self, sums: _Sums, rows: int, share: float = 1.0) -> float:
        """By how much, as a logarithm, so many rows are likelier with changed values than by the tables: marginal likelihoods,
        in which a freer prior costs what it does not explain."""
        _, less, cost = self._likeliest(sums, share)
        squares = sums.products[len(self.names)][len(self.names)]
        gain = log1p(squares / TAILS) - log1p((squares - less) / TAILS)
        return (TAILS + rows) / 2 * gain - cost / 2

    @cached_property
    def _by_tables(self) -> _ByModel:
        return self._layouts(self.everything, self.tables, self._own([1.0] * len(self.timed)))

    def evident(self) -> bool:
        """Whether the rows are likelier with changed values, all of them and without any one layout's too."""
        count: Counter[object] = Counter(timed.layout for timed in self.timed)
        models = {model: _joined(layouts.values(), MISSES["model"]) for model, layouts in self._by_tables.items()}
        for model, layouts in self._by_tables.items():
            for out in layouts:
                left = [sums for layout, sums in layouts.items() if layout != out]
                rest = [sums for other, sums in models.items() if other != model]
                rest += [_joined(left, MISSES["model"])] if left else []
                if self._evidence(_joined(rest, 0.0), len(self.timed) - count[out]) <= 0:
                    return False
        return self._evidence(_joined(models.values(), 0.0), len(self.timed)) > 0

    @cached_property
    def _share(self) -> float:
        """Of the prior's deviations: wider where the rows call for it by more than they are the less likely for it."""
        if median(self.tables) > 0:
            return FASTER
        models = [_joined(layouts.values(), MISSES["model"]) for layouts in self._by_tables.values()]
        sums = _joined(models, 0.0)
        return max(WIDER, key=lambda share: self._evidence(sums, len(self.timed), share) - log(share))

    def settle(self) -> dict[str, float]:
        """The likeliest changes."""
        return self._settled(exact=True)[0]

    def _settled(self, *, exact: bool) -> tuple[dict[str, float], list[float]]:
        """The likeliest changes and the variance of each row alone; not `exact`: as far as slopes tell, which costs no estimates.

        Gauss-Newton on residuals over their covariance and changes over their prior: the times are nearly linear in the
        logarithms, so the tables' slopes do and a few rounds settle it. A row far from what the others make likely weighs less
        each round (Huber's weights).
        """
        logs, here, own = self.still, self.tables, self._own([1.0] * len(self.timed))
        for _ in range(ROUNDS):
            moved = [r - _dot(slopes, list(logs.values())) for r, slopes in zip(here, self._slopes, strict=True)]
            change, _, _ = self._likeliest(self._sums(self.everything, moved, own), self._share)
            logs = {name: min(c, self._most(name)) for name, c in zip(self.names, change, strict=True)}
            here = self.residuals(logs) if exact else self._linear(logs)
            own = self._own([min(1.0, OUTLIER * self._deviation(i) / max(abs(r), 1e-9)) for i, r in enumerate(here)])
        return logs, own

    def _linear(self, logs: Mapping[str, float]) -> list[float]:
        """The residuals as the slopes have them."""
        return [at + _dot(slopes, list(logs.values())) for at, slopes in zip(self.tables, self._slopes, strict=True)]

    def _most(self, name: str) -> float:
        """The change at which a share of the peak is 1."""
        return max(0.0, -log(self.start[name])) if name in PEAK_SHARES else inf

    def left_out(self) -> tuple[str, list[float] | None]:
        """What is left out in turn, and the relative error of each row predicted without it; None where there is one alone."""
        kind = "recipe" if len({t.recipe for t in self.timed}) > 1 else "run"
        keys = [t.recipe if kind == "recipe" else t.layout for t in self.timed]
        if len(set(keys)) < 2:
            return kind, None
        _, own = self._settled(exact=False)
        errors: dict[int, float] = {}
        for fold in set(keys):
            rows = [i for i in self.everything if keys[i] != fold]
            change, _, _ = self._likeliest(self._sums(rows, self.tables, own), self._share)
            logs = {name: min(c, self._most(name)) for name, c in zip(self.names, change, strict=True)}
            out = [i for i in self.everything if keys[i] == fold]
            errors |= {i: abs(exp(self._residual(self.timed[i], logs)) - 1) for i in out}
        return kind, [errors[i] for i in self.everything]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Products of columns over rows, under the inverse of the rows' covariance, and the logarithm of its determinant. The last
    column is the scale of what rows share."""

    products: list[list[float]]
    log_determinant: float

    @staticmethod
    def of(row: Sequence[float], variance: float) -> _Sums:
        """One row alone."""
        return _Sums([[a * b / variance for b in row] for a in row], log(variance))


_ByModel = dict[object, dict[object, _Sums]]


def _joined(parts: Iterable[_Sums], shared: float) -> _Sums:
    """Several that also share an error of this deviation, in proportion to their scales (Sherman and Morrison)."""
    products = [
        [sum(values) for values in zip(*rows, strict=True)] for rows in zip(*(p.products for p in parts), strict=True)
    ]
    total = sum(p.log_determinant for p in parts)
    scale = products[-1]
    grown = 1 + shared**2 * scale[-1]
    less = shared**2 / grown
    return _Sums(
        [
            [value - less * a * b for value, b in zip(row, scale, strict=True)]
            for row, a in zip(products, scale, strict=True)
        ],
        total + log(grown),
    )


def _unit(i: int, n: int) -> list[float]:
    return [float(k == i) for k in range(n)]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _start(rates: Rates) -> dict[str, float]:
    silicon, kernels, links = silicon_of(rates), Kernels(rates), Links(rates)
    start = {name: float(getattr(silicon, name)) for name in PRIOR if hasattr(silicon, name)}
    start |= {name: kernels.reached(fmt) for fmt, name in SHARES.items() if fmt != "fp16"}
    return start | {"nvlink_bus_bytes_per_s": links.nvlink, "fabric_bus_bytes_per_s": links.fabric}


def _joint(rates: Rates, values: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """The fitted values for one of the rows' machines: fabrics may differ in rate, so theirs is scaled."""
    out = dict(values)
    if "fabric_bus_bytes_per_s" in values:
        out["fabric_bus_bytes_per_s"] = (
            Links(rates).fabric * values["fabric_bus_bytes_per_s"] / start["fabric_bus_bytes_per_s"]
        )
    return out


def _cholesky(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """The lower triangle L of a positive definite matrix, L·Lᵀ."""
    lower: list[list[float]] = []
    for i, given in enumerate(matrix):
        row: list[float] = []
        for j in range(i + 1):
            left = given[j] - sum(a * b for a, b in zip(row, lower[j] if j < i else row, strict=False))
            row.append(left**0.5 if j == i else left / lower[j][j])
        lower.append(row)
    return lower


def _log_determinant(lower: Sequence[Sequence[float]]) -> float:
    return 2 * sum(log(row[-1]) for row in lower)


def _solve(lower: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of L·Lᵀ·x = right."""
    half: list[float] = []
    for row, value in zip(lower, right, strict=True):
        half.append((value - sum(a * b for a, b in zip(row, half, strict=False))) / row[-1])
    out = [0.0] * len(half)
    for i in reversed(range(len(half))):
        out[i] = (half[i] - sum(lower[k][i] * out[k] for k in range(i + 1, len(half)))) / lower[i][i]
    return out

"""How far a machine is from its tables: the likeliest changes of what it reaches, given the times of measured runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import exp, inf, log, log1p
from statistics import median

from parlaunch.check.machine_file import PEAK_SHARES, SHARES
from parlaunch.check.measured import Run
from parlaunch.check.normal import Sums, cholesky, dot, joined, log_determinant, solve, unit
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import silicon_of
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates

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


@dataclass(frozen=True, slots=True)
class Observed:
    """A run on the machine that the tables describe, how long it took, and the band of its estimate."""

    run: Run
    seconds: float
    band: float

    @property
    def model(self) -> tuple[object, ...]:
        """What is trained."""
        return self.run.recipe.architecture, self.run.recipe.task

    @property
    def layout(self) -> tuple[object, ...]:
        """Rows that are alike here share most of what the estimate misses of them, whatever their precision."""
        return (*self.model, self.run.recipe.seq_length, self.run.layout)

    @property
    def recipe(self) -> tuple[object, ...]:
        """What is trained, how."""
        return (*self.model, self.run.recipe.precision, self.run.recipe.seq_length)


STEP = 0.02
"""Change of a logarithm with which slopes are taken."""
FELT = 1e-3
"""Slope from which a row depends on a value at all."""
ROUNDS = 4


class Fit:
    """Logarithms of changes of the tables' values that explain the rows' times."""

    def __init__(self, timed: Sequence[Observed]) -> None:
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

    def _residual(self, timed: Observed, logs: Mapping[str, float]) -> float:
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
        sums = joined(
            [Sums.of([*unit(i, len(own)), c], v) for i, (v, c) in enumerate(zip(own, common, strict=True))], 1.0
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
        models: dict[object, dict[object, list[Sums]]] = {}
        for i in rows:
            alike = models.setdefault(self.timed[i].model, {}).setdefault(self.timed[i].layout, [])
            alike.append(Sums.of([*self._slopes[i], residuals[i], self.scales[i]], own[i]))
        return {
            model: {layout: joined(alike, MISSES["layout"]) for layout, alike in layouts.items()}
            for model, layouts in models.items()
        }

    def _sums(self, rows: Sequence[int], residuals: Sequence[float], own: Sequence[float]) -> Sums:
        """What these rows say, with what those of a layout and those of a model share."""
        models = self._layouts(rows, residuals, own)
        return joined([joined(layouts.values(), MISSES["model"]) for layouts in models.values()], 0.0)

    def _likeliest(self, sums: Sums, share: float) -> tuple[list[float], float, float]:
        """The changes, by how much they lower the sum of squares, and the logarithm of what they cost in prior. `share`: of the
        prior's deviations."""
        n = len(self.names)
        prior = [[value / share**2 for value in row] for row in self._precision]
        matrix = [
            [a + b for a, b in zip(row[:n], more, strict=True)]
            for row, more in zip(sums.products[:n], prior, strict=True)
        ]
        right = [-row[n] for row in sums.products[:n]]
        factor = cholesky(matrix)
        change = solve(factor, right)
        return change, dot(right, change), log_determinant(factor) - log_determinant(cholesky(prior))

    def _evidence(self, sums: Sums, rows: int, share: float = 1.0) -> float:
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
        models = {model: joined(layouts.values(), MISSES["model"]) for model, layouts in self._by_tables.items()}
        for model, layouts in self._by_tables.items():
            for out in layouts:
                left = [sums for layout, sums in layouts.items() if layout != out]
                rest = [sums for other, sums in models.items() if other != model]
                rest += [joined(left, MISSES["model"])] if left else []
                if self._evidence(joined(rest, 0.0), len(self.timed) - count[out]) <= 0:
                    return False
        return self._evidence(joined(models.values(), 0.0), len(self.timed)) > 0

    @cached_property
    def _share(self) -> float:
        """Of the prior's deviations: wider where the rows call for it by more than they are the less likely for it."""
        if median(self.tables) > 0:
            return FASTER
        models = [joined(layouts.values(), MISSES["model"]) for layouts in self._by_tables.values()]
        sums = joined(models, 0.0)
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
            moved = [r - dot(slopes, list(logs.values())) for r, slopes in zip(here, self._slopes, strict=True)]
            change, _, _ = self._likeliest(self._sums(self.everything, moved, own), self._share)
            logs = {name: min(c, self._most(name)) for name, c in zip(self.names, change, strict=True)}
            here = self.residuals(logs) if exact else self._linear(logs)
            own = self._own([min(1.0, OUTLIER * self._deviation(i) / max(abs(r), 1e-9)) for i, r in enumerate(here)])
        return logs, own

    def _linear(self, logs: Mapping[str, float]) -> list[float]:
        """The residuals as the slopes have them."""
        return [at + dot(slopes, list(logs.values())) for at, slopes in zip(self.tables, self._slopes, strict=True)]

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


_ByModel = dict[object, dict[object, Sums]]


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

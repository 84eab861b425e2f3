"""How far a machine is from its tables: the likeliest changes of what it reaches, given the times of measured runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import exp, inf, log
from statistics import fmean
from typing import NamedTuple

from parlaunch.check.machine_file import PEAK_SHARES, SHARES
from parlaunch.check.measured import Run
from parlaunch.check.normal import Sums, cholesky, dot, joined, log_determinant, solve, unit
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import silicon_of
from parlaunch.frozen import dataclass
from parlaunch.hardware.paces import MOST, Pace, sizes_of, slower
from parlaunch.hardware.rates import Rates

PRIOR = {
    "gemm_bf16": 0.08, "gemm_fp8": 0.06, "gemm_fp4": 0.08, "hbm": 0.04, "flash": 0.06, "flash_backward": 0.04, "host": 0.12,
    "nvlink_bus_bytes_per_s": 0.08, "fabric_bus_bytes_per_s": 0.16,
}  # fmt: skip
"""How far a value alone may be from the tables' on a machine that is another than they have it, as the standard deviation of its
logarithm."""
TOGETHER = {name: 0.06 if name.endswith("bytes_per_s") else 0.1 for name in PRIOR if name != "host"}
"""The same for what moves all of them alike: clocks, power limits and old software slow the whole machine down."""
AS_TABLES = 0.9
"""Share of machines that are as their tables have them, before any run is known: of 27 published sites with three runs or more, 25 are
within 10 % of them on average."""
MISSES = {"model": 0.03, "layout": 0.03, "run": 0.03}
"""Standard deviation of the logarithm of a measured time beside what the machine explains, in parts: what the estimate misses
of all runs of a model and task alike, of all with one layout, and of a single run. Many runs of one model say less than as many
models. Of 0.02, 0.03 and 0.04, with the deviations above halved, as they are, and half as wide again, 0.03 predicts a site's
other runs from four best whichever source is left out of the comparison."""
ASTRAY, FAR = 0.1, 6.0
"""Share of runs that are off by something else (another software, a sick node), and how many times as far: the likeliest for fours of
published runs of a site."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A run on the machine that the tables describe, and how long it took."""

    run: Run
    seconds: float

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
LEAST = 0.005
"""A smaller change of a logarithm is none."""
FELT = 1e-3
"""Slope from which a row depends on a value at all."""
ROUNDS = 4


class Fit:
    """Logarithms of changes of the tables' values that explain the rows' times."""

    def __init__(self, timed: Sequence[Observed]) -> None:
        self.timed = timed
        # Of the largest run: what a table says of its fabric is known of runs on several nodes.
        self.start = _start(max(timed, key=lambda t: t.run.layout.world).run.rates)
        self.still = dict.fromkeys(self.start, 0.0)
        self.everything = range(len(timed))
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
        own = [PRIOR[name] ** 2 for name in self.names]
        common = [TOGETHER.get(name, 0.0) for name in self.names]
        sums = joined(
            [Sums.of([*unit(i, len(own)), c], v) for i, (v, c) in enumerate(zip(own, common, strict=True))], 1.0
        )
        return [row[:-1] for row in sums.products[:-1]]

    def _sums(self, rows: Iterable[int], view: _View) -> Sums:
        """What these rows say, with what those of a layout and those of a model share."""
        models: dict[object, dict[object, list[Sums]]] = {}
        for i in rows:
            alike = models.setdefault(self.timed[i].model, {}).setdefault(self.timed[i].layout, [])
            alike.append(Sums.of([*self._slopes[i], view.residuals[i], 1.0], view.own[i]))
        return joined(
            [
                joined([joined(alike, MISSES["layout"]) for alike in layouts.values()], MISSES["model"])
                for layouts in models.values()
            ],
            0.0,
        )

    def _likeliest(self, sums: Sums) -> tuple[list[float], float]:
        """The changes, and the logarithm of how much likelier the rows are with them: of marginal likelihoods, in which a prior
        costs what it does not explain."""
        n = len(self.names)
        matrix = [
            [a + b for a, b in zip(row[:n], more, strict=True)]
            for row, more in zip(sums.products[:n], self._precision, strict=True)
        ]
        right = [-row[n] for row in sums.products[:n]]
        factor = cholesky(matrix)
        change = solve(factor, right)
        likelier = dot(right, change) + log_determinant(cholesky(self._precision)) - log_determinant(factor)
        return change, likelier / 2

    @cached_property
    def _views(self) -> tuple[_View, _View]:
        """The rows beside a machine as the tables have it, and beside one that is another.

        Gauss-Newton on residuals over their covariance and changes over their prior: the times are nearly linear in the
        logarithms, so the tables' slopes do and a few rounds settle it. Each round a row far from what the others make likely
        weighs less, as it is the likelier to be astray.
        """
        as_tables, other = _View.of(self.tables, self.tables), _View.of([0.0] * len(self.tables), self.tables)
        for _ in range(ROUNDS):
            logs = self._kept(self._likeliest(self._sums(self.everything, other))[0])
            here = self.residuals(logs)
            moved = [r - dot(slopes, list(logs.values())) for r, slopes in zip(here, self._slopes, strict=True)]
            other = _View.of(here, moved)
        return as_tables, other

    def _believed(self, rows: Sequence[int]) -> tuple[dict[str, float], float]:
        """The changes that these rows make likeliest if the machine is another than its tables have it, and how sure it is that
        it is."""
        as_tables, other = self._views
        by_tables, by_other = self._sums(rows, as_tables), self._sums(rows, other)
        change, likelier = self._likeliest(by_other)
        n = len(self.names)
        for sums, view, sign in ((by_tables, as_tables, -1), (by_other, other, 1)):
            alone = sum(view.costs[i] for i in rows) - (sums.products[n][n] + sums.log_determinant) / 2
            likelier += sign * alone
        odds = (1 - AS_TABLES) / AS_TABLES * exp(max(-50.0, min(50.0, likelier)))
        return self._kept(change), odds / (1 + odds)

    def _kept(self, change: Sequence[float]) -> dict[str, float]:
        """The changes by name, none beyond the one at which a share of the peak is 1."""
        return {
            name: min(c, max(0.0, -log(self.start[name])) if name in PEAK_SHARES else inf)
            for name, c in zip(self.names, change, strict=True)
        }

    def settle(self, *, doubtful: bool = False) -> tuple[dict[str, float], float]:
        """The changes to expect, and how sure the rows are that there are any: what they make likeliest times that, `doubtful`:
        all of it."""
        logs, sure = self._believed(self.everything)
        return {name: change * (1.0 if doubtful else sure) for name, change in logs.items()}, sure

    def paces(self, logs: Mapping[str, float]) -> tuple[Pace, ...]:
        """What runs of each model take over what the machine with these changes explains, as far as it is not of single layouts and
        runs: `MISSES` says how much of each there is."""
        return self._paces(self.everything, self.residuals(logs))

    def errors(self, logs: Mapping[str, float], paces: Sequence[Pace]) -> list[float]:
        """Relative errors of the rows, with these changes and what is known of their models."""
        return _errors(self.timed, self.residuals(logs), paces)

    def _paces(self, rows: Iterable[int], residuals: Sequence[float]) -> tuple[Pace, ...]:
        own = _View.of(residuals, residuals).own
        models: dict[tuple[str, tuple[tuple[str, int], ...]], dict[object, list[int]]] = {}
        for i in rows:
            recipe = self.timed[i].run.recipe
            named = recipe.task, sizes_of(recipe.architecture)
            models.setdefault(named, {}).setdefault(self.timed[i].layout, []).append(i)
        paces = []
        for named, layouts in models.items():
            weight, total = 1 / MISSES["model"] ** 2, 0.0
            for alike in layouts.values():
                sure = sum(1 / own[i] for i in alike)
                mean = sum(residuals[i] / own[i] for i in alike) / sure
                one = 1 / (1 / sure + MISSES["layout"] ** 2)
                weight, total = weight + one, total + one * mean
            miss = total / weight
            if abs(miss) > LEAST:
                recipe = self.timed[next(iter(layouts.values()))[0]].run.recipe
                name = recipe.model or f"model of hidden size {recipe.architecture.hidden_size}"
                paces.append(Pace(name, *named, min(MOST, max(1 / MOST, exp(-miss)))))
        return tuple(paces)

    def left_out(self) -> tuple[str, dict[Kept, float] | None]:
        """What is left out in turn, and the mean relative error of all rows predicted without it, by what is kept of the others: the
        changes of the tables' values, what runs of a model have in common, both or neither. None where there is one alone."""
        kind = "recipe" if len({t.recipe for t in self.timed}) > 1 else "run"
        keys = [t.recipe if kind == "recipe" else t.layout for t in self.timed]
        if len(set(keys)) < 2:
            return kind, None
        errors: dict[Kept, list[float]] = {}
        for fold in set(keys):
            known = [i for i in self.everything if keys[i] != fold]
            change, sure = self._believed(known)
            for values in (False, True):
                found = self.residuals({name: c * sure for name, c in change.items()}) if values else self.tables
                paces = self._paces(known, found)
                for models in (False, True):
                    off = _errors(self.timed, found, paces if models else ())
                    errors.setdefault(Kept(values, models), []).extend(
                        off[i] for i in self.everything if keys[i] == fold
                    )
        return kind, {kept: fmean(every) for kept, every in errors.items()}


class Kept(NamedTuple):
    """What a calibration keeps."""

    values: bool  # in place of the tables'
    models: bool


def _errors(timed: Sequence[Observed], residuals: Sequence[float], paces: Sequence[Pace]) -> list[float]:
    """Relative errors of the rows, with what is known of their models."""
    return [abs(exp(r) * slower(t.run.recipe, paces) - 1) for r, t in zip(residuals, timed, strict=True)]


@dataclass(frozen=True, slots=True)
class _View:
    """The rows, beside what one supposition on the machine explains of them."""

    residuals: list[float]  # brought back to the tables' values along the slopes
    own: list[float]  # the variance of each alone
    costs: list[float]  # what the two kinds of runs that each may be of cost its likelihood: a logarithm

    @staticmethod
    def of(unexplained: Sequence[float], residuals: Sequence[float]) -> _View:
        """By what the machine leaves of each row."""
        astray = [_astray(r) for r in unexplained]
        own = [MISSES["run"] ** 2 / (1 - q + q / FAR**2) for q in astray]
        return _View(list(residuals), own, [_cost(q, v) for q, v in zip(astray, own, strict=True)])


def _astray(residual: float) -> float:
    """How probable it is that a run so far from what the machine explains is off by something else."""
    squares = residual**2 / sum(miss**2 for miss in MISSES.values())
    odds = ASTRAY / (1 - ASTRAY) / FAR * exp(min(50.0, squares * (1 - 1 / FAR**2) / 2))
    return odds / (1 + odds)


def _cost(astray: float, variance: float) -> float:
    """The bound of variational inference, less what the row's variance alone already costs."""
    kinds = ((astray, ASTRAY), (1 - astray, 1 - ASTRAY))
    mixed = sum(q * log(p / q) for q, p in kinds if q > 0)
    return mixed + log(variance / MISSES["run"] ** 2) / 2 - astray * log(FAR)


def _start(rates: Rates) -> dict[str, float]:
    silicon, kernels, links = silicon_of(rates), Kernels(rates), Links(rates)
    start = {name: float(getattr(silicon, name)) for name in PRIOR if hasattr(silicon, name)}
    start |= {name: kernels.reached(fmt) for fmt, name in SHARES.items() if fmt != "fp16"}
    return start | {"nvlink_bus_bytes_per_s": links.bus, "fabric_bus_bytes_per_s": links.fabric}


def _joint(rates: Rates, values: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """The fitted values for one of the rows' machines: fabrics may differ in rate, so theirs is scaled."""
    out = dict(values)
    if "fabric_bus_bytes_per_s" in values:
        out["fabric_bus_bytes_per_s"] = (
            Links(rates).fabric * values["fabric_bus_bytes_per_s"] / start["fabric_bus_bytes_per_s"]
        )
    return out

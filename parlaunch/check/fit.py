"""How far a machine is from its tables: the likeliest changes of what it reaches, given the times of measured runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import exp, inf, log
from statistics import fmean
from typing import Any

from parlaunch.check.machine_file import PEAK_SHARES, SHARES
from parlaunch.check.measured import Run
from parlaunch.check.normal import dot, expected
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import silicon_of
from parlaunch.frozen import dataclass
from parlaunch.hardware.paces import MOST, Pace, SplitPace, sizes_of, slower, slower_split
from parlaunch.hardware.rates import Rates
from parlaunch.model.precision import product_format

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
MISSES = {"model": 0.03, "split": 0.03, "run": 0.03}
"""Standard deviation of the logarithm of a measured time beside what the machine explains, in parts: what the estimate misses
of all runs of a model and task in one format alike, of all that are split alike, whatever they train, and of a single run. Many runs
of one model say less than as many models. Equal parts: on published sites, between half and one and a half times as much of any makes
a tenth of a point at most. Without `split` a site's other runs are predicted a fifth of a point worse from four; context and expert
parallelism beside it, and one factor for all formats of a model, are no better."""
ASTRAY, FAR = 0.1, 6.0
"""Share of runs that are off by something else (another software, a sick node), and how many times as far: the likeliest for fours of
published runs of a site."""


_Kind = tuple[Any, ...]


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
        """Rows that are alike here are one run again, whatever their precision."""
        return (*self.model, self.run.recipe.seq_length, self.run.layout)

    @property
    def kinds(self) -> tuple[_Kind, ...]:
        """What it shares with other runs: by the names of `MISSES`."""
        recipe, layout = self.run.recipe, self.run.layout
        return (
            ("model", recipe.task, product_format(recipe.precision), sizes_of(recipe.architecture)),
            ("split", layout.tp, layout.pp, layout.micro_batch_size),
        )

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
        self._together = [dot(row, [TOGETHER.get(name, 0.0) for name in self.names]) for row in self._slopes]
        self._kinds = [t.kinds for t in timed]
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

    def _likeliest(
        self, rows: Sequence[int], view: _View, *, machine: bool
    ) -> tuple[list[float], dict[_Kind, float], float]:
        """The changes, none where the machine is as the tables have it; how much longer what is of each kind takes beside it, as a logarithm;
        and the logarithm of how likely these rows are: a marginal likelihood, in which a prior costs what it does not explain."""
        n = len(self.names) if machine else 0
        first = n + machine
        kinds = {kind: first + i for i, kind in enumerate(dict.fromkeys(k for i in rows for k in self._kinds[i]))}
        columns: list[dict[int, float]] = []
        for i in rows:
            columns.append({kinds[kind]: 1.0 for kind in self._kinds[i]})
            if machine:
                columns[-1] |= {**dict(enumerate(self._slopes[i])), n: self._together[i]}
        prior = [PRIOR[name] for name in self.names[:n]] + [1.0] * machine + [MISSES[kind[0]] for kind in kinds]
        found, likely = expected(columns, [-view.residuals[i] for i in rows], [view.own[i] for i in rows], prior)
        change = [own + found[n] * TOGETHER.get(name, 0.0) for name, own in zip(self.names[:n], found[:n], strict=True)]
        return change, {kind: found[i] for kind, i in kinds.items()}, likely + sum(view.costs[i] for i in rows)

    @cached_property
    def _views(self) -> tuple[_View, _View]:
        """The rows beside a machine as the tables have it, and beside one that is another.

        Gauss-Newton on residuals over their covariance and changes over their prior: the times are nearly linear in the
        logarithms, so the tables' slopes do and a few rounds settle it. Each round a row far from what the others make likely
        weighs less, as it is the likelier to be astray.
        """
        as_tables, other = _View.of(self.tables, self.tables), _View.of([0.0] * len(self.tables), self.tables)
        for _ in range(ROUNDS):
            logs = self._kept(self._likeliest(self.everything, other, machine=True)[0])
            here = self.residuals(logs)
            moved = [r - dot(slopes, list(logs.values())) for r, slopes in zip(here, self._slopes, strict=True)]
            other = _View.of(here, moved)
        return as_tables, other

    def _believed(self, rows: Sequence[int]) -> tuple[dict[str, float], float]:
        """The changes that these rows make likeliest if the machine is another than its tables have it, and how sure it is that
        it is."""
        as_tables, other = self._views
        change, _, likely = self._likeliest(rows, other, machine=True)
        likelier = likely - self._likeliest(rows, as_tables, machine=False)[-1]
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

    def learnt(self, logs: Mapping[str, float]) -> Learnt:
        """What runs of each model, and with each split, take over what the machine with these changes explains, as far as it is not of
        single runs: `MISSES` says how much of each there is."""
        return self._learnt(self.everything, self.residuals(logs))

    def errors(self, logs: Mapping[str, float], learnt: Learnt) -> list[float]:
        """Relative errors of the rows, with these changes and what is known of their models and splits."""
        return _errors(self.timed, self.residuals(logs), learnt)

    def _learnt(self, rows: Sequence[int], residuals: Sequence[float]) -> Learnt:
        _, misses, _ = self._likeliest(rows, _View.of(residuals, residuals), machine=False)
        models, splits = [], []
        for kind, miss in misses.items():
            if abs(miss) <= LEAST:
                continue
            much = min(MOST, max(1 / MOST, exp(miss)))
            if kind[0] == "split":
                _, tp, pp, micro_batch = kind
                splits.append(SplitPace(tp, pp, micro_batch, much))
                continue
            recipe = next(self.timed[i].run.recipe for i in rows if kind in self._kinds[i])
            name = recipe.model or f"model of hidden size {recipe.architecture.hidden_size}"
            _, task, form, sizes = kind
            models.append(Pace(name, task, sizes, much, form))
        return Learnt(tuple(models), tuple(splits))

    def left_out(self) -> tuple[str, dict[bool, float] | None]:
        """What is left out in turn, and the mean relative error of all rows predicted without it: with the tables' values, and with the
        changes that the others make of them (True). None where there is one alone."""
        kind = "recipe" if len({t.recipe for t in self.timed}) > 1 else "run"
        keys = [t.recipe if kind == "recipe" else t.layout for t in self.timed]
        if len(set(keys)) < 2:
            return kind, None
        errors: dict[bool, list[float]] = {False: [], True: []}
        for fold in set(keys):
            known = [i for i in self.everything if keys[i] != fold]
            change, sure = self._believed(known)
            for values, every in errors.items():
                found = self.residuals({name: c * sure for name, c in change.items()}) if values else self.tables
                off = _errors(self.timed, found, self._learnt(known, found))
                every += [off[i] for i in self.everything if keys[i] == fold]
        return kind, {values: fmean(every) for values, every in errors.items()}


@dataclass(frozen=True, slots=True)
class Learnt:
    """What runs take beside what the machine explains."""

    models: tuple[Pace, ...] = ()
    splits: tuple[SplitPace, ...] = ()


def _errors(timed: Sequence[Observed], residuals: Sequence[float], learnt: Learnt) -> list[float]:
    """Relative errors of the rows, with what is known of their models and splits."""
    return [
        abs(exp(r) * slower(t.run.recipe, learnt.models) * slower_split(t.run.layout, learnt.splits) - 1)
        for r, t in zip(residuals, timed, strict=True)
    ]


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
    start |= {name: kernels.reached(fmt) for fmt, name in reversed(SHARES.items())}
    return start | {"nvlink_bus_bytes_per_s": links.bus, "fabric_bus_bytes_per_s": links.fabric}


def _joint(rates: Rates, values: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """The fitted values for one of the rows' machines: fabrics may differ in rate, so theirs is scaled."""
    out = dict(values)
    if "fabric_bus_bytes_per_s" in values:
        out["fabric_bus_bytes_per_s"] = (
            Links(rates).fabric * values["fabric_bus_bytes_per_s"] / start["fabric_bus_bytes_per_s"]
        )
    return out

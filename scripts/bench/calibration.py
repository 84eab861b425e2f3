"""What calibration on four runs of a site is worth on its other runs: `python scripts/bench/calibration.py`.

    python scripts/bench/calibration.py [--draws 56] [--seed 0] [--rows 4]

A site is a source of published runs on one kind of GPU, of those in `validation/` that have enough runs. Draws go round the sites;
each fits to a few runs drawn by the seed, and compares the mean error on the runs left with that of the tables. Beside it what no
calibration by so few runs can beat: one factor for all of a site's runs, found from all of them; and what one for each model and precision
would leave, which the tables would have to explain.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from parlaunch.check.calibrate import from_runs
from parlaunch.check.measured import Machines, measured_seconds, run_of, timed
from parlaunch.cli.accuracy import rows_of
from parlaunch.estimate.timing import estimate_time

TABLES = Path(__file__).parents[2] / "validation"
FEWEST = 8
"""Runs that a site needs: what is left after a draw says something."""
POINT = 0.01

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Draw:
    """One calibration and the mean error, as a share, on the site's other runs."""

    site: str
    before: float
    after: float
    changed: bool

    @property
    def worse(self) -> bool:
        """By more than a point."""
        return self.after > self.before + POINT


def place(row: Row) -> str:
    """Where a row was measured, by the first words of its source: the repository or paper and the file, of MLPerf's results the
    submitter's system. A table may hold rows of many.

    >>> place({"source": "mlcommons/training_results_v5.0 NVIDIA/results/eos-dfw_n64/llama2_70b_lora/result_0.txt"})
    'mlcommons/training_results_v5.0 NVIDIA/results/eos'
    >>> place({"source": "InternLM/InternEvo doc/en/train_performance.md \\"Throughput\\" row 3"})
    'InternLM/InternEvo doc/en/train_performance.md'
    """
    first, _, rest = str(row.get("source") or "").partition(" ")
    second = rest.partition(" ")[0]
    system = re.match(r"[^/]+/results/[A-Za-z]+", second)
    return f"{first} {system[0] if system else second}".strip()


def sites(tables: str = "*") -> dict[str, list[Row]]:
    """Rows with a measured time by where they were measured and on which GPU, of the tables that a pattern names."""
    found: dict[str, list[Row]] = {}
    for one in timed(row for table in sorted(TABLES.glob(f"{tables}.jsonl")) for row in rows_of(table)):
        found.setdefault(f"{place(one.row)}, {one.run.rates.product.name}", []).append(one.row)
    return {site: rows for site, rows in found.items() if len(rows) >= FEWEST}


def floors(rows: Sequence[Row]) -> tuple[float, float]:
    """Mean relative error of a site's rows after one factor for all of them, and after one for each model and precision."""
    alike: dict[object, list[float]] = {}
    for one in timed(rows):
        recipe = one.run.recipe
        alike.setdefault((recipe.architecture, recipe.task, recipe.precision), []).append(
            one.predicted_s / one.measured_s
        )

    def left(groups: Iterable[Sequence[float]]) -> float:
        return fmean(abs(ratio / median(group) - 1) for group in groups for ratio in group)

    return left([[ratio for group in alike.values() for ratio in group]]), left(alike.values())


def error(rows: Sequence[Row], file: Mapping[str, Any] | None) -> float:
    """Mean relative error of the iteration times."""
    machines, errors = Machines(file), []
    for row in rows:
        run = run_of(row, machines)
        estimate = estimate_time(run.recipe, run.layout, run.rates)
        errors.append(abs(estimate.iteration_time_s / (measured_seconds(run, estimate) or 1.0) - 1))
    return fmean(errors)


def draws(number: int, *, every: Mapping[str, Sequence[Row]], seed: int = 0, rows: int = 4) -> Iterator[Draw]:
    """Calibrations on `rows` runs each, round the sites."""
    dice = random.Random(seed)
    names = sorted(every)
    for i in range(number):
        site = names[i % len(names)]
        taken = set(dice.sample(range(len(every[site])), rows))
        fitted = [row for k, row in enumerate(every[site]) if k in taken]
        others = [row for k, row in enumerate(every[site]) if k not in taken]
        others = dice.sample(others, min(len(others), 24))  # enough for a mean; vTrain's sweep has hundreds
        file = from_runs(fitted)
        before = error(others, None)
        changed = bool(file["measured"] or file["models"] or file["splits"])
        yield Draw(site, before, error(others, file) if changed else before, changed)


def table(done: Sequence[Draw], every: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Lines of Markdown: each site's errors and floors, then those of all draws."""
    yield "| runs of | draws | by the tables | calibrated | median | p95 | worse | one factor | one a model and format |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    least = {site: floors(rows) for site, rows in every.items()}
    for site in sorted({d.site for d in done}):
        yield _line(site, [d for d in done if d.site == site], *least[site])
    yield _line("all", done, fmean(least[d.site][0] for d in done), fmean(least[d.site][1] for d in done))


def _line(name: str, drawn: Sequence[Draw], scaled: float, by_model: float) -> str:
    after = sorted(d.after for d in drawn)
    values = (fmean(d.before for d in drawn), fmean(after), median(after), after[int(0.95 * len(after))])
    cells = [f"{value:.1%}".replace("%", " %") for value in (*values, scaled, by_model)]
    return f"| {' | '.join([name, str(len(drawn)), *cells[:4], str(sum(d.worse for d in drawn)), *cells[4:]])} |"


def main() -> None:
    """Print each draw, then what is left by site, and how many were worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=56)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=4)
    given = parser.parse_args()
    done, every = [], sites()
    for draw in draws(given.draws, every=every, seed=given.seed, rows=given.rows):
        done.append(draw)
        word = "worse" if draw.worse else "changed" if draw.changed else "left alone"
        print(f"{draw.site[-56:]:<56} {draw.before:6.1%} -> {draw.after:6.1%}  {word}", flush=True)
    print("", *table(done, every), "", sep="\n")
    worse = sum(d.worse for d in done)
    print(
        f"{worse} of {len(done)} draws worse by more than a point; {sum(d.changed for d in done)} changed the tables'"
    )
    print(f"mean error {fmean(d.before for d in done):.2%} -> {fmean(d.after for d in done):.2%}")


if __name__ == "__main__":
    main()

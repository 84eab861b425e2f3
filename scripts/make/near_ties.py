"""Write docs/near-ties.md: what the charges of the preference do, and how far apart the model can tell layouts.

    python scripts/make/near_ties.py [--markdown docs/near-ties.md] [--only TEXT]

Every number on the page comes from this run: blind plans of NVIDIA's tuned layouts (`against_nvidia.py`), with the charges,
without each of them and without any, with the alternatives in other orders, and settled anew with one model left out at a time; the
differences of residuals between measured layouts of one group; and blind plans of every measured layout of a current Megatron Bridge,
beside what was measured.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from math import log, sqrt
from pathlib import Path
from statistics import fmean

from against_nvidia import key, machine, published, recipe_of, tuned_layout

from parlaunch.check.measured import Timed, timed
from parlaunch.cli.accuracy import rows_of
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.values import breakdown
from parlaunch.hardware.rates import rates_of
from parlaunch.planning.alternatives import OWN, PART, Prospect, in_turn, prospect
from parlaunch.planning.plan import Wishes
from parlaunch.planning.preference import CANDIDATES, CHARGES, YIELDS, Charges, charged, favourite
from parlaunch.planning.search import RESOLUTION, Search, kind_of

TABLES = Path(__file__).parents[2] / "validation"
NAMES = tuple(f.name for f in fields(Charges))
NONE = Charges(*(0.0 for _ in NAMES))
STEPS = (0.0, 0.5, 1.0, 1.5)
"""Each charge is tried at these multiples of what it is when charges are settled anew."""

Sizes = tuple[int, int, int, int]
Turn = Callable[[Prospect, Sequence[Prospect], int], Sequence[int]]


def by_time(_choice: Prospect, others: Sequence[Prospect], count: int) -> Sequence[int]:
    """The others by what is expected of each alone."""
    return sorted(range(len(others)), key=lambda place: others[place].expected)[:count]


@dataclass(frozen=True, slots=True)
class Option:
    """A layout that was ranked: its time and what it is made of, what each charge of 1 would take, and how many GPUs it uses."""

    sizes: Sizes
    seconds: float
    parts: tuple[float, ...]
    units: tuple[float, ...]
    world: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The layouts that were ranked for a model, a machine and a batch, and the one that NVIDIA tuned."""

    model: str
    kind: str
    tuned: Sizes
    options: tuple[Option, ...]

    def five(self, charges: Charges, turn: Turn = in_turn) -> list[Option]:
        """Our choice and the four that are shown beside it."""
        rates = [getattr(charges, name) for name in NAMES]

        def charge(o: Option) -> float:
            return sum(r * u for r, u in zip(rates, o.units, strict=True))

        first = favourite(self.options, self.kind, seconds=lambda o: o.seconds, world=lambda o: o.world, charge=charge)
        seen = {id(o): prospect(o.seconds, o.parts, charge(o)) for o in self.options}
        rest = sorted((o for o in self.options if o is not first), key=lambda o: seen[id(o)].expected)
        return [first, *(rest[place] for place in turn(seen[id(first)], [seen[id(o)] for o in rest], 4))]


@dataclass(frozen=True, slots=True)
class Score:
    first: int
    five: int
    regret: float  # share of the fastest one's time, by our estimate

    @property
    def worth(self) -> int:
        return self.first + self.five


def choices(only: str) -> list[Choice]:
    ones = {kind: Charges(*(1.0 for _ in NAMES)) for kind in CHARGES}
    found = []
    for row in published():
        if not row["feasible"] or only not in row["name"]:
            continue
        recipe, rates = recipe_of(row), rates_of(machine(row["hardware"], row["gpus"]))
        kind = kind_of(recipe)
        ranked = Search(recipe, rates, Wishes(evidence=False)).run(keep=CANDIDATES[kind]).ranked
        options = tuple(
            Option(
                key(c.layout),
                c.estimate.iteration_time_s,
                tuple(breakdown(c.estimate).values()),
                tuple(charged(c, recipe, rates, ones).values()),
                c.layout.world,
            )
            for c in ranked
        )
        if options:
            found.append(Choice(row["model"], kind, key(tuned_layout(row, recipe)), options))
    return found


def score(rows: Iterable[Choice], charges: Mapping[str, Charges], turn: Turn = in_turn) -> Score:
    first, five, regrets = 0, 0, []
    for row in rows:
        shown = row.five(charges[row.kind], turn)
        sizes = [o.sizes for o in shown]
        first += sizes[0] == row.tuned
        five += row.tuned in sizes
        regrets.append(shown[0].seconds / min(o.seconds for o in row.options) - 1)
    return Score(first, five, fmean(regrets))


def without(name: str) -> dict[str, Charges]:
    return {kind: replace(charges, **{name: 0.0}) for kind, charges in CHARGES.items()}


def left_out(rows: Sequence[Choice]) -> dict[str, tuple[Score, int]]:
    """The agreement of each model's rows with charges that the other models' rows alone would settle, and how many they are."""
    parts: dict[str, tuple[Score, int]] = {}
    for kind, charges in CHARGES.items():
        mine = [row for row in rows if row.kind == kind]
        used = [name for name in NAMES if getattr(charges, name)]
        tried = [
            replace(charges, **{name: getattr(charges, name) * step for name, step in zip(used, steps, strict=True)})
            for steps in product(STEPS, repeat=len(used))
        ]
        alone = {model: [row for row in mine if row.model == model] for model in {row.model for row in mine}}
        scored = [{model: score(its, {kind: one}) for model, its in alone.items()} for one in tried]
        for model, its in alone.items():
            best = max(scored, key=lambda by: sum(s.worth for m, s in by.items() if m != model))
            parts[model] = best[model], len(its)
    return parts


def together(parts: Iterable[tuple[Score, int]]) -> Score:
    """All models' rows as one."""
    known = list(parts)
    regret = sum(s.regret * n for s, n in known) / sum(n for _, n in known)
    return Score(sum(s.first for s, _ in known), sum(s.five for s, _ in known), regret)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two measured layouts of one model, machine, batch and release."""

    apart: float  # of their errors, as a share of the time
    shares: float  # by which their parts' shares of the time differ: the squares' sum
    weight: float  # of as many pairs as its group has layouts, so that large groups count once a layout


def pairs(measured: Sequence[Timed]) -> dict[tuple[str, str], list[Pair]]:
    """By kind and source."""
    groups: dict[tuple[str, str, str], list[tuple[str, float, tuple[float, ...]]]] = defaultdict(list)
    for one in measured:
        run = one.run
        if run.group:
            parts = breakdown(estimate_time(run.recipe, run.layout, run.rates)).values()
            seen = prospect(one.predicted_s, parts, 0.0)
            mine = (str(run.layout), seen.expected - log(one.measured_s), seen.shares)
            groups[kind_of(run.recipe), run.source, run.group].append(mine)
    found: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for (kind, source, _), group in groups.items():
        for (x, a, of_x), (y, b, of_y) in combinations(group, 2):
            if x != y:
                shares = sum((m - n) ** 2 for m, n in zip(of_x, of_y, strict=True))
                found[kind, source].append(Pair(abs(a - b), shares, 1 / len(group)))
    return dict(sorted(found.items()))


def own_and_part(mine: Sequence[Pair]) -> tuple[float, float] | None:
    """`OWN` and `PART` as least squares make them of these pairs; None where they are too few, or too alike, to say."""
    weight = sum(p.weight for p in mine)
    x, y = sum(p.weight * p.shares for p in mine) / weight, sum(p.weight * p.apart**2 for p in mine) / weight
    spread = sum(p.weight * (p.shares - x) ** 2 for p in mine)
    slope = sum(p.weight * (p.shares - x) * (p.apart**2 - y) for p in mine) / spread if spread else 0.0
    own = y - slope * x
    return (sqrt(own), sqrt(slope)) if len(mine) >= 10 and slope > 0 and own > 0 else None


def page(rows: Sequence[Choice], only: str) -> str:
    def line(words: str, charges: Mapping[str, Charges], turn: Turn = in_turn) -> str:
        return spoken(words, score(rows, charges, turn))

    def spoken(words: str, s: Score) -> str:
        return f"| {words} | {s.first / len(rows):.0%} | {s.five / len(rows):.0%} | {s.regret:.1%} |"

    def its(s: Score, count: int) -> str:
        return f"{s.first / count:.0%} | {s.five / count:.0%} | {s.regret:.1%}"

    apart = left_out(rows)
    measured = list(timed(row for table in sorted(TABLES.glob("*.jsonl")) for row in rows_of(table)))
    lines = [
        "# Near ties", "",
        "What decides between layouts that the model cannot tell apart, and how much it decides. Written by "
        "`python scripts/make/near_ties.py --markdown docs/near-ties.md`.", "",
        "## What the charges do", "",
        f"{len(rows)} feasible layouts that NVIDIA tuned, each planned blind (as in [Against NVIDIA's layouts](against-nvidia.md)) with other "
        "charges (`parlaunch/planning/preference.py`). *Behind*: how much slower our first choice is than the fastest layout, by our own "
        "estimate, on average.", "",
        "| charges | first choice | among five | behind |", "|---|---|---|---|",
        line("as they are", CHARGES),
        *(line(f"without `{name}`", without(name)) for name in NAMES),
        line("none: the fastest layout", {kind: NONE for kind in CHARGES}),
        line("as they are, and the alternatives in the order of time and charges alone", CHARGES, by_time),
        spoken("settled anew on the other models, for each model left out", together(apart.values())), "",
        "Each model left out, with the charges that the others settle, and with those that are shipped:", "",
        "| model | layouts | first choice | among five | behind | shipped: first choice | among five | behind |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {model} | {count} | {its(s, count)} | {its(score([r for r in rows if r.model == model], CHARGES), count)} |"
            for model, (s, count) in sorted(apart.items())
        ), "",
        "## How far apart layouts can be told", "",
        "Measured runs in groups of one model, machine, batch and release that differ in the layout alone: how far the errors of two of "
        f"them lie apart. Layouts whose times differ by less than {RESOLUTION['dense']:.0%} (dense) and {RESOLUTION['experts']:.0%} (experts) "
        f"are near ties; the choice itself is within {YIELDS['dense']:.0%} and {YIELDS['experts']:.0%} of the fastest.", "",
        "Errors are the further apart the more two layouts differ in what their time is made of. *Own* and *part*: what least squares make "
        "of (own)² + (part)² · Σ (difference of a part's share of the time)², the square of how far two errors are apart, where at least "
        f"ten pairs tell them. The alternatives are taken in their turn with {OWN:.1%} and {PART:.0%} (`parlaunch/planning/alternatives.py`).", "",
        "| kind | source | pairs | median | 68 % | 90 % | own | part |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (kind, source), mine in pairs(measured).items():
        shares = sorted(p.apart for p in mine)
        at = " | ".join(f"{shares[int(q * (len(shares) - 1))]:.1%}" for q in (0.5, 0.68, 0.9))
        fit = own_and_part(mine)
        said = f"{fit[0]:.1%} | {fit[1]:.0%}" if fit else "– | –"
        lines.append(f"| {kind} | {source} | {len(shares):,} | {at} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    text = page(choices(options.only), options.only)
    if options.markdown is None:
        print(text)
    else:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()

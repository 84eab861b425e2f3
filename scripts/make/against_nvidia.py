"""Hold blind plans against NVIDIA's hand: for each published layout, what we would have chosen on the same GPUs.

    python scripts/make/against_nvidia.py [--markdown docs/against-nvidia.md] [--only TEXT]

Layouts are those of the package's evidence, machines and switched-on features those of its catalog of recipes. Planning sees the model, the machine, the batch and the switched-on features; never the layout, and no
published measurement (evidence off).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from parlaunch.check.measured import Timed, timed
from parlaunch.cli.accuracy import rows_of
from parlaunch.data import load
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.hardware.cluster import Cluster, domains_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Defaults, Recipe
from parlaunch.planning.evidence import layout_of
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.planner import plan
from parlaunch.planning.search import Search
from parlaunch.rules import violations, why_not

TABLES = Path(__file__).parents[2] / "validation"


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    tuned: Candidate
    first: Candidate
    refused: str | None  # why we would refuse the tuned layout
    place: int | None  # of the tuned TP, PP, CP, EP among our first choice and alternatives, from 1
    seconds: float

    @property
    def same(self) -> bool:
        return self.place == 1

    @property
    def slower(self) -> float:
        """How much slower we think the tuned layout is than our first choice."""
        return self.tuned.estimate.iteration_time_s / self.first.estimate.iteration_time_s - 1


def published() -> list[Mapping[str, Any]]:
    """Every published layout with its recipe's machine and features, by name."""
    recipes = {row["name"]: row for row in load("recipes.json")["recipes"]}
    unsaid = {"vp": None, "cp": 1, "ep": 1, "etp": 1, "recompute": None}
    rows = (row for row in load("evidence.json")["rows"] if "tokens" not in row)
    joined = [
        {"features": {}, "violations": [], "feasible": True}
        | recipes[row["name"]]
        | row
        | {"layout": unsaid | row["layout"]}
        for row in rows
    ]
    return sorted(joined, key=lambda row: str(row["name"]))


def machine(hardware: str, gpus: int) -> Cluster:
    """So many GPUs of that machine; part of one node where they are fewer than it has."""
    one = preset(hardware, 1)
    per = one.gpus_per_node
    if gpus >= per:
        return preset(hardware, -(-gpus // per))
    nodes = tuple(replace(n, gpus=n.gpus[:gpus]) for n in one.nodes)
    return replace(one, nodes=nodes, nvlink_domains=domains_of(nodes))


def recipe_of(row: Mapping[str, Any]) -> Recipe:
    """What is trained, without the layout it came with."""
    return replace(catalog.recipe(row["name"]), defaults=Defaults())


def tuned_layout(row: Mapping[str, Any], recipe: Recipe) -> Layout:
    # An infeasible row is judged as written: layers that do not divide stay undivided.
    written = row["layout"] | {"equal": not row["feasible"]}
    return layout_of(
        written, gpus=row["gpus"], gbs=row["gbs"], a=recipe.architecture, fsdp=bool(row["features"].get("fsdp"))
    )


def key(layout: Layout) -> tuple[int, int, int, int]:
    return (layout.tp, layout.pp, layout.cp, layout.ep)


def compare(row: Mapping[str, Any], *, headroom: float = Wishes().headroom) -> Result:
    recipe, cluster = recipe_of(row), machine(row["hardware"], row["gpus"])
    rates = rates_of(cluster)
    wishes = Wishes(evidence=False, headroom=headroom)
    layout = tuned_layout(row, recipe)
    started = time.perf_counter()
    made = plan(cluster, recipe, wishes)
    took = time.perf_counter() - started
    tuned = Search(recipe, rates, wishes).candidate(layout)
    refused = next((f"{rule.id}: {sentence}" for rule, sentence in violations(layout, recipe, rates)), None)
    if refused is None and not tuned.memory.runs:
        needed = tuned.memory.peak - tuned.memory.slack
        refused = f"needs {needed / 2**30:.1f} GiB of {tuned.memory.capacity / 2**30:.1f}"
    ours = [key(made.layout), *(key(c.layout) for c in made.alternatives[:4])]
    place = ours.index(key(layout)) + 1 if key(layout) in ours else None
    return Result(row["name"], tuned, made.chosen, refused, place, took)


def refusals(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, bool, str]]:
    """Each infeasible row: whether it is refused with the rule that is known to be broken, and what we say."""
    for row in rows:
        recipe = recipe_of(row)
        rates: Rates = rates_of(machine(row["hardware"], row["gpus"]))
        found = violations(tuned_layout(row, recipe), recipe, rates)
        wanted = set(row.get("violations") or ())
        ids = {rule.id for rule, _ in found}
        yield row["name"], bool(found) and wanted <= ids, found[0][1] if found else "we would run it"


def agreement(results: list[Result]) -> tuple[int, int, int, int]:
    """Rows whose tuned layout fits, is among our first five, is our first, is more than 15 % slower than that."""
    return (
        sum(r.refused is None for r in results),
        sum(r.place is not None for r in results),
        sum(r.same for r in results),
        sum(r.slower > 0.15 for r in results),
    )


def table(results: list[Result], refused: list[tuple[str, bool, str]]) -> str:
    n, (fits, five, same, far) = len(results), agreement(results)
    worst = max(results, key=lambda r: r.slower)
    lines = [
        f"- {n} feasible rows; the tuned layout is legal and fits the GPU, by our estimate: {fits} ({fits / n:.0%})",
        f"- its TP, PP, CP and EP are among our first five: {five} ({five / n:.0%})",
        f"- our first choice has the same TP, PP, CP and EP: {same} ({same / n:.0%})",
        f"- we think the tuned layout is slower than our first choice by {sum(r.slower for r in results) / n:.1%} on average, "
        f"{worst.slower:.1%} at most ({worst.name}); more than 15 %: {far}",
        f"- {len(refused)} infeasible rows, refused with the right rule: {sum(ok for _, ok, _ in refused)}",
        f"- planning took {sum(r.seconds for r in results) / n:.2f} s a row, {max(r.seconds for r in results):.2f} s at most",
    ]
    return "\n".join(lines)


def frozen(rows: list[Mapping[str, Any]]) -> str:
    """The rows whose recipe freezes the language model, which the table of layouts does not say, planned once more with that."""
    found = [
        compare(row | {"features": row["features"] | {"frozen_language_model": True}})
        for row in rows
        if row["feasible"] and catalog.recipe(row["name"]).features.frozen_language_model
    ]
    if not found:
        return ""
    fits, five, same, far = agreement(found)
    return (
        f"- in {len(found)} of these rows (Qwen3-VL) Bridge's recipe freezes the language model, which the table of layouts does not "
        "say: above they are planned with a trained one, as written there. With a frozen one, as `parlaunch --recipe` plans them, "
        f"{fits} of them fit, {five} are among our first five, {same} are our first choice, {far} are more than 15 % slower"
    )


def with_a_speed() -> set[tuple[object, ...]]:
    """Model, task, machine, GPUs and precision of every speed that NVIDIA has published of Megatron Bridge."""
    runs = (json.loads(line) for line in (TABLES / "bridge.jsonl").read_text().splitlines())
    return {
        (
            run.get("model"), str(run.get("task")).removesuffix("_lora"),
            str(run.get("hardware")).removeprefix("dgx-").removesuffix("-nvl72"), run.get("gpus"), run.get("precision"),
        )
        for run in runs
    }  # fmt: skip


def parted(rows: list[Mapping[str, Any]], results: list[Result]) -> str:
    """The layouts of recipes whose speed NVIDIA has published, and those that nobody is known to have run, each by themselves."""
    known, of = with_a_speed(), {r.name: r for r in results}
    said: dict[bool, list[Result]] = {True: [], False: []}
    for row in rows:
        if row["name"] in of:
            key = (row["model"], row["task"], row["hardware"], row["gpus"], row["precision"])
            said[key in known].append(of[row["name"]])
    if not all(said.values()):
        return ""

    def figures(some: list[Result]) -> str:
        n, (_, five, same, _) = len(some), agreement(some)
        much = sum(r.slower > 0.3 for r in some)
        return (
            f"among our first five {five / n:.0%}, our first choice {same / n:.0%}, slower than it by {sum(r.slower for r in some) / n:.1%} "
            f"on average, more than 30 %: {much}"
        )

    return (
        f"- NVIDIA has published a speed of {len(said[True])} of them: {figures(said[True])}. Of the other {len(said[False])}, which need "
        f"not have been measured: {figures(said[False])}"
    )


def full(rows: list[Mapping[str, Any]]) -> str:
    """All rows once more with no memory left free, as benchmarks are tuned: the tuned layouts are held against all of it too."""
    found = [compare(row, headroom=0.0) for row in rows if row["feasible"]]
    n, (_, five, same, far) = len(found), agreement(found)
    return (
        f"- our plans leave {Wishes().headroom:.0%} of the memory free, many of the tuned layouts do not. With nothing left free "
        f"(`--headroom 0`) the tuned layout is among our first five in {five} rows ({five / n:.0%}) and our first choice in {same} "
        f"({same / n:.0%}); more than 15 % slower than it: {far}"
    )


def rows_table(results: list[Result]) -> str:
    head = "| recipe | NVIDIA's | ours | place | tuned vs. ours | note |\n|---|---|---|---|---|---|\n"
    body = (
        f"| {r.name} | {r.tuned.layout} | {r.first.layout} | {r.place or '–'} | {r.slower:+.1%} | {r.refused or ''} |"
        for r in results
    )
    return head + "\n".join(body)


class Held(NamedTuple):
    """A measured layout of NVIDIA's: the predicted time of our blind choice, and of theirs, over the measured one."""

    model: str
    machine: str
    precision: str
    choice: str
    layout: str
    runs: tuple[float, ...]  # the predicted time of our choice over that of each of its runs, the longest first
    ours: float  # over the median of its runs
    theirs: float
    filled: float  # share of the memory that theirs takes, by our estimate

    def line(self) -> str:
        headroom = 1 - Wishes().headroom
        why = ["its own time is estimated too long"] * (self.theirs > ABOVE)
        why += [f"it takes {self.filled:.1%} of the memory, more than the {headroom:.0%} of a plan"] * (
            self.filled > headroom
        )
        each = ", ".join(f"{ratio:.3f}" for ratio in self.runs)
        return (
            f"| {self.model} | {self.machine} | {self.precision} | {self.layout} | {self.choice} | {self.ours:.3f} | {each} "
            f"| {self.theirs:.3f} | {('; '.join(why) or 'preference') if self.ours > ABOVE else ''} |"
        )


ABOVE = 1.03
"""Predicted time of our choice over what was measured of NVIDIA's, from which on a row is listed."""


def chosen(measured: Iterable[Timed], only: str) -> list[Held]:
    """NVIDIA's measured layouts of today, and what we choose in their place. One that several releases ran, with what its newest has on,
    counts with the median of its runs."""
    runs: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    for one in measured:
        row, run = one.row, one.run
        tuned = run.source.startswith("megatron-bridge") and row.get("current") and "hardware" in row
        if tuned and only in str(row.get("model")) and not why_not(run.layout, run.recipe, run.rates):
            runs[row["group"], str(run.layout)].append(one)
    found = []
    for its in runs.values():
        newest = max(its, key=lambda one: str(one.row["framework"]))
        row, run = newest.row, newest.run
        try:
            made = plan(machine(row["hardware"], row["gpus"]), run.recipe, Wishes(evidence=False), rates=run.rates)
        except ParlaunchError:
            continue
        memory = estimate_memory(run.recipe, run.layout, run.rates)
        seconds, took = made.chosen.estimate.iteration_time_s, median(one.measured_s for one in its)
        found.append(
            Held(
                str(row["model"]), run.machine, run.recipe.precision, str(made.layout), str(run.layout),
                tuple(sorted((seconds / one.measured_s for one in its), reverse=True)), seconds / took, newest.predicted_s / took,
                memory.peak / memory.capacity,
            )
        )  # fmt: skip
    return sorted(found, key=lambda held: -held.ours)


def beside_measured(only: str) -> str:
    """Our choice beside every layout of NVIDIA's with a measurement."""
    held = chosen(timed(row for table in sorted(TABLES.glob("*.jsonl")) for row in rows_of(table)), only)
    if not held:
        return ""
    ratios, singly = [h.ours for h in held], [ratio for h in held for ratio in h.runs]
    return "\n".join(
        [
            "## Our choice beside what was measured", "",
            f"{len(held)} layouts that NVIDIA measured with a current Megatron Bridge, each planned blind on the same GPUs and batch: the "
            f"predicted time of our choice over the measured time of theirs is {fmean(ratios):.3f} on average, {median(ratios):.3f} in the "
            f"median and {ratios[0]:.3f} at most; above {ABOVE} in {sum(ratio > ABOVE for ratio in ratios)}. One that several releases ran "
            f"counts with the median of its runs, which are up to {max(max(h.runs) / min(h.runs) for h in held) - 1:.0%} apart; of all "
            f"{len(singly)} runs by themselves {sum(ratio > ABOVE for ratio in singly)} are above, {max(singly):.3f} at most. The predicted time "
            f"of their own layout over its measured one is {fmean(h.theirs for h in held):.3f} on average: the part of the first figure that "
            "is error of the estimate, not choice of the layout.",
            "", "| model | machine | precision | NVIDIA's | ours | ours over measured | by run | theirs over measured | where above |",
            "|---|---|---|---|---|---|---|---|---|", *(h.line() for h in held),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    rows = [r for r in published() if options.only in r["name"]]
    results, failed = [], []
    for row in rows:
        if not row["feasible"]:
            continue
        try:
            results.append(compare(row))
        except ParlaunchError as error:
            failed.append(f"{row['name']}: {error.problem}")
    refused = list(refusals([r for r in rows if not r["feasible"]]))
    text = table(results, refused)
    wrong = [f"- {name}: {said}" for name, ok, said in refused if not ok]
    if said := parted(rows, results):
        text += f"\n{said}"
    if results and not failed:
        text += f"\n{full(rows)}"
    if said := frozen(rows):
        text += f"\n{said}"
    if failed:
        text += f"\n- not planned at all: {len(failed)}\n" + "\n".join(f"  - {f}" for f in failed)
    if wrong:
        text += "\n\nInfeasible, and not refused for the known reason:\n\n" + "\n".join(wrong)
    print(text)
    if options.markdown is None:
        print(rows_table(results))
    else:
        options.markdown.write_text(
            "# Against NVIDIA's hand\n\nBlind plans (`--no-evidence`) beside the layouts that NVIDIA tuned for its benchmarks, on the same "
            "GPUs, count and batch. Written by `python scripts/make/against_nvidia.py --markdown docs/against-nvidia.md`. What decides "
            "near ties (`parlaunch/planning/preference.py`) was settled with these rows in view: the agreement is no blind test of that.\n\n"
            f"{text}\n\n{beside_measured(options.only)}\n\n## Row by row\n\n{rows_table(results)}\n"
        )


if __name__ == "__main__":
    main()

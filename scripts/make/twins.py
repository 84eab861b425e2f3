"""Hold the switches we would choose against those NVIDIA tuned: each benchmark recipe, planned from its plain library twin.

    python scripts/make/twins.py [--markdown docs/twins.md] [--only TEXT] [--own TEXT]

The twin is the library recipe of the same model: it is given the benchmark's machine, number of GPUs, batch, sequence, precision and
layout, and planned with `--switches auto`. It knows nothing of the benchmark's switches; where the name has `--own` in it, it is planned
once more without the layout. One cell is one switch of one recipe, where it means anything in that layout. Why a cell differs is what
`--why-not NAME=VALUE` says of NVIDIA's value in our plan.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from against_nvidia import machine, published, recipe_of, tuned_layout

from parlaunch.data import load
from parlaunch.environment.user_overrides import with_precision
from parlaunch.errors import ParlaunchError
from parlaunch.hardware.installed import newest
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.planning.planner import plan, why_not_switched
from parlaunch.rules.switches import legal_features
from parlaunch.switches.switch import Place
from parlaunch.switches.table import problem, switch
from parlaunch.switches.wanted import Wanted

AUTO = Wanted(auto=True)
CELLS = (
    "dispatcher",
    "ep_overlap",
    "graphs",
    "tp_overlap",
    "fp8_gather",
    "fsdp",
    "nccl_ub",
    "optimizer_offload",
    "offload",
)
"""The switches compared, by their row in the table of switches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One switch of one benchmark recipe."""

    recipe: str
    name: str
    tuned: str
    written: str  # by the library's recipe
    ours: str
    why: str = ""

    @property
    def same(self) -> bool:
        return self.tuned == self.ours

    @property
    def left(self) -> bool:
        """The library's recipe has it so already."""
        return self.tuned == self.written

    @property
    def plain(self) -> bool:
        """Nobody turns it on."""
        return self.tuned == self.ours == self.written and self.tuned in ("off", "0", "alltoall")


def twin_of(row: Mapping[str, Any]) -> Recipe | None:
    """The library recipe of the benchmark's model, as near as one is in sequence, precision and machine; None: there is none."""
    found = [
        other
        for other in load("recipes.json")["recipes"]
        if other["kind"] == "library"
        and (other["model"], other["task"]) == (row["model"], row["task"])
        and other.get("feasible", True)
        and not any(word in other["name"] for word in ("deterministic", "fsdp", "functional"))
    ]
    if not found:
        return None
    nearest = min(
        found,
        key=lambda other: (
            other["seq"] != row["seq"], other["precision"] != row["precision"], other.get("hardware") != row["hardware"],
            other["name"],
        ),
    )  # fmt: skip
    twin = with_precision(catalog.recipe(nearest["name"]), row["precision"])
    return replace(twin, seq_length=row["seq"], global_batch_size=row["gbs"])


def shape_of(name: str, value: str) -> str:
    """The value as it is compared: of graphs, whether modules or the whole iteration are captured."""
    return value if name != "graphs" or value in ("off", "full") else "modules"


def applies(name: str, recipe: Recipe, layout: Layout) -> bool:
    """Whether the switch means anything for such a model, format and layout."""
    if name in ("dispatcher", "ep_overlap"):
        return bool(recipe.architecture.num_moe_experts) and layout.ep > 1
    if name == "tp_overlap":
        return layout.tp > 1
    return name != "fp8_gather" or recipe.precision.startswith("fp8")


def cells(row: Mapping[str, Any], *, pinned: bool) -> Iterator[Cell]:
    """Every switch of one benchmark recipe. Raises `ParlaunchError` where nothing fits."""
    twin = twin_of(row)
    if twin is None:
        return
    tuned = recipe_of(row)
    wishes = Wishes(switches=AUTO, evidence=False)
    if pinned:
        x = tuned_layout(row, tuned)
        wishes = replace(
            wishes,
            tp=x.tp,
            pp=x.pp,
            vp=x.vp,
            cp=x.cp,
            ep=x.ep,
            etp=x.etp,
            micro_batch_size=x.micro_batch_size,
            fsdp=x.fsdp,
        )
    cluster = machine(row["hardware"], row["gpus"])
    made = plan(cluster, twin, wishes)
    ours = {s.name for s in made.switches}
    place = Place(rates=made.rates, installed=newest())
    if broken := problem(made.layout, made.configured, place, given=made.recipe, ours=ours):
        raise AssertionError(f"{row['name']}: {made.layout}: {broken}")
    x = tuned_layout(row, tuned)
    theirs, plain = (legal_features(r, x, cluster) for r in (tuned, twin))
    plain = replace(plain, fsdp=twin.features.fsdp)
    for name in CELLS:
        if applies(name, tuned, x):
            yield cell(name, row["name"], theirs, plain, made)


def ours_at(made: Plan) -> Features:
    """What will be on in our layout: Bridge leaves out what a layout forbids, TP's overlap without TP say."""
    return legal_features(made.configured, made.layout, made.cluster)


def cell(name: str, recipe: str, tuned: Features, library: Features, made: Plan) -> Cell:
    known = switch(name)
    read = known.read if known else lambda f: "on" if f.fsdp else "off"
    theirs, plain, ours = (read(f) or "off" for f in (tuned, library, ours_at(made)))
    why = ""
    if shape_of(name, theirs) != shape_of(name, ours):
        why = (
            why_not_switched(made, name, theirs, Wishes())
            if known
            else "parlaunch shards as the recipe or --fsdp has it"
        )
    return Cell(
        recipe=recipe, name=name, tuned=shape_of(name, theirs), written=shape_of(name, plain), ours=shape_of(name, ours), why=why
    )  # fmt: skip


def summary(found: Sequence[Cell], rows: int) -> str:
    """Agreement of all cells and by switch; beside it, how often the library recipe as written agrees."""
    lines = [
        f"{rows} benchmark recipes with a library twin, {len(found)} cells: {share(found, lambda c: c.same)} as NVIDIA has them "
        f"(the library recipes as written: {share(found, lambda c: c.left)}). "
        f"Where anybody turns something on, {share([c for c in found if not c.plain], lambda c: c.same)} "
        f"(as written: {share([c for c in found if not c.plain], lambda c: c.left)}).",
        "", "| switch | cells | same | library as written | differences, NVIDIA's → ours |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in CELLS:
        mine = [c for c in found if c.name == name]
        other = Counter(f"{c.tuned} → {c.ours}" for c in mine if not c.same)
        said = ", ".join(f"{what} {n}" for what, n in other.most_common())
        lines.append(
            f"| {name} | {len(mine)} | {share(mine, lambda c: c.same)} | {share(mine, lambda c: c.left)} | {said} |"
        )
    return "\n".join(lines)


def page(pinned: Sequence[Cell], rows: int, own: Sequence[Cell], own_rows: int, which: str) -> str:
    """The whole page."""
    lines = [
        "# Against NVIDIA's switches", "",
        "NVIDIA tuned the switches of its benchmark recipes by hand. Here each that has a library twin is planned from that plain recipe of the",
        "same model, on the benchmark's machine, batch, sequence, precision and layout, knowing none of its switches. One cell is one switch of",
        "one recipe whose layout it means anything for. Written by `python scripts/make/twins.py --markdown docs/twins.md`.",
        "", summary(pinned, rows), "",
        "No plan turned on what its GPU, network or software cannot run: the script stops where one does. `tp_overlap`, `fsdp`, `nccl_ub`,",
        "`fp8_gather` and both offloads are never chosen: they are as the library recipe has them, where the layout and format allow it.", "",
        "Where we differ, and mean to:", "",
        *(f"- {text}" for text in MEANT), "",
        "## With a layout of our own", "",
        f"Those whose names contain `{which}`, planned without NVIDIA's layout: a switch may differ because its layout does.", "",
        summary(own, own_rows), "",
        "## Every difference", "",
        "In NVIDIA's layout. The reason is what `--why-not NAME=VALUE` says of NVIDIA's value in our plan.", "",
        "| recipe | switch | NVIDIA's | ours | why |", "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {c.recipe} | {c.name} | {c.tuned} | {c.ours} | {c.why} |" for c in pinned if not c.same]
    return "\n".join(lines) + "\n"


MEANT = (
    "Graphs of whole iterations (`graphs` full) are never ours to choose: with experts they drop tokens beyond a budget, without them "
    "they end the check for NaN in the loss. On dense models the host is far from being the limit, and we predict no gain at all.",
    "Packs of samples and of images differ in length: graphs over them are captured for padded mock data, and only the user knows theirs.",
    "A gain below its margin is not taken, so that the recipe's own value stays: HybridEP in place of DeepEP inside a node of B200 or "
    "B300 is predicted up to 5 % faster, graphs of router and preprocessing up to 7 %.",
    "The expert overlap has to gain 15 % where experts stay inside an NVLink domain, 10 % elsewhere: of runs with it and without, "
    "Qwen3-235B on GB200 and GB300 was predicted 10 and 15 % faster with it and was 3 and 6 % faster, and on B300 half as fast.",
)
"""Reasons behind most of the differences; each is one decision, whatever the recipe."""


def share(found: Sequence[Cell], of: Any) -> str:
    return f"{sum(map(of, found)) / max(len(found), 1):.0%}"


def gather(only: str, *, pinned: bool) -> tuple[list[Cell], int]:
    """Cells of the benchmark recipes with that text in their name, and how many of these have a twin."""
    found: list[Cell] = []
    rows = 0
    for row in published():
        if not row["feasible"] or row["kind"] != "benchmark" or only not in row["name"]:
            continue
        try:
            mine = list(cells(row, pinned=pinned))
        except ParlaunchError as error:
            print(f"{row['name']}: {error}")
            continue
        rows += bool(mine)
        found += mine
        for c in mine:
            if not c.same:
                print(f"{c.recipe}: {c.name} {c.tuned} → {c.ours} (library {c.written}): {c.why}", flush=True)
    print(summary(found, rows))
    return found, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--own", default="64gpu_gb200")
    args = parser.parse_args()
    pinned, rows = gather(args.only, pinned=True)
    own, own_rows = gather(args.own, pinned=False) if args.own else ([], 0)
    if args.markdown:
        args.markdown.write_text(page(pinned, rows, own, own_rows, args.own), encoding="utf-8")


if __name__ == "__main__":
    main()

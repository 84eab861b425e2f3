"""The page on switches: what parlaunch turns on, what it never touches, and how its predictions hold against measured pairs.

    python scripts/make/switches.py PAIRS.json [--markdown docs/switches.md]

PAIRS.json: `{"pairs": [...]}`, rows as `parlaunch validate` reads them, with `off` and `on`: what differs between the two runs (features,
recompute, vp, measured time), `switch` in words and `ratio_time`, the time off over the time on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from parlaunch.check.measured import Machines, Run, run_of
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.silicon import ACROSS, SOCKET_LINK
from parlaunch.hardware.installed import newest
from parlaunch.planning.space import inside
from parlaunch.planning.switching import Chooser
from parlaunch.switches.never import NEVER
from parlaunch.switches.table import SWITCHES, problem
from parlaunch.switches.wanted import Wanted

BINDS = "binding"
"""The word for ranks that are bound to CPUs, in a pair's `switch`: no feature of a run says it."""
SMALL = 0.01
"""A measured change below this share is no direction."""


@dataclass(frozen=True, slots=True)
class Score:
    """One measured pair, predicted. Ratios are time off over time on."""

    name: str
    what: str
    measured: float
    predicted: float
    taken: bool  # by our choice, from the run without it
    margin: float  # what such a prediction may be wrong by
    alike: bool  # the estimates do not know the switch: both runs are one for them

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)

    @property
    def other_way(self) -> bool:
        """The sign of the predicted change is not the measured one's; no change predicted is no sign."""
        return abs(self.measured - 1) > SMALL and (self.measured - 1) * (self.predicted - 1) <= 0

    @property
    def claimed(self) -> bool:
        """A change larger than its own error is predicted: what a choice is made by."""
        return abs(self.predicted - 1) > self.margin

    @property
    def wrong_way(self) -> bool:
        return self.claimed and self.other_way

    @property
    def harm(self) -> float:
        """How much slower the run is by our choice."""
        return max(0.0, 1 / self.measured - 1) if self.taken else 0.0


def scores(pairs: list[Mapping[str, Any]]) -> Iterator[Score]:
    """Every pair that was timed and that a run can be made of."""
    machines = Machines()
    for pair in pairs:
        if pair.get("ratio_time") is None:
            continue
        bare = {k: v for k, v in pair.items() if k not in ("off", "on")}
        try:
            off, on = (run_of({**bare, **pair[side]}, machines) for side in ("off", "on"))
            if binding := BINDS in pair["switch"]:
                off = replace(off, rates=replace(off.rates, roaming="as it was measured"))
            times = [estimate_time(r.recipe, r.layout, r.rates).iteration_time_s for r in (off, on)]
        except ParlaunchError:
            continue
        changed = [row for row in SWITCHES if row.read(off.recipe.features) != row.read(on.recipe.features)]
        yield Score(
            pair["id"], pair["switch"], pair["ratio_time"], times[0] / times[1], binding or _taken(off, on),
            margin=max([SMALL, *(row.margin(row.read(on.recipe.features) or "", near=_near(off)) for row in changed)]),
            alike=not changed and off.layout == on.layout and not binding,
        )  # fmt: skip


def _near(run: Run) -> bool:
    """Experts stay inside an NVLink domain."""
    return inside(run.layout.ep * run.layout.etp, run.rates, run.layout.world)


def _taken(off: Run, on: Run) -> bool:
    """Whether the planner would turn on what the second run has, in the first one's layout."""
    if off.layout != on.layout or off.recipe.features == on.recipe.features:
        return False
    recipe = replace(off.recipe, features=on.recipe.features)
    chooser = Chooser(off.recipe, off.rates, newest(), Wanted(auto=True))
    offered = {row.name for row in chooser.open}
    changed = {row.name for row in SWITCHES if row.read(off.recipe.features) != row.read(recipe.features)}
    if not changed or not changed <= offered or problem(off.layout, recipe, chooser.place) is not None:
        return False
    before, after = (estimate_time(r, off.layout, off.rates).iteration_time_s for r in (off.recipe, recipe))
    return before > after * (1 + chooser.margin(recipe.features, off.layout))


def page(found: list[Score]) -> str:
    """The whole page."""
    lines = [
        "# What parlaunch turns on, and why it is safe", "",
        "A launch chooses performance switches with the layout (`--switches auto`). For whoever answers for the run:", "",
        "- Only what keeps the mathematics is chosen. A test holds every plan's keys against the list of what is never touched.",
        "- A value other than the recipe's has to be predicted faster by more than its margin: what such predictions are wrong by,",
        "  and what may go wrong beside. Near ties keep the recipe's own values.",
        "- What is not installed, what the GPU or the network cannot do, and what Megatron forbids together is not chosen; `--why-not",
        "  graphs=full` says the reason. `--switches recipe` leaves all as the recipe has them; a KEY=VALUE of yours is a pin.",
        "- Nobody promises two runs that are equal bit by bit: default kernels use atomics. A recipe for reproducible runs keeps all its",
        "  switches.", "",
        "## The switches", "",
        "Chosen with the layout:", "", "| switch | what | numbers | margin | source |", "|---|---|---|---|---|",
    ]  # fmt: skip
    ours = [s for s in SWITCHES if s.chosen]
    for s in ours:
        margin = ", ".join(f"{share:.0%}{f' for {value}' if value else ''}" for value, share in s.error.items())
        margin += f", {s.error_near:.0%} inside an NVLink domain" if s.error_near else ""
        lines.append(f"| `{s.name}` | {s.what} | {s.numerics} | {margin} | {s.source} |")
    lines += [
        "",
        "Bound: every rank to the CPUs beside its GPU, wherever a node has more than one NUMA node (`numa` among a plan's switches where it",
        "saves half a per cent; `--no-numa` leaves it). No arithmetic runs there: it is where the host's threads run. A rank that roams may stand",
        f"across the socket link, where issuing a kernel takes {ACROSS:g} times as long, and its memory is shared with the other half of the GPUs",
        f"at {SOCKET_LINK / 1e9:.0f} GB/s: where launches are in the way that is 5 to 12 %, with large dense products nothing. `scripts/performance` of Megatron",
        "Bridge starts benchmarks under numactl; its `scripts/training`, for the library's recipes, binds nothing: the recipe as written roams.",
        "",
        "Set when asked for, `--switches NAME=VALUE`, never chosen:",
        "",
        "| switch | what | numbers | source |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{s.name}` | {s.what} | {s.numerics} | {s.source} |" for s in SWITCHES if s not in ours]
    told = [f"`{s.name}={v}`" for s in SWITCHES for v in s.values if v not in ("off", "0") and s.on_cpu(v)]
    lines += [
        "",
        "With `--device cpu` nothing is on of itself. What gloo ranks can be told reaches their training, Bridge's or Megatron Core's,",
        f"which prints what it has: {', '.join(told)}, and `off`. What needs CUDA is refused.",
        "",
        "## Never touched",
        "",
        "As the recipe or you have it, whatever the machine:",
        "",
        "| what | why | source |",
        "|---|---|---|",
    ]
    lines += [f"| {n.what} | {n.why} | {n.source} |" for n in NEVER]
    lines += ["", "## Measured pairs", "", _summary(found), "",
              "| pair | switch | measured | predicted | our choice |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {s.name} | {s.what} | {s.measured:.2f} | {s.predicted:.2f} | {'on' if s.taken else 'as it was'} |"
        for s in found
    ]
    lines += [
        "",
        "How often our choice is NVIDIA's own: [against NVIDIA's switches](twins.md).",
        "",
        "Ratios are the time without over the time with it. Made by `python scripts/make/switches.py PAIRS.json --markdown docs/switches.md`.",
    ]
    return "\n".join(lines) + "\n"


def _summary(found: list[Score]) -> str:
    nothing = mean(abs(1 / s.measured - 1) for s in found)
    claims = [s for s in found if s.claimed]
    return (
        f"Of {len(found)} pairs of one run without and with a switch: the predicted ratio is {mean(s.error for s in found):.0%} wrong on "
        f"average (saying that nothing changes: {nothing:.0%}). A change beyond its margin is predicted for {len(claims)}, and goes the other way "
        f"in {sum(s.wrong_way for s in claims)}; of the {len(found) - len(claims)} others, {sum(s.alike for s in found)} are of settings "
        f"that the estimates do not know. By sign alone, however small, {sum(s.other_way for s in found)} of all are the other way; "
        f"our choice turns on {sum(s.taken for s in found)}, of which the worst makes its run {max(s.harm for s in found):.0%} slower."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    found = list(scores(json.loads(args.pairs.read_text(encoding="utf-8"))["pairs"]))
    print(_summary(found))
    if args.markdown:
        args.markdown.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()

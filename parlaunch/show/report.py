"""`--report FILE.html`: one self-contained page about a plan. The page itself is `data/report.html`; this fills in its data."""

from __future__ import annotations

import json
from typing import Any

from parlaunch.data import text
from parlaunch.estimate.memory import stage_memories
from parlaunch.estimate.timing import stage_times
from parlaunch.estimate.timing.schedule import timeline
from parlaunch.estimate.values import MEMORY_PARTS, TIME_PARTS, components
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.planning.plan import Plan, Wishes, plan_to_json
from parlaunch.planning.planner import frontier
from parlaunch.show.formats import Page
from parlaunch.show.scripts import exports, quoted
from parlaunch.show.words import layout_words, training_words
from parlaunch.units import percent, seconds
from parlaunch.version import __version__

SLOTS = 6000
"""Operations of the Gantt chart at most: more are neither seen nor quick to draw."""


def render(plan: Plan, _page: Page | None = None) -> str:
    """The page, with every layout that the planner may choose."""
    return report(plan)


def report(plan: Plan) -> str:
    """The page as text, with everything in it: no network, no other file."""
    page = text("report.html")
    # A "<" inside the script element could end it early, or open another.
    data = json.dumps(_data(plan), separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="data">{}<', f'id="data">{data}<', 1)


def _data(plan: Plan) -> dict[str, Any]:
    rates = plan.rates
    slots, words = _schedule(plan, rates)
    shown = (plan.chosen, *plan.alternatives)
    # The frontier samples the space; what the search chose and what came close may lie between its points.
    ranked = {c.layout: c for c in (*frontier(plan.configured, rates, Wishes(), limit=1000), *shown)}.values()
    return {
        "plan": _slim(plan_to_json(plan, version=__version__)),
        "layout_words": layout_words(plan.layout, split=plan.sequence_parallel),
        "training_words": list(training_words(plan.training)) if plan.training else [],
        "recompute_words": str(plan.layout.recompute),
        "labels": [c.layout.sizes for c in shown],
        "recomputes": [str(c.layout.recompute) for c in shown],
        "stages": [components(m) for m in stage_memories(plan.configured, plan.layout, rates)],
        "parts": {
            "memory": [part.name for part in MEMORY_PARTS],
            "time": {part.name: part.word for part in TIME_PARTS},
        },
        "schedule": slots,
        "schedule_words": words,
        "frontier": [[c.memory.peak, c.estimate.iteration_time_s, str(c.layout)] for c in ranked],
        "domain": max(plan.cluster.nvlink_domain_size, plan.cluster.gpus_per_node),
        "command": quoted(plan.argv),
        "exports": "\n".join(exports(plan.environment)),
    }


def _slim(data: dict[str, Any]) -> dict[str, Any]:
    """The plan's JSON with no more about each node than the page shows."""
    hardware = data["hardware"]
    hardware["nodes"] = [
        {"hostname": n["hostname"], "gpus": [{"name": g["name"]} for g in n["gpus"][:1]], "nics": [{"rail": x["rail"]} for x in n["nics"]]}
        for n in hardware["nodes"]
    ]  # fmt: skip
    data["rejected"], data["argv"] = [], []
    data["evidence"] = [row for row in data["evidence"] if isinstance(row, dict)]
    return data


def _schedule(plan: Plan, rates: Rates) -> tuple[list[list[Any]], str]:
    """The pipeline's operations as [stage, start, end, F or B, micro batch, chunk], and a sentence about them."""
    layout = plan.layout
    if layout.pp == 1:
        return [], ""
    times = stage_times(plan.configured, layout, rates)
    shown = _shown(layout)
    slots = timeline([t[0] for t in times], [t[1] for t in times], pp=layout.pp, vp=layout.vp or 1, microbatches=shown)
    end = max(slot.end for slot in slots)
    busy = [sum(s.end - s.start for s in slots if s.rank == stage) for stage in range(layout.pp)]
    bubble, whole = end - max(busy), plan.chosen.estimate.iteration_time_s
    part = "all" if shown == layout.num_microbatches else f"the first {shown}"
    words = (
        f"{part.capitalize()} of {layout.num_microbatches} micro batches, without what is sent between stages. The busiest stage "
        f"stands idle for {seconds(bubble)}, {percent(bubble / whole)} of the iteration: the bubble."
    )
    if (spread := max(busy) - min(busy)) > 0.01 * end:
        words += f" Others have less to do, by up to {percent(spread / end)} of the picture."
    return [
        [s.rank, s.start, s.end, "F" if s.operation.forward else "B", s.operation.microbatch, s.operation.chunk]
        for s in slots
    ], words


def _shown(layout: Layout) -> int:
    """Micro batches that fit into the chart; with interleaving a multiple of PP, as the schedule wants it."""
    most = max(layout.pp, SLOTS // (2 * layout.pp * (layout.vp or 1)))
    shown = min(layout.num_microbatches, most)
    return shown // layout.pp * layout.pp if layout.vp and shown > layout.pp else shown

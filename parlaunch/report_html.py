"""`--report FILE.html`: one self-contained page about a plan. The page itself is `data/report.html`; this fills in its data."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from parlaunch import __version__
from parlaunch.layout import Layout
from parlaunch.memory import stage_memories
from parlaunch.plan import Plan, Wishes, plan_to_json
from parlaunch.planner import frontier
from parlaunch.rates import Rates, rates_of
from parlaunch.scripts import quoted
from parlaunch.timing import stage_times
from parlaunch.timing.schedule import timeline
from parlaunch.words import candidate_words, layout_words

MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")
SLOTS = 6000
"""Operations of the Gantt chart at most: more are neither seen nor quick to draw."""


def report(plan: Plan, wishes: Wishes | None = None) -> str:
    """The page as text, with everything in it: no network, no other file."""
    rates = rates_of(plan.cluster)
    page = files("parlaunch").joinpath("data", "report.html").read_text(encoding="utf-8")
    # A "<" inside the script element could end it early, or open another.
    data = json.dumps(_data(plan, rates, wishes or Wishes(top=0)), separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="data">{}<', f'id="data">{data}<', 1)


def _data(plan: Plan, rates: Rates, wishes: Wishes) -> dict[str, Any]:
    slots, words = _schedule(plan, rates)
    return {
        "plan": _slim(plan_to_json(plan, version=__version__)),
        "layout_words": layout_words(plan.layout),
        "recompute_words": str(plan.layout.recompute),
        "labels": [candidate_words(c) for c in (plan.chosen, *plan.alternatives)],
        "stages": [
            {name: getattr(m, name) for name in MEMORY} for m in stage_memories(plan.recipe, plan.layout, rates)
        ],
        "schedule": slots,
        "schedule_words": words,
        "frontier": [
            [c.memory.peak, c.estimate.iteration_time_s, candidate_words(c)]
            for c in frontier(plan.cluster, plan.recipe, wishes, limit=1000)
        ],
        "domain": max(plan.cluster.nvlink_domain_size, plan.cluster.gpus_per_node),
        "command": quoted(plan.argv),
    }


def _slim(data: dict[str, Any]) -> dict[str, Any]:
    """The plan's JSON with no more about each node than the page shows."""
    hardware = data["hardware"]
    hardware["nodes"] = [
        {"hostname": n["hostname"], "gpus": [{"name": g["name"]} for g in n["gpus"][:1]], "nics": [{"rail": x["rail"]} for x in n["nics"]]}
        for n in hardware["nodes"]
    ]  # fmt: skip
    data["rejected"], data["argv"], data["overrides"] = [], [], []
    data["evidence"] = [row for row in data["evidence"] if isinstance(row, dict)]
    return data


def _schedule(plan: Plan, rates: Rates) -> tuple[list[list[Any]], str]:
    """The pipeline's operations as [stage, start, end, F or B, micro batch, chunk], and a sentence about them."""
    layout = plan.layout
    if layout.pp == 1:
        return [], ""
    times = stage_times(plan.recipe, layout, rates)
    shown = _shown(layout)
    slots = timeline([t[0] for t in times], [t[1] for t in times], pp=layout.pp, vp=layout.vp or 1, microbatches=shown)
    busy = sum(end - start for _, start, end, _ in slots)
    idle = 1 - busy / (layout.pp * max(end for _, _, end, _ in slots))
    whole = plan.chosen.estimate.breakdown
    share = whole.pp_bubble_s / whole.total
    part = "all" if shown == layout.num_microbatches else f"the first {shown}"
    words = (
        f"Forward blue, backward green, darker with the chunk; {part} of {layout.num_microbatches} micro batches. "
        f"Idle in this picture: {idle:.0%}; bubble of the whole iteration: {share:.1%}."
    )
    return [[r, start, end, "F" if op[0] else "B", op[1], op[2]] for r, start, end, op in slots], words


def _shown(layout: Layout) -> int:
    """Micro batches that fit into the chart; with interleaving a multiple of PP, as the schedule wants it."""
    most = max(layout.pp, SLOTS // (2 * layout.pp * (layout.vp or 1)))
    shown = min(layout.num_microbatches, most)
    return shown // layout.pp * layout.pp if layout.vp and shown > layout.pp else shown

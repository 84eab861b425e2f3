"""A plan as a shell command that can be pasted."""

from __future__ import annotations

from parlaunch.hardware.cpu import device_of
from parlaunch.planning.plan import Plan
from parlaunch.show.formats import Page
from parlaunch.show.scripts import comments, exports, quoted
from parlaunch.show.words import layout_words


def render(plan: Plan, _page: Page | None = None) -> str:
    """Environment and command; pasted into a shell on every node it starts the job."""
    nodes = len(plan.cluster.nodes)
    where = "run this on every node, with NODE_RANK and MASTER_ADDR set" if nodes > 1 else "run this"
    gpu = "CPU ranks" if device_of(plan.cluster) == "cpu" else plan.cluster.gpu.name
    head = comments(f"{plan.recipe.name} on {plan.cluster.world_size} × {gpu} ({plan.cluster.source}); {where}")
    why = [
        line
        for sentence in (layout_words(plan.layout, split=plan.sequence_parallel), *plan.because)
        for line in comments(sentence)
    ]
    return "\n".join([*head, *why, "", *exports(plan.environment), "", quoted(plan.argv)]) + "\n"

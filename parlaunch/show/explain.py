"""What `--explain` adds to a plan: who sits where, what travels over which links, why each override is there."""

from __future__ import annotations

from collections.abc import Iterator

from parlaunch.hardware.cpu import device_of
from parlaunch.model.layout import Layout
from parlaunch.planning.plan import Plan

DIMENSIONS = ("tp", "cp", "ep", "dp", "pp", "edp")


def explain(plan: Plan) -> str:
    """Several paragraphs of plain text."""
    from parlaunch.environment.overrides import overrides
    from parlaunch.estimate.traffic import as_text, traffic

    cluster, layout = plan.cluster, plan.layout
    lines = ["", "Who sits where (the first group of each kind; ranks count GPUs in node order)"]
    lines += [f"  {line}" for line in _groups(plan, layout)]
    if len(cluster.nodes) > 1 and layout.world == cluster.world_size:
        lines += ["", *as_text(traffic(cluster, plan.configured, layout)).splitlines()]
    lines += ["", "Overrides, by what they are for"]
    made = overrides(plan.recipe, layout, device=device_of(cluster), cluster=cluster, switches=plan.switches)
    reasons = {o.key: o.reason for o in made}
    told: dict[str, list[str]] = {}
    for override in plan.overrides:
        key = override.partition("=")[0]
        told.setdefault(reasons.get(key, "yours, or the runner needs it"), []).append(override)
    for reason, its in told.items():
        lines += [f"  {reason}", *(f"    {override}" for override in its)]
    return "\n".join(lines)


def _groups(plan: Plan, layout: Layout) -> Iterator[str]:
    from parlaunch.hardware.placement import groups

    per = plan.cluster.gpus_per_node
    for name in DIMENSIONS:
        size = getattr(layout, name)
        if size < 2 or (name == "edp" and layout.ep < 2):
            continue
        first = groups(layout, name)[0]
        nodes = len({rank // per for rank in first})
        words = ", ".join(map(str, first[:8])) + (", …" if len(first) > 8 else "")
        yield f"{name.upper():<4} {size:>4}: ranks {words} on {nodes} node{'s' if nodes > 1 else ''}"

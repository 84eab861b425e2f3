"""What changed between two plans: layout, switches, memory, time, environment, overrides. Equal values are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.estimate.values import breakdown, components
from parlaunch.model.layout import Layout, layout_to_json
from parlaunch.planning.plan import Candidate, Plan, Variable
from parlaunch.units import gib, seconds


def difference(old: Plan, new: Plan) -> list[dict[str, Any]]:
    """One row a change: part, name, before, after (JSON values; None: not there). Part by part, in a fixed order."""
    rows = list(_changes("recipe", _recipe(old), _recipe(new)))
    rows += _changes("hardware", _hardware(old), _hardware(new))
    rows += _changes("layout", _layout(old.layout), _layout(new.layout))
    rows += _changes("switches", *({s.name: s.value for s in p.switches} for p in (old, new)))
    rows += _changes("memory", _memory(old.chosen), _memory(new.chosen))
    rows += _changes("time", _time(old.chosen), _time(new.chosen))
    rows += _changes("environment", *({v.name: v.value for v in p.environment} for p in (old, new)))
    rows += _changes("override", *(_overrides(p.overrides) for p in (old, new)))
    return rows


def _changes(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield {"part": part, "name": name, "before": old.get(name), "after": new.get(name)}


def _recipe(plan: Plan) -> dict[str, Any]:
    r = plan.recipe
    return {
        "name": r.name,
        "precision": r.precision,
        "seq_length": r.seq_length,
        "global_batch_size": r.global_batch_size,
    }


def _hardware(plan: Plan) -> dict[str, Any]:
    c = plan.cluster
    return {"gpu": c.gpu.name, "nodes": len(c.nodes), "gpus_per_node": c.gpus_per_node, "fabric": c.fabric.kind}


def _layout(layout: Layout) -> dict[str, Any]:
    return layout_to_json(layout) | {"recompute": str(layout.recompute)}


def _memory(c: Candidate) -> dict[str, Any]:
    return components(c.memory) | {"peak": c.memory.peak}


def _time(c: Candidate) -> dict[str, Any]:
    return breakdown(c.estimate) | {"iteration_time_s": c.estimate.iteration_time_s}


def _overrides(lines: Sequence[str]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in lines)


def difference_to_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The changes as aligned lines under a heading a part; one sentence when nothing changed."""
    if not rows:
        return "the two plans are the same"
    width = max(len(row["name"]) for row in rows)
    out, part = [], None
    for row in rows:
        if _words(row, row["before"]) == _words(row, row["after"]):
            continue  # a difference too small to print
        if row["part"] != part:
            part = row["part"]
            out.append(part)
        before, after = (_words(row, row[side]) for side in ("before", "after"))
        out.append(f"  {row['name']:<{width}}  {before} -> {after}{_share(row)}")
    return "\n".join(out)


def _words(row: Mapping[str, Any], value: Any) -> str:
    if value is None:
        return "-"
    if row["part"] == "memory":
        return gib(value)
    return seconds(value) if row["part"] == "time" else str(value)


def _share(row: Mapping[str, Any]) -> str:
    if row["part"] not in ("memory", "time") or not row["before"] or row["after"] is None:
        return ""
    return f"  ({row['after'] / row['before'] - 1:+.0%})"


def own_layout(plan: Plan) -> Candidate:
    """The recipe's own layout on the plan's machine, evaluated like a plan with every size fixed.

    Raises `UsageError` when the recipe comes without a layout, or with one that these GPUs cannot hold.
    """
    from parlaunch.planning import as_written
    from parlaunch.rules import why_not

    layout = as_written.own_layout(plan.recipe, plan.rates)
    if layout is None:
        raise UsageError(
            f"{plan.recipe.name} comes without a layout that is known here", hint="compare two saved plans"
        )
    if reason := why_not(layout, plan.recipe, plan.rates):
        raise UsageError(
            f"the recipe's own layout does not run on this machine: {reason}", hint="compare two saved plans"
        )
    return as_written.evaluated(plan.recipe, layout, plan.rates)


def recipe_default(plan: Plan) -> Plan:
    """The plan with the recipe's own layout and switches, and the variables that the recipe itself sets.

    Raises `UsageError` when there is no such layout, or these GPUs cannot hold it.
    """
    from parlaunch.environment.overrides import overrides

    chosen = own_layout(plan)
    layout = chosen.layout
    own = tuple(
        Variable(name=name, value=value, reason="the recipe's own value", source="recipe")
        for name, value in plan.recipe.env.items()
    )
    planned = {o.key for o in overrides(plan.recipe, plan.layout)}
    ours = {key for s in plan.switches for key, _ in s.keys}
    same = [o for o in plan.overrides if o.partition("=")[0] not in {*planned, *ours}]
    return replace(
        plan,
        chosen=chosen,
        switches=tuple(replace(s, value=s.recipe_value) for s in plan.switches if s.recipe_value is not None),
        environment=own,
        overrides=(*map(str, overrides(plan.recipe, layout, cluster=plan.cluster)), *same),
        alternatives=(),
        rejected=(),
    )

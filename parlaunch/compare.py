"""What changed between two plans: layout, memory, time, environment, overrides. Equal values are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.layout import NO_RECOMPUTE, Layout, layout_to_json
from parlaunch.plan import Candidate, Plan, Variable
from parlaunch.units import gib, seconds

MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")
TIME = ("compute_s", "tp_s", "cp_s", "ep_s", "pp_bubble_s", "pp_p2p_s", "dp_exposed_s", "optimizer_s", "host_s")


def difference(old: Plan, new: Plan) -> list[dict[str, Any]]:
    """One row a change: part, name, before, after (JSON values; None: not there). Part by part, in a fixed order."""
    rows = list(_changes("recipe", _recipe(old), _recipe(new)))
    rows += _changes("hardware", _hardware(old), _hardware(new))
    rows += _changes("layout", _layout(old.layout), _layout(new.layout))
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
    return {name: getattr(c.memory, name) for name in MEMORY} | {"peak": c.memory.peak}


def _time(c: Candidate) -> dict[str, Any]:
    parts = {name: getattr(c.estimate.breakdown, name) for name in TIME}
    return parts | {"iteration_time_s": c.estimate.iteration_time_s}


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


def recipe_default(plan: Plan) -> Plan:
    """The recipe's own layout on the plan's machine, evaluated like a plan with every size fixed, with the variables
    that the recipe itself sets.

    Raises `UsageError` when the recipe comes without a layout, or with one that these GPUs cannot hold.
    """
    from parlaunch.memory import estimate_memory
    from parlaunch.overrides import overrides
    from parlaunch.rates import rates_of
    from parlaunch.rules import why_not
    from parlaunch.timing import estimate_time

    d = plan.recipe.defaults
    if d.tp is None or d.pp is None:
        raise UsageError(
            f"{plan.recipe.name} comes without a layout that is known here", hint="compare two saved plans"
        )
    layout = replace(
        plan.layout, tp=d.tp, pp=d.pp, vp=d.vp, cp=d.cp or 1, ep=d.ep or 1, etp=d.etp or 1,
        micro_batch_size=d.micro_batch_size or 1, recompute=d.recompute or NO_RECOMPUTE,
        layers_per_chunk=d.layers_per_chunk, cp_comm_type="p2p" if (d.cp or 1) > 1 else None,
    )  # fmt: skip
    rates = rates_of(plan.cluster)
    if reason := why_not(layout, plan.recipe, rates):
        raise UsageError(
            f"the recipe's own layout does not run on this machine: {reason}", hint="compare two saved plans"
        )
    chosen = Candidate(
        layout=layout,
        memory=estimate_memory(plan.recipe, layout, rates),
        estimate=estimate_time(plan.recipe, layout, rates),
    )
    own = tuple(
        Variable(name=name, value=value, reason="the recipe's own value", source="recipe")
        for name, value in plan.recipe.env.items()
    )
    planned = _overrides(overrides(plan.recipe, plan.layout))
    same = [o for o in plan.overrides if o.partition("=")[0] not in planned]
    return replace(
        plan,
        chosen=chosen,
        environment=own,
        overrides=(*overrides(plan.recipe, layout, cluster=plan.cluster), *same),
        alternatives=(),
        rejected=(),
    )

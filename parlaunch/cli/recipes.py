"""`parlaunch recipes`: what can be trained."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from parlaunch.catalog import aliases, all_recipes, full_name, recipe
from parlaunch.cli.inputs import choice
from parlaunch.errors import NoLayoutError, ParlaunchError
from parlaunch.recipe import TASKS, Recipe
from parlaunch.units import count, gib

LADDER = (
    "dgx-h100:1",
    "dgx-h200:1",
    "dgx-b200:1",
    "dgx-h100:2",
    "dgx-h100:4",
    "dgx-h100:8",
    "dgx-h100:16",
    "dgx-h100:32",
    "dgx-h100:64",
    "dgx-h100:128",
)
"""Machines from small to large, for "the smallest it fits on"."""


def listing(
    *, search: str | None, family: str | None, task: str | None, kind: str | None,
    max_params: float | None, min_params: float | None, format: str,
) -> None:  # fmt: skip
    choice("--format", format, ("text", "json"))
    if task is not None:
        choice("--task", task, TASKS)
    if kind is not None:
        choice("--kind", kind, ("library", "benchmark"))
    found = [
        r for r in all_recipes()
        if (search is None or search.lower() in " ".join((r.name, str(r.model_id), *aliases(r.name))).lower())
        and (family is None or family.lower() in r.model.lower())
        and (task is None or r.task == task)
        and (kind is None or r.benchmark == (kind == "benchmark"))
        and (max_params is None or r.architecture.total_params <= max_params * 1e9)
        and (min_params is None or r.architecture.total_params >= min_params * 1e9)
    ]  # fmt: skip
    if format == "json":
        print(json.dumps({"schema": "parlaunch.recipes/1", "recipes": [summary(r) for r in found]}, indent=2))
        return
    if not found:
        print("no recipe matches", file=sys.stderr)
        return
    names = {r.name: (*aliases(r.name), r.name)[0] for r in found}
    width = max(map(len, names.values()))
    for r in found:
        size = count(r.architecture.total_params)
        print(
            f"{names[r.name]:<{width}}  {r.task:<8} {size:>7}  {r.precision:<6} {r.seq_length:>7,} tokens × {r.global_batch_size:,}"
        )
    print(f"{len(found)} recipes", file=sys.stderr)


def summary(r: Recipe) -> dict[str, Any]:
    return {
        "name": r.name, "aliases": list(aliases(r.name)), "task": r.task, "model": r.model, "model_id": r.model_id, "benchmark": r.benchmark,
        "total_params": r.architecture.total_params, "active_params": r.architecture.active_params,
        "precision": r.precision, "seq_length": r.seq_length, "global_batch_size": r.global_batch_size,
        "gpus": r.gpus, "hardware": r.hardware,
        "defaults": {n: getattr(r.defaults, n) for n in ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size")},
    }  # fmt: skip


def show(name: str, *, format: str) -> None:
    choice("--format", format, ("text", "json"))
    r = recipe(name)
    smallest = smallest_machine(r)
    if format == "json":
        print(json.dumps(summary(replace(r, name=full_name(name))) | {"smallest_machine": smallest}, indent=2))
        return
    a, d = r.architecture, r.defaults
    print(f"{r.name}   {r.task}, {'benchmark' if r.benchmark else 'library'} recipe")
    active = f", {count(a.active_params)} active a token" if a.active_params < a.total_params else ""
    known = full_name(name)
    if others := [n for n in (known, *aliases(known)) if n != name]:
        print(f"  also        {', '.join(others)}")
    print(f"  model       {r.model_id}: {count(a.total_params)} parameters{active}")
    print(
        f"  shape       {a.num_layers} layers, hidden {a.hidden_size:,}, {a.num_attention_heads} heads, vocabulary {a.vocab_size:,}"
    )
    if a.num_moe_experts:
        print(f"  experts     {a.num_moe_experts}, {a.moe_router_topk} a token")
    print(f"  batch       {r.seq_length:,} tokens × {r.global_batch_size:,} sequences, {r.precision}")
    print(f"  written for {r.gpus} {r.hardware}")
    layout = [f"{k.upper()} {v}" for k in ("tp", "pp", "vp", "cp", "ep", "etp") if (v := getattr(d, k))]
    print(
        f"  its layout  {' · '.join(layout) or 'not in the catalog'}"
        + (f" · micro batch {d.micro_batch_size}" if d.micro_batch_size else "")
    )
    if smallest:
        print(
            f"  fits on     {smallest['hardware']} ({smallest['gpus']} GPUs of it): {smallest['layout']}, {gib(smallest['peak_bytes'])} a GPU"
        )
    else:
        print("  fits on     none of the machines tried, up to " + LADDER[-1])


def smallest_machine(r: Recipe) -> dict[str, Any] | None:
    """The first machine of the ladder on which some layout fits, with the fewest GPUs that do."""
    from parlaunch.datasheet import preset
    from parlaunch.plan import Wishes
    from parlaunch.planner import plan

    for spec in LADDER:
        machine, _, nodes = spec.partition(":")
        try:
            made = plan(preset(machine, int(nodes)), r, Wishes(evidence=False, top=0))
        except NoLayoutError:
            continue
        except ParlaunchError:
            continue  # a batch that this many GPUs cannot share out
        return {
            "hardware": spec, "gpus": made.layout.world, "layout": str(made.layout),
            "peak_bytes": made.chosen.memory.peak,
        }  # fmt: skip
    return None

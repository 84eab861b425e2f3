"""`parlaunch recipes`: what can be trained."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

from parlaunch.catalog import aliases, all_recipes, full_name, recipe
from parlaunch.cli.inputs import choice
from parlaunch.fewest import MOST_GPUS, machines_for
from parlaunch.layout import layout_to_json
from parlaunch.recipe import TASKS, Recipe
from parlaunch.units import count, gib


def listing(
    *, search: str | None, family: str | None, task: str | None, kind: str | None,
    max_params: float | None, min_params: float | None, format: str,
) -> None:  # fmt: skip
    """Print the recipes that pass every filter given, as a table or as JSON."""
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
    rows = [_row(r) for r in sorted(found, key=_order)]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        cells = [
            f"{cell:>{width}}" if name in RIGHT else f"{cell:<{width}}"
            for name, cell, width in zip(HEAD, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())
    benchmarks = sum(r.benchmark for r in found)
    print(
        f"{len(found) - benchmarks} library recipes, {benchmarks} benchmarks; narrow it with {FILTERS}", file=sys.stderr
    )


HEAD = ("recipe", "task", "model", "precision", "tokens", "batch", "written for")
RIGHT = ("model", "tokens", "batch")
FILTERS = "--search, --family, --task, --kind, --max-params"


def _row(r: Recipe) -> tuple[str, ...]:
    name = (*aliases(r.name), r.name)[0]
    machine = f"{r.gpus} {str(r.hardware).upper()}" if r.gpus and r.hardware else ""
    size = count(r.architecture.total_params)
    return name, r.task, size, r.precision, f"{r.seq_length:,}", f"{r.global_batch_size:,}", machine


def _order(r: Recipe) -> tuple[object, ...]:
    """Library recipes first; then by family and name, numbers by their value."""
    name = (*aliases(r.name), r.name)[0]
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
    return r.benchmark, r.model.split("_")[0], natural


def summary(r: Recipe) -> dict[str, Any]:
    """A recipe as the JSON listing has it; sizes of the layout are null where the recipe does not say."""
    return {
        "name": r.name, "aliases": list(aliases(r.name)), "task": r.task, "model": r.model, "model_id": r.model_id, "benchmark": r.benchmark,
        "total_params": r.architecture.total_params, "active_params": r.architecture.active_params,
        "precision": r.precision, "seq_length": r.seq_length, "global_batch_size": r.global_batch_size,
        "gpus": r.gpus, "hardware": r.hardware,
        "defaults": {n: getattr(r.defaults, n) for n in ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size")},
    }  # fmt: skip


def show(name: str, *, format: str) -> None:
    """Print one recipe with the fewest GPUs that hold it. Raises `UsageError` with the nearest names."""
    choice("--format", format, ("text", "json"))
    r = recipe(name)
    if format == "json":
        needed = [
            {"hardware": m, "gpus": c.layout.world, "layout": layout_to_json(c.layout), "peak_bytes": c.memory.peak}
            for m, c in machines_for(r)
        ]
        print(json.dumps(summary(replace(r, name=full_name(name))) | {"fewest_gpus": needed}, indent=2))
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
    if r.gpus and r.hardware:
        print(f"  written for {r.gpus} × {r.hardware.upper()}")
    layout = [f"{k.upper()} {v}" for k in ("tp", "pp", "vp", "cp", "ep", "etp") if (v := getattr(d, k))]
    print(
        f"  its layout  {' · '.join(layout) or 'not in the catalog'}"
        + (f" · micro batch {d.micro_batch_size}" if d.micro_batch_size else "")
    )
    if not r.feasible:
        rules = f": {', '.join(r.violations)}" if r.violations else ""
        print(f"  mind        as published it breaks one of Megatron's own rules{rules}")
    found = list(machines_for(r))
    for machine, least in found:
        gpus = f"{least.layout.world} GPU{'s' if least.layout.world > 1 else ''}"
        print(f"  needs       {gpus} of {machine}: {least.layout}, {gib(least.memory.peak)} a GPU")
    if not found:
        print(f"  needs       more than {MOST_GPUS:,} GPUs")

"""`parlaunch recipes`: what can be trained."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from parlaunch.cli.inputs import choice
from parlaunch.model.catalog import aliases, all_recipes, full_name, recipe
from parlaunch.model.layout import SIZES, layout_to_json
from parlaunch.model.parameters import active_params, total_params
from parlaunch.model.recipe import TASKS, Recipe
from parlaunch.planning.fewest import MOST_GPUS, machines_for
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
    words = _known_words(search or "")
    found = [
        r for r in all_recipes()
        if (not words or _has(r, words))
        and (family is None or family.lower() in r.model.lower())
        and (task is None or r.task == task)
        and (kind is None or r.benchmark == (kind == "benchmark"))
        and (max_params is None or total_params(r.architecture) <= max_params * 1e9)
        and (min_params is None or total_params(r.architecture) >= min_params * 1e9)
    ]  # fmt: skip
    if format == "json":
        print(json.dumps({"schema": "parlaunch.recipes/1", "recipes": [summary(r) for r in found]}, indent=2))
        return
    if not found:
        print("no recipe matches: fewer words, or `parlaunch recipes` for all", file=sys.stderr)
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
    size = count(total_params(r.architecture))
    return name, r.task, size, r.precision, f"{r.seq_length:,}", f"{r.global_batch_size:,}", machine


def _order(r: Recipe) -> tuple[object, ...]:
    """Library recipes first; then by family and name, numbers by their value."""
    name = (*aliases(r.name), r.name)[0]
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
    return r.benchmark, r.model.split("_")[0], TASKS.index(r.task), natural


def _parts(text: str) -> list[str]:
    """Letters and numbers of a name, apart: "Qwen3-Next 80B" is qwen 3 next 80 b."""
    return re.findall(r"[a-z]+|\d+(?:\.\d+)?", text.lower())


@cache
def _text(r: Recipe) -> str:
    return " ".join(_parts(" ".join((r.name, r.model, str(r.model_id), *aliases(r.name)))))


def _has(r: Recipe, words: Sequence[str]) -> bool:
    """Whether the recipe's names have all of these words, each in one piece."""
    text = f" {_text(r)} "
    return all(f" {' '.join(_parts(word))}" in text for word in words)


def _known_words(search: str) -> list[str]:
    """The words of a search, those that no recipe has replaced by the nearest that one has; the change is said."""
    words = search.split()
    known = sorted({word for r in all_recipes() for word in re.split(r"[^a-z0-9.]+", r.name.lower()) if word})
    out = []
    for word in words:
        if not any(_has(r, [word]) for r in all_recipes()):
            near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
            if near:
                print(f"no recipe has {word!r}; searching for {near[0]!r}", file=sys.stderr)
                word = near[0]
        out.append(word)
    return out


def summary(r: Recipe) -> dict[str, Any]:
    """A recipe as the JSON listing has it; sizes of the layout are null where the recipe does not say."""
    return {
        "name": r.name, "aliases": list(aliases(r.name)), "task": r.task, "model": r.model, "model_id": r.model_id, "benchmark": r.benchmark,
        "total_params": total_params(r.architecture), "active_params": active_params(r.architecture),
        "precision": r.precision, "seq_length": r.seq_length, "global_batch_size": r.global_batch_size,
        "gpus": r.gpus, "hardware": r.hardware,
        "defaults": {n: getattr(r.defaults, n) for n in SIZES},
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
        said = summary(replace(r, name=full_name(name))) | {"fewest_gpus": needed}
        print(json.dumps({"schema": "parlaunch.recipe/1"} | said, indent=2))
        return
    a, d = r.architecture, r.defaults
    print(f"{r.name}   {r.task}, {'benchmark' if r.benchmark else 'library'} recipe")
    active = f", {count(active_params(a))} active a token" if active_params(a) < total_params(a) else ""
    known = full_name(name)
    if others := [n for n in (known, *aliases(known)) if n != name]:
        print(f"  also        {', '.join(others)}")
    print(f"  model       {r.model_id}: {count(total_params(a))} parameters{active}")
    print(
        f"  shape       {a.num_layers} layers, hidden {a.hidden_size:,}, {a.num_attention_heads} heads, vocabulary {a.vocab_size:,}"
    )
    if a.num_moe_experts:
        print(f"  experts     {a.num_moe_experts}, {a.moe_router_topk} a token")
    print(f"  batch       {r.seq_length:,} tokens × {r.global_batch_size:,} sequences, {r.precision}")
    if r.gpus and r.hardware:
        print(f"  written for {r.gpus} × {r.hardware.upper()}")
    layout = [f"{k.upper()} {v}" for k in SIZES if k != "micro_batch_size" and (v := getattr(d, k))]
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

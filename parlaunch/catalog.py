"""The recipe catalog in this package: every Megatron Bridge recipe name and the architectures behind them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from parlaunch.architecture import Architecture, architecture_from_json
from parlaunch.errors import UsageError
from parlaunch.layout import recompute_from_json
from parlaunch.recipe import Defaults, Recipe, features_from_json, sample_tokens


@cache
def load(name: str) -> Any:
    """One of the package's data files, parsed once."""
    return json.loads(files("parlaunch").joinpath("data", name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _rows() -> Mapping[str, Mapping[str, Any]]:
    return {row["name"]: row for row in load("recipes.json")["recipes"]}


def recipe_names() -> tuple[str, ...]:
    """Every name that `recipe` knows, aliases included, sorted."""
    return tuple(sorted({*_rows(), *load("recipes.json")["aliases"]}))


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for alias, name in load("recipes.json")["aliases"].items():
        found.setdefault(name, []).append(alias)
    return {name: tuple(sorted(aliases, key=lambda a: (len(a), a))) for name, aliases in found.items()}


def aliases(name: str) -> tuple[str, ...]:
    """The other names of a recipe, the shortest first."""
    return _aliases().get(name, ())


def full_name(name: str) -> str:
    """The name behind an alias; any other name as it is."""
    return str(load("recipes.json")["aliases"].get(name, name))


def all_recipes() -> tuple[Recipe, ...]:
    """Every recipe once, under its full name, sorted."""
    return tuple(recipe(name) for name in sorted(_rows()))


def architecture(model_id: str) -> Architecture:
    """The architecture of a Hugging Face model name. Raises `UsageError` with the nearest names."""
    table = load("architectures.json")
    if model_id not in table:
        near = difflib.get_close_matches(model_id, table, n=5, cutoff=0.4)
        raise UsageError(f"unknown model {model_id!r}", hint="nearest: " + ", ".join(near) if near else "")
    return architecture_from_json(table[model_id])


def _as_validated(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's features as Megatron Bridge runs them.

    Its validation shards the optimizer when either of two settings asks for it, and its Adam recipes set one of them always.
    """
    features = dict(row.get("features") or {})
    if "muon" not in row["name"]:
        features.pop("no_distributed_optimizer", None)
    return features


def recipe(name: str) -> Recipe:
    """The recipe of that name or alias. Raises `UsageError` with the nearest names."""
    row = _rows().get(full_name(name))
    if row is None:
        near = difflib.get_close_matches(name, recipe_names(), n=5, cutoff=0.5)
        raise UsageError(
            f"unknown recipe {name!r}",
            hint="nearest: " + ", ".join(near) if near else "`parlaunch recipes` lists them all",
        )
    layout = row.get("layout") or {}
    chunks = layout.get("layers_per_chunk")
    return Recipe(
        name=name,
        source="catalog",
        task=row["task"],
        model=row["model"],
        model_id=row["model_id"],
        architecture=architecture(row["model_id"]),
        seq_length=sample_tokens(row["model"], row.get("seq") or 4096),
        global_batch_size=row.get("gbs") or 256,
        precision=row["precision"],
        gpus=row.get("gpus"),
        hardware=row.get("hardware"),
        defaults=Defaults(
            tp=layout.get("tp"), pp=layout.get("pp"), vp=layout.get("vp"), cp=layout.get("cp"), ep=layout.get("ep"),
            etp=layout.get("etp"), micro_batch_size=layout.get("mbs"), sequence_parallel=layout.get("sequence_parallel"),
            recompute=recompute_from_json(layout.get("recompute")) if layout else None,
            layers_per_chunk=None if chunks is None else tuple(chunks),
        ),
        features=features_from_json(_as_validated(row)),
        benchmark=row["kind"] == "benchmark",
        feasible=row.get("feasible", True),
        violations=tuple(row.get("violations", ())),
        env={k: str(v) for k, v in (row.get("env") or {}).items()},
    )  # fmt: skip

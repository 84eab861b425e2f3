"""The recipe catalog in this package: every Megatron Bridge recipe name and the architectures behind them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from parlaunch.data import entry, load, rows
from parlaunch.errors import UsageError
from parlaunch.model.architecture import Architecture, architecture_from_json
from parlaunch.model.layout import recompute_from_json
from parlaunch.model.recipe import Defaults, Recipe, features_from_json


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
    """The name behind an alias, or behind one that releases of today no longer have; any other name as it is."""
    later = renamed(name)
    name = name if later is None else later[0]
    found = entry("recipes.json", name)
    return found if isinstance(found, str) else name


def renamed(name: str) -> tuple[str, str] | None:
    """For a name that Megatron Bridge had once: its name today, and the first release without the old one."""
    found = entry("recipes.json", name)
    return (str(found["name"]), str(found["since"])) if isinstance(found, Mapping) and "since" in found else None


def _row(name: str) -> Mapping[str, Any] | None:
    """What the catalog has of a recipe, alias or not."""
    return next(iter(rows("recipes.json", "name", full_name(name))), None)


def catalog_row(name: str) -> Mapping[str, Any]:
    """What the catalog has of a recipe, alias or not, as the table writes it. Raises `UsageError` when it is not in it."""
    found = _row(name)
    if found is None:
        raise UsageError(f"unknown recipe {name!r}", hint="`parlaunch recipes` lists them")
    return found


def all_recipes() -> tuple[Recipe, ...]:
    """Every recipe once, under its full name, sorted."""
    return tuple(recipe(name) for name in sorted(_rows()))


def architecture(model_id: str) -> Architecture:
    """The architecture of a Hugging Face model name. Raises `UsageError` with the nearest names."""
    found = entry("architectures.json", model_id)
    if found is None:
        near = difflib.get_close_matches(model_id, load("architectures.json"), n=5, cutoff=0.4)
        raise UsageError(f"unknown model {model_id!r}", hint="nearest: " + ", ".join(near) if near else "")
    return architecture_from_json(found)


def _predicting(a: Architecture, added: int) -> Architecture:
    """The model without the multi-token prediction layers that a recipe takes out of it; those that it adds are the recipe's."""
    return a if added >= 0 else replace(a, mtp_num_layers=(a.mtp_num_layers or 0) + added or None)


def _near(name: str) -> list[str]:
    """Recipes that may be meant: those of a model by its Hugging Face name, else the nearest names."""
    meant = name.lower()
    if "/" in meant:
        mine = {row["name"] for row in load("recipes.json")["recipes"] if str(row["model_id"]).lower() == meant}
        if found := sorted((n for n in recipe_names() if full_name(n) in mine), key=len):
            return found[:5]
    return difflib.get_close_matches(meant.replace("-", "_"), recipe_names(), n=5, cutoff=0.5)


def recipe(name: str) -> Recipe:
    """The recipe of that name or alias. Raises `UsageError` with the nearest names."""
    row = _row(name)
    if row is None:
        near = _near(name)
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
        architecture=_predicting(architecture(row["model_id"]), row.get("added_mtp_layers", 0)),
        seq_length=row.get("seq") or 4096,
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
        features=features_from_json(row.get("features")),
        benchmark=row["kind"] == "benchmark",
        feasible=row.get("feasible", True),
        violations=tuple(row.get("violations", ())),
        **{k: row[k] for k in ("folder", "train_iters", "optimizer", "packing", "loader", "mock_tokens") if k in row},
        added_mtp_layers=max(0, row.get("added_mtp_layers", 0)),
        unsettled=tuple(row.get("unsettled", ())),
        bare=tuple(row.get("bare", ())),
        env=dict(row.get("env") or {}),
    )  # fmt: skip

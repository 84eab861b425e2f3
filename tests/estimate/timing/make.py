"""Recipes, layouts and machines for the tests of time estimates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe


@cache
def rates(name: str = "dgx-h100", nodes: int = 1) -> Rates:
    return rates_of(preset(name, nodes))


def dense(**changes: Any) -> Architecture:
    sizes: dict[str, Any] = {
        "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
        "num_query_groups": 8, "vocab_size": 128256, "kv_channels": 128, "gated_linear_unit": True,
    }  # fmt: skip
    return Architecture(**sizes | changes)


def recipe(arch: Architecture | str | None = None, **changes: Any) -> Recipe:
    made = Recipe(
        name="test",
        source="catalog",
        task="pretrain",
        model="test",
        model_id=None,
        architecture=architecture(arch) if isinstance(arch, str) else arch or dense(),
        seq_length=4096,
        global_batch_size=64,
        precision="bf16",
    )
    return replace(made, **changes)


def features(**changes: Any) -> Features:
    return replace(Features(), **changes)


def layout(world: int = 8, **changes: Any) -> Layout:
    return Layout(**{"world": world, "global_batch_size": 64, "micro_batch_size": 1} | changes)

"""One row of a table is read without the others, and says what the whole table says."""

from __future__ import annotations

import json

import pytest

from parlaunch.data import entry, load, rows
from parlaunch.model import catalog


def test_an_entry_is_what_the_table_says_under_its_key() -> None:
    for key, row in load("architectures.json").items():
        assert entry("architectures.json", key) == row
    for alias, name in load("recipes.json")["aliases"].items():
        assert entry("recipes.json", alias) == name


@pytest.mark.parametrize("name", ["no such recipe", "", 'a "quoted" name', "llama3_8b_pretrain_config\n", "\\"])
def test_what_is_not_there_is_none(name: str) -> None:
    assert entry("recipes.json", name) is None
    assert rows("recipes.json", "name", name) == ()


@pytest.mark.parametrize(
    ("table", "key", "field"),
    [("recipes.json", "recipes", "name"), ("evidence.json", "rows", "name"), ("evidence.json", "rows", "model_id")],
)
def test_rows_are_those_of_the_table_with_that_value(table: str, key: str, field: str) -> None:
    whole = load(table)[key]
    for value in {row[field] for row in whole}:
        found = rows(table, field, value)
        assert json.dumps(found) == json.dumps([row for row in whole if row[field] == value])


def test_a_recipe_that_takes_further_tokens_out_of_its_model_is_planned_without() -> None:
    with_, without = (catalog.recipe(f"deepseek_v4_flash_{part}sft_config") for part in ("", "no_mtp_"))
    assert (with_.architecture.mtp_num_layers, without.architecture.mtp_num_layers) == (1, None)
    assert (without.added_mtp_layers, catalog.recipe("glm52_pretrain_192gpu_gb200_bf16_config").added_mtp_layers) == (
        0,
        1,
    )


def test_adapters_are_those_of_the_recipe() -> None:
    big = catalog.recipe("llama31_405b_peft_32gpu_h100_bf16_config").features
    assert (big.adapter_rank, big.adapter_targets) == (16, ("linear_qkv",))
    latent = catalog.recipe("moonlight_16b_peft_4gpu_h100_bf16_config").features
    assert "linear_kv_up_proj" in latent.adapter_targets

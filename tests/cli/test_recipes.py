"""`parlaunch recipes`: lists, filters, and the fewest GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from parlaunch.errors import NoLayoutError
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model.catalog import all_recipes, recipe
from parlaunch.planning.fewest import machines_for
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan
from tests.cli.conftest import Said

Run = Callable[..., Said]


def test_every_recipe_is_listed_once(parlaunch: Run) -> None:
    said = parlaunch("recipes")
    assert said.code == 0
    assert len(said.out.splitlines()) == 1 + len(all_recipes())
    assert len({line.split()[0] for line in said.out.splitlines()}) == 1 + len(all_recipes())


@pytest.mark.parametrize(
    ("words", "inside", "outside"),
    [
        (("--family", "llama3", "--kind", "library"), "llama32_1b_pretrain_config", "qwen3_8b_pretrain_config"),
        (("--task", "peft"), "llama3_8b_peft_config", "llama3_8b_pretrain_config"),
        (("--max-params", "2"), "llama32_1b_pretrain_config", "llama3_8b_pretrain_config"),
        (("--min-params", "600"), "deepseek_v3_pretrain_config", "llama3_8b_pretrain_config"),
        (("--search", "DeepSeek-V3"), "deepseek_v3_pretrain_config", "llama3_8b_pretrain_config"),
    ],
)
def test_a_filter_keeps_what_it_says(parlaunch: Run, words: tuple[str, ...], inside: str, outside: str) -> None:
    names = {line.split()[0] for line in parlaunch("recipes", *words).out.splitlines()}
    assert inside in names
    assert outside not in names


def test_numbers_in_names_are_sorted_by_value(parlaunch: Run) -> None:
    lines = parlaunch("recipes", "--search", "llama3_", "--kind", "library", "--task", "pretrain").out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names.index("llama3_8b_pretrain_config") < names.index("llama3_70b_pretrain_config")


def test_show_gives_the_fewest_gpus_for_a_person_and_for_a_program(parlaunch: Run) -> None:
    text = parlaunch("recipes", "show", "llama3_70b_pretrain_config").out
    data = json.loads(parlaunch("recipes", "show", "llama3_70b_pretrain_config", "--format", "json").out)
    first = data["fewest_gpus"][0]
    assert first["hardware"].startswith("dgx-h100:")
    assert f"needs       {first['gpus']} GPUs of {first['hardware']}" in text


@pytest.mark.parametrize(
    "name", ["llama3_8b_pretrain_config", "llama3_70b_pretrain_config", "qwen3_30b_a3b_pretrain_config"]
)
def test_half_of_the_fewest_gpus_is_too_few(name: str) -> None:
    from dataclasses import replace

    machine, least = next(iter(machines_for(recipe(name))))
    preset_name, _, nodes = machine.partition(":")
    cluster = preset(preset_name, int(nodes))
    whole = plan(cluster, recipe(name), Wishes(evidence=False, top=0))
    assert whole.chosen.memory.fits
    layout = least.layout
    assert layout.world >= layout.pp * max(layout.tp * layout.cp, layout.ep * layout.etp)
    half = replace(
        rates_of(cluster),
        world_size=layout.world // 2,
        gpus_per_node=min(8, layout.world // 2),
        nvlink_domain=min(8, layout.world // 2),
    )
    with pytest.raises(NoLayoutError):
        plan(cluster, recipe(name), Wishes(evidence=False, top=0), rates=half)


@pytest.mark.parametrize(
    ("words", "first", "all_have"),
    [
        (("llama3", "70b"), "llama3_70b_16k_pretrain_config", ("llama3", "70b")),
        (("qwen3", "next"), "qwen3_next_80b_a3b_pretrain_config", ("qwen3_next",)),
        (("qwen3-next",), "qwen3_next_80b_a3b_pretrain_config", ("qwen3_next",)),
        (("DeepSeek", "V3", "pretrain"), "deepseek_v3_pretrain_config", ("deepseek_v3", "pretrain")),
        (("lama3", "8b"), "llama3_8b_16k_pretrain_config", ("llama3", "8b")),
        (("llama3", "8b", "--task", "sft"), "llama3_8b_sft_config", ("sft",)),
    ],
)
def test_a_search_by_words_answers_with_pretraining_first(
    parlaunch: Run, words: tuple[str, ...], first: str, all_have: tuple[str, ...]
) -> None:
    lines = parlaunch("recipes", *words).out.splitlines()
    assert lines[1].split()[0] == first
    assert all(part in line for line in lines[1:] for part in all_have)


def test_within_a_family_pretraining_stands_before_tuning(parlaunch: Run) -> None:
    lines = parlaunch("recipes", "llama3", "8b", "--kind", "library").out.splitlines()
    tasks = [line.split()[1] for line in lines if line.startswith("llama3_")]
    assert tasks == sorted(tasks, key=("pretrain", "sft", "peft").index)


def test_a_typo_is_mended_and_said_and_nonsense_is_not(parlaunch: Run) -> None:
    said = parlaunch("recipes", "deepsek", "v3")
    assert "no recipe has 'deepsek'; searching for 'deepseek'" in said.err
    assert "deepseek_v3_pretrain_config" in said.out
    assert "no recipe matches" in parlaunch("recipes", "xyzzy").err

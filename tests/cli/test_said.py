"""What the user said by option or override reaches the runner, now and from a saved plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parlaunch.cli.options import recompute_words
from tests.cli.conftest import Said

PLAN = ("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:1")


def overrides(said: Said) -> list[str]:
    found: list[str] = json.loads(said.out)["overrides"]
    return found


def test_a_precision_that_is_planned_is_a_precision_that_trains(parlaunch: Callable[..., Said]) -> None:
    planned = overrides(parlaunch(*PLAN, "--precision", "fp8cs", "--format", "json"))
    assert "mixed_precision=bf16_with_fp8_current_scaling_mixed" in planned
    assert not [o for o in overrides(parlaunch(*PLAN, "--format", "json")) if o.startswith("mixed_precision")]


def test_a_saved_plan_keeps_every_override_and_takes_more(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    parlaunch(*PLAN, "--precision", "fp8cs", "train.train_iters=7", "--save-plan", str(file), "--quiet")
    saved = json.loads(file.read_text())["overrides"]
    again = overrides(parlaunch("plan", "--plan", str(file), "--format", "json", "train.eval_iters=0"))
    assert "train.train_iters=7" in saved
    assert again == [*saved, "train.eval_iters=0"]


def test_a_language_model_that_the_recipe_freezes_is_named_and_can_be_thawed(parlaunch: Callable[..., Said]) -> None:
    words = (
        "--recipe",
        "qwen3_vl_30b_a3b_pretrain_8gpu_h100_bf16_mock_config",
        "--hardware",
        "dgx-h100:1",
        "--dry-run",
        "-v",
    )
    assert "pretrain, language model frozen ·" in parlaunch(*words).out
    thawed = parlaunch(*words, "model.freeze_language_model=False")
    assert "pretrain ·" in thawed.out
    assert "model.freeze_language_model=False" in thawed.out


@pytest.mark.parametrize("word", recompute_words())
def test_every_word_of_recompute_is_planned_or_refused_by_a_rule(parlaunch: Callable[..., Said], word: str) -> None:
    recipe = "qwen3_next_80b_a3b_pretrain_config"  # experts and a gated delta net
    said = parlaunch("plan", "--recipe", recipe, "--hardware", "dgx-h100:8", "--recompute", word, "--format", "json")
    if word in ("mla_up_proj", "mhc"):
        assert said.code == 2
        assert "Qwen3" in said.err or "qwen3" in said.err
        return
    assert said.code == 0, said.err
    if word not in ("none", "full", "selective"):
        assert f"model.recompute_modules=[{word}]" in overrides(said)

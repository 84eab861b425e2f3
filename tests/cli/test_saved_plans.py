"""`--save-plan`, `--plan` and `parlaunch diff`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said

Run = Callable[..., Said]
LLAMA = ("--recipe", "llama3_8b_pretrain_config")


@pytest.fixture
def saved(parlaunch: Run, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    assert parlaunch("plan", *LLAMA, "--hardware", "dgx-h100:2", "--tp", "4", "--save-plan", str(file), "-q").code == 0
    return file


def test_a_saved_plan_is_what_a_launch_would_do(parlaunch: Run, saved: Path) -> None:
    again = json.loads(parlaunch("plan", "--plan", str(saved), "--format", "json").out)
    before = json.loads(saved.read_text())
    for part in ("recipe", "layout", "memory", "estimate", "environment", "overrides", "argv", "because"):
        assert again[part] == before[part], part


@pytest.mark.parametrize(
    ("hardware", "difference"),
    [
        ("dgx-h100:4", "nodes: 2 in the plan, 4 here"),
        ("dgx-a100:2", "GPU: NVIDIA H100 80GB HBM3 in the plan, NVIDIA A100"),
        ("l40s-pcie-8:2", "GPUs that share NVLink: 8 in the plan, 1 here"),
    ],
)
def test_on_other_hardware_it_is_refused_with_the_difference(
    parlaunch: Run, saved: Path, hardware: str, difference: str
) -> None:
    said = parlaunch("--plan", str(saved), "--hardware", hardware, "--dry-run")
    assert said.code == 1
    assert "another machine" in said.err
    assert difference in said.err


@pytest.mark.parametrize("words", [("--tp", "2"), ("--precision", "fp16"), ("--recompute", "full"), LLAMA])
def test_nothing_may_change_a_saved_plan(parlaunch: Run, saved: Path, words: tuple[str, ...]) -> None:
    said = parlaunch("--plan", str(saved), *words, "--dry-run")
    assert said.code == 2
    assert "contradict each other" in said.err


def test_diff_shows_layout_memory_and_time(parlaunch: Run, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    parlaunch("plan", *LLAMA, "--hardware", "dgx-h100:2", "--tp", "2", "--save-plan", str(other), "-q")
    text = parlaunch("diff", str(saved), str(other)).out
    assert "4 -> 2" in text
    assert {"layout", "memory", "time"} <= set(text.splitlines())
    rows = json.loads(parlaunch("diff", str(saved), str(other), "--format", "json").out)["changes"]
    assert {"part": "layout", "name": "tp", "before": 4, "after": 2} in rows
    assert parlaunch("diff", str(saved), str(saved)).out == "the two plans are the same\n"


def test_diff_against_the_recipes_own_layout(parlaunch: Run, saved: Path) -> None:
    rows = json.loads(parlaunch("diff", "recipe", str(saved), "--format", "json").out)["changes"]
    changed = {row["name"]: row for row in rows if row["part"] == "layout"}
    own = json.loads(saved.read_text())["recipe"]["defaults"]
    assert changed["tp"]["before"] == own["tp"]
    assert changed["tp"]["after"] == 4
    assert not [row for row in rows if row["part"] in ("recipe", "hardware")]
    overrides = {row["name"]: row for row in rows if row["part"] == "override"}
    assert overrides["model.tensor_model_parallel_size"]["before"] == str(own["tp"])
    assert "model.expert_model_parallel_size" not in overrides  # the same in both

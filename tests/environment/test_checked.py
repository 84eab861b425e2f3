"""A saved plan that was changed is found out before it is launched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parlaunch.environment.checked import problem
from parlaunch.hardware.datasheet import preset
from parlaunch.launching import complete
from parlaunch.model.catalog import recipe, recipe_names
from parlaunch.planning.plan import Wishes, plan_to_json
from parlaunch.planning.planner import plan
from tests.cli.conftest import Said, parlaunch  # noqa: F401  (a fixture)

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved() -> str:
    made = complete(plan(preset("dgx-h100", 2), recipe("qwen3_30b_a3b_pretrain_config"), Wishes(top=2)))
    return json.dumps(plan_to_json(made, version="test"))


def at(*path: str | int, value: object) -> Change:
    """Put a value somewhere in the JSON."""

    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize("name", [n for n in recipe_names() if "gpu_" not in n][::12])
def test_a_plan_of_ours_has_no_problem(name: str) -> None:
    made = complete(plan(preset("dgx-h100", 32), recipe(name), Wishes(top=0)))
    assert problem(made) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("layout", "tp", value=3), "does not divide"),
        (at("layout", "tp", value=-8), "no size"),
        (at("layout", "tp", value=True), "Layout's tp cannot be True"),
        (at("layout", "tp", value="2"), "Layout's tp cannot be '2'"),
        (at("layout", "pp", value=10**30), "Layout's pp cannot be 1000"),
        (at("layout", "vp", value=0), "vp 0"),
        (at("layout", "world_size", value=32), "32 GPUs and its hardware has 16"),
        (at("layout", "micro_batch_size", value=7), "does not divide its global batch"),
        (at("layout", "global_batch_size", value=16), "global batch 16 and its recipe"),
        (at("overrides", 0, value="model.tensor_model_parallel_size=16"), "overrides set tp to 16"),
        (at("overrides", 0, value="--script=evil.py"), "no KEY=VALUE"),
        (at("overrides", 0, value="model.x=" + "y" * 5000), "no KEY=VALUE"),
        (at("overrides", value=["model.x=1"] * 2000), "2000 overrides"),
        (at("recipe", "name", value="--module"), "the name '--module'"),
        (at("recipe", "name", value="a\nb"), "the name 'a\\\\nb'"),
        (at("layout", "layers_per_chunk", value=[-1, 2]), "no counts"),
        (at("hardware", "nodes", value=[]), ""),
        (at("estimate", value=None), "not a plan"),
        (at("estimate", "iteration_time_s", value="fast"), "Estimate's iteration_time_s cannot be 'fast'"),
        (at("estimate", "iteration_time_s", value=0), "takes 0 s"),
        (at("because", value=[1]), "Plan's because"),
        (at("rates", "world_size", value=10**30), "Rates's world_size"),
        (at("recipe", "model", "moe_router_topk", value=[2]), "Architecture's moe_router_topk"),
        (at("recipe", "model", "moe_layer_pattern", value=[1]), "speaks of 1 layers, and the model has 48"),
        (at("rejected", 0, "layout", "cp", value="1"), "cannot be '1'"),
        (at("layout", value=[]), "not a plan"),
    ],
)
def test_a_changed_plan_is_refused_with_what_is_wrong(
    saved: str, change: Change, words: str, tmp_path: Path, parlaunch: Callable[..., Said]  # noqa: F811
) -> None:  # fmt: skip
    data = json.loads(saved)
    change(data)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    said = parlaunch("plan", "--plan", str(file))
    assert said.code == 2, said
    assert words in said.err
    assert "Traceback" not in said.err


def test_environment_and_command_of_a_file_are_not_believed(
    saved: str, tmp_path: Path, parlaunch: Callable[..., Said]  # noqa: F811
) -> None:  # fmt: skip
    data = json.loads(saved)
    data["argv"] = ["rm", "-rf", "/"]
    data["environment"] = [{"name": "LD_PRELOAD", "value": "/tmp/evil.so", "reason": "", "source": "", "kept": False}]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    said = parlaunch("plan", "--plan", str(file), "--format", "shell")
    assert said.code == 0, said.err
    assert "LD_PRELOAD" not in said.out
    assert "rm -rf" not in said.out


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": NaN}', '{"x": 1e999}', "", "null", "\xff", '{"a": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("option", ["--plan", "--model-config", "--machine-file"])
def test_files_that_are_no_json_are_one_message(
    option: str, text: str, tmp_path: Path, parlaunch: Callable[..., Said]  # noqa: F811
) -> None:  # fmt: skip
    file = tmp_path / "file.json"
    file.write_bytes(text.encode("latin-1"))
    recipe = ("--recipe", "llama32_1b_pretrain_config") if option == "--machine-file" else ()
    said = parlaunch("plan", option, str(file), "--hardware", "dgx-h100:2", *recipe)
    assert said.code == 2
    assert str(file) in said.err


@pytest.mark.parametrize("option", ["--plan", "--model-config", "--hardware", "--topology", "--machine-file"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_what_never_ends_is_not_read(
    option: str, kind: str, tmp_path: Path, parlaunch: Callable[..., Said]  # noqa: F811
) -> None:  # fmt: skip
    file = kind
    if kind == "pipe":
        file = str(tmp_path / "pipe")
        os.mkfifo(file)
    words = [option, file]
    words += (
        ["--recipe", "llama32_1b_pretrain_config"] if option in ("--hardware", "--topology", "--machine-file") else []
    )
    words += [] if option == "--hardware" else ["--hardware", "dgx-h100:2"]
    said = parlaunch("plan", *words)
    assert said.code == 2
    assert f"{option} {file} is a {'pipe' if kind == 'pipe' else 'device'}, not a file" in said.err

"""The front door: what `from parlaunch import …` gives is there, documented, true, and enough."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import parlaunch
from parlaunch import front
from tests.cli.conftest import Said
from tests.cli.conftest import parlaunch as parlaunch_said

__all__ = ["parlaunch_said"]
ROOT = Path(__file__).parent.parent
FUNCTIONS = [name for name in parlaunch.__all__ if inspect.isfunction(getattr(parlaunch, name))]
NAME = "llama3_8b_pretrain_config"


def test_every_name_is_there_and_no_file_or_room_shadows_it() -> None:
    assert dir(parlaunch) == sorted(parlaunch.__all__)
    assert {"machine", "plan", "recipe"} <= set(FUNCTIONS)
    names = {path.stem for path in Path(parlaunch.__file__).parent.iterdir()}
    assert not names & set(parlaunch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        parlaunch.plans  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example_that_is_true(name: str) -> None:
    function = getattr(parlaunch, name)
    [test] = doctest.DocTestFinder(recurse=False).find(function, name)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import parlaunch, sys; print([m for m in sys.modules if m.startswith('parlaunch.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "['parlaunch.version']\n"


def test_the_functions_plan_what_the_command_line_plans(parlaunch_said: Callable[..., Said]) -> None:
    words = ("--hardware", "dgx-h100:2", "--tp", "4", "--precision", "fp8cs", "--seq-length", "4096")
    said = parlaunch_said("plan", "--recipe", NAME, *words, "model.cp_comm_type=a2a", "--no-env", "--format", "json")
    printed = json.loads(said.out)
    start = parlaunch.Start(python=sys.executable, env=False)
    planned = parlaunch.to_json(
        parlaunch.plan(
            NAME, "dgx-h100:2", tp=4, precision="fp8cs", seq_length=4096, overrides=["model.cp_comm_type=a2a"],
            start=start,
        )
    )  # fmt: skip
    made = json.loads(json.dumps(planned))
    assert made["overrides"][-4:] == [
        "model.seq_length=4096", "dataset.seq_length=4096", "mixed_precision=bf16_with_fp8_current_scaling_mixed",
        "model.cp_comm_type=a2a",
    ]  # fmt: skip
    assert {k: v for k, v in made.items() if k != "warnings"} == {k: v for k, v in printed.items() if k != "warnings"}


def test_what_was_measured_is_planned_with() -> None:
    file = {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": 0.4}}
    sheet, slow = (parlaunch.plan(NAME, "dgx-h100:1", machine_file=f) for f in (None, file))
    assert slow.chosen.estimate.iteration_time_s > 1.2 * sheet.chosen.estimate.iteration_time_s
    assert slow.rates.measured == {"gemm_bf16": 0.4}
    assert "measured, from a machine file: gemm_bf16" in slow.warnings


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parlaunch.recipe("llama3_8b_pretrain_confg"), "llama3_8b_pretrain_config"),
        (lambda: parlaunch.recipe(), "neither"),
        (lambda: parlaunch.machine("dgx-h1000:2"), "dgx-h100"),
        (
            lambda: parlaunch.plan(NAME, "dgx-h100:1", tp=2, overrides=["model.tensor_model_parallel_size=4"]),
            "contradict",
        ),
        (lambda: parlaunch.plan(NAME, "dgx-h100:1", objective="speed"), "time, memory"),
        (lambda: parlaunch.why_not(parlaunch.plan(NAME, "dgx-h100:1"), banana=2), "banana"),
        (lambda: parlaunch.to_text(parlaunch.plan(NAME, "dgx-h100:1"), format="xml"), "sbatch"),
        (lambda: parlaunch.from_json({"schema": "other"}), "other"),
    ],
)
def test_errors_say_what_was_given_and_what_to_try(call: Callable[[], object], words: str) -> None:
    with pytest.raises(parlaunch.ParlaunchError) as caught:
        call()
    assert words in str(caught.value)
    assert caught.value.hint


def imported(code: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("parlaunch"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("parlaunch")}
    return found


@pytest.mark.checkout
def test_the_example_and_the_page_use_nothing_else() -> None:
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```pycon\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [e.source for fence in fences for e in doctest.DocTestParser().get_examples(fence)]
    for code in ("".join(lines), (ROOT / "examples/library_use.py").read_text(encoding="utf-8")):
        names = imported(code)
        assert names
        assert names <= {f"parlaunch.{name}" for name in parlaunch.__all__}


def test_the_front_door_has_no_function_that_it_does_not_show() -> None:
    public = {n for n, f in vars(front).items() if inspect.isfunction(f) and f.__module__ == front.__name__}
    assert {n for n in public if not n.startswith("_")} == set(FUNCTIONS)

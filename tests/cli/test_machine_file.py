"""Every output that rests on a machine file names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said
from tests.cli.test_verify_log import HERE, megatron

ROWS = Path(__file__).parents[2] / "examples" / "runs.json"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "this-cluster.json"
    path.write_text(
        json.dumps({"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": 0.6}, "fit": {}})
    )
    return str(path)


def test_plan_saved_plan_and_report_name_it(parlaunch: Callable[..., Said], tmp_path: Path, file: str) -> None:
    plan, page = tmp_path / "plan.json", tmp_path / "report.html"
    words = (*HERE, "--machine-file", file, "--report", str(page), "--save-plan", str(plan))
    said = "".join(parlaunch("plan", *words).out.split())  # a long path is broken over lines
    assert f"measured,fromthemachinefile{file}:gemm_bf16" in said
    assert file in page.read_text()
    assert json.loads(plan.read_text())["rates"]["measured_in"] == file
    again = parlaunch("plan", "--plan", str(plan), "--format", "json")
    assert json.loads(again.out)["rates"]["measured_in"] == file


def test_verify_names_it(parlaunch: Callable[..., Said], tmp_path: Path, file: str) -> None:
    (tmp_path / "run.log").write_text(megatron())
    words = ("verify", "--log", str(tmp_path / "run.log"), *HERE, "--machine-file", file)
    assert f"predicted with the machine file {file}" in parlaunch(*words).out
    assert json.loads(parlaunch(*words, "--format", "json").out)["runs"][0]["machine_file"] == file
    without = parlaunch(*words[:-2], "--format", "json")
    assert json.loads(without.out)["runs"][0]["machine_file"] is None


def test_validate_names_it(parlaunch: Callable[..., Said], file: str) -> None:
    words = ("validate", str(ROWS), "--machine-file", file)
    assert f"Predicted with the machine file {file}" in parlaunch(*words).out
    assert json.loads(parlaunch(*words, "--format", "json").out)["machine_file"] == file


def test_compare_names_it(parlaunch: Callable[..., Said], file: str) -> None:
    words = ("compare", *HERE, "--hardware", "dgx-h100:2", "--machine-file", file)
    assert f"with the machine file {file}" in parlaunch(*words).out
    assert json.loads(parlaunch(*words, "--format", "json").out)["machine_file"] == file

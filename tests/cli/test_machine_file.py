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


BIGGER = {
    "hidden_size": 4096,
    "ffn_hidden_size": 14336,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "kv_channels": 128,
}
LLAMA = {"model": "llama3_8b", "task": "pretrain", "sizes": BIGGER | {"vocab_size": 128256}, "slower": 1.25}


def learnt(folder: Path, **what: object) -> str:
    path = folder / "learnt.json"
    path.write_text(json.dumps({"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {}} | what))
    return str(path)


def test_what_runs_of_the_model_took_is_in_its_time_and_said(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    words = ("plan", *HERE, "--format", "json")
    plain = json.loads(parlaunch(*words).out)
    file, saved = learnt(tmp_path, models=[LLAMA]), tmp_path / "plan.json"
    slower = json.loads(parlaunch(*words, "--machine-file", file, "--save-plan", str(saved)).out)
    assert slower["layout"] == plain["layout"]
    assert slower["estimate"]["iteration_time_s"] == pytest.approx(1.25 * plain["estimate"]["iteration_time_s"])
    said = f"runs of this model took 1.25 times as long as is estimated for others, from the machine file {file}"
    assert said in slower["warnings"]
    again = json.loads(parlaunch("plan", "--plan", str(saved), "--format", "json").out)["rates"]["models"]
    assert again == [LLAMA | {"format": None}]  # as older files have it: whichever
    for other in (LLAMA | {"task": "peft"}, LLAMA | {"format": "fp4"}):
        without = parlaunch(*words, "--machine-file", learnt(tmp_path, models=[other]))
        assert json.loads(without.out)["estimate"] == plain["estimate"]


def test_what_runs_with_the_split_took_is_in_its_time_and_said(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    words = ("plan", *HERE, "--tp", "2", "--pp", "2", "--micro-batch-size", "1", "--format", "json")
    plain = json.loads(parlaunch(*words).out)
    split = {"tp": 2, "pp": 2, "micro_batch_size": 1, "slower": 1.04}
    file, saved = learnt(tmp_path, splits=[split]), tmp_path / "plan.json"
    slower = json.loads(parlaunch(*words, "--machine-file", file, "--save-plan", str(saved)).out)
    assert slower["estimate"]["iteration_time_s"] == pytest.approx(1.04 * plain["estimate"]["iteration_time_s"])
    said = (
        "runs with TP 2, PP 2 and micro batch 1 took 1.04 times as long as is estimated for others, from the machine "
    )
    assert f"{said}file {file}" in slower["warnings"]
    again = json.loads(parlaunch("plan", "--plan", str(saved), "--format", "json").out)
    assert again["rates"]["splits"] == [split]
    assert again["estimate"] == slower["estimate"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (3, "the machine file has a model 3: it has no sizes"),
        (
            LLAMA | {"slower": "1.2"},
            'runs of llama3_8b "1.2" times as long as its rates say: it is a number from 0.25 to 4.0',
        ),
        (LLAMA | {"slower": 1000.0}, "runs of llama3_8b 1000.0 times as long"),
        (
            LLAMA | {"sizes": {"width": 4096}},
            "the machine file has width 4096 of llama3_8b: sizes are whole numbers of hidden_size",
        ),
        (LLAMA | {"sizes": {"hidden_size": True}}, "the machine file has hidden_size true of llama3_8b"),
        (LLAMA | {"format": "int8"}, 'llama3_8b in the format "int8": it is one of fp32, bf16, fp8, fp4'),
    ],
)
def test_a_model_of_a_machine_file_that_is_none_is_refused(
    parlaunch: Callable[..., Said], tmp_path: Path, model: object, words: str
) -> None:
    said = parlaunch("plan", *HERE, "--machine-file", learnt(tmp_path, models=[model]))
    assert said.code == 2
    assert words in " ".join(said.err.split())


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({}, "the machine file's splits are {}: they are a list"),
        ([{"tp": 2, "pp": 1, "slower": 1.1}], "it has whole numbers of tp, pp, micro_batch_size"),
        (
            [{"tp": 2, "pp": 1, "micro_batch_size": 4, "slower": 0}],
            "runs of tp 2, pp 1, micro_batch_size 4 0 times as long as its rates say",
        ),
    ],
)
def test_a_split_of_a_machine_file_that_is_none_is_refused(
    parlaunch: Callable[..., Said], tmp_path: Path, splits: object, words: str
) -> None:
    said = parlaunch("plan", *HERE, "--machine-file", learnt(tmp_path, splits=splits))
    assert said.code == 2
    assert words in " ".join(said.err.split())

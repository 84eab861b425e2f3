"""`parlaunch history`: listed, filtered, forgotten."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parlaunch_launch import history
from tests.cli.conftest import Said


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = history.path(os.environ)
    for name, status in (("llama3_8b", "ok"), ("llama3_8b", "oom"), ("qwen3_8b", "ok")):
        history.append({"id": f"{name}/{status}", "when": "2026-01-01T10:00:00", "recipe": name, "gpus": 8, "gpu": "NVIDIA H100",
                        "tp": 2, "status": status, "iteration_time_s": 2.0}, file)  # fmt: skip
    return file


def test_runs_are_listed_filtered_and_found(parlaunch: Callable[..., Said], rows: Path) -> None:
    assert parlaunch("history", "--path").out.strip() == str(rows)
    assert len(parlaunch("history").out.splitlines()) == 4
    said = json.loads(parlaunch("history", "--recipe", "LLAMA", "--status", "oom", "--format", "json").out)
    assert [row["id"] for row in said["rows"]] == ["llama3_8b/oom"]


def test_runs_are_forgotten_by_name_and_never_by_accident(parlaunch: Callable[..., Said]) -> None:
    assert parlaunch("history", "forget").code == 2
    assert parlaunch("history", "forget", "llama3_8b/oom").code == 0
    assert [line.split()[1] for line in parlaunch("history").out.splitlines()[1:]] == ["llama3_8b", "qwen3_8b"]
    assert parlaunch("history", "forget", "--all").code == 0
    assert "no run is in" in parlaunch("history").out


def test_a_history_with_a_truncated_line_is_still_a_table_of_runs(parlaunch: Callable[..., Said], rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"id": "cut')
    said = parlaunch("validate", str(rows), "--format", "json")
    assert said.code == 0
    assert "line 4 is no JSON" in said.err
    assert len(json.loads(said.out)["rows"]) == 3


def test_rows_that_somebody_wrote_by_hand_are_listed_too(parlaunch: Callable[..., Said], rows: Path) -> None:
    odd = {
        "when": 3,
        "gpus": "eight",
        "tp": "two",
        "pp": [2],
        "iteration_time_s": "fast",
        "predicted": [],
        "peak_memory_gb": {},
    }
    history.append(odd, rows)
    history.append({"iteration_time_s": float("nan"), "predicted": {"iteration_time_s": {}}}, rows)
    huge = {"iteration_time_s": 10**400, "peak_memory_gb": 1e308, "predicted": {"iteration_time_s": -(10**400)}}
    history.append(huge | {"recipe": "\x1b]0;title\x07"}, rows)
    said = parlaunch("history")
    assert said.code == 0
    assert len(said.out.splitlines()) == 7
    assert "tp=two pp=[2]" in said.out
    assert max(map(len, said.out.splitlines())) < 200
    assert "\x1b" not in said.out


def test_a_table_of_runs_may_hold_bytes_that_are_no_text(parlaunch: Callable[..., Said], rows: Path) -> None:
    with rows.open("ab") as file:
        file.write(b'\xff\x00\n{"id": "latin \xe9"}\n' + b"[" * 100_000 + b"\n")
    said = parlaunch("validate", str(rows), "--format", "json")
    assert said.code == 0
    assert "line 4 is no JSON" in said.err
    assert "line 6 is no JSON" in said.err


def test_a_history_that_cannot_be_read_is_not_called_empty(parlaunch: Callable[..., Said], rows: Path) -> None:
    rows.unlink()
    rows.mkdir()
    for words in (("history",), ("history", "forget", "--all")):
        said = parlaunch(*words)
        assert said.code == 1
        assert "Is a directory" in said.err

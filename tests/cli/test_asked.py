"""A dry run asks the installed Megatron Bridge whether it builds what is planned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from parlaunch_probes import bridge
from tests.cli.conftest import Said

DRY = ("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:1", "--dry-run")
REFUSED = "Megatron Bridge 0.6.2 refuses this configuration: no such luck"


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A Bridge 0.6.2 whose checkout will run, and which refuses every configuration: what it was asked."""
    script = tmp_path / "scripts" / "training" / "run_recipe.py"
    package = tmp_path / "src" / "megatron" / "bridge" / "package_info.py"
    for path, text in ((script, ""), (package, "MAJOR = 0\nMINOR = 6\nPATCH = 2\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    seen: list[dict[str, Any]] = []

    def ask(child: str, _words: Sequence[str], _env: Mapping[str, str], question: str = "") -> dict[str, Any]:
        if child == "bridge_child":
            return {"error": "planned from the catalog here"}
        seen.append(json.loads(question))
        return {"refused": "no such luck"}

    monkeypatch.setattr(bridge, "_ask", ask)
    monkeypatch.setattr(bridge, "version", lambda: "0.6.2")
    monkeypatch.setenv("MEGATRON_BRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def test_what_bridge_refuses_is_the_first_thing_to_mind(
    parlaunch: Callable[..., Said], questions: list[dict[str, Any]]
) -> None:
    said = parlaunch(*DRY, "--format", "json", "--tp", "2")
    assert (said.code, json.loads(said.out)["warnings"][0]) == (0, REFUSED)
    asked = questions[0]
    assert (asked["world"], asked["gpu"], asked["capability"]) == (8, "NVIDIA H100 80GB HBM3", [9, 0])
    assert asked["argv"][:2] == ["--recipe", "llama32_1b_pretrain_config"]
    assert "model.tensor_model_parallel_size=2" in asked["argv"]


def test_it_is_asked_once_for_the_same_command(parlaunch: Callable[..., Said], questions: list[dict[str, Any]]) -> None:
    notes = []
    for _ in range(2):
        said = parlaunch(*DRY)
        assert REFUSED in said.out.replace("\n  ", " ")
        notes.append("asking Megatron Bridge 0.6.2" in said.err)
    assert notes == [True, False]
    parlaunch(*DRY, "--tp", "2")
    assert len(questions) == 2


def test_with_strict_it_stops(parlaunch: Callable[..., Said], questions: list[dict[str, Any]]) -> None:
    said = parlaunch(*DRY, "--strict")
    assert (said.code, said.out) == (1, "")
    assert REFUSED in said.err
    assert len(questions) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("plan", *DRY[:-1]),  # about layouts, not about a run
        (*DRY, "--device", "cpu", "--nproc-per-node", "2"),
        (*DRY, "--python", "/another/python"),  # its Bridge is another one
    ],
)
def test_it_is_not_asked_about_what_it_will_not_run(
    parlaunch: Callable[..., Said], questions: list[dict[str, Any]], words: tuple[str, ...]
) -> None:
    assert "refuses" not in parlaunch(*words).out
    assert not questions


def test_a_checkout_of_another_version_is_not_spoken_for(
    parlaunch: Callable[..., Said], questions: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "src" / "megatron" / "bridge" / "package_info.py").write_text("MAJOR = 0\nMINOR = 5\nPATCH = 1\n")
    assert "refuses" not in parlaunch(*DRY).out
    assert not questions


def test_a_bridge_that_cannot_be_asked_is_a_note(
    parlaunch: Callable[..., Said], questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_ask", lambda *_: {"error": "ImportError: no libcuda here"})
    said = parlaunch(*DRY)
    assert said.code == 0
    assert "note: the installed megatron.bridge could not be asked: ImportError: no libcuda here" in said.err

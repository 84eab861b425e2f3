"""The published JSON schemas: every output is valid, no field of it is undescribed, and none is stale."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from parlaunch.data import schemas, text
from parlaunch.planning.plan import plan_to_json
from tests.cli.conftest import Said
from tests.cli.test_screen import NAMES, loaded
from tests.cli.test_verify_log import HERE, megatron
from tests.probes.chaos import SAVED

ROOT = Path(__file__).parents[2]
SMALL = ("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:2")
OUTPUTS = {
    "plan": ("plan", *SMALL, "--format", "json"),
    "probe": ("probe", "--hardware", "gb200-nvl72:2", "--format", "json"),
    "validate": ("validate", str(ROOT / "examples" / "runs.json"), "--format", "json"),
    "compare": (
        "compare",
        "--recipe",
        "llama3_70b_pretrain_config",
        "--hardware",
        "dgx-h100:8",
        "--hardware",
        "dgx-h100:1",
        "--format",
        "json",
    ),
    "recipe": ("recipes", "show", "llama32_1b_pretrain_config", "--format", "json"),
    "recipe_list": ("recipes", "--format", "json"),
    "machines": ("machines", "--format", "json"),
    "config": ("config", "--all", "--format", "json"),
}


def schema(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(text(f"schemas/{name}.json"))
    return read


def undescribed(value: Any, known: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys of objects whose schema lists properties and does not list these."""
    if "$ref" in known:
        known = root["$defs"][known["$ref"].rsplit("/", 1)[1]]
    for one in known.get("anyOf", ()) if value is not None else ():
        yield from undescribed(value, one, root, path)
    if isinstance(value, dict) and "properties" in known:
        for key, inner in value.items():
            if key not in known["properties"]:
                yield f"{path}.{key}"
            else:
                yield from undescribed(inner, known["properties"][key], root, f"{path}.{key}")
    elif isinstance(value, list) and isinstance(known.get("items"), dict):
        for inner in value[:2]:
            yield from undescribed(inner, known["items"], root, f"{path}[]")


@pytest.mark.parametrize("name", schemas())
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_as_its_schema_says(name: str, parlaunch: Callable[..., Said]) -> None:
    data = json.loads(parlaunch(*OUTPUTS[name]).out)
    jsonschema.validate(data, schema(name))
    missing = [p for p in undescribed(data, schema(name), schema(name)) if not p.startswith((".rows", ".summary"))]
    assert not missing


def held(said: Said, name: str) -> None:
    data = json.loads(said.out)
    jsonschema.validate(data, schema(name))
    assert not list(undescribed(data, schema(name), schema(name)))


def test_what_verify_and_history_print_is_as_the_schemas_say(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "good.log").write_text(megatron())
    (tmp_path / "bad.log").write_text(megatron(loss="nan"))
    (tmp_path / "dead.log").write_text(
        megatron() + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    )
    held(parlaunch("verify", "--log", str(tmp_path), *HERE, "--format", "json"), "verify")
    held(parlaunch("history", "--format", "json"), "history")


def test_what_calibrate_prints_and_writes_is_as_its_schema_says(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    runs = str(ROOT / "examples" / "runs.json")
    held(parlaunch("calibrate", runs, "--gpu", "H100 SXM", "--out", str(out), "--format", "json"), "machine")
    jsonschema.validate(json.loads(out.read_text()), schema("machine"))


@pytest.mark.parametrize("machine", sorted(folder.name for folder in SAVED.iterdir()))
def test_a_captured_machine_is_as_the_schema_says(machine: str, parlaunch: Callable[..., Said]) -> None:
    held(parlaunch("probe", "--hardware", str(SAVED / machine), "--format", "json"), "probe")


def test_what_doctor_prints_is_as_its_schema_says(parlaunch: Callable[..., Said]) -> None:
    for machine in ("nvml-dgx-h100-sick", "nvml-dgx-h100-gpu-lost"):
        held(parlaunch("doctor", "--hardware", str(SAVED / machine), "--format", "json"), "doctor")


def test_what_diff_prints_is_as_its_schema_says(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert parlaunch("plan", *HERE, "--tp", "4", "--save-plan", str(plan), "--quiet").code == 0
    held(parlaunch("diff", "recipe", str(plan), "--format", "json"), "diff")


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_plan_is_as_the_schema_says(name: str) -> None:
    data = json.loads(json.dumps(plan_to_json(loaded(name), version="1")))
    data["hardware"]["nodes"] = data["hardware"]["nodes"][:2]  # of 2,000 alike
    jsonschema.validate(data, schema("plan"))
    assert not list(undescribed(data, schema("plan"), schema("plan")))


def test_the_command_prints_one_and_names_all(parlaunch: Callable[..., Said]) -> None:
    assert json.loads(parlaunch("schema", "plan").out) == schema("plan")
    assert tuple(parlaunch("schema").out.split()) == schemas()
    refused = parlaunch("schema", "plam")
    assert refused.code == 2
    assert "one of: plan" in refused.err


@pytest.mark.checkout
@pytest.mark.parametrize("script", ["schemas.py", "reference.py"])
def test_what_is_written_from_the_code_is_not_stale(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

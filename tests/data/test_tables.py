"""The package's tables: in canonical form, so that a change is a diff of the rows that changed, and as their schemas say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from parlaunch.data import load, text
from tests.conftest import need

ROOT = Path(__file__).parents[2]
BRIDGE = os.environ.get("BRIDGE_PYTHON", "")  # read before the tests clear what is ours
NAMES = (
    "architectures",
    "bridge_fields",
    "evidence",
    "operators",
    "pci_names",
    "presets",
    "products",
    "recipes",
    "software",
    "symptoms",
    "xids",
)


def schema(name: str) -> dict[str, Any]:
    return dict(load(f"schemas/{name}.json"))


def maker() -> ModuleType:
    """scripts/make/tables.py, through which every generator writes."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "make" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_has_a_schema() -> None:
    folder = files("parlaunch").joinpath("data")
    tables = {p.name for p in folder.iterdir() if p.name.endswith(".json")}
    schemas = {p.name for p in folder.joinpath("schemas").iterdir()}  # and those of what commands print
    assert tables == {f"{n}.json" for n in NAMES}
    assert tables <= schemas


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_as_its_schema_says(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    wrong = list(jsonschema.Draft202012Validator(schema(name)).iter_errors(load(f"{name}.json")))
    assert not wrong, [f"{list(e.path)[:3]}: {e.message[:200]}" for e in wrong[:5]]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_says_what_it_holds(name: str) -> None:
    def walk(shape: dict[str, Any], at: str) -> None:
        for key, inner in (shape.get("properties") or {}).items():
            assert inner.get("description"), f"{name}: {at}{key} has no description"
            walk(inner, f"{at}{key}.")
        for deeper in (shape.get("items"), shape.get("additionalProperties")):
            if isinstance(deeper, dict):
                walk(deeper, at)

    walk(schema(name), "")


@pytest.mark.checkout
@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_in_canonical_form(name: str) -> None:
    written = text(f"{name}.json")
    assert maker().canonical(name, json.loads(written)) == written, "run scripts/make/tables.py"


@pytest.mark.checkout
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_row_changes_one_line(name: str) -> None:
    before = text(f"{name}.json")
    table = json.loads(before)
    rows = table if name == "architectures" else max((v for v in table.values() if not isinstance(v, str)), key=len)
    at = list(rows)[3] if isinstance(rows, dict) else 3
    row = rows[at] if isinstance(rows[at], dict) else None
    if row is None:
        pytest.skip("its largest part is a list of names")
    row[next(name for name in ("source", "model", "form") if name in row)] += " and more"
    pairs = zip(before.splitlines(), maker().canonical(name, table).splitlines(), strict=True)
    assert sum(a != b for a, b in pairs) == 1


@pytest.mark.bridge
@pytest.mark.checkout
def test_the_catalog_is_what_an_installed_bridge_says(tmp_path: Path) -> None:
    """scripts/make/recipes.py, for a recipe of either kind (each takes half a minute); it prints what differs and exits 1."""
    need(BRIDGE, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    subprocess.run([BRIDGE, str(ROOT / "scripts/fuzz/bridge_hub.py"), str(tmp_path)], check=True, capture_output=True)
    names = ("qwen3_8b_sft_config", "llama3_70b_peft_8gpu_b200_bf16_config")
    done = subprocess.run(
        [BRIDGE, "-W", "ignore", str(ROOT / "scripts/make/recipes.py"), *names],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-500:]


LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip


@pytest.mark.checkout
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"num_hidden_layers": 18}, "num_layers: 16 in the table, 18 in the configuration"),
        ({"num_hidden_layers": "many"}, "not read"),
    ],
)
def test_architectures_are_held_against_configurations(tmp_path: Path, change: dict[str, object], says: str) -> None:
    folder = tmp_path / "hub" / "models--meta-llama--Llama-3.2-1B" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | change), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/make/architectures.py")],
        capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert says in done.stdout
    assert bool(done.stdout) == bool(says), done.stdout
    assert "Traceback" not in done.stderr


def test_published_layouts_are_of_their_recipes_batch() -> None:
    recipes = {row["name"]: row for row in load("recipes.json")["recipes"]}
    said = ("seq", "gbs", "precision", "gpus", "task")
    published = [row for row in load("evidence.json")["rows"] if "tokens" not in row]
    different = [row["name"] for row in published if any(row[k] != recipes[row["name"]][k] for k in said)]
    assert published
    assert different == []


@pytest.mark.checkout
def test_measured_evidence_is_what_the_measured_runs_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/make/evidence.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-500:]

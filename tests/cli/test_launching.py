"""A plan made whole without a process around it: what a library user gets is what the command line prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from parlaunch.environment.torchrun import Rendezvous
from parlaunch.hardware.datasheet import preset
from parlaunch.launching import BRIDGE_RUNNER, Start, complete
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Plan, Wishes, plan_to_json
from parlaunch.planning.planner import plan
from tests.cli.conftest import Said

NAME = "llama3_8b_pretrain_config"


@pytest.fixture(scope="module")
def bare() -> Plan:
    return plan(preset("dgx-h100", 2), recipe(NAME), Wishes())


def torch_here() -> str | None:
    return version("torch") if find_spec("torch") else None


def test_a_library_users_plan_is_the_printed_one(
    parlaunch: Callable[..., Said], bare: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    printed = json.loads(parlaunch("plan", "--recipe", NAME, "--hardware", "dgx-h100:2", "--format", "json").out)
    start = Start(
        environ=dict(os.environ), python=sys.executable, torch_version=torch_here(), numactl=bool(which("numactl"))
    )
    made = plan_to_json(complete(bare, start), version=printed["version"])
    for part in ("environment", "overrides", "argv", "rank_order", "layout", "estimate", "memory", "rates"):
        assert made[part] == printed[part], part


def test_nothing_of_this_process_is_read(bare: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    before = complete(bare)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "9")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert complete(bare) == before
    assert before.argv[0] == "python"
    assert before.argv[-len(before.overrides) - 4 : -len(before.overrides)] == (*BRIDGE_RUNNER, "--recipe", NAME)


def test_a_value_of_the_users_stands_and_is_said_to(bare: Plan) -> None:
    made = complete(bare, Start(environ={"CUDA_DEVICE_MAX_CONNECTIONS": "8"}))
    assert [(v.value, v.kept) for v in made.environment if v.name == "CUDA_DEVICE_MAX_CONNECTIONS"] == [("8", True)]


def test_a_node_gets_its_number_and_all_others_words_for_a_shell(bare: Plan) -> None:
    met = Start(rendezvous=Rendezvous(master_addr="gpu01", master_port=23456))
    words = complete(bare, met, node=1).argv
    assert words[words.index("--node-rank") + 1] == "1"
    assert words[words.index("--master-addr") + 1] == "gpu01"
    assert "${NODE_RANK}" in complete(bare).argv


def test_what_is_not_wanted_is_left_out(bare: Plan) -> None:
    assert complete(bare, Start(env=False)).environment == ()


def test_fsdp_that_was_wished_is_told_to_a_recipe_without_it() -> None:
    own = recipe(NAME)
    made = plan(preset("dgx-h100", 1), own, Wishes(fsdp=True))
    assert made.recipe.features.fsdp
    assert "dist.use_megatron_fsdp=True" in complete(made, recipe=own).overrides


def test_a_dry_run_says_what_will_stop_the_launch(parlaunch: Callable[..., Said]) -> None:
    sick = str(Path(__file__).parents[1] / "machines" / "nvml-dgx-h100-sick")
    words = ("--recipe", "llama32_1b_pretrain_config", "--hardware", sick)
    said = parlaunch(*words, "--dry-run", "--format", "json")
    assert said.code == 0
    first = json.loads(said.out)["warnings"][0]
    assert first.startswith("FAIL, which stops a launch: GPU 6: row remapping failed")
    forced = json.loads(parlaunch(*words, "--dry-run", "--force", "--format", "json").out)
    assert forced["warnings"][0].startswith("FAIL: GPU 6")
    assert not any("FAIL" in w for w in json.loads(parlaunch("plan", *words, "--format", "json").out)["warnings"])

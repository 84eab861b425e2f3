"""A plan held against what the real Megatron Bridge builds from its command."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.built import compared, keys_of, runner_arguments
from parlaunch.hardware.datasheet import preset
from parlaunch.launching import complete
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.planning.planner import plan
from parlaunch_launch.cpu import hub_cache
from tests.conftest import HANGS_S, bridge_python

NAME = "llama32_1b_pretrain_config"


@pytest.fixture(scope="module")
def made() -> Plan:
    return complete(plan(preset("dgx-h100", 1), recipe(NAME), Wishes(evidence=False)))


def answer(python: str, question: dict[str, Any], home: Path) -> dict[str, Any]:
    """Of the child process that `parlaunch_probes.bridge.built` starts."""
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "parlaunch_probes.bridge_built"], input=json.dumps(question),
        capture_output=True, text=True, timeout=HANGS_S, check=True,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "8"},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.bridge
def test_the_real_bridge_builds_what_is_planned_or_says_what_it_does_not(made: Plan, tmp_path: Path) -> None:
    python = bridge_python()
    known = recipe(NAME)
    config = hub_cache.hf_config(str(known.model_id), known.architecture)
    assert config is not None
    hub_cache.write(tmp_path / "hub", str(known.model_id), config)
    question = {
        "argv": runner_arguments(made), "world": 8, "gpu": "NVIDIA H100 80GB HBM3", "capability": [9, 0],
        "keys": keys_of(made), "prepare": "parlaunch_launch.finished:without_gpus", "build": "parlaunch_launch.finished:finished",
    }  # fmt: skip
    built = answer(python, question, tmp_path)
    count, different = compared(made, built)
    assert different == {}
    assert count > 50

    other = replace(made, chosen=replace(made.chosen, layout=replace(made.layout, micro_batch_size=4)))
    _, said = compared(other, built)
    assert said["micro_batch_size"] == f"planned 4, Megatron Bridge builds {made.layout.micro_batch_size}"
    assert set(said) == {"micro_batch_size", "micro batches"}

    wrong = question | {"argv": [*runner_arguments(made), "model.tensor_model_parallel_size=3"]}
    assert "divisible" in answer(python, wrong, tmp_path)["refused"]
    assert "no_such" in answer(python, question | {"prepare": "no_such:thing"}, tmp_path)["error"]

"""Megatron Bridge's own recipe, overrides, validation and pretrain() on CPU, started by the same command.

The environment with Bridge is the one of `PARLAUNCH_BRIDGE_PYTHON`, or this one when it has Bridge.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch.verdict import Measured
from parlaunch_launch.training_log import read
from tests.conftest import need

pytestmark = pytest.mark.bridge

# Read when tests are collected: the fixture that gives every test a clean environment takes PARLAUNCH_ variables away.
NAMED = os.environ.get("PARLAUNCH_BRIDGE_PYTHON")


def _here() -> bool:
    return importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.bridge") is not None


def parlaunch(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    python = NAMED or (sys.executable if _here() else None)
    need(python, "an environment with megatron-bridge (PARLAUNCH_BRIDGE_PYTHON)")
    assert python is not None
    env = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [python, "-m", "parlaunch", "--device", "cpu", *args, "train.train_iters=3"],
        capture_output=True, text=True, timeout=500, check=False, cwd=folder, env=env,
    )  # fmt: skip


def shown(done: subprocess.CompletedProcess[str]) -> Measured:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return read(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("bridge-llama")
    pins = ("--nproc-per-node", "4", "--tp", "2", "--pp", "2")
    return parlaunch(folder, "--recipe", "llama32_1b_pretrain_config", *pins)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("bridge-qwen")
    pins = ("--nproc-per-node", "2", "--ep", "2")
    return parlaunch(folder, "--recipe", "qwen3_30b_a3b_pretrain_config", *pins)


def test_bridge_trains_llama_with_a_finite_loss_at_iteration_3(llama: subprocess.CompletedProcess[str]) -> None:
    last = shown(llama).iterations[-1]
    assert last.number == 3
    assert last.loss is not None
    assert math.isfinite(last.loss)


def test_bridge_runs_tp_2_pp_2_dp_1_on_4_ranks(llama: subprocess.CompletedProcess[str]) -> None:
    layout = shown(llama).layout
    assert (layout["tp"], layout["pp"], layout["dp"], layout["world"]) == (2, 2, 1, 4)
    assert "initialized tensor model parallel with size 2" in llama.stdout
    assert "initialized pipeline model parallel with size 2" in llama.stdout


def test_it_is_bridge_that_trains_and_no_checkpoint_is_left(
    llama: subprocess.CompletedProcess[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert "parlaunch_launch.cpu.bridge_runner" in llama.stdout + llama.stderr
    assert "MockGPTDataset" in llama.stdout + llama.stderr  # Bridge's data set, not ours
    assert not list(tmp_path_factory.getbasetemp().glob("bridge-llama*/nemo_experiments/*/checkpoints/*"))


def test_bridge_spreads_the_experts_of_qwen_over_two_ranks(qwen: subprocess.CompletedProcess[str]) -> None:
    measured = shown(qwen)
    assert (measured.layout["ep"], measured.layout["dp"], measured.layout["world"]) == (2, 2, 2)
    assert measured.loss_is_finite
    assert len(measured.iterations) == 3


ASK_BRIDGE = """
import json
from types import SimpleNamespace
from parlaunch.errors import ParlaunchError
from parlaunch_launch.cpu.missing import fill_in
fill_in()
from parlaunch_launch.cpu.bridge_runner import before_bridge
before_bridge()
from parlaunch_launch.bridge_runner import configured, find_recipe, forward_step, task_of

def step(module, named=None):
    model = type("Provider", (), {"__module__": module})()
    return forward_step(SimpleNamespace(model=model), named).__module__

def refusal(name):
    try:
        find_recipe(name)
    except ParlaunchError as error:
        return str(error)

config = configured(find_recipe("vanilla_gpt_pretrain_config")(), ["dataset.seq_length=128", "train.train_iters=7"])
print(json.dumps({
    "library": find_recipe("llama32_1b_pretrain_config").__module__,
    "benchmark": find_recipe("deepseek_v3_pretrain_1024gpu_h100_fp8cs_config").__module__,
    "refusal": refusal("llama32_1b_pretrain_confg"),
    "steps": [step("megatron.bridge.models.llama.llama_provider"), step("megatron.bridge.models.gemma_vl.gemma3_vl_provider"),
              step("megatron.bridge.models.llama.llama_provider", "vlm_step")],
    "config": [config.model.seq_length, config.train.train_iters],
    "tasks": [task_of(n) for n in ("llama32_1b_sft_config", "llama32_1b_peft_config", "llama32_1b_pretrain_config")],
}))
"""


def test_our_runner_finds_recipes_steps_and_tasks_in_the_installed_bridge() -> None:
    python = NAMED or (sys.executable if _here() else None)
    need(python, "an environment with megatron-bridge (PARLAUNCH_BRIDGE_PYTHON)")
    done = subprocess.run([str(python), "-c", ASK_BRIDGE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["library"].startswith("megatron.bridge.recipes.llama")
    assert answer["benchmark"].startswith("megatron.bridge.perf_recipes.deepseek")
    assert "nearest: llama32_1b_pretrain_config" in answer["refusal"]
    assert answer["steps"] == [f"megatron.bridge.training.{name}" for name in ("gpt_step", "vlm_step", "vlm_step")]
    assert answer["config"] == [128, 7]
    assert answer["tasks"] == ["finetune", "finetune", "pretrain"]

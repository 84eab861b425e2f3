"""Megatron Bridge's own recipe, overrides, validation and pretrain() on CPU, started by the same command.

The environment with Bridge is the one of `PARLAUNCH_BRIDGE_PYTHON`, or this one when it has Bridge.
"""

from __future__ import annotations

import importlib.util
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

"""Real Megatron Core trains on gloo ranks: what the planner plans is what `parallel_state` reports back."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.verdict import Measured
from parlaunch.environment import torchrun
from parlaunch.environment.overrides import overrides
from parlaunch.hardware.cluster import Cluster, Node
from parlaunch.hardware.cpu import with_cpu_ranks
from parlaunch.model.catalog import recipe
from parlaunch.model.layout import layout_to_json
from parlaunch.model.tiny import shrink, tiny_overrides
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan
from tests.conftest import HANGS_S, need
from tests.launch.logs import read

pytestmark = pytest.mark.training

LLAMA, QWEN, DEEPSEEK = "llama32_1b_pretrain_config", "qwen3_30b_a3b_pretrain_config", "deepseek_v3_pretrain_config"
WORLD = 4
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "tp2 dp2": (LLAMA, {"tp": 2, "pp": 1, "cp": 1, "micro_batch_size": 1}),
    "cp2 dp2": (LLAMA, {"cp": 2, "tp": 1, "pp": 1, "micro_batch_size": 1}),
    "pp2 vp2": (LLAMA, {"pp": 2, "vp": 2, "tp": 1, "cp": 1}),
    "tp2 pp2 without vp": (LLAMA, {"tp": 2, "pp": 2, "vp": 1}),
    "ep2": (QWEN, {"ep": 2, "tp": 1, "pp": 1}),
    "ep2 tp2": (QWEN, {"ep": 2, "tp": 2, "etp": 1, "pp": 1}),
    "mla tp2 ep2": (DEEPSEEK, {"ep": 2, "tp": 2, "etp": 1, "pp": 1}),
    "the planner's own": (QWEN, {}),
}
"""Name of a case: recipe and pins."""


def planned(name: str, pins: dict[str, Any]) -> tuple[dict[str, object], list[str]]:
    """Layout of the plan for four ranks, and the overrides that carry it."""
    tiny = shrink(recipe(name), WORLD, keep=pins)
    host = Cluster(nodes=(Node(hostname="here", memory_bytes=2**35),), source="test")
    layout = plan(with_cpu_ranks(host, WORLD), tiny, replace(Wishes(), **pins)).layout
    return layout_to_json(layout), [
        *tiny_overrides(tiny),
        *map(str, overrides(tiny, layout, device="cpu")),
        "train.train_iters=3",
    ]


def launch(*runner: str, ranks: int = WORLD) -> subprocess.CompletedProcess[str]:
    argv = torchrun.command(list(runner), python=sys.executable, nnodes=1, nproc_per_node=ranks)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=2 * HANGS_S, check=False, env=env)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, object], Measured]]:
    """Every case, trained in one start of four ranks: the layout planned, and what the log shows."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    plans = {name: planned(*case) for name, case in CASES.items()}
    file = tmp_path_factory.mktemp("layouts") / "cases.json"
    file.write_text(json.dumps([[CASES[name][0], said] for name, (_, said) in plans.items()]))
    done = launch(str(Path(__file__).with_name("layouts.py")), str(file))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    parts = re.split(r"== case \d+\n", done.stdout)[1:]
    return {name: (plans[name][0], read(text)) for name, text in zip(plans, parts, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_planned_layout_is_what_parallel_state_reports(
    trained: dict[str, tuple[dict[str, object], Measured]], name: str
) -> None:
    layout, measured = trained[name]
    names = ("tp", "pp", "cp", "ep", "etp", "dp", "edp")
    assert {k: measured.layout[k] for k in names} == {k: layout[k] for k in names}
    assert measured.layout["world"] == WORLD
    assert measured.layout.get("vp") == layout["vp"]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_finite_and_falls(trained: dict[str, tuple[dict[str, object], Measured]], name: str) -> None:
    iterations = trained[name][1].iterations
    assert [i.number for i in iterations] == [1, 2, 3]
    losses = [i.loss for i in iterations]
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0]


def test_layouts_that_share_the_batch_alike_compute_the_same_loss(
    trained: dict[str, tuple[dict[str, object], Measured]],
) -> None:
    tensor, context = (trained[name][1].iterations[0].loss for name in ("tp2 dp2", "cp2 dp2"))
    assert tensor == pytest.approx(context, rel=2e-4)  # bf16 sums in another order


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The main job as a user types it, for three iterations."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    argv = [
        *(sys.executable, "-m", "parlaunch", "--recipe", LLAMA, "--device", "cpu", "--nproc-per-node", "4"),
        *("--tp", "2", "--pp", "2", "train.train_iters=3"),
    ]
    folder = tmp_path_factory.mktemp("main")
    return subprocess.run(argv, capture_output=True, text=True, timeout=2 * HANGS_S, check=False, cwd=folder)


def test_the_main_job_ends_well_with_a_finite_loss_at_iteration_3(main_job: subprocess.CompletedProcess[str]) -> None:
    assert main_job.returncode == 0, main_job.stderr[-4000:]
    last = read(main_job.stdout).iterations[-1]
    assert last.number == 3
    assert last.loss is not None
    assert math.isfinite(last.loss)


def test_the_main_job_runs_tp_2_pp_2_dp_1_on_4_ranks(main_job: subprocess.CompletedProcess[str]) -> None:
    layout = read(main_job.stdout).layout
    assert (layout["tp"], layout["pp"], layout["dp"], layout["world"]) == (2, 2, 1, 4)


def test_verify_with_switches_trains_with_them(tmp_path: Path) -> None:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    argv = [
        *(sys.executable, "-m", "parlaunch", "verify", "--recipe", QWEN, "--device", "cpu", "--nproc-per-node", "4"),
        *("--ep", "2", "--pp", "2", "--vp", "2", "--switches", "dp_overlap=on,dp_bucket=20000,p2p_overlap=on,bias_fusion=on"),
    ]  # fmt: skip
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * HANGS_S, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    logs = "".join(file.read_text() for file in tmp_path.rglob("*.log"))
    has = re.search(r"running with: (.*)", logs)
    assert has, logs[-3000:]
    there = dict(word.split("=") for word in has[1].split())
    assert int(there.pop("buckets")) > 4  # without: one for each of a rank's two stages, and one for its experts
    assert there.pop("model.recompute_granularity") == "None"
    assert set(there.values()) == {"True"}, there


def test_a_mistyped_override_is_refused_in_one_message() -> None:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    done = launch("-m", "parlaunch_launch.cpu.core_runner", "--recipe", LLAMA, "model.num_layer=2", ranks=1)
    assert done.returncode != 0
    assert "error: model.num_layer=2: model has no field 'num_layer'\n  hint: nearest: model.num_layers" in done.stderr
    assert "core_runner.py" not in done.stderr.replace("core_runner FAILED", "")

"""The recipe as the installed Bridge builds it, and what is kept of the answer."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parlaunch.environment.overrides import overrides
from parlaunch.errors import ProbeError
from parlaunch.model.catalog import recipe as catalog_recipe
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import total_params
from parlaunch_launch.cpu import hub_cache
from parlaunch_probes import bridge, bridge_child
from tests.conftest import HANGS_S, bridge_python

BUILD = "parlaunch_launch.bridge_runner:found"
NAME = "llama32_1b_pretrain_config"
ANSWER: dict[str, Any] = {
    "model": {"num_layers": 12, "hidden_size": 2048, "vocab_size": 128256},
    "seq_length": 2048,
    "global_batch_size": 64,
    "precision": "fp8mx",
    "layout": {
        "tp": 2, "pp": 1, "vp": None, "cp": 1, "ep": 1, "etp": None, "micro_batch_size": 4, "sequence_parallel": True,
        "recompute": {"granularity": "selective", "modules": ["core_attn"], "method": None, "num_layers": None},
    },
    "features": {},
    "env": {"NCCL_NVLS_ENABLE": "0"},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stands in for the child: what it is asked is counted, and it answers from `ANSWER`, or fails for other names."""
    questions: list[str] = []

    def ask(_child: str, words: list[str], _env: object) -> dict[str, Any]:
        name = words[0]
        questions.append(name)
        return ANSWER if name == NAME else {"error": "ValueError: no"}

    monkeypatch.setattr(bridge, "_ask", ask)
    monkeypatch.setattr(bridge, "version", lambda: "0.6.2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return questions


def test_bridge_says_what_is_trained_and_the_catalog_what_it_is_called(asked: list[str]) -> None:
    known = catalog_recipe(NAME)
    got = bridge.recipe(NAME, known, build=BUILD)
    assert (got.source, got.seq_length, got.precision) == ("bridge", 2048, "fp8mx")
    assert got.architecture.num_layers == 12
    assert got.architecture.kv_channels == known.architecture.kv_channels
    assert got.model_id == "meta-llama/Llama-3.2-1B"
    assert got.defaults.tp == 2


@pytest.mark.parametrize("place", ["model", "comm_overlap"])
def test_a_recipe_of_ones_own_says_that_it_defers_what_hides_in_the_bubble(place: str) -> None:
    config = SimpleNamespace(
        model=SimpleNamespace(), comm_overlap=SimpleNamespace(), ddp=SimpleNamespace(), optimizer=SimpleNamespace()
    )
    assert bridge_child.beside(config) == []
    getattr(config, place).defer_embedding_wgrad_compute = True
    got = bridge._recipe("mine", ANSWER | {"unsettled": bridge_child.beside(config)}, None)
    off = "comm_overlap.defer_embedding_wgrad_compute=False"
    assert off in map(str, overrides(got, Layout(world=8, global_batch_size=64)))
    assert off not in map(str, overrides(got, Layout(world=8, pp=2, global_batch_size=64)))


def test_what_excludes_another_value_is_as_the_installed_release_has_it() -> None:
    known = catalog_recipe("nemotron_3_ultra_pretrain_256gpu_gb200_fp8mx_config")
    assert known.unsettled == ("num_buckets",)
    assert bridge._recipe(known.name, ANSWER | {"unsettled": []}, known).unsettled == ()
    config = SimpleNamespace(
        model=SimpleNamespace(cuda_graph_modules=["attn"]),
        comm_overlap=None,
        ddp=SimpleNamespace(bucket_size=8),
        optimizer=SimpleNamespace(),
    )
    assert bridge_child.beside(config) == ["bucket_size", "cuda_graph_modules"]
    config = SimpleNamespace(
        model=SimpleNamespace(cuda_graph_modules="full"),
        comm_overlap=None,
        ddp=SimpleNamespace(num_buckets=4),
        optimizer=SimpleNamespace(),
    )
    assert bridge_child.beside(config) == ["num_buckets"]


@pytest.mark.parametrize(("on", "named"), [(False, ["optimizer_offload_fraction"]), (True, [])])
def test_a_share_of_the_optimizer_that_waits_for_its_switch_is_named(on: bool, named: list[str]) -> None:
    held = SimpleNamespace(optimizer_cpu_offload=on, optimizer_offload_fraction=1.0)
    config = SimpleNamespace(model=SimpleNamespace(), comm_overlap=None, ddp=SimpleNamespace(), optimizer=held)
    assert bridge_child.beside(config) == named


def test_what_no_feature_says_is_named() -> None:
    model = SimpleNamespace(deterministic_mode=True, moe_expert_capacity_factor=1.1)
    data = SimpleNamespace(fast_cache_load=False, defer_npy_index_mmap=True)
    config = SimpleNamespace(
        model=model, dataset=data, comm_overlap=None, ddp=SimpleNamespace(), optimizer=SimpleNamespace()
    )
    assert bridge_child.beside(config) == ["moe_expert_capacity_factor", "fast_cache_load", "deterministic_mode"]


def test_it_is_asked_once(asked: list[str]) -> None:
    assert bridge.recipe(NAME, build=BUILD) == bridge.recipe(NAME, build=BUILD)
    assert asked == [NAME]


def test_a_failure_is_named_and_not_paid_for_twice_within_the_hour(asked: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ProbeError, match="could not build other: ValueError: no"):
            bridge.recipe("other", build=BUILD)
    assert asked == ["other"]
    for file in tmp_path.rglob("other.json"):
        os.utime(file, (0, 0))
    with pytest.raises(ProbeError):
        bridge.recipe("other", build=BUILD)
    assert asked == ["other", "other"]


def test_a_cache_that_cannot_be_written_or_read_changes_nothing(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert bridge.recipe(NAME, build=BUILD).seq_length == 2048


def test_a_child_that_dies_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ProbeError, match="could not build x"):
        bridge.recipe("x", build="no_such_module:f")


@pytest.mark.bridge
def test_the_real_bridge_builds_the_recipe_of_the_catalog(tmp_path: Path) -> None:
    python = bridge_python()
    known = catalog_recipe(NAME)
    config = hub_cache.hf_config(str(known.model_id), known.architecture)
    assert config is not None
    hub_cache.write(tmp_path / "hub", str(known.model_id), config)
    done = subprocess.run(
        [python, "-m", "parlaunch_probes.bridge_child", NAME, BUILD, "parlaunch_launch.cpu.bridge_runner:importable"],
        capture_output=True, text=True, timeout=HANGS_S, check=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in answer, answer
    got = bridge._recipe(NAME, answer, known)
    assert total_params(got.architecture) == total_params(known.architecture)
    assert (got.seq_length, got.global_batch_size, got.precision) == (8192, 512, "bf16")
    assert got.defaults.micro_batch_size == known.defaults.micro_batch_size


def test_bridge_is_asked_for_every_switch_that_a_recipe_has() -> None:
    from dataclasses import fields
    from inspect import getsource

    from parlaunch.model.recipe import Features

    said = getsource(bridge_child.features) + getsource(bridge_child.adapters)
    aliases = {
        "cuda_graph_scope": "cuda_graph", "distributed_optimizer": "no_distributed_optimizer",
        "reduce_overlap": "no_reduce_overlap", "gather_overlap": "no_gather_overlap",
    }  # fmt: skip
    ours = {
        "sequence_parallel",
        "framework",
        "optimizer_instances",
    }  # of published runs; a recipe of Bridge's has them as sizes, or not at all
    missing = {f.name for f in fields(Features)} - ours
    assert not {name for name in missing if f'"{aliases.get(name, name)}"' not in said}

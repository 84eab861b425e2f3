"""The hub cache that lets Bridge build a recipe without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parlaunch.model.catalog import recipe
from parlaunch_launch.cpu import hub_cache
from parlaunch_launch.cpu.bridge_runner import offline_hub, why_core


@pytest.mark.parametrize(
    ("name", "model_type", "sizes"),
    [
        ("llama32_1b_pretrain_config", "llama", {"num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64}),
        ("qwen25_500m_pretrain_config", "qwen2", {"hidden_size": 896, "attention_bias": True}),
        ("qwen3_8b_pretrain_config", "qwen3", {"num_hidden_layers": 36}),
        ("qwen3_30b_a3b_pretrain_config", "qwen3_moe", {"num_experts": 128, "num_experts_per_tok": 8}),
        ("deepseek_v3_pretrain_config", "deepseek_v3", {"n_routed_experts": 256, "kv_lora_rank": 512, "n_group": 8}),
    ],
)
def test_the_config_has_the_family_s_names_and_the_catalog_s_sizes(
    name: str, model_type: str, sizes: dict[str, int]
) -> None:
    found = recipe(name)
    config = hub_cache.hf_config(str(found.model_id), found.architecture)
    assert config is not None
    assert config["model_type"] == model_type
    assert {k: config[k] for k in sizes} == sizes


def test_it_is_laid_out_as_the_hub_s_client_looks_for_it(tmp_path: Path) -> None:
    commit = "a" * 40
    hub_cache.write(tmp_path, "org/Model-1B", {"x": 1}, [commit])
    folder = tmp_path / "models--org--Model-1B"
    assert (folder / "refs" / "main").read_text() == commit
    assert json.loads((folder / "snapshots" / commit / "config.json").read_text()) == {"x": 1}
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["config.json", "main"]


def test_the_user_s_own_cache_comes_first(tmp_path: Path) -> None:
    found = recipe("llama32_1b_pretrain_config")
    environ = {"HF_HOME": str(tmp_path)}
    hub_cache.write(tmp_path / "hub", str(found.model_id), {})
    assert hub_cache.cached(str(found.model_id), environ)
    assert offline_hub(found, environ) is None
    assert environ == {"HF_HOME": str(tmp_path)}


def test_without_one_the_hub_s_client_is_pointed_at_ours_and_kept_off_the_network(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    hub = offline_hub(recipe("llama32_1b_pretrain_config"), environ)
    assert hub == tmp_path / ".cache" / "parlaunch" / "hub"
    assert (environ["HF_HUB_CACHE"], environ["HF_HUB_OFFLINE"]) == (str(hub), "1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama32_1b_pretrain_config", None),
        ("llama32_1b_sft_config", "fine-tuning starts from a checkpoint"),
        ("gemma3_1b_pretrain_config", "window"),
        ("qwen3_next_80b_a3b_pretrain_config", "linear-attention"),
    ],
)
def test_why_bridge_does_not_train_a_tiny_version_is_said(
    name: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    reason = why_core(recipe(name))
    assert (reason is None) if said is None else (said in (reason or ""))

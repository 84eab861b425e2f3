"""Megatron Bridge's own recipe, overrides, validation and pretrain() on CPU, started by the same command.

The environment with Bridge is the one of `BRIDGE_PYTHON`, or this one when it has Bridge.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.verdict import Measured
from tests.conftest import HANGS_S, bridge_python
from tests.launch.logs import read

pytestmark = pytest.mark.bridge


def parlaunch(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    python = bridge_python()
    env = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [python, "-m", "parlaunch", "--device", "cpu", "-v", *args, "train.train_iters=3"],
        capture_output=True, text=True, timeout=2 * HANGS_S, check=False, cwd=folder, env=env,
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
    pins = ("--nproc-per-node", "2", "--ep", "2", "--switches", "dp_bucket=20000,bias_fusion=on")
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


def test_bridge_trains_with_the_switches_that_were_asked_for(qwen: subprocess.CompletedProcess[str]) -> None:
    said = qwen.stdout + qwen.stderr
    assert re.search(r"Setting up DistributedDataParallel with config .*\bbucket_size=20000\b", said)
    fused = set(re.findall(r"^\s*(bias_\w+_fusion): (\w+)", said, re.MULTILINE))  # Bridge's report of its configuration
    assert fused == {("bias_activation_fusion", "True"), ("bias_dropout_fusion", "True")}


SIZES: dict[str, Any] = {
    "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "torch_dtype": "bfloat16",
    "initializer_range": 0.02, "tie_word_embeddings": False, "attention_bias": False, "vocab_size": 512, "hidden_size": 64,
    "num_hidden_layers": 4, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "router_aux_loss_coef": 0.001, **EXPERTS,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 4, "head_dim": None,
        "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 1.0, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0, **EXPERTS,
    },
}  # fmt: skip
"""Tiny models of three kinds, as their makers' config.json would say it: dense, with experts, with latent attention."""


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_s_config_is_trained_by_bridge_s_own_conversion_of_it(kind: str, tmp_path: Path) -> None:
    config = {k: v for k, v in (SIZES | CONFIGS[kind]).items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    measured = shown(parlaunch(tmp_path, "--model-config", str(tmp_path), "--nproc-per-node", "2"))
    assert measured.loss_is_finite
    assert len(measured.iterations) == 3


ASK_BRIDGE = """
import json
from parlaunch.errors import ParlaunchError
from parlaunch_launch.cpu.missing import fill_in
fill_in()
from parlaunch_launch.cpu.bridge_runner import before_bridge
before_bridge()
from parlaunch_launch.bridge_recipes import find_recipe, forward_step, mode_of, step_of
from parlaunch_launch.bridge_runner import configured, prepared

def refusal(name):
    try:
        find_recipe(name)
    except ParlaunchError as error:
        return str(error)

config = configured(find_recipe("vanilla_gpt_pretrain_config")(), ["dataset.seq_length=128", "train.train_iters=7"])
training = prepared(["--recipe", "vanilla_gpt_pretrain_config", "-ms", "9", "--global_batch_size", "16", "-cp", "2", "train.global_batch_size=32"])
with open("config.json", "w") as file:
    json.dump(LLAMA, file)
tuned = {}
for mode in ("sft", "lora", "dora"):
    made = prepared(["--model-config", "config.json", "--mode", mode, "checkpoint.pretrained_checkpoint=."])
    peft = made.config.peft
    tuned[mode] = [made.loop, type(peft).__name__, made.config.model.num_layers, made.step]
print(json.dumps({
    "tuned": tuned,
    "library": find_recipe("llama32_1b_pretrain_config").__module__,
    "benchmark": find_recipe("deepseek_v3_pretrain_1024gpu_h100_fp8cs_config").__module__,
    "refusal": refusal("llama32_1b_pretrain_confg"),
    "both": find_recipe("qwen3_30b_a3b_pretrain_16gpu_h100_bf16_config").__module__,
    "steps": [forward_step(step_of(n)).__module__ for n in ("llama32_1b_sft_config", "gemma3_vl_4b_peft_config")],
    "config": [config.model.seq_length, config.train.train_iters],
    "modes": [mode_of(n) for n in ("llama32_1b_sft_config", "llama32_1b_peft_config", "llama32_1b_pretrain_config")],
    "flags": [training.config.train.train_iters, training.config.train.global_batch_size, training.config.model.context_parallel_size,
              training.loop, training.step],
}))
"""


def test_our_runner_finds_recipes_steps_and_tasks_in_the_installed_bridge(tmp_path: Path) -> None:
    python = bridge_python()
    config = {k: v for k, v in (SIZES | CONFIGS["llama"]).items() if v is not None}
    ask = f"LLAMA = {config!r}\n{ASK_BRIDGE}"
    done = subprocess.run(
        [python, "-c", ask], capture_output=True, text=True, timeout=2 * HANGS_S, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["library"].startswith("megatron.bridge.recipes.llama")
    assert answer["benchmark"].startswith("megatron.bridge.perf_recipes.deepseek")
    assert "nearest: llama32_1b_pretrain_config" in answer["refusal"]
    assert answer["both"].startswith("megatron.bridge.perf_recipes.qwen")
    assert answer["steps"] == [f"megatron.bridge.training.{name}" for name in ("gpt_step", "vlm_step")]
    assert answer["config"] == [128, 7]
    assert answer["modes"] == ["sft", "lora", "pretrain"]
    assert answer["tuned"] == {
        "sft": ["finetune", "NoneType", 4, "llm_step"],
        "lora": ["finetune", "LoRA", 4, "llm_step"],
        "dora": ["finetune", "DoRA", 4, "llm_step"],
    }
    assert answer["flags"] == [9, 32, 2, "pretrain", "llm_step"]  # KEY=VALUE comes behind the short options

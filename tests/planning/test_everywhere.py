"""Every recipe on every kind of machine: a plan, or one sentence on why there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.front import plan
from tests.conftest import HANGS_S

pytestmark = pytest.mark.checkout
SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz" / "everywhere.py"


@pytest.mark.parametrize(("objective", "share"), [("memory", "0.008"), ("time", "0.001")])
def test_a_spread_of_recipes_plans_on_a_spread_of_machines_and_hints_work_when_followed(
    objective: str, share: str
) -> None:
    command = [sys.executable, str(SCRIPT), "--share", share, "--seed", "3", "--objective", objective]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_model_that_fits_nowhere_says_so_though_its_recipe_s_dispatcher_does_not_run_here_either() -> None:
    with pytest.raises(NoLayoutError, match="fits nowhere on 8 × V100") as caught:
        plan("qwen35_vl_35b_a3b_pretrain_8gpu_gb200_bf16_config", "dgx1-v100:1", precision="fp16", evidence=False)
    assert "4 nodes (32 GPUs) are enough" in caught.value.hint


def test_a_recipe_whose_own_switch_we_would_not_choose_has_a_plan() -> None:
    made = plan("kimi_k2_pretrain_256gpu_b200_fp8cs_config", "dgx-b200:32", evidence=False, objective="memory")
    assert made.chosen.memory.fits


def test_a_dispatcher_that_does_not_run_here_is_replaced_and_that_is_said() -> None:
    made = plan("qwen3_235b_a22b_pretrain_config", "gb200-nvl72:144", evidence=False, switches="recipe")
    assert "model.moe_token_dispatcher_type=alltoall" in made.overrides
    assert any(w.startswith("alltoall dispatches tokens: DeepEP does not run on GB200") for w in made.warnings)


@pytest.mark.parametrize(
    ("machine", "precision", "hint"),
    [
        ("dgx1-v100:1", "bf16", "--precision fp16"),
        ("t4-8:2", "fp8cs", "--precision fp16"),
        ("dgx-a100-80g:1", "fp8cs", "--precision bf16"),
        ("dgx-h100:1", "fp8mx", "--precision fp8cs"),
        ("dgx-h100:1", "nvfp4", "--precision fp8cs"),
        ("l40s-pcie-8:1", "fp8sc", "--precision fp8cs"),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused_with_one_that_runs(machine: str, precision: str, hint: str) -> None:
    with pytest.raises(ParlaunchError) as caught:
        plan("llama32_1b_pretrain_config", machine, precision=precision)
    assert not isinstance(caught.value, UsageError)
    assert caught.value.hint == hint
    plan("llama32_1b_pretrain_config", machine, precision=hint.split()[1], evidence=False)


def test_a_recipe_that_refuses_the_precision_in_its_place_is_sent_to_one_that_it_takes() -> None:
    name = "deepseek_v4_flash_pretrain_32gpu_h100_bf16_muon_config"
    with pytest.raises(ParlaunchError) as caught:
        plan(name, "dgx1-v100:64", evidence=False)
    assert caught.value.hint == "--precision fp32"
    plan(name, "dgx1-v100:64", precision="fp32", evidence=False, objective="memory")
    with pytest.raises(ParlaunchError, match="Muon does not train in fp16: train in bf16") as caught:
        plan(name, "dgx-h100:8", precision="fp16", evidence=False)
    assert caught.value.hint == "--precision bf16"


@pytest.mark.parametrize("switches", ["auto", "recipe"])
@pytest.mark.parametrize("machine", ["rtxpro6000-8:16", "rtx4090:64"])
def test_graphs_fall_with_the_dispatcher_that_they_needed(machine: str, switches: str) -> None:
    """MXFP8's padding and a graph over moe_preprocess go together with HybridEP alone: CC 12 has none, nor has Ethernet."""
    name = "nemotron_3_super_pretrain_64gpu_gb200_fp8mx_config"
    made = plan(name, machine, precision="fp8cs", switches=switches, evidence=False, objective="memory")
    assert made.chosen.memory.fits
    alltoall = "model.moe_token_dispatcher_type=alltoall" in made.overrides
    assert alltoall == ("model.cuda_graph_impl=none" in made.overrides)


def test_padding_for_fp8_is_no_reason_against_graphs_in_another_precision() -> None:
    name = "nemotron_3_super_pretrain_64gpu_gb200_fp8mx_config"
    made = plan(name, "dgx1-v100:16", precision="fp16", evidence=False, objective="memory", switches="recipe")
    assert "model.cuda_graph_impl=none" not in made.overrides

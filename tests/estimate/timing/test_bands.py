"""The band of a time: every number of it decides one here, so that none moves unseen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parlaunch.estimate.timing.bands import WIDE, error_band
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features
from tests.estimate.timing.make import rates, recipe

LLAMA, EXPERTS, HYBRID = "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-30B-A3B", "explicit:nemotronh_47b"


def band(
    machine: str = "dgx-h100", model: str = LLAMA, nodes: int = 1, layout: dict[str, int] | None = None, **changes: Any
) -> float:
    """Of a model on a machine; `changes`: of the recipe or, by name, of its switches."""
    of_recipe = {k: changes.pop(k) for k in ("precision", "task") if k in changes}
    where = rates(machine, nodes)
    made = recipe(model, features=Features(**changes), **of_recipe)
    sizes: dict[str, Any] = {"world": where.world_size, "micro_batch_size": 1, "global_batch_size": 64 * nodes} | (
        layout or {}
    )
    return error_band(made, Layout(**sizes), where)


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (0.055, {}),
        (0.115, {"model": EXPERTS}),
        (0.065, {"model": EXPERTS, "cuda_graph": "full_iteration"}),
        (0.05, {"model": HYBRID}),
        (0.075, {"task": "peft"}),
        (0.09, {"machine": "dgx-b200"}),
        (0.14, {"machine": "dgx-b200", "model": EXPERTS}),
        (0.055, {"machine": "dgx-b200", "precision": "fp8cs"}),
        (0.08, {"machine": "dgx-b200", "precision": "nvfp4"}),
        (0.085, {"machine": "gh200"}),  # no operators of its own were measured
        (0.2, {"machine": "dgx1-v100", "precision": "fp16", "layout": {"tp": 8}}),
        (0.25, {"machine": "l40s-pcie-8"}),  # Ada, and no NVLink
        (0.12, {"machine": "dgx-a100"}),
        (0.2, {"model": "black-forest-labs/FLUX.1-dev"}),
        (0.2, {"model": "explicit:wan_1_3b"}),
        (0.085, {"fsdp": True}),
        (0.085, {"optimizer_offload": True}),
        (0.145, {"model": EXPERTS, "nodes": 2, "layout": {"ep": 16}}),
        (0.085, {"nodes": 2, "layout": {"tp": 16}}),
        (0.165, {"model": "zai-org/GLM-5.1"}),
        (0.165, {"model": "deepseek-ai/DeepSeek-V4-Flash"}),
        (0.075, {"framework": "Megatron-Core"}),
        (0.075, {"framework": "Megatron-Core", "machine": "dgx-a100"}),
        (0.14, {"framework": "Megatron-Core", "machine": "dgx-b200", "model": EXPERTS}),
        (0.075, {"framework": "Megatron-Core", "machine": "dgx-b200"}),
        (0.05, {"framework": "Megatron-LM (SC21)", "machine": "dgx-a100"}),
        (0.05, {"framework": "Megatron-LM", "machine": "dgx-a100"}),
        (0.16, {"framework": "Megatron-DeepSpeed (blocking)", "machine": "dgx-a100"}),
        (0.095, {"framework": "Megatron-DeepSpeed", "machine": "dgx-a100"}),
        (0.08, {"framework": "InternEvo", "machine": "dgx-a100"}),
        (0.22, {"framework": "GPT-NeoX", "machine": "dgx-a100"}),
        (0.2, {"framework": "DeepSpeed"}),
        (0.2, {"framework": "something of theirs"}),
    ],
)  # fmt: skip
def test_the_band_of_a_kind_of_run(expected: float, what: dict[str, Any]) -> None:
    assert band(**what) == pytest.approx(expected)


def test_a_gpu_whose_rates_nobody_published_is_a_guess_and_no_band_says_nothing() -> None:
    known = rates("dgx-h100", 2)
    guessed = replace(known, product=replace(known.product, derived="compute capability 9.0"))
    plain, far = (
        Layout(world=16, micro_batch_size=1, global_batch_size=64, fsdp=f, ep=e) for f, e in ((False, 1), (True, 16))
    )
    assert error_band(recipe(LLAMA), plain, guessed) == pytest.approx(0.3)
    assert error_band(recipe("zai-org/GLM-5.1"), far, guessed) == pytest.approx(0.4)


def test_a_band_that_is_wide_asks_to_measure() -> None:
    assert band(model=EXPERTS) >= WIDE > band("dgx-b200")

"""An optimizer on the host: what its steps take there, and what it leaves on the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.estimate.states import bytes_a_parameter
from parlaunch.estimate.timing import estimate_time
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout


@pytest.mark.parametrize(("machine", "waits"), [("dgx-h100", True), ("gb200-nvl72", False)])
def test_beside_an_x86_host_an_iteration_waits_for_it_and_beside_grace_hardly(machine: str, waits: bool) -> None:
    base = catalog.recipe("llama3_8b_pretrain_config")
    rates = rates_of(preset(machine, 1))
    layout = Layout(world=rates.world_size, global_batch_size=16 * rates.world_size)
    away = replace(base, features=replace(base.features, optimizer_offload=1.0))
    more = estimate_time(away, layout, rates).iteration_time_s - estimate_time(base, layout, rates).iteration_time_s
    assert (more > 8e9 / rates.world_size * 24 / 15e9 * 0.9) is waits


@pytest.mark.parametrize(("aware", "left"), [(False, 4), (True, 0)])
def test_its_float32_master_stays_on_the_gpu_unless_it_is_precision_aware(aware: bool, left: int) -> None:
    features = catalog.recipe("llama3_8b_pretrain_config").features
    away = replace(features, optimizer_offload=1.0, precision_aware_optimizer=aware)
    assert bytes_a_parameter("bf16", away, "hopper").optimizer == left

"""Multi-token prediction: what stands in front of its layers, and the format that they train in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.pieces import split_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.model.catalog import architecture
from tests.estimate.timing.make import dense, features, layout, rates, recipe
from tests.estimate.timing.test_plain_torch import Bytes

ALONE = layout(world=1)


def test_in_front_of_its_layers_stand_an_embedding_two_norms_and_what_joins_them() -> None:
    """An element of the hidden state: the embedding as at the model's beginning; norms that read and write (4 bytes each, twice that
    backward), a copy of both (8; backward the norms copy what are views of one gradient)."""
    made = recipe(dense(mtp_num_layers=1))
    embedding, _, predicting = Layers(made, software_of(None), Bytes(rates()), Links(rates())).ends(split_of(ALONE))
    element = 4096 * 4096
    assert predicting.forward.compute - embedding.forward.compute == pytest.approx((2 * 4 + 8) * element)
    assert predicting.backward.compute - embedding.backward.compute == pytest.approx((2 * 8 + 8) * element)
    without = Layers(recipe(), software_of(None), Bytes(rates()), Links(rates())).ends(split_of(ALONE))[2]
    assert without.forward.gpu == without.backward.gpu == 0


def test_its_projection_is_of_two_hidden_states_to_one() -> None:
    machine, made = rates(), recipe(dense(mtp_num_layers=1))
    kernels = Kernels(machine)
    embedding, _, predicting = Layers(made, software_of(None), kernels, Links(machine)).ends(split_of(ALONE))
    streams = kernels.stream(16.0 * 4096 * 4096, kernels=3)
    assert predicting.forward.compute - embedding.forward.compute - streams == pytest.approx(
        kernels.gemm(4096, 4096, 8192, "bf16")
    )
    two = split_of(layout(world=2, tp=2))
    assert Layers(made, software_of(None), kernels, Links(machine)).ends(two)[2].forward.tp > 0


def added(name: str, precision: str) -> tuple[float, float]:
    """Seconds and bytes of activations that multi-token prediction adds."""
    machine, x = rates("gb200-nvl72", 64), layout(world=256, ep=64, global_batch_size=4096)
    on = features(dispatcher="hybridep", force_balance=True, cuda_graph="full_iteration")
    a = architecture(name)
    made = [recipe(arch, precision=precision, features=on) for arch in (a, replace(a, mtp_num_layers=None))]
    seconds = [estimate_time(r, x, machine).breakdown.compute_s for r in made]
    kept = [estimate_memory(r, x, machine).activations for r in made]
    return seconds[0] - seconds[1], kept[0] - kept[1]


def test_layers_of_multi_token_prediction_are_in_16_bits_beside_fp4_but_in_hybrids() -> None:
    name = "deepseek-ai/DeepSeek-V3"
    assert added(name, "nvfp4") == pytest.approx(added(name, "bf16"), rel=0.01)
    assert added(name, "fp8mx")[1] < 0.9 * added(name, "bf16")[1]
    name = "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"
    assert added(name, "nvfp4")[1] < 0.9 * added(name, "bf16")[1]

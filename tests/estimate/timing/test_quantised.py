"""What is quantised, and how often: parts of the sequence before they are gathered, behind norms, in one orientation or two."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from parlaunch.estimate.timing import estimate_time, iteration, pieces
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from tests.estimate.timing.make import features, layout, rates, recipe

MICRO_BATCHES = 32  # of `layout` with TP 4
FORMATS = ("_QUANTISE", "_QUANTISE_ONE")


def _quantised(made: Recipe, split: Layout, machine: Rates, monkeypatch: pytest.MonkeyPatch) -> float:
    """Elements that are quantised in a layer and micro batch: bytes more, where each of them moves one byte more."""
    precision = made.precision

    def compute() -> float:
        iteration._model.cache_clear()
        return estimate_time(made, split, machine).breakdown.compute_s

    before = compute()
    for name in FORMATS:
        table: Mapping[str, float] = getattr(pieces, name)
        monkeypatch.setattr(pieces, name, {**table, precision: table[precision] + 1.0})
    after = compute()
    monkeypatch.undo()
    iteration._model.cache_clear()
    layers = len(made.architecture.layers())
    return (after - before) * Kernels(machine).hbm / (split.num_microbatches * layers)


@pytest.mark.parametrize(("sequence_parallel", "part"), [(True, 0.25), (False, 1.0)])
@pytest.mark.parametrize("precision", ["fp8cs", "fp8mx"])
def test_a_rank_quantises_its_own_part_of_what_is_gathered(
    precision: str, sequence_parallel: bool, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, ffn, qkv, tokens = 4096, 14336, 6144, 4096
    # Inputs of QKV, of the attention's projection, of the MLP's two layers, and gradients of their outputs.
    forward = part * h + h / 4 + part * h + ffn / 4
    backward = qkv / 4 + part * h + 2 * ffn / 4 + part * h
    how = features(fp8_param_gather=True, sequence_parallel=sequence_parallel)
    found = _quantised(recipe(precision=precision, features=how), layout(tp=4), rates("dgx-b200"), monkeypatch)
    assert found == pytest.approx(tokens * (forward + backward), rel=0.02)


def test_what_hopper_transposes_it_transposes_behind_the_gather() -> None:
    def compute(*, sequence_parallel: bool) -> float:
        made = recipe(precision="fp8cs", features=features(fp8_param_gather=True, sequence_parallel=sequence_parallel))
        return estimate_time(made, layout(tp=4), rates()).breakdown.compute_s

    def norms(*, sequence_parallel: bool) -> float:
        made = recipe(features=features(sequence_parallel=sequence_parallel))
        return estimate_time(made, layout(tp=4), rates()).breakdown.compute_s

    # Three quarters of four operands: each finds its largest value, is cast, and both orientations are written; or is transposed whole.
    saved = 0.75 * (2 * 4.0 + 2 * 6.0) - 4 * (2.0 - 0.25)
    gone = compute(sequence_parallel=False) - compute(sequence_parallel=True)
    gone -= norms(sequence_parallel=False) - norms(sequence_parallel=True)
    assert gone == pytest.approx(MICRO_BATCHES * 32 * 4096 * 4096 * saved / Kernels(rates()).hbm, rel=0.02)


@pytest.mark.parametrize(("precision", "less"), [("fp8cs", 2.0), ("fp8mx", 0.0)])
def test_norms_find_the_largest_value_since_transformer_engine_2_7(precision: str, less: float) -> None:
    def compute(framework: str | None) -> float:
        made = recipe(precision=precision, features=features(fp8_param_gather=True, framework=framework))
        return estimate_time(made, layout(), rates()).breakdown.compute_s

    two = 2 * 32 * 8 * 4096 * 4096  # norms in front of attention and MLP, layers, micro batches, tokens, hidden size
    saved = compute("NeMo 2.0 (docs)") - compute(None)
    assert saved == pytest.approx(two * less / Kernels(rates()).hbm, rel=1e-6, abs=1e-12)


def test_gradients_scaled_in_blocks_travel_in_both_orientations() -> None:
    def exposed(precision: str) -> float:
        return estimate_time(recipe(precision=precision), layout(tp=4), rates("dgx-b200")).breakdown.tp_s

    links = Links(rates("dgx-b200"))
    one, both = (links.gather(times * 4096 * 4096, links.group(4, 1)) for times in (1.0, 2.0))
    # Two a layer: the gradients of the attention's output and of the MLP's. Scales are 3 % more to travel, all ways.
    more = (exposed("fp8mx") - exposed("fp8cs")) / (MICRO_BATCHES * 32 * 2)
    assert both - one < more < 1.25 * (both - one)


def test_experts_in_one_operation_quantise_what_is_between_them_in_their_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elements(*, stash: bool) -> float:
        how = features(cuda_graph="full_iteration", paged_stash=stash, force_balance=True, dispatcher="hybridep")
        moe = recipe("Qwen/Qwen3-30B-A3B", precision="fp8mx", features=how)
        return _quantised(moe, layout(ep=8), rates("dgx-b200"), monkeypatch)

    # The second layer's input and, twice as wide, the gradient of the first one's output; 8 of 128 experts, 768 wide.
    assert elements(stash=False) - elements(stash=True) == pytest.approx(4096 * 8 * 768 * 3, rel=0.01)


def test_what_is_offloaded_over_a_fast_link_costs_its_bytes_of_memory_bandwidth() -> None:
    machine = rates("gb200-nvl72", 2)
    split = layout(machine.world_size, global_batch_size=64)

    def host(layers: int) -> float:
        made = recipe(features=features(cpu_offload_layers=layers))
        return estimate_time(made, split, machine).breakdown.host_s

    moved = iteration.OFFLOADED * 16 * 4096 * 4096 * split.num_microbatches
    assert host(16) - host(0) == pytest.approx(2.0 * moved / Kernels(machine).hbm, rel=1e-6)


def test_products_scaled_in_blocks_take_longer_and_on_blackwell_are_those_of_mxfp8() -> None:
    def products(machine: str, fmt: str) -> float:
        return Kernels(rates(machine)).gemm(8192, 8192, 8192, fmt)

    assert products("dgx-h100", "block") == pytest.approx(1.12 * products("dgx-h100", "fp8"), rel=0.01)
    assert 1.04 < products("gb200-nvl72", "mx") / products("gb200-nvl72", "fp8") < 1.08

    def seconds(machine: str, precision: str) -> float:
        wide = features(cuda_graph="full_iteration")
        return estimate_time(recipe(precision=precision, features=wide), layout(), rates(machine)).breakdown.compute_s

    assert seconds("dgx-h100", "fp8sc") > 1.05 * seconds("dgx-h100", "fp8cs")
    assert seconds("dgx-b200", "fp8sc") == pytest.approx(seconds("dgx-b200", "fp8mx"), rel=0.06)

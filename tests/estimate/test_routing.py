"""How uneven routers are that nothing forces to be even: whole iterations against measured pairs, and one function for time and memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.validate import validate
from parlaunch.cli.accuracy import rows_of
from parlaunch.estimate import micro_batches
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.routing import fullest
from parlaunch.estimate.timing import estimate_time, feedforward
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe

ZOO = Path(__file__).parents[2] / "validation" / "moe_zoo.jsonl"
PAIRS = ("q235b-h100-long16384", "q235b-h100-long65536", "mixtral8x22b-h100")


@pytest.fixture(scope="module")
def zoo() -> dict[str, dict[str, Any]]:
    pairs = [row for row in rows_of(ZOO) if row["id"].removeprefix("modelzoo-").rpartition("-")[0] in PAIRS]
    return {row["id"]: row for row in validate(pairs)["rows"]}


@pytest.mark.parametrize("pair", PAIRS)
def test_iterations_without_forced_balance_take_as_much_longer_as_measured(
    pair: str, zoo: dict[str, dict[str, Any]]
) -> None:
    forced, dropless = (zoo[f"modelzoo-{pair}-{kind}"] for kind in ("forced", "dropless"))
    measured, predicted = (
        forced[name]["model_tflops_per_gpu"] / dropless[name]["model_tflops_per_gpu"]
        for name in ("measured", "predicted")
    )
    assert predicted == pytest.approx(measured, abs=0.025)


def _run(**of: Any) -> tuple[Recipe, Layout, Rates]:
    recipe = Recipe(
        name="trained", source="catalog", model="trained", model_id=None, task="pretrain", precision="bf16",
        architecture=architecture("Qwen/Qwen3-30B-A3B"), seq_length=8192, global_batch_size=64, features=Features(),
    )  # fmt: skip
    return recipe, Layout(world=16, global_batch_size=64, **of), rates_of(preset("dgx-h100", 2))


@pytest.mark.parametrize("of", [{"ep": 8}, {"tp": 2, "pp": 2, "cp": 2, "ep": 8}, {"tp": 2, "ep": 4, "etp": 2}])
def test_time_and_memory_ask_the_same(of: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, set[tuple[Any, ...]]] = {"time": set(), "memory": set()}

    def by(name: str) -> Any:
        def ask(*of: Any) -> float:
            asked[name].add((*of, 1)[:6])
            return fullest(*of)

        return ask

    monkeypatch.setattr(feedforward, "fullest", by("time"))
    monkeypatch.setattr(micro_batches, "fullest", by("memory"))
    recipe, layout, rates = _run(micro_batch_size=2, **of)
    recipe = replace(recipe, name=f"asked of {sorted(of)}")  # nothing of it is remembered
    estimate_time(recipe, layout, rates)
    estimate_memory(recipe, layout, rates)
    assert asked["time"]
    assert asked["time"] <= asked["memory"]
    assert {a[:5] for a in asked["memory"]} == {a[:5] for a in asked["time"]}


def test_what_is_forced_to_be_even_is_not_asked_for() -> None:
    recipe, layout, rates = _run(ep=8)
    free = estimate_memory(recipe, layout, rates).activations
    for even in (replace(recipe, features=Features(force_balance=True)), replace(recipe, benchmark=True)):
        assert estimate_memory(even, layout, rates).activations < free


def test_it_evens_out_over_sequences_layers_and_for_few_experts_to_choose_from() -> None:
    def excess(tokens: float, *, experts: int = 128, layers: int = 1) -> float:
        return fullest(experts, 8, tokens, 8, 4096, layers) - 1.0

    assert excess(2048) >= excess(4096) > excess(8192) > excess(2**20) > 0.3
    assert excess(4096, layers=4) == pytest.approx(excess(4096) / 2)
    assert excess(4096, experts=32) < 0.3 * excess(4096)
    assert fullest(128, 8, 4096.0, 1, 4096) == 1.0
    assert fullest(128, 1, 1.0, 2, 4096) == 2.0


@pytest.mark.parametrize("name", ["Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b"])
def test_a_larger_micro_batch_never_needs_less(name: str) -> None:
    recipe, layout, rates = _run(ep=8)
    recipe = replace(recipe, architecture=architecture(name))
    held = [estimate_memory(recipe, replace(layout, micro_batch_size=mbs), rates).peak for mbs in (1, 2, 4)]
    assert held == sorted(held)

"""The whole run: time, money, checkpoints and failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from parlaunch.errors import UsageError
from parlaunch.estimate.training import (
    Goal,
    best_interval,
    checkpoint_bytes,
    lost_share,
    training,
    training_from_json,
    training_to_json,
)
from parlaunch.estimate.values import Breakdown, Estimate
from parlaunch.model.catalog import all_recipes, recipe
from parlaunch.model.parameters import total_params
from parlaunch.show.words import training_words
from tests.cli.conftest import Said, parlaunch

__all__ = ["parlaunch"]
LLAMA = recipe("llama3_8b_pretrain_config")
A_DAY = 86400.0


def step(seconds: float, band: float = 0.1) -> Estimate:
    return Estimate(
        iteration_time_s=seconds, error_band=band, tokens_per_s_per_gpu=1.0, model_tflops_per_gpu=1.0, mfu=0.4,
        breakdown=Breakdown(compute_s=seconds),
    )  # fmt: skip


machines = st.tuples(st.floats(600, 1e7), st.floats(0.5, 3600))


@given(machines, st.floats(0.3, 3.0))
def test_no_other_interval_loses_noticeably_less(machine: tuple[float, float], factor: float) -> None:
    mtbf, writing = machine
    assume(writing < mtbf / 2)
    best = best_interval(mtbf_s=mtbf, checkpoint_s=writing)
    lost = [lost_share(t, mtbf_s=mtbf, checkpoint_s=writing, restart_s=300) for t in (best, factor * best)]
    assert lost[0] <= lost[1] + 0.003


@given(machines)
def test_rare_failures_and_quick_checkpoints_give_youngs_interval(machine: tuple[float, float]) -> None:
    mtbf, writing = machine
    assume(writing < mtbf / 2000)
    assert best_interval(mtbf_s=mtbf, checkpoint_s=writing) == pytest.approx((2 * writing * mtbf) ** 0.5, rel=0.03)


@given(machines)
def test_a_share_is_lost_always_and_more_when_machines_fail_more_often(machine: tuple[float, float]) -> None:
    mtbf, writing = machine
    assume(writing < mtbf / 2)

    def lost(mtbf_s: float) -> float:
        interval = best_interval(mtbf_s=mtbf_s, checkpoint_s=writing)
        return lost_share(interval, mtbf_s=mtbf_s, checkpoint_s=writing, restart_s=300)

    assert 0 < lost(2 * mtbf) < lost(mtbf) < 1


@given(st.floats(1e9, 2e13), st.floats(0.05, 60), st.floats(0, 20), st.integers(1, 2000))
def test_time_and_money_follow_from_tokens(tokens: float, seconds: float, price: float, nodes: int) -> None:
    made = training(Goal(tokens=tokens, price=price), LLAMA, step(seconds), gpus=8 * nodes, nodes=nodes)
    assert made is not None
    a_step = LLAMA.global_batch_size * LLAMA.seq_length
    assert made.iterations is not None
    assert made.days is not None
    assert made.gpu_hours is not None
    assert (made.iterations - 1) * a_step < tokens <= made.iterations * a_step * (1 + 1e-12)
    assert made.days == pytest.approx(made.iterations * seconds / A_DAY)
    assert made.gpu_hours == pytest.approx(made.days * 24 * 8 * nodes)
    assert made.cost == pytest.approx(made.gpu_hours * price)
    assert made.error_band == 0.1


def test_samples_tokens_and_iterations_mean_the_same() -> None:
    said = [
        training(goal, r, step(2.0), gpus=64, nodes=8)
        for goal, r in (
            (Goal(samples=512_000), LLAMA),
            (Goal(tokens=512_000 * 8192), LLAMA),
            (Goal(iterations=1000), LLAMA),
            (Goal(), replace(LLAMA, train_iters=1000, source="bridge")),
        )
    ]
    assert [(t.iterations, t.days, t.tokens) for t in said if t] == [(1000, 2000 / A_DAY, 512_000 * 8192.0)] * 4


def test_lost_time_makes_the_run_longer_and_dearer() -> None:
    goal = Goal(tokens=1e12, price=2.0)
    calm = training(goal, LLAMA, step(2.0), gpus=64, nodes=8)
    rough = training(replace(goal, mtbf_hours=500.0, storage_bytes_per_s=1e9), LLAMA, step(2.0), gpus=64, nodes=8)
    assert calm is not None
    assert rough is not None
    assert rough.lost_share is not None
    assert rough.mtbf_s == 500 * 3600 / 8
    for name in ("days", "gpu_hours", "cost"):
        assert getattr(rough, name) * (1 - rough.lost_share) == pytest.approx(getattr(calm, name))
    assert rough.checkpoint_interval_iterations == round((rough.checkpoint_interval_s or 0) / 2.0)


def test_a_checkpoint_holds_fourteen_bytes_a_parameter_and_of_adapters_only_them() -> None:
    assert checkpoint_bytes(LLAMA) == 14 * total_params(LLAMA.architecture)
    assert checkpoint_bytes(recipe("llama3_8b_peft_config")) < checkpoint_bytes(LLAMA) / 50


def test_without_a_goal_there_is_nothing_to_say() -> None:
    assert training(Goal(), LLAMA, step(1.0), gpus=8, nodes=1) is None


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(tokens=1e12, samples=1e6), "--tokens and --samples both say"),
        (Goal(tokens=1e12, mtbf_hours=0.01, storage_bytes_per_s=1e8), "never ends"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(goal: Goal, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        training(goal, LLAMA, step(1.0), gpus=64, nodes=8)


def test_json_says_the_same_again() -> None:
    made = training(Goal(tokens=1e12, mtbf_hours=5e4, storage_bytes_per_s=2e10), LLAMA, step(1.0), gpus=64, nodes=8)
    assert training_from_json(json.loads(json.dumps(training_to_json(made)))) == made


def test_the_words_round_to_what_the_band_means() -> None:
    goal = Goal(tokens=15e12, price=2.5, mtbf_hours=50_000, storage_bytes_per_s=20e9)
    made = training(goal, LLAMA, step(2.34, 0.07), gpus=512, nodes=64)
    assert made is not None
    assert training_words(made) == (
        "15 T tokens in 3,576,279 iterations: 97.1 ± 6.8 days, 1,193,000 ± 83,000 GPU-hours, 2,980,000 ± 210,000 at 2.5 each",
        "a failure every 32.6 days, a checkpoint of 104.7 GiB in 5.62 s: one every 94 min loses least, 0.2% of the time "
        "(checkpoint.save_interval=2401)",
    )


PLAN = ("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:4")


def test_every_output_has_the_whole_run(parlaunch: Callable[..., Said]) -> None:
    goal = ("--tokens", "2T", "--price", "2.50", "--mtbf", "50000", "--storage", "20GB/s")
    text = parlaunch(*PLAN, *goal)
    assert "The whole run" in text.out
    assert len(text.out.splitlines()) <= 40
    data = json.loads(parlaunch(*PLAN, *goal, "--format", "json").out)["training"]
    assert data["cost"] == pytest.approx(2.5 * data["gpu_hours"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tokens", "many"), "--tokens: 'many' is no number above zero"),
        (("--storage", "20"), "--storage: '20' is no rate"),
        (("--tokens", "1T", "train.train_iters=5"), "--tokens and train.train_iters=5 both say"),
        (("--samples", "-3"), "--samples: '-3' is no number above zero"),
    ],
)
def test_a_goal_that_cannot_be_read_is_named(parlaunch: Callable[..., Said], words: tuple[str, ...], said: str) -> None:
    answer = parlaunch(*PLAN, *words)
    assert answer.code == 2
    assert said in answer.err
    assert "hint" in answer.err


def test_the_iterations_that_megatron_hears_are_the_goal(parlaunch: Callable[..., Said]) -> None:
    assert "in 1,000 iterations" in parlaunch(*PLAN, "train.train_iters=1000").out


def test_the_recipe_says_how_long_it_trains_where_nothing_else_does(parlaunch: Callable[..., Said]) -> None:
    iterations = LLAMA.train_iters
    assert f"in {iterations:,} iterations" in parlaunch(*PLAN, "--price", "2.50").out
    assert "in 1,000 iterations" in parlaunch(*PLAN, "--price", "2.50", "train.train_iters=1000").out
    assert "The whole run" not in parlaunch(*PLAN).out


def test_a_benchmark_describes_no_run() -> None:
    assert all(r.train_iters is None for r in all_recipes() if r.benchmark)
    known = [r for r in all_recipes() if not r.benchmark and r.train_iters]
    assert len(known) > 200

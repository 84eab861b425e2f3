"""The whole training run: how long it takes, what it costs, and what failures and checkpoints take of it."""

from __future__ import annotations

from dataclasses import asdict, fields
from math import ceil, exp, sqrt
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.estimate.values import Estimate
from parlaunch.frozen import dataclass
from parlaunch.model.matrices import adapter_size
from parlaunch.model.parameters import total_params
from parlaunch.model.recipe import Recipe

HOUR_S, DAY_S = 3600.0, 86400.0

RESTART_S = 300.0
"""From a failure until the first checkpoint is read again: noticing it, a node in its place, starting the ranks."""

WEIGHT, STATE = 2, 12
"""Bytes of a parameter in a checkpoint of Megatron's: itself in bf16; the optimizer's float32 master and two float32
moments, which are written in float32 whatever they are kept in (`megatron/core/optimizer/distrib_optimizer.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the user says of the whole run. None: not said."""

    tokens: float | None = None
    samples: float | None = None  # sequences
    iterations: int | None = None
    price: float | None = None  # of one GPU for one hour, in whatever currency
    mtbf_hours: float | None = None  # mean time between failures of one node
    storage_bytes_per_s: float | None = None  # at which the whole job writes a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A whole run. Times, hours and costs are ± `error_band`, that of the iteration; None: not known."""

    error_band: float
    tokens: float | None = None
    iterations: int | None = None
    days: float | None = None  # on the wall, with what is lost
    gpu_hours: float | None = None
    cost: float | None = None
    price: float | None = None  # of a GPU-hour
    cost_per_billion_tokens: float | None = None
    checkpoint_bytes: int
    checkpoint_s: float | None = None  # to write one
    mtbf_s: float | None = None  # of the whole job
    checkpoint_interval_s: float | None = None  # between two checkpoints, where least is lost
    checkpoint_interval_iterations: int | None = None
    lost_share: float | None = None  # of the wall time: writing checkpoints, starting again, work done twice


def training(goal: Goal, recipe: Recipe, estimate: Estimate, *, gpus: int, nodes: int) -> Training | None:
    """The run that `goal` speaks of; how long it trains says the recipe where `goal` does not. None when `goal` says nothing,
    and no installed Bridge: what the catalog has is told when something is asked.

    Raises `UsageError` for a goal in two ways, or for failures so frequent that no checkpoint is ever reached.
    """
    iterations = _iterations(goal, recipe)
    if goal == Goal() and (iterations is None or recipe.source == "catalog"):
        return None
    size = checkpoint_bytes(recipe)
    writing = None if goal.storage_bytes_per_s is None else size / goal.storage_bytes_per_s
    mtbf = None if goal.mtbf_hours is None else goal.mtbf_hours * HOUR_S / nodes
    interval = lost = None
    if mtbf is not None and writing is not None:
        interval = best_interval(mtbf_s=mtbf, checkpoint_s=writing)
        lost = lost_share(interval, mtbf_s=mtbf, checkpoint_s=writing, restart_s=RESTART_S + writing)
    step = estimate.iteration_time_s / (1 - (lost or 0.0))
    tokens_a_step = recipe.global_batch_size * recipe.seq_length
    hours_a_step = gpus * step / HOUR_S
    return Training(
        error_band=estimate.error_band,
        tokens=None if iterations is None else goal.tokens or float(iterations * tokens_a_step),
        iterations=iterations,
        days=None if iterations is None else iterations * step / DAY_S,
        gpu_hours=None if iterations is None else iterations * hours_a_step,
        cost=None if iterations is None or goal.price is None else iterations * hours_a_step * goal.price,
        price=goal.price,
        cost_per_billion_tokens=None if goal.price is None else hours_a_step * goal.price / tokens_a_step * 1e9,
        checkpoint_bytes=size,
        checkpoint_s=writing,
        mtbf_s=mtbf,
        checkpoint_interval_s=interval,
        checkpoint_interval_iterations=(
            None if interval is None else max(1, round(interval / estimate.iteration_time_s))
        ),
        lost_share=lost,
    )


def _iterations(goal: Goal, recipe: Recipe) -> int | None:
    if goal.tokens is not None and goal.samples is not None:
        raise UsageError("--tokens and --samples both say how long it trains", hint="keep one of the two")
    if goal.tokens is not None:
        return ceil(goal.tokens / (recipe.global_batch_size * recipe.seq_length))
    if goal.samples is not None:
        return ceil(goal.samples / recipe.global_batch_size)
    return goal.iterations or recipe.train_iters


def checkpoint_bytes(recipe: Recipe) -> int:
    """What one checkpoint takes on storage: weights and optimizer, of adapters alone where only they are trained."""
    a, f = recipe.architecture, recipe.features
    if recipe.task == "peft":
        trained = sum(adapter_size(a, kind, f.adapter_rank, f.adapter_targets) for kind in a.layers())
        return round(trained * (WEIGHT + STATE))
    if recipe.frozen:
        return total_params(a) * WEIGHT
    return total_params(a) * (WEIGHT + STATE)


def best_interval(*, mtbf_s: float, checkpoint_s: float) -> float:
    """Seconds of work between two checkpoints where least is lost.

    Young's square root of 2·δ·M with Daly's next two terms (J. T. Daly, Future Generation Computer Systems 22, 2006,
    equation 37); M itself where a checkpoint takes twice as long as the machine stays up.
    """
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    return sqrt(2 * checkpoint_s * mtbf_s) * (1 + sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


def lost_share(interval_s: float, *, mtbf_s: float, checkpoint_s: float, restart_s: float) -> float:
    """Share of the wall time that trains nothing, with failures at random (Daly, equation 20).

    Raises `UsageError` where failures come so often that the run does not get on.
    """
    needed = restart_s + interval_s + checkpoint_s
    if needed > 20 * mtbf_s:
        raise UsageError(
            f"a failure every {mtbf_s:.0f} s, and {needed:.0f} s from one to the next checkpoint: this run never ends",
            hint="--mtbf is hours between failures of one node; --storage what the whole job writes a second",
        )
    wall = mtbf_s * exp(restart_s / mtbf_s) * (exp((interval_s + checkpoint_s) / mtbf_s) - 1)
    return 1 - interval_s / wall


def training_to_json(value: Training | None) -> dict[str, Any] | None:
    """The `training` object of `parlaunch.plan/1`."""
    return None if value is None else asdict(value)


def training_from_json(data: dict[str, Any] | None) -> Training | None:
    """What `training_to_json` wrote; fields of newer versions are left out."""
    names = {f.name for f in fields(Training)}
    return None if data is None else Training(**{k: v for k, v in data.items() if k in names})

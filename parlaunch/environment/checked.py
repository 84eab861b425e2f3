"""A plan that comes from a file, held against itself: what a hand or a fault has changed in it is found before it is launched."""

from __future__ import annotations

import re

from parlaunch.environment.user_overrides import pins_from
from parlaunch.errors import UsageError
from parlaunch.model.layout import SIZES, Layout
from parlaunch.planning.plan import Plan
from parlaunch.rules import why_not

MOST_OVERRIDES, LONGEST_OVERRIDE = 1000, 4096
"""Megatron Bridge's largest configuration has some 700 fields."""

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+/ -]*")
_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w.@/-]*(=.*)?", re.DOTALL)
_COUNTS = ("world", "tp", "pp", "cp", "ep", "etp", "micro_batch_size", "global_batch_size")


def problem(plan: Plan) -> str | None:
    """What is wrong with a plan in itself; None for one that parlaunch would have made.

    Environment and command are not looked at: they are made anew for the process that launches.
    """
    return (
        _numbers(plan.layout)
        or _grid(plan)
        or _time(plan)
        or _words(plan)
        or _against_the_overrides(plan)
        or why_not(plan.layout, plan.configured, plan.rates)
    )


def _numbers(layout: Layout) -> str | None:
    for name in _COUNTS:
        value = getattr(layout, name)
        if type(value) is not int or not 1 <= value < 2**31:
            return f"its layout has {name} {value!r}, which is no size"
    if layout.vp is not None and (type(layout.vp) is not int or not 1 <= layout.vp < 2**31):
        return f"its layout has vp {layout.vp!r}, which is no size"
    chunks = layout.layers_per_chunk
    if chunks is not None and not all(type(c) is int and 0 <= c < 2**31 for c in chunks):
        return "its layout has layers_per_chunk that are no counts"
    return None


def _grid(plan: Plan) -> str | None:
    layout, gpus = plan.layout, plan.cluster.world_size
    if layout.world != gpus:
        return f"its layout is for {layout.world} GPUs and its hardware has {gpus}"
    if layout.model_parallel * layout.dp != layout.world:
        return f"tp {layout.tp} x pp {layout.pp} x cp {layout.cp} does not divide its {layout.world} GPUs"
    if layout.micro_batch_size * layout.dp * layout.num_microbatches != layout.global_batch_size:
        return (
            f"micro batch {layout.micro_batch_size} x dp {layout.dp} does not divide its global batch "
            f"{layout.global_batch_size}"
        )
    if layout.global_batch_size != plan.recipe.global_batch_size:
        return f"its layout has global batch {layout.global_batch_size} and its recipe {plan.recipe.global_batch_size}"
    return None


def _time(plan: Plan) -> str | None:
    times = [c.estimate.iteration_time_s for c in (plan.chosen, *plan.alternatives)]
    return next((f"an iteration of it takes {t!r} s" for t in times if t <= 0), None)


def _words(plan: Plan) -> str | None:
    """Words that go on a command line behind ours."""
    name = plan.recipe.name
    if not isinstance(name, str) or len(name) > 200 or _NAME.fullmatch(name) is None:
        return f"its recipe has the name {str(name)[:60]!r}, which is none"
    if len(plan.overrides) > MOST_OVERRIDES:
        return f"it has {len(plan.overrides)} overrides, and {MOST_OVERRIDES} are the most"
    for word in plan.overrides:
        if not isinstance(word, str) or len(word) > LONGEST_OVERRIDE or _OVERRIDE.fullmatch(word) is None:
            return f"its override {str(word)[:60]!r} is no KEY=VALUE"
    return None


def _against_the_overrides(plan: Plan) -> str | None:
    """What the overrides say of sizes has to be the layout: Megatron hears the overrides, and we planned the layout."""
    try:
        pins = pins_from(plan.overrides)
    except UsageError as error:
        return f"its overrides cannot be: {error.problem}"
    for name in (*SIZES, "global_batch_size"):
        there = pins.get(name)
        own = getattr(plan.layout, name)
        if name == "vp":
            there, own = there or 1, own or 1
        if there is not None and there != own:
            return f"its overrides set {name} to {there} and its layout has {own}"
    return None

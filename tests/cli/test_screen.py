"""The screen: whole texts of eight saved plans, wide, narrow and in colour. They change when the screen does, and only then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from parlaunch.cli.inputs import only
from parlaunch.cli.screen import MEMORY_PARTS, TIME_PARTS, as_text, show
from parlaunch.datasheet import preset
from parlaunch.machine import cluster_to_json
from parlaunch.plan import Plan, plan_from_json

PLANS = Path(__file__).parent.parent / "golden" / "plans"
NAMES = ("one-gpu", "dense", "moe", "long-context", "does-not-fit", "ethernet", "nvl72", "cpu")
Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """The saved plans with the nodes of their presets."""
    return {name: loaded(name) for name in NAMES}


def loaded(name: str) -> Plan:
    data = json.loads((PLANS / f"{name}.json").read_text(encoding="utf-8"))
    if "preset" in data["hardware"]:
        machine, _, nodes = data["hardware"]["preset"].partition(":")
        cluster = only(preset(machine, int(nodes)), data["hardware"]["gpus_per_node"])
        small = cluster_to_json(preset("dgx-h100"))  # instead of reading 16,384 GPUs back
        return replace(plan_from_json(data | {"hardware": small}, where=name), cluster=cluster)
    return plan_from_json(data, where=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_screen_of_a_hundred_columns(plans: dict[str, Plan], name: str, golden: Golden) -> None:
    golden(f"plans/{name}.txt", as_text(plans[name]))


@pytest.mark.parametrize("name", NAMES)
def test_the_screen_of_sixty_columns(plans: dict[str, Plan], name: str, golden: Golden) -> None:
    text = as_text(plans[name], width=60)
    assert max(map(len, text.splitlines())) <= 60
    golden(f"plans/{name}-60.txt", text)


def coloured(plan: Plan, width: int = 100, *, no_color: bool = False) -> str:
    page = StringIO()
    console = Console(
        file=page, width=width, force_terminal=True, color_system="standard", no_color=no_color, legacy_windows=False
    )
    show(plan, console)
    return page.getvalue()


def test_the_screen_in_colour(plans: dict[str, Plan], golden: Golden) -> None:
    golden("plans/dense-colour.txt", coloured(plans["dense"]))


def test_colour_changes_no_word(plans: dict[str, Plan]) -> None:
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured(plans["moe"]))
    assert "\n".join(line.rstrip() for line in bare.splitlines()) + "\n" == as_text(plans["moe"])


def test_no_color_is_heeded(plans: dict[str, Plan]) -> None:
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", coloured(plans["moe"], no_color=True))


def test_verbose_leaves_nothing_out(plans: dict[str, Plan]) -> None:
    plan = plans["dense"]
    text = " ".join(as_text(plan, verbose=True, width=10_000).split())
    for words in (*plan.because, *(r.reason for r in plan.rejected), *plan.warnings, *plan.overrides):
        assert " ".join(words.split()) in text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_bar_is_as_long_as_its_parts(plans: dict[str, Plan], name: str, width: int) -> None:
    """The memory bar fills the share of the GPU that is used, the time bar is full, neither runs past its end."""
    plan = plans[name]
    lines = as_text(plan, width=width).splitlines()
    glyphs = "".join({p[1] for p in MEMORY_PARTS} | {p[2] for p in TIME_PARTS})
    memory, time = (
        re.search(rf"[{glyphs}·┃]{{10,}}", next(line for line in lines if line.startswith(word)))
        for word in ("memory ", "time ")
    )
    assert memory is not None
    assert time is not None
    m = plan.chosen.memory
    used = sum(memory[0].count(g) for g in glyphs)
    assert abs(used - len(memory[0]) * min(1.0, m.peak / m.capacity)) <= 1
    end = memory[0].find("┃")
    assert (end == -1) == (m.peak <= m.capacity)
    assert end == -1 or abs(end - len(memory[0]) * m.capacity / m.peak) <= 1
    assert "·" not in time[0]
    assert len(memory[0]) == len(time[0])

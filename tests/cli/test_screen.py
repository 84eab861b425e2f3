"""The screen: whole texts of eight saved plans, wide, narrow, in full and in colour. They change when the screen does, and only then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parlaunch import front
from parlaunch.cli.inputs import only
from parlaunch.hardware.cluster import cluster_to_json
from parlaunch.hardware.datasheet import preset
from parlaunch.planning.plan import Plan, plan_from_json
from parlaunch.show.screen import LINES, MEMORY_STYLES, TIME_STYLES, as_text
from tests.cli.conftest import Said
from tests.probes.chaos import SAVED

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
@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_screen(plans: dict[str, Plan], name: str, width: int, golden: Golden) -> None:
    text = as_text(plans[name], width=width)
    golden(f"plans/{name}-{width}.txt", text)
    assert max(map(len, text.splitlines())) <= width
    if width >= 100:
        assert len(text.splitlines()) <= LINES


def test_an_order_that_a_column_shows_is_not_explained(plans: dict[str, Plan]) -> None:
    plan = plans["dense"]
    first, *others = sorted((plan.chosen, *plan.alternatives), key=lambda c: c.estimate.iteration_time_s)
    assert "Beside it, most worth a try first" in as_text(plan)
    assert "\nBeside it\n" in as_text(replace(plan, chosen=first, alternatives=tuple(others)))
    assert "\nBeside it\n" in as_text(replace(plan, objective="memory"))


def test_the_fastest_are_in_their_turn_though_their_memory_grows(plans: dict[str, Plan]) -> None:
    plan = plans["dense"]
    times = [c.estimate for c in plan.alternatives]
    assert [e.iteration_time_s for e in times] != sorted(e.iteration_time_s for e in times)
    grows = sorted((c.memory for c in plan.alternatives), key=lambda m: m.peak)
    others = tuple(replace(c, memory=memory) for c, memory in zip(plan.alternatives, grows, strict=True))
    least = replace(plan.chosen, memory=grows[0])
    assert "Beside it, most worth a try first" in as_text(replace(plan, chosen=least, alternatives=others))


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_plan(plans: dict[str, Plan], name: str, golden: Golden) -> None:
    golden(f"plans/{name}-whole.txt", as_text(plans[name], verbose=True))


@pytest.mark.parametrize("name", NAMES)
def test_sixty_columns_are_enough(plans: dict[str, Plan], name: str) -> None:
    for verbose in (False, True):
        assert max(map(len, as_text(plans[name], width=60, verbose=verbose).splitlines())) <= 60


LONG = "a sentence that goes on for longer than any line of a hundred columns could hold, and then for as long as that again, "


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("many", [1, 3, 30])
def test_the_decision_is_one_screen_however_much_there_is_to_say(plans: dict[str, Plan], name: str, many: int) -> None:
    plan = plans[name]
    full = replace(
        plan, because=(LONG * 2,) * many, warnings=(LONG,) * many, alternatives=(plan.chosen,) * many,
        evidence=({"sentence": LONG, "tokens_per_s_per_gpu": 1.0},) * many,
    )  # fmt: skip
    text = as_text(full)
    assert len(text.splitlines()) <= LINES
    assert "-v" in text
    assert "Mind" in text


def test_only_what_was_measured_is_called_measured(plans: dict[str, Plan]) -> None:
    rows: tuple[dict[str, object], ...] = (
        {"sentence": "tuned only", "tokens_per_s_per_gpu": None, "model_tflops_per_gpu": None},
        {"sentence": "held a clock", "tokens_per_s_per_gpu": 12.0, "model_tflops_per_gpu": None},
    )
    plan = replace(plans["dense"], evidence=rows)
    brief, whole = as_text(plan), as_text(plan, verbose=True)
    assert "held a clock" in brief
    assert "tuned only" not in brief
    measured, published = whole.split("Published elsewhere, without a measurement")
    assert "held a clock" in measured
    assert "tuned only" in published


@pytest.mark.parametrize("styles", [MEMORY_STYLES, TIME_STYLES])
def test_every_part_of_a_bar_has_a_mark_of_its_own(styles: tuple[tuple[str, str], ...]) -> None:
    marks = [mark for mark, _ in styles]
    assert len(set(marks)) == len(marks)


def test_the_screen_in_colour(plans: dict[str, Plan], golden: Golden) -> None:
    golden("plans/dense-colour.txt", as_text(plans["dense"], colour=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("verbose", [False, True])
def test_colour_changes_no_word(plans: dict[str, Plan], name: str, width: int, verbose: bool) -> None:
    painted = as_text(plans[name], width=width, verbose=verbose, colour=True)
    assert "\x1b[" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == as_text(plans[name], width=width, verbose=verbose)


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
    glyphs = "".join({glyph for glyph, _ in (*MEMORY_STYLES, *TIME_STYLES)})
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


@pytest.mark.parametrize(
    ("variables", "colour"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1"}, False),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100"),
        ("probe", "--hardware", "dgx-h100"),
        ("doctor", "--hardware", str(SAVED / "nvml-dgx-h100-sick")),
    ],
    ids=lambda words: words[0],
)
def test_colour_is_forced_and_forbidden_by_the_two_variables(
    parlaunch: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colour: bool,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in parlaunch(*words).out) == colour


def test_the_text_is_as_wide_as_columns_says(parlaunch: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:2")
    plain = parlaunch(*words).out
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, parlaunch(*words).out.splitlines())) <= 70 < max(map(len, plain.splitlines())) <= 100


def test_an_encoder_is_named_in_the_headline_with_its_size() -> None:
    headline = as_text(front.plan("qwen3_vl_8b_sft_config", "dgx-h100:1", evidence=False), width=100).splitlines()[1]
    assert headline.startswith("sft · 8.19 B parameters, and an encoder of 576 M · bf16")

"""The report: one file, no network, and a browser draws what is in it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from parlaunch.estimate.training import Goal, training
from parlaunch.hardware.datasheet import preset
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.planning.planner import plan
from parlaunch.show.report import report
from tests.conftest import HANGS_S, need

CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip


def planned(name: str, machine: str, nodes: int, **pins: int) -> Plan:
    return plan(preset(machine, nodes), recipe(name), Wishes(top=3, **pins))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama() -> Plan:
    return planned("llama3_70b_pretrain_config", "dgx-h100", 4, pp=4, tp=8)


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def drawn(page: str, folder: Path, *more: str) -> str:
    """The document after its script ran, in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    need(browser, "Chromium")
    assert browser is not None
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [browser, *CHROMIUM, *more, f"--user-data-dir={folder}/profile", file.as_uri()],
        capture_output=True, text=True, timeout=HANGS_S, check=True,
    )  # fmt: skip
    return done.stdout


def test_nothing_is_fetched_from_anywhere(llama: Plan) -> None:
    page = report(llama)
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(?:link|img|iframe|script)[^>]+(?:src|href)=", page)


def test_the_page_holds_every_stage_and_the_whole_schedule(llama: Plan) -> None:
    data = data_of(report(llama))
    stages, schedule = data["stages"], data["schedule"]
    assert isinstance(stages, list)
    assert isinstance(schedule, list)
    assert len(stages) == 4
    peaks = [sum(stage.values()) for stage in stages]
    assert max(peaks) == llama.chosen.memory.peak
    forwards = [slot for slot in schedule if slot[3] == "F"]
    assert len(forwards) == len(schedule) - len(forwards)


def test_a_name_cannot_break_out_of_the_page(llama: Plan) -> None:
    from dataclasses import replace

    evil = replace(llama, because=("</script><script>alert(1)</script>",))
    assert "<script>alert" not in report(evil)


def test_a_browser_draws_one_square_a_gpu_and_no_error(llama: Plan, tmp_path: Path) -> None:
    dom = drawn(report(llama), tmp_path)
    squares = re.search(r'<div id="map">(.*?)</div>', dom, re.DOTALL)
    assert squares is not None
    assert len(re.findall(r"tabindex", squares[1])) == 32
    assert "TP 8 · PP 4" in html.unescape(dom)
    for part in ("mem", "time", "gantt", "front"):
        assert re.search(rf'<div id="{part}"><svg', dom), part


def test_sixteen_thousand_gpus_are_drawn_by_nvlink_domain_or_node(tmp_path: Path) -> None:
    big = planned("deepseek_v3_pretrain_config", "gb200-nvl72", 4096, tp=1, pp=4, ep=64)
    page = report(big)
    assert len(page) < 3_000_000
    dom = drawn(page, tmp_path)
    squares = re.search(r'<div id="map">(.*?)</div>', dom, re.DOTALL)
    assert squares is not None
    assert 200 <= len(re.findall(r"tabindex", squares[1])) <= 4096


WIDTHS = (400, 800, 1280)
MEASURE = """<script>addEventListener("load", () => setTimeout(() => {
  const colour = getComputedStyle(document.body), seen = s => document.querySelectorAll(s).length;
  const narrowest = Math.min(...[...document.querySelectorAll("svg text")].map(t => parseFloat(getComputedStyle(t).fontSize)));
  parent.postMessage({width: innerWidth, scroll: document.documentElement.scrollWidth, page: colour.backgroundColor,
    ink: colour.color, svg: Math.max(...[...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().right)), narrowest,
    keys: ["mapkey", "memkey", "timekey", "ganttkey", "frontkey"].map(id => seen(`#${id} li`)), copies: seen("button.copy"),
    dots: seen("#front circle")}, "*");
}, 0));</script></body>"""


def measured(page: str, folder: Path, *more: str) -> dict[int, dict[str, object]]:
    """What the page says of itself in frames of three widths."""
    (folder / "inner.html").write_text(page.replace("</body>", MEASURE), encoding="utf-8")
    frames = "".join(f'<iframe src="inner.html" style="width:{w}px;height:900px;border:0"></iframe>' for w in WIDTHS)
    listen = """<script>const got = []; addEventListener("message", m => { got.push(m.data);
      document.getElementById("got").textContent = JSON.stringify(got); });</script>"""
    dom = drawn(f'<html><body>{listen}<pre id="got"></pre>{frames}</body></html>', folder, *more)
    found = re.search(r'<pre id="got">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return {row["width"]: row for row in json.loads(html.unescape(found[1]))}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_three_widths_light_and_dark(llama: Plan, tmp_path: Path, scheme: str) -> None:
    rows = measured(report(llama), tmp_path, *(["--force-dark-mode"] if scheme == "dark" else []))
    assert set(rows) == set(WIDTHS)
    for width, row in rows.items():
        assert int(str(row["scroll"])) <= width, "the page scrolls sideways"
        assert float(str(row["svg"])) <= width
        assert float(str(row["narrowest"])) >= 11
        assert all(row["keys"])  # type: ignore[arg-type]
        assert row["copies"] == 3
        dark = sum(map(int, re.findall(r"\d+", str(row["page"])))) < sum(map(int, re.findall(r"\d+", str(row["ink"]))))
        assert dark == (scheme == "dark")


def test_every_layout_that_is_shown_stands_among_all_layouts(llama: Plan) -> None:
    data = data_of(report(llama))
    listed = {row[2] for row in data["frontier"]}  # type: ignore[attr-defined]
    assert {str(c.layout) for c in (llama.chosen, *llama.alternatives)} <= listed


def test_the_picture_of_the_pipeline_agrees_with_the_bubble_beside_it(llama: Plan) -> None:
    data = data_of(report(llama))
    slots: list[list[float]] = data["schedule"]  # type: ignore[assignment]
    busy: dict[float, float] = {}
    for stage, start, end, *_ in slots:
        busy[stage] = busy.get(stage, 0.0) + end - start
    idle = max(slot[2] for slot in slots) - max(busy.values())
    estimate = llama.chosen.estimate
    assert idle == pytest.approx(estimate.breakdown.pp_bubble_s, abs=0.005 * estimate.iteration_time_s)


def test_the_whole_configuration_is_in_it(llama: Plan) -> None:
    from parlaunch.launching import complete

    made = complete(llama)
    text = report(made)
    page, data = html.unescape(text), data_of(text)
    assert all(o in page for o in made.overrides)
    assert all(v.reason in json.dumps(data, ensure_ascii=False) for v in made.environment)
    assert data["exports"]
    assert "torch.distributed.run" in str(data["command"])


def test_the_whole_run_is_in_it(llama: Plan) -> None:
    run = training(Goal(tokens=15e12, price=2.5), llama.recipe, llama.chosen.estimate, gpus=8, nodes=1)
    text = report(replace(llama, training=run))
    assert "15 T tokens in" in text
    assert "at 2.5 each" in text
    assert "The whole run:" in text

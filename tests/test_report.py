"""The report: one file, no network, and a browser draws what is in it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from parlaunch.catalog import recipe
from parlaunch.datasheet import preset
from parlaunch.plan import Plan, Wishes
from parlaunch.planner import plan
from parlaunch.report_html import report
from tests.conftest import need

CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
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


def drawn(page: str, folder: Path) -> str:
    """The document after its script ran, in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    need(browser, "Chromium")
    assert browser is not None
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [browser, *CHROMIUM, f"--user-data-dir={folder}/profile", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
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

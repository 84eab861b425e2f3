"""Machines side by side, and machines with a number changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.errors import UsageError
from parlaunch.hardware.datasheet import preset, preset_names, product_names
from parlaunch.hardware.rates import rates_of
from parlaunch.hardware.what_if import CHANGES, changed_cluster, changed_rates, read
from tests.cli.conftest import Said

Run = Callable[..., Said]
RECIPE = ("--recipe", "llama3_70b_pretrain_config")
TWO = (*RECIPE, "--hardware", "dgx-h100:8", "--hardware", "dgx-h200:8")


def rows(said: Said) -> list[dict[str, object]]:
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["schema"] == "parlaunch.compare/1"
    return list(found["machines"])


def test_each_machine_gets_the_plan_that_it_gets_alone(parlaunch: Run) -> None:
    side_by_side = rows(parlaunch("compare", *TWO, "--format", "json"))
    for row, machine in zip(side_by_side, ("dgx-h100:8", "dgx-h200:8"), strict=True):
        alone = json.loads(parlaunch("plan", *RECIPE, "--hardware", machine, "--format", "json").out)
        assert row["hardware"] == machine
        for part in ("layout", "estimate", "memory"):
            assert row[part] == alone[part]


def test_the_best_is_marked_and_only_among_two(parlaunch: Run) -> None:
    found = rows(parlaunch("compare", *TWO, "--price", "2", "--price", "20", "--tokens", "1T", "--format", "json"))
    assert [row["best"] for row in found] == [["cheapest"], ["fastest", "per GPU"]]
    text = parlaunch("compare", *TWO, "--price", "2", "--price", "20", "--tokens", "1T").out.splitlines()
    assert [name in text[0] for name in ("machine", "GPUs", "layout", "memory", "MFU", "days", "cost", "best")]
    assert text[1].endswith("cheapest")
    assert text[2].endswith("fastest, per GPU")


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_every_figure_is_there(
    parlaunch: Run, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*TWO, "--hardware", "l4-8:1", "--price", "2", "--tokens", "1T")
    whole = parlaunch("compare", *words).out
    monkeypatch.setenv("COLUMNS", str(columns))
    text = parlaunch("compare", *words).out
    assert max(map(len, text.splitlines())) <= columns
    assert {*whole.split()} - {"machine", "layout", "best"} <= {
        *text.split(),
        *(word.rstrip(":") for word in text.split()),
    }


def test_a_machine_that_holds_nothing_says_why_and_stays(parlaunch: Run) -> None:
    said = parlaunch("compare", *RECIPE, "--hardware", "dgx-h100:8", "--hardware", "l4-8:1", "--format", "json")
    found = rows(said)
    assert found[0]["refused"] is None
    assert "fits nowhere" in str(found[1]["refused"])
    assert "fits nowhere" in parlaunch("compare", *RECIPE, "--hardware", "l4-8:1", "--hardware", "dgx-h100:8").out


def test_the_page_has_every_machine_and_needs_nothing_else(parlaunch: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.html"
    assert parlaunch("compare", *TWO, "--what-if", "fabric=10GB/s", "--report", str(file)).code == 0
    text = file.read_text(encoding="utf-8")
    HTMLParser().feed(text)
    for word in ("dgx-h100:8", "dgx-h200:8", "with fabric=10GB/s"):
        assert word in text
    assert "http" not in text
    assert text.count("<tr") == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--hardware", "dgx-h100:8"), "nothing to compare: one machine"),
        ((), "nothing to compare: no machine"),
        (("dgx-h100:8", "dgx-h200:8"), "machines are options: --hardware dgx-h100:8 --hardware dgx-h200:8"),
        (
            ("--hardware", "a100:1", "--hardware", "h100:1", "--price", "1", "--price", "2", "--price", "3"),
            "3 prices for 2 machines",
        ),
        (("--hardware", "dgx-h100:8", "--what-if", "fabrik=1GB/s"), "did you mean fabric?"),
        (("--hardware", "dgx-h100:8", "--what-if", "fabric"), "fabric needs a value"),
        (("--hardware", "dgx-h100:8", "--what-if", "fabric=25"), "fabric=25: '25' is no rate"),
        (("--hardware", "dgx-h100:8", "--what-if", "gpus=12"), "12 GPUs are no whole nodes of 8"),
        (("--hardware", "dgx-h100:8", "--what-if", "nvlink_domain=12"), "no NVLink domain of nodes with 8"),
        (("--hardware", "dgx-h100:2racks", "--hardware", "a100"), "does not come in racks"),
    ],
)
def test_what_cannot_be_compared_is_said(parlaunch: Run, words: tuple[str, ...], said: str) -> None:
    answer = parlaunch("compare", *RECIPE, *words)
    assert answer.code == 2
    assert said in answer.err


H100 = preset("dgx-h100", 4)


@given(st.integers(1, 64))
def test_more_nodes_are_nodes_like_the_first(nodes: int) -> None:
    for machine in (H100, preset("gb200-nvl72", 18)):
        made = changed_cluster(machine, {"nodes": str(nodes)})
        assert len(made.nodes) == nodes
        assert len({n.hostname for n in made.nodes}) == nodes
        assert made.nvlink_domain_size <= machine.nvlink_domain_size
        assert changed_cluster(machine, {"gpus": str(made.world_size)}).nodes == made.nodes


@pytest.mark.parametrize(("wanted", "domains"), [(1, 0), (2, 16), (4, 8), (8, 4), (16, 2), (32, 1)])
def test_an_nvlink_domain_joins_so_many_consecutive_gpus(wanted: int, domains: int) -> None:
    made = changed_cluster(H100, {"nvlink_domain": str(wanted)})
    assert len(made.nvlink_domains) == domains
    assert all(d == tuple(range(d[0], d[0] + wanted)) for d in made.nvlink_domains)
    assert rates_of(made).nvlink_domain == wanted


def test_every_change_reaches_what_the_planner_computes_with() -> None:
    before = rates_of(H100)
    field = {
        "gpus": ("512", "world_size", 512), "nodes": ("64", "world_size", 512), "memory": ("141GiB", "memory_bytes", 141 * 2**30),
        "nvlink_domain": ("16", "nvlink_domain", 16), "fabric": ("200Gb/s", "fabric_bytes_per_s", 25e9),
        "nvlink": ("100GB/s", "nvlink_bytes_per_s", 100e9), "hbm": ("4.8TB/s", "product", None),
    }  # fmt: skip
    assert set(field) == set(CHANGES)
    for name, (text, what, value) in field.items():
        given_ = {name: text}
        after = changed_rates(rates_of(changed_cluster(H100, given_)), given_)
        assert getattr(after, what) != getattr(before, what), name
        assert value is None or getattr(after, what) == value
    assert changed_rates(before, {"hbm": "4.8TB/s"}).product.hbm_bytes_per_s == 4.8e12


def test_names_are_read_in_any_spelling() -> None:
    assert read("NVLink-Domain=72, gpus=8") == {"nvlink_domain": "72", "gpus": "8"}
    with pytest.raises(UsageError, match="nothing that can be changed"):
        read("colour=red")


def test_a_plan_shows_the_difference(parlaunch: Run) -> None:
    said = parlaunch("plan", *RECIPE, "--hardware", "dgx-h100:8", "--what-if", "fabric=5GB/s")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[-2].startswith("this plan")
    assert "with fabric=5GB/s" in lines[-1]
    assert "%" in lines[-1]


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("gb200-nvl72:8", "8 of a rack's 18 trays"), ("gb200-nvl72:1racks", "one rack of 18 trays"),
        ("gb200-nvl72:2racks", "2 racks of 18 trays"), ("gb200-nvl72:32", "2 racks with 16 of their 18 trays"),
        ("gb200-nvl36:9", "one rack of 9 trays"), ("dgx-h100:2", "NVLink domains of 8"),
    ],
)  # fmt: skip
def test_a_part_of_a_rack_is_called_one(parlaunch: Run, machine: str, said: str) -> None:
    assert said in parlaunch("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", machine).out


def test_every_machine_and_product_is_listed(parlaunch: Run) -> None:
    text = parlaunch("machines").out
    found = json.loads(parlaunch("machines", "--format", "json").out)
    names = {m["name"] for m in found["machines"]} | {a for m in found["machines"] for a in m["aliases"]}
    assert names == set(preset_names())
    assert {p["name"] for p in found["products"]} == set(product_names())
    assert all(word in text for word in (*preset_names(), *product_names()))
    assert parlaunch("plan", "--hardware", "list").out == text == parlaunch("probe", "--hardware", "list").out


def test_words_narrow_the_list(parlaunch: Run) -> None:
    lines = parlaunch("machines", "H200", "efa").out.splitlines()
    assert lines[1:] == [line for line in lines[1:] if "H200" in line and "efa" in line]
    assert parlaunch("machines", "nothing-like-it").code == 2

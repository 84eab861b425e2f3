"""Published layouts: found for the same model, machine, precision and count; taken where the model cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from parlaunch.data import load
from parlaunch.hardware.datasheet import preset, product_names
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.planning.evidence import chunks_of, proven, published
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import plan
from parlaunch.planning.search import Search

ROWS: list[Mapping[str, Any]] = load("evidence.json")["rows"]
MEASURED = [r for r in ROWS if r.get("tokens")]
QWEN = catalog.recipe("qwen3_235b_a22b_pretrain_256gpu_gb200_fp8mx_config")
GB200 = preset("gb200-nvl72", 64)


def test_every_row_says_who_ran_what_where_and_its_source() -> None:
    assert len(MEASURED) > 50
    products, models = set(product_names()), set(load("architectures.json"))
    for row in ROWS:
        assert row["source"]
        assert row["name"]
        assert row["product"] in products
        assert row["model_id"] in models
        assert {"tp", "pp", "mbs"} <= row["layout"].keys()


def test_rows_for_the_same_machine_and_count_come_first_and_measured_ones_before_the_rest() -> None:
    rows = published(QWEN, rates_of(GB200))
    assert rows[0].gpus == 256
    assert rows[0].measured
    assert "measured" in rows[0].sentence()
    assert all(r.product == "GB200" and r.precision == "fp8mx" for r in rows)
    distances = [abs(r.gpus - 256) for r in rows]
    assert distances == sorted(distances)


def test_nothing_is_published_for_a_machine_nobody_measured() -> None:
    assert published(QWEN, rates_of(preset("l40s-pcie-8"))) == ()


def test_the_plan_shows_what_was_measured_beside_its_own_prediction() -> None:
    made = plan(GB200, QWEN, Wishes())
    assert made.evidence
    sentence = str(made.evidence[0]["sentence"])
    assert "NVIDIA on 256 × GB200" in sentence
    assert "ours: predicted" in sentence


def test_without_evidence_the_plan_knows_of_none() -> None:
    made = plan(GB200, QWEN, Wishes(evidence=False))
    assert made.evidence == ()
    assert not any("NVIDIA" in s for s in made.because)


@pytest.mark.parametrize("row", MEASURED[::6], ids=[r["name"] for r in MEASURED[::6]])
def test_a_measured_layout_is_taken_unless_the_model_is_sure_that_it_is_slower(row: Mapping[str, Any]) -> None:
    names = [
        r["name"]
        for r in sorted(ROWS, key=lambda r: (r["product"] != row["product"], abs(r["gpus"] - row["gpus"]), r["name"]))
        if r["model_id"] == row["model_id"]
        and "tokens" not in r
        and (r["precision"], r["task"]) == (row["precision"], row["task"])
    ]
    if not names:
        pytest.skip("no recipe of this model and precision in the catalog")
    recipe = replace(
        catalog.recipe(names[0]), global_batch_size=row["gbs"], seq_length=row["seq"], precision=row["precision"]
    )
    recipe = replace(recipe, features=replace(recipe.features, fsdp=bool(row.get("fsdp"))))
    machine = {
        "H100 SXM": "dgx-h100",
        "B200": "dgx-b200",
        "B300": "dgx-b300",
        "GB200": "gb200-nvl72",
        "GB300": "gb300-nvl72",
    }[row["product"]]
    cluster = preset(machine, max(1, row["gpus"] // preset(machine).gpus_per_node))
    rates = rates_of(cluster)
    search = Search(recipe, rates, Wishes())
    blind = search.run(keep=2).ranked[0]
    rows = published(recipe, rates)
    assert any(r.measured and r.gpus == rates.world_size for r in rows)
    answer = proven(rows, recipe, Wishes(), blind, world=rates.world_size, evaluate=search.held)
    candidates = [r for r in rows if r.measured and r.gpus == rates.world_size and r.global_batch_size == row["gbs"]]
    if answer is None:
        for r in candidates:
            legal = search.legal(r.layout) and search.memory(r.layout).peak <= rates.memory_bytes
            slower = legal and search.candidate(
                r.layout
            ).estimate.iteration_time_s > blind.estimate.iteration_time_s * (1 + blind.estimate.error_band)
            assert not legal or slower or r.layout.fsdp != search.fsdp
    else:
        taken, sentence = answer
        assert taken.layout in {r.layout for r in candidates}
        assert "measured" in sentence
        assert taken.estimate.iteration_time_s <= blind.estimate.iteration_time_s * (1 + blind.estimate.error_band)


def test_the_users_pins_go_before_what_others_measured() -> None:
    made = plan(GB200, QWEN, Wishes(pp=4))
    assert made.layout.pp == 4


def test_embedding_and_loss_counted_as_layers_make_a_split() -> None:
    a = catalog.architecture("meta-llama/Meta-Llama-3.1-405B")
    row = {
        "pp": 16, "vp": 8, "account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True,
    }  # fmt: skip
    chunks = chunks_of(row, a)
    assert chunks is not None
    assert (chunks[0], chunks[1], chunks[-1]) == (0, 1, 0)
    assert sum(chunks) == 126


def test_a_layout_without_a_split_gets_the_nearest_even_one() -> None:
    a = catalog.architecture("deepseek-ai/DeepSeek-V3")
    assert chunks_of({"pp": 4, "vp": 4}, a) == (4,) * 15 + (1,)
    assert chunks_of({"pp": 4, "vp": 4, "equal": True}, a) is None

"""Calibration: a machine made slower on purpose is found again, and few rows move little."""

from __future__ import annotations

import bz2
import gzip
import lzma
import runpy
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from parlaunch.check.calibrate import from_microbenchmarks, from_runs
from parlaunch.check.fit import Fit, Observed
from parlaunch.check.machine_file import PEAK_SHARES, machine_to_text
from parlaunch.check.measured import Machines, run_of
from parlaunch.check.normal import expected
from parlaunch.check.validate import validate
from parlaunch.cli.accuracy import rows_of
from parlaunch.errors import ParlaunchError, ProbeError, UsageError
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.hardware.cluster import Cluster, Gpu, Node
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.derived import sheet_of
from parlaunch.hardware.rates import Rates, rates_of
from tests.conftest import need

H100 = "NVIDIA H100 80GB HBM3"
ROW: dict[str, Any] = {
    "model_id": "meta-llama/Meta-Llama-3-8B", "hardware": "dgx-h100", "gpus": 8, "precision": "bf16", "seq": 4096, "gbs": 64,
    "mbs": 1, "pp": 1,
}  # fmt: skip


def here(**measured: float) -> Rates:
    return replace(rates_of(preset("dgx-h100")), measured=measured)


def benchmarks(rates: Rates) -> dict[str, Any]:
    """What a machine with these rates would show."""
    kernels, links = Kernels(rates), Links(rates)
    shapes = [(8192, 8192, 8192), (8192, 14336, 4096), (64, 64, 64)]
    return {
        "gpu": H100,
        "gemm": [
            {"m": m, "n": n, "k": k, "format": f, "seconds": kernels.gemm(m, n, k, f)}
            for m, n, k in shapes
            for f in ("bf16", "fp8")
        ],
        "stream": [{"bytes": 2**31, "seconds": 2**31 / kernels.hbm}],
        "launch": [{"seconds": 5e-6}],
        "nvlink": [
            {"operation": "all_gather", "bytes": 2**29, "ranks": 8, "seconds": links.gather(2.0**29, Group(8, 8))}
        ],
        "fabric": [{"operation": "send", "bytes": 2**29, "ranks": 2, "seconds": 2**29 / 40e9}],
    }


def test_benchmarks_of_a_slowed_machine_give_its_rates_back() -> None:
    slowed = here(gemm_bf16=0.5, gemm_fp8=0.44, hbm=0.7, nvlink_bus_bytes_per_s=250e9)
    found = from_microbenchmarks(benchmarks(slowed))
    assert found["schema"] == "parlaunch.machine/1"
    assert found["gpu"] == "H100 SXM"
    measured = found["measured"]
    assert measured["gemm_bf16"] == pytest.approx(0.5, rel=0.01)
    assert measured["gemm_fp8"] == pytest.approx(0.44, rel=0.01)
    assert measured["hbm"] == pytest.approx(0.7, rel=0.01)
    assert measured["nvlink_bus_bytes_per_s"] == pytest.approx(250e9, rel=0.02)
    assert measured["fabric_bus_bytes_per_s"] == pytest.approx(40e9, rel=0.01)
    assert measured["host"] == 5e-6


def test_planning_uses_the_machine_file() -> None:
    file = from_microbenchmarks(benchmarks(here(gemm_bf16=0.5)))
    rates = rates_of(preset("dgx-h100"), machine_file=file)
    run = run_of(ROW | {"id": "x", "tp": 1}, Machines())
    assert estimate_time(run.recipe, run.layout, rates).iteration_time_s > 1.2 * (
        estimate_time(run.recipe, run.layout, run.rates).iteration_time_s
    )


def test_more_than_the_data_sheet_is_refused() -> None:
    with pytest.raises(UsageError, match="above the data sheet"):
        from_microbenchmarks({"gpu": H100, "stream": [{"bytes": 2**31, "seconds": 1e-5}]})


@pytest.mark.parametrize("results", [{"gpu": "TPU v4"}, {"gpu": H100}, {"gpu": H100, "gemm": []}])
def test_nothing_to_fit_is_refused(results: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        from_microbenchmarks(results)


@pytest.mark.parametrize(
    "file",
    [
        {},
        {"schema": "parlaunch.plan/1", "measured": {}},
        {"schema": "parlaunch.machine/1", "gpu": "B200", "measured": {}},
        {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": "x"}},
        {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"hbm": 1.2}},
        {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"hbm": float("nan")}},
    ],
)
def test_a_file_of_something_else_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(ProbeError):
        rates_of(preset("dgx-h100"), machine_file=file)


def test_a_misspelt_rate_is_refused_with_the_nearest() -> None:
    file = {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gem_bf16": 0.6}}
    with pytest.raises(ProbeError, match="gem_bf16") as refused:
        rates_of(preset("dgx-h100"), machine_file=file)
    assert "gemm_bf16" in refused.value.hint


def measured_rows(slowed: Rates, layouts: list[dict[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for i, sizes in enumerate(layouts):
        run = run_of(ROW | {"id": f"r{i}"} | sizes, Machines())
        seconds = estimate_time(run.recipe, run.layout, replace(run.rates, measured=slowed.measured)).iteration_time_s
        rows.append(ROW | {"id": f"r{i}", "iteration_time_s": seconds} | sizes)
    return rows


LAYOUTS = [{"tp": tp, "mbs": mbs} for tp in (1, 2, 4, 8) for mbs in (1, 2, 4)]


def test_runs_of_a_slowed_machine_are_predicted_after_calibration() -> None:
    slowed = here(gemm_bf16=0.55, nvlink_bus_bytes_per_s=180e9)
    rows = measured_rows(slowed, LAYOUTS)
    file = from_runs(rows[::2])
    assert file["fit"]["rows"] == 6
    assert (
        file["fit"]["mean_error_after"] < 0.4 * file["fit"]["mean_error_before"]
    )  # a machine far from the tables is believed slowly
    unseen = validate(rows[1::2], machine=file)["summary"]["time"]
    assert unseen["mean"] < 0.09


def test_few_runs_change_nothing_and_many_runs_more_than_four() -> None:
    slowed = here(gemm_bf16=0.5)
    rows = measured_rows(slowed, LAYOUTS)
    four, many = (from_runs(some)["measured"] for some in (rows[:4], rows))
    assert abs(many["gemm_bf16"] - 0.5) <= abs(four["gemm_bf16"] - 0.5)
    twice = [*rows[:2], *(row | {"id": "again"} for row in rows[:2])]
    two = from_runs(twice)
    assert two["measured"] == {}
    assert (
        0.5 < from_runs(twice, doubtful=True)["measured"]["gemm_bf16"] < 0.6
    )  # what they would say if they were enough
    assert "runs of 2 models or layouts" in two["fit"]["notes"][0]
    assert "runs of 1 model or layout" in from_runs(rows[:1])["fit"]["notes"][0]


def test_a_machine_as_the_data_sheet_says_is_left_alone() -> None:
    assert from_runs(measured_rows(here(), LAYOUTS[:4]))["measured"] == {}


def test_rows_of_two_machines_with_one_kind_of_gpu_are_said_to_be_learnt_as_one() -> None:
    rows = measured_rows(here(), LAYOUTS[:4])
    other = [row | {"id": f"far {row['id']}", "hardware": "p5.48xlarge"} for row in rows]
    assert not from_runs(rows)["fit"]["notes"][0].startswith("the rows name")
    assert from_runs([*rows, *other])["fit"]["notes"][0].startswith(
        "the rows name 2 machines, which are learnt as one: dgx-h100, p5.48xlarge"
    )


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_cells_is_read_as_its_rows(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "runs.csv"
    lines = (
        ("model", "gpu", "gpus", "seq", "step time (s)"),
        ("llama3 8b", "H100", "8", '"8,192"', "10.5"),
        ("llama3 8b", "H100", "", "8k", ""),
    )
    path.write_text("\ufeff" + "\r\n".join(mark.join(cells) for cells in lines))
    assert rows_of(path) == [
        {"id": "line 2", "model": "llama3 8b", "gpu": "H100", "gpus": "8", "seq": "8,192", "step time (s)": "10.5"},
        {"id": "line 3", "model": "llama3 8b", "gpu": "H100", "seq": "8k"},
    ]


@pytest.mark.parametrize(
    "kept", [gzip.compress, bz2.compress, lzma.compress, lambda text: text.decode().encode("utf-16")]
)
def test_a_table_is_read_as_it_is_kept(tmp_path: Path, kept: Callable[[bytes], bytes]) -> None:
    (tmp_path / "runs").write_bytes(kept(b"model,gpus\nllama3 8b,8\n"))
    assert rows_of(tmp_path / "runs") == [{"id": "line 2", "model": "llama3 8b", "gpus": "8"}]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no rows"),
        ("Step,run-1 - lm loss\n1,12.0\n", "no field of its first line says anything of a run: 'Step,run-1"),
        (
            " [2026-01-10 10:00:00] iteration        1/     100 | elapsed time per iteration (ms): 9.5 |",
            "is a training's log",
        ),
        ("[0]:Training epoch 0, iteration 1/3 | train_step_timing in s: 9.1 | lr: 1e-05", "is a training's log"),
        ("model,gpus\n", "has no rows"),
        ("hello world\n", "neither JSON nor a table of cells: its first line is 'hello world'"),
        ("model,seq\nllama3 8b,8,192\n", "line 2 has more cells than the first line names fields"),
        ('{"id": "a", \n', "is not JSON"),
        ('{"schema": "parlaunch.plan/1", "hardware": {}}', "is a plan, and nothing in it was measured"),
        ('model,note\nllama3 8b,"' + "x" * 200_000, "is no table of cells after line 1: field larger"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UsageError, match=why):
        rows_of(tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iteration_time_s": 5000.0}, "5,000.00 s an iteration where"),
        ({"gbs": None}, ": the row does not say"),
        ({"arch": None, "model_id": None, "model": "mymodel-13b"}, "no model is known as 'mymodel-13b'"),
    ],
)
def test_a_row_that_cannot_be_meant_or_is_not_whole_is_learnt_from_by_nobody(change: dict[str, Any], why: str) -> None:
    rows = measured_rows(here(), LAYOUTS[:4])
    wrong = rows[0] | {"id": "wrong"} | change
    notes = from_runs([*rows, wrong])["fit"]["notes"]
    assert from_runs([*rows, wrong])["measured"] == {}
    assert any(why in note for note in notes)
    with pytest.raises(UsageError) as told:
        from_runs([wrong])
    assert why in str(told.value.hint)


def test_runs_of_two_kinds_of_gpu_are_refused() -> None:
    rows = [
        ROW | {"id": "a", "tp": 1, "iteration_time_s": 1.0},
        ROW | {"id": "b", "tp": 1, "iteration_time_s": 1.0, "hardware": "dgx-b200"},
    ]
    with pytest.raises(UsageError, match="2 kinds of GPU"):
        from_runs(rows)


def test_of_two_kinds_of_gpu_the_one_that_is_asked_for_is_calibrated() -> None:
    slowed = measured_rows(here(gemm_bf16=0.5), LAYOUTS[:4])
    other = ROW | {"id": "b", "tp": 1, "iteration_time_s": 1.0, "hardware": "dgx-b200"}
    alone, among = from_runs(slowed), from_runs([*slowed, other], gpu="H100 SXM")
    assert among["measured"] == alone["measured"]
    assert among["fit"]["notes"] == ["skipped: 1 row of another GPU than H100 SXM"]
    assert from_runs([*slowed, other], here="H100 SXM") == among  # on such a machine it needs no word
    with pytest.raises(UsageError, match="2 kinds of GPU"):
        from_runs([*slowed, other], here="A100 SXM 80GB")
    with pytest.raises(UsageError, match="no row ran on 'GB200'"):
        from_runs(slowed, gpu="GB200")


MODELS = {
    "layers": 16, "hidden": 2048, "heads": 16, "ffn": 8192
}, {"layers": 24, "hidden": 4096, "heads": 32, "ffn": 16384}, {"layers": 8, "hidden": 8192, "heads": 64, "ffn": 28672}, {
    "layers": 40, "hidden": 5120, "heads": 40, "ffn": 13824
}  # fmt: skip


def recipes(factors: tuple[float, ...], slowed: Rates | None = None) -> list[dict[str, Any]]:
    """A run of each of several models, each split its own way, so much slower than predicted."""
    rows = []
    for i, (arch, factor) in enumerate(zip(MODELS, factors, strict=True)):
        row = {k: v for k, v in ROW.items() if k != "model_id"} | {"id": f"m{i}", "tp": 2**i, "arch": arch}
        run = run_of(row, Machines())
        rates = replace(run.rates, measured={} if slowed is None else slowed.measured)
        rows.append(row | {"iteration_time_s": factor * estimate_time(run.recipe, run.layout, rates).iteration_time_s})
    return rows


def test_every_recipe_is_predicted_from_the_others_and_the_file_says_how_well() -> None:
    file = from_runs(recipes((1.0,) * 4, here(gemm_bf16=0.55)))
    left = file["fit"]["left_out"]
    assert file["fit"]["changed"]
    assert left["by"] == "recipe"
    assert left["after"] < 0.7 * left["before"]
    assert left["after"] >= file["fit"]["mean_error_after"]


def test_where_calibration_would_not_help_no_value_is_changed_and_it_says_so() -> None:
    file = from_runs(recipes((1.2, 0.85, 1.15, 0.8)))
    assert file["measured"] == {}
    assert not file["fit"]["changed"]
    assert file["fit"]["mean_error_after"] < file["fit"]["mean_error_before"]
    assert "the tables' values stay" in file["fit"]["notes"][0]
    assert len(file["models"]) == 4  # each by itself is missed


def slower_rows(factor: float, layouts: list[dict[str, int]], arch: dict[str, int], name: str) -> list[dict[str, Any]]:
    """Runs of a model of its own that take so many times as long as predicted."""
    rows = []
    for i, sizes in enumerate(layouts):
        row = {k: v for k, v in ROW.items() if k != "model_id"} | {"id": f"{name}{i}", "arch": arch} | sizes
        run = run_of(row, Machines())
        rows.append(
            row | {"iteration_time_s": factor * estimate_time(run.recipe, run.layout, run.rates).iteration_time_s}
        )
    return rows


def taken(row: dict[str, Any], file: dict[str, Any]) -> float:
    """Times as long as without a machine file."""
    times = [
        estimate_time(run.recipe, run.layout, run.rates).iteration_time_s
        for run in (run_of(row, Machines(file)), run_of(row, Machines()))
    ]
    return times[0] / times[1]


def test_what_runs_of_one_model_have_in_common_is_kept_for_it_and_for_it_alone() -> None:
    """Two models, of which one is a tenth slower than predicted in each of its layouts: others of its layouts, and fewer of its layers,
    are predicted slower; in another format, and of the other model, runs are not."""
    mine = slower_rows(1.1, LAYOUTS[3:9], MODELS[0], "o")
    file = from_runs([*measured_rows(here(), LAYOUTS[:3]), *mine[:3]])
    assert file["measured"] == {}
    (pace,) = file["models"]
    assert pace["sizes"]["hidden_size"] == 2048
    assert pace["format"] == "bf16"
    assert 1.04 < pace["slower"] < 1.1
    fewer = mine[3] | {"arch": MODELS[0] | {"layers": 4}}
    for run in (run_of(row, Machines(file)) for row in (*mine[3:], fewer)):
        plain = estimate_time(run.recipe, run.layout, replace(run.rates, models=()))
        slower = estimate_time(run.recipe, run.layout, run.rates)
        assert slower.iteration_time_s == pytest.approx(pace["slower"] * plain.iteration_time_s)
        assert slower.breakdown.total == pytest.approx(slower.iteration_time_s)
        assert slower.breakdown.compute_s == pytest.approx(pace["slower"] * plain.breakdown.compute_s)
    for other in (ROW | {"id": "x", "tp": 4, "mbs": 1}, mine[3] | {"precision": "fp8cs"}):
        assert taken(other, file) == 1.0


def test_what_runs_with_one_split_have_in_common_is_kept_whatever_they_train() -> None:
    """Three models that are slower in one of two splits each: a fourth is, in that split alone."""
    slow, fine = {"tp": 4, "mbs": 2}, {"tp": 1, "mbs": 1}
    rows = [
        row
        for i, arch in enumerate(MODELS[:3])
        for row in (*slower_rows(1.08, [slow], arch, f"s{i}"), *slower_rows(1.0, [fine], arch, f"f{i}"))
    ]
    file = from_runs(rows)
    assert file["measured"] == {}
    there = [(p["tp"], p["pp"], p["micro_batch_size"]) for p in file["splits"] if p["slower"] > 1.04]
    assert there == [(4, 1, 2)]
    assert "TP 4, PP 1 and micro batch 2, whatever is trained: 1.0" in machine_to_text(file)
    assert 1.04 < taken(ROW | {"id": "x"} | slow, file) < 1.08
    assert taken(ROW | {"id": "x", "tp": 2, "mbs": 1}, file) == 1.0
    assert taken(ROW | {"id": "x"} | fine, file) < 1.0  # what the models share with it is not the split's


def test_the_more_layouts_of_a_model_are_known_the_further_its_miss_is_believed() -> None:
    slower = [
        from_runs([row | {"iteration_time_s": 1.08 * row["iteration_time_s"]} for row in measured_rows(here(), some)])
        for some in (LAYOUTS[:1], [LAYOUTS[0]] * 8, LAYOUTS[:2])
    ]
    one, again, two = (file["models"][0]["slower"] for file in slower)
    assert 1.0 < one < again < two < 1.08


def test_one_bad_row_among_many_moves_the_fit_little() -> None:
    rows = measured_rows(here(gemm_bf16=0.5), LAYOUTS)
    spoilt = [*rows[:-1], rows[-1] | {"iteration_time_s": 3 * rows[-1]["iteration_time_s"]}]
    good, bad = from_runs(rows)["measured"]["gemm_bf16"], from_runs(spoilt)["measured"]["gemm_bf16"]
    assert bad == pytest.approx(good, rel=0.08)


def test_no_fit_makes_a_share_of_the_peak_more_than_all_of_it() -> None:
    rows = [row | {"iteration_time_s": row["iteration_time_s"] / 4} for row in measured_rows(here(), LAYOUTS)]
    measured = from_runs(rows)["measured"]
    assert measured
    assert all(measured.get(name, 0.0) <= 1.0 for name in PEAK_SHARES)


def test_rows_of_one_recipe_move_what_it_exercises() -> None:
    measured = from_runs(measured_rows(here(gemm_bf16=0.5), LAYOUTS[:4]))["measured"]
    assert "gemm_bf16" in measured
    assert not {"gemm_fp8", "gemm_fp4", "fabric_bus_bytes_per_s"} & measured.keys()


def test_one_run_far_from_the_others_says_nothing_of_the_machine() -> None:
    assert from_runs(recipes((1.0, 1.0, 1.0, 1.8)))["measured"] == {}


@pytest.mark.parametrize("factor", [0.88, 1.12])
def test_a_machine_is_believed_as_far_as_the_runs_are_sure_of_it(factor: float) -> None:
    """As readily where it is faster than its tables as where it is slower."""
    near, far = from_runs(recipes((1 + (factor - 1) / 3,) * 4)), from_runs(recipes((factor,) * 4))
    assert near["fit"]["sure"] < 0.5 < 0.9 < far["fit"]["sure"]
    assert far["fit"]["mean_error_after"] < 0.5 * far["fit"]["mean_error_before"]
    whole = from_runs(recipes((factor,) * 4), doubtful=True)["measured"]["gemm_bf16"]
    tables = Kernels(here()).reached("bf16")
    share = log(far["measured"]["gemm_bf16"] / tables) / log(whole / tables)
    assert share == pytest.approx(far["fit"]["sure"], abs=0.02)


@pytest.mark.parametrize("hardware", ["dgx-a100-80g", "dgx-h100", "dgx-b200", "gb200-nvl72"])
@pytest.mark.parametrize("sizes", [{"tp": 8}, {"tp": 2, "pp": 2}, {"tp": 1, "gpus": 64, "gbs": 64}])
@pytest.mark.parametrize("precision", ["bf16", "fp8cs", "fp8sc", "fp8mx", "nvfp4"])
def test_a_file_that_says_what_the_tables_have_changes_no_time(
    hardware: str, sizes: dict[str, int], precision: str
) -> None:
    run = run_of(ROW | {"id": "x", "hardware": hardware, "precision": precision} | sizes, Machines())
    fit = Fit([Observed(run, 1.0)])
    for name in fit.start:
        assert fit.residuals({name: 1e-9}) == pytest.approx(fit.tables, abs=1e-6), name


def test_coefficients_are_those_of_the_rows_covariance() -> None:
    """Two rows that share a coefficient are normal together: what they say is written out by their covariance."""
    rows = [{0: 1.0, 1: 0.5}, {0: 2.0}]
    values, variances, prior = [0.3, -0.1], [0.04, 0.09], [0.2, 0.5]
    covariance = [
        [
            sum(row.get(k, 0.0) * other.get(k, 0.0) * prior[k] ** 2 for k in (0, 1)) + variances[i] * (i == j)
            for j, other in enumerate(rows)
        ]
        for i, row in enumerate(rows)
    ]
    (a, b), (_, d) = covariance
    determinant = a * d - b * b
    weights = [(d * values[0] - b * values[1]) / determinant, (a * values[1] - b * values[0]) / determinant]
    found, likely = expected(rows, values, variances, prior)
    for k, deviation in enumerate(prior):
        assert found[k] == pytest.approx(
            deviation**2 * sum(row.get(k, 0.0) * w for row, w in zip(rows, weights, strict=True))
        )
    assert likely == pytest.approx(-(sum(w * v for w, v in zip(weights, values, strict=True)) + log(determinant)) / 2)


def test_calibration_on_four_runs_of_a_site_does_not_make_its_others_worse() -> None:
    """A few seeded draws; scripts/bench/calibration.py counts as many as are wanted."""
    path = Path(__file__).parents[2] / "scripts" / "bench" / "calibration.py"
    found = runpy.run_path(str(path), run_name="calibration")
    drawn = list(found["draws"](6, every=found["sites"]("internevo") | found["sites"]("bloom"), seed=1))
    assert not [d for d in drawn if d.worse]
    assert fmean(d.after for d in drawn) < fmean(d.before for d in drawn)


def test_the_fabric_is_that_of_runs_on_several_nodes_whichever_row_is_first() -> None:
    """One node's own preset says nothing of the site's fabric."""
    path = Path(__file__).parents[2] / "validation" / "internevo.jsonl"
    names = {f"internevo-7b-{n}" for n in ("tp1-z8-8", "tp1-z-1-128", "tp1-z-1-1024", "tp2-z4-1024")}
    rows = [row for row in rows_of(path) if row["id"] in names]
    rows.sort(key=lambda row: row["gpus"])
    assert rows[0]["gpus"] == 8
    one, other = (from_runs(some, doubtful=True)["measured"] for some in (rows, rows[::-1]))
    assert one == pytest.approx(other)
    assert one["fabric_bus_bytes_per_s"] < 7e9


def test_rows_without_a_time_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no row with a measured time"):
        from_runs([ROW | {"id": "a", "tp": 1}])


def test_the_micro_benchmarks_run_and_can_be_read() -> None:
    """Small, on the CPU, over gloo: the same steps as on GPUs."""
    need(find_spec("torch"), "torch")
    from parlaunch_launch.microbench import measure

    said: list[str] = []
    results = measure(progress=said.append, device="cpu")
    assert said == ["products", "attention", "copies", "launches", "collectives"]
    assert {row["operation"] for row in results["nvlink"]} == {"all_gather"}
    assert all(
        row["seconds"] > 0 for name in ("gemm", "attention", "stream", "launch", "nvlink") for row in results[name]
    )
    assert from_microbenchmarks(results | {"gpu": H100})["measured"]["gemm_bf16"] > 0


def test_attention_that_was_measured_gives_its_rates_back() -> None:
    slowed = Kernels(here(flash=0.6, flash_backward=0.7))
    shape: dict[str, Any] = {"sequence": 8192, "heads": 32, "head_dim": 128, "value_dim": 128}
    flops = 8192.0**2 * 32 * 256
    rows = [
        shape
        | {"backward": back, "seconds": slowed.attention(flops=flops * (2.5 if back else 1.0), backward=back, **shape)}
        for back in (False, True)
    ]
    measured = from_microbenchmarks({"gpu": H100, "attention": rows})["measured"]
    assert measured["flash"] == pytest.approx(0.6, rel=0.01)
    assert measured["flash_backward"] == pytest.approx(0.7, rel=0.01)


def test_measuring_without_a_gpu_is_refused_with_a_way_out() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from parlaunch_launch.microbench import measure

    with pytest.raises(ParlaunchError, match="no GPU to measure") as refused:
        measure()
    assert "parlaunch calibrate FILE" in refused.value.hint


def test_a_gpu_without_a_data_sheet_is_calibrated_against_the_one_its_plans_are_made_with() -> None:
    """Whoever measured it has the sheet that NVML's answers made; the machine file then fits the plan's GPU."""
    custom = Gpu(index=0, name="NVIDIA A100-SXM-64GB", compute_capability=(8, 0), memory_bytes=64 << 30, cores=7936)
    sheet = sheet_of(custom)
    assert sheet is not None
    file = from_microbenchmarks({"gpu": custom.name, "stream": [{"bytes": 2**31, "seconds": 2**31 / 1e12}]}, sheet)
    assert file["gpu"] == custom.name
    assert file["measured"]["hbm"] == pytest.approx(1e12 / sheet.hbm_bytes_per_s, rel=1e-3)
    cluster = Cluster(source="test", nodes=(Node(hostname="n", gpus=(custom,)),))
    assert rates_of(cluster, machine_file=file).measured == file["measured"]


@pytest.mark.parametrize(
    ("factors", "words"), [((1.0,) * 4, "->"), ((1.2, 0.85, 1.15, 0.8), "the tables' values stay")]
)
def test_the_screen_says_what_left_out_runs_say(factors: tuple[float, ...], words: str) -> None:
    said = machine_to_text(from_runs(recipes(factors, here(gemm_bf16=0.6))))
    assert "each recipe left out in turn" in said
    assert words in said

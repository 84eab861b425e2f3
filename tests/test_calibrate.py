"""Calibration: a machine made slower on purpose is found again, and few rows move little."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from parlaunch.calibrate import from_microbenchmarks, from_runs
from parlaunch.datasheet import preset
from parlaunch.errors import ParlaunchError, ProbeError, UsageError
from parlaunch.measured import Machines, run_of
from parlaunch.rates import Rates, rates_of
from parlaunch.timing import estimate_time
from parlaunch.timing.collectives import Group, Links
from parlaunch.timing.kernels import Kernels
from parlaunch.validate import validate
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


def test_more_than_the_data_sheet_is_remarked_on() -> None:
    found = from_microbenchmarks({"gpu": H100, "stream": [{"bytes": 2**31, "seconds": 1e-5}]})
    assert "above the data sheet" in found["fit"]["notes"][0]


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
    ],
)
def test_a_file_of_something_else_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(ProbeError):
        rates_of(preset("dgx-h100"), machine_file=file)


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
    assert file["fit"]["mean_error_after"] < 0.2 * file["fit"]["mean_error_before"]
    unseen = validate(rows[1::2], machine=file)["summary"]["time"]
    assert unseen["mean"] < 0.03


def test_one_run_moves_the_machine_a_little_and_many_runs_more() -> None:
    slowed = here(gemm_bf16=0.5)
    rows = measured_rows(slowed, LAYOUTS)
    one, many = from_runs(rows[:1])["measured"], from_runs(rows)["measured"]
    assert abs(many["gemm_bf16"] - 0.5) <= abs(one["gemm_bf16"] - 0.5)


def test_a_machine_as_the_data_sheet_says_is_left_alone() -> None:
    assert from_runs(measured_rows(here(), LAYOUTS[:4]))["measured"] == {}


def test_runs_of_two_kinds_of_gpu_are_refused() -> None:
    rows = [
        ROW | {"id": "a", "tp": 1, "iteration_time_s": 1.0},
        ROW | {"id": "b", "tp": 1, "iteration_time_s": 1.0, "hardware": "dgx-b200"},
    ]
    with pytest.raises(UsageError, match="2 kinds of GPU"):
        from_runs(rows)


def test_rows_without_a_time_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no row with a measured time"):
        from_runs([ROW | {"id": "a", "tp": 1}])


def test_the_micro_benchmarks_run_and_can_be_read() -> None:
    """Small, on the CPU, over gloo: the same steps as on GPUs."""
    need(find_spec("torch"), "torch")
    from parlaunch_launch.microbench import measure

    said: list[str] = []
    results = measure(progress=said.append, device="cpu")
    assert said == ["products", "copies", "collectives"]
    assert {row["operation"] for row in results["nvlink"]} == {"all_gather"}
    assert all(row["seconds"] > 0 for name in ("gemm", "stream", "launch", "nvlink") for row in results[name])
    assert from_microbenchmarks(results | {"gpu": H100})["measured"]["gemm_bf16"] > 0


def test_measuring_without_a_gpu_is_refused_with_a_way_out() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from parlaunch_launch.microbench import measure

    with pytest.raises(ParlaunchError, match="no GPU to measure") as refused:
        measure()
    assert "parlaunch calibrate FILE" in refused.value.hint

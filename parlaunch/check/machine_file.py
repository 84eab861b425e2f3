"""The machine file: what a machine reaches, as `rates_of` reads it.

It is `{"schema": "parlaunch.machine/1", "gpu", "measured": {name: value}, "models", "splits", "fit"}`. Names are those of
`parlaunch.estimate.timing.silicon.Silicon`, `gemm_bf16` and its like (share of the peak that a large product reaches), and
`nvlink_bus_bytes_per_s`, `fabric_bus_bytes_per_s`. `models` and `splits` are what runs of single models, and runs with single splits,
took over that (`hardware.paces`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.hardware.paces import Pace, SplitPace, paces_to_json, splits_from_json, splits_to_json

SCHEMA = "parlaunch.machine/1"
SHARES = {
    "bf16": "gemm_bf16", "fp16": "gemm_bf16", "fp8": "gemm_fp8", "block": "gemm_fp8", "mx": "gemm_fp8", "fp4": "gemm_fp4",
}  # fmt: skip
"""Format of a matrix product, and the share it calibrates; the first with a share is the one that the share is of."""
PEAK_SHARES = ("hbm", *dict.fromkeys(SHARES.values()))
"""Values that are a share of the data sheet's: none is above 1."""


def machine_file(
    gpu: str,
    measured: Mapping[str, float],
    fit: Mapping[str, Any],
    models: Sequence[Pace] = (),
    splits: Sequence[SplitPace] = (),
) -> dict[str, Any]:
    """The machine file; values are rounded to what a measurement can say."""
    return {
        "schema": SCHEMA,
        "gpu": gpu,
        "measured": {name: _rounded(value) for name, value in sorted(measured.items())},
        "models": paces_to_json([replace(p, slower=_rounded(p.slower)) for p in models]),
        "splits": splits_to_json([replace(p, slower=_rounded(p.slower)) for p in splits]),
        "fit": dict(fit),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def machine_to_text(file: Mapping[str, Any]) -> str:
    """A machine file for the screen: what it changes, and how far off the runs are before and after."""
    fit, lines = file["fit"], [f"{file['gpu']}, {file['fit']['method']}"]
    lines += [f"  {name:<26} {value:.4g}" for name, value in file["measured"].items()]
    lines += ["  {model}, {task}, {format}: {slower:.4g} times as long".format(**pace) for pace in file["models"]]
    lines += [f"  {p}, whatever is trained: {p.slower:.4g} times as long" for p in splits_from_json(file["splits"])]
    if "mean_error_before" in fit:
        lines.append(f"  runs: {fit['rows']}, recipes: {fit['recipes']}; mean error of the time")
        before, after = fit["mean_error_before"], fit["mean_error_after"]
        lines.append(f"    of these runs              {before:.1%} -> {after:.1%}")
        if left := fit["left_out"]:
            lines.append(f"    each {left['by']} left out in turn {left['before']:.1%} -> {left['after']:.1%}")
        if fit["changed"]:
            lines.append(
                f"  {fit['sure']:.0%} sure that the machine is another than its tables have it: that share of the changes"
            )
    return "\n".join([*lines, *(f"  {note}" for note in fit["notes"])])

"""`parlaunch history`: the runs that verify has measured, listed, filtered, and forgotten."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from parlaunch.cli.inputs import choice, note
from parlaunch.errors import ParlaunchError, UsageError

SIZES = ("tp", "pp", "vp", "cp", "ep")
OWN_FOLDER = "set XDG_STATE_HOME to a folder that is yours"
COLUMNS = ("when", "recipe", "gpus", "layout", "status", "iteration", "predicted", "memory")


def listing(*, recipe: str | None, gpu: str | None, status: str | None, format: str, path: bool) -> None:
    """Print the runs that fit, the newest last."""
    from parlaunch_launch import history

    choice("--format", format, ("text", "json"))
    file = history.path(os.environ)
    if path:
        print(file)
        return
    try:
        found = history.rows_of(file)
    except OSError as error:
        raise ParlaunchError(f"{file}: {error.strerror}", hint=OWN_FOLDER) from error
    rows = [row for row in found if _fits(row, recipe=recipe, gpu=gpu, status=status)]
    if format == "json":
        print(json.dumps({"schema": "parlaunch.history/1", "path": str(file), "rows": rows}, indent=2))
    elif not rows:
        print(f"no run {'fits' if any((recipe, gpu, status)) else 'is'} in {file}; `parlaunch verify` adds one")
    else:
        print(_text(rows), end="")


def forget(ids: tuple[str, ...], *, recipe: str | None, gpu: str | None, status: str | None, every: bool) -> None:
    """Take runs out: those named by their id (or its beginning), those that fit, or all."""
    from parlaunch_launch import history

    if not (ids or recipe or gpu or status or every):
        raise UsageError(
            "history forget: which runs?",
            hint="name ids (`parlaunch history --format json`), --recipe, --status or --all",
        )
    file = history.path(os.environ)

    def unwanted(row: Mapping[str, Any]) -> bool:
        named = not ids or any(str(row.get("id")).startswith(i) for i in ids)
        return named and _fits(row, recipe=recipe, gpu=gpu, status=status)

    try:
        gone = history.forget(file, unwanted)
    except OSError as error:
        raise ParlaunchError(f"{file}: {error.strerror}", hint=OWN_FOLDER) from error
    note(f"forgot {gone} run{'' if gone == 1 else 's'} in {file}")


def _fits(row: Mapping[str, Any], *, recipe: str | None, gpu: str | None, status: str | None) -> bool:
    pairs = ((recipe, "recipe"), (gpu, "gpu"))
    return all(want is None or want.lower() in str(row.get(name)).lower() for want, name in pairs) and (
        status is None or row.get("status") == status
    )


def _amount(value: object) -> float | None:
    """A number of a row, whoever wrote it; None for what is none, or no time and no memory."""
    return float(value) if isinstance(value, int | float) and value is not True and abs(value) < 1e15 else None


def _text(rows: list[dict[str, Any]]) -> str:
    from parlaunch.units import seconds

    table = [COLUMNS]
    for row in rows:
        predicted = row.get("predicted")
        took, peak = _amount(row.get("iteration_time_s")), _amount(row.get("peak_memory_gb"))
        said = _amount(predicted.get("iteration_time_s")) if isinstance(predicted, dict) else None
        layout = " ".join(f"{n}={row.get(n)}" for n in SIZES if n == "tp" or row.get(n) not in (None, 1))
        table.append((
            str(row.get("when"))[:16], str(row.get("recipe")), f"{row.get('gpus')} x {row.get('gpu')}", layout,
            str(row.get("status")), "-" if took is None else seconds(took), "-" if said is None else seconds(said),
            "-" if peak is None else f"{peak:.1f} GiB",
        ))  # fmt: skip
    widths = [max(len(r[i]) for r in table) for i in range(len(COLUMNS))]
    return "".join("  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() + "\n" for r in table)

"""`parlaunch validate` and `parlaunch calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parlaunch.cli.inputs import choice, note, write
from parlaunch.errors import UsageError


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of measured runs: {"rows": [...]}, a bare list, or JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint='give a JSON file {"rows": [...]}') from error
    try:
        data = json.loads(text)
    except ValueError:
        try:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise UsageError(f"{path} is not JSON: {error}", hint='give a JSON file {"rows": [...]}') from error
    rows = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(
            f"{path} has no list of rows", hint='give {"rows": [{"id": …, "model_id": …, "hardware": …, "tp": …}]}'
        )
    return rows


def validate(file: Path, *, format: str, plot: Path | None, machine_file: Path | None) -> None:
    """`parlaunch validate`: print predictions beside measurements; `plot` gets them as SVG."""
    from parlaunch.validate import validate as run
    from parlaunch.validate import validation_to_markdown, validation_to_svg, validation_to_text

    choice("--format", format, ("text", "json", "markdown"))
    machine = machine_of(machine_file)
    result = run(rows_of(file), machine=machine)
    if plot is not None:
        write(plot, validation_to_svg(result), "--plot")
    if format == "json":
        print(json.dumps(result, indent=2))
    else:
        print(validation_to_markdown(result) if format == "markdown" else validation_to_text(result))


def machine_of(path: Path | None) -> dict[str, Any] | None:
    """The measured rates of a machine file."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--machine-file {path}: {error}", hint="`parlaunch calibrate` writes one") from error
    if not isinstance(found, dict):
        raise UsageError(f"--machine-file {path} is no machine file", hint="`parlaunch calibrate` writes one")
    return found


def calibrate(runs: Path | None, *, out: Path) -> None:
    """`parlaunch calibrate`: write a machine file from runs, or from micro-benchmarks on this machine."""
    if runs is not None:
        from parlaunch.calibrate import from_runs

        machine = from_runs(rows_of(runs))
    else:
        from parlaunch.calibrate import from_microbenchmarks
        from parlaunch_launch.microbench import measure

        machine = from_microbenchmarks(measure(progress=note))
    write(out, json.dumps(machine, indent=2) + "\n", "--out")

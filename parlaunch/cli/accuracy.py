"""`parlaunch validate` and `parlaunch calibrate`."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from parlaunch.cli.files import read_json
from parlaunch.cli.inputs import choice, note, write
from parlaunch.cli.unpacked import pieces
from parlaunch.errors import ProbeError, UsageError
from parlaunch.hardware.rates import calibrated_by

FIELDS_OF_A_TABLE = (
    'give {"rows": [...]}, JSON lines, or CSV whose first line names the fields, with a run on each other: '
    "model,gpu,gpus,tp,pp,mbs,gbs,seq,iteration_time_s"
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of measured runs: {"rows": [...]}, a bare list, JSON lines, or a table of commas, semicolons or tabs."""
    try:
        text = b"".join(pieces(path)).decode(errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint='give a JSON file {"rows": [...]}, or CSV') from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = _lines(path, text) if text.lstrip()[:1] in ("{", "[") and not _logged(text) else _cells(path, text)
    if isinstance(data, dict) and str(data.get("schema")).startswith("parlaunch.plan/"):
        raise UsageError(
            f"{path} is a plan, and nothing in it was measured",
            hint="parlaunch verify --plan FILE runs it; parlaunch history has what ran",
        )
    if isinstance(data, dict) and "rows" not in data and {"id", "gpus", "hardware"} & data.keys():
        data = [data]  # a history of one line
    rows = data.get("rows") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(
            f"{path} has no list of rows", hint='give {"rows": [{"id": …, "model_id": …, "hardware": …, "tp": …}]}'
        )
    if not rows:
        raise UsageError(f"{path} has no rows", hint="each is a run: what was trained, where, and what was measured")
    return rows


def _logged(text: str) -> bool:
    """Whether a text is what a training printed: Megatron, Megatron Bridge or NeMo."""
    from parlaunch_launch.training_log import iterates

    return any(map(iterates, text.splitlines()))


def _cells(path: Path, text: str) -> list[dict[str, Any]]:
    """The rows of a table of cells, whose first line names the fields. A row without a name has its line's."""
    if _logged(text):
        raise UsageError(
            f"{path} is a training's log, not a table of runs",
            hint=f"parlaunch verify --log {path} --recipe NAME --hardware MACHINE reads it, and adds it to the history",
        )
    head = next((line for line in text.splitlines() if line.strip()), "")
    mark = max("\t;,|", key=head.count)
    if not head:
        return []
    if mark == "|" or not head.count(mark):
        raise UsageError(
            f"{path} is neither JSON nor a table of cells: its first line is {head[:60]!r}",
            hint=FIELDS_OF_A_TABLE,
        )
    from parlaunch.check.words import is_read

    read = csv.DictReader(io.StringIO(text.lstrip()), delimiter=mark, skipinitialspace=True)
    if not any(map(is_read, filter(None, read.fieldnames or ()))):
        raise UsageError(
            f"{path}: no field of its first line says anything of a run: {head[:60]!r}", hint=FIELDS_OF_A_TABLE
        )
    rows: list[dict[str, Any]] = []
    try:
        for cells in read:
            if None in cells:
                raise UsageError(
                    f"{path}: line {read.line_num} has more cells than the first line names fields",
                    hint='a cell with a comma in it stands in quotes: "8,192"',
                )
            rows.append({"id": f"line {read.line_num}"} | {k.strip(): v for k, v in cells.items() if (v or "").strip()})
    except csv.Error as error:
        raise UsageError(
            f"{path} is no table of cells after line {read.line_num}: {error}",
            hint="a quote that opens a cell has to close it",
        ) from error
    return rows


def _lines(path: Path, text: str) -> list[Any]:
    """JSON lines. One that was cut off is left out, and said; a file without any is none."""
    rows, wrong = [], []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            wrong.append((number, error))
    if not rows and wrong:
        raise UsageError(f"{path} is not JSON: {wrong[0][1]}", hint='give a JSON file {"rows": [...]}') from wrong[0][1]
    for number, _ in wrong:
        note(f"note: {path}: line {number} is no JSON and is left out")
    return rows


def validate(file: Path, *, format: str, plot: Path | None, machine_file: Path | None) -> None:
    """`parlaunch validate`: print predictions beside measurements; `plot` gets them as SVG."""
    from parlaunch.check.report import validation_to_markdown, validation_to_svg, validation_to_text
    from parlaunch.check.validate import validate as run

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
    found = read_json(path, "--machine-file", hint="`parlaunch calibrate` writes one")
    if not isinstance(found, dict):
        raise UsageError(f"--machine-file {path} is no machine file", hint="`parlaunch calibrate` writes one")
    try:
        calibrated_by(found, str(found.get("gpu")))
    except ProbeError as error:
        raise UsageError(f"--machine-file {path}: {error.problem}", hint=error.hint) from error
    return found | {"read_from": str(path)}


def _product_here() -> str | None:
    """The product of this machine's GPUs; None where there is none, as on a login node."""
    from parlaunch.hardware.derived import sheet_of
    from parlaunch_probes import probe

    found = next((g for n in probe(environ=dict(os.environ)).nodes for g in n.gpus), None)
    sheet = None if found is None else sheet_of(found)
    return None if sheet is None else sheet.name


def calibrate(
    runs: Path | None, *, out: Path, gpu: str | None = None, plan: Path | None = None, format: str = "text"
) -> None:
    """`parlaunch calibrate`: write a machine file from runs, or from micro-benchmarks on this machine, and print it.

    `plan`: a saved plan whose own shapes are timed."""
    from parlaunch.check.machine_file import machine_to_text

    choice("--format", format, ("text", "json"))
    if runs is not None and plan is not None:
        raise UsageError("--plan times what a plan asks for, and measured runs need no timing", hint="give one of them")
    if runs is not None:
        from parlaunch.check.calibrate import from_runs
        from parlaunch.hardware.datasheet import product

        sheet = None if gpu is None else product(gpu)
        machine = from_runs(rows_of(runs), gpu=gpu if sheet is None else sheet.name, here=_product_here())
    elif gpu is not None:
        raise UsageError(
            "--gpu chooses among measured runs, and there are none", hint="parlaunch calibrate FILE --gpu GPU"
        )
    else:
        from parlaunch.check.calibrate import from_microbenchmarks
        from parlaunch.hardware.derived import sheet_of
        from parlaunch_launch.microbench import measure
        from parlaunch_probes import probe

        shapes, fabric_kind = None, "none"
        if plan is not None:
            from parlaunch.cli.saved import saved
            from parlaunch.estimate.timing.shapes import shapes_of

            asked = saved(plan)
            shapes = shapes_of(asked.recipe, asked.chosen.layout, asked.rates)
            fabric_kind = asked.rates.fabric_kind
        results = measure(progress=note, shapes=shapes)
        # The sheet that plans on this machine are made with: what NVML says counts, where the product has none.
        found = next((g for n in probe(environ=dict(os.environ)).nodes for g in n.gpus), None)
        sheet_here = None if found is None else sheet_of(found)
        machine = from_microbenchmarks(results, sheet_here, fabric_kind=fabric_kind)
    text = json.dumps(machine, indent=2)
    write(out, text + "\n", "--out")
    print(text if format == "json" else machine_to_text(machine))

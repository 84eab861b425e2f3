"""The commands beside launch and plan: signatures here, the work behind late imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parlaunch.cli.app import app, names_of, words

Hardware = Annotated[
    str,
    typer.Option(
        "--hardware", help="auto, a preset and a count (dgx-h100:4), or a file", autocompletion=names_of("preset")
    ),
]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help="the GPU product, where a hardware file does not name it: H100-SXM",
        autocompletion=names_of("gpu"),
    ),
]
Format = Annotated[str, typer.Option("--format", help="text or json", autocompletion=words("text", "json"))]


@app.command()
def probe(
    hardware: Hardware = "auto",
    gpu: GpuName = None,
    format: Format = "text",
    save: Annotated[
        Path | None, typer.Option("--save", help="capture what was read, for a bug report or --hardware FILE")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="without host names, UUIDs, serials and GUIDs")] = False,
) -> None:
    """What is here: GPUs, NVLink domains, NICs, host."""
    from parlaunch.cli.machine import probe as run

    run(hardware, gpu=gpu, format=format, save=save, redact=redact)


@app.command()
def doctor(hardware: Hardware = "auto", gpu: GpuName = None, format: Format = "text") -> None:
    """Preflight: what is wrong here, by severity. Exit code 1 on a FAIL."""
    from parlaunch.cli.machine import doctor as run

    run(hardware, gpu=gpu, format=format)


recipes_app = typer.Typer(
    help="List, search and show recipes.", no_args_is_help=False, invoke_without_command=True, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(
    ctx: typer.Context,
    search: Annotated[str | None, typer.Option("--search", "-s", help="part of a name or model")] = None,
    family: Annotated[str | None, typer.Option("--family", help="part of a model family's name: llama3, qwen3")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="pretrain, sft or peft", autocompletion=words("pretrain", "sft", "peft")),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="library or benchmark", autocompletion=words("library", "benchmark"))
    ] = None,
    max_params: Annotated[float | None, typer.Option("--max-params", help="in billions")] = None,
    min_params: Annotated[float | None, typer.Option("--min-params", help="in billions")] = None,
    format: Format = "text",
) -> None:
    """List recipes; `parlaunch recipes show NAME` shows one."""
    if ctx.invoked_subcommand is None:
        from parlaunch.cli.recipes import listing

        listing(
            search=search,
            family=family,
            task=task,
            kind=kind,
            max_params=max_params,
            min_params=min_params,
            format=format,
        )


@recipes_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="a recipe", autocompletion=names_of("recipe"))],
    format: Format = "text",
) -> None:
    """One recipe: model, batch, its own layout, and the fewest GPUs that hold it."""
    from parlaunch.cli.recipes import show as run

    run(name, format=format)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help='a table of measured runs: {"rows": [...]}')],
    format: Format = "text",
    plot: Annotated[Path | None, typer.Option("--plot", help="predicted against measured, as SVG")] = None,
    machine_file: Annotated[
        Path | None, typer.Option("--machine-file", help="measured rates, from `parlaunch calibrate`")
    ] = None,
) -> None:
    """Predicted beside measured for a table of runs."""
    from parlaunch.cli.accuracy import validate as run

    run(file, format=format, plot=plot, machine_file=machine_file)


@app.command()
def calibrate(
    runs: Annotated[
        Path | None, typer.Argument(help="measured runs to learn from; without it, micro-benchmarks run here")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the machine file to write")] = Path("machine.json"),
) -> None:
    """Measure this machine, or learn from measured runs; write a file for --machine-file."""
    from parlaunch.cli.accuracy import calibrate as run

    run(runs, out=out)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="a saved plan, or `recipe` for the recipe's own default layout")],
    after: Annotated[Path, typer.Argument(help="a saved plan")],
    format: Format = "text",
) -> None:
    """What changed between two plans: layout, memory, time, environment."""
    from parlaunch.cli.compare import diff as run

    run(before, after, format=format)

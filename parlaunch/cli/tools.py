"""The commands beside launch and plan: signatures here, the work behind late imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parlaunch.cli.app import CONFIGURED, app, name_of
from parlaunch.cli.options import names_of, words

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
def doctor(
    hardware: Hardware = "auto",
    gpu: GpuName = None,
    format: Format = "text",
    nnodes: Annotated[
        int | None, typer.Option("--nnodes", help="nodes of the job to judge for; in a Slurm job its own", min=1)
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="this node only, where srun or mpirun started one on each")
    ] = False,
    agree_timeout: Annotated[
        float, typer.Option("--agree-timeout", help="seconds to wait for the other nodes; who does not come is a FAIL")
    ] = 120.0,  # longer than a driver takes that hangs
) -> None:
    """Preflight: what is wrong here, by severity; under srun with all nodes in one table. Exit code 1 on a FAIL."""
    from parlaunch.cli.doctor import doctor as run

    run(hardware, gpu=gpu, format=format, nnodes=nnodes, alone=alone, agree_timeout=agree_timeout)


recipes_app = typer.Typer(
    help="List, search and show recipes.", no_args_is_help=False, invoke_without_command=True, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(
    ctx: typer.Context,
    search: Annotated[
        str | None,
        typer.Option(
            "--search", "-s", help="words of a name or model: llama3 70b; `parlaunch recipes llama3 70b` is the same"
        ),
    ] = None,
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
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="learn from the runs on this GPU alone, where they are of several")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="a saved plan: time its own products, attention and collectives on these GPUs"),
    ] = None,
    format: Format = "text",
) -> None:
    """Measure this machine, or learn from measured runs; write a file for --machine-file."""
    from parlaunch.cli.accuracy import calibrate as run

    run(runs, out=out, gpu=gpu, plan=plan, format=format)


@app.command()
def machines(
    search: Annotated[list[str] | None, typer.Argument(help="only those that have all of these words")] = None,
    format: Annotated[
        str, typer.Option("--format", help="text, json or markdown", autocompletion=words("text", "json", "markdown"))
    ] = "text",
) -> None:
    """What --hardware and --gpu know by name: machines and GPU products, with memory, peaks and fabric."""
    from parlaunch.cli.machine import listing

    listing(" ".join(search or ()), format=format)


@app.command()
def config(
    every: Annotated[
        bool, typer.Option("--all", help="defaults too", envvar="PARLAUNCH_CONFIG_ALL", show_envvar=False)
    ] = False,
    format: Format = "text",
) -> None:
    """What is configured: every value with the variable or file it came from."""
    from parlaunch.cli.config import show as run
    from parlaunch.cli.inputs import choice

    choice("--format", format, ("text", "json"))
    run(every=every, format=format)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="a saved plan, or `recipe` for the recipe's own default layout")],
    after: Annotated[Path, typer.Argument(help="a saved plan")],
    format: Format = "text",
) -> None:
    """What changed between two plans: layout, memory, time, environment."""
    from parlaunch.cli.saved import diff as run

    run(before, after, format=format)


@app.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(help="plan, probe, …; without it: what there is", autocompletion=names_of("schema"))
    ] = None,
) -> None:
    """The JSON schema of an output or of a table: types, units, what each field means."""
    from parlaunch.cli.schema import run

    run(name)


history_app = typer.Typer(
    help="The runs that verify has measured here.", no_args_is_help=False, invoke_without_command=True, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(history_app, name="history")

OfRecipe = Annotated[str | None, typer.Option("--recipe", help="part of a recipe's name")]
OfGpu = Annotated[str | None, typer.Option("--gpu", help="part of a GPU's name")]
OfStatus = Annotated[str | None, typer.Option("--status", help="ok, oom, nan, hang, …")]


@history_app.callback()
def history(
    ctx: typer.Context,
    recipe: OfRecipe = None,
    gpu: OfGpu = None,
    status: OfStatus = None,
    format: Format = "text",
    path: Annotated[bool, typer.Option("--path", help="only where the file is")] = False,
) -> None:
    """List measured runs; `parlaunch history forget ID` takes one out."""
    if ctx.invoked_subcommand is None:
        from parlaunch.cli.history import listing

        listing(recipe=recipe, gpu=gpu, status=status, format=format, path=path)


@history_app.command("forget")
def forget(
    ids: Annotated[
        list[str] | None, typer.Argument(help="ids of runs, or their beginnings", show_default=False)
    ] = None,
    recipe: OfRecipe = None,
    gpu: OfGpu = None,
    status: OfStatus = None,
    every: Annotated[
        bool, typer.Option("--all", help="every run", envvar="PARLAUNCH_HISTORY_FORGET_ALL", show_envvar=False)
    ] = False,
) -> None:
    """Take runs out of the history: they are no evidence any more."""
    from parlaunch.cli.history import forget as run

    run(tuple(ids or ()), recipe=recipe, gpu=gpu, status=status, every=every)


# Their options are variables too, with the command's name in them: PARLAUNCH_RECIPES_TASK is `parlaunch recipes --task`.
_registered: list[Any] = [*app.registered_commands, *app.registered_groups]
for _command in _registered:
    _word = name_of(_command)
    if _word not in CONFIGURED:
        _settings = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": f"PARLAUNCH_{_word.upper()}"}
        _command.context_settings = _settings

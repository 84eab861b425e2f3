"""The commands that plan: launch, plan, verify and compare; and the command line that they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from parlaunch.cli.options import picked, takes
from parlaunch.cli.request import PLANNED, Compared, Request, Trial
from parlaunch.version import __version__

_LOOKS: dict[str, Any] = dict(
    name="parlaunch",
    help="Probe the machine, plan the parallel layout, launch the job.\n\n"
    "`parlaunch --recipe NAME` launches; add --dry-run to see what it would do.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app = typer.Typer(**_LOOKS)

CONFIGURED = ("launch", "plan", "verify", "compare")
"""Commands whose options may come from a file, and are variables without the command's name in them."""


def alone(command: str) -> typer.Typer:
    """The command line with this command only, which is all that one start needs: making them all takes long."""
    made = typer.Typer(**_LOOKS)
    made.registered_callback = app.registered_callback
    made.registered_commands = [c for c in app.registered_commands if name_of(c) == command]
    made.registered_groups = [g for g in app.registered_groups if g.name == command]
    return made if made.registered_commands or made.registered_groups else app


def name_of(command: Any) -> str:
    """A command's own name, or that of its function."""
    return str(command.name or command.callback.__name__)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parlaunch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Probe the machine, plan the parallel layout, launch the job."""


@app.command("launch", help="Plan, then launch. The default: no command word needed.")
@app.command("plan", help="Plan only: never launches, needs no GPU.")
@takes(Request)
def _plan_or_launch(ctx: typer.Context, **given: Any) -> None:
    from parlaunch.cli.launch import run

    run(_request(ctx, given))


@app.command("verify", help="Run the plan for a few iterations and hold it against the prediction.")
@takes(Request, Trial, without=("top",))
def _verify(ctx: typer.Context, **given: Any) -> None:
    from parlaunch.cli.verify import run

    trial = picked(Trial, given)
    run(_request(ctx, given | {"top": trial.measure - 1 + trial.retries}), trial)


@app.command("compare", help="One recipe on several machines, side by side.")
@takes(Request, Compared, without=("hardware", "price", "plan_file", "save_plan"))
def _compare(ctx: typer.Context, **given: Any) -> None:
    from parlaunch.cli.compare import run

    run(_request(ctx, given), picked(Compared, given))


GIVES_WAY: Mapping[str, tuple[str, ...]] = {
    "recipe": ("model_config",), "model_config": ("recipe",), "tokens": ("samples",), "samples": ("tokens",),
    "script": ("module",), "module": ("script",),
    "plan_file": PLANNED,
}  # fmt: skip
"""What is typed, and what of a variable or a file it takes the place of: the two would contradict each other."""


def _request(ctx: typer.Context, given: dict[str, Any]) -> Request:
    sources = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in given}
    configured = {name for name, source in sources.items() if source in ("ENVIRONMENT", "DEFAULT_MAP")}
    typed = {name for name, source in sources.items() if source == "COMMANDLINE"}
    if (ctx.info_name or "launch") == "launch" and not given.get("dry_run") and "hardware" in configured:
        given = given | {"hardware": "auto"}  # a launch stands on its machine; what is configured is for plans
    dropped = {other for name in typed for other in GIVES_WAY.get(name, ()) if other in configured}
    return picked(
        Request, {name: value for name, value in given.items() if name not in dropped},
        command=ctx.info_name or "launch", runner_args=tuple(ctx.obj or ()), configured=frozenset(configured - dropped),
    )  # fmt: skip

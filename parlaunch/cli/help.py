"""The help of a command: the options that most people want on one screen, all of them with `--help-all`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from parlaunch.cli.options import described
from parlaunch.cli.request import OFTEN, Compared, Request, Trial

ALL = "--help-all"
MORE = f"{ALL} has every option. Each is also a variable, and a key of parlaunch.toml."


def page(app: typer.Typer, args: Sequence[str]) -> None:
    """Print the help that the words ask for, and exit."""
    command: Any = typer.main.get_command(app)
    kinds = {d.field: d.kind for source in (Request, Trial, Compared) for d in described(source)}
    for below in command.commands.values():
        for one in (below, *getattr(below, "commands", {}).values()):
            for option in one.params:
                option.show_envvar = False  # a line each, of a page that says once that they are there
        if len(below.params) <= len(OFTEN) or ALL in args:
            continue
        for option in below.params:
            option.hidden = option.name not in OFTEN and option.param_type_name == "option"
            option.rich_help_panel = None  # one list with narrow columns; panels and ranges come with the rest
            option.metavar = _word(kinds[option.name]) if option.name in kinds else option.metavar
            option.show_default = False
        below.epilog = MORE
    command(["--help" if word == ALL else word for word in args], prog_name="parlaunch")


def _word(kind: Any) -> str | None:
    """What an option wants, in few letters; None for a switch."""
    return None if kind is bool else {int: "N", float: "N", Path: "FILE"}.get(kind, "TEXT")

"""The formats that a plan can be written in: one module each in this room, which has `render(plan, page)`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from parlaunch.frozen import dataclass

if TYPE_CHECKING:
    from parlaunch.planning.plan import Plan

MODULES = {"text": "screen", "json": "as_json", "shell": "shell", "sbatch": "sbatch", "report": "report"}
"""Format to module, which is loaded when the format is asked for."""

FORMATS = tuple(name for name in MODULES if name != "report")
"""What `--format` prints; the report is a page for a browser, which `--report FILE` writes."""

SCRIPTS = ("shell", "sbatch")
"""Formats that are run elsewhere: they hold nothing of the machine that they were printed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a format may use beside the plan."""

    columns: int = 100
    colour: bool = False  # whether text is painted
    quiet: bool = False  # the decision alone
    verbose: bool = False  # nothing left out
    command: tuple[str, ...] = ("parlaunch",)  # the command line that makes this plan on the machine itself
    options: tuple[str, ...] = ()  # of the batch system, the user's own
    container_image: str | None = None
    container_mounts: str | None = None


def render(name: str, plan: Plan, page: Page | None = None) -> str:
    """The plan as text in that format. KeyError for a name that is not in `MODULES`."""
    module = import_module(f"parlaunch.show.{MODULES[name]}")
    return str(module.render(plan, page or Page()))

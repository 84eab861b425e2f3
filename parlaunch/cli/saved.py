"""Saved plans, and `parlaunch diff`: what changed between two of them."""

from __future__ import annotations

import json
from pathlib import Path

from parlaunch.cli.files import read_json
from parlaunch.cli.inputs import choice
from parlaunch.errors import UsageError
from parlaunch.planning.plan import Plan, plan_from_json
from parlaunch.show.compare import difference, difference_to_text


def saved(path: Path, option: str = "--plan") -> Plan:
    """The plan in a file, held against itself. Raises `UsageError` naming it."""
    from parlaunch.environment.checked import problem

    plan = plan_from_json(read_json(path, option, hint="save a plan with --save-plan FILE"), where=str(path))
    if (wrong := problem(plan)) is not None:
        raise UsageError(
            f"{path} was changed since it was saved: {wrong}", hint="plan anew, and save it with --save-plan"
        )
    return plan


def diff(before: Path, after: Path, *, format: str) -> None:
    """Print what changed from one saved plan, or the recipe's own layout, to another plan."""
    choice("--format", format, ("text", "json"))
    if str(before) == "recipe":
        from parlaunch.show.compare import recipe_default

        new = saved(after, "diff")
        old = recipe_default(new)
    else:
        old, new = saved(before, "diff"), saved(after, "diff")
    rows = difference(old, new)
    if format == "json":
        print(json.dumps({"schema": "parlaunch.diff/1", "changes": rows}, indent=2))
    else:
        print(difference_to_text(rows))

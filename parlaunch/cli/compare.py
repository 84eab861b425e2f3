"""`parlaunch diff`: what changed between two plans."""

from __future__ import annotations

import json
from pathlib import Path

from parlaunch.cli.inputs import choice
from parlaunch.compare import difference, difference_to_text
from parlaunch.errors import UsageError
from parlaunch.plan import Plan, plan_from_json


def saved(path: Path) -> Plan:
    """The plan in a file. Raises `UsageError` naming it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="save a plan with --save-plan FILE") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="save a plan with --save-plan FILE") from error
    return plan_from_json(data, where=str(path))


def diff(before: Path, after: Path, *, format: str) -> None:
    """Print what changed from one saved plan, or the recipe's own layout, to another plan."""
    choice("--format", format, ("text", "json"))
    if str(before) == "recipe":
        from parlaunch.compare import recipe_default

        new = saved(after)
        old = recipe_default(new)
    else:
        old, new = saved(before), saved(after)
    rows = difference(old, new)
    if format == "json":
        print(json.dumps({"schema": "parlaunch.diff/1", "changes": rows}, indent=2))
    else:
        print(difference_to_text(rows))

"""A plan as the object `parlaunch.plan/1`: what `--save-plan` writes and `--plan` reads."""

from __future__ import annotations

import json

from parlaunch.planning.plan import Plan, plan_to_json
from parlaunch.show.formats import Page
from parlaunch.version import __version__


def render(plan: Plan, _page: Page | None = None) -> str:
    """The whole plan, indented."""
    return json.dumps(plan_to_json(plan, version=__version__), indent=2) + "\n"

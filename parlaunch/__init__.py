"""parlaunch: the layout, environment and command that fit a training job to the machine it stands on.

>>> from parlaunch import machine, plan, recipe
>>> print(plan(recipe("llama32_1b_pretrain_config"), machine("dgx-h100:1")).layout)
tp=1 pp=1 dp=8 mbs=4
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from parlaunch.version import __version__

if TYPE_CHECKING:
    from parlaunch.errors import NoLayoutError, ParlaunchError, ProbeError, UsageError
    from parlaunch.estimate.training import Goal
    from parlaunch.front import diff, from_json, machine, plan, recipe, to_json, to_text, why_not
    from parlaunch.hardware.cluster import Cluster
    from parlaunch.launching import Start
    from parlaunch.model.recipe import Recipe
    from parlaunch.planning.plan import Plan

__all__ = [
    "Cluster", "Goal", "NoLayoutError", "ParlaunchError", "Plan", "ProbeError", "Recipe", "Start", "UsageError", "__version__",
    "diff", "from_json", "machine", "plan", "recipe", "to_json", "to_text", "why_not",
]  # fmt: skip

_VALUES = {
    "Cluster": "hardware.cluster", "Goal": "estimate.training", "Plan": "planning.plan", "Recipe": "model.recipe", "Start": "launching",
    "NoLayoutError": "errors", "ParlaunchError": "errors", "ProbeError": "errors", "UsageError": "errors",
}  # fmt: skip
"""Where the values and errors live; the functions are in `parlaunch.front`."""


def __getattr__(name: str) -> Any:
    # Late, so that `parlaunch --version` and a rank that only reads its CPU list load no planner.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"parlaunch.{_VALUES.get(name, 'front')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The switches of a plan in words: what each saves or costs, and what all of it is worth beside the recipe as written."""

from __future__ import annotations

from parlaunch.estimate.timing import estimate_time
from parlaunch.planning.as_written import as_started
from parlaunch.planning.plan import Plan, Switched
from parlaunch.planning.switching import BINDING
from parlaunch.units import gib, seconds


def line(s: Switched) -> str:
    """ "ep_overlap=on (recipe: off): expert all-to-all under …: 11% of the iteration, 2.41 s; takes 4.0 GiB"."""
    was = "" if s.recipe_value is None else f" (recipe: {s.recipe_value})"
    return f"{s.name}={s.value}{was}: {s.reason}{_bytes(s.bytes)}"


def _bytes(freed: int | None) -> str:
    if freed is None or abs(freed) < 2**26:  # what would print as 0.1 GiB or less
        return ""
    return f"; frees {gib(freed)}" if freed > 0 else f"; takes {gib(-freed)}"


def worth(plan: Plan) -> str:
    """ "The recipe as written on this machine: 45.7 s · this layout alone: 38.0 s · with switches: 21.9 s (2.1 times faster)";
    empty where the plan has no switches of its own."""
    if not plan.switches:
        return ""
    now, said, first = plan.chosen.estimate.iteration_time_s, [], None
    if (written := plan.as_recipe) is not None:
        if written.iteration_time_s is None:
            said.append("the recipe as written does not run on this machine")
        elif not written.fits:
            said.append("the recipe as written does not fit on this machine")
        else:
            first = written.iteration_time_s
            said.append(f"the recipe as written on this machine: {seconds(first)}")
    if all(s.seconds is not None for s in plan.switches if s.recipe_value is not None):
        rates = plan.rates
        if any(s.name == BINDING for s in plan.switches):
            rates = as_started(plan.cluster, plan.recipe, rates)
        alone = estimate_time(plan.recipe, plan.layout, rates).iteration_time_s
        first = first or alone
        said.append(f"this layout without switches: {seconds(alone)}")
    times = f" ({first / now:.1f} times faster)" if first is not None and first / now >= 1.05 else ""
    said.append(f"with switches: {seconds(now)}{times}")
    return " · ".join(said)


def assumed(plan: Plan) -> str:
    """What the choice takes to be installed, where nobody looked; empty else."""
    if plan.software is None or not plan.software.assumed or all(s.name == BINDING for s in plan.switches):
        return ""
    return f"assumed: software as in {plan.software.source}; --software says what yours is"

"""The plans of a job that `parlaunch verify` may measure: the best, the others worth a try, and those made anew without a switch that
failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parlaunch.check.turns import Turns
from parlaunch.check.verdict import Measured
from parlaunch.cli.inputs import note, write
from parlaunch.cli.job import Job, finish, start_of
from parlaunch.cli.request import Trial
from parlaunch.errors import NoLayoutError
from parlaunch.frozen import dataclass
from parlaunch.planning.plan import Candidate, Plan, plan_to_json
from parlaunch.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One layout of a plan, and the job that the plan is of: without the switches that failed."""

    job: Job
    plan: Plan
    candidate: Candidate

    def short(self, said: Sequence[str]) -> Plan:
        """The plan with this layout, for a few iterations: with these overrides behind all others."""
        return plan_of(self.job, self.plan, self.candidate, tuple(said))

    def whole(self) -> Plan:
        """As a user launches it: as many iterations as the recipe has, with validation and checkpoints."""
        return plan_of(self.job, self.plan, self.candidate, ())


def choices(job: Job, plan: Plan) -> list[Choice]:
    """The plan's layouts, the best first, the others in the order in which they are worth a try."""
    return [Choice(job=job, plan=plan, candidate=c) for c in (plan.chosen, *plan.alternatives)]


def turns_of(job: Job, plan: Plan, trial: Trial) -> Turns[Choice]:
    """The plan's layouts in their turns."""
    found = choices(job, plan)
    if len(found) < trial.measure:
        note(
            f"parlaunch: --top {trial.measure}, and there {'is 1 plan' if len(found) == 1 else f'are {len(found)} plans'} to measure"
        )
    return Turns(found, top=trial.measure, retries=trial.retries, candidate=lambda choice: choice.candidate)


def without_failed(choice: Choice, measured: Measured) -> list[Choice]:
    """All choices anew without the switch that a run failed of; none where it is not ours to turn off."""
    failed = next((f.switch for f in measured.failures[:1] if f.switch), None)
    made = None if failed is None else without(choice.job, choice.plan, choice.candidate, failed)
    if made is None:
        if failed is not None:
            note(
                f"parlaunch: {failed} failed and is not ours to drop: you asked for it, it is off, or the plan is a saved one"
            )
        return []
    note(f"parlaunch: {failed} failed; once more without it")
    return choices(*made)


def without(job: Job, plan: Plan, candidate: Candidate, name: str) -> tuple[Job, Plan] | None:
    """The plan made anew with that switch off; None where it is off already, or not ours to turn off."""
    from parlaunch.switches.table import switch

    row = switch(name)
    wanted = job.wishes.switches
    if row is None or job.saved is not None or name in (*wanted.spoken_for, *dict(wanted.fixed)):
        return None
    if row.read(plan.configured_for(candidate).features) in (None, row.known_off):
        return None
    fixed = dict(wanted.fixed) | {name: row.known_off}
    job = replace(job, wishes=replace(job.wishes, switches=replace(wanted, fixed=tuple(fixed.items()))))
    try:
        return job, finish(job, plan.cluster)
    except NoLayoutError:
        return None


def plan_of(job: Job, plan: Plan, candidate: Candidate, short: tuple[str, ...]) -> Plan:
    """The plan with another of its layouts; `short` are the overrides that make it a few iterations."""
    from parlaunch.launching import complete, spelled
    from parlaunch.planning.planner import with_candidate

    start = start_of(job)
    # The overrides that the plan was saved with belong to the layout it was saved with.
    made = replace(with_candidate(plan, candidate), alternatives=() if short else plan.alternatives)
    own = plan.overrides if candidate == plan.chosen else spelled(job.recipe, made, start)
    return complete(made, start, node=0, recipe=job.recipe, said=(*own, *short))


def keep(plan: Plan, file: Path) -> None:
    """The fastest plan as a file for `--plan`."""
    write(file, json.dumps(plan_to_json(plan, version=__version__), indent=2) + "\n", "--save-plan")
    note(f"fastest: {plan.chosen.layout.sizes}; launch it with --plan {file}")

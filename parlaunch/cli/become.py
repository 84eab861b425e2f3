"""The last steps of a launch, on one node or on many: preflight, then this process becomes the training."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError
from parlaunch.planning.plan import Plan

if TYPE_CHECKING:
    from parlaunch.doctor.finding import Finding
    from parlaunch_launch.party import Agreement


def _found(job: Job, request: Request) -> tuple[list[Finding], list[Finding]]:
    """What doctor calls broken on the job's machine, and what it warns of."""
    from parlaunch.doctor.preflight import examine

    if job.device == "cpu":
        return [], []
    found = examine(
        job.cluster, ranks_per_node=request.nproc_per_node, headroom=request.headroom, nodes=len(job.cluster.nodes)
    )
    return [f for f in found if f.severity == "FAIL"], [f for f in found if f.severity == "WARN"]


FORESEEN = 3
"""Findings that a dry run names."""


def foreseen(plan: Plan, job: Job, request: Request) -> Plan:
    """The plan with what will stop its launch on this machine first among its warnings."""
    if job.cluster.source.startswith("preset "):  # nothing is broken there, and doctor takes time to load
        return plan
    failed, _ = _found(job, request)
    what = "FAIL" if request.force else "FAIL, which stops a launch"
    said = [f"{what}: {finding.saw}; {finding.do}" for finding in failed[:FORESEEN]]
    if len(failed) > FORESEEN:
        said.append(f"{len(failed) - FORESEEN} FAIL more: `parlaunch doctor` shows all")
    return replace(plan, warnings=(*said, *plan.warnings)) if said else plan


def preflight(job: Job, request: Request) -> None:
    """Refuse to launch on a machine that doctor calls broken, unless forced."""
    failed, warned = _found(job, request)
    for finding in (*failed, *warned):
        note(f"{finding.severity}: {finding.saw}; {finding.do}")
    if failed and not request.force:
        raise ParlaunchError(
            f"preflight: {len(failed)} FAIL on this machine",
            hint="`parlaunch doctor` shows all; --force launches anyway",
        )
    if warned and request.strict:
        raise ParlaunchError("preflight: a warning, and --strict is given", hint="`parlaunch doctor` shows all")


def become(plan: Plan, job: Job, request: Request, agreement: Agreement | None = None) -> NoReturn:
    """Set the plan's environment and replace this process by torchrun; by its supervisor on several nodes and under Slurm."""
    from parlaunch_launch.become import become as execute

    refuse_conflicts(plan, request)
    job.runner_or_error()
    execute(*command_of(plan, job, agreement))


def refuse_conflicts(plan: Plan, request: Request) -> None:
    """With --strict: raise ParlaunchError for a variable of the user's that works against the plan."""
    from parlaunch.environment.settings import problems

    if request.strict and (bad := problems(plan.environment)):
        raise ParlaunchError(bad[0], hint="unset the variable, or launch without --strict")


def command_of(plan: Plan, job: Job, agreement: Agreement | None = None) -> tuple[list[str], dict[str, str]]:
    """The command that a launch of the plan becomes, and the environment that it gets."""
    from parlaunch.where.schedulers import place_of
    from parlaunch_launch import elastic, runners, secret, supervise

    environ = secret.without(os.environ) | runners.alone(plan.argv)
    environ |= {v.name: v.value for v in plan.environment if not v.kept}
    if agreement is None and not place_of(job.situation).signals_all:
        return elastic.command(plan.argv), environ
    keys = supervise.keys(agreement) if agreement is not None else {}
    return supervise.command(plan.argv, agreement, silence_s=job.request.silence_timeout), environ | keys

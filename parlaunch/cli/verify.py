"""`parlaunch verify`: the plan for a few iterations, held against its prediction."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from parlaunch.cli import inputs, output, writer
from parlaunch.cli.become import preflight, refuse_conflicts
from parlaunch.cli.choices import Choice, choices, turns_of, without_failed
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, job_of, planned, too_large
from parlaunch.cli.launch import become_starter, checked, job_or_refusal, situation_of, step_aside, unwarned
from parlaunch.cli.request import Request, Trial
from parlaunch.cli.trial import (
    asked,
    finished,
    launch_of,
    log_not_whole,
    logs_folder,
    remember,
    sampler,
    save_table,
    shown_progress,
)
from parlaunch.errors import UsageError

if TYPE_CHECKING:
    from parlaunch.where.situation import Situation
    from parlaunch_launch.verify import Launch, Run


def run(request: Request, trial: Trial) -> None:
    """Launch, compare, print; exit code 0 when a plan passed. With --log, what has run already is read instead."""
    writer.speak()
    checked(request)
    if trial.log is not None:
        from parlaunch.cli.verify_log import run as read_log

        return read_log(request, trial)
    if not request.dry_run:
        inputs.choice("--format", request.format, ("text", "json"))
    if request.hardware != "auto" and not request.dry_run:
        raise UsageError(
            "verify runs here: --hardware names another machine", hint="leave --hardware out, or add --dry-run"
        )
    situation = situation_of(request)
    if request.explain:
        from parlaunch.where.schedulers import explain

        note(explain(situation))
    if not request.dry_run:
        step_aside(situation)
        become_starter(request, situation)
    with unwarned() if not request.dry_run else nullcontext():
        _verified(request, trial, situation)


def _verified(request: Request, trial: Trial, situation: Situation) -> None:
    """The runs, printed; for `--dry-run` what would run."""
    if (situation.nnodes or 1) > 1 and not request.dry_run:
        from parlaunch.cli.verify_together import verify_together

        verify_together(request, trial, job_or_refusal(request, situation), situation)
    job = job_of(request, situation)
    if request.dry_run:
        _preview(job, request, trial)
        return
    job.runner_or_error()
    preflight(job, request)
    _here(job, request, trial)


def _preview(job: Job, request: Request, trial: Trial) -> None:
    """What would be run first, and what after it, as `parlaunch plan` prints it."""
    from parlaunch_launch.verify import verify_overrides

    plan = planned(job)
    (chosen, *_) = choices(job, plan)
    short = chosen.short(verify_overrides(trial.iterations))
    output.emit(replace(short, alternatives=plan.alternatives), job, request)  # --top and --retries go on with these
    if not plan.chosen.memory.fits:
        raise too_large(plan)


def _here(job: Job, request: Request, trial: Trial) -> None:
    from parlaunch_launch.verify import verify, verify_overrides

    plan = planned(job)
    asked(plan, job, request)
    refuse_conflicts(plan, request)
    if not plan.chosen.memory.fits:
        raise too_large(plan)
    folder, short = logs_folder(), verify_overrides(trial.iterations)
    turns = turns_of(job, plan, trial)
    note(f"parlaunch: verifying {plan.recipe.name}; logs in {folder}")
    table: list[Run] = []
    measured: list[Choice] = []

    def launched(number: int, choice: Choice) -> Launch:
        return launch_of(choice.short(short), choice.job, folder / f"ranks-{number + 1}")

    def done(choice: Choice, run: Run) -> None:
        table.append(run)
        measured.append(choice)
        log_not_whole(run)
        remember(choice.short(short), run)
        # Kept after every run: whatever ends this process, what was measured stays.
        save_table(folder / "verify.json", table)

    with shown_progress(trial.iterations) as progress:
        outcome = verify(
            turns, launched, without=lambda choice, run: without_failed(choice, run.measured), log_dir=folder,
            iterations=trial.iterations, silence_s=trial.timeout, device=job.device, tolerance=trial.tolerance,
            progress=progress, done=done, sample=sampler(job),
        )  # fmt: skip
    finished(outcome, measured, request, trial)

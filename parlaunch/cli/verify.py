"""`parlaunch verify`: the plan for a few iterations, held against its prediction."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlaunch import __version__
from parlaunch.cli.inputs import note, write
from parlaunch.cli.job import Job, command, environment, finish, job_of, overrides_of
from parlaunch.cli.launch import preflight, situation_of
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.plan import Candidate, Plan, plan_to_json
from parlaunch.words import candidate_words

if TYPE_CHECKING:
    from parlaunch_launch.verify import Launch, Outcome, Progress, Run

EVERY_S = 20.0
"""Seconds between two lines of progress in a log, where there is no terminal."""


def run(request: Request, *, iterations: int, retries: int, timeout: float, measure: int) -> None:
    """Launch, compare, print; exit code 0 when a plan passed."""
    from parlaunch_launch.verify import verify, verify_overrides

    situation = situation_of(request)
    if (situation.nnodes or 1) > 1:
        raise UsageError(
            f"verify runs on one machine, and this is {situation.why}",
            hint="launch with train.train_iters=10 on all nodes, or verify one node with --nnodes 1",
        )
    if request.hardware != "auto":
        raise UsageError("verify runs here: --hardware names another machine", hint="leave --hardware out")
    job = job_of(request, situation)
    job.runner_or_error()
    preflight(job, request)
    plan = finish(job, job.cluster)
    plans = [_plan_of(job, plan, c, verify_overrides(iterations)) for c in (plan.chosen, *plan.alternatives)]
    launches = [_launch(p) for p in plans]
    logs = _logs()
    note(f"parlaunch: verifying {request.recipe or plan.recipe.name}; logs in {logs}")
    with _shown(iterations) as progress:
        outcome = verify(
            launches,
            log_dir=logs,
            iterations=iterations,
            top=measure,
            retries=retries,
            silence_s=timeout,
            device=job.device,
            progress=progress,
            done=lambda number, done: _remember(plans[launches.index(done.launch)], done),
            sample=_sampler(job),
        )
    _print(outcome, request.format)
    if outcome.winner is not None and (measure > 1 or request.save_plan is not None):
        # As a user launches it: as many iterations as the recipe has, with validation and checkpoints.
        _keep(_plan_of(job, plan, outcome.winner.launch.candidate, ()), request.save_plan or Path("verified-plan.json"))
    sys.exit(outcome.exit_code)


def _plan_of(job: Job, plan: Plan, candidate: Candidate, short: tuple[str, ...]) -> Plan:
    """The plan with another of its layouts; `short` are the overrides that make it a few iterations."""
    made = replace(
        plan,
        chosen=candidate,
        alternatives=(),
        overrides=(*overrides_of(job, plan.cluster, candidate.layout), *short),
        environment=environment(job, plan.cluster, candidate.layout, node=0),
    )
    return replace(made, argv=command(job, made, node_rank=0))


def _launch(plan: Plan) -> Launch:
    from parlaunch_launch.verify import Launch

    ours = {v.name: v.value for v in plan.environment if not v.kept}
    return Launch(argv=plan.argv, env=dict(os.environ) | ours, candidate=plan.chosen)


def _state() -> Path:
    from parlaunch_launch import history

    return history.path(os.environ).parent


def _logs() -> Path:
    folder = _state() / "verify" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParlaunchError(
            f"{folder}: {error.strerror}", hint="set XDG_STATE_HOME to a folder that is yours"
        ) from error
    return folder


def _sampler(job: Job) -> Callable[[], int | None] | None:
    """Bytes in use on the fullest GPU, asked of NVML while the run goes; None where there is no GPU."""
    if job.device != "cuda":
        return None
    from parlaunch_probes import probe

    def fullest() -> int | None:
        used = [
            g.memory_used_bytes for n in probe(timeout_s=5.0).nodes for g in n.gpus if g.memory_used_bytes is not None
        ]
        return max(used, default=None)

    return fullest


def _remember(plan: Plan, done: Run) -> None:
    from parlaunch.verdict import row
    from parlaunch_launch import history

    when = datetime.now(UTC).isoformat(timespec="seconds")
    wrong = history.append(
        row(plan, done.measured, done.verdict, when=when, sampled_peak=done.sampled_peak), history.path(os.environ)
    )
    if wrong:
        note(f"note: {wrong}")


class _Bar:
    """Progress on stderr: a bar on a terminal, a line every so often in a log."""

    def __init__(self, iterations: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        from rich.console import Console

        self.iterations, self.rich = iterations, Rich(*columns, console=Console(stderr=True), transient=True)
        self.tasks: dict[int, Any] = {}

    def __enter__(self) -> Callable[[int, Launch, Progress], None]:
        self.rich.start()
        return self.say

    def __exit__(self, *_: object) -> None:
        self.rich.stop()

    def say(self, number: int, launch: Launch, progress: Progress) -> None:
        if number not in self.tasks:
            self.tasks[number] = self.rich.add_task(candidate_words(launch.candidate), total=progress.of)
        self.rich.update(self.tasks[number], completed=progress.iteration or 0)


def _shown(iterations: int) -> AbstractContextManager[Callable[[int, Launch, Progress], None]]:
    if sys.stderr.isatty():
        return _Bar(iterations)
    last = [0.0]

    def line(number: int, launch: Launch, progress: Progress) -> None:
        if progress.elapsed_s - last[0] >= EVERY_S or progress.elapsed_s < last[0]:
            last[0] = progress.elapsed_s
            done = "starting" if progress.iteration is None else f"iteration {progress.iteration} of {progress.of}"
            note(f"  {candidate_words(launch.candidate)}: {done}, {progress.elapsed_s:.0f} s")

    return nullcontext(line)


def _print(outcome: Outcome, format: str) -> None:
    if format == "json":
        print(
            json.dumps(
                {
                    "schema": "parlaunch.verify/1",
                    "ok": outcome.winner is not None,
                    "runs": [_json(r) for r in outcome.runs],
                },
                indent=2,
            )
        )
        return
    for done in outcome.runs:
        verdict = done.verdict
        print(
            f"{candidate_words(done.launch.candidate)}: {'passed' if verdict.ok else verdict.status} in {done.seconds:.0f} s"
        )
        names, predicted = (max(len(getattr(c, n)) for c in verdict.checks) for n in ("name", "predicted"))
        for check in verdict.checks:
            mark = {True: "ok ", False: "NO ", None: "   "}[check.ok]
            print(
                f"  {mark} {check.name:<{names}}  predicted {check.predicted:<{predicted}}  measured {check.measured}"
            )
        for sentence in verdict.sentences:
            print(f"  {sentence}")


def _json(done: Run) -> dict[str, Any]:
    v = done.verdict
    return {
        "layout": str(done.launch.candidate.layout), "status": v.status, "returncode": done.returncode,
        "seconds": done.seconds, "log": str(done.log), "sentences": list(v.sentences),
        "checks": [{"name": c.name, "predicted": c.predicted, "measured": c.measured, "ok": c.ok} for c in v.checks],
        "iteration_time_s": done.measured.iteration_time_s, "sampled_peak_bytes": done.sampled_peak,
    }  # fmt: skip


def _keep(plan: Plan, file: Path) -> None:
    """The fastest plan as a file for `--plan`."""
    write(file, json.dumps(plan_to_json(plan, version=__version__), indent=2) + "\n", "--save-plan")
    note(f"fastest: {candidate_words(plan.chosen)}; launch it with --plan {file}")

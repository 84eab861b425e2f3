"""One trial of a plan: what is launched, who hears of its progress, and what is kept and printed of its end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch.cli.become import command_of
from parlaunch.cli.choices import Choice, keep
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job
from parlaunch.cli.request import Request, Trial
from parlaunch.errors import ParlaunchError
from parlaunch.planning.plan import Plan

if TYPE_CHECKING:
    from parlaunch.check.verdict import Measured, Verdict
    from parlaunch.check.verified import Shown
    from parlaunch_launch.party import Agreement
    from parlaunch_launch.verify import Launch, Outcome, Progress, Run

EVERY_S = 20.0
"""Seconds between two lines of progress in a log, where there is no terminal."""


def launch_of(plan: Plan, job: Job, ranks: Path, agreement: Agreement | None = None) -> Launch:
    """What a launch of the plan would become, with a log for every rank."""
    from parlaunch_launch.verify import Launch, tapped

    argv, environ = command_of(replace(plan, argv=tapped(plan.argv, ranks)), job, agreement)
    socket = None if agreement is None else agreement.watch_socket
    return Launch(
        argv=tuple(argv), env=environ, candidate=plan.chosen, precision=plan.recipe.precision, ranks=ranks, machine_file=plan.rates.measured_in,
        fds=() if socket is None else (socket.detach(),),
    )  # fmt: skip


def logs_folder(suffix: str = "") -> Path:
    """A new folder for the logs of one verify, in the user's state folder."""
    # Two may start in one second: the name is taken by whoever makes the folder.
    return _in_state(
        lambda place: Path(
            tempfile.mkdtemp(prefix=datetime.now(UTC).strftime("%Y%m%dT%H%M%S-"), suffix=suffix, dir=place)
        )
    )


def shared_folder(name: str) -> Path:
    """The folder of that name that another node has made: the same one where home is shared."""

    def made(place: Path) -> Path:
        (place / name).mkdir(exist_ok=True)
        return place / name

    return _in_state(made)


def _in_state(make: Callable[[Path], Path]) -> Path:
    from parlaunch_launch import history

    place = history.path(os.environ).parent / "verify"
    try:
        place.mkdir(parents=True, exist_ok=True)
        return make(place)
    except OSError as error:
        raise ParlaunchError(
            f"{place}: {error.strerror}", hint="set XDG_STATE_HOME to a folder that is yours"
        ) from error


def sampler(job: Job) -> Callable[[], int | None] | None:
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


def log_not_whole(done: Run) -> None:
    """Say why a log has gaps, or is not there."""
    if done.lost is not None:
        note(f"note: {done.log} is not whole: {done.lost}")


def remember(plan: Plan, done: Run) -> None:
    """Add a run to the history. One that we were told to end says nothing."""
    from parlaunch_probes.software import software

    if done.verdict.status == "interrupted":
        return
    when = datetime.now(UTC).isoformat(timespec="seconds")
    remember_row(
        plan,
        done.measured,
        done.verdict,
        when=when,
        source="verify",
        software=dict(software(os.environ) or ()),
        sampled_peak=done.sampled_peak,
    )


def remember_row(
    plan: Plan,
    measured: Measured,
    verdict: Verdict,
    *,
    when: str,
    source: str,
    software: Mapping[str, str | None],
    sampled_peak: int | None = None,
) -> None:
    """Add what was measured of a plan to the history; a history that cannot be written is said, and spoils nothing."""
    from parlaunch.check.remembered import row
    from parlaunch_launch import history

    wrong = history.append(
        row(
            plan, measured, verdict, when=when, sampled_peak=sampled_peak, software=software, source=source,
            site=os.environ.get("SLURM_CLUSTER_NAME"),
        ),
        history.path(os.environ),
    )  # fmt: skip
    if wrong:
        note(f"note: {wrong}")


class _Bar:
    """Progress on stderr: a bar on a terminal, a line every so often in a log."""

    def __init__(self, iterations: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Rich

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.iterations, self.rich = iterations, Rich(*columns, console=Console(stderr=True), transient=True)
        self.tasks: dict[int, Any] = {}

    def __enter__(self) -> Callable[[int, Launch, Progress], None]:
        self.rich.start()
        return self.say

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self.rich.stop()

    def say(self, number: int, launch: Launch, progress: Progress) -> None:
        if number not in self.tasks:
            self.tasks[number] = self.rich.add_task(launch.candidate.layout.sizes, total=progress.of)
        self.rich.update(self.tasks[number], completed=progress.iteration or 0)


def shown_progress(
    iterations: int | None,
) -> AbstractContextManager[Callable[[int, Launch, Progress], None] | None]:
    """A reporter of progress: a bar on a terminal, a line every so often in a log; None for a node that is to be quiet."""
    if iterations is None:
        return nullcontext(None)
    if sys.stderr.isatty():
        return _Bar(iterations)
    last = [0.0]

    def line(number: int, launch: Launch, progress: Progress) -> None:
        if progress.elapsed_s - last[0] >= EVERY_S or progress.elapsed_s < last[0]:
            last[0] = progress.elapsed_s
            done = "starting" if progress.iteration is None else f"iteration {progress.iteration} of {progress.of}"
            with contextlib.suppress(OSError):
                note(f"  {launch.candidate.layout.sizes}: {done}, {progress.elapsed_s:.0f} s")

    return nullcontext(line)


def asked(plan: Plan, job: Job, request: Request) -> None:
    """What the options ask of the plan itself, before it runs. JSON on stdout is the outcome's alone."""
    from parlaunch.cli import output

    text = request.format == "text" and not request.quiet
    output.asides(plan, job, request, explain=text)


def finished(outcome: Outcome, measured: Sequence[Choice], request: Request, trial: Trial) -> NoReturn:
    """Print what came of it all, keep the fastest plan where several were measured, and leave with the verdict's exit code.
    `measured` are the choices in the order of the runs."""
    # The terminal may be gone: what is left to do is done all the same.
    with contextlib.suppress(OSError):
        print_outcome(outcome, request)
    if outcome.winner is not None and (trial.measure > 1 or request.save_plan is not None):
        best = measured[outcome.runs.index(outcome.winner)]
        keep(best.whole(), request.save_plan or Path("verified-plan.json"))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(outcome.exit_code)


def print_outcome(outcome: Outcome, request: Request) -> None:
    """The runs in the format that was asked for."""
    print_shown([_shown_run(r) for r in outcome.runs], request, told=outcome.told)


def print_shown(runs: Sequence[Shown], request: Request, *, told: int | None) -> None:
    """The same for runs whoever measured them; `told` is the signal that ended it all."""
    from parlaunch.check.verified import outcome_to_json, run_to_text, table_to_text

    if request.format == "json":
        print(json.dumps(outcome_to_json(runs, told=told), indent=2))
        return
    if not request.quiet:
        for each in runs:
            print(run_to_text(each, verbose=request.verbose))
    if request.quiet or len(runs) > 1:
        print(table_to_text(runs), end="")


def _shown_run(done: Run) -> Shown:
    from parlaunch.check.verified import Shown

    return Shown(
        layout=done.launch.candidate.layout, verdict=done.verdict, measured=done.measured, seconds=done.seconds,
        log=str(done.log), rank_log=None if done.rank_log is None else str(done.rank_log), returncode=done.returncode,
        sampled_peak=done.sampled_peak, machine_file=done.launch.machine_file,
    )  # fmt: skip


def save_table(file: Path, runs: list[Run]) -> None:
    """The runs so far as the JSON that `verify` prints, in a file. A full disk spoils no measurement."""
    from parlaunch.check.verified import outcome_to_json
    from parlaunch_launch.history import replaced

    with contextlib.suppress(OSError):
        replaced(
            file, (json.dumps(outcome_to_json([_shown_run(r) for r in runs], told=None), indent=2) + "\n").encode()
        )

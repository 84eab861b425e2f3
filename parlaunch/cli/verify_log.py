"""`parlaunch verify --log`: a run that is over, read from its log, held against a plan, and added to the history."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parlaunch.check.verdict import Measured, judge
from parlaunch.check.verified import Shown
from parlaunch.cli import inputs
from parlaunch.cli.inputs import note
from parlaunch.cli.job import finish, job_of
from parlaunch.cli.launch import situation_of
from parlaunch.cli.request import Request, Trial
from parlaunch.cli.trial import print_shown, remember_row
from parlaunch.cli.unpacked import pieces
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.planning.plan import Plan

PINNED = {"tp": "tp", "pp": "pp", "vp": "vp", "cp": "cp", "ep": "ep", "etp": "etp"}
"""Sizes of a log, and the option that pins each."""


def run(request: Request, trial: Trial) -> None:
    """Judge every run; exit code 0 when all passed. The plan is --plan's, or the recipe's with the layout that the log says."""
    assert trial.log is not None
    _refuse_what_runs(request, trial)
    shown = []
    for files in _runs(trial.log):
        file, measured = files[0], _measured(files)
        if not measured.iterations and not measured.failures:
            note(f"note: {file}: neither an iteration nor a failure is in it; left out")
            continue
        try:
            shown.append(_judged(file, measured, request, trial))
        except ParlaunchError as error:
            if trial.log == file:
                raise
            note(f"note: {file}: {error.problem}; left out")
    if not shown:
        raise UsageError(
            f"--log {trial.log}: no training's log is in it", hint="give the output of a run, or a folder of them"
        )
    print_shown(shown, request, told=None)
    sys.exit(0 if all(s.verdict.ok for s in shown) else 1)


def _refuse_what_runs(request: Request, trial: Trial) -> None:
    """Raise `UsageError` for options of a run: this one is over."""
    inputs.choice("--format", request.format, ("text", "json"))
    of_a_run = {"measure": "--top", "retries": "--retries", "iterations": "--iterations", "timeout": "--timeout"}
    of_a_plan = ("dry_run", "save_plan", "report", "why_not", "what_if", "explain")
    given = [option for name, option in of_a_run.items() if getattr(trial, name) != getattr(Trial(), name)]
    given += ["--" + name.replace("_", "-") for name in of_a_plan if getattr(request, name)]
    if given:
        raise UsageError(
            f"--log reads a run that is over, and {given[0]} is for one that is to come",
            hint=f"leave {given[0]} out; `parlaunch plan` answers about the plan",
        )


TORCHRUN_LOG = re.compile(r"(attempt_\d+/)\d+/(?=std(?:out|err)\.log$)")
"""What torchrun's --log-dir makes: a folder for each rank, with one file for each stream."""
RANK = re.compile(r"(?:local[-_]?)?(?:rank|proc|task|worker|gpu|node)[-_.]?\d+", re.IGNORECASE)
SURE = re.compile(r"rank[-_.]?\d+|attempt_\d+/std", re.IGNORECASE)
"""Names that only ranks have. A task, node or GPU may be counted as well: `gpu8.log` and `gpu16.log` are two runs."""
STREAM = re.compile(r"[-_.]?std(?:out|err)|\.(?:out|err)$")
PACKED = re.compile(r"\.(?:gz|bz2|xz)$")
NUMBER = re.compile(r"(\d+)(?=\.\w+$|$)")
"""The last number of a name: a task, of Slurm's %t, where such files are numbered from 0 without a gap."""
FIRST_RANK = re.compile(r"using world size: \d|^-+ arguments -+|\] Non-default values")
"""What Megatron and Bridge print on the first rank alone."""


def _runs(path: Path) -> list[list[Path]]:
    """The logs of each run, in a folder: files whose names differ by a rank (and a stream) alone are of one run, whose ranks but
    the last print no iterations. The file that has them stands first."""
    if not os.path.isdir(path):
        return [[path]]
    by_rank: dict[str, dict[str, list[Path]]] = {}  # files of both streams, by run and by rank
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        whole = PACKED.sub("", file.relative_to(path).as_posix())
        name = STREAM.sub("", TORCHRUN_LOG.sub(r"\1", whole))
        by_rank.setdefault(RANK.sub("", name), {}).setdefault(STREAM.sub("", whole), []).append(file)
    runs: list[list[Path]] = []
    numbered: dict[str, dict[str, list[Path]]] = {}
    for name, ranks in by_rank.items():
        if len(ranks) == 1:
            ((whole, files),) = ranks.items()
            numbered.setdefault(NUMBER.sub("", name), {})[whole] = files
        elif all(
            SURE.search(TORCHRUN_LOG.sub(r"\1", f.relative_to(path).as_posix())) for r in ranks.values() for f in r
        ):
            runs.append([file for files in ranks.values() for file in files])
        else:
            runs += _told_apart(list(ranks.values()))
    for tasks in numbered.values():
        numbers = sorted(int(found[1]) for name in tasks if (found := NUMBER.search(name)))
        counted = len(tasks) > 1 and numbers == list(range(len(tasks)))
        runs += _told_apart(list(tasks.values())) if counted else tasks.values()
    return sorted((sorted(run, key=_trains, reverse=True) for run in runs), key=lambda run: run[0])


def _told_apart(parts: list[list[Path]]) -> list[list[Path]]:
    """Files that may be of the tasks of one run, or each of a run of its own. Of one run only one part has iterations, and only
    the first may have what the first rank alone prints; a part with both is a whole run."""
    first = [n for n, files in enumerate(parts) if _begins(files)]
    trains = [n for n, files in enumerate(parts) if any(map(_trains, files))]
    if len(trains) <= 1 and first in ([], [0]) and not set(first) & set(trains):
        return [[file for files in parts for file in files]]
    return parts


def _begins(files: Sequence[Path]) -> bool:
    """Whether the first rank of a run wrote into one of these."""
    from parlaunch_launch.training_log import without_prefix

    for file in files:
        with contextlib.suppress(UsageError):
            if any(FIRST_RANK.search(without_prefix(line)[0]) for line in _lines(file)):
                return True
    return False


def _trains(file: Path) -> bool:
    return bool(_measured([file]).iterations)


def _measured(files: Sequence[Path]) -> Measured:
    """What the logs of one run show together."""
    from parlaunch_launch.training_log import read_run

    return read_run(map(_lines, files))


def _lines(file: Path) -> Iterator[str]:
    from parlaunch_launch.training_log import lines_of

    try:
        yield from lines_of(pieces(file, "--log"))
    except OSError as error:
        raise UsageError(
            f"--log {file}: {error.strerror}", hint="give the output of a run, or a folder of them"
        ) from error


def _judged(file: Path, measured: Measured, request: Request, trial: Trial) -> Shown:
    plan = _plan(measured, request)
    last = measured.iterations[-1] if measured.iterations else None
    failed = bool(measured.failures) and (last is None or last.number < last.of)
    verdict = judge(
        plan.chosen, measured, returncode=1 if failed else 0, iterations=None, device=request.device,
        precision=plan.recipe.precision, seq_length=plan.recipe.seq_length, tolerance=trial.tolerance,
    )  # fmt: skip
    when = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    # What is installed here says nothing about a run of another day.
    remember_row(plan, measured, verdict, when=when, source="log", software={})
    return Shown(
        layout=plan.layout, verdict=verdict, measured=measured, log=str(file), machine_file=plan.rates.measured_in
    )


def _plan(measured: Measured, request: Request) -> Plan:
    """The plan that the log is of. Raises `UsageError` where machine and log contradict each other."""
    asked = replace(request, command="plan", dry_run=True)
    if request.plan_file is None:
        asked = replace(asked, **_pins(measured, request))
    job = job_of(asked, situation_of(asked))
    plan = finish(job, job.cluster)
    world = measured.layout.get("world")
    if world is not None and world != plan.cluster.world_size:
        raise UsageError(
            f"the log is of {world} GPUs, and the machine has {plan.cluster.world_size}",
            hint="name the machine it ran on: --hardware dgx-h100:2",
        )
    _same_model(plan, measured)
    return plan


def _same_model(plan: Plan, measured: Measured) -> None:
    """Raise `UsageError` where the log is of another model than the plan."""
    a = plan.recipe.architecture
    sizes = ((a.num_layers, measured.num_layers), (a.hidden_size, measured.hidden_size))
    if a.kind != "diffusion" and any(seen is not None and seen != ours for ours, seen in sizes):
        said = [
            f"{seen:,} {word}" for (_, seen), word in zip(sizes, ("layers", "wide"), strict=True) if seen is not None
        ]
        raise UsageError(
            f"the log is of a model of {' and '.join(said)}, and {plan.recipe.name} has {a.num_layers} layers and is "
            f"{a.hidden_size:,} wide",
            hint="name the recipe that it trained, or the sizes that were changed: model.num_layers=…",
        )


def _pins(measured: Measured, request: Request) -> dict[str, Any]:
    """What the log says and the command line does not."""
    said: dict[str, Any] = {option: measured.layout.get(size) for size, option in PINNED.items()}
    said |= {"micro_batch_size": measured.micro_batch, "global_batch_size": measured.global_batch}
    said["seq_length"] = measured.seq_length
    if (again := measured.recompute) is not None:
        kind = again.granularity or "none"
        details = (again.method, str(again.num_layers)) if kind == "full" else (",".join(again.modules),)
        said["recompute"] = ":".join((kind, *filter(None, details)))
    return {name: value for name, value in said.items() if value is not None and getattr(request, name) is None}

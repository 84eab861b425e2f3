"""A plan, printed in the format that was asked for."""

from __future__ import annotations

import json
import sys

from parlaunch import __version__
from parlaunch.cli.inputs import note, write
from parlaunch.cli.job import Job
from parlaunch.cli.request import Request
from parlaunch.plan import Plan, plan_to_json


def emit(plan: Plan, job: Job, request: Request) -> None:
    """Print the plan to stdout and write the files that were asked for."""
    if request.format == "json":
        print(json.dumps(plan_to_json(plan, version=__version__), indent=2))
    elif request.format in ("shell", "sbatch"):
        from parlaunch.scripts import sbatch, shell

        if request.format == "shell":
            print(shell(plan), end="")
        else:
            script = sbatch(
                plan, command=own_words(), container_image=request.container_image,
                container_mounts=request.container_mounts, extra=request.sbatch_arg,
            )  # fmt: skip
            print(script, end="")
    elif request.quiet:
        print(plan.layout)
    else:
        _text(plan, request)
    if request.explain and request.format == "text":
        from parlaunch.cli.explain import explain

        print(explain(plan, device=job.device))
    for asked in request.why_not:
        _why_not(asked, plan, job)
    if request.save_plan:
        write(request.save_plan, json.dumps(plan_to_json(plan, version=__version__), indent=2) + "\n", "--save-plan")
    if request.report:
        from parlaunch.report_html import report

        write(request.report, report(plan), "--report")


PREVIEW = ("--hardware", "--gpu", "--format", "--save-plan", "--report", "--why-not", "--top", "--sbatch-arg",
           "--container-image", "--container-mounts")  # fmt: skip


def own_words() -> list[str]:
    """The command line that makes this plan on the machine itself: what was typed, less what only concerns this preview."""
    words, skip = ["parlaunch"], False
    for word in sys.argv[1:]:
        name = word.partition("=")[0]
        if skip:
            skip = False
        elif name in PREVIEW:
            skip = "=" not in word
        elif word not in ("plan", "launch", "--dry-run", "--explain", "--quiet", "-q", "--verbose", "-v"):
            words.append(word)
    return words


def _text(plan: Plan, request: Request) -> None:
    from parlaunch.cli.screen import as_text, show

    if not sys.stdout.isatty():
        print(as_text(plan, verbose=request.verbose), end="")
        return
    from rich.console import Console

    show(plan, Console(), verbose=request.verbose)


def _why_not(asked: str, plan: Plan, job: Job) -> None:
    from parlaunch.cli.inputs import sizes_from
    from parlaunch.planner import why_not

    answer = why_not(plan.cluster, plan.recipe, sizes_from(asked), job.wishes, plan)
    out = note if job.request.format != "text" else print
    out(f"\nwhy not {asked}: {answer}")

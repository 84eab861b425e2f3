"""A plan, printed in the format that was asked for."""

from __future__ import annotations

from parlaunch.cli.inputs import note, write
from parlaunch.cli.job import Job
from parlaunch.cli.options import described
from parlaunch.cli.request import Request
from parlaunch.cli.terminal import coloured, columns
from parlaunch.errors import UsageError
from parlaunch.planning.plan import Plan
from parlaunch.show.formats import Page, render


def emit(plan: Plan, job: Job, request: Request) -> None:
    """Print the plan to stdout and write the files that were asked for."""
    if request.format == "sbatch":
        from parlaunch.cli.sbatch import check

        check(request.sbatch_arg)
    print(render(request.format, plan, _page(request)), end="")
    if request.save_plan:
        write(request.save_plan, render("json", plan), "--save-plan")
    asides(plan, job, request, explain=request.format == "text")


def asides(plan: Plan, job: Job, request: Request, *, explain: bool) -> None:
    """What was asked about the plan beside the plan itself: reasons (with `explain`), other layouts, the report."""
    if request.explain and explain:
        from parlaunch.show.explain import explain as explained

        print(explained(plan))
    for asked in request.why_not:
        _why_not(asked, plan, job)
    if request.what_if:
        _what_if(plan, job)
    if request.report:
        write(request.report, render("report", plan), "--report")


def _page(request: Request) -> Page:
    return Page(
        columns=columns(), colour=coloured(),
        quiet=request.quiet, verbose=request.verbose, command=tuple(own_words(request)), options=_options(request),
        container_image=request.container_image, container_mounts=request.container_mounts,
    )  # fmt: skip


def _options(request: Request) -> tuple[str, ...]:
    """Of the batch system; one on the command line takes the place of a configured partition."""
    return (*([f"--partition={request.partition}"] if request.partition else []), *request.sbatch_arg)


PREVIEW = (
    "hardware", "gpu", "format", "save_plan", "report", "why_not", "top", "partition", "sbatch_arg", "container_image",
    "container_mounts", "what_if", "dry_run", "explain", "quiet", "verbose", "python", "tokens", "samples", "price", "mtbf", "storage",
)  # fmt: skip
"""Options that concern what is printed here, not the job."""


def own_words(request: Request) -> list[str]:
    """The command line that makes this plan on the machine itself, wherever its words came from: what was typed, and what
    a variable or a file said, since neither need be there."""
    words = [request.python, "-m", "parlaunch"] if request.python else ["parlaunch"]
    for option in described(Request):
        value = getattr(request, option.field)
        if option.field in PREVIEW or value == option.default:
            continue
        words += option.spelled(value)
    return [*words, *request.overrides, *(["--", *request.runner_args] if request.runner_args else [])]


def _what_if(plan: Plan, job: Job) -> None:
    from parlaunch.cli.compare import changed
    from parlaunch.show.comparison import Entry, to_text

    entries = [
        Entry(hardware="this plan", plan=plan),
        *changed(job.request, job.recipe, job.cluster, job.wishes, roaming=plan.rates.roaming),
    ]
    out = note if job.request.format != "text" else print
    out("\n" + to_text(entries).rstrip())


def _why_not(asked: str, plan: Plan, job: Job) -> None:
    from parlaunch.cli.inputs import sizes_from
    from parlaunch.planning.planner import why_not, why_not_switched
    from parlaunch.switches.table import switch

    name, _, value = asked.partition("=")
    if (row := switch(name)) is not None:
        taken = row.accepts(value)
        if taken is None:
            raise UsageError(
                f"--why-not {asked}: {name} does not take {value!r}", hint=f"one of: {', '.join(row.values)}"
            )
        answer = why_not_switched(plan, name, taken, job.wishes)
    else:
        answer = why_not(plan, sizes_from(asked), job.wishes)
    out = note if job.request.format != "text" else print
    out(f"\nwhy not {asked}: {answer}")

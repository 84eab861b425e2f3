"""`parlaunch` and `parlaunch plan`: plan, print what was planned, and, when launching, become it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from parlaunch.cli import inputs, output, writer
from parlaunch.cli.asked import asked
from parlaunch.cli.become import become, foreseen, preflight
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, job_of, planned, too_large
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.show.formats import FORMATS, SCRIPTS

if TYPE_CHECKING:
    from parlaunch.where.situation import Situation


def run(request: Request) -> None:
    """The whole of one launch or plan. Ends in `exec` when launching."""
    writer.speak()
    if request.hardware == "list":
        from parlaunch.cli.machine import listing

        return listing()
    checked(request)
    from parlaunch.where.schedulers import place_of

    # A script is for later, and mostly for another machine.
    launching = request.command == "launch" and not request.dry_run and request.format not in SCRIPTS
    situation = situation_of(request)
    if request.explain:
        from parlaunch.where.schedulers import explain

        note(explain(situation))
    if launching and request.hardware == "auto":
        if not situation.node_rank or not place_of(situation).one_log:
            for sentence in situation.notes:
                note(f"parlaunch: {sentence}")
        step_aside(situation)
        become_starter(request, situation)
    with unwarned() if launching else nullcontext():
        _planned(request, situation, launching=launching)


def _planned(request: Request, situation: Situation, *, launching: bool) -> None:
    """The plan, printed and, when launching, become."""
    from parlaunch.where.schedulers import place_of

    if launching and (situation.nnodes or 1) > 1 and place_of(situation).starter is None:
        from parlaunch.cli.together import launch_together

        launch_together(request, job_or_refusal(request, situation), situation)
    job = job_of(request, situation)
    plan = planned(job)
    if request.command == "launch" and not launching:  # the ranks of a launch ask it themselves, in their first minute
        plan = foreseen(asked(plan, job, request), job, request)
    output.emit(plan, job, request)
    if not plan.chosen.memory.fits:
        raise too_large(plan)
    if launching:
        preflight(job, request)
        become(plan, job, request)


def checked(request: Request) -> None:
    """Raise `UsageError` for options that do not go together, whatever the command."""
    inputs.choice("--format", request.format, FORMATS)
    inputs.choice("--device", request.device, ("cuda", "cpu"))
    script_only = ("partition", "sbatch_arg", "container_image", "container_mounts")
    if request.format != "sbatch" and any(getattr(request, n) and n not in request.configured for n in script_only):
        raise UsageError(
            "--partition, --sbatch-arg and the container options are for --format sbatch",
            hint="a launch hands options on to srun with --srun-arg",
        )


def situation_of(request: Request) -> Situation:
    """Where this process was started, by its environment, its ancestors and torchrun's options."""
    from parlaunch.where.schedulers import where
    from parlaunch_probes.surroundings import ancestors, hostname, hosts

    flags = {
        "nnodes": request.nnodes, "node_rank": request.node_rank, "master_addr": request.master_addr,
        "master_port": request.master_port, "nproc_per_node": request.nproc_per_node,
        "rdzv_endpoint": request.rdzv_endpoint, "rdzv_backend": request.rdzv_backend, "rdzv_id": request.rdzv_id,
    }  # fmt: skip
    return where(os.environ, hostname=hostname(), ancestors=ancestors(), flags=flags, hosts=hosts(os.environ))


def job_or_refusal(request: Request, situation: Situation) -> Job | ParlaunchError:
    """One node's job, or what it refuses with: the others have to hear it from us before they can end."""
    try:
        return job_of(request, situation)
    except ParlaunchError as error:
        return error


@contextmanager
def unwarned() -> Iterator[None]:
    """Slurm's warning of a time limit (`--signal=USR1@300`) goes to every process of a step, and ends those that do not know it: a
    launch that is on its way ignores it, what it becomes too until the ranks handle it."""
    from parlaunch_launch.supervise import FOR_RANKS

    before = {number: signal.signal(number, signal.SIG_IGN) for number in FOR_RANKS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def step_aside(situation: Situation) -> None:
    """One launcher a node: the others of `--ntasks-per-node=8` leave it to the first, one of them says so."""
    from parlaunch_launch import aside

    if not situation.local_id:
        if (situation.ntasks_per_node or 1) > 1:
            aside.hold(situation.token)
        return
    if situation.local_id == 1 and not situation.node_rank:
        note(
            f"parlaunch: {(situation.ntasks_per_node or 2) - 1} tasks of each node leave the launch to its task 0: torchrun "
            "starts one rank a GPU itself, and one task a node is enough"
        )
    aside.wait(situation.token)
    raise SystemExit(0)


def become_starter(request: Request, situation: Situation) -> None:
    """In a batch script or a shell of a job: what starts one task a node. In a task it returns."""
    from parlaunch.where.schedulers import start, starts_without
    from parlaunch_launch import secret
    from parlaunch_launch.become import become as execute

    own = [sys.executable, "-P", "-m", "parlaunch", *sys.argv[1:]]
    argv = start(situation, own_argv=own, args=request.srun_arg)
    if argv is None:
        return
    if situation.kind == "slurm-tasks" and shutil.which(argv[0]) is None:
        raise UsageError(
            f"each task of this step sees its own GPUs only, and {argv[0]}, which could start one for all, is not here",
            hint=f"start it as: srun --ntasks-per-node=1 --gpus-per-node={situation.gpus_local} parlaunch ...",
        )
    _known_before(request, in_container=own[0] not in argv)
    note(f"parlaunch: {situation.why}; starting one task a node with {argv[0]}")
    environ = {name: value for name, value in os.environ.items() if name not in starts_without(situation)}
    secret.add(environ)
    execute(argv, environ)


def _known_before(request: Request, *, in_container: bool) -> None:
    """Refuse here what every task would refuse: once, and without a step. What only the tasks' container knows is left to
    them."""
    from parlaunch_launch import runners

    if request.plan_file is not None:
        from parlaunch.cli.saved import saved

        if not in_container:
            saved(request.plan_file)
    else:
        inputs.wishes_of(request, inputs.merged_pins(request))
        if not in_container:
            inputs.named_here(request)
    if not in_container and (request.script is not None or request.module is not None):
        runners.find(
            device=request.device, script=request.script, module=request.module, environ=os.environ, python=sys.executable
        )  # fmt: skip

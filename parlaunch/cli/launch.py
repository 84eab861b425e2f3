"""`parlaunch` and `parlaunch plan`: plan, print what was planned, and, when launching, become it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from parlaunch.cli import inputs, output
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job, finish, job_of
from parlaunch.cli.request import Request
from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.plan import Plan

if TYPE_CHECKING:
    from parlaunch.where import Situation
    from parlaunch_launch.agreement import Agreement

FORMATS = ("text", "json", "shell", "sbatch")


def run(request: Request) -> None:
    """The whole of one launch or plan. Ends in `exec` when launching."""
    inputs.choice("--format", request.format, FORMATS)
    inputs.choice("--device", request.device, ("cuda", "cpu"))
    if request.format != "sbatch" and (request.sbatch_arg or request.container_image or request.container_mounts):
        raise UsageError(
            "--sbatch-arg and the container options are for --format sbatch",
            hint="a launch hands options on to srun with --srun-arg",
        )
    launching = request.command == "launch" and not request.dry_run
    situation = situation_of(request)
    if request.explain:
        from parlaunch.where import explain

        note(explain(situation))
    if launching and request.hardware == "auto":
        from parlaunch_launch import srun

        for sentence in situation.notes:
            note(f"parlaunch: {sentence}")
        _step_aside(situation)
        if srun.needed(situation, request.srun_arg):
            _become_srun(request, situation)
    job = job_of(request, situation)
    if launching and (situation.nnodes or 1) > 1 and not situation.needs_srun:
        from parlaunch.cli.together import launch_together

        launch_together(request, job, situation)
    plan = finish(job, job.cluster)
    output.emit(plan, job, request)
    if not plan.chosen.memory.fits:
        raise _too_large(plan)
    if launching:
        preflight(job, request)
        become(plan, job, request)


def situation_of(request: Request) -> Situation:
    """Where this process was started, by its environment, its ancestors and torchrun's options."""
    from parlaunch.where import where
    from parlaunch_probes.surroundings import ancestors, hostname

    flags = {
        "nnodes": request.nnodes, "node_rank": request.node_rank, "master_addr": request.master_addr,
        "master_port": request.master_port, "nproc_per_node": request.nproc_per_node,
        "rdzv_endpoint": request.rdzv_endpoint, "rdzv_backend": request.rdzv_backend, "rdzv_id": request.rdzv_id,
    }  # fmt: skip
    return where(os.environ, hostname=hostname(), ancestors=ancestors(), flags=flags)


def _step_aside(situation: Situation) -> None:
    """One launcher a node: the others of `--ntasks-per-node=8` say so and leave."""
    if (situation.local_id or 0) > 0:
        note(
            f"parlaunch: task {situation.local_id} of this node leaves the launch to task 0; "
            "torchrun starts one rank a GPU itself, so use --ntasks-per-node=1"
        )
        raise SystemExit(0)


def _become_srun(request: Request, situation: Situation) -> None:
    from parlaunch_launch import srun
    from parlaunch_launch.become import become as execute

    argv = srun.command(
        situation, own_argv=[sys.executable, "-m", "parlaunch", *sys.argv[1:]], srun_args=request.srun_arg
    )
    note(f"parlaunch: {situation.why}; starting one task a node with srun")
    execute(argv, dict(os.environ))


def _too_large(plan: Plan) -> NoLayoutError:
    from parlaunch.units import gib

    m = plan.chosen.memory
    return NoLayoutError(
        f"the layout that you fixed needs {gib(m.peak)} a GPU, {gib(m.peak - m.limit)} more than the {gib(m.limit)} usable",
        hint="leave a size out and the planner looks for one that fits",
    )


def preflight(job: Job, request: Request) -> None:
    """Refuse to launch on a machine that doctor calls broken, unless forced."""
    from parlaunch.doctor import examine

    if job.device == "cpu":
        return
    found = examine(job.cluster, ranks_per_node=request.nproc_per_node, headroom=request.headroom)
    failed = [f for f in found if f.severity == "FAIL"]
    warned = [f for f in found if f.severity == "WARN"]
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
    """Set the plan's environment and replace this process by torchrun; on several nodes by its supervisor."""
    from parlaunch.environment import problems
    from parlaunch_launch.become import become as execute

    if request.strict and (bad := problems(plan.environment)):
        raise ParlaunchError(bad[0], hint="unset the variable, or launch without --strict")
    job.runner_or_error()
    argv = list(plan.argv)
    if agreement is not None:
        from parlaunch_launch import supervise

        argv = supervise.command(argv, agreement)
    execute(argv, dict(os.environ) | {v.name: v.value for v in plan.environment if not v.kept})

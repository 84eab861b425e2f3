"""What the installed Megatron Bridge says of a plan before it is queued."""

from __future__ import annotations

from dataclasses import replace

from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError, ProbeError
from parlaunch.planning.plan import Plan

FINISHED = "parlaunch_launch.finished"
BRIDGES_RUNNERS = ("bridge", "bridge-checkout")


def asked(plan: Plan, job: Job, request: Request) -> Plan:
    """The plan with Bridge's word on it: among its reasons that Bridge builds the same, or among its warnings what it refuses or
    builds otherwise. As it was where the Bridge that will run is not the one installed here.

    Raises ParlaunchError for such a warning with --strict.
    """
    from parlaunch.check.built import compared, keys_of, runner_arguments
    from parlaunch_probes import bridge

    if (version := _version(job, request)) is None:
        return plan
    gpu = plan.cluster.gpu
    try:
        answer = bridge.built(
            runner_arguments(plan), world=plan.layout.world, gpu=gpu.name, capability=gpu.compute_capability or (9, 0),
            keys=keys_of(plan), variables={v.name: v.value for v in plan.environment},
            build=f"{FINISHED}:finished", prepare=f"{FINISHED}:without_gpus",
            asking=lambda: note(f"asking Megatron Bridge {version} whether it builds this; `parlaunch plan` does not ask"),
        )  # fmt: skip
    except ProbeError as error:
        note(f"note: {error.problem}; nothing else depends on it")
        return plan
    if "refused" in answer:
        wrong = [f"Megatron Bridge {version} refuses this configuration: {answer['refused']}"]
    else:
        count, different = compared(plan, answer)
        wrong = [
            f"Megatron Bridge {version} would not train what is planned: {name}: {what}"
            for name, what in different.items()
        ]
        if not wrong:
            same = f"Megatron Bridge {version} builds the same from this command: {count} quantities compared"
            return replace(plan, because=(*plan.because, same))
    if request.strict:
        raise ParlaunchError(
            wrong[0], hint="change what the sentence names, or leave --strict out to have it as a warning"
        )
    return replace(plan, warnings=(*wrong, *plan.warnings))


def _version(job: Job, request: Request) -> str | None:
    """The installed Bridge's version where it is the one that the ranks will run; None where it is not."""
    from parlaunch.environment.bridge_versions import version_of
    from parlaunch_probes import bridge

    if job.device != "cuda" or request.python is not None or (version := bridge.version()) is None:
        return None
    runner, _ = job.runner()
    ours = runner is not None and runner.kind in BRIDGES_RUNNERS and runner.version == version_of(version)
    return version if ours else None

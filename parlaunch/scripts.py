"""A plan as text for other programs: a shell command that can be pasted, and a batch script that sbatch takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from parlaunch.plan import Plan, Variable


def exports(variables: Iterable[Variable]) -> list[str]:
    """`export` lines, each with its reason; what the user had set already is only mentioned."""
    lines = []
    for v in variables:
        if v.kept:
            lines.append(
                f"# {v.name}={shlex.quote(v.value)} is yours and stays" + (f": {v.warning}" if v.warning else "")
            )
        else:
            lines += [f"# {v.reason}", f"export {v.name}={shlex.quote(v.value)}"]
    return lines


def quoted(argv: Sequence[str]) -> str:
    """The command with shell quotes; words that stand for a variable of each node (`$NAME…`) stay open."""
    return " ".join(f'"{word}"' if word.startswith("${") else shlex.quote(word) for word in argv)


def shell(plan: Plan) -> str:
    """Environment and command; pasted into a shell on every node it starts the job."""
    nodes = len(plan.cluster.nodes)
    where = "run this on every node, with NODE_RANK and MASTER_ADDR set" if nodes > 1 else "run this"
    head = [f"# {plan.recipe.name} on {plan.cluster.world_size} GPUs ({plan.cluster.source}): {plan.layout}; {where}"]
    return "\n".join([*head, *exports(plan.environment), quoted(plan.argv)]) + "\n"


def sbatch(
    plan: Plan,
    *,
    command: Sequence[str],
    time: str = "04:00:00",
    job_name: str | None = None,
    container: str | None = None,
    mounts: str | None = None,
    extra: Sequence[str] = (),
) -> str:
    """A whole batch script for this plan.

    `command` is the parlaunch command line that makes the plan on the nodes themselves: the script holds the machine and
    the reasons, the nodes hold the truth. `extra` are further #SBATCH lines ("--partition=h100").
    """
    c = plan.cluster
    name = job_name or plan.recipe.name.removesuffix("_config")
    options = [
        f"--job-name={name}",
        f"--nodes={len(c.nodes)}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={c.gpus_per_node}",
        "--exclusive",
        f"--time={time}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.log",
        *extra,
    ]
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if container:
        srun.append(f"--container-image={container}")
    if mounts:
        srun.append(f"--container-mounts={mounts}")
    because = [f"# {sentence}" for sentence in plan.because]
    planned = [f"#   {v.name}={v.value}: {v.reason}" for v in plan.environment if not v.kept]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"# {plan.recipe.name}: {plan.layout}",
        *because,
        "# parlaunch makes this plan anew on the nodes and sets, each with its reason:",
        *planned,
        "",
        "set -euo pipefail",
        quoted([*srun, *command]),
    ]
    return "\n".join(lines) + "\n"

"""A plan as text for other programs: a shell command that can be pasted, and a batch script that sbatch takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from parlaunch.cpu import CPU_RANK
from parlaunch.errors import UsageError
from parlaunch.plan import Plan, Variable
from parlaunch.words import layout_words


def exports(variables: Iterable[Variable]) -> list[str]:
    """`export` lines, each with its reason; what the user had set already is only mentioned."""
    lines = []
    for v in variables:
        if v.kept:
            lines += _comments(
                f"{v.name}={shlex.quote(v.value)} is yours and stays" + (f": {v.warning}" if v.warning else "")
            )
        else:
            lines += [*_comments(v.reason), f"export {v.name}={shlex.quote(v.value)}"]
    return lines


def quoted(argv: Sequence[str]) -> str:
    """The command with shell quotes; words that stand for a variable of each node (`$NAME…`) stay open."""
    return " ".join(f'"{word}"' if word.startswith("${") else shlex.quote(word) for word in argv)


def shell(plan: Plan) -> str:
    """Environment and command; pasted into a shell on every node it starts the job."""
    nodes = len(plan.cluster.nodes)
    where = "run this on every node, with NODE_RANK and MASTER_ADDR set" if nodes > 1 else "run this"
    gpu = "CPU ranks" if plan.cluster.gpu.name == CPU_RANK.name else plan.cluster.gpu.name
    head = _comments(f"{plan.recipe.name} on {plan.cluster.world_size} × {gpu} ({plan.cluster.source}); {where}")
    why = [line for sentence in (layout_words(plan.layout), *plan.because) for line in _comments(sentence)]
    return "\n".join([*head, *why, "", *exports(plan.environment), "", quoted(plan.argv)]) + "\n"


DEFAULT_TIME = "04:00:00"


def sbatch(
    plan: Plan,
    *,
    command: Sequence[str],
    container_image: str | None = None,
    container_mounts: str | None = None,
    extra: Sequence[str] = (),
) -> str:
    """A whole batch script for this plan.

    `command` is the parlaunch command line that makes the plan on the nodes themselves: the script holds the machine and
    the reasons, the nodes hold the truth. `extra` are options of the user's own ("--partition=h100", "--time=1-0"); one
    that is among ours takes its place. Image and mounts go to srun as Pyxis has them.
    """
    cluster = plan.cluster
    ours = {
        "--job-name": plan.recipe.name.removesuffix("_config"),
        "--nodes": str(len(cluster.nodes)),
        "--ntasks-per-node": "1",
        "--gpus-per-node": str(cluster.gpus_per_node),
        "--exclusive": "",
        "--time": DEFAULT_TIME,
        "--requeue": "",
        "--open-mode": "append",
        "--output": "%x-%j.log",
    }
    if cluster.gpu.name == CPU_RANK.name:
        del ours["--gpus-per-node"]
    options = _options(ours, extra)
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    srun += [f"--container-image={container_image}"] if container_image else []
    srun += [f"--container-mounts={container_mounts}"] if container_mounts else []
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        *_comments(f"{plan.recipe.name}: {layout_words(plan.layout)}"),
        *(line for sentence in plan.because for line in _comments(sentence)),
        "#",
        "# parlaunch makes this plan anew on the nodes and sets there, unless the environment has it already:",
        *(line for v in plan.environment if not v.kept for line in _comments(f"  {v.name}={v.value}: {v.reason}")),
        "",
        "set -euo pipefail",
        "exec " + quoted([*srun, *command]),
    ]
    return "\n".join(lines) + "\n"


def _options(ours: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """#SBATCH options, the user's in the place of ours. Raises `UsageError` for what is no option or two lines."""
    merged = dict(ours)
    for option in extra:
        name, _, value = option.partition("=")
        if not re.fullmatch(r"--?[A-Za-z][\w-]*", name) or "\n" in option:
            raise UsageError(
                f"--sbatch-arg {option!r} is no option of sbatch",
                hint="write it as sbatch would take it: --partition=h100",
            )
        long = SHORT.get(name, name)
        if long in FIXED:
            raise UsageError(f"--sbatch-arg {option} would contradict the plan", hint=FIXED[long])
        merged[long] = value
        if long == "--no-requeue":
            merged.pop("--requeue", None)
        if long == "--oversubscribe":
            merged.pop("--exclusive", None)
    return [f"{name}={_blank_safe(value)}" if value else name for name, value in merged.items()]


SHORT = {"-J": "--job-name", "-N": "--nodes", "-t": "--time", "-o": "--output", "-p": "--partition", "-A": "--account"}
FIXED = {
    "--nodes": "plan for another number of nodes with --hardware",
    "--ntasks-per-node": "torchrun starts the ranks of a node, one task a node is right",
    "--ntasks": "torchrun starts the ranks of a node, one task a node is right",
}


def _blank_safe(value: str) -> str:
    return f'"{value}"' if " " in value and not value.startswith(('"', "'")) else value


def _comments(text: str) -> list[str]:
    """The text as comment lines, whatever newlines are in it."""
    return [f"# {line}" for line in text.splitlines() or [""]]

"""A plan as a batch script that Slurm's sbatch takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from parlaunch.errors import UsageError
from parlaunch.hardware.cpu import device_of
from parlaunch.planning.plan import Plan
from parlaunch.show.formats import Page
from parlaunch.show.scripts import comments, quoted
from parlaunch.show.words import layout_words

DEFAULT_TIME = "04:00:00"


def render(plan: Plan, page: Page) -> str:
    """A whole batch script for this plan.

    `page.command` is the parlaunch command line that makes the plan on the nodes themselves: the script holds the machine
    and the reasons, the nodes hold the truth. `page.options` are options of the user's own ("--partition=h100",
    "--time=1-0"); one that is among ours takes its place. Image and mounts go to srun as Pyxis has them.
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
    if device_of(cluster) == "cpu":
        del ours["--gpus-per-node"]
    options = _options(ours, page.options, gpus=cluster.gpus_per_node, nodes=len(cluster.nodes))
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    srun += [f"--container-image={page.container_image}"] if page.container_image else []
    srun += [f"--container-mounts={page.container_mounts}"] if page.container_mounts else []
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        *comments(f"{plan.recipe.name}: {layout_words(plan.layout, split=plan.sequence_parallel)}"),
        *(line for sentence in plan.because for line in comments(sentence)),
        "#",
        "# parlaunch makes this plan anew on the nodes and sets there, unless the environment has it already:",
        *(line for v in plan.environment if not v.kept for line in comments(f"  {v.name}={v.value}: {v.reason}")),
        "",
        "set -euo pipefail",
        "exec " + quoted([*srun, *page.command]),
    ]
    return "\n".join(lines) + "\n"


def _options(ours: Mapping[str, str], extra: Sequence[str], *, gpus: int, nodes: int) -> list[str]:
    """#SBATCH options, the user's in the place of ours. Raises `UsageError` for what is no option or two lines, and for another
    machine than the plan's."""
    merged = dict(ours)
    for option in extra:
        name, _, value = option.partition("=")
        if re.fullmatch(r"-[A-Za-z][\w:-]+", name):  # -N4, as sbatch takes it too
            name, value = name[:2], option[2:]
        if not re.fullmatch(r"--?[A-Za-z][\w-]*", name) or "\n" in option:
            raise UsageError(
                f"--sbatch-arg {option!r} is no option of sbatch",
                hint="write it as sbatch would take it: --partition=h100",
            )
        long = SHORT.get(name, name)
        if long in FIXED:
            raise UsageError(f"--sbatch-arg {option} would contradict the plan", hint=FIXED[long])
        if (asked := _gpus(long, value)) is not None and "--gpus-per-node" in ours:
            if asked != (due := gpus * nodes if long == "--gpus" else gpus):
                raise UsageError(
                    f"--sbatch-arg {option} would contradict the plan, which has {due} GPUs there",
                    hint="plan for another machine with --hardware",
                )
            merged.pop("--gpus-per-node", None)  # said in the site's words
        merged[long] = value
        if long == "--no-requeue":
            merged.pop("--requeue", None)
        if long == "--oversubscribe":
            merged.pop("--exclusive", None)
    return [f"{name}={_blank_safe(value)}" if value else name for name, value in merged.items()]


def _gpus(name: str, value: str) -> int | None:
    """How many GPUs an option asks for, of a node or in all; None: it asks for none, or not in numbers."""
    if name == "--gres":
        value = next((part for part in value.split(",") if re.match(r"gpu(:|$)", part)), "")
        value = "1" if value == "gpu" else value
    elif name not in ("--gpus", "--gpus-per-node", "--gpus-per-task"):
        return None
    count = value.rsplit(":", 1)[-1]
    return int(count) if re.fullmatch(r"\d{1,9}", count) else None


SHORT = {
    "-J": "--job-name", "-N": "--nodes", "-n": "--ntasks", "-t": "--time", "-o": "--output", "-p": "--partition", "-A": "--account",
    "-G": "--gpus",
}  # fmt: skip
FIXED = {
    "--nodes": "plan for another number of nodes with --hardware",
    "--ntasks-per-node": "torchrun starts the ranks of a node, one task a node is right",
    "--ntasks": "torchrun starts the ranks of a node, one task a node is right",
}


def _blank_safe(value: str) -> str:
    return f'"{value}"' if " " in value and not value.startswith(('"', "'")) else value

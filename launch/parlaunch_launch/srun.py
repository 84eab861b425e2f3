"""The srun that a batch script or an salloc shell becomes: one task a node, and everything dies together. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parlaunch.errors import UsageError
from parlaunch.where import Situation

CONTAINER = ("--container-image", "--container-name", "--container")
"""Options of pyxis and of Slurm's own OCI support: the tasks run in another file system than this script."""


def command(
    situation: Situation,
    *,
    own_argv: Sequence[str],
    srun_args: Sequence[str] = (),
    in_container: Sequence[str] = ("parlaunch",),
) -> list[str]:
    """srun's argv with parlaunch behind it. `own_argv` is how this process was started; what stands behind the program
    goes on unchanged, since argv needs no quoting. The user's `srun_args` come last of srun's: srun takes the last word.

    `own_argv` begins with `PYTHON -m parlaunch`; inside a container that interpreter need not exist, so `in_container`
    takes its place there. Raises UsageError for an option of srun that would start something else than one task a node.
    """
    args = [word for given in srun_args for word in _words(given)]
    _check(args)
    nodes = situation.nnodes or 1
    argv = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # Without it a healthy node waits 300 s in torchrun's exit barrier for one that is gone.
    argv.append("--kill-on-bad-exit=1")
    # One task holds the whole node; left alone, task/affinity may bind it, and every rank below it, to one core.
    argv.append("--cpu-bind=none")
    argv += _share(situation)
    if situation.overlap:
        argv.append("--overlap")  # the step that holds this shell has the resources; a second one would wait for ever
    if situation.export_none:
        argv.append("--export=ALL")  # what the script set up (modules, a virtual environment) has to reach the tasks
    program = list(own_argv)
    if _in_container(args) and program[1:3] == ["-m", "parlaunch"]:
        program[:3] = in_container
    return [*argv, *args, *program]


def _words(given: str) -> list[str]:
    """One `--srun-arg` as srun's words: `--container-image=x` is one, `--container-image x` two; the rest stays whole,
    blanks and all, because a value may hold them."""
    match = re.fullmatch(r"(--?[\w-]+)\s+(\S.*)", given.strip(), re.DOTALL)
    return [match[1], match[2]] if match and "=" not in match[1] else [given.strip()]


def _share(situation: Situation) -> list[str]:
    """What was asked for each of several tasks, now for the one: srun does not read SLURM_CPUS_PER_TASK (since 22.05),
    and SLURM_GPUS_PER_TASK would leave the one task with the GPUs of one of them."""
    tasks = situation.ntasks_per_node or 1
    share = []
    if situation.cpus_per_task is not None:
        share.append(f"--cpus-per-task={situation.cpus_per_task * tasks}")
    if situation.gpus_per_task is not None:
        share.append(f"--gpus-per-task={situation.gpus_per_task * tasks}")
    return share


def _in_container(args: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in CONTAINER for word in args)


def _check(args: Sequence[str]) -> None:
    """Refuse what would start several launchers on a node, or srun's words that are none."""
    for at, word in enumerate(args):
        name, _, value = word.partition("=")
        value = value or (args[at + 1] if at + 1 < len(args) else "")
        if name == "--ntasks-per-node" and value.strip() != "1":
            raise UsageError(
                f"--srun-arg {word}: torchrun starts the ranks of a node, so there is one task a node",
                hint="leave it out; parlaunch gives srun --ntasks-per-node=1",
            )
        if name in ("-n", "--ntasks"):
            raise UsageError(
                f"--srun-arg {word}: the number of tasks is the number of nodes", hint="use --nnodes for fewer nodes"
            )
        if name in ("--pty", "--multi-prog"):
            raise UsageError(f"--srun-arg {word} does not go with a launch", hint="leave it out")


def needed(situation: Situation, srun_args: Sequence[str] = ()) -> bool:
    """Whether the launch has to go through srun: not on the one node that is allocated, unless srun is to do more
    there than start a task (a container)."""
    if not situation.needs_srun:
        return False
    alone = (situation.nnodes or 1) == 1 and situation.nodelist == (situation.hostname.partition(".")[0],)
    return bool(srun_args) or not alone

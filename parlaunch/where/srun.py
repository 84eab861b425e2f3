"""The srun that a batch script or an salloc shell becomes: one task a node, and everything dies together. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from parlaunch.errors import UsageError
from parlaunch.where.situation import Situation

CONTAINER = ("--container-image", "--container-name", "--container")
"""Options of pyxis and of Slurm's own OCI support: the tasks run in another file system than this script."""


STARTS_WITHOUT = (
    "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_BIND", "SLURM_NTASKS_PER_NODE",
    "SLURM_STEP_GPUS",
)  # fmt: skip
"""What srun reads from the environment beside its options, and what one task a node contradicts: the step would be refused
("gres_per_task=gpu:8 is more than the job's gres_per_task=gpu:1"), or get the GPUs of one task."""


def command(
    situation: Situation,
    *,
    own_argv: Sequence[str],
    srun_args: Sequence[str] = (),
    in_container: Sequence[str] = ("parlaunch",),
) -> list[str]:
    """srun's argv with parlaunch behind it. `own_argv` is how this process was started; what stands behind the program
    goes on unchanged, since argv needs no quoting. The user's `srun_args` come last of srun's: srun takes the last word.

    `own_argv` begins with `PYTHON -P -m parlaunch`; inside a container that interpreter need not exist, so `in_container`
    takes its place there. Raises UsageError for an option of srun that would start something else than one task a node.
    """
    args = [word for given in srun_args for word in _words(given)]
    _check(args)
    program = list(own_argv)
    if _in_container(args) and program[1:4] == ["-P", "-m", "parlaunch"]:
        program[:4] = in_container
    if (situation.nnodes or 1) < len(situation.nodelist) or not situation.components:
        return ["srun", *_options(situation, situation.nnodes or 1), *args, *program]
    if ":" in program:
        raise UsageError(
            "a lone `:` on the command line would part it for srun, which starts a heterogeneous job so",
            hint="start it with an srun of your own: srun --het-group=0-1 --ntasks-per-node=1 parlaunch ...",
        )
    argv = ["srun"]
    for number, names in enumerate(situation.components):
        parted = [":"] if number else []
        argv += [*parted, f"--het-group={number}", *_options(situation, len(names)), *args, *program]
    return argv


def _options(situation: Situation, nodes: int) -> list[str]:
    """srun's own words for so many nodes."""
    argv = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # Without it a healthy node waits 300 s in torchrun's exit barrier for one that is gone.
    argv.append("--kill-on-bad-exit=1")
    # One task holds the whole node; left alone, task/affinity may bind it, and every rank below it, to one core.
    argv.append("--cpu-bind=none")
    argv += _share(situation)
    if situation.overlap:
        argv.append("--overlap")  # the step that holds this shell has the resources; a second one would wait for ever
    if situation.export_none:
        argv.append("--export=ALL")  # what the script set up (modules, a virtual environment) has to reach the tasks
    return argv


def _words(given: str) -> list[str]:
    """One `--srun-arg` as srun's words: `--container-image=x` is one, `--container-image x` two; the rest stays whole,
    blanks and all, because a value may hold them."""
    match = re.fullmatch(r"(--?[\w-]+)\s+(\S.*)", given.strip(), re.DOTALL)
    return [match[1], match[2]] if match and "=" not in match[1] else [given.strip()]


def _share(situation: Situation) -> list[str]:
    """What was asked for each of several tasks, now for the one: srun does not read SLURM_CPUS_PER_TASK (since 22.05), and a
    step of one task may not ask for more GPUs a task than the job did, but for all GPUs of the node."""
    tasks = situation.ntasks_per_node or 1
    share = []
    if situation.cpus_per_task is not None:
        share.append(f"--cpus-per-task={situation.cpus_per_task * tasks}")
    if situation.gpus_per_task is not None:
        share.append(f"--gpus-per-node={situation.gpus_local or situation.gpus_per_task * tasks}")
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


def start(situation: Situation, own_argv: Sequence[str], args: Sequence[str]) -> list[str] | None:
    """The srun of a batch script or a shell; None where srun would change nothing."""
    return command(situation, own_argv=own_argv, srun_args=args) if needed(situation, args) else None


def needed(situation: Situation, srun_args: Sequence[str] = ()) -> bool:
    """Whether the launch of a batch script or a shell has to go through srun: not on the one node that is allocated, unless
    srun is to do more there than start a task (a container)."""
    alone = (situation.nnodes or 1) == 1 and situation.nodelist == (situation.hostname.partition(".")[0],)
    return bool(srun_args) or not alone

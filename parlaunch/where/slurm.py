"""Slurm: a task of a step, a batch script, or a shell inside an allocation.

Variables alone lie: a batch script that was submitted from inside a step inherits that step's SLURM_STEP_*, and an salloc
shell on a login node has SLURM_* without being one of the nodes. What does tell: slurmstepd sets SLURM_UMASK in the tasks
of a step and removes it from batch, interactive and extern steps (`set_umask` in its ulimits.c), and it stands among the
ancestors under the name of the step, `slurmstepd: [7.batch]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from parlaunch.where import srun
from parlaunch.where.nodelist import counts, hostnames
from parlaunch.where.situation import Place, Scheduler, Seen, Situation, number

INTERACTIVE_STEP = "4294967290"  # SLURM_STEP_ID of a shell that salloc opened on the first node

_STEPD = re.compile(r"slurmstepd: \[(\d+)(?:[+_]\d+)?\.(\w+)\]")


def recognise(seen: Seen) -> Situation | None:
    """A job's variables, sorted by who set them."""
    environ, hostname, ancestors = seen.environ, seen.hostname, seen.ancestors
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if job is None or nodes is None:
        return None
    stepd = _step_daemon(ancestors)
    if stepd is not None and stepd[0] != job and stepd[1] in ("batch", "interactive"):
        # A script that exports another job's variables by hand: the daemon knows which job this is.
        note = f"SLURM_JOB_ID is {job}, but Slurm runs this process for job {stepd[0]}: the variables are another job's"
        return replace(_slurm_shell(environ, hostname, stepd[0], nodes, "slurm-batch", stepd[1]), notes=(note,))
    if stepd is not None:
        kind = "slurm-step" if stepd[1].isdigit() else "slurm-batch" if stepd[1] == "batch" else "slurm-salloc"
        why = f"slurmstepd [{job}.{stepd[1]}] started it"
    elif "SLURM_UMASK" in environ and ("SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ):
        kind, why = "slurm-step", "SLURM_UMASK is set, as in tasks of a step only"
    elif environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID")) == INTERACTIVE_STEP:
        kind, why = "slurm-salloc", "SLURM_STEP_ID is that of an interactive step"
    elif "SLURMD_NODENAME" not in environ and "SLURM_PROCID" not in environ:
        kind, why = "slurm-salloc", "SLURM_JOB_ID is set, SLURM_PROCID is not"
    elif _is_task(environ):
        kind, why = "slurm-step", "the step's variables agree with this node"
    else:
        kind, why = "slurm-batch", "SLURM_PROCID is set without a step of all nodes"
    if kind == "slurm-step":
        return _slurm_step(seen, job, nodes, why)
    return _slurm_shell(environ, hostname, job, nodes, kind, why)


def _step_daemon(ancestors: Sequence[str]) -> tuple[str, str] | None:
    """(job, step) of the nearest slurmstepd above us."""
    for command in ancestors:
        if match := _STEPD.match(command):
            return match[1], match[2]
    return None


def _is_task(environ: Mapping[str, str]) -> bool:
    """Whether the step's variables fit this node: a script submitted from a step carries those of another step."""
    step, node, rank = (environ.get(f"SLURM{n}") for n in ("_STEP_NODELIST", "D_NODENAME", "_NODEID"))
    if step is None or rank is None or not rank.isdigit():
        return False
    if environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES")) != environ.get("SLURM_NNODES"):
        return False
    names = hostnames(step)
    return int(rank) < len(names) and node in (None, names[int(rank)])


def _slurm_step(seen: Seen, job: str, nodes: str, why: str) -> Situation:
    environ, hostname, ancestors = seen.environ, seen.hostname, seen.ancestors
    # Inside a step the job's own list may be longer: SLURM_STEP_NODELIST is the list that SLURM_NODEID counts in.
    names = hostnames(environ.get("SLURM_STEP_NODELIST") or nodes)
    nnodes = number(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES") or len(names)
    shell = _interactive_shell(environ, ancestors)
    if shell is not None and nnodes > 1:
        why = f"srun --pty opened the shell `{shell}` on the first node only"
        return replace(_slurm_shell(environ, hostname, job, nodes, "slurm-salloc", why), overlap=True)
    rank, job_nodes = number(environ, "SLURM_NODEID"), _components(environ)
    notes: tuple[str, ...] = ()
    if nnodes < sum(map(len, job_nodes)):
        notes = (
            f"this job has {len(job_nodes)} components and this step holds {nnodes} of their "
            f"{sum(map(len, job_nodes))} nodes; srun --het-group=0-{len(job_nodes) - 1} starts it on all",
        )
    elif nnodes < (whole := len(hostnames(nodes))) and seen.wanted is None:
        notes = (
            f"this step has {nnodes} of the {whole} nodes of its job; srun --nodes={whole} --ntasks-per-node=1 starts it on all",
        )
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    here = counts(tasks) if tasks else ()
    common = _common(environ, job)
    own, all_here = len(_items(environ.get("SLURM_STEP_GPUS"))), common["gpus_local"] or 0
    if max(here, default=1) > 1 and 0 < own < all_here:
        # Each task sees its own GPUs only: a step beside this one, with one task a node, sees all of them.
        why = f"each task of the step sees {own} of {all_here} GPUs (SLURM_STEP_GPUS)"
        first = _slurm_shell(environ, hostname, job, nodes, "slurm-tasks", why)
        return replace(
            first, nodelist=names, nnodes=nnodes, master=names[0], local_id=number(environ, "SLURM_PROCID"),
            node_rank=rank, ntasks_per_node=max(here), gpus_per_task=own, overlap=True, notes=notes,
        )  # fmt: skip
    return Situation(
        kind="slurm-step", why=why, hostname=hostname, node_rank=rank, nnodes=nnodes, nodelist=names,
        local_id=number(environ, "SLURM_LOCALID"),
        ntasks_per_node=here[rank] if rank is not None and rank < len(here) else None,
        master=names[0], launch_address=environ.get("SLURM_LAUNCH_NODE_IPADDR"), notes=notes, **common,
    )  # fmt: skip


def _slurm_shell(environ: Mapping[str, str], hostname: str, job: str, nodes: str, kind: str, why: str) -> Situation:
    components = _components(environ)
    names = tuple(name for part in components for name in part) or hostnames(nodes)
    notes: tuple[str, ...] = ()
    tasks = number(environ, "SLURM_NTASKS_PER_NODE")
    if tasks is not None and tasks > 1:
        notes = (f"SLURM_NTASKS_PER_NODE is {tasks}; torchrun starts the ranks, so srun gets one task a node",)
    return Situation(
        kind=kind, why=why, hostname=hostname, node_rank=None, nnodes=len(names), nodelist=names, ntasks_per_node=tasks,
        components=components, master=names[0], notes=notes, **_common(environ, job),
    )  # fmt: skip


def _items(text: str | None) -> tuple[str, ...]:
    """The items of `0,1,2`."""
    return tuple(item for item in (text or "").split(",") if item)


def _components(environ: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The nodes of each component of a heterogeneous job; empty for any other. Batch scripts and steps have them all."""
    size = number(environ, "SLURM_HET_SIZE") or 0
    lists = [environ.get(f"SLURM_JOB_NODELIST_HET_GROUP_{k}") for k in range(size)]
    return tuple(hostnames(nodes) for nodes in lists if nodes) if size > 1 and all(lists) else ()


def _common(environ: Mapping[str, str], job: str) -> dict[str, Any]:
    return {
        "job_id": job,
        "step_id": environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID"),
        "restart_count": number(environ, "SLURM_RESTART_COUNT") or 0,
        "gpus_local": number(environ, "SLURM_GPUS_ON_NODE"),
        "cpus_per_task": number(environ, "SLURM_CPUS_PER_TASK"),
        "gpus_per_task": number(environ, "SLURM_GPUS_PER_TASK"),
        "switch": environ.get("SLURM_TOPOLOGY_ADDR"),
        "export_none": environ.get("SLURM_EXPORT_ENV") == "NONE",
    }


def _interactive_shell(environ: Mapping[str, str], ancestors: Sequence[str]) -> str | None:
    """The command of the shell that `srun --pty` opened and in which somebody types; SLURM_PTY_PORT alone is inherited
    by steps started from there, whose task is no interactive shell."""
    if "SLURM_PTY_PORT" not in environ:
        return None
    for below, command in pairwise(ancestors):
        if _STEPD.match(command):
            words = below.split()
            shell = words[0].lstrip("-").rsplit("/", 1)[-1] if words else ""
            typed = all(w.startswith("-") and w != "-c" for w in words[1:])
            return below if shell in ("bash", "sh", "zsh", "fish", "tcsh", "csh", "dash", "ksh") and typed else None
    return None


SLURM = Scheduler(
    places={
        "slurm-step": Place(
            words="a task of a Slurm step",
            first_by_list=True,
            knows_itself_as_loopback=True,
            runs_again=True,
            one_log=True,
            signals_all=True,
            once_a_node="start parlaunch once a node: srun --ntasks-per-node=1",
        ),
        "slurm-tasks": Place(
            words="one of several tasks a node of a Slurm step, each with GPUs of its own",
            starter="srun",
            runs_again=True,
            one_log=True,
            signals_all=True,
        ),
        "slurm-batch": Place(words="a Slurm batch script", starter="srun", runs_again=True, signals_all=True),
        "slurm-salloc": Place(
            words="a shell inside a Slurm allocation", starter="srun", runs_again=True, signals_all=True
        ),
    },
    recognise=recognise,
    start=srun.start,
    starts_without=srun.STARTS_WITHOUT,
)

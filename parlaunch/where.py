"""Where parlaunch stands: which launcher started it, on how many nodes, and which of them this is.

A pure function of the environment and a few facts. Variables alone lie: a batch script that was submitted from inside a
step inherits that step's SLURM_STEP_*, an mpirun under Slurm rewrites SLURM_NNODES, and an salloc shell on a login node
has SLURM_* without being one of the nodes. What does tell: slurmstepd sets SLURM_UMASK in the tasks of a step and
removes it from batch, interactive and extern steps (`set_umask` in its ulimits.c), and it stands among the ancestors
under the name of the step, `slurmstepd: [7.batch]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.nodelist import counts, hostnames, short

KINDS = {
    "slurm-step": "a task of a Slurm step",
    "slurm-batch": "a Slurm batch script",
    "slurm-salloc": "a shell inside a Slurm allocation",
    "pytorchjob": "a pod of a Kubernetes training job",
    "mpi": "a process of an MPI launcher",
    "torchrun": "one node of a job that was described as for torchrun",
    "single": "one machine",
}

INTERACTIVE_STEP = "4294967290"  # SLURM_STEP_ID of a shell that salloc opened on the first node

_STEPD = re.compile(r"slurmstepd: \[(\d+)(?:[+_]\d+)?\.(\w+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Who started us, and our place among the nodes. None: not known, or it does not apply."""

    kind: str  # one of KINDS
    why: str  # the variables that say so
    hostname: str
    node_rank: int | None = None  # as the launcher numbers the nodes; the plan may number them anew
    nnodes: int | None = None
    nodelist: tuple[str, ...] = ()  # in the launcher's order
    local_id: int | None = None  # which of the launcher's processes on this node
    ntasks_per_node: int | None = None
    master: str | None = None  # name or address of the node where all meet
    port: int | None = None  # as the user or the launcher fixed it; None: ours to choose
    restart_count: int = 0
    gpus_local: int | None = None  # as the launcher counts them
    job_id: str | None = None
    step_id: str | None = None
    overlap: bool = False  # a step of ours holds the resources already: srun needs --overlap
    launch_address: str | None = None  # where srun stands: the first node's, when a batch script there called it
    cpus_per_task: int | None = None  # as asked of sbatch or salloc; srun does not take it from there
    gpus_per_task: int | None = None
    switch: str | None = None  # the switches above this node: SLURM_TOPOLOGY_ADDR
    export_none: bool = False  # sbatch --export=NONE: an srun inside would hand on nothing
    notes: tuple[str, ...] = ()

    @property
    def needs_srun(self) -> bool:
        """Whether the tasks of this job have still to be started."""
        return self.kind in ("slurm-batch", "slurm-salloc")

    @property
    def token(self) -> str:
        """What tells this job, and this run of it after a requeue, from all others on the same hosts."""
        return f"{self.job_id or self.kind}.{self.step_id or 0}.{self.restart_count}"


def where(
    environ: Mapping[str, str],
    *,
    hostname: str,
    ancestors: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Situation:
    """The situation. `ancestors` are the command lines of our parents, nearest first; `flags` are torchrun's options as
    typed (`nnodes`, `node_rank`, `master_addr`, `master_port`, `rdzv_endpoint`, …), None where not given.

    Raises UsageError for numbers that cannot be: a node rank outside the nodes, a node count that the launcher contradicts.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    wanted = _nnodes(given.get("nnodes"))
    if "TORCHELASTIC_RUN_ID" in environ and "LOCAL_RANK" in environ:
        return _inside_torchrun(environ, hostname)
    if "node_rank" in given or "rdzv_endpoint" in given or ("master_addr" in given and (wanted or 1) > 1):
        return _from_flags(environ, hostname, given, wanted)
    for recognise in (_mpi, _slurm, _kubernetes, _variables):
        found = recognise(environ, hostname, ancestors)
        if found is not None:
            return _with_flags(found, given, wanted)
    if wanted is not None and wanted > 1:
        return Situation(kind="torchrun", why=f"--nnodes {wanted}", hostname=hostname, nnodes=wanted)
    return Situation(
        kind="single", why="no launcher's variables are set", hostname=hostname, node_rank=0, nnodes=1,
        port=given.get("master_port"),
    )  # fmt: skip


def explain(situation: Situation) -> str:
    """What was recognised and why, one fact a line."""
    s = situation
    lines = [f"here: {KINDS[s.kind]} ({s.why})"]
    if s.nnodes is not None:
        place = "" if s.node_rank is None or s.needs_srun else f", this is number {s.node_rank}"
        of = " of" if len(s.nodelist) > s.nnodes else ":"
        names = f"{of} {short(s.nodelist)}" if s.nodelist else ""
        lines.append(f"  nodes: {s.nnodes}{place}{names}")
    lines.append(f"  host: {s.hostname}")
    if s.needs_srun:
        lines.append(
            "  srun starts one task a node" + (", beside the step that is here (--overlap)" if s.overlap else "")
        )
    if s.master is not None and (s.nnodes or 1) > 1 and not s.needs_srun:
        port = "" if s.port is None else f", port {s.port}"
        lines.append(f"  meeting at: {s.master}{port}")
    if s.local_id:
        lines.append(f"  process {s.local_id} of this node: process 0 launches")
    if s.job_id is not None:
        restarts = f", restarted {s.restart_count} times" if s.restart_count else ""
        lines.append(f"  job: {s.job_id}{restarts}")
    if s.gpus_local is not None:
        lines.append(f"  GPUs of this node, says the launcher: {s.gpus_local}")
    return "\n".join([*lines, *(f"  note: {n}" for n in s.notes)])


# ------------------------------------------------------------------ Slurm


def _slurm(environ: Mapping[str, str], hostname: str, ancestors: Sequence[str]) -> Situation | None:
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
        return _slurm_step(environ, hostname, job, nodes, why, ancestors)
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


def _slurm_step(
    environ: Mapping[str, str], hostname: str, job: str, nodes: str, why: str, ancestors: Sequence[str]
) -> Situation:
    # Inside a step the job's own list may be longer: SLURM_STEP_NODELIST is the list that SLURM_NODEID counts in.
    names = hostnames(environ.get("SLURM_STEP_NODELIST") or nodes)
    nnodes = _number(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES") or len(names)
    shell = _interactive_shell(environ, ancestors)
    if shell is not None and nnodes > 1:
        why = f"srun --pty opened the shell `{shell}` on the first node only"
        return replace(_slurm_shell(environ, hostname, job, nodes, "slurm-salloc", why), overlap=True)
    rank = _number(environ, "SLURM_NODEID")
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    here = counts(tasks) if tasks else ()
    return Situation(
        kind="slurm-step", why=why, hostname=hostname, node_rank=rank, nnodes=nnodes, nodelist=names,
        local_id=_number(environ, "SLURM_LOCALID"),
        ntasks_per_node=here[rank] if rank is not None and rank < len(here) else None,
        master=names[0], launch_address=environ.get("SLURM_LAUNCH_NODE_IPADDR"), **_common(environ, job),
    )  # fmt: skip


def _slurm_shell(environ: Mapping[str, str], hostname: str, job: str, nodes: str, kind: str, why: str) -> Situation:
    names = hostnames(nodes)
    notes: tuple[str, ...] = ()
    tasks = _number(environ, "SLURM_NTASKS_PER_NODE")
    if tasks is not None and tasks > 1:
        notes = (f"SLURM_NTASKS_PER_NODE is {tasks}; torchrun starts the ranks, so srun gets one task a node",)
    return Situation(
        kind=kind, why=why, hostname=hostname, node_rank=None, nnodes=len(names), nodelist=names, ntasks_per_node=tasks,
        master=names[0], notes=notes, **_common(environ, job),
    )  # fmt: skip


def _common(environ: Mapping[str, str], job: str) -> dict[str, Any]:
    return {
        "job_id": job,
        "step_id": environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID"),
        "restart_count": _number(environ, "SLURM_RESTART_COUNT") or 0,
        "gpus_local": _number(environ, "SLURM_GPUS_ON_NODE"),
        "cpus_per_task": _number(environ, "SLURM_CPUS_PER_TASK"),
        "gpus_per_task": _number(environ, "SLURM_GPUS_PER_TASK"),
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


# ------------------------------------------------------------------ MPI

# (name, rank, size, local rank, local size), from each launcher's documentation. PMIx alone gives no size.
_MPI: tuple[tuple[str, str, str, str, str], ...] = (
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("Hydra (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PALS", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
)  # fmt: skip


def _mpi(environ: Mapping[str, str], hostname: str, ancestors: Sequence[str]) -> Situation | None:
    for name, rank_name, size_name, local_name, local_size_name in _MPI:
        rank, size = _number(environ, rank_name), _number(environ, size_name)
        if rank is None or size is None:
            continue
        if rank_name == "PMI_RANK" and "SLURM_UMASK" in environ and "MPI_LOCALRANKID" not in environ:
            continue  # srun --mpi=pmi2 sets PMI_RANK too: that is a step
        local, here = _number(environ, local_name) or 0, _number(environ, local_size_name) or 1
        if size % here:
            raise UsageError(
                f"{name} started {size} processes, {here} of them on this node: the nodes have different numbers",
                hint="start one process a node: mpirun --map-by ppr:1:node",
            )
        nodes = size // here
        listed = environ.get("SLURM_JOB_NODELIST")
        master = environ.get("MASTER_ADDR") or (hostnames(listed)[0] if listed else None)
        return Situation(
            kind="mpi", why=f"{rank_name}={rank} and {size_name}={size} ({name})", hostname=hostname,
            node_rank=rank // here, nnodes=nodes, local_id=local, ntasks_per_node=here, master=master,
            port=_number(environ, "MASTER_PORT"), job_id=environ.get("SLURM_JOB_ID") or _pmix_job(environ),
            restart_count=_number(environ, "SLURM_RESTART_COUNT") or 0,
        )  # fmt: skip
    return None


def _pmix_job(environ: Mapping[str, str]) -> str | None:
    return environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid")


# ------------------------------------------------------------------ Kubernetes, torchrun's variables, flags


def _kubernetes(environ: Mapping[str, str], hostname: str, ancestors: Sequence[str]) -> Situation | None:
    """Kubeflow's training operator and trainer, and Volcano's pytorch plugin."""
    if not any(name in environ for name in ("KUBERNETES_SERVICE_HOST", "PET_NODE_RANK", "VC_TASK_INDEX")):
        return None
    master = environ.get("PET_MASTER_ADDR") or environ.get("MASTER_ADDR")
    # The operator's WORLD_SIZE counts processes (pods × nprocPerNode) where it sets PET_NNODES, and pods where it does not.
    nodes = _nnodes(environ.get("PET_NNODES")) or _number(environ, "WORLD_SIZE")
    rank = _number(environ, "PET_NODE_RANK", "RANK")
    endpoint = environ.get("PET_RDZV_ENDPOINT")
    if endpoint and rank is None:
        return _at_endpoint(environ, hostname, endpoint, nodes, "pytorchjob", f"PET_RDZV_ENDPOINT={endpoint}")
    if master is None or nodes is None or rank is None:
        return None
    by = "Volcano" if "VC_TASK_INDEX" in environ or "VK_TASK_INDEX" in environ else "Kubeflow"
    named = "PET_NODE_RANK" if "PET_NODE_RANK" in environ else "RANK"
    return _checked(Situation(
        kind="pytorchjob", why=f"{named}={rank} of {nodes} pods, set by {by}", hostname=hostname, node_rank=rank,
        nnodes=nodes, master=master, port=_number(environ, "PET_MASTER_PORT", "MASTER_PORT"),
        job_id=environ.get("PET_RDZV_ID"),
    ), named)  # fmt: skip


def _variables(environ: Mapping[str, str], hostname: str, ancestors: Sequence[str]) -> Situation | None:
    """MASTER_ADDR with a rank a node, as platforms and hand-written scripts set them."""
    master = environ.get("MASTER_ADDR")
    for rank_name, nodes_name in (("NODE_RANK", "NNODES"), ("PET_NODE_RANK", "PET_NNODES"), ("RANK", "WORLD_SIZE")):
        rank, nodes = _number(environ, rank_name), _nnodes(environ.get(nodes_name))
        if master is None or rank is None or nodes is None or nodes < 2:
            continue
        return _checked(Situation(
            kind="torchrun", why=f"MASTER_ADDR, {rank_name} and {nodes_name} are set", hostname=hostname, node_rank=rank,
            nnodes=nodes, master=master, port=_number(environ, "MASTER_PORT"),
        ), rank_name)  # fmt: skip
    return None


def _from_flags(environ: Mapping[str, str], hostname: str, given: Mapping[str, Any], wanted: int | None) -> Situation:
    nodes = wanted or 1
    rank, endpoint = given.get("node_rank"), given.get("rdzv_endpoint")
    if endpoint is not None and rank is None:
        return _at_endpoint(environ, hostname, endpoint, nodes, "torchrun", f"--rdzv-endpoint {endpoint}")
    master, port = given.get("master_addr"), given.get("master_port")
    if endpoint is not None:
        master, port = _host_port(endpoint)
    if rank is None and nodes > 1:
        rank = _number(environ, "NODE_RANK", "SLURM_NODEID")
        if rank is None:
            raise UsageError(
                f"--nnodes {nodes} is given without --node-rank", hint="give each node its number, 0 for the first"
            )
    master = master or environ.get("MASTER_ADDR")
    if master is None and nodes > 1:
        raise UsageError(
            f"--nnodes {nodes} is given without --master-addr", hint="name the first node: --master-addr gpu01"
        )
    why = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items() if name != "nproc_per_node")
    return _checked(Situation(
        kind="torchrun" if nodes > 1 else "single", why=why, hostname=hostname, node_rank=rank or 0, nnodes=nodes,
        master=master, port=port if port is not None else _number(environ, "MASTER_PORT"), job_id=given.get("rdzv_id"),
    ), "--node-rank")  # fmt: skip


def _at_endpoint(
    environ: Mapping[str, str], hostname: str, endpoint: str, nodes: int | None, kind: str, why: str
) -> Situation:
    """A rendezvous that numbers the nodes itself: no rank of our own."""
    master, port = _host_port(endpoint)
    return Situation(
        kind=kind if (nodes or 1) > 1 else "single", why=why, hostname=hostname, node_rank=None, nnodes=nodes or 1,
        master=master, port=port, job_id=environ.get("PET_RDZV_ID"),
    )  # fmt: skip


def _inside_torchrun(environ: Mapping[str, str], hostname: str) -> Situation:
    local = _number(environ, "LOCAL_RANK") or 0
    nodes = _number(environ, "GROUP_WORLD_SIZE") or 1
    note = "torchrun started this process; start parlaunch once a node in its place"
    return Situation(
        kind="torchrun" if nodes > 1 else "single", why="TORCHELASTIC_RUN_ID and LOCAL_RANK are set", hostname=hostname,
        node_rank=_number(environ, "GROUP_RANK") or 0, nnodes=nodes, local_id=local,
        ntasks_per_node=_number(environ, "LOCAL_WORLD_SIZE"), master=environ.get("MASTER_ADDR"),
        job_id=environ.get("TORCHELASTIC_RUN_ID"), notes=(note,),
    )  # fmt: skip


def _with_flags(found: Situation, given: Mapping[str, Any], wanted: int | None) -> Situation:
    """What the launcher says, with what the command line adds."""
    changes: dict[str, Any] = {}
    if "master_addr" in given:
        changes["master"] = given["master_addr"]
    if "master_port" in given:
        changes["port"] = given["master_port"]
    if wanted is not None and wanted != found.nnodes:
        if not found.needs_srun or wanted > (found.nnodes or 1):
            raise UsageError(
                f"--nnodes {wanted} contradicts {KINDS[found.kind]} with {found.nnodes} ({found.why})",
                hint="leave --nnodes out; the launcher says how many there are",
            )
        changes["nnodes"] = wanted  # srun takes as many of the allocation
    return replace(found, **changes)


def _checked(situation: Situation, named: str) -> Situation:
    rank, nodes = situation.node_rank, situation.nnodes
    if rank is not None and nodes is not None and not 0 <= rank < nodes:
        raise UsageError(
            f"{named} {rank} is outside the {nodes} node{'s' if nodes > 1 else ''} of this job",
            hint=f"nodes are numbered 0 to {nodes - 1}",
        )
    return situation


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    """The first of the variables that is set and a whole number. Counts of some sites carry a type (`h100:8`)."""
    for name in names:
        text = environ.get(name, "").rsplit(":", 1)[-1].strip()
        if text.isdigit():
            return int(text)
    return None


def _nnodes(text: Any) -> int | None:
    """Nodes of `4` or `2:4`: the job starts with what it is promised, the upper end."""
    if text is None or text == "":
        return None
    parts = str(text).split(":")
    if len(parts) > 2 or not all(p.isdigit() and int(p) > 0 for p in parts) or int(parts[0]) > int(parts[-1]):
        raise UsageError(f"--nnodes {text} is no count of nodes", hint="for example --nnodes 4")
    return int(parts[-1])


def _host_port(endpoint: str) -> tuple[str, int | None]:
    """Host and port of `gpu01:29400`, `[fd00::1]:29400`, `gpu01` or `fd00::1`."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?", endpoint)
    if match is not None:
        return match[1] or match[2], int(match[3]) if match[3] else None
    try:
        return str(IPv6Address(endpoint)), None
    except ValueError:
        raise UsageError(
            f"the rendezvous endpoint {endpoint!r} is not HOST:PORT", hint="for example gpu01:29400"
        ) from None

"""mpirun and its kin: ranks, sizes and local ranks under each launcher's own names. They rewrite some of Slurm's variables."""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.errors import UsageError
from parlaunch.where.nodelist import hostnames
from parlaunch.where.situation import Place, Scheduler, Seen, Situation, number

# (name, rank, size, local rank, local size, how it starts one process a node), from each launcher's documentation. PMIx alone
# gives no size.
LAUNCHERS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "mpirun --map-by ppr:1:node"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE", "mpirun -ppn 1"),
    # It sets PMI's variables beside its own, and says how many nodes there are, not how many tasks this one has.
    ("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_NNODES", "flux run --nodes=N --tasks-per-node=1"),
    ("Hydra (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "mpirun -ppn 1"),
    ("PALS", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", "mpiexec --ppn 1"),
)  # fmt: skip


def recognise(seen: Seen) -> Situation | None:
    """The node by its place among the processes."""
    environ, hostname = seen.environ, seen.hostname
    for name, rank_name, size_name, local_name, local_size_name, one in LAUNCHERS:
        rank, size = number(environ, rank_name), number(environ, size_name)
        if rank is None or size is None:
            continue
        if rank_name == "PMI_RANK" and "SLURM_UMASK" in environ and "MPI_LOCALRANKID" not in environ:
            continue  # srun --mpi=pmi2 sets PMI_RANK too: that is a step
        local, told = number(environ, local_name) or 0, number(environ, local_size_name) or 1
        if size % told:
            where = f"on {told} nodes" if name == "Flux" else f"{told} of them on this node"
            raise UsageError(
                f"{name} started {size} processes, {where}: the nodes have different numbers",
                hint=f"start one process a node: {one}",
            )
        nodes, here = (told, size // told) if name == "Flux" else (size // told, told)
        listed = environ.get("SLURM_JOB_NODELIST")
        master = environ.get("MASTER_ADDR") or (hostnames(listed)[0] if listed else None)
        return Situation(
            kind="mpi", why=f"{rank_name}={rank} and {size_name}={size} ({name})", hostname=hostname,
            node_rank=rank // here, nnodes=nodes, local_id=local, ntasks_per_node=here, master=master,
            port=number(environ, "MASTER_PORT"), job_id=environ.get("SLURM_JOB_ID") or _own_job(environ),
            restart_count=number(environ, "SLURM_RESTART_COUNT") or 0,
        )  # fmt: skip
    return None


def _own_job(environ: Mapping[str, str]) -> str | None:
    return environ.get("FLUX_JOB_ID") or environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid")


_ONE = "; ".join(f"{one} ({name.partition(' (')[0]})" for name, *_, one in LAUNCHERS)

MPI = Scheduler(
    places={
        "mpi": Place(
            words="a process of an MPI launcher",
            one_log=True,
            once_a_node=f"start parlaunch once a node: {_ONE}",
            hands_on="Open MPI hands it to other nodes with mpirun -x PARLAUNCH_SECRET",
        )
    },
    recognise=recognise,
)

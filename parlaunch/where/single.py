"""One machine: nobody started us but a shell."""

from __future__ import annotations

from parlaunch.where.nodelist import short
from parlaunch.where.situation import Place, Scheduler, Seen, Situation


def recognise(seen: Seen) -> Situation:
    """This machine, whatever is set. A job's script runs on one of its nodes, and nobody else starts us on the others."""
    notes: tuple[str, ...] = ()
    if seen.wanted is None and len(seen.hosts) > 1:
        notes = (
            f"this job has {len(seen.hosts)} hosts ({short(seen.hosts)}), and this launch takes one of them; its mpirun or mpiexec, "
            "one process a host and MASTER_ADDR set, starts parlaunch on all",
        )
    return Situation(
        kind="single", why="no launcher's variables are set", hostname=seen.hostname, node_rank=0, nnodes=1,
        port=seen.flags.get("master_port"), notes=notes,
    )  # fmt: skip


SINGLE = Scheduler(places={"single": Place(words="one machine")}, recognise=recognise, heeds_flags=False)

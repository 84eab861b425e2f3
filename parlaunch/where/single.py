"""One machine: nobody started us but a shell."""

from __future__ import annotations

from parlaunch.where.situation import Place, Scheduler, Seen, Situation


def recognise(seen: Seen) -> Situation:
    """This machine, whatever is set."""
    return Situation(
        kind="single", why="no launcher's variables are set", hostname=seen.hostname, node_rank=0, nnodes=1,
        port=seen.flags.get("master_port"),
    )  # fmt: skip


SINGLE = Scheduler(places={"single": Place(words="one machine")}, recognise=recognise, heeds_flags=False)

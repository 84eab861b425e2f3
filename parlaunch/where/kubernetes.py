"""Kubernetes: pods of Kubeflow's training operator and trainer, and of Volcano's pytorch plugin."""

from __future__ import annotations

from parlaunch.where.situation import Place, Scheduler, Seen, Situation, checked, nnodes, number
from parlaunch.where.torchrun import at_endpoint


def recognise(seen: Seen) -> Situation | None:
    """A pod by its number among the pods."""
    environ, hostname = seen.environ, seen.hostname
    if not any(name in environ for name in ("KUBERNETES_SERVICE_HOST", "PET_NODE_RANK", "VC_TASK_INDEX")):
        return None
    master = environ.get("PET_MASTER_ADDR") or environ.get("MASTER_ADDR")
    # The operator's WORLD_SIZE counts processes (pods × nprocPerNode) where it sets PET_NNODES, and pods where it does not.
    nodes = nnodes(environ.get("PET_NNODES"), "PET_NNODES") or number(environ, "WORLD_SIZE")
    rank = number(environ, "PET_NODE_RANK", "RANK")
    endpoint = environ.get("PET_RDZV_ENDPOINT")
    if endpoint and rank is None:
        return at_endpoint(environ, hostname, endpoint, nodes, "pytorchjob", f"PET_RDZV_ENDPOINT={endpoint}")
    if master is None or nodes is None or rank is None:
        return None
    by = "Volcano" if "VC_TASK_INDEX" in environ or "VK_TASK_INDEX" in environ else "Kubeflow"
    named = "PET_NODE_RANK" if "PET_NODE_RANK" in environ else "RANK"
    return checked(Situation(
        kind="pytorchjob", why=f"{named}={rank} of {nodes} pods, set by {by}", hostname=hostname, node_rank=rank,
        nnodes=nodes, master=master, port=number(environ, "PET_MASTER_PORT", "MASTER_PORT"),
        job_id=environ.get("PET_RDZV_ID"),
    ), named)  # fmt: skip


KUBERNETES = Scheduler(
    places={"pytorchjob": Place(words="a pod of a Kubernetes training job", knows_itself_as_loopback=True)},
    recognise=recognise,
)

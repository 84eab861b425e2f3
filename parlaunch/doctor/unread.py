"""What preflight could not look at: unknown, which is no finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parlaunch.doctor.finding import Use
from parlaunch.hardware.cluster import Cluster, Node


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that nobody read, in words, and on which nodes."""

    what: str
    nodes: tuple[str, ...]


def _gpus(node: Node, use: Use) -> bool:
    return gpus_unread(node)


def gpus_unread(node: Node) -> bool:
    """Whether nobody looked for this node's GPUs: a file of another tool, which says nothing of them."""
    return not (node.gpus or node.gpus_unusable or node.gpus_invisible or node.nvml_error) and node.gpus_pci is None


def _kernel_log(node: Node, use: Use) -> bool:
    return bool(node.gpus) and node.xids is None


def _ports(node: Node, use: Use) -> bool:
    return use.spans and bool(node.gpus) and not node.nics


PARTS: tuple[tuple[str, Callable[[Node, Use], bool]], ...] = (
    ("its GPUs were not read", _gpus),
    ("the kernel log may not be read: recent errors of GPUs and NVSwitches are not known", _kernel_log),
    ("its network ports were not read", _ports),
)


def unread(cluster: Cluster, *, nodes: int | None = None) -> tuple[Unread, ...]:
    """What is not known of a cluster; `nodes` is how many the job has, as for `parlaunch.doctor.preflight.examine`."""
    if cluster.source.startswith("preset "):
        return ()  # nobody's machine: there is nothing to read
    use = Use(nodes=nodes or len(cluster.nodes), known=nodes is not None)
    found = ((words, tuple(n.hostname for n in cluster.nodes if missing(n, use))) for words, missing in PARTS)
    return tuple(Unread(words, names) for words, names in found if names)

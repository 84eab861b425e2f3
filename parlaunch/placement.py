"""Who sits where: the order of nodes, the order of GPUs inside a node, and which rank holds which coordinate."""

from __future__ import annotations

from parlaunch.machine import Cluster, Node


def order_nodes(cluster: Cluster) -> Cluster:
    return cluster


def visible_devices(node: Node) -> str | None:
    return None

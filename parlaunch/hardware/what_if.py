"""A machine with some of its numbers changed: what if the fabric were slower, the memory larger, the rack whole?"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster, Node, domains_of
from parlaunch.hardware.rates import Rates
from parlaunch.units import size, speed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the table: a number of the machine, and how another one takes its place."""

    example: str
    of_cluster: Callable[[Cluster, str], Cluster] | None = None
    of_rates: Callable[[Rates, str], Rates] | None = None


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above zero: write 512")
    return int(text)


def _gpus(cluster: Cluster, text: str) -> Cluster:
    gpus, each = _whole(text), cluster.gpus_per_node
    if gpus % each:
        near = max(each, gpus // each * each)
        raise ValueError(f"{gpus} GPUs are no whole nodes of {each}: write {near} or {near + each}")
    return _nodes(cluster, str(gpus // each))


def _nodes(cluster: Cluster, text: str) -> Cluster:
    """So many nodes like the first one; those that share NVLink over nodes fill domains as large as its own."""
    count, first = _whole(text), cluster.nodes[0]
    if count == len(cluster.nodes):
        return cluster
    domain = cluster.nvlink_domain_size if cluster.nvlink_domain_size > cluster.gpus_per_node else 0
    product_domain = max(domain // cluster.gpus_per_node, 1)
    made = tuple(_node(first, at, at // product_domain if domain else None) for at in range(count))
    return _with(cluster, made)


def _node(like: Node, at: int, domain: int | None) -> Node:
    gpus = like.gpus if domain is None else tuple(replace(g, fabric_id=(f"domain-{domain}", 0)) for g in like.gpus)
    return replace(like, hostname=f"node-{at:05d}", gpus=gpus)


def _domain(cluster: Cluster, text: str) -> Cluster:
    """NVLink joins so many consecutive GPUs."""
    wanted, each = _whole(text), cluster.gpus_per_node
    if (wanted % each if wanted > each else each % wanted) or wanted > max(cluster.world_size, each):
        raise ValueError(
            f"{wanted} GPUs are no NVLink domain of nodes with {each}: write a divisor or a multiple of {each}"
        )
    made, number = [], 0
    for node in cluster.nodes:
        gpus = []
        for gpu in node.gpus:
            inside = (number % each) // wanted if wanted < each else 0
            fabric = (f"domain-{number // wanted}", 0) if wanted > each else None
            gpus.append(replace(gpu, nvlink_domain=None if wanted == 1 else inside, fabric_id=fabric))
            number += 1
        made.append(replace(node, gpus=tuple(gpus)))
    return _with(cluster, tuple(made))


def _memory(cluster: Cluster, text: str) -> Cluster:
    bytes_ = round(size(text))
    return _with(
        cluster, tuple(replace(n, gpus=tuple(replace(g, memory_bytes=bytes_) for g in n.gpus)) for n in cluster.nodes)
    )


def _fabric(cluster: Cluster, text: str) -> Cluster:
    return replace(cluster, fabric=replace(cluster.fabric, bytes_per_s_per_gpu=speed(text)))


def _with(cluster: Cluster, nodes: tuple[Node, ...]) -> Cluster:
    return replace(cluster, nodes=nodes, nvlink_domains=domains_of(nodes))


CHANGES: Mapping[str, Change] = {
    "gpus": Change("512", of_cluster=_gpus),
    "nodes": Change("64", of_cluster=_nodes),
    "memory": Change("141GiB", of_cluster=_memory),
    "nvlink_domain": Change("72", of_cluster=_domain),
    "fabric": Change("25GB/s", of_cluster=_fabric),
    "nvlink": Change("450GB/s", of_rates=lambda r, text: replace(r, nvlink_bytes_per_s=speed(text))),
    "hbm": Change(
        "4.8TB/s", of_rates=lambda r, text: replace(r, product=replace(r.product, hbm_bytes_per_s=speed(text)))
    ),
}
"""What may be changed, in the order in which it is: all rates are of one GPU, in one direction."""


def read(text: str) -> dict[str, str]:
    """`fabric=25GB/s,gpus=512` by name. Raises `UsageError` with the nearest name."""
    found = {}
    for part in text.split(","):
        name, mark, value = part.strip().partition("=")
        name = name.strip().lower().replace("-", "_")
        if name not in CHANGES:
            near = difflib.get_close_matches(name, CHANGES, n=2, cutoff=0.5)
            known = ", ".join(f"{n}={c.example}" for n, c in CHANGES.items())
            raise UsageError(
                f"--what-if {text!r}: {name!r} is nothing that can be changed",
                hint=f"did you mean {' or '.join(near)}?" if near else f"for example {known}",
            )
        if not mark or not value.strip():
            raise UsageError(
                f"--what-if {text!r}: {name} needs a value", hint=f"for example {name}={CHANGES[name].example}"
            )
        found[name] = value.strip()
    return found


def changed_cluster(cluster: Cluster, given: Mapping[str, str]) -> Cluster:
    """The machine with these numbers; a number of its rates is `changed_rates`'s. Raises `UsageError` naming what cannot be."""
    for name, change in CHANGES.items():
        if name in given and change.of_cluster is not None:
            cluster = _applied(change.of_cluster, cluster, name, given[name])
    return replace(cluster, source=f"{cluster.source} with {', '.join(f'{n}={v}' for n, v in given.items())}")


def changed_rates(rates: Rates, given: Mapping[str, str]) -> Rates:
    """What the planner computes with, of the changed machine, with the rates that were given."""
    for name, change in CHANGES.items():
        if name in given and change.of_rates is not None:
            rates = _applied(change.of_rates, rates, name, given[name])
    return rates


def _applied(change: Callable[[T, str], T], value: T, name: str, text: str) -> T:
    try:
        return change(value, text)
    except ValueError as error:
        what, _, hint = str(error).partition(": ")
        raise UsageError(f"--what-if {name}={text}: {what}", hint=hint) from error

"""Which CPUs a rank should run on: those beside its GPU. Right, or silent where that cannot be known.

Two ways lead there. torchrun's own `--numa-binding` where the installed torch has it and cannot stop on this machine;
else a list of CPUs a local rank, which `parlaunch_launch.bind` applies in the rank before anything allocates.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Gpu, Node
from parlaunch.hardware.placement import gpu_order, several_numa
from parlaunch.planning.plan import Variable

VARIABLE = "PARLAUNCH_CPUS"
"""CPU lists by local rank, ";" between them; an empty one: that rank stays unbound."""

LEAST_SHARE = 0.5  # of an even share of the CPUs: a rank held to less would be slower than one that roams


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What to do on one node. Neither an option nor CPUs: ranks roam as they are, and `reason` says why."""

    option: str | None = None  # for torchrun's --numa-binding
    roams: bool = False  # though the node has more than one NUMA node, as far as is known
    cpus: tuple[tuple[int, ...] | None, ...] = ()  # by local rank
    reason: str = ""


def numa_option(torch_version: str | None) -> str | None:
    """What to give torchrun's `--numa-binding`; None where the installed torch does not have it (before 2.9), or none
    is known."""
    found = re.match(r"(\d+)\.(\d+)", torch_version or "")
    return "node" if found and (int(found[1]), int(found[2])) >= (2, 9) else None


def decide(node: Node, *, torch_version: str | None = None, numactl: bool = False, wanted: bool = True) -> Binding:
    """The binding of one node's ranks. `numactl`: the command is there, without which torchrun's option stops the launch;
    `wanted` False is `--no-numa`."""
    if not wanted:
        return Binding(reason="not wanted (--no-numa)", roams=several_numa(node))
    ranks = [node.gpus[at] for at in gpu_order(node)]
    if not ranks:
        return Binding(reason="no GPU to be near to")
    allowed = frozenset(_allowed(node))
    if not allowed:
        return Binding(reason="the CPUs this process may use are not known")
    near = [_near(node, gpu, allowed) for gpu in ranks]
    if not any(near):
        return Binding(
            reason="no GPU's NUMA node is known, or has CPUs that this process may use", roams=several_numa(node)
        )
    if all(cpus is None or cpus == allowed for cpus in near):
        return Binding(reason="every CPU is as near as any other")
    fair = len(allowed) / len(ranks)
    sharing = Counter(near)
    cramped = [c for c in near if c is not None and len(c) / sharing[c] < LEAST_SHARE * fair]
    if cramped:
        return Binding(
            reason=f"{len(cramped[0])} of {len(allowed)} CPUs are beside some GPUs, for {sharing[cramped[0]]} of {len(ranks)} ranks: "
            "too few to be held to",
            roams=True,
        )
    option = numa_option(torch_version)
    if option and numactl and all(near):
        wide = _split_sockets(node) is not None
        return Binding(option="socket" if wide else option, reason="torchrun binds each rank to its GPU's NUMA node")
    unknown = near.count(None)
    return Binding(
        cpus=tuple(None if c is None else tuple(sorted(c)) for c in near),
        reason=f"the NUMA node of {unknown} of {len(near)} GPUs is not known, or has no CPUs that this process may use" if unknown
        else "each rank is bound to the CPUs beside its GPU before anything allocates",
        roams=unknown > 0 and several_numa(node),
    )  # fmt: skip


def _allowed(node: Node) -> Iterable[int]:
    if node.cpus_allowed is not None:
        return node.cpus_allowed
    return [cpu for _, cpus in node.numa_cpus for cpu in cpus]


def _near(node: Node, gpu: Gpu, allowed: frozenset[int]) -> frozenset[int] | None:
    """CPUs of the GPU's NUMA node, or of its socket where the firmware has cut sockets into several; None when unknown
    or none of them may be used."""
    by_node = dict(node.numa_cpus)
    if gpu.numa is not None and gpu.numa >= 0 and by_node.get(gpu.numa):
        numbers = {gpu.numa}
        if (socket := _split_sockets(node)) is not None:
            numbers = {n for n in by_node if n // socket == gpu.numa // socket}
        found = {cpu for n in numbers for cpu in by_node[n]}
    elif gpu.cpus and not by_node:
        found = set(gpu.cpus)
    else:
        return None
    usable = allowed & found
    return usable or None


def _split_sockets(node: Node) -> int | None:
    """NUMA nodes a socket where sub-NUMA clustering (Intel SNC, AMD NPS) leaves some of them without a GPU; None where
    a socket is one NUMA node, every NUMA node has GPUs, or the numbering is not the plain one.

    NUMA nodes without CPUs (the GPU memory of Grace) do not count: they are not in `numa_cpus`.
    """
    numbers = sorted(n for n, cpus in node.numa_cpus if cpus)
    sockets = node.sockets
    if not sockets or len(numbers) <= sockets or len(numbers) % sockets or numbers != list(range(len(numbers))):
        return None
    used = Counter(g.numa for g in node.gpus)
    if all(used[n] for n in numbers) and len({used[n] for n in numbers}) == 1:
        return None
    return len(numbers) // sockets


def spell(cpus: Iterable[int]) -> str:
    """CPUs as the kernel lists them.

    >>> spell([3, 0, 1, 2, 8])
    '0-3,8'
    """
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read(text: str) -> tuple[tuple[int, ...] | None, ...]:
    """The CPU lists that `variable` wrote. Raises ValueError for any other text.

    >>> read("0-1,4;;2")
    ((0, 1, 4), None, (2,))
    """
    ranks: list[tuple[int, ...] | None] = []
    for part in text.split(";"):
        cpus: list[int] = []
        for piece in part.split(",") if part else ():
            first, _, last = piece.partition("-")
            span = range(int(first), int(last or first) + 1)
            if not span or len(span) > 1 << 16:
                raise ValueError(f"{piece!r} is no range of CPUs")
            cpus += span
        ranks.append(tuple(cpus) or None)
    return tuple(ranks)


def variable(binding: Binding) -> Variable | None:
    """The binding for our runner, as a variable of one node; None when there is nothing for it to do."""
    if binding.option is not None or not any(binding.cpus):
        return None
    text = ";".join("" if cpus is None else spell(cpus) for cpus in binding.cpus)
    return Variable(name=VARIABLE, value=text, reason=binding.reason, source="parlaunch_launch.bind")

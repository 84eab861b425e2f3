"""Preflight: what is wrong with a machine for a job, by severity. FAIL stops a launch, WARN is shown, INFO is known.

`examine` applies the catalogue (GPUs, host and fabric, nodes compared with each other) to what a probe found. A value
that is not known makes no finding.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from parlaunch.doctor_gpu import GPU_CHECKS
from parlaunch.doctor_host import HOST_CHECKS
from parlaunch.finding import FAIL, INFO, SEVERITIES, WARN, Check, Comparison, Finding, Job
from parlaunch.machine import Cluster, Node

__all__ = ["FAIL", "INFO", "WARN", "Finding", "Job", "examine", "findings_to_json", "findings_to_text", "worst"]

CHECKS: tuple[Check, ...] = (*GPU_CHECKS, *HOST_CHECKS)
SCHEMA = "parlaunch.doctor/1"


def _odd(nodes: Sequence[Node], of: Callable[[Node], Hashable | None]) -> Iterator[tuple[Node, Hashable, Hashable]]:
    """Nodes whose value differs from that of most nodes, with both values; unknown ones are left out."""
    values = [(node, value) for node in nodes if (value := of(node)) is not None]
    if not values:
        return
    counts = Counter(value for _, value in values)
    usual = max(counts, key=lambda v: (counts[v], str(v)))
    yield from ((node, value, usual) for node, value in values if value != usual)


def _differs(
    severity: str, of: Callable[[Node], Hashable | None], say: Callable[[Any], str]
) -> Callable[[Cluster, Job], Iterable[tuple[str, str, str]]]:
    def look(cluster: Cluster, job: Job) -> Iterator[tuple[str, str, str]]:
        for node, value, usual in _odd(cluster.nodes, of):
            yield severity, node.hostname, f"{say(value)}; most nodes: {say(usual)}"

    return look


def _models(node: Node) -> Hashable | None:
    return ", ".join(sorted({g.name for g in node.gpus})) or None


def _memory(node: Node) -> Hashable | None:
    return min((g.memory_bytes >> 28 for g in node.gpus if g.memory_bytes), default=None)


def _rails(node: Node) -> Hashable | None:
    rails = [n for n in node.nics if n.rail]
    rates = sorted({n.bytes_per_s for n in rails if n.bytes_per_s is not None})
    return (len(rails), rails[0].kind if rails else "none", tuple(rates)) if node.nics else None


def _say_rails(value: Any) -> str:
    count, kind, rates = value
    return f"{count} {kind} rails" + (f" at {', '.join(f'{r * 8 / 1e9:g}' for r in rates)} Gb/s" if rates else "")


def _power(node: Node) -> Hashable | None:
    return min((round(g.power_limit_w) for g in node.gpus if g.power_limit_w), default=None)


def _one_domain(cluster: Cluster, job: Job) -> Iterator[tuple[str, str, str]]:
    ids = {n.hostname: {g.fabric_id for g in n.gpus if g.fabric_id} for n in cluster.nodes}
    known = {host: next(iter(found)) for host, found in ids.items() if len(found) == 1}
    if job.multi_node_nvlink and len(set(known.values())) > 1:
        counts = Counter(known.values())
        usual = max(counts, key=lambda k: (counts[k], k))
        for host, key in known.items():
            if key != usual:
                same = "the same cluster, another clique" if key[0] == usual[0] else "another cluster"
                yield FAIL, host, f"NVLink domain {key[0]}/{key[1]}: {same}; most nodes: {usual[0]}/{usual[1]}"


def _same_name(cluster: Cluster, job: Job) -> Iterator[tuple[str, str, str]]:
    for host, count in Counter(n.hostname for n in cluster.nodes).items():
        if count > 1:
            yield WARN, "", f"{count} nodes call themselves {host}"


COMPARISONS: tuple[Comparison, ...] = (
    Comparison("nodes-gpu-count", _differs(FAIL, lambda n: len(n.gpus), lambda v: f"{v} GPUs"), "torchrun starts the same number of ranks everywhere", "leave the node out, or start as many ranks as every node has GPUs", "Azure NHC"),
    Comparison("nodes-gpu-model", _differs(WARN, _models, str), "the plan is made for the weakest GPU", "ask the scheduler for one kind of node (--constraint)", "Azure NHC"),
    Comparison("nodes-gpu-memory", _differs(WARN, _memory, lambda v: f"{v / 4:g} GiB a GPU"), "the plan must fit the smallest memory", "ask for one kind of node; check for ECC that is off on some", "Azure NHC"),
    Comparison("nodes-driver", _differs(WARN, lambda n: n.driver, lambda v: f"driver {v}"), "NCCL features differ with the driver, and so does speed", "bring the nodes to one driver", "Azure NHC"),
    Comparison("nodes-nvlink", _differs(WARN, lambda n: n.link_type, lambda v: f"NVLink: {v}"), "tensor parallelism is planned for NVLink inside every node", "leave the node out, or look at its GPUs with parlaunch doctor there", "vllm-project/vllm#16336"),
    Comparison("nodes-rails", _differs(FAIL, _rails, _say_rails), "a ring runs at the rate of its slowest node; unequal rails hang some NCCL versions", "leave the node out, or bring its ports up", "Azure NHC"),
    Comparison("nodes-gpudirect", _differs(WARN, lambda n: n.gpudirect, lambda v: f"GPUDirect RDMA {'on' if v else 'off'}"), "one node without it slows all", "sudo modprobe nvidia_peermem on that node", "NVIDIA/nccl#1537"),
    Comparison("nodes-power", _differs(WARN, _power, lambda v: f"power limit {v} W"), "every step waits for the slowest rank", "set equal limits: nvidia-smi -pl", "Azure NHC"),
    Comparison("nodes-imex", _differs(WARN, lambda n: None if n.imex_channels is None or n.link_type != "nvswitch_mnnvl" else n.imex_channels > 0, lambda v: "has an IMEX channel" if v else "has no IMEX channel"), "NVLink between nodes needs IMEX on each of them", "start nvidia-imex there, or set NCCL_MNNVL_ENABLE=0", "NVIDIA/nvbandwidth#46"),
    Comparison("nodes-kernel", _differs(INFO, lambda n: n.kernel, lambda v: f"Linux {v}"), "nodes were not installed alike", "nothing, when they run equally fast", "Azure NHC"),
    Comparison("nodes-nvlink-domain", _one_domain, "NVLink between nodes works inside one domain only", "ask for nodes of one rack and partition (--segment, topology/block)", "meta-pytorch/torchcomms#3612; NVIDIA/nccl#1301"),
    Comparison("nodes-name", _same_name, "reports and rendezvous cannot tell them apart", "give every node a host name of its own", "torchrun documentation"),
)  # fmt: skip


def examine(
    cluster: Cluster,
    *,
    ranks_per_node: int | None = None,
    headroom: float = 0.08,
    multi_node_nvlink: bool = False,
    nodes: int | None = None,
) -> tuple[Finding, ...]:
    """Everything that the catalogue finds, the worst first.

    `ranks_per_node` is what the job starts on every node (None: one a GPU), `headroom` the share of GPU memory that the
    plan leaves free, `multi_node_nvlink` whether the plan counts on NVLink between nodes, `nodes` how many the job has when
    `cluster` shows fewer. Several nodes are compared with each other; what most of them have is taken for right.
    """
    job = Job(
        nodes=nodes or len(cluster.nodes),
        ranks_per_node=ranks_per_node,
        headroom=headroom,
        multi_node_nvlink=multi_node_nvlink,
    )
    found = []
    for node in cluster.nodes:
        for check in CHECKS:
            for severity, saw, *other in check.look(node, job):
                do = other[0] if other else check.do
                found.append(
                    Finding(check=check.name, severity=severity, node=node.hostname, saw=saw, why=check.why, do=do)
                )
    if len(cluster.nodes) > 1:
        for row in COMPARISONS:
            for severity, host, saw in row.look(cluster, job):
                found.append(Finding(check=row.name, severity=severity, node=host, saw=saw, why=row.why, do=row.do))
    return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))


def worst(findings: Iterable[Finding]) -> str | None:
    """The highest severity among them; None when there is nothing."""
    return min((f.severity for f in findings), key=SEVERITIES.index, default=None)


def findings_to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """`parlaunch doctor --format json`. `ok` is False when something is a FAIL."""
    return {
        "schema": SCHEMA,
        "ok": worst(findings) != FAIL,
        "counts": {s: sum(f.severity == s for f in findings) for s in SEVERITIES},
        "findings": [
            {"check": f.check, "severity": f.severity, "node": f.node or None, "saw": f.saw, "why": f.why, "do": f.do}
            for f in findings
        ],
    }


_COLOURS = {FAIL: "\x1b[1;31m", WARN: "\x1b[33m", INFO: "\x1b[2m"}


def findings_to_text(findings: Sequence[Finding], *, colour: bool = False, width: int = 100) -> str:
    """The findings as paragraphs: severity and sights, then why and what to do. Ends with a count.

    What several nodes share is said once, and what one row of the catalogue saw several times has one reason.
    """
    if not findings:
        return "nothing to report\n"
    several = len({f.node for f in findings if f.node}) > 1
    rows: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for f in findings:
        rows.setdefault((f.severity, f.check, f.why, f.do), {}).setdefault(f.saw, []).append(f.node)
    lines = []
    for (severity, check, why, do), sights in rows.items():
        mark = f"{_COLOURS[severity]}{severity}\x1b[0m" if colour else severity
        for saw, nodes in sights.items():
            text = f"{_where(nodes) if several else ''}{saw}  [{check}]"
            first, *rest = textwrap.wrap(text, width - 6, break_long_words=False) or [""]
            lines += [f"{mark}  {first}", *(f"      {line}" for line in rest)]
        lines += textwrap.wrap(f"{why}.", width, initial_indent="      why  ", subsequent_indent="           ")
        if do and do != "nothing":
            lines += textwrap.wrap(do, width, initial_indent="      do   ", subsequent_indent="           ")
    counts = findings_to_json(findings)["counts"]
    lines.append(", ".join(f"{n} {s}" for s, n in counts.items() if n))
    return "\n".join(lines) + "\n"


def _where(nodes: Sequence[str]) -> str:
    named = [n for n in nodes if n]
    if not named:
        return ""
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{', '.join(named[:3])}{more}: "

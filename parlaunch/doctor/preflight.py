"""Preflight: what is wrong with a machine for a job, by severity. FAIL stops a launch, WARN is shown, INFO is known.

`examine` applies the catalogue (GPUs, host and fabric, nodes compared with each other) to what a probe found. A value
that is not known makes no finding.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from statistics import median_low
from typing import Any

from parlaunch.doctor.finding import FAIL, INFO, SEVERITIES, WARN, Comparison, Finding, Inspection, Use
from parlaunch.doctor.gpu import GPU_INSPECTIONS
from parlaunch.doctor.host import HOST_INSPECTIONS
from parlaunch.doctor.software import SOFTWARE_INSPECTIONS
from parlaunch.doctor.unread import Unread
from parlaunch.hardware.cluster import Cluster, Node
from parlaunch.hardware.installed import PACKAGES
from parlaunch.hardware.rates import HEADROOM
from parlaunch.where.nodelist import shortened

INSPECTIONS: tuple[Inspection, ...] = (*GPU_INSPECTIONS, *HOST_INSPECTIONS, *SOFTWARE_INSPECTIONS)
SCHEMA = "parlaunch.doctor/1"


def _odd(
    nodes: Sequence[Node], of: Callable[[Node], Hashable | None]
) -> Iterator[tuple[Node, Hashable, Hashable, str]]:
    """Nodes whose value differs from the commonest, with both values and who has that one; unknown ones are left out."""
    values = [(node, value) for node in nodes if (value := of(node)) is not None]
    if not values:
        return
    counts = Counter(value for _, value in values)
    usual = max(counts, key=lambda v: (counts[v], str(v)))
    who = _having([node.hostname for node, value in values if value == usual], len(values))
    yield from ((node, value, usual, who) for node, value in values if value != usual)


def _having(names: Sequence[str], of: int) -> str:
    """Who has what others are held against: of two nodes neither is the odd one."""
    return "most nodes" if 2 * len(names) > of else shortened(names)


def _differs(
    severity: str, of: Callable[[Node], Hashable | None], say: Callable[[Any], str]
) -> Callable[[Cluster, Use], Iterable[tuple[str, str, str]]]:
    def look(cluster: Cluster, use: Use) -> Iterator[tuple[str, str, str]]:
        for node, value, usual, who in _odd(cluster.nodes, of):
            yield severity, node.hostname, f"{say(value)}; {who}: {say(usual)}"

    return look


def _count(node: Node) -> Hashable | None:
    """Its GPUs, with those that a plan gives up because other nodes have fewer."""
    more = [g for g in node.gpus_left_out if node.gpus and g.name == node.gpus[0].name and not g.mig]
    return len(node.gpus) + len(more)


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


def _vbios(node: Node) -> Hashable | None:
    return ", ".join(sorted({g.vbios for g in node.gpus if g.vbios})) or None


def _firmware(node: Node) -> Hashable | None:
    return ", ".join(sorted({f"{n.model or n.kind} {n.firmware}" for n in node.nics if n.rail and n.firmware})) or None


def _clock(node: Node) -> Hashable | None:
    """The lowest clock that a GPU may run at: its application clock, else its maximum."""
    return min((round(hz / 1e6) for g in node.gpus if (hz := g.clock_sm_app_hz or g.clock_sm_max_hz)), default=None)


AGREE = ("torch", "nccl", "transformer_engine", "megatron_core", "megatron_bridge", "deep_ep", "hybrid_ep")
"""Packages that speak with their like on other nodes, or decide what is sent there."""


def _software(cluster: Cluster, use: Use) -> Iterator[tuple[str, str, str]]:
    for package, words in PACKAGES.items():

        def version(node: Node, package: str = package) -> Hashable | None:
            have = dict(node.software or ())
            return (have[package] or "missing") if package in have else None

        for node, found, usual, who in _odd(cluster.nodes, version):
            yield FAIL if package in AGREE else WARN, node.hostname, f"{words} {found}; {who}: {usual}"


CLOCKS_S = 1.0
"""Clocks of nodes may be so far apart before anybody notices: logs keep their order, and credentials hold for minutes."""


def _clocks(cluster: Cluster, use: Use) -> Iterator[tuple[str, str, str]]:
    known = [(node, ahead) for node in cluster.nodes if (ahead := node.clock_ahead_s) is not None]
    if not known:
        return
    usual = median_low(ahead for _, ahead in known)
    alike = [node.hostname for node, ahead in known if abs(ahead - usual) <= CLOCKS_S]
    who = _having(alike, len(known))
    for node, ahead in known:
        if abs(ahead - usual) > CLOCKS_S:
            side = "ahead of" if ahead > usual else "behind"
            yield WARN, node.hostname, f"its clock is {abs(ahead - usual):,.1f} s {side} that of {who}"


def _domain(node: Node) -> Hashable | None:
    ids = {g.fabric_id for g in node.gpus if g.fabric_id}
    return next(iter(ids)) if len(ids) == 1 else None


def _one_domain(cluster: Cluster, use: Use) -> Iterator[tuple[str, str, str]]:
    odd: Iterator[tuple[Node, Any, Any, str]] = _odd(cluster.nodes, _domain)
    for node, key, usual, who in odd if use.multi_node_nvlink else ():
        same = "the same cluster, another clique" if key[0] == usual[0] else "another cluster"
        yield FAIL, node.hostname, f"NVLink domain {key[0]}/{key[1]}: {same}; {who}: {usual[0]}/{usual[1]}"


def _same_name(cluster: Cluster, use: Use) -> Iterator[tuple[str, str, str]]:
    for host, count in Counter(n.hostname for n in cluster.nodes).items():
        if count > 1:
            yield WARN, "", f"{count} nodes call themselves {host}"


COMPARISONS: tuple[Comparison, ...] = (
    Comparison("nodes-gpu-count", _differs(FAIL, _count, lambda v: f"{v} GPUs"), "torchrun starts the same number of ranks everywhere", "leave the node out, or start as many ranks as every node has GPUs", "Azure NHC"),
    Comparison("nodes-gpu-model", _differs(WARN, _models, str), "the plan is made for the weakest GPU", "ask the scheduler for one kind of node (--constraint)", "Azure NHC"),
    Comparison("nodes-gpu-memory", _differs(WARN, _memory, lambda v: f"{v / 4:g} GiB a GPU"), "the plan must fit the smallest memory", "ask for one kind of node; check for ECC that is off on some", "Azure NHC"),
    Comparison("nodes-driver", _differs(WARN, lambda n: n.driver, lambda v: f"driver {v}"), "NCCL features differ with the driver, and so does speed", "bring the nodes to one driver", "Azure NHC"),
    Comparison("nodes-nvlink", _differs(WARN, lambda n: n.link_type, lambda v: f"NVLink: {v}"), "tensor parallelism is planned for NVLink inside every node", "leave the node out, or look at its GPUs with parlaunch doctor there", "vllm-project/vllm#16336"),
    Comparison("nodes-rails", _differs(FAIL, _rails, _say_rails), "a ring runs at the rate of its slowest node; unequal rails hang some NCCL versions", "leave the node out, or bring its ports up", "Azure NHC"),
    Comparison("nodes-gpudirect", _differs(WARN, lambda n: n.gpudirect, lambda v: f"GPUDirect RDMA {'on' if v else 'off'}"), "one node without it slows all", "sudo modprobe nvidia_peermem on that node", "NVIDIA/nccl#1537"),
    Comparison("nodes-power", _differs(WARN, _power, lambda v: f"power limit {v} W"), "every step waits for the slowest rank", "set equal limits: nvidia-smi -pl", "Azure NHC"),
    Comparison("nodes-vbios", _differs(INFO, _vbios, lambda v: f"VBIOS {v}"), "power and clock tables come with it", "bring the boards to one firmware", "Azure NHC"),
    Comparison("nodes-nic-firmware", _differs(INFO, _firmware, lambda v: f"firmware {v}"), "faults of a fabric are often those of one firmware", "bring the cards to one firmware", "Azure NHC"),
    Comparison("nodes-clocks", _differs(WARN, _clock, lambda v: f"GPU clocks up to {v} MHz"), "every step waits for the slowest rank", "nvidia-smi -rgc and -rac on that node", "Azure NHC"),
    Comparison("nodes-software", _software, "ranks of different builds hang or fail at their first collective", "start one image on all nodes", "NCCL documentation"),
    Comparison("nodes-imex", _differs(WARN, lambda n: None if n.imex_channels is None or n.link_type != "nvswitch_mnnvl" else n.imex_channels > 0, lambda v: "has an IMEX channel" if v else "has no IMEX channel"), "NVLink between nodes needs IMEX on each of them", "start nvidia-imex there, or set NCCL_MNNVL_ENABLE=0", "NVIDIA/nvbandwidth#46"),
    Comparison("nodes-clock", _clocks, "munge and Kerberos refuse tickets, and the logs and files of one run have no order", "chronyc tracking (or timedatectl) on that node; start chronyd or ntpd there", "munge(7); Slurm documentation"),
    Comparison("nodes-kernel", _differs(INFO, lambda n: n.kernel, lambda v: f"Linux {v}"), "nodes were not installed alike", "nothing, when they run equally fast", "Azure NHC"),
    Comparison("nodes-nvlink-domain", _one_domain, "NVLink between nodes works inside one domain only", "ask for nodes of one rack and partition (--segment, topology/block)", "meta-pytorch/torchcomms#3612; NVIDIA/nccl#1301"),
    Comparison("nodes-name", _same_name, "reports and rendezvous cannot tell them apart", "give every node a host name of its own", "torchrun documentation"),
)  # fmt: skip


def examine(
    cluster: Cluster,
    *,
    ranks_per_node: int | None = None,
    headroom: float = HEADROOM,
    multi_node_nvlink: bool = False,
    nodes: int | None = None,
) -> tuple[Finding, ...]:
    """Everything that the catalogue finds, the worst first, and of those what few nodes have before what many have.

    `ranks_per_node` is what the job starts on every node (None: one a GPU), `headroom` the share of GPU memory that the
    plan leaves free, `multi_node_nvlink` whether the plan counts on NVLink between nodes, `nodes` how many the job has when
    `cluster` shows fewer (None: the machine is looked at, for no job). Several nodes are compared with each other; what most of them have is taken for right.
    """
    use = Use(
        nodes=nodes or len(cluster.nodes),
        known=nodes is not None,
        ranks_per_node=ranks_per_node,
        headroom=headroom,
        multi_node_nvlink=multi_node_nvlink,
    )
    found = []
    for node in cluster.nodes:
        for row in INSPECTIONS:
            for severity, saw, *other in row.look(node, use):
                do = other[0] if other else row.do
                found.append(
                    Finding(check=row.name, severity=severity, node=node.hostname, saw=saw, why=row.why, do=do)
                )
    if len(cluster.nodes) > 1:
        for pair in COMPARISONS:
            for severity, host, saw in pair.look(cluster, use):
                found.append(Finding(check=pair.name, severity=severity, node=host, saw=saw, why=pair.why, do=pair.do))
    hit: dict[str, set[str]] = {}
    for f in found:
        hit.setdefault(f.check, set()).add(f.node)
    return tuple(sorted(found, key=lambda f: (SEVERITIES.index(f.severity), len(hit[f.check]))))


def worst(findings: Iterable[Finding]) -> str | None:
    """The highest severity among them; None when there is nothing."""
    return min((f.severity for f in findings), key=SEVERITIES.index, default=None)


def findings_to_json(
    findings: Sequence[Finding], *, nodes: Sequence[str] = (), unknown: Sequence[Unread] = ()
) -> dict[str, Any]:
    """`parlaunch doctor --format json`. `ok` is False when something is a FAIL; `nodes` are all that were looked at."""
    return {
        "schema": SCHEMA,
        "ok": worst(findings) != FAIL,
        "nodes": list(nodes),
        "counts": {s: sum(f.severity == s for f in findings) for s in SEVERITIES},
        "findings": [
            {"check": f.check, "severity": f.severity, "node": f.node or None, "saw": f.saw, "why": f.why, "do": f.do}
            for f in findings
        ],
        "unknown": [{"what": u.what, "nodes": list(u.nodes)} for u in unknown],
    }


_COLOURS = {FAIL: "\x1b[1;31m", WARN: "\x1b[33m", INFO: "\x1b[2m"}
SIGHTS = 6
"""Lines that one row of the catalogue gets on a screen: a thousand nodes may each see a little else."""


def findings_to_text(
    findings: Sequence[Finding],
    *,
    nodes: Sequence[str] = (),
    unknown: Sequence[Unread] = (),
    colour: bool = False,
    width: int = 100,
) -> str:
    """The findings as paragraphs: severity and sights, then why and what to do. Ends with a count, and with what is not known.

    `nodes` are all that were looked at: of several one table is made, which begins with how many are sick. What several share
    is said once, outliers first, and what one row of the catalogue saw several times has one reason.
    """
    several = len(nodes) > 1 or len({f.node for f in findings if f.node}) > 1
    rows: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for f in findings:
        rows.setdefault((f.severity, f.check, f.why, f.do), {}).setdefault(f.saw, []).append(f.node)
    lines = [_sick(findings, nodes)] if len(nodes) > 1 else []
    for (severity, check, why, do), sights in rows.items():
        mark = f"{_COLOURS[severity]}{severity}\x1b[0m" if colour else severity
        shown = sorted(sights.items(), key=lambda sight: len(sight[1]))[: SIGHTS if len(sights) > SIGHTS + 1 else None]
        for saw, where in shown:
            text = f"{_where(where, nodes) if several else ''}{saw}  [{check}]"
            first, *rest = textwrap.wrap(text, width - 6, break_long_words=False) or [""]
            lines += [f"{mark}  {first}", *(f"      {line}" for line in rest)]
        if left := [set(where) for saw, where in sights.items() if saw not in dict(shown)]:
            lines.append(
                f"      and {len(left):,} more like these, on {len(set().union(*left)):,} nodes: --format json has all"
            )
        lines += textwrap.wrap(f"{why}.", width, initial_indent="      why  ", subsequent_indent="           ")
        if do and do != "nothing":
            lines += textwrap.wrap(do, width, initial_indent="      do   ", subsequent_indent="           ")
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    lines.append(", ".join(f"{n:,} {s}" for s, n in counts.items() if n) or "nothing to report")
    for part in unknown:
        text = f"{_where(part.nodes, nodes) if several else ''}{part.what}"
        lines += textwrap.wrap(text, width, initial_indent="not known: ", subsequent_indent="           ")
    return "\n".join(lines) + "\n"


def _sick(findings: Sequence[Finding], nodes: Sequence[str]) -> str:
    """ "1,000 nodes: FAIL on 3 (n[17,40,901]), WARN on 12"."""
    parts, before = [], set[str]()
    for severity in (FAIL, WARN):
        names = {f.node for f in findings if f.severity == severity and f.node} - before
        before |= names
        if names:
            listed = f" ({shortened([n for n in nodes if n in names])})" if severity == FAIL else ""
            parts.append(f"{severity} on {len(names):,}{listed}")
    return f"{len(nodes):,} nodes: {', '.join(parts) or 'all well'}"


def _where(names: Sequence[str], nodes: Sequence[str]) -> str:
    named = list(dict.fromkeys(n for n in names if n))
    if not named:
        return ""
    if len(named) > 1 and len(named) == len(set(nodes)):
        return f"all {len(named):,} nodes: "
    count = f" ({len(named):,} nodes)" if len(named) > FEW else ""
    return f"{shortened(named)}{count}: "


FEW = 4
"""More names than these are counted too."""

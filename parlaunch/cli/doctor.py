"""`parlaunch doctor`: what is wrong with this machine, or with all nodes of a job in one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch.cli.inputs import choice, hardware_of, note, with_software
from parlaunch.cli.terminal import coloured, columns
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.hardware.cluster import Cluster, cluster_from_json, cluster_to_json
from parlaunch.version import __version__

if TYPE_CHECKING:
    from parlaunch.doctor.finding import Finding
    from parlaunch.doctor.unread import Unread
    from parlaunch.where.situation import Situation


def doctor(
    hardware: str,
    *,
    gpu: str | None = None,
    format: str,
    nnodes: int | None = None,
    alone: bool = False,
    agree_timeout: float,
) -> None:
    """Print what is wrong here; exit code 1 on a FAIL. `nnodes`: of the job that this node is looked at for, where the machine
    is this one; a Slurm job says it by itself. As the task of a launcher that brings all output together (`srun parlaunch
    doctor`) the nodes meet, the first prints one table, and all end with its exit code; `alone` looks at this node only."""
    if hardware == "list":
        from parlaunch.cli.machine import listing

        return listing(format=format)
    choice("--format", format, ("text", "json"))
    if hardware == "auto" and gpu is None and nnodes is None and not alone:
        situation = _situation()
        if situation is not None and _is_task_of_several(situation):
            from parlaunch.cli.launch import step_aside

            step_aside(situation)
            _together(situation, format=format, timeout_s=agree_timeout)
        if situation is not None and situation.kind.startswith("slurm") and (situation.nnodes or 1) > 1:
            note(f"parlaunch: this node of {situation.nnodes}; all of them: srun --ntasks-per-node=1 parlaunch doctor")
    cluster = hardware_of(hardware, gpu=gpu)
    looked = _look(with_software(cluster) if hardware == "auto" else cluster, nodes=nnodes or _nodes_of_job(hardware))
    _print(looked, format)
    if looked.sick:
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class Looked:
    """All that is to be said: of which nodes, what is wrong, what is not known."""

    nodes: tuple[str, ...]
    found: tuple[Finding, ...]
    unknown: tuple[Unread, ...]

    @property
    def sick(self) -> bool:
        return any(f.severity == "FAIL" for f in self.found)


def _look(cluster: Cluster, *, nodes: int | None, absent: Sequence[Finding] = ()) -> Looked:
    from parlaunch.doctor.preflight import examine
    from parlaunch.doctor.unread import unread

    names = (*(n.hostname for n in cluster.nodes), *(f.node for f in absent))
    return Looked(names, (*absent, *examine(cluster, nodes=nodes)), unread(cluster, nodes=nodes))


def _print(looked: Looked, format: str) -> None:
    from parlaunch.doctor.preflight import findings_to_json, findings_to_text

    if format == "json":
        print(json.dumps(findings_to_json(looked.found, nodes=looked.nodes, unknown=looked.unknown), indent=2))
        return
    text = findings_to_text(
        looked.found, nodes=looked.nodes, unknown=looked.unknown, colour=coloured(), width=columns()
    )  # fmt: skip
    print(text, end="")


def _situation() -> Situation | None:
    """Where we stand; None where the variables contradict themselves, which is no reason not to look at this machine."""
    from parlaunch.where.schedulers import where
    from parlaunch_probes.surroundings import ancestors, hostname

    try:
        return where(os.environ, hostname=hostname(), ancestors=ancestors())
    except UsageError:
        return None


def _is_task_of_several(situation: Situation) -> bool:
    from parlaunch.where.schedulers import place_of

    place = place_of(situation)
    return place.starter is None and place.one_log and (situation.nnodes or 1) > 1


def _nodes_of_job(hardware: str) -> int | None:
    """How many nodes the job has that this process is in; None outside one, or for another machine."""
    from parlaunch.where.nodelist import hostnames

    if hardware != "auto":
        return None
    count = os.environ.get("SLURM_JOB_NUM_NODES", "")
    if count.isdigit():
        return int(count) or None
    # slurmd starts Prolog and Epilog with the list alone.
    listed = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST")
    try:
        return len(hostnames(listed)) if listed else None
    except UsageError:
        return None


def _together(situation: Situation, *, format: str, timeout_s: float) -> NoReturn:
    """Bring what was read here to the first node, which prints what is wrong with all of them."""
    from parlaunch_launch import secret
    from parlaunch_launch.agreement import agree

    looked: list[Looked] = []

    def look(everyone: list[dict[str, Any]]) -> bytes:
        looked.append(of_all(everyone, situation, timeout_s))
        return json.dumps({"sick": looked[0].sick}).encode()

    agreed = agree(
        situation, _mine(), look, secret=secret.of(os.environ), timeout_s=timeout_s, spares=(situation.nnodes or 1) - 1,
        say=lambda line: None,
    )  # fmt: skip
    if agreed.watch_socket is not None:
        agreed.watch_socket.close()
    for report in looked:  # on the first node
        _print(report, format)
    sys.exit(1 if json.loads(agreed.plan_bytes)["sick"] else 0)


def _mine() -> dict[str, Any]:
    """What this node brings; a node that cannot be read brings why."""
    mine: dict[str, Any] = {"version": __version__, "command": sys.argv[1:]}
    try:
        return mine | {"hardware": cluster_to_json(with_software(hardware_of("auto")))}
    except ParlaunchError as error:
        return mine | {"unreadable": error.problem}


def of_all(everyone: Sequence[Mapping[str, Any]], situation: Situation, waited_s: float) -> Looked:
    """What is to be said of a job's nodes: those that came, each with what it read of itself, and those that did not."""
    from parlaunch.doctor.finding import Finding

    nodes, absent, came = [], [], set()
    for mine in everyone:
        met = mine["agreement"]
        came.add(met["seat"])
        if "unreadable" in mine:
            absent.append(Finding(
                check="node-unreadable", severity="FAIL", node=met["hostname"], saw=f"cannot be looked at: {mine['unreadable']}",
                why="a launch there would end the same way", do="run `parlaunch probe` on it",
            ))  # fmt: skip
            continue
        (node,) = cluster_from_json(mine["hardware"], where=f"the probe of {met['hostname']}").nodes
        nodes.append(replace(node, hostname=met["hostname"], clock_ahead_s=met.get("ahead_s")))
    for seat, name in enumerate(situation.nodelist):
        if seat not in came:
            absent.append(Finding(
                check="node-absent", severity="FAIL", node=name, saw=f"did not answer in {waited_s:.0f} s",
                why="the other nodes of a job wait for it",
                do="is parlaunch there under the same path, and may nodes reach each other? `scontrol show node` may know more",
            ))  # fmt: skip
    return _look(Cluster(source="probe", nodes=tuple(nodes)), nodes=situation.nnodes, absent=absent)

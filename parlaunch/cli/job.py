"""One job between command line and plan: what is trained, on what, by which runner; and the plan made of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlaunch.cli import inputs
from parlaunch.cli.files import read_text
from parlaunch.cli.request import PLANNED, Request
from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster, Node, domains_of
from parlaunch.hardware.gather import IDLE
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.show.formats import SCRIPTS

if TYPE_CHECKING:
    from parlaunch.hardware.rates import Rates
    from parlaunch.launching import Start
    from parlaunch.where.situation import Situation
    from parlaunch_launch.runners import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The inputs of a plan and of the launch after it."""

    request: Request
    situation: Situation
    recipe: Recipe
    cluster: Cluster  # this node, or the whole machine when it is known already
    wishes: Wishes
    device: str
    saved: Plan | None = None  # --plan: launch exactly this
    remarks: tuple[str, ...] = ()  # what the user has to know about these inputs

    @property
    def elsewhere(self) -> bool:
        """Whether this is a script for a machine that is not this one: nothing of this one may be in it."""
        return self.request.hardware != "auto" and self.request.format in SCRIPTS

    def runner(self) -> tuple[Runner | None, str | None]:
        """What every rank runs, and what is wrong with it here, if anything. None: Bridge, where the script will run, or
        nothing that is here."""
        if self.elsewhere and not (self.request.script or self.request.module or self.device == "cpu"):
            return None, None
        from parlaunch_launch import runners

        try:
            found = runners.find(
                device=self.device, script=self.request.script, module=self.request.module,
                environ=os.environ, python=self.request.python or sys.executable, recipe=self.recipe.name,
                model_config=self.recipe.source == "hf-config",
            )  # fmt: skip
            return found, None
        except ParlaunchError as error:
            return None, str(error)

    def runner_or_error(self) -> None:
        """Raise the error that `runner` only reports."""
        _, problem = self.runner()
        if problem:
            head, _, hint = problem.partition("\n  hint: ")
            raise ParlaunchError(head, hint=hint)


def job_of(request: Request, situation: Situation) -> Job:
    """Read recipe, machine and wishes. Raises ParlaunchError for anything that cannot be."""
    if request.plan_file is not None:
        return _saved_job(request, situation)
    request = with_runner_options(request)
    pins = inputs.merged_pins(request)
    recipe = inputs.as_said(inputs.named(request), request, pins)
    cluster = _cluster(request, situation)
    uneven = (note for note in cluster.notes if IDLE in note)
    remarks = (*inputs.assumed(recipe, pins), *_alike(request, situation), *uneven)
    if request.device == "cpu":
        from parlaunch.model.tiny import sentence, shrink

        original, recipe = recipe, shrink(recipe, cluster.world_size, keep=pins)
        remarks = (*remarks, sentence(original, recipe))
    if cluster.world_size == 0:
        raise _no_gpu(cluster)
    return Job(
        request=request, situation=situation, recipe=recipe, cluster=cluster,
        wishes=inputs.wishes_of(request, pins), device=request.device, remarks=remarks,
    )  # fmt: skip


def _no_gpu(cluster: Cluster) -> ParlaunchError:
    """That there is none to plan for; first of what to try is what doctor says, where GPUs are there and out of reach."""
    from parlaunch.doctor.preflight import examine

    note = next(iter(cluster.notes), "")
    ways = ["append the output of `nvidia-smi -L` to the file"] if cluster.source.startswith("file") else []
    if any(n.gpus_invisible or n.gpus_unusable or n.gpus_pci for n in cluster.nodes):
        ways += [f.do for f in examine(cluster) if f.severity == "FAIL"][:1]
    ways += [
        "plan for another with --hardware dgx-h100:2, or train a tiny model here with --device cpu --nproc-per-node 4"
    ]
    return ParlaunchError("no GPU on this machine" + (f" ({note})" if note else ""), hint="; ".join(ways))


def with_runner_options(request: Request) -> Request:
    """The request with what it says to Bridge's runner by option (`-- -tp 4`) among the overrides: it is planned with."""
    from parlaunch.environment.runner_options import overrides_in

    if request.script is not None or request.module is not None:
        return request  # another program's options
    return replace(request, overrides=(*request.overrides, *overrides_in(request.runner_args)))


def _saved_job(request: Request, situation: Situation) -> Job:
    """The job of a saved plan. What would change the plan may not be given beside it."""
    from parlaunch.cli.saved import saved
    from parlaunch.hardware.cpu import device_of

    given = [name for name in PLANNED if getattr(request, name) is not None]
    # A site's file may say these for the plans that are made here.
    made = ("switches", "objective", "evidence", "software")
    given += [
        n
        for n in made
        if getattr(request, n) != getattr(Request(command=request.command), n) and n not in request.configured
    ]
    if given:
        option = "--no-evidence" if given[0] == "evidence" else "--" + given[0].replace("_", "-")
        raise UsageError(
            f"--plan and {option} contradict each other", hint="plan anew, or launch the saved plan as it is"
        )
    assert request.plan_file is not None
    plan = saved(request.plan_file)
    device = device_of(plan.cluster)
    request = replace(request, device=device, nproc_per_node=request.nproc_per_node or plan.cluster.gpus_per_node)
    preview = request.command == "plan" or request.dry_run
    cluster = plan.cluster if preview and request.hardware == "auto" else _cluster(request, situation)
    return Job(
        request=request, situation=situation, recipe=plan.recipe, cluster=cluster, wishes=Wishes(),
        device=device, saved=plan,
    )  # fmt: skip


def _same_machine(plan: Plan, here: Cluster) -> None:
    """Raise ParlaunchError with the differences unless the saved plan was made for this machine."""
    facts = {
        "GPU": (plan.cluster.gpu.name, here.gpu.name),
        "nodes": (len(plan.cluster.nodes), len(here.nodes)),
        "GPUs a node": (plan.cluster.gpus_per_node, here.gpus_per_node),
        "GPUs that share NVLink": (plan.cluster.nvlink_domain_size, here.nvlink_domain_size),
    }
    wrong = [f"{what}: {there} in the plan, {now} here" for what, (there, now) in facts.items() if there != now]
    if wrong:
        raise ParlaunchError(
            "the saved plan is for another machine: " + "; ".join(wrong), hint="plan anew for this one"
        )


def _cluster(request: Request, situation: Situation) -> Cluster:
    cluster = inputs.hardware_of(request.hardware, gpu=request.gpu)
    if request.hardware == "auto" and request.device == "cuda" and cluster.world_size:
        cluster = inputs.with_software(cluster)
    if request.device == "cpu":
        from parlaunch.hardware.cpu import with_cpu_ranks

        cluster = with_cpu_ranks(cluster, request.nproc_per_node or 1)
    elif request.nproc_per_node is not None and cluster.world_size:
        cluster = inputs.only(cluster, request.nproc_per_node)
    if _alike(request, situation) and cluster.world_size:
        from parlaunch_probes.files import replicate

        cluster = replicate(cluster, situation.nnodes or 1)
    if (
        request.nnodes is not None
        and request.hardware != "auto"
        and int(request.nnodes.split(":")[0]) != len(cluster.nodes)
    ):
        raise UsageError(
            f"--nnodes {request.nnodes} contradicts --hardware {request.hardware}, which has {len(cluster.nodes)}",
            hint="write the count behind the machine: dgx-h100:4",
        )
    return cluster


def _alike(request: Request, situation: Situation) -> tuple[str, ...]:
    """A preview of a job on several nodes knows this one only, and says so."""
    nodes = situation.nnodes or 1
    preview = request.command == "plan" or request.dry_run
    if request.hardware != "auto" or nodes == 1 or not preview:
        return ()
    return (f"only this node was probed; the other {nodes - 1} are taken to be like it",)


def planned(job: Job) -> Plan:
    """The plan for the machine of the job."""
    whole = job.cluster

    def of(places: Sequence[int]) -> Cluster:
        nodes = tuple(whole.nodes[at] for at in places)
        return whole if nodes == whole.nodes else replace(whole, nodes=nodes, nvlink_domains=domains_of(nodes))

    return fastest(job, whole.nodes, of)


def fastest(job: Job, nodes: Sequence[Node], of: Callable[[Sequence[int]], Cluster]) -> Plan:
    """The plan for the nodes of one GPU model where they alone are faster than all and the job fits there; else for all nodes.
    `of` makes the cluster of those at the given places."""
    from parlaunch.hardware.mixed import faster_nodes
    from parlaunch.where.nodelist import short

    def made(places: Sequence[int], *words: str) -> Plan:
        cluster = of(places)
        new = tuple(n for n in cluster.notes if n not in job.cluster.notes)
        return finish(replace(job, remarks=(*job.remarks, *words, *new)), cluster)

    model = faster_nodes(nodes)
    if model is not None:
        fast = [at for at, node in enumerate(nodes) if node.gpus[0].name == model]
        slow = short(tuple(node.hostname for node in nodes if node.gpus[0].name != model))
        kept = "1 node" if len(fast) == 1 else f"{len(fast)} nodes"
        # What the user fixed, or the model's size, may need all of them.
        with contextlib.suppress(NoLayoutError, UsageError):
            return made(fast, f"{slow} left out: the {kept} with {model} alone are faster than all together")
    return made(range(len(nodes)))


def finish(job: Job, cluster: Cluster) -> Plan:
    """The plan for the whole cluster with environment, overrides and command."""
    from parlaunch.hardware.placement import order_nodes
    from parlaunch.hardware.rates import rates_of
    from parlaunch.launching import complete, roaming
    from parlaunch.planning.planner import lasting, plan

    cluster = order_nodes(_below_switches(cluster, job.request.topology))
    said = None
    if job.saved is not None:
        _same_machine(job.saved, cluster)
        made = replace(job.saved, cluster=cluster)
        said = (*job.saved.overrides, *job.request.overrides)  # a saved plan's own stand, with the user's behind them
    else:
        rows = _history() if job.wishes.evidence else []
        rates = measured_rates(job.request, cluster) or rates_of(cluster)
        rates = replace(rates, roaming=roaming(cluster, start_of(job)))
        made = plan(
            cluster, job.recipe, job.wishes, rates=rates, history=rows,
            software=inputs.software_of(job.request.software),
        )  # fmt: skip
    made = replace(made, warnings=(*_remarks(job), *made.warnings))
    made = lasting(made, inputs.goal_of(job.request))
    return complete(made, start_of(job), recipe=job.recipe, said=said)


def too_large(plan: Plan) -> NoLayoutError:
    """The error for a layout that the user fixed and that does not fit."""
    from parlaunch.units import gib

    m = plan.chosen.memory
    return NoLayoutError(
        f"the layout that you fixed needs {gib(m.peak)} a GPU, {gib(m.peak - m.limit)} more than the {gib(m.limit)} usable",
        hint="leave a size out and the planner looks for one that fits",
    )


def _history() -> list[dict[str, Any]]:
    """The runs that `parlaunch verify` has measured for this user."""
    from parlaunch_launch import history

    return history.read(history.path(os.environ))


def start_of(job: Job) -> Start:
    """What the launch will find in this process, and what was said about it."""
    from parlaunch.environment.bridge_versions import version_of
    from parlaunch.environment.torchrun import Rendezvous
    from parlaunch.launching import BRIDGE_RUNNER, Start
    from parlaunch_probes import bridge

    r = job.request
    runner, _ = job.runner()
    python = "python" if r.format in SCRIPTS else sys.executable  # a script starts what is on the PATH where it runs
    asked = version_of(bridge.version())  # the probe's keys are those of the installed Bridge
    return Start(
        environ={} if job.elsewhere else dict(os.environ), python=r.python or python, interface=r.interface,
        torch_version=None if job.elsewhere else _torch_version(),
        numactl=not job.elsewhere and shutil.which("numactl") is not None, runner=runner.argv if runner else BRIDGE_RUNNER, runner_args=r.runner_args, overrides=r.overrides,
        keys=inputs.keys_of(r) if runner and runner.version and runner.version == asked else None,
        bridge=runner.version if runner else None,
        env=r.env, numa=r.numa,
        rendezvous=Rendezvous(**{f.name: getattr(r, f.name) for f in fields(Rendezvous)}),
    )  # fmt: skip


def measured_rates(request: Request, cluster: Cluster) -> Rates | None:
    """The machine's figures with what `parlaunch calibrate` measured; None: its data sheet will do."""
    if request.machine_file is None:
        return None
    from parlaunch.cli.accuracy import machine_of
    from parlaunch.hardware.rates import rates_of

    return rates_of(cluster, machine_file=machine_of(request.machine_file))


def _below_switches(cluster: Cluster, topology: Path | None) -> Cluster:
    """The cluster with the switches of a topology file above its nodes. Raises `UsageError` naming the file."""
    if topology is None:
        return cluster
    from parlaunch.hardware.placement import switches_of, with_switches
    from parlaunch.where.nodelist import hostnames

    text = read_text(topology, "--topology", hint="write it with `scontrol show topology`")
    paths = switches_of(text, hostnames)
    if not paths:
        raise UsageError(f"--topology {topology} names no switch", hint="write it with `scontrol show topology`")
    return with_switches(cluster, paths)


def _remarks(job: Job) -> tuple[str, ...]:
    _, problem = job.runner()
    wrong = (problem.splitlines()[0],) if problem and job.request.command == "launch" else ()
    return (*job.remarks, *wrong)


@cache
def _torch_version() -> str | None:
    """Of the torch that will run, without importing it; None when there is none here."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:  # most laptops
        return None
    # The metadata of packages takes long to load; torch's version is in a file of its own.
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    said = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return said and said[1]

"""One job between command line and plan: what is trained, on what, by which runner; and the plan made of it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from parlaunch.cli import inputs
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.layout import Layout
from parlaunch.machine import Cluster
from parlaunch.plan import Plan, Variable, Wishes
from parlaunch.recipe import Recipe

if TYPE_CHECKING:
    from parlaunch.binding import Binding
    from parlaunch.rates import Rates
    from parlaunch.where import Situation


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

    def runner(self) -> tuple[tuple[str, ...], str | None]:
        """The runner's argv prefix, and what is wrong with it here, if anything."""
        from parlaunch_launch import runners

        try:
            found = runners.find(
                device=self.device, script=self.request.script, module=self.request.module,
                environ=os.environ, python=sys.executable,
            )  # fmt: skip
            return tuple(found.argv), None
        except ParlaunchError as error:
            return ("-m", "parlaunch_launch.bridge_runner"), str(error)

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
    pins = inputs.merged_pins(request)
    recipe = inputs.recipe_of(request, pins)
    cluster = _cluster(request, situation)
    remarks = _alike(request, situation)
    if request.device == "cpu":
        from parlaunch.tiny import sentence, shrink

        original, recipe = recipe, shrink(recipe, cluster.world_size, keep=pins)
        remarks = (*remarks, sentence(original, recipe))
    if cluster.world_size == 0:
        note = next(iter(cluster.notes), "")
        raise ParlaunchError(
            "no GPU on this machine" + (f" ({note})" if note else ""),
            hint="plan for another with --hardware dgx-h100:2, or train a tiny model here with --device cpu --nproc-per-node 4",
        )
    return Job(
        request=request, situation=situation, recipe=recipe, cluster=cluster,
        wishes=inputs.wishes_of(request, pins), device=request.device, remarks=remarks,
    )  # fmt: skip


def _saved_job(request: Request, situation: Situation) -> Job:
    """The job of a saved plan. What would change the plan may not be given beside it."""
    from parlaunch.cli.compare import saved
    from parlaunch.cpu import CPU_RANK

    sizes = ("recipe", "model_config", "tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size", "recompute", "fsdp",
             "seq_length", "global_batch_size", "precision")  # fmt: skip
    given = [name for name in sizes if getattr(request, name) is not None]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise UsageError(
            f"--plan and {option} contradict each other", hint="plan anew, or launch the saved plan as it is"
        )
    assert request.plan_file is not None
    plan = saved(request.plan_file)
    device = "cpu" if plan.cluster.gpu.name == CPU_RANK.name else "cuda"
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
    if request.device == "cpu":
        from parlaunch.cpu import with_cpu_ranks

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


def finish(job: Job, cluster: Cluster) -> Plan:
    """The plan for the whole cluster with environment, overrides and command."""
    from parlaunch.placement import order_nodes
    from parlaunch.planner import plan

    cluster = order_nodes(_below_switches(cluster, job.request.topology))
    if job.saved is not None:
        _same_machine(job.saved, cluster)
        made = replace(job.saved, cluster=cluster)
    else:
        made = plan(cluster, job.recipe, job.wishes, rates=_measured_rates(job.request, cluster))
    made = replace(
        made,
        environment=environment(job, cluster, made.layout, node=0),
        overrides=overrides_of(job, cluster, made.layout),
        rank_order=tuple(n.hostname for n in cluster.nodes),
        warnings=(*made.warnings, *_remarks(job)),
    )
    return replace(made, argv=command(job, made, node_rank=0 if len(cluster.nodes) == 1 else None))


def overrides_of(job: Job, cluster: Cluster, layout: Layout) -> tuple[str, ...]:
    """Everything the runner hears about a layout: the tiny model on CPU, the layout, what the user said. A saved plan's
    own stand, with the user's behind them."""
    from parlaunch.overrides import overrides
    from parlaunch.user_overrides import spoken

    if job.saved is not None and layout == job.saved.layout:
        return (*job.saved.overrides, *job.request.overrides)
    ours = overrides(job.recipe, layout, device=job.device, cluster=cluster)
    if job.device == "cpu":
        from parlaunch.tiny import tiny_overrides

        return (*tiny_overrides(job.recipe), *ours, *job.request.overrides)
    return (*ours, *spoken(job.recipe, precision=job.request.precision), *job.request.overrides)


def _measured_rates(request: Request, cluster: Cluster) -> Rates | None:
    """The machine's figures with what `parlaunch calibrate` measured; None: its data sheet will do."""
    if request.machine_file is None:
        return None
    from parlaunch.cli.accuracy import machine_of
    from parlaunch.rates import rates_of

    return rates_of(cluster, machine_file=machine_of(request.machine_file))


def _below_switches(cluster: Cluster, topology: Path | None) -> Cluster:
    """The cluster with the switches of a topology file above its nodes. Raises `UsageError` naming the file."""
    if topology is None:
        return cluster
    from parlaunch.nodelist import hostnames
    from parlaunch.placement import switches_of, with_switches

    try:
        text = topology.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--topology {topology}: {error}", hint="write it with `scontrol show topology`") from error
    paths = switches_of(text, hostnames)
    if not paths:
        raise UsageError(f"--topology {topology} names no switch", hint="write it with `scontrol show topology`")
    return with_switches(cluster, paths)


def environment(job: Job, cluster: Cluster, layout: Layout, *, node: int) -> tuple[Variable, ...]:
    """The variables of one node's ranks, beside what its environment holds already; none with --no-env."""
    from parlaunch.binding import variable
    from parlaunch.environment import node_settings, settings

    if not job.request.env:
        return ()
    current = dict(os.environ)
    torch = _torch_version()
    shared = settings(cluster, job.recipe, layout, current, torch_version=torch, device=job.device)
    bound = variable(_binding(job, cluster, node))
    return (*shared, *node_settings(cluster, node, current), *((bound,) if bound else ()))


def _binding(job: Job, cluster: Cluster, node: int) -> Binding:
    """Which CPUs the ranks of a node are bound to: torchrun's option or our runner's variable. CPU ranks roam."""
    from parlaunch_launch.bind import decide_here

    wanted = job.request.numa and job.device == "cuda"
    return decide_here(cluster.nodes[node], torch_version=_torch_version(), wanted=wanted)


def _remarks(job: Job) -> tuple[str, ...]:
    _, problem = job.runner()
    wrong = (problem.splitlines()[0],) if problem and job.request.command == "launch" else ()
    return (*job.remarks, *wrong)


@cache
def _torch_version() -> str | None:
    """Of the torch that will run, without importing it; None when there is none here."""
    import importlib.metadata

    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def command(job: Job, plan: Plan, *, node_rank: int | None, master: tuple[str, int] | None = None) -> tuple[str, ...]:
    """torchrun's argv for one node. On several nodes whose master is not known yet, shell variables stand for it."""
    from parlaunch_launch import torchrun

    prefix, _ = job.runner()
    r, nodes = job.request, len(plan.cluster.nodes)
    runner = [*prefix, "--recipe", r.recipe or job.recipe.name, *plan.overrides, *r.runner_args]
    return tuple(
        torchrun.command(
            runner,
            python=sys.executable,
            nnodes=nodes,
            nproc_per_node=plan.layout.world // nodes if plan.layout.world >= nodes else 1,
            node_rank=node_rank,
            master_addr=master[0] if master else r.master_addr,
            master_port=master[1] if master else r.master_port,
            rdzv_backend=r.rdzv_backend,
            rdzv_endpoint=r.rdzv_endpoint,
            rdzv_id=r.rdzv_id,
            max_restarts=r.max_restarts,
            numa_binding=_binding(job, plan.cluster, node_rank or 0).option,
        )
    )

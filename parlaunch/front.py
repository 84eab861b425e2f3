"""The front door: what `from parlaunch import …` gives. The same as the command line does, as functions of values.

Sizes are counts of GPUs, memory is bytes, time is seconds, rates are bytes/s and FLOP/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlaunch.cli import inputs
from parlaunch.cli.request import Request
from parlaunch.estimate.training import Goal
from parlaunch.hardware.rates import HEADROOM, rates_of
from parlaunch.launching import Start, complete, roaming
from parlaunch.planning import planner
from parlaunch.planning.plan import Plan, Wishes, plan_from_json, plan_to_json
from parlaunch.version import __version__

if TYPE_CHECKING:
    from parlaunch.hardware.cluster import Cluster
    from parlaunch.model.recipe import Recipe


def machine(spec: str = "auto", *, gpu: str | None = None) -> Cluster:
    """The machine to plan for: nodes with their GPUs and NICs, and what joins them.

    `spec` is what `--hardware` takes: `auto` (this machine, probed), a preset and a count of nodes, or a file of this or
    another tool, `FILE:4` for four such nodes. `gpu` names the product where the file does not.

    Raises `ProbeError` for a machine or file that cannot be read, `UsageError` for a name that is none.

    >>> from parlaunch import machine
    >>> hall = machine("dgx-h100:4")
    >>> hall.world_size, hall.gpu.name, hall.fabric.kind
    (32, 'NVIDIA H100 80GB HBM3', 'infiniband')
    """
    return inputs.hardware_of(spec, gpu=gpu)


def recipe(name: str | None = None, *, model_config: Path | str | None = None) -> Recipe:
    """What to train: a Megatron Bridge recipe by its name, or a model by its Hugging Face config.json.

    An installed Megatron Bridge is asked first; without one, the catalog in this package answers.

    Raises `UsageError` with the nearest names, or for a file that is no such config.

    >>> from parlaunch import recipe
    >>> llama = recipe("llama3_8b_pretrain_config")
    >>> llama.task, llama.seq_length, llama.architecture.num_layers
    ('pretrain', 8192, 32)
    """
    return inputs.named(_request(recipe=name, model_config=None if model_config is None else Path(model_config)))


def plan(
    recipe: Recipe | str,
    machine: Cluster | str = "auto",
    *,
    tp: int | None = None,
    pp: int | None = None,
    vp: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
    etp: int | None = None,
    micro_batch_size: int | None = None,
    recompute: str | None = None,
    fsdp: bool | None = None,
    seq_length: int | None = None,
    global_batch_size: int | None = None,
    precision: str | None = None,
    objective: str = "time",
    headroom: float = HEADROOM,
    top: int = 5,
    evidence: bool = True,
    machine_file: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
    switches: str = "auto",
    software: str | None = None,
    goal: Goal | None = None,
    start: Start | None = None,
) -> Plan:
    """The layout of `recipe` on `machine`, its predicted memory and time, and all that a launch of it needs: `environment`,
    `overrides`, `argv`.

    Sizes (`tp` to `micro_batch_size`, `recompute` as `--recompute` spells it, `fsdp`) are pins; None leaves them to the
    planner. `seq_length` (tokens), `global_batch_size` (sequences) and `precision` replace the recipe's own. `headroom` is
    the share of GPU memory that stays free, `top` the number of `alternatives`, `machine_file` what `parlaunch calibrate`
    wrote. `overrides` are KEY=VALUE for Megatron Bridge; those that name a size are pins. `switches` and `software` are as the
    options spell them: performance switches beside the sizes, and what is installed where the plan will run. `goal`
    says how long the whole run is and what a GPU-hour costs: `plan.training` has the answer. `start` says how the ranks will
    be started; nothing of this process is looked at.

    Raises `NoLayoutError` when nothing fits, `UsageError` for pins that contradict each other or that nothing can keep.

    >>> from parlaunch import plan
    >>> made = plan("llama3_8b_pretrain_config", "dgx-h100:1", micro_batch_size=1)
    >>> made.layout.world, made.layout.micro_batch_size, made.chosen.memory.fits
    (8, 1, True)
    >>> made.chosen.estimate.iteration_time_s > 0 and made.chosen.memory.peak <= made.chosen.memory.capacity
    True
    >>> made.argv[1:3]
    ('-m', 'torch.distributed.run')
    """
    from parlaunch.hardware.placement import order_nodes

    request = _request(
        recipe=recipe if isinstance(recipe, str) else recipe.name, tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, etp=etp,
        micro_batch_size=micro_batch_size, recompute=recompute, fsdp=fsdp, seq_length=seq_length,
        global_batch_size=global_batch_size, precision=precision, objective=objective, headroom=headroom, top=top,
        evidence=evidence, overrides=tuple(overrides), switches=switches,
    )  # fmt: skip
    pins = inputs.merged_pins(request)
    wanted = inputs.as_said(inputs.named(request) if isinstance(recipe, str) else recipe, request, pins)
    cluster = order_nodes(inputs.hardware_of(machine) if isinstance(machine, str) else machine)
    start = start or Start()
    rates = replace(rates_of(cluster, machine_file=machine_file), roaming=roaming(cluster, start))
    made = planner.plan(
        cluster, wanted, inputs.wishes_of(request, pins), rates=rates, software=inputs.software_of(software)
    )
    made = planner.lasting(made, goal or Goal())
    return complete(made, replace(start, overrides=(*request.overrides, *start.overrides)), recipe=wanted)


def why_not(plan: Plan, **sizes: int) -> str:
    """One sentence on why the plan does not use these sizes: a rule of Megatron's, the memory, or how much slower it is.

    Raises `UsageError` for a name that is no size.

    >>> from parlaunch import plan, why_not
    >>> why_not(plan("llama3_8b_pretrain_config", "dgx-h100:1"), tp=3, pp=1)
    'Megatron refuses tp=3 pp=1 dp=2 mbs=1: TP 3 does not divide the 32 attention heads.'
    """
    given = inputs.sizes_from(",".join(f"{name}={value}" for name, value in sizes.items()))
    return planner.why_not(plan, given, Wishes())


def diff(before: Plan, after: Plan) -> list[dict[str, Any]]:
    """What changed between two plans: one row a change with `part` (recipe, hardware, layout, switches, memory, time,
    environment, override), `name`, `before` and `after`, in the units of the JSON output; None where there is nothing.

    >>> from parlaunch import diff, plan
    >>> one, two = (plan("llama3_8b_pretrain_config", "dgx-h100:1", tp=tp) for tp in (2, 4))
    >>> [(row["before"], row["after"]) for row in diff(one, two) if row["name"] == "tp"]
    [(2, 4)]
    """
    from parlaunch.show.compare import difference

    return difference(before, after)


def to_text(plan: Plan, *, format: str = "text") -> str:
    """The plan as the command line prints it: `text`, `json`, `shell`, `sbatch`, or `report` for a page of HTML.

    Raises `UsageError` for another format.

    >>> from parlaunch import plan, to_text
    >>> to_text(plan("llama3_8b_pretrain_config", "dgx-h100:1"), format="sbatch").splitlines()[:3]
    ['#!/bin/bash', '#SBATCH --job-name=llama3_8b_pretrain', '#SBATCH --nodes=1']
    """
    from parlaunch.show.formats import MODULES, render

    inputs.choice("format", format, tuple(MODULES))
    return render(format, plan)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as the object `parlaunch.plan/1`, ready for `json.dump`: what `--format json` prints and `--plan` launches.

    >>> from parlaunch import plan, to_json
    >>> to_json(plan("llama3_8b_pretrain_config", "dgx-h100:1"))["schema"]
    'parlaunch.plan/1'
    """
    return plan_to_json(plan, version=__version__)


def from_json(data: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` gave. Raises `UsageError` for anything else.

    >>> from parlaunch import from_json, plan, to_json
    >>> made = plan("llama3_8b_pretrain_config", "dgx-h100:1")
    >>> from_json(to_json(made)) == made
    True
    """
    return plan_from_json(data, where="the plan")


def _request(**given: Any) -> Request:
    return Request(command="plan", **given)

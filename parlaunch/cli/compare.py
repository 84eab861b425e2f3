"""`parlaunch compare`, and `--what-if` of a plan: the same recipe on several machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from parlaunch.cli import inputs
from parlaunch.cli.job import measured_rates
from parlaunch.cli.request import Compared, Request
from parlaunch.cli.terminal import columns
from parlaunch.errors import NoLayoutError, UsageError
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.placement import order_nodes
from parlaunch.hardware.rates import rates_of
from parlaunch.hardware.what_if import changed_cluster, changed_rates, read
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.planner import lasting, plan
from parlaunch.show.comparison import Entry, to_html, to_json, to_text


def run(request: Request, compared: Compared) -> None:
    """Plan the recipe on every machine, as it is and with what is asked changed, and print them side by side."""
    inputs.choice("--format", request.format, ("text", "json"))
    machines = compared.machines
    if bare := [word for word in request.overrides if "=" not in word and not word.startswith("~")]:
        raise UsageError(
            f"{bare[0]!r} is no KEY=VALUE override",
            hint="machines are options: " + " ".join(f"--hardware {word}" for word in bare),
        )
    if not machines or len(machines) + len(request.what_if) < 2:
        raise UsageError(
            "nothing to compare: one machine" if machines else "nothing to compare: no machine",
            hint="name two: --hardware dgx-h100:16 --hardware gb200-nvl72:8racks, or add --what-if gpus=512",
        )
    if len(compared.prices) not in (0, 1, len(machines)):
        raise UsageError(
            f"{len(compared.prices)} prices for {len(machines)} machines",
            hint="one for all, or one a machine in their order",
        )
    pins = inputs.merged_pins(request)
    recipe = inputs.as_said(inputs.named(request), request, pins)
    wishes = inputs.wishes_of(request, pins)
    prices = (
        compared.prices * len(machines) if len(compared.prices) == 1 else compared.prices or (None,) * len(machines)
    )
    entries: list[Entry] = []
    for spec, price in zip(machines, prices, strict=True):
        asked = replace(request, price=price, hardware=spec)
        cluster = order_nodes(inputs.hardware_of(spec, gpu=request.gpu))
        entries += (_entry(asked, recipe, cluster, wishes, what_if) for what_if in ("", *request.what_if))
    if request.format == "json":
        file = None if request.machine_file is None else str(request.machine_file)
        print(json.dumps(to_json(entries) | {"machine_file": file}, indent=2))
    else:
        print(to_text(entries, width=columns(otherwise=sys.maxsize)), end="")
        if request.machine_file is not None:
            print(f"with the machine file {request.machine_file}")
    if request.report:
        title = f"{recipe.name} on {len(machines)} machine{'s' if len(machines) > 1 else ''}"
        notes = [f"{e.hardware}: {w}" for e in entries if e.plan and not e.what_if for w in e.plan.warnings]
        inputs.write(request.report, to_html(entries, title=title, notes=notes), "--report")


def changed(
    request: Request, recipe: Recipe, cluster: Cluster, wishes: Wishes, *, roaming: str | None
) -> Sequence[Entry]:
    """What the plan would be with each `--what-if`. `roaming`: as in the plan's rates."""
    return [_entry(request, recipe, cluster, wishes, what_if, roaming=roaming) for what_if in request.what_if]


def _entry(
    request: Request, recipe: Recipe, cluster: Cluster, wishes: Wishes, what_if: str, *, roaming: str | None = None
) -> Entry:
    given = read(what_if) if what_if else {}
    cluster = changed_cluster(cluster, given) if given else cluster
    rates = replace(changed_rates(measured_rates(request, cluster) or rates_of(cluster), given), roaming=roaming)
    try:
        made = plan(cluster, recipe, wishes, rates=rates)
    except NoLayoutError as error:
        return Entry(hardware=request.hardware, what_if=what_if, refused=error.problem.splitlines()[0])
    return Entry(hardware=request.hardware, what_if=what_if, plan=lasting(made, inputs.goal_of(request)))

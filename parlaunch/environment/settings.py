"""The environment of a plan: every variable with its value, its reason and where that is written.

`settings` gives what holds for the whole job, `node_settings` what belongs to one node. A variable that the user has set
stands, is shown as kept, and carries a warning when it will break the run. Megatron Bridge sets a recipe's own variables
later, by `setdefault`; the table here agrees with them, or its reason says why this machine or layout needs another value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from parlaunch.environment.network import node_rules
from parlaunch.environment.user_variables import consequence, named
from parlaunch.environment.variables import ENTRIES, Entry, Facts, tuned
from parlaunch.hardware.cluster import Cluster
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.plan import Variable
from parlaunch.rules.switches import legal_features

NEW_ALLOCATOR, OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def facts(
    cluster: Cluster,
    recipe: Recipe,
    layout: Layout,
    *,
    torch_version: str | None = None,
    device: str = "cuda",
    features: Features | None = None,
) -> Facts:
    """What the entries look at. An unreadable torch version counts as not known; `features` are a plan's, None: the recipe's."""
    found = re.match(r"(\d+)\.(\d+)", torch_version or "")
    configured = recipe if features is None else replace(recipe, features=features)
    return Facts(
        cluster=cluster, recipe=recipe, layout=layout, features=legal_features(configured, layout, cluster),
        planned=features, torch=(int(found[1]), int(found[2])) if found else None, device=device,
    )  # fmt: skip


def settings(
    cluster: Cluster,
    recipe: Recipe,
    layout: Layout,
    current: Mapping[str, str],
    *,
    torch_version: str | None = None,
    device: str = "cuda",
    features: Features | None = None,
) -> tuple[Variable, ...]:
    """Every variable of the job, in the order of the table; then the recipe's own, then what else of the user's matters.

    `current` is the environment as it is. `torch_version` decides names and limits that changed between releases;
    None: not known, and every release must be served. `features`: what a plan has on; None: the recipe's own.
    """
    s = facts(cluster, recipe, layout, torch_version=torch_version, device=device, features=features)
    found: dict[str, Variable] = {}
    for entry in ENTRIES:
        if device in entry.devices and (made := _by_entry(entry, s, current)) is not None:
            found[entry.name] = made
    if device == "cuda":
        for name, value in recipe.env.items():
            if name not in found and name not in current and name not in {r.name for r in ENTRIES}:
                found[name] = Variable(
                    name=name, value=value, reason="the recipe sets it", source=f"recipe {recipe.name}"
                )
    if NEW_ALLOCATOR in current and _reads_new_name(s):
        found.pop(OLD_ALLOCATOR, None)  # the user speaks under the name that wins
    sources = {r.name: r.source for r in ENTRIES} | named()
    ours = dict(found)
    for name in (*found, *(n for n in sources if n not in found)):
        if name in current:
            found[name] = _kept(name, current[name], ours.get(name), sources.get(name, f"recipe {recipe.name}"), s)
    return tuple(found.values())


def _reads_new_name(s: Facts) -> bool:
    return s.torch is None or s.torch >= (2, 9)


def _by_entry(entry: Entry, s: Facts, current: Mapping[str, str]) -> Variable | None:
    value, reason = _decide(entry, s)
    if entry.name == "CUDA_DEVICE_ORDER" and _order_matters(s.cluster, current):
        return None
    if value is None:
        return None
    return Variable(name=entry.name, value=value, reason=reason, source=entry.source)


def _order_matters(cluster: Cluster, current: Mapping[str, str]) -> bool:
    """The user picked GPUs by number in CUDA's default order, which is not that of PCI addresses here."""
    picked = current.get("CUDA_VISIBLE_DEVICES", "")
    mixed = any(len({g.name for g in node.gpus}) > 1 for node in cluster.nodes)
    return mixed and any(part.strip().isdigit() for part in picked.split(","))


def _decide(entry: Entry, s: Facts) -> tuple[str | None, str]:
    """Our value and its reason, having heard the recipe."""
    theirs = s.recipe.env.get(entry.name)
    if theirs is not None and _as_published(s):
        return theirs, f"{entry.reason}; the recipe's own value on its own machine and layout"
    if entry.tuning and s.recipe.env:
        return theirs, f"{entry.reason}; the recipe's own value"
    if (special := tuned(s, entry.name)) is not None:
        return special
    answer = entry.value(s)
    value, reason = answer if isinstance(answer, tuple) else (answer, entry.reason)
    if value is None and theirs is not None:
        if entry.neutral is not None and entry.neutral != theirs:
            return (
                entry.neutral,
                f"the recipe would set {theirs}, which does not suit this machine or layout: {entry.reason}",
            )
        return theirs, f"{entry.reason}; the recipe's own value"
    if theirs is not None and theirs != value:
        reason += f" (the recipe's {theirs} is for {s.recipe.hardware or 'another machine'} and its own layout)"
    return value, reason


def _as_published(s: Facts) -> bool:
    """The recipe on the machine, in the layout and with the buffers it was written for."""
    if s.features.nccl_ub and s.recipe.env.get("NCCL_NVLS_ENABLE") != "1":
        return False
    d, x = s.recipe.defaults, s.layout
    sizes = all(a is None or a == b for a, b in ((d.tp, x.tp), (d.pp, x.pp), (d.cp, x.cp), (d.ep, x.ep), (d.vp, x.vp)))
    made_for = s.recipe.hardware is not None and s.recipe.hardware == s.hardware
    switched = s.planned not in (None, s.recipe.features)
    return made_for and sizes and not switched and not (x.fsdp and not s.recipe.features.fsdp)


def _kept(name: str, value: str, ours: Variable | None, source: str, s: Facts) -> Variable:
    if ours is None:
        reason = "set already; parlaunch would leave it alone"
    elif ours.value == value:
        reason = ours.reason
    else:
        reason = f"set already; parlaunch would set {ours.value}: {ours.reason}"
    return Variable(
        name=name, value=value, reason=reason, source=source, kept=True, warning=consequence(name, value, s)
    )


def node_settings(cluster: Cluster, node_index: int, current: Mapping[str, str]) -> tuple[Variable, ...]:
    """What one node needs beside `settings`, only where the machine demands it: which GPUs in which order, which HCAs,
    which interface. `node_index` counts in `cluster.nodes`; `current` is that node's environment."""
    out = []
    for made, danger in node_rules(cluster, node_index, current):
        if made.name not in current:
            out.append(made)
            continue
        if made.name == "CUDA_VISIBLE_DEVICES" and made.value and _slurms_own(current):
            reason = f"{made.reason}; {current[made.name]} is Slurm's, the same GPUs in no order of their own"
            out.append(replace(made, reason=reason))
            continue
        mine = current[made.name]
        reason = made.reason if mine == made.value else f"set already; parlaunch would set {made.value}: {made.reason}"
        if made.value == "":
            reason = "set already; parlaunch would leave it alone"
        out.append(replace(made, value=mine, reason=reason, kept=True, warning=danger))
    return tuple(v for v in out if v.kept or v.value)


def _slurms_own(current: Mapping[str, str]) -> bool:
    """CUDA_VISIBLE_DEVICES is what Slurm made of the allocation: numbers that only count up. A user's is left alone."""
    numbers = current["CUDA_VISIBLE_DEVICES"].split(",")
    rising = all(n.isdigit() for n in numbers) and sorted(set(numbers), key=int) == numbers
    return rising and any(name in current for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"))


def problems(variables: tuple[Variable, ...]) -> tuple[str, ...]:
    """One sentence a variable that will break the run: what `--strict` refuses."""
    return tuple(f"{v.name}={v.value}: {v.warning}" for v in variables if v.warning)

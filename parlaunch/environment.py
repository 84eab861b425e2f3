"""The environment of a plan: every variable with its value, its reason and where that is written.

`settings` gives what holds for the whole job, `node_settings` what belongs to one node. A variable that the user has set
stands, is shown as kept, and carries a warning when it will break the run. Megatron Bridge sets a recipe's own variables
later, by `setdefault`; the table here agrees with them, or its reason says why this machine or layout needs another value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from parlaunch.env_network import node_rules
from parlaunch.env_rules import RULES, Rule, Situation, tuned
from parlaunch.env_user import consequence, named
from parlaunch.layout import Layout
from parlaunch.machine import Cluster
from parlaunch.overrides import legal_features
from parlaunch.plan import Variable
from parlaunch.recipe import Recipe

NEW_ALLOCATOR, OLD_ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def situation(
    cluster: Cluster, recipe: Recipe, layout: Layout, *, torch_version: str | None = None, device: str = "cuda"
) -> Situation:
    """What the rules look at. An unreadable torch version counts as not known."""
    found = re.match(r"(\d+)\.(\d+)", torch_version or "")
    return Situation(
        cluster=cluster, recipe=recipe, layout=layout, features=legal_features(recipe, layout, cluster),
        torch=(int(found[1]), int(found[2])) if found else None, device=device,
    )  # fmt: skip


def settings(
    cluster: Cluster,
    recipe: Recipe,
    layout: Layout,
    current: Mapping[str, str],
    *,
    torch_version: str | None = None,
    device: str = "cuda",
) -> tuple[Variable, ...]:
    """Every variable of the job, in the order of the table; then the recipe's own, then what else of the user's matters.

    `current` is the environment as it is. `torch_version` decides names and limits that changed between releases;
    None: not known, and every release must be served.
    """
    s = situation(cluster, recipe, layout, torch_version=torch_version, device=device)
    found: dict[str, Variable] = {}
    for rule in RULES:
        if device in rule.devices and (made := _by_rule(rule, s, current)) is not None:
            found[rule.name] = made
    if device == "cuda":
        for name, value in recipe.env.items():
            if name not in found and name not in current and name not in {r.name for r in RULES}:
                found[name] = Variable(
                    name=name, value=value, reason="the recipe sets it", source=f"recipe {recipe.name}"
                )
    if NEW_ALLOCATOR in current and _reads_new_name(s):
        found.pop(OLD_ALLOCATOR, None)  # the user speaks under the name that wins
    sources = {r.name: r.source for r in RULES} | named()
    ours = dict(found)
    for name in (*found, *(n for n in sources if n not in found)):
        if name in current:
            found[name] = _kept(name, current[name], ours.get(name), sources.get(name, f"recipe {recipe.name}"), s)
    return tuple(found.values())


def _reads_new_name(s: Situation) -> bool:
    return s.torch is None or s.torch >= (2, 9)


def _by_rule(rule: Rule, s: Situation, current: Mapping[str, str]) -> Variable | None:
    value, reason = _decide(rule, s)
    if rule.name == "CUDA_DEVICE_ORDER" and _order_matters(s.cluster, current):
        return None
    if value is None:
        return None
    return Variable(name=rule.name, value=value, reason=reason, source=rule.source)


def _order_matters(cluster: Cluster, current: Mapping[str, str]) -> bool:
    """The user picked GPUs by number in CUDA's default order, which is not that of PCI addresses here."""
    picked = current.get("CUDA_VISIBLE_DEVICES", "")
    mixed = any(len({g.name for g in node.gpus}) > 1 for node in cluster.nodes)
    return mixed and any(part.strip().isdigit() for part in picked.split(","))


def _decide(rule: Rule, s: Situation) -> tuple[str | None, str]:
    """Our value and its reason, having heard the recipe."""
    theirs = s.recipe.env.get(rule.name)
    if theirs is not None and _as_published(s):
        return theirs, f"{rule.reason}; the recipe's own value on its own machine and layout"
    if rule.tuning and s.recipe.env:
        return theirs, f"{rule.reason}; the recipe's own value"
    if (special := tuned(s, rule.name)) is not None:
        return special
    answer = rule.value(s)
    value, reason = answer if isinstance(answer, tuple) else (answer, rule.reason)
    if value is None and theirs is not None:
        if rule.neutral is not None and rule.neutral != theirs:
            return (
                rule.neutral,
                f"the recipe would set {theirs}, which does not suit this machine or layout: {rule.reason}",
            )
        return theirs, f"{rule.reason}; the recipe's own value"
    if theirs is not None and theirs != value:
        reason += f" (the recipe's {theirs} is for {s.recipe.hardware or 'another machine'} and its own layout)"
    return value, reason


def _as_published(s: Situation) -> bool:
    """The recipe on the machine, in the layout and with the buffers it was written for."""
    if s.features.nccl_ub and s.recipe.env.get("NCCL_NVLS_ENABLE") != "1":
        return False
    d, x = s.recipe.defaults, s.layout
    made_for = (s.recipe.hardware or "").upper()
    sizes = all(a is None or a == b for a, b in ((d.tp, x.tp), (d.pp, x.pp), (d.cp, x.cp), (d.ep, x.ep), (d.vp, x.vp)))
    return (
        bool(made_for) and s.gpu.upper().startswith(made_for) and sizes and not (x.fsdp and not s.recipe.features.fsdp)
    )


def _kept(name: str, value: str, ours: Variable | None, source: str, s: Situation) -> Variable:
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


def as_shell(variables: tuple[Variable, ...]) -> str:
    """Lines for a shell: a reason as comment, then the export. What is kept is a comment only."""
    lines = []
    for v in variables:
        if v.kept:
            lines.append(
                f"# {v.name}={v.value} is set already and kept" + (f"; WARNING: {v.warning}" if v.warning else "")
            )
        else:
            lines += [f"# {v.reason}", f"export {v.name}={shlex.quote(v.value)}"]
    return "".join(line + "\n" for line in lines)

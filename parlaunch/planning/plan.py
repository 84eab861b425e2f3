"""What the planner answers: a layout and everything that follows from it. Values only; `parlaunch.planning.planner` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, replace
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.estimate.training import Training, training_from_json, training_to_json
from parlaunch.estimate.values import Breakdown, Estimate, Memory, estimate_to_json, memory_to_json
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster, cluster_from_json, cluster_to_json
from parlaunch.hardware.installed import Installed, software_from_json, software_to_json
from parlaunch.hardware.rates import HEADROOM, Rates, rates_from_json, rates_of, rates_to_json
from parlaunch.model.architecture import architecture_from_json, flaw
from parlaunch.model.layout import (
    Layout,
    Recompute,
    Sizes,
    layout_from_json,
    layout_to_json,
    recompute_from_json,
    recompute_to_json,
)
from parlaunch.model.parameters import active_params, total_params
from parlaunch.model.recipe import Defaults, Features, Recipe
from parlaunch.model.stages import StageWish
from parlaunch.switches.wanted import AS_RECIPE, Wanted
from parlaunch.typed import misfit


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes(Sizes):
    """What the user fixed. None: ours to choose."""

    recompute: Recompute | None = None
    fsdp: bool | None = None
    cp_comm_type: str | None = None
    stages: StageWish | None = None  # how the layers are cut
    switches: Wanted = AS_RECIPE
    objective: str = "time"  # one of `parlaunch.planning.objective.OBJECTIVES`
    headroom: float = HEADROOM  # share of GPU memory left free
    top: int = 5
    evidence: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layout that Megatron would run, with its predicted memory and time."""

    layout: Layout
    memory: Memory
    estimate: Estimate
    features: Features | None = None  # what it was estimated with; None: the recipe's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """One switch that is not as the recipe has it."""

    name: str
    value: str
    recipe_value: str | None  # None: not known
    reason: str
    source: str  # file:line, as of a rule
    seconds: (
        float | None
    )  # an iteration that it saves against the recipe's own value; None: not known, or that cannot be on
    bytes: int | None  # of the peak that it saves
    numerics: str  # what it does to the numbers
    keys: tuple[tuple[str, Any], ...]  # what Megatron Bridge hears of it


@dataclass(frozen=True, slots=True, kw_only=True)
class AsRecipe:
    """The recipe on this machine in its own layout and switches; None where that does not run."""

    iteration_time_s: float | None
    peak_bytes: int | None
    fits: bool
    why_not: str | None = None  # one sentence where it does not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One environment variable of the plan."""

    name: str
    value: str
    reason: str
    source: str
    kept: bool = False  # the user had set it; we left it
    warning: str | None = None  # what the user's value will do


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A near miss: a layout, and the rule or the memory that stopped it."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole answer. Launching is executing `argv` with `environment` set."""

    recipe: Recipe
    cluster: Cluster
    rates: Rates  # what everything in the plan was computed with: the data sheet's, or measured
    chosen: Candidate
    objective: str = "time"  # what it is best at, of `parlaunch.planning.objective.OBJECTIVES`
    environment: tuple[Variable, ...] = ()
    overrides: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    rank_order: tuple[str, ...] = ()
    because: tuple[str, ...] = ()
    alternatives: tuple[Candidate, ...] = ()
    rejected: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    not_planned_for: tuple[str, ...] = ()  # keys of the user's that bear on the run and that nothing here was made with
    evidence: tuple[Mapping[str, Any], ...] = field(default=())  # published layouts for this model and machine
    training: Training | None = None  # the whole run, where its length or its price is known
    switches: tuple[Switched, ...] = ()  # those that are not as the recipe has them
    as_recipe: AsRecipe | None = None  # the recipe as written, on this machine; None: not asked
    software: Installed | None = None  # what the plan takes to be installed

    @property
    def layout(self) -> Layout:
        """The chosen one."""
        return self.chosen.layout

    @property
    def sequence_parallel(self) -> bool:
        """Whether TP splits sequences too: always with TP, unless the user says otherwise."""
        return self.layout.sequence_parallel and self.recipe.features.sequence_parallel

    @property
    def configured(self) -> Recipe:
        """The recipe with the plan's switches: what is estimated, and what trains."""
        return self.configured_for(self.chosen)

    def configured_for(self, candidate: Candidate) -> Recipe:
        """The recipe with a candidate's switches."""
        features = candidate.features
        if features is None or features == self.recipe.features:
            return self.recipe
        return replace(self.recipe, features=features)


def candidate_to_json(candidate: Candidate, recipe: Recipe) -> dict[str, Any]:
    """Layout, estimate and memory of one candidate."""
    return {
        "layout": _layout_to_json(candidate.layout, recipe),
        "estimate": estimate_to_json(candidate.estimate),
        "memory": memory_to_json(candidate.memory),
        "features": None if candidate.features is None else _features_to_json(candidate.features),
    }


def _layout_to_json(layout: Layout, recipe: Recipe) -> dict[str, Any]:
    split = layout.sequence_parallel and recipe.features.sequence_parallel
    return layout_to_json(layout) | {"sequence_parallel": split}


def _features_to_json(features: Features) -> dict[str, Any]:
    return {f.name: getattr(features, f.name) for f in fields(Features)} | {"dp_overlap": features.dp_overlap}


def switched_to_json(switched: Switched) -> dict[str, Any]:
    """One of the `switches` of `parlaunch.plan/1`."""
    s = switched
    return {
        "name": s.name, "value": s.value, "recipe_value": s.recipe_value, "reason": s.reason, "source": s.source,
        "seconds": s.seconds, "bytes": s.bytes, "numerics": s.numerics, "keys": dict(s.keys),
    }  # fmt: skip


def as_recipe_to_json(made: AsRecipe | None) -> dict[str, Any] | None:
    """The `estimate_as_recipe` object of `parlaunch.plan/1`."""
    return None if made is None else {f.name: getattr(made, f.name) for f in fields(AsRecipe)}


RECIPE_FACTS = ("folder", "train_iters", "optimizer", "packing", "loader", "mock_tokens", "added_mtp_layers")
"""Fields of a recipe that are in its JSON under their own names; plans saved before they were have their defaults."""


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The `recipe` object of `parlaunch.plan/1`."""
    a, d = recipe.architecture, recipe.defaults
    return {
        "name": recipe.name,
        "source": recipe.source,
        "task": recipe.task,
        "model": a.shape()
        | {"id": recipe.model_id, "total_params": total_params(a), "active_params": active_params(a)},
        "seq_length": recipe.seq_length,
        "global_batch_size": recipe.global_batch_size,
        "micro_batch_size": d.micro_batch_size,
        "precision": recipe.precision,
        "defaults": {
            **{name: getattr(d, name) for name in ("tp", "pp", "vp", "cp", "ep", "etp", "sequence_parallel")},
            "recompute": None if d.recompute is None else recompute_to_json(d.recompute),
            "layers_per_chunk": None if d.layers_per_chunk is None else list(d.layers_per_chunk),
        },
        "family": recipe.model,
        "benchmark": recipe.benchmark,
        "features": _features_to_json(recipe.features),
        "gpus": recipe.gpus,
        "hardware": recipe.hardware,
        "feasible": recipe.feasible,
        "violations": list(recipe.violations),
        **{name: getattr(recipe, name) for name in RECIPE_FACTS},
        "unsettled": list(recipe.unsettled),
        "bare": list(recipe.bare),
        "lacks": list(recipe.lacks),
        "env": dict(recipe.env),
    }


def plan_to_json(plan: Plan, *, version: str) -> dict[str, Any]:
    """The object `parlaunch.plan/1`. Fields are added, never renamed."""
    return {
        "schema": "parlaunch.plan/1",
        "version": version,
        "recipe": recipe_to_json(plan.recipe),
        "hardware": cluster_to_json(plan.cluster),
        "rates": rates_to_json(plan.rates),
        **candidate_to_json(plan.chosen, plan.recipe),
        "objective": plan.objective,
        "environment": [
            {
                "name": v.name,
                "value": v.value,
                "reason": v.reason,
                "source": v.source,
                "kept": v.kept,
                "warning": v.warning,
            }
            for v in plan.environment
        ],
        "overrides": list(plan.overrides),
        "argv": list(plan.argv),
        "rank_order": list(plan.rank_order),
        "because": list(plan.because),
        "alternatives": [candidate_to_json(c, plan.recipe) for c in plan.alternatives],
        "rejected": [{"layout": _layout_to_json(r.layout, plan.recipe), "reason": r.reason} for r in plan.rejected],
        "warnings": list(plan.warnings),
        "not_planned_for": list(plan.not_planned_for),
        "evidence": [dict(e) for e in plan.evidence],
        "training": training_to_json(plan.training),
        "switches": [switched_to_json(s) for s in plan.switches],
        "estimate_as_recipe": as_recipe_to_json(plan.as_recipe),
        "software": None if plan.software is None else software_to_json(plan.software),
    }


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _candidate(data: Mapping[str, Any]) -> Candidate:
    memory, estimate = data["memory"], data["estimate"]
    names = {f.name for f in fields(Memory)}
    flat = {**memory["components"], **{k: v for k, v in memory.items() if k in names}}
    e_names = {f.name for f in fields(Estimate)} - {"breakdown"}
    return Candidate(
        layout=layout_from_json(data["layout"]),
        memory=Memory(
            **flat,
            capacity=memory["capacity_bytes"],
            limit=memory["limit_bytes"],
            slack=memory["slack_bytes"],
            pool=memory.get("pool_bytes", 0),
            spare=memory.get("spare_bytes", 0),
        ),
        estimate=Estimate(
            **{k: v for k, v in estimate.items() if k in e_names}, breakdown=Breakdown(**estimate["breakdown"])
        ),
        features=None if data.get("features") is None else _features(data["features"]),
    )


def _features(data: Mapping[str, Any]) -> Features:
    made = {k: _tuples(v) for k, v in data.items()}
    both = made.pop("dp_overlap", True)  # all that plans saved before said of the two
    return Features(**{"reduce_overlap": both, "gather_overlap": both} | made)


def _switched(data: Mapping[str, Any]) -> Switched:
    keys = tuple((k, _tuples(v)) for k, v in data["keys"].items())
    return Switched(**{**data, "keys": keys})


def _defaults(recipe: Mapping[str, Any]) -> Defaults:
    d = dict(recipe["defaults"])
    recompute, chunks = d.pop("recompute"), d.pop("layers_per_chunk")
    return Defaults(
        micro_batch_size=recipe["micro_batch_size"],
        recompute=None if recompute is None else recompute_from_json(recompute),
        layers_per_chunk=None if chunks is None else tuple(chunks),
        **d,
    )


def recipe_from_json(r: Mapping[str, Any]) -> Recipe:
    """The recipe that `recipe_to_json` wrote. Raises KeyError and TypeError for anything else."""
    return Recipe(
        name=r["name"], source=r["source"], task=r["task"], model=r["family"], model_id=r["model"]["id"],
        architecture=architecture_from_json(r["model"]), seq_length=r["seq_length"],
        global_batch_size=r["global_batch_size"], precision=r["precision"],
        defaults=_defaults(r), features=_features(r["features"]), benchmark=r["benchmark"],
        gpus=r["gpus"], hardware=r["hardware"], feasible=r["feasible"], violations=tuple(r["violations"]), env=r["env"],
        unsettled=tuple(r.get("unsettled", ())), bare=tuple(r.get("bare", ())), lacks=tuple(r.get("lacks", ())), **{name: r[name] for name in RECIPE_FACTS if name in r},
    )  # fmt: skip


def plan_from_json(data: Mapping[str, Any], *, where: str) -> Plan:
    """The plan that `plan_to_json` wrote. Raises `UsageError` naming `where` for anything else."""
    try:
        if data["schema"] != "parlaunch.plan/1":
            raise UsageError(
                f"{where}: schema {data['schema']!r} is not parlaunch.plan/1", hint="save one with --save-plan"
            )
        cluster = cluster_from_json(data["hardware"], where=where)
        made = Plan(
            recipe=recipe_from_json(data["recipe"]),
            cluster=cluster,
            # Plans saved before they carried their rates were made from the data sheet, or do not say otherwise.
            rates=rates_from_json(data["rates"], where=where) if "rates" in data else rates_of(cluster),
            chosen=_candidate(data),
            objective=data.get("objective", "time"),
            environment=tuple(Variable(**v) for v in data["environment"]),
            overrides=tuple(data["overrides"]),
            argv=tuple(data["argv"]),
            rank_order=tuple(data["rank_order"]),
            because=tuple(data["because"]),
            alternatives=tuple(_candidate(c) for c in data["alternatives"]),
            rejected=tuple(Refusal(layout=layout_from_json(x["layout"]), reason=x["reason"]) for x in data["rejected"]),
            warnings=tuple(data["warnings"]),
            not_planned_for=tuple(data.get("not_planned_for", ())),
            evidence=tuple(data["evidence"]),
            training=training_from_json(data.get("training")),
            switches=tuple(_switched(s) for s in data.get("switches", ())),
            as_recipe=AsRecipe(**told) if (told := data.get("estimate_as_recipe")) else None,
            software=software_from_json(told) if (told := data.get("software")) else None,
        )
        # The cluster's reader has looked at it.
        wrong = misfit(made, without=("cluster",)) or flaw(made.recipe.architecture)
        if wrong is not None:
            raise ValueError(wrong)
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{where} is not a plan as parlaunch writes it: {error}", hint="save one with --save-plan"
        ) from error

"""What the planner answers: a layout and everything that follows from it. Values only; `parlaunch.planner` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from parlaunch.architecture import architecture_from_json
from parlaunch.errors import UsageError
from parlaunch.layout import (
    Layout,
    Recompute,
    layout_from_json,
    layout_to_json,
    recompute_from_json,
    recompute_to_json,
)
from parlaunch.machine import Cluster, cluster_from_json, cluster_to_json
from parlaunch.recipe import Defaults, Features, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user fixed. None: ours to choose."""

    tp: int | None = None
    pp: int | None = None
    vp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    micro_batch_size: int | None = None
    recompute: Recompute | None = None
    fsdp: bool | None = None
    objective: str = "time"  # time | memory
    headroom: float = 0.08  # share of GPU memory left free
    top: int = 5
    evidence: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak bytes on the fullest GPU of the fullest pipeline stage."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int  # communication buffers, dispatch, workspaces
    runtime: int  # CUDA context, NCCL, allocator slack: what nvidia-smi shows on top of the tensors
    capacity: int
    limit: int  # capacity less headroom
    stage: int = 0  # the pipeline stage it is about
    error_band: float = 0.10  # ± share
    slack: int = 0  # of `runtime`: what the caching allocator holds beyond the tensors

    @property
    def allocated(self) -> int:
        """What torch.cuda.max_memory_allocated would say."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def reserved(self) -> int:
        """What torch.cuda.max_memory_reserved would say."""
        return self.allocated + self.slack

    @property
    def peak(self) -> int:
        """What nvidia-smi would show."""
        return self.allocated + self.runtime

    @property
    def runs(self) -> bool:
        """It would not run out of memory: no headroom asked, and the allocator gives back what it caches when it must."""
        return self.peak - self.slack <= self.capacity

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds of one iteration on the critical path; they add up to the iteration."""

    compute_s: float = 0.0
    tp_s: float = 0.0
    cp_s: float = 0.0
    ep_s: float = 0.0
    pp_bubble_s: float = 0.0
    pp_p2p_s: float = 0.0
    dp_exposed_s: float = 0.0
    optimizer_s: float = 0.0
    host_s: float = 0.0

    @property
    def total(self) -> float:
        return sum(float(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Predicted time of one iteration and what follows from it."""

    iteration_time_s: float
    error_band: float  # ± share, from the residuals on published runs of this kind
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    mfu: float
    breakdown: Breakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layout that Megatron would run, with its predicted memory and time."""

    layout: Layout
    memory: Memory
    estimate: Estimate


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
    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole answer. Launching is executing `argv` with `environment` set."""

    recipe: Recipe
    cluster: Cluster
    chosen: Candidate
    environment: tuple[Variable, ...] = ()
    overrides: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    rank_order: tuple[str, ...] = ()
    because: tuple[str, ...] = ()
    alternatives: tuple[Candidate, ...] = ()
    rejected: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    evidence: tuple[Mapping[str, Any], ...] = field(default=())  # published layouts for this model and machine

    @property
    def layout(self) -> Layout:
        return self.chosen.layout


def memory_to_json(memory: Memory) -> dict[str, Any]:
    """The `memory` object of `parlaunch.plan/1`, in bytes."""
    names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")
    return {
        "peak_bytes": memory.peak,
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "slack_bytes": memory.slack,
        "error_band": memory.error_band,
        "capacity_bytes": memory.capacity,
        "limit_bytes": memory.limit,
        "fits": memory.fits,
        "stage": memory.stage,
        "components": {name: getattr(memory, name) for name in names},
    }


def estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    """The `estimate` object of `parlaunch.plan/1`, in seconds and per second."""
    b = estimate.breakdown
    return {
        "iteration_time_s": estimate.iteration_time_s,
        "error_band": estimate.error_band,
        "tokens_per_s_per_gpu": estimate.tokens_per_s_per_gpu,
        "model_tflops_per_gpu": estimate.model_tflops_per_gpu,
        "mfu": estimate.mfu,
        "breakdown": {f.name: getattr(b, f.name) for f in fields(b)},
    }


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """Layout, estimate and memory of one candidate."""
    return {
        "layout": layout_to_json(candidate.layout),
        "estimate": estimate_to_json(candidate.estimate),
        "memory": memory_to_json(candidate.memory),
    }


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The `recipe` object of `parlaunch.plan/1`."""
    a, d = recipe.architecture, recipe.defaults
    return {
        "name": recipe.name,
        "source": recipe.source,
        "task": recipe.task,
        "model": a.shape() | {"id": recipe.model_id, "total_params": a.total_params, "active_params": a.active_params},
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
        "features": {f.name: getattr(recipe.features, f.name) for f in fields(Features)},
        "gpus": recipe.gpus,
        "hardware": recipe.hardware,
        "feasible": recipe.feasible,
        "violations": list(recipe.violations),
        "env": dict(recipe.env),
    }


def plan_to_json(plan: Plan, *, version: str) -> dict[str, Any]:
    """The object `parlaunch.plan/1`. Fields are added, never renamed."""
    return {
        "schema": "parlaunch.plan/1",
        "version": version,
        "recipe": recipe_to_json(plan.recipe),
        "hardware": cluster_to_json(plan.cluster),
        **candidate_to_json(plan.chosen),
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
        "alternatives": [candidate_to_json(c) for c in plan.alternatives],
        "rejected": [{"layout": layout_to_json(r.layout), "reason": r.reason} for r in plan.rejected],
        "warnings": list(plan.warnings),
        "evidence": [dict(e) for e in plan.evidence],
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
        ),
        estimate=Estimate(
            **{k: v for k, v in estimate.items() if k in e_names}, breakdown=Breakdown(**estimate["breakdown"])
        ),
    )


def _defaults(recipe: Mapping[str, Any]) -> Defaults:
    d = dict(recipe["defaults"])
    recompute, chunks = d.pop("recompute"), d.pop("layers_per_chunk")
    return Defaults(
        micro_batch_size=recipe["micro_batch_size"],
        recompute=None if recompute is None else recompute_from_json(recompute),
        layers_per_chunk=None if chunks is None else tuple(chunks),
        **d,
    )


def plan_from_json(data: Mapping[str, Any], *, where: str) -> Plan:
    """The plan that `plan_to_json` wrote. Raises `UsageError` naming `where` for anything else."""
    try:
        if data["schema"] != "parlaunch.plan/1":
            raise UsageError(
                f"{where}: schema {data['schema']!r} is not parlaunch.plan/1", hint="save one with --save-plan"
            )
        r = data["recipe"]
        features = {k: _tuples(v) for k, v in r["features"].items()}
        recipe = Recipe(
            name=r["name"], source=r["source"], task=r["task"], model=r["family"], model_id=r["model"]["id"],
            architecture=architecture_from_json(r["model"]), seq_length=r["seq_length"],
            global_batch_size=r["global_batch_size"], precision=r["precision"],
            defaults=_defaults(r), features=Features(**features), benchmark=r["benchmark"],
            gpus=r["gpus"], hardware=r["hardware"], feasible=r["feasible"], violations=tuple(r["violations"]), env=r["env"],
        )  # fmt: skip
        return Plan(
            recipe=recipe,
            cluster=cluster_from_json(data["hardware"], where=where),
            chosen=_candidate(data),
            environment=tuple(Variable(**v) for v in data["environment"]),
            overrides=tuple(data["overrides"]),
            argv=tuple(data["argv"]),
            rank_order=tuple(data["rank_order"]),
            because=tuple(data["because"]),
            alternatives=tuple(_candidate(c) for c in data["alternatives"]),
            rejected=tuple(Refusal(layout=layout_from_json(x["layout"]), reason=x["reason"]) for x in data["rejected"]),
            warnings=tuple(data["warnings"]),
            evidence=tuple(data["evidence"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{where} is not a plan as parlaunch writes it: {error}", hint="save one with --save-plan"
        ) from error

"""Runs of one's own as rows: what was planned, exactly, beside what was measured. The history is made of them.

A row is one of those that `parlaunch validate` reads, for people and other tools, and carries under `planned` the recipe, the
layout and the rates that the prediction was made with: read back, it gives the very same prediction.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from parlaunch.check.verdict import WARM_UP, Measured, Verdict
from parlaunch.data import load
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import product
from parlaunch.hardware.rates import rates_to_json
from parlaunch.model.layout import layout_to_json
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Plan, recipe_to_json
from parlaunch.switches.table import switch

SCHEMA = "parlaunch.run/1"


def preset_like(cluster: Cluster) -> str | None:
    """The preset whose machines are most like these: same GPU, then same number of them, then NVLink or not, then same kind
    of fabric. None where no preset has this GPU: a CPU, or a product that no data sheet knows."""
    found = product(cluster.gpu.name) if cluster.world_size else None
    if found is None:
        return None
    rows = {name: row for name, row in load("presets.json")["presets"].items() if row["gpu"] == found.name}

    def likeness(name: str) -> tuple[bool, bool, bool]:
        row = rows[name]
        joined = row["nvlink_group"] * row["nvlink_domain_nodes"] > 1
        return (
            row["gpus_per_node"] == cluster.gpus_per_node,
            joined == (cluster.nvlink_domain_size > 1),
            row["fabric"]["kind"] == cluster.fabric.kind,
        )

    return max(rows, key=likeness, default=None)


def row(
    plan: Plan,
    measured: Measured,
    verdict: Verdict,
    *,
    when: str,
    sampled_peak: int | None = None,
    software: Mapping[str, str | None] | None = None,
    site: str | None = None,
    source: str = "verify",
) -> dict[str, Any]:
    """One row. `when` is an ISO time; `software` versions by name; `site` the cluster's own name; `source` who measured.

    A run that failed lends neither its time nor its memory: it says how it failed.
    """
    layout, recipe = plan.layout, plan.configured
    took = measured.iteration_time_s if verdict.ok else None
    tokens = layout.global_batch_size * recipe.seq_length
    allocated = measured.peak_allocated
    peak, kind = (allocated, "allocated") if allocated is not None else (sampled_peak, "nvidia-smi")
    flops = [i.tflops for i in measured.iterations[WARM_UP:] if i.tflops]
    estimate, memory = plan.chosen.estimate, plan.chosen.memory
    return {
        "schema": SCHEMA,
        "id": f"{recipe.name}/{layout}/{when}", "when": when, "source": source, "recipe": recipe.name,
        "model_id": recipe.model_id, "arch": recipe.architecture.shape(), "task": recipe.task,
        "hardware": preset_like(plan.cluster), "machine": plan.cluster.source, "gpu": plan.cluster.gpu.name,
        "site": site, "nodes": [n.hostname for n in plan.cluster.nodes], "driver": plan.cluster.nodes[0].driver,
        "fabric_bytes_per_s_per_gpu": plan.cluster.fabric.bytes_per_s_per_gpu, "gpus": layout.world,
        "software": dict(software or {}),
        "precision": recipe.precision, "seq": recipe.seq_length,
        "gbs": layout.global_batch_size, "mbs": layout.micro_batch_size, "tp": layout.tp, "pp": layout.pp, "vp": layout.vp,
        "cp": layout.cp, "ep": layout.ep, "etp": layout.etp, "recompute": layout_to_json(layout)["recompute"],
        "status": "ok" if verdict.ok else verdict.status,
        "why": None if verdict.ok else next(iter(verdict.sentences), None),
        "failed_switch": None if verdict.ok else _failed_switch(recipe, measured),
        "iteration_time_s": took,
        "tokens_per_s_per_gpu": None if took is None else tokens / took / layout.world,
        "model_tflops_per_gpu": statistics.median(flops) if flops and verdict.ok else None,
        "peak_memory_gb": None if peak is None or not verdict.ok else peak / 2**30,
        "unit": "GiB", "peak_memory_metric": kind,
        "predicted": {
            "iteration_time_s": estimate.iteration_time_s, "peak_bytes": memory.peak, "allocated_bytes": memory.allocated,
        },
        "planned": {
            "recipe": recipe_to_json(recipe), "layout": layout_to_json(layout), "rates": rates_to_json(plan.rates),
        },
    }  # fmt: skip


def _failed_switch(recipe: Recipe, measured: Measured) -> dict[str, str] | None:
    """The switch that failed first and the value that it had; None when the log speaks of none, or it was not on."""
    found = (switch(failure.switch) for failure in measured.failures[:1] if failure.switch)
    on = ((row, row.read(recipe.features)) for row in found if row is not None)
    return next(({"name": row.name, "value": value} for row, value in on if value not in (None, row.known_off)), None)

"""Switches of a recipe that a layout or a machine makes illegal: why they must be off, and what is left on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from parlaunch.datasheet import product
from parlaunch.layout import Layout
from parlaunch.machine import Cluster
from parlaunch.recipe import Features, Recipe


def overlap_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why the expert all-to-all cannot run under the next micro batch's compute, or None when it can."""
    if not recipe.architecture.num_moe_experts:
        return "the model has no experts"
    if layout.ep == 1:
        return "it needs ep above 1"
    if layout.pp > 1 and not layout.vp:
        return f"pp={layout.pp} needs virtual stages for it"
    if layout.recompute.granularity == "full":
        return "it excludes full recomputation"
    if "moe" in layout.recompute.modules or "shared_experts" in layout.recompute.modules:
        return "it excludes recomputing the experts"
    if (recipe.architecture.mtp_num_layers or 0) > 1:
        return "it takes at most one multi-token prediction layer"
    return None


def graph_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why the recipe's CUDA graphs cannot be captured in this layout, or None when they can."""
    f, r = recipe.features, layout.recompute
    if r.granularity == "full" and f.cuda_graph != "full_iteration":
        return "full recomputation excludes graphs of single modules"
    if "moe" in r.modules and "moe_router" in f.cuda_graph_scope:
        return "recomputing the experts excludes a captured router"
    return None


def offload_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why layers cannot be offloaded to host memory in this layout, or None when they can."""
    number, layers = recipe.features.cpu_offload_layers, recipe.architecture.num_layers
    if layout.pp > 1:
        return "it excludes pipeline parallelism"
    if layout.recompute.granularity:
        return "it excludes recomputation"
    return f"{number} layers of {layers}: at least one must stay" if number >= layers else None


def fine_offload_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why activations of the recipe's modules cannot be offloaded in this layout, or None when they can."""
    inner = [m for m in recipe.features.offload_modules if m.startswith(("expert", "moe"))]
    if inner and "moe" in layout.recompute.modules:
        return f"recomputing whole expert layers leaves nothing of {', '.join(inner)} to offload"
    return None


def dispatcher_problem(recipe: Recipe, layout: Layout, cluster: Cluster | None) -> str | None:
    """Why the recipe's token dispatcher cannot run here, or None when it can."""
    kind = recipe.features.dispatcher
    if kind not in ("deepep", "hybridep"):
        return None
    if kind == "deepep" and layout.ep * layout.etp == 1:
        return "DeepEP needs ep or etp above 1"
    if cluster is None or not any(n.gpus for n in cluster.nodes):
        return None
    sheet = product(cluster.gpu.name)
    capability = cluster.gpu.compute_capability or (sheet.compute_capability if sheet else None)
    if capability is None:
        return None
    if (
        kind == "deepep"
        and capability[0] not in (8, 9)
        and not cluster.gpu.name.startswith(("NVIDIA B200", "NVIDIA B300"))
    ):
        return f"DeepEP runs on Ampere, Hopper, B200 and B300, not on {cluster.gpu.name}"
    if kind == "hybridep" and capability[0] not in (8, 9, 10):
        return f"HybridEP runs on compute capability 8, 9 and 10, not on {cluster.gpu.name}"
    return None


def legal_features(recipe: Recipe, layout: Layout, cluster: Cluster | None = None) -> Features:
    """The recipe's features less what this layout or machine makes illegal: what will really be on."""
    f = recipe.features
    changes: dict[str, Any] = {"fsdp": layout.fsdp}
    if f.ep_overlap and overlap_problem(recipe, layout):
        changes["ep_overlap"] = False
    if f.tp_overlap and layout.tp == 1:
        changes["tp_overlap"] = False
    if f.cuda_graph and graph_problem(recipe, layout):
        changes |= {"cuda_graph": None, "cuda_graph_scope": ()}
    if f.cpu_offload_layers and offload_problem(recipe, layout):
        changes["cpu_offload_layers"] = 0
    if fine_offload_problem(recipe, layout):
        changes["offload_modules"] = ()
    if dispatcher_problem(recipe, layout, cluster):
        changes["dispatcher"] = "alltoall"
    return replace(f, **changes)

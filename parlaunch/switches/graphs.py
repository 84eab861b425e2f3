"""CUDA graphs: what is captured, where that may be, what Megatron Bridge hears."""

from __future__ import annotations

from dataclasses import replace

from parlaunch.hardware.installed import GRAPHS_NEED
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import GRAPH, MODULES, SCOPE
from parlaunch.rules.switches import GRAPHS, graphed_biases
from parlaunch.switches import offloading
from parlaunch.switches.switch import Place, lacks


def read(features: Features) -> str:
    """What is captured, as `graphs=` says it."""
    f = features
    if f.cuda_graph is None:
        return "off"
    if f.cuda_graph == "full_iteration":
        return "full"
    scope = "+".join(f.cuda_graph_scope) or "all"
    return scope if f.cuda_graph == "transformer_engine" else f"local:{scope}"


def put(f: Features, value: str) -> Features:
    """The features with that captured."""
    if value == read(f):
        return f
    f = replace(f, external_cuda_graph=False)
    if value == "off":
        return replace(f, cuda_graph=None, cuda_graph_scope=())
    if value == "full":
        return replace(f, cuda_graph="full_iteration", cuda_graph_scope=())
    kind, _, scope = value.rpartition(":")
    modules = () if scope == "all" else tuple(scope.split("+"))
    return replace(f, cuda_graph=kind or "transformer_engine", cuda_graph_scope=modules)


GRAPHED = ("attn", "mamba", "mlp", "moe", "moe_router", "moe_preprocess")
"""Modules that Transformer Engine captures one by one (megatron/core/transformer/enums.py: CudaGraphModule)."""


def taken(value: str) -> str | None:
    """The value as it is written; None: it is none."""
    if value in ("off", "full", "all"):
        return value
    named = value.split("+")
    return value if all(m in GRAPHED for m in named) and len(set(named)) == len(named) else None


def graphed_modules(recipe: Recipe) -> tuple[str, ...]:
    """What NVIDIA's tuned recipes capture in such a model: attention, Mamba layers, and of experts what comes before the number
    of tokens of each is known."""
    a = recipe.architecture
    kinds = a.layers()
    found = ["attn"] if a.num_attention_heads else []
    found += ["mamba"] if any(kind.mixer == "mamba" for kind in kinds) else []
    found += ["moe_router", "moe_preprocess"] if a.num_moe_experts else []
    return tuple(found)


def layerwise(recipe: Recipe) -> tuple[str, ...]:
    """What is captured of each layer where nobody names modules: all of it, but for layers with experts, whose number of tokens
    is known only as they come (megatron/core/transformer/transformer_config.py:2511)."""
    return graphed_modules(recipe) if recipe.architecture.num_moe_experts else ()


def uncaptured(r: Recipe, p: Place) -> str | None:
    """Why no graphs are chosen, whatever the layout."""
    static = r.task == "pretrain" and r.architecture.kind == "llm" and r.packing is None
    if not static:
        return "a graph is captured for one shape, and only you know whether your samples are padded to one"
    if p.installed.missing("transformer_engine"):
        return "they are Transformer Engine's, which is not installed"
    return lacks(p, GRAPHS_NEED)


def choices(r: Recipe, p: Place) -> tuple[str, ...]:
    """What the planner may take."""
    return ("off",) if uncaptured(r, p) else ("off", "+".join(graphed_modules(r)))


def keys(r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears."""
    f = r.features
    if value == "off":
        return {GRAPH: "none"}
    kind = {"full": "full_iteration"}.get(value, f.cuda_graph or "transformer_engine")
    # Recipes name the modules under the older key, and Megatron takes one of the two.
    keys: dict[str, object] = {GRAPH: kind, MODULES: f.cuda_graph_scope}
    keys[SCOPE] = None
    return keys | beside(r)


def beside(r: Recipe) -> dict[str, object]:
    """What Megatron Bridge has to hear beside the graphs that the recipe has, or refuses them."""
    keys: dict[str, object] = {"model.use_te_rng_tracker": True, "rng.te_rng_tracker": True}
    if r.features.cuda_graph == "full_iteration":
        keys |= {"rerun_state_machine.check_for_nan_in_loss": False, **offloading.in_flight(r)}
    if graphed_biases(r):
        keys["comm_overlap.delay_wgrad_compute"] = False
    return keys


def problem(x: Layout, r: Recipe, p: Place) -> str | None:
    """Why the graphs that the recipe has cannot be captured in this layout at this place."""
    f = r.features
    if f.cuda_graph is None:
        return None
    if sentence := GRAPHS.problem(x, r, p.rates.product):
        return sentence
    if r.architecture.num_moe_experts and f.cuda_graph == "full_iteration" and not f.paged_stash:
        return "a graph of the whole iteration with experts needs a budget of tokens, and drops those beyond it"
    if (
        f.ep_overlap
        and f.cuda_graph == "transformer_engine"
        and (not f.cuda_graph_scope or {"moe", "mlp"} & set(f.cuda_graph_scope))
    ):
        return "CUDA graphs over moe or mlp exclude the overlap of the expert all-to-all"
    return None


def padded(_x: Layout, r: Recipe, value: str) -> str | None:
    """Why samples of this length cannot be in a graph that was asked for."""
    if value == "off" or r.packing is None:
        return None
    return "packs of samples differ in length, and a graph is captured for one: the data set has to pad them (pad_to_max_length)"

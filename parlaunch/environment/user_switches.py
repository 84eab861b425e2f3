"""A user's switches: each key, or each few that make one value, and the field of `Features` that it is planned with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.environment.exclusive import (
    DISPATCHER,
    ENDS,
    EXTERNAL,
    FINE,
    FINE_MODULES,
    FUSED,
    OFFLOAD,
    OFFLOAD_SHARE,
    PADDED,
    WHOLE,
    Given,
)
from parlaunch.environment.override_grammar import value
from parlaunch.environment.planned_values import read
from parlaunch.errors import UsageError
from parlaunch.model.precision import BRIDGE_NAMES, switched
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import GRAPH, MODULES, OVERLAP, PRECISION, SCOPE, SHARDED_DDP, placed, places
from parlaunch.rules.switches import DETERMINISTIC
from parlaunch.switches.graphs import layerwise

_Effect = Callable[[Given, Features], dict[str, Any]]


def _switch(key: str, feature: str, kind: str = "bool") -> tuple[tuple[str, ...], _Effect]:
    """One key that is one feature."""
    return (key,), lambda given, _f: {feature: read(key, given[key], kind)}


def _dispatcher(given: Given, f: Features) -> dict[str, Any]:
    kind, backend = given.get(DISPATCHER), given.get(BACKEND)
    flexible = f.dispatcher in ("deepep", "hybridep", "ncclep")
    named = value(kind) if kind is not None else "flex" if flexible else f.dispatcher
    if named != "flex":
        return {"dispatcher": named}
    chosen = value(backend) if backend is not None else f.dispatcher if flexible else "deepep"
    return {"dispatcher": chosen or "alltoall"}


NOT_EXTERNAL: Mapping[str, Any] = {"external_cuda_graph": False, "cuda_graph": None, "cuda_graph_scope": ()}
"""A recipe's features without Megatron's older switch for graphs, and so without them."""


def _external(given: Given, f: Features) -> dict[str, Any]:
    left = f.external_cuda_graph and not read(EXTERNAL, given[EXTERNAL], "bool")
    return dict(NOT_EXTERNAL) if left else {}


def _graph(given: Given, f: Features) -> dict[str, Any]:
    kind = read(GRAPH, given[GRAPH], "text or null") if GRAPH in given else f.cuda_graph
    if kind in (None, "none"):
        return {"cuda_graph": None, "cuda_graph_scope": ()}
    scope: tuple[str, ...] = f.cuda_graph_scope
    for key in GRAPH_MODULES:
        if key in given:
            named = value(given[key])
            scope = tuple(str(n) for n in named) if isinstance(named, list) else (str(named),) if named else ()
            _captures(kind, key, scope, given)
    if kind == "local" and "full_iteration" not in scope:
        raise UsageError(  # bridge/utils/cuda_graph.py:146
            f"{GRAPH}=local: Megatron Bridge captures single modules with Transformer Engine only",
            hint=f"say {GRAPH}=transformer_engine, or {GRAPH}=full_iteration",
        )
    if kind == "transformer_engine" and "full_iteration" in scope:
        raise UsageError(  # megatron/core/transformer/cuda_graph_config.py:109
            f"{GRAPH}=transformer_engine: it captures single modules, and a graph of the whole iteration is named",
            hint=f"say {GRAPH}=full_iteration",
        )
    if kind == "full_iteration" or "full_iteration" in scope:
        return {"cuda_graph": "full_iteration", "cuda_graph_scope": ()}
    return {"cuda_graph": kind, "cuda_graph_scope": tuple(n for n in scope if n != "full")}


def _captures(kind: Any, key: str, modules: Sequence[str], given: Given) -> None:
    """Raise `UsageError` for modules that graphs of this kind cannot be of (megatron/core/transformer/cuda_graph_config.py:117, :134)."""
    if "full_iteration_inference" in modules:
        raise UsageError(f"{key}={given[key]}: that is no graph of training", hint="leave it out")
    if kind == "full_iteration" and set(modules) - {"full", "full_iteration"}:
        raise UsageError(
            f"{key}={given[key]}: the graph is of the whole iteration, and has no modules",
            hint=f"leave {key} out" if GRAPH in given else f"add {GRAPH}=transformer_engine",
        )


def _optimizer_offload(given: Given, f: Features) -> dict[str, Any]:
    on = read(OFFLOAD, given[OFFLOAD], "bool") if OFFLOAD in given else f.optimizer_offload > 0
    # Megatron Core's own share is 0: the switch alone moves nothing.
    share = read(OFFLOAD_SHARE, given[OFFLOAD_SHARE], "share") if OFFLOAD_SHARE in given else f.optimizer_offload
    return {"optimizer_offload": share if on else 0.0}


def _sharded(given: Given, f: Features) -> dict[str, Any]:
    # Bridge switches both on where one of them is; only both together leave the optimizer whole.
    said = [read(key, given[key], "bool") for key in SHARDED if key in given]
    on = True if any(said) else len(said) < len(SHARDED) and f.distributed_optimizer
    # Where DDP's own is off, the section of overlaps is not handed on, and DDP's own has the gathering off (`model.sections.OVERLAP_OF_DP`).
    handed = on and (SHARDED_DDP not in given or read(SHARDED_DDP, given[SHARDED_DDP], "bool"))
    return {"distributed_optimizer": on, "gather_overlap": handed and f.gather_overlap}


def _layer_offload(given: Given, f: Features) -> dict[str, Any]:
    on = read(LAYERS_OFF, given[LAYERS_OFF], "bool") if LAYERS_OFF in given else f.cpu_offload_layers > 0
    number = read(LAYERS_OFF_NUMBER, given[LAYERS_OFF_NUMBER], "number") if LAYERS_OFF_NUMBER in given else None
    return {"cpu_offload_layers": (number if number is not None else f.cpu_offload_layers) if on else 0}


def _fine_offload(given: Given, f: Features) -> dict[str, Any]:
    on = read(FINE, given[FINE], "bool") if FINE in given else bool(f.offload_modules)
    modules = read(FINE_MODULES, given[FINE_MODULES], "names") if FINE_MODULES in given else f.offload_modules
    return {"offload_modules": (modules or ()) if on else ()}


def _capacity(given: Given, f: Features) -> dict[str, Any]:
    factor = read(CAPACITY, given[CAPACITY], "factor or null") if CAPACITY in given else f.expert_capacity
    filled = read(FILLED, given[FILLED], "bool") if FILLED in given else f.expert_capacity > 0
    return {"expert_capacity": max(0.0, factor or 0.0) if filled else 0.0}


def _targets(given: Given, f: Features) -> tuple[str, ...]:
    return tuple(read("peft.target_modules", given["peft.target_modules"], "names") or f.adapter_targets)


def _cross_entropy(given: Given, f: Features) -> dict[str, Any]:
    before = None if f.cross_entropy == "unfused" else f.cross_entropy
    kind = read(LOSS_KERNEL, given[LOSS_KERNEL], "text") if LOSS_KERNEL in given else before
    on = read(FUSED_LOSS, given[FUSED_LOSS], "bool") if FUSED_LOSS in given else f.cross_entropy != "unfused"
    return {"cross_entropy": (kind or "native") if on else "unfused"}


def _padding(given: Given, _f: Features) -> dict[str, Any]:
    return {"router_padding": any([read(key, text, "bool") for key, text in given.items()])}


def _no_transposes(given: Given, _f: Features) -> dict[str, Any]:
    key = "model.disable_parameter_transpose_cache"
    return {"transpose_cache": not read(key, given[key], "bool")}


def _unquantized(given: Given, _f: Features) -> dict[str, Any]:
    return {"fp8_param_gather": False} if value(given[f"{PRECISION}.fp8"]) is None else {}


def _fp8_attention(given: Given, f: Features) -> dict[str, Any]:
    # Where recipes have it on, it is by the first.
    on = any([read(key, text, "bool") for key, text in given.items()])
    return {"fp8_attention": on or (f.fp8_attention and FP8_ATTENTION[0] not in given)}


def _bf16_ends(given: Given, f: Features) -> dict[str, Any]:
    on = read(ENDS, given[ENDS], "bool") if ENDS in given else any(f.bf16_ends)
    numbers = [
        read(key, given[key], "number") if key in given else was
        for key, was in zip(END_LAYERS, f.bf16_ends, strict=True)
    ]
    return {"bf16_ends": tuple(numbers) if on else (0, 0)}


def _mixed(given: Given, _f: Features) -> dict[str, Any]:
    named = value(given[PRECISION])
    return switched(str(named)) if named is not None else {}


BACKEND = "model.moe_flex_dispatcher_backend"
CAPACITY, FILLED = "model.moe_expert_capacity_factor", "model.moe_pad_expert_input_to_capacity"
GRAPH_MODULES = (SCOPE, MODULES)
SHARDED = (SHARDED_DDP, "optimizer.use_distributed_optimizer")
FP8_ATTENTION = (f"{PRECISION}.fp8_dot_product_attention", f"{PRECISION}.fp8_multi_head_attention")
END_LAYERS = (f"{PRECISION}.num_layers_at_start_in_bf16", f"{PRECISION}.num_layers_at_end_in_bf16")
LAYERS_OFF, LAYERS_OFF_NUMBER = "model.cpu_offloading", "model.cpu_offloading_num_layers"
FUSED_LOSS, LOSS_KERNEL = "model.cross_entropy_loss_fusion", "model.cross_entropy_fusion_impl"
REPEATS, TP_OVERLAP = f"model.{DETERMINISTIC}", f"{OVERLAP}.tp_comm_overlap"
NOT_REPEATED: Mapping[str, object] = {FUSED_LOSS: False, TP_OVERLAP: False}
"""What is off where numbers have to repeat (bridge/training/config.py:1052)."""

EFFECTS: tuple[tuple[tuple[str, ...], _Effect], ...] = (
    ((PRECISION,), _mixed),
    _switch("mixed_precision.grad_reduce_in_fp32", "grad_reduce_fp32"),
    _switch("mixed_precision.fp8_param_gather", "fp8_param_gather"),
    _switch("mixed_precision.fp4_param_gather", "fp4_param_gather"),
    ((DISPATCHER, BACKEND), _dispatcher),
    _switch("comm_overlap.overlap_moe_expert_parallel_comm", "ep_overlap"),
    _switch(TP_OVERLAP, "tp_overlap"),
    _switch("comm_overlap.overlap_grad_reduce", "reduce_overlap"),
    _switch("comm_overlap.overlap_param_gather", "gather_overlap"),
    _switch("comm_overlap.overlap_param_gather_with_optimizer_step", "gather_in_step"),
    ((EXTERNAL,), _external),
    ((GRAPH, *GRAPH_MODULES), _graph),
    _switch("ddp.nccl_ub", "nccl_ub"),
    (SHARDED, _sharded),
    _switch("optimizer.use_precision_aware_optimizer", "precision_aware_optimizer"),
    ((f"{PRECISION}.fp8",), _unquantized),
    (("optimizer.exp_avg_dtype",), lambda given, _f: {"moments": _dtype(given["optimizer.exp_avg_dtype"])}),
    (("optimizer.main_params_dtype",), lambda given, _f: {"master": _dtype(given["optimizer.main_params_dtype"])}),
    (FP8_ATTENTION, _fp8_attention),
    ((ENDS, *END_LAYERS), _bf16_ends),
    _switch("model.fp8_output_proj", "fp8_output"),
    _switch(FUSED, "fused_accumulation"),
    _switch("model.moe_router_fusion", "router_fusion"),
    _switch("model.bias_activation_fusion", "activation_fusion"),
    _switch("model.apply_rope_fusion", "rope_fusion"),
    _switch("model.transformer_impl", "transformer_impl", "text"),
    _switch("model.activation_func_fp8_input_store", "fp8_activation_input"),
    _switch("peft.dim", "adapter_rank", "size"),
    _switch("peft.a2a_experimental", "adapter_a2a"),
    (("peft.target_modules",), lambda given, f: {"adapter_targets": _targets(given, f)}),
    (("peft.dropout",), lambda given, _f: {"adapter_dropout": read("peft.dropout", given["peft.dropout"], "share") > 0}),
    ((OFFLOAD, OFFLOAD_SHARE), _optimizer_offload),
    ((FINE, FINE_MODULES), _fine_offload),
    ((LAYERS_OFF, LAYERS_OFF_NUMBER), _layer_offload),
    _switch("model.moe_router_force_load_balancing", "force_balance"),
    ((CAPACITY, FILLED), _capacity),
    _switch("model.moe_paged_stash", "paged_stash"),
    (PADDED, _padding),
    (("model.disable_parameter_transpose_cache",), _no_transposes),
    ((FUSED_LOSS, LOSS_KERNEL), _cross_entropy),
)  # fmt: skip
"""Keys that switch something of `Features`, together where one value is made of several keys."""


SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
"""What Bridge takes for a type of torch's, and the name of that (bridge/utils/activation_map.py:107)."""


def _dtype(text: str) -> str:
    named = str(value(text)).removeprefix("torch.")
    return SHORT.get(named, named)


def features_of(recipe: Recipe, given: Given) -> Features:
    """The recipe's features with what the user's keys switch. Raises `UsageError` for values of the wrong kind."""
    f = recipe.features
    if OFFLOAD in given and WHOLE in recipe.unsettled:
        f = replace(f, optimizer_offload=1.0)  # the share that the switch turns on, or leaves off
    if ENDS in given and not any(f.bf16_ends):
        ready = switched(BRIDGE_NAMES.get(recipe.precision, ""))  # by the preset, whether it has them on or not
        f = replace(f, bf16_ends=ready["bf16_ends"])
    if GRAPH in given and f.cuda_graph in (None, "full_iteration"):
        f = replace(f, cuda_graph_scope=layerwise(recipe))  # what is captured where the user names a way and no modules
    if REPEATS in given and read(REPEATS, given[REPEATS], "bool"):
        given = {place: str(off) for place, off in placed(NOT_REPEATED, recipe).items()} | dict(given)
    for keys, effect in EFFECTS:
        said = {key: given[place] for key in keys for place in places(key, recipe) if place in given}
        if said:
            f = replace(f, **effect(said, f))
    return f

"""Run in a child process by `parlaunch_probes.bridge`: build one recipe with Megatron Bridge, print it as one JSON line."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

from parlaunch.model.architecture import FOLLOWING, Architecture
from parlaunch.model.precision import QUANTIZED, SCALINGS, short_name, switched
from parlaunch.model.recipe import MTP
from parlaunch.model.sections import OVERLAP, OVERLAP_OF_DP, PRECISION


def precision(config: Any) -> str | None:
    """Our short name of a configuration's mixed precision; None when it is none we know."""
    mixed = config.mixed_precision
    if isinstance(mixed, str):
        return short_name(mixed)
    if getattr(mixed, "fp4", None):
        return "nvfp4"
    fp8 = getattr(mixed, "fp8_recipe", None) if getattr(mixed, "fp8", None) else None
    if fp8 in SCALINGS:
        return SCALINGS[str(fp8)]
    if mixed is None:  # Bridge leaves the model's own switches as they are
        m = shape_of(config)
        return "bf16" if getattr(m, "bf16", False) else "fp16" if getattr(m, "fp16", False) else "fp32"
    return "fp16" if mixed.fp16 else "bf16" if mixed.bf16 else "fp32"


def plain(value: Any) -> bool:
    """Whether JSON can hold the value as it is."""
    return value is None or isinstance(value, bool | int | float | str) or (
        isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value)
    )  # fmt: skip


def facts(config: Any, module: str) -> dict[str, Any]:
    """What a recipe is beside its sizes, as the fields of `Recipe` of the same names. `module`: where it is defined."""
    d = config.dataset
    offline = getattr(d, "enable_offline_packing", False) or getattr(d, "packed_sequence_specs", None) is not None
    offline = offline or any(c.__name__.startswith("Wan") for c in type(d).__mro__)  # its data are packs
    together = getattr(d, "enable_in_batch_packing", False) or getattr(d, "pack_sequences_in_batch", False)
    optimizer = str(getattr(getattr(config, "optimizer", None), "optimizer", None) or "adam")
    parts = module.split(".")  # megatron.bridge.recipes.llama.h100.llama3
    return {
        "module": module,
        "folder": parts[3] if parts[2:3] in (["recipes"], ["perf_recipes"]) and len(parts) > 3 else None,
        "packing": "offline" if offline else "in_batch" if together else None,
        "loader": "energon" if any("Energon" in c.__name__ for c in type(d).__mro__) else None,
        "train_iters": getattr(config.train, "train_iters", None),
        "optimizer": "muon" if "muon" in optimizer else "adam",
    }


def features(config: Any) -> dict[str, Any]:
    """What the configuration switches on, as `parlaunch.model.recipe.features_from_json` reads it.

    Asked before and after Bridge finishes it: until then communication overlap stands in a section of its own, and
    mixed precision may be a name.
    """
    m, o, ddp, overlap = shape_of(config), config.optimizer, config.ddp, config.comm_overlap
    before = getattr(overlap, "user_comm_overlap_cfg", None) is None

    def overlaps(name: str) -> bool:
        return bool(getattr(m, name, False) or (before and getattr(overlap, name, False)))

    in_section = getattr(overlap, "overlap_param_gather_with_optimizer_step", None)
    said = [in_section] if before and ddp.use_distributed_optimizer and in_section is not None else []
    reduced, gathered = dp_overlap(config, before=before)
    kind, backend = getattr(m, "moe_token_dispatcher_type", None), getattr(m, "moe_flex_dispatcher_backend", None)
    share = float(getattr(o, "optimizer_offload_fraction", 1.0)) if getattr(o, "optimizer_cpu_offload", False) else 0.0
    offloads = getattr(m, "fine_grained_activation_offloading", False)
    layers = getattr(m, "cpu_offloading_num_layers", 0) if getattr(m, "cpu_offloading", False) else 0
    given = config.mixed_precision
    if isinstance(given, str):
        mixed = switched(given)
    elif given is None:
        mixed = {"bf16_ends": wide_ends(m)}
    else:
        mixed = {
            "grad_reduce_fp32": bool(given.grad_reduce_in_fp32),
            "fp8_param_gather": bool(given.fp8_param_gather),
            "fp4_param_gather": bool(getattr(given, "fp4_param_gather", False)),
            "fp8_attention": bool(given.fp8_dot_product_attention or given.fp8_multi_head_attention),
            "bf16_ends": wide_ends(given),
        }
    ends = mixed["bf16_ends"] if (precision(config) or "").startswith(QUANTIZED) else ()
    fused = (
        getattr(m, "cross_entropy_fusion_impl", "native")
        if getattr(m, "cross_entropy_loss_fusion", False)
        else "unfused"
    )
    return {
        "dispatcher": (backend if kind == "flex" else kind) if getattr(m, "num_moe_experts", None) else None,
        "ep_overlap": overlaps("overlap_moe_expert_parallel_comm"),
        "tp_overlap": overlaps("tp_comm_overlap"),
        "gather_in_step": bool(said[0] if said else o.overlap_param_gather_with_optimizer_step),
        "cuda_graph": graphs(m),
        "fsdp": bool(config.dist.use_megatron_fsdp or ddp.use_megatron_fsdp),
        "nccl_ub": bool(getattr(ddp, "nccl_ub", False)),
        "no_dp_overlap": not reduced and not gathered,
        "no_reduce_overlap": gathered and not reduced,
        "no_gather_overlap": reduced and not gathered,
        "no_distributed_optimizer": not (ddp.use_distributed_optimizer or o.use_distributed_optimizer),
        "grad_reduce_fp32": bool(mixed.get("grad_reduce_fp32", ddp.grad_reduce_in_fp32)),
        "fp8_param_gather": bool(mixed.get("fp8_param_gather", getattr(ddp, "fp8_param_gather", False))),
        # Core before 0.18 has no such setting, and gathers them in 16 bits whatever Bridge says.
        "fp4_param_gather": hasattr(ddp, "fp4_param_gather")
        and bool(mixed.get("fp4_param_gather", ddp.fp4_param_gather)),
        "precision_aware_optimizer": bool(o.use_precision_aware_optimizer),
        "moments": str(o.exp_avg_dtype).removeprefix("torch."),
        "master": str(getattr(o, "main_params_dtype", "float32")).removeprefix("torch."),
        "optimizer_offload": share,
        "offload_modules": list(getattr(m, "offload_modules", None) or ()) if offloads else [],
        "cpu_offload_layers": layers,
        "force_balance": bool(getattr(m, "moe_router_force_load_balancing", False)),
        # A negative one is none (megatron/core/transformer/transformer_config.py:1661).
        "expert_capacity": max(0.0, getattr(m, "moe_expert_capacity_factor", None) or 0.0)
        if getattr(m, "moe_pad_expert_input_to_capacity", False)
        else 0.0,
        "paged_stash": bool(getattr(m, "moe_paged_stash", False)),
        "router_padding": bool(
            getattr(m, "moe_router_padding_for_fp8", False) or getattr(m, "moe_router_padding_for_quantization", False)
        ),
        "cross_entropy": fused,
        "external_cuda_graph": bool(getattr(m, "external_cuda_graph", False)),
        "frozen_language_model": bool(getattr(config.model, "freeze_language_model", False)),
        "frozen_encoder": bool(getattr(config.model, "freeze_vision_model", False)),
        "fp8_attention": bool(mixed.get("fp8_attention", False)),
        "fp8_output": bool(getattr(m, "fp8_output_proj", False)),
        "bf16_ends": list(ends) if any(ends) else [],
        "module_formats": module_formats(getattr(m, "quant_recipe", None)),
        "fp8_activation_input": bool(getattr(m, "activation_func_fp8_input_store", False)),
        # Where neither library has the kernel, Bridge's default says so, and nothing of where it will run.
        "fused_accumulation": bool(getattr(m, "gradient_accumulation_fusion", True)) or not _sums_in_products(),
        "router_fusion": bool(getattr(m, "moe_router_fusion", False)) or not getattr(m, "num_moe_experts", None),
        # Transformer Engine's fused operations have it in them.
        "activation_fusion": bool(
            getattr(m, "bias_activation_fusion", False) or getattr(m, "use_transformer_engine_op_fuser", False)
        )
        or not getattr(m, "gated_linear_unit", False),
        "rope_fusion": bool(getattr(m, "apply_rope_fusion", False)),
        "transformer_impl": str(getattr(m, "transformer_impl", "transformer_engine")),
        "transpose_cache": not getattr(m, "disable_parameter_transpose_cache", False),
        **adapters(getattr(config, "peft", None)),
    }


def dp_overlap(config: Any, *, before: bool) -> tuple[bool, bool]:
    """Whether gradients are reduced under the backward pass, and weights gathered under the forward pass, with data parallelism. Where
    there is a section of overlaps for it, it decides, and has both on unless it says otherwise (bridge/training/comm_overlap.py:577)."""
    section, ddp = config.comm_overlap, config.ddp
    if before and section is not None and ddp.use_distributed_optimizer:
        return section.overlap_grad_reduce is not False, section.overlap_param_gather is not False
    gathered = ddp.overlap_param_gather or getattr(config.optimizer, "overlap_param_gather", False)
    return bool(ddp.overlap_grad_reduce), bool(gathered)


def wide_ends(section: Any) -> tuple[int, int]:
    """First and last layers in 16 bits, of mixed precision or, without it, of the model."""
    if not getattr(section, "first_last_layers_bf16", False):
        return 0, 0
    return section.num_layers_at_start_in_bf16, section.num_layers_at_end_in_bf16


MODULES = {
    "linear_qkv": "self_attention", "linear_proj": "self_attention", "linear_fc1": "mlp", "linear_fc2": "mlp",
    "fc1_latent_proj": "mlp", "fc2_latent_proj": "mlp", "in_proj": "mixer", "out_proj": "mixer",
}  # fmt: skip
"""Linear modules by Megatron's names, and what of a layer they are in."""


def module_formats(recipe: Any) -> dict[str, str]:
    """Our short names of the precisions that Megatron's `quant_recipe` gives single modules, and layers of multi-token prediction."""
    if recipe is None:
        return {}
    from megatron.core.quantization.quant_config import MatchContext

    paths = {name: f"decoder.layers.0.{inside}.{name}" for name, inside in MODULES.items()}
    known, formats = SCALINGS | {"nvfp4": "nvfp4"}, {}
    for name, path in (paths | {MTP: "mtp.layers.0.mtp_model_layer.layers.0.mlp.linear_fc1"}).items():
        found = recipe.match(MatchContext(path, 0))
        training = found.config.get("training_recipe") if found else None
        if training is not None:
            named = [training.get(f"{kind}_quantization_recipe") for kind in ("fp8", "fp4")]
            formats[name] = next((known[n] for n in named if n in known), "bf16")
    return formats


@cache
def _sums_in_products() -> bool:
    """Whether a kernel is here that adds a weight gradient to the sum itself (bridge/utils/fusions.py:34)."""
    kernels = ("transformer_engine", "fused_weight_gradient_mlp_cuda")
    return any(name in sys.modules or find_spec(name) is not None for name in kernels)


BUCKETS, GRAPHED, WHOLE = ("num_buckets", "bucket_size"), "cuda_graph_modules", "optimizer_offload_fraction"
CAPACITY, CACHED, DETERMINISTIC = "moe_expert_capacity_factor", "fast_cache_load", "deterministic_mode"
HELD = (*BUCKETS, GRAPHED, WHOLE, CAPACITY, CACHED, DETERMINISTIC)
"""Of what `beside` names, values that exclude another one or wait for a switch: this release's recipe has them or not, whatever
others have."""


def beside(config: Any) -> list[str]:
    """Switches that it turns on and no field of `features` has, as a recipe's `unsettled` names them."""
    places = (shape_of(config), config.comm_overlap)  # after Bridge has finished it, and before
    on = {
        "deferred_embedding_wgrad": any(getattr(place, "defer_embedding_wgrad_compute", False) for place in places),
        **{name: getattr(config.ddp, name, None) is not None for name in BUCKETS},
        GRAPHED: getattr(places[0], GRAPHED, None) not in ("full", None, []),
        WHOLE: getattr(config.optimizer, WHOLE, 0.0) == 1.0
        and not getattr(config.optimizer, "optimizer_cpu_offload", False),
        CAPACITY: getattr(places[0], CAPACITY, None) is not None,
        CACHED: any(
            getattr(getattr(config, "dataset", None), name, False) for name in (CACHED, "defer_npy_index_mmap")
        ),
        DETERMINISTIC: bool(getattr(places[0], DETERMINISTIC, False)),
    }
    return [name for name, there in on.items() if there]


def adapters(peft: Any) -> dict[str, Any]:
    """Rank, targets and dropout of low-rank adapters; nothing where the configuration has none."""
    if getattr(peft, "dim", None) is None:
        return {}
    return {
        "adapter_rank": int(peft.dim),
        "adapter_targets": [str(name) for name in getattr(peft, "target_modules", None) or ()],
        "adapter_dropout": float(getattr(peft, "dropout", 0.0) or 0.0) > 0,
        "adapter_a2a": bool(getattr(peft, "a2a_experimental", False)),
    }


def shape_of(config: Any) -> Any:
    """Where a configuration keeps sizes and layout: its model provider, or the transformer inside a newer one."""
    return getattr(config.model, "transformer", config.model)


def graphs(m: Any) -> list[Any] | None:
    """CUDA graphs as (implementation, modules): older switches and enumerations too. None: no graphs."""
    if getattr(m, "external_cuda_graph", False):
        return ["transformer_engine", []]  # what Megatron Core makes of its older switch
    kind = getattr(m, "cuda_graph_impl", "none")
    if kind in (None, "none"):
        return None
    found = []
    for field in ("cuda_graph_modules", "cuda_graph_scope"):
        value = getattr(m, field, None) or ()
        names = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        found += [str(getattr(n, "name", n)).rsplit(".", 1)[-1] for n in names]
    return [kind, [n for n in dict.fromkeys(found) if n != "full"]]


PARTS = ("mtp_num_layers", "num_moe_experts")
"""Sizes of parts that a recipe may take out of its model: None says so."""


def describe(config: Any, module: str = "") -> dict[str, Any]:
    """What the planner needs of a ConfigContainer, before or after Bridge finishes it."""
    m, t, d = shape_of(config), config.train, config.dataset
    core = _source_of_transformer_config()
    model = {f: getattr(m, f) for f in Architecture.__dataclass_fields__ if getattr(m, f, None) is not None}
    model = {k: list(v) if isinstance(v, tuple) else v for k, v in model.items() if plain(v)}
    model |= {f: None for f in PARTS if hasattr(m, f) and getattr(m, f) is None}
    model["derived"] = [f for f in FOLLOWING if getattr(m, f, 0) is None]
    model["vocab_size"] = getattr(config.model, "vocab_size", None) or getattr(m, "vocab_size", 0)
    seq = getattr(d, "seq_length", None) or getattr(d, "sequence_length", None) or config.model.seq_length
    return {
        "model": model,
        "seq_length": seq,
        "global_batch_size": t.global_batch_size,
        "precision": precision(config),
        "layout": {
            "tp": m.tensor_model_parallel_size, "pp": m.pipeline_model_parallel_size,
            "vp": m.virtual_pipeline_model_parallel_size, "cp": m.context_parallel_size,
            "ep": m.expert_model_parallel_size, "etp": m.expert_tensor_parallel_size,
            "micro_batch_size": t.micro_batch_size, "sequence_parallel": m.sequence_parallel,
            "recompute": {
                "granularity": m.recompute_granularity, "modules": list(getattr(m, "recompute_modules", None) or []),
                "method": m.recompute_method, "num_layers": m.recompute_num_layers,
            },
        },
        "features": features(config),
        "unsettled": beside(config),
        "facts": facts(config, module),
        "bare": bare(config),
        "lacks": [name for name in NEWER if f"{name!r}" not in core and f'"{name}"' not in core],
        "env": {k: str(v) for k, v in (getattr(config, "env_vars", None) or {}).items()},
    }  # fmt: skip


def bare(config: Any) -> list[str]:
    """Sections, or their parts, in which a key does nothing."""
    found = [name for name in (OVERLAP, PRECISION) if isinstance(getattr(config, name), str | None)]
    if OVERLAP not in found and not config.ddp.use_distributed_optimizer:
        found.append(OVERLAP_OF_DP)
    return found


NEWER = ("mhc",)
"""Modules whose recomputation some releases of Megatron Core do not know."""


@cache
def _source_of_transformer_config() -> str:
    from megatron.core.transformer import transformer_config

    return inspect.getsource(transformer_config)


def keys(config: Any) -> list[str]:
    """What an override may set, as Bridge's own parser sees the configuration; `model.` stands for the transformer inside it too."""
    from megatron.bridge.training.utils.omegaconf_utils import create_omegaconf_dict_config

    found: set[str] = set()

    def walk(value: Any, at: str) -> None:
        for name in value:
            found.add(f"{at}{name}")
            inner = value._get_node(name)
            if hasattr(inner, "_get_node") and hasattr(inner, "keys") and not inner._is_none():
                walk(inner, f"{at}{name}.")

    walk(create_omegaconf_dict_config(config)[0], "")
    inside = "model.transformer."
    return sorted(found | {"model." + key.removeprefix(inside) for key in found if key.startswith(inside)})


def main(name: str, build: str, prepare: str = "") -> None:
    """Load the recipe and print it as JSON; an error is printed as JSON too.

    `build` and `prepare` are functions, "module:name": what makes a configuration of a recipe's name, and what has to be
    called before Bridge is imported.
    """
    try:
        if prepare:
            function(prepare)()
        config, module = function(build)(name)
        answer = describe(config, module) | {"keys": keys(config)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(answer))


def function(place: str) -> Any:
    """The function of a place, "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    main(*sys.argv[1:])

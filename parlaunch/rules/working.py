"""Recomputation, offloading, CUDA graphs, FSDP, precision: how the GPUs work, beside how the model is cut."""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.rules.rule import Chapter

WORKING = Chapter()

MODULES = (
    "core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "mhc", "gdn_norm_out",
)  # fmt: skip
"""What `recompute_modules` may name."""


@WORKING.rule(
    "rc-modes", "full -> method and num_layers; selective -> num_layers is None",
    "megatron/core/transformer/transformer_config.py:1903",
)  # fmt: skip
def recompute_modes(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    r = x.recompute
    if r.granularity not in (None, "selective", "full"):
        return f"recompute granularity {r.granularity!r} is neither selective nor full"
    if r.granularity == "full":
        if r.method not in ("uniform", "block"):
            return "full recomputation needs the method uniform or block"
        return None if r.num_layers and r.num_layers > 0 else "full recomputation needs a number of layers"
    if r.granularity == "selective" and r.num_layers is not None:
        return "selective recomputation takes modules, not a number of layers"
    return None


@WORKING.rule(
    "rc-modules",
    "known modules; mla_up_proj needs MLA, moe and moe_act experts, gdn_norm_out a delta net, mhc hyper-connections",
    "megatron/core/transformer/transformer_config.py:1959",
)
def recompute_modules(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.recompute.granularity != "selective":
        return None
    a, modules = r.architecture, x.recompute.modules
    for module in modules:
        if module not in MODULES:
            return f"{module!r} is no module of selective recomputation: {', '.join(MODULES)}"
    needs = (
        ("mla_up_proj", a.multi_latent_attention or a.csa_compress_ratios is not None, "multi-latent attention"),
        ("moe_act", bool(a.num_moe_experts), "experts"),
        ("moe", bool(a.num_moe_experts), "experts"),
        ("gdn_norm_out", bool(a.linear_attention_pattern), "a gated delta net"),
        ("mhc", (a.num_residual_streams or 1) > 1, "hyper-connections"),
    )
    for module, there, what in needs:
        if module in modules and not there:
            return f"recomputing {module} needs {what}, and {r.model} has none"
    if "mhc" in modules and "mlp" in modules:
        return "recomputing mhc excludes recomputing mlp"
    return None


@WORKING.rule(
    "rc-fp8", "fp8 and {layernorm, moe_act} -> not delayed scaling",
    "megatron/core/transformer/transformer_config.py:2003",
)  # fmt: skip
def recompute_fp8(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.precision != "fp8ds" or not {"layernorm", "moe_act"} & set(x.recompute.modules):
        return None
    return "FP8 with delayed scaling excludes recomputing layernorm and moe_act"


@WORKING.rule(
    "rc-mtp", "MTP and uniform -> num_layers == 1", "megatron/core/transformer/multi_token_prediction.py:1625"
)
def recompute_mtp(x: Layout, r: Recipe, _m: Rates) -> str | None:
    c = x.recompute
    if not r.architecture.mtp_num_layers or c.granularity != "full" or c.method != "uniform" or c.num_layers == 1:
        return None
    return f"multi-token prediction takes uniform recomputation by one layer, not {c.num_layers}"


@WORKING.rule(
    "off-cpu", "layer offloading -> 0 <= n < num_layers, PP == 1, no recompute, no partial CUDA graph",
    "megatron/core/transformer/transformer_config.py:1887",
)  # fmt: skip
def layer_offloading(x: Layout, r: Recipe, _m: Rates) -> str | None:
    n = r.features.cpu_offload_layers
    if not n or x.fsdp:
        return None
    if n >= len(r.architecture.layers()) and r.feasible:
        return f"{n} layers are to be offloaded, and the model has {len(r.architecture.layers())}"
    if x.pp > 1:
        return f"offloading layers to the host needs PP 1, not {x.pp}"
    if x.recompute.granularity:
        return "offloading layers to the host excludes recomputation"
    return None


@WORKING.rule(
    "off-fine", "fine-grained offloading excludes layer offloading; attn_proj only with core_attn",
    "megatron/core/transformer/transformer_config.py:2128",
)  # fmt: skip
def fine_offloading(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if not f.offload_modules:
        return None
    if f.cpu_offload_layers:
        return "offloading modules excludes offloading whole layers"
    if "attn_proj" in f.offload_modules and "core_attn" not in f.offload_modules:
        return "offloading attn_proj needs core_attn offloaded too"
    return None


@WORKING.rule(
    "cg-impl", "cuda graph in {none, transformer_engine, local, full_iteration}",
    "megatron/core/transformer/transformer_config.py:2778",
)  # fmt: skip
def graph_kinds(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    kind = r.features.cuda_graph
    if kind in (None, "transformer_engine", "local", "full_iteration"):
        return None
    return f"CUDA graphs by {kind!r} are unknown: transformer_engine, local or full_iteration"


@WORKING.rule(
    "cg-recompute", "full recompute -> no partial CUDA graph; 'moe' recompute and moe_router graphs exclude each other",
    "megatron/core/transformer/transformer_config.py:2856",
)  # fmt: skip
def graph_recompute(x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if f.cuda_graph != "transformer_engine":
        return None
    if x.recompute.granularity == "full":
        return "the recipe's partial CUDA graphs exclude full recomputation"
    if x.recompute.granularity == "selective" and "moe" in x.recompute.modules and "moe_router" in f.cuda_graph_scope:
        return "a CUDA graph over moe_router excludes recomputing moe"
    return None


@WORKING.rule(
    "cg-scopes", "moe and moe_router exclude each other; moe_preprocess needs moe_router; moe scopes need experts",
    "megatron/core/transformer/transformer_config.py:2817",
)  # fmt: skip
def graph_scopes(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if f.cuda_graph != "transformer_engine":
        return None
    scope = set(f.cuda_graph_scope)
    if {"moe", "moe_router"} <= scope:
        return "CUDA graphs over moe and over moe_router exclude each other"
    if "moe_preprocess" in scope and "moe_router" not in scope:
        return "a CUDA graph over moe_preprocess needs one over moe_router"
    if scope & {"moe", "moe_router", "moe_preprocess"} and not r.architecture.num_moe_experts:
        return "CUDA graphs over experts need experts"
    return None


@WORKING.rule(
    "opt-precision",
    "moments below fp32 -> precision-aware optimizer",
    "megatron/core/optimizer/optimizer_config.py:434",
)
def optimizer_precision(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if f.moments in ("float32", "fp32") or f.precision_aware_optimizer:
        return None
    return f"moments in {f.moments} need the precision-aware optimizer"


@WORKING.rule(
    "prec-gpu",
    "fp8: compute capability 8.9; nvfp4: 10.0",
    "transformer_engine/pytorch/quantization.py: check_nvfp4_support",
)
def precision_there(_x: Layout, r: Recipe, m: Rates) -> str | None:
    p = m.product
    wanted = "nvfp4" if r.precision == "nvfp4" else "fp8" if r.precision.startswith("fp8") else None
    if wanted is None or wanted in p.flops:
        return None
    return f"{p.name} has no {wanted.upper()}: train in bf16, or on another GPU"


@WORKING.rule(
    "as-published", "a published recipe that is known not to run", "bridge/recipes: benchmark recipes, August 2026"
)
def as_published(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.feasible:
        return None
    from parlaunch.evidence import broken_as_published  # it needs the space of layouts, which needs the rules

    if not broken_as_published(r.name, x):
        return None
    return f"{r.name} is published with this very layout, and Megatron refuses it as written"

"""Recomputation, offloading, CUDA graphs, FSDP, precision: how the GPUs work, beside how the model is cut."""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.published import broken_as_published
from parlaunch.rules.rule import Chapter
from parlaunch.rules.switches import GRAPHS, LAYER_OFFLOAD, MODULE_OFFLOAD, SPREAD, UNGROUPED

WORKING = Chapter()

MODULES = (
    "core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "mhc", "gdn_norm_out",
)  # fmt: skip
"""What `recompute_modules` may name."""


@WORKING.rule(
    "rc-modes", "full -> method and num_layers; selective -> num_layers is None",
    "megatron/core/transformer/transformer_config.py:1726",
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
    "megatron/core/transformer/transformer_config.py:1779",
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
    for module in modules:
        if module in r.lacks:
            return f"the installed Megatron Core cannot recompute {module}"
    if "mhc" in modules and "mlp" in modules:
        return "recomputing mhc excludes recomputing mlp"
    return None


@WORKING.rule(
    "rc-unsettled", "moe_act -> grouped GEMM; distributed saved activations and any recomputation -> no sequence parallelism",
    "megatron/core/transformer/transformer_config.py:1784, :1757",
)  # fmt: skip
def recompute_beside(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if UNGROUPED in r.unsettled and x.recompute.granularity == "selective" and "moe_act" in x.recompute.modules:
        return "recomputing moe_act needs moe_grouped_gemm, which is off"
    if SPREAD in r.unsettled and x.recompute.granularity and x.sequence_parallel and r.features.sequence_parallel:
        return f"{SPREAD} excludes sequence parallelism where anything is recomputed"
    return None


@WORKING.rule(
    "rc-fp8", "fp8 and {layernorm, moe_act} -> not delayed scaling",
    "megatron/core/transformer/transformer_config.py:1824",
)  # fmt: skip
def recompute_fp8(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.precision != "fp8ds" or not {"layernorm", "moe_act"} & set(x.recompute.modules):
        return None
    return "FP8 with delayed scaling excludes recomputing layernorm and moe_act"


@WORKING.rule(
    "rc-mtp", "MTP and uniform -> num_layers == 1", "megatron/core/transformer/multi_token_prediction.py:1419"
)
def recompute_mtp(x: Layout, r: Recipe, _m: Rates) -> str | None:
    c = x.recompute
    if not r.architecture.mtp_num_layers or c.granularity != "full" or c.method != "uniform" or c.num_layers == 1:
        return None
    return f"multi-token prediction takes uniform recomputation by one layer, not {c.num_layers}"


LAYER_OFFLOAD.enter(WORKING)
MODULE_OFFLOAD.enter(WORKING)


@WORKING.rule(
    "cg-impl", "cuda graph in {none, transformer_engine, local, full_iteration}",
    "megatron/core/transformer/transformer_config.py:2445",
)  # fmt: skip
def graph_kinds(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    kind = r.features.cuda_graph
    if kind in (None, "transformer_engine", "local", "full_iteration"):
        return None
    return f"CUDA graphs by {kind!r} are unknown: transformer_engine, local or full_iteration"


GRAPHS.enter(WORKING)


@WORKING.rule(
    "cg-scopes",
    "moe and moe_router exclude each other; moe_preprocess needs moe_router; moe scopes need experts, moe itself ones that drop "
    "tokens; mlp needs a dense layer",
    "megatron/core/transformer/transformer_config.py:2484, :2488",
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
    if "moe" in scope:
        return "a CUDA graph over moe needs experts that take a fixed number of tokens and drop the others"
    if "mlp" in scope:
        a = r.architecture
        dense = not a.num_moe_experts or (not a.hybrid_layer_pattern and any(k.mlp == "dense" for k in a.layers()))
        return None if dense else f"a CUDA graph over mlp needs dense layers, and those of {r.model} have experts"
    return None


@WORKING.rule(
    "opt-precision",
    "moments, main weights below fp32 -> precision-aware optimizer -> distributed optimizer",
    "megatron/core/optimizer/optimizer_config.py:434, :473",
)
def optimizer_precision(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    # Megatron-FSDP turns it on after that is looked at (bridge/training/config.py:1256, :1076).
    if f.precision_aware_optimizer and not f.distributed_optimizer:
        return "the precision-aware optimizer needs the distributed optimizer"
    kept = {"moments": f.moments, "main weights": f.master}
    low = next((f"{what} in {kind}" for what, kind in kept.items() if kind not in ("float32", "fp32")), None)
    return f"{low} need the precision-aware optimizer" if low and not f.precision_aware_optimizer else None


@WORKING.rule("opt-muon-fp16", "Muon -> not fp16", "megatron/core/optimizer/__init__.py:769")
def muon_fp16(_x: Layout, r: Recipe, m: Rates) -> str | None:
    if not _refuses(r, r.precision):
        return None
    return f"Megatron's Muon does not train in fp16: train in {instead(r, m.product)}, or with another optimizer"


def _refuses(r: Recipe, precision: str) -> bool:
    """Whether the recipe's optimizer refuses a precision, on any GPU."""
    return precision == "fp16" and r.optimizer == "muon"


@WORKING.rule(
    "opt-muon", "Muon -> no Megatron-FSDP, no precision-aware optimizer",
    "megatron/training/arguments.py:1685, megatron/core/optimizer/optimizer_config.py:431",
)  # fmt: skip
def muon(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.optimizer != "muon":
        return None
    if x.fsdp:
        return "Muon does not run with Megatron-FSDP"
    return "the precision-aware optimizer is Adam's, and this is Muon" if r.features.precision_aware_optimizer else None


PRECISIONS_ON: Mapping[str, tuple[str, tuple[int, int], tuple[int, int]]] = {
    "bf16": ("bf16", (8, 0), (99, 0)),
    "fp8cs": ("FP8", (8, 9), (99, 0)),
    "fp8ds": ("FP8", (8, 9), (99, 0)),
    "fp8sc": ("FP8 with block scaling", (9, 0), (12, 0)),
    "fp8mx": ("MXFP8", (10, 0), (12, 0)),
    "nvfp4": ("NVFP4", (10, 0), (99, 0)),
}
"""Precision to its name, and the compute capabilities that Transformer Engine runs it on: from, and below."""


@WORKING.rule(
    "prec-gpu",
    "fp8: compute capability 8.9; block scaling: 9.0 to 12.0; mxfp8: 10.0 to 12.0; nvfp4: 10.0",
    "transformer_engine/pytorch/quantization.py: check_recipe_support",
)
def precision_there(_x: Layout, r: Recipe, m: Rates) -> str | None:
    if runs_in(r.precision, m.product):
        return None
    name, least, below = PRECISIONS_ON[r.precision]
    p = m.product
    where = f"from compute capability {least[0]}.{least[1]} on" + (
        f", below {below[0]}.{below[1]}" if below[0] < 99 else ""
    )
    has = f"{p.name} is {p.compute_capability[0]}.{p.compute_capability[1]}"
    return f"{name} runs {where}, and {has}: train in {instead(r, p)}, or on another GPU"


def runs_in(precision: str, p: Product) -> bool:
    """Whether Transformer Engine runs a precision on this GPU, or PyTorch on a CPU rank."""
    if p.name == CPU_RANK.name and precision == "bf16":
        return True
    _, least, below = PRECISIONS_ON.get(precision, ("", (0, 0), (99, 0)))
    return least <= p.compute_capability < below


def instead(r: Recipe, p: Product) -> str:
    """The next wider precision in which the recipe runs there; of FP8, the one with one scale a tensor."""
    wider = ("bf16", "fp16") if r.precision in ("bf16", "fp16") else ("fp8cs", "bf16", "fp16")
    return next((name for name in wider if runs_in(name, p) and not _refuses(r, name)), "fp32")


@WORKING.rule(
    "as-published", "a published recipe that is known not to run", "bridge/recipes: benchmark recipes, August 2026"
)
def as_published(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.feasible:
        return None
    if not broken_as_published(r.name, x):
        return None
    return f"{r.name} is published with this very layout, and Megatron refuses it as written"

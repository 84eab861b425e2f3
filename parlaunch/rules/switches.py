"""What Megatron asks of a recipe's switches: each condition once, with its sentence and its source.

A layout is refused when it breaks the condition of a switch that the recipe has on (`parlaunch.rules`); where a layout or a
machine is fixed all the same, the switch falls (`legal_features`), and the override that takes it back says the sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.derived import sheet_of
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.precision import QUANTIZED, USER_BUFFERED
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import PRECISION
from parlaunch.rules.rule import Chapter


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a switch."""

    id: str
    formula: str
    source: str  # file:line, as of a rule
    on: Callable[[Recipe], bool]  # whether the recipe has the switch on
    # One sentence on why it cannot be on in this layout on this GPU (None: not known), whatever the recipe says; None: it can.
    problem: Callable[[Layout, Recipe, Product | None], str | None]

    def broken(self, layout: Layout, recipe: Recipe, gpu: Product | None) -> str | None:
        """The sentence, where the recipe has the switch on."""
        return self.problem(layout, recipe, gpu) if self.on(recipe) else None

    def enter(self, chapter: Chapter) -> None:
        """Make it a rule of a chapter."""
        chapter.rule(self.id, self.formula, self.source)(lambda x, r, m: self.broken(x, r, m.product))


SHARED_OVERLAP = "moe_shared_expert_overlap"
"""Shared experts under the dispatch: what a user turns on, as a recipe's `unsettled` names it."""


DETERMINISTIC = "deterministic_mode"
SPREAD = "distribute_saved_activations"
UNGROUPED = "no_grouped_gemm"
UNFILLED = "unfilled_capacity"
"""More of what a user turns on, an expert by expert product in place of one of all, and a capacity of experts that is not filled up, as
`unsettled` names them."""


def _overlap(x: Layout, r: Recipe, _gpu: Product | None) -> str | None:
    say = "overlapping the expert all-to-all with compute"
    if not r.architecture.num_moe_experts:
        return f"{say} needs experts"
    if r.precision == "fp32":
        return f"{say} works in bf16 or fp16, not in fp32"
    if r.features.dispatcher == "allgather":
        return f"{say} excludes the allgather dispatcher"
    if SHARED_OVERLAP in r.unsettled:
        return f"{say} excludes {SHARED_OVERLAP}"
    if x.ep == 1:
        return f"{say} needs EP above 1"
    if x.pp > 1 and x.vp is None:
        return f"{say} needs VP when PP is {x.pp}"
    if x.recompute.granularity == "full":
        return f"{say} excludes full recomputation"
    if x.recompute.granularity == "selective" and "moe" in x.recompute.modules:
        return f"{say} excludes recomputing moe"
    if (r.architecture.mtp_num_layers or 0) > 1:
        return f"{say} takes at most one multi-token-prediction layer"
    return None


OVERLAP = Condition(
    "ep-overlap",
    "overlap -> EP>1, bf16 or fp16, dispatcher alltoall or flex, VP if PP>1, recompute not full, no 'moe' recompute, MTP <= 1",
    "bridge/training/comm_overlap.py:479",
    on=lambda r: r.features.ep_overlap and bool(r.architecture.num_moe_experts),
    problem=_overlap,
)


def parts_experts(a: Architecture) -> bool:
    """Whether router, shared and routed experts have inputs of their own, around which some modes of Megatron Core do not go
    (bridge/models/gemma/gemma4_provider.py:49)."""
    return a.model_type == "gemma4" and bool(a.num_moe_experts)


def _graphs(x: Layout, r: Recipe, gpu: Product | None) -> str | None:
    f = r.features
    if parts_experts(r.architecture):
        return f"{r.model} takes no CUDA graphs: it gives its router, shared and routed experts inputs of their own"
    if "moe_preprocess" in f.cuda_graph_scope and _dispatched_by(x, r, gpu) == "alltoall":
        if _padded(r):
            return "a CUDA graph over moe_preprocess excludes padding for FP8 with the alltoall dispatcher"
        if UNFILLED in r.unsettled:
            return "a CUDA graph over moe_preprocess excludes experts with a capacity that is not filled up, with the alltoall dispatcher"
    if x.recompute.granularity == "full" and f.cuda_graph != "full_iteration":
        return "CUDA graphs of single modules exclude full recomputation"
    if f.cpu_offload_layers and f.cuda_graph != "full_iteration":
        return "CUDA graphs of single modules exclude offloading layers to the host"
    if x.recompute.granularity == "selective" and "moe" in x.recompute.modules and "moe_router" in f.cuda_graph_scope:
        return "a CUDA graph over moe_router excludes recomputing moe"
    return _dropped_again(x, r)


DROPOUTS: Mapping[str, Mapping[str, str]] = {
    "attention_dropout": {"core_attn": "attn"},
    "hidden_dropout": {"mlp": "mlp", "moe": "moe"},
}
"""What a user turns on, as a recipe's `unsettled` names it; and what that excludes: a module recomputed inside a graph over another
(megatron/core/transformer/transformer_config.py:2538)."""


def _dropped_again(x: Layout, r: Recipe) -> str | None:
    f = r.features
    for dropout, inside in DROPOUTS.items():
        for module, graphed in inside.items():
            captured = not f.cuda_graph_scope or graphed in f.cuda_graph_scope
            if dropout in r.unsettled and captured and module in x.recompute.modules:
                return f"{dropout} excludes recomputing {module} inside a CUDA graph"
    return None


def _padded(r: Recipe) -> bool:
    """Whether each expert's tokens are padded: what a recipe does for its FP8 or FP4 falls with another precision."""
    return r.features.router_padding and r.precision.startswith(QUANTIZED)


def _dispatched_by(x: Layout, r: Recipe, gpu: Product | None) -> str:
    """The dispatcher that will run: alltoall in place of one that cannot."""
    return "alltoall" if dispatcher_problem(x, r, gpu) else r.features.dispatcher or "alltoall"


GRAPHS = Condition(
    "cg-recompute",
    "full recompute or layers offloaded -> no partial CUDA graph; 'moe' recompute and moe_router graphs exclude each other; "
    "alltoall excludes a graph over moe_preprocess beside padding for FP8 or a capacity that is not filled up; Gemma 4 with experts takes none",
    "megatron/core/transformer/transformer_config.py:2523, :2512, :2516, :2467, bridge/models/gemma/gemma4_provider.py:54",
    on=lambda r: r.features.cuda_graph is not None,
    problem=_graphs,
)


def graphed_biases(recipe: Recipe) -> bool:
    """Whether attention with biases is captured while the expert all-to-all overlaps: its weight gradients cannot be delayed then
    (bridge/training/comm_overlap.py:555)."""
    a = recipe.architecture
    return recipe.features.ep_overlap and _captures(recipe, "attn") and (a.add_bias_linear or a.add_qkv_bias)


def graphed_sums(recipe: Recipe) -> bool:
    """Whether a graph captures weight gradients that are not summed by their product, at addresses that move: they cannot be
    delayed either (bridge/training/comm_overlap.py:549)."""
    shared = bool(recipe.architecture.moe_shared_expert_intermediate_size)
    captured = _captures(recipe, "attn") or (shared and _captures(recipe, "moe_router"))
    return captured and not recipe.features.fused_accumulation


def _captures(recipe: Recipe, module: str) -> bool:
    f = recipe.features
    return f.cuda_graph == "transformer_engine" and (not f.cuda_graph_scope or module in f.cuda_graph_scope)


def _tp_overlap(x: Layout, r: Recipe, _gpu: Product | None) -> str | None:
    if x.tp == 1:
        return "overlapping TP's traffic needs TP above 1"
    if DETERMINISTIC in r.unsettled:
        return "overlapping TP's traffic is taken back where a run has to repeat itself to the last bit"
    if not r.features.sequence_parallel:
        return "overlapping TP's traffic needs sequence parallelism"
    if r.precision not in USER_BUFFERED:
        return f"overlapping TP's traffic takes operands in 16 bits, FP8 with one scale a tensor or MXFP8, not {r.precision}"
    return None


TP_OVERLAP = Condition(
    "tp-overlap",
    "user buffers -> TP>1, sequence parallelism, bf16, fp8 per tensor or mxfp8, no deterministic mode",
    "bridge/training/comm_overlap.py:442, bridge/recipes/utils/determinism_utils.py:47, transformer_engine/pytorch/module/base.py: fill_userbuffers_buffer_for_all_gather",
    on=lambda r: r.features.tp_overlap,
    problem=_tp_overlap,
)


def _gather_in_step(x: Layout, r: Recipe, _gpu: Product | None) -> str | None:
    if x.vp is None:
        return "it needs VP: only interleaved stages have work of their own meanwhile"
    if x.fsdp:
        return "Megatron-FSDP gathers a unit's weights when its layers come"
    if r.optimizer == "muon":
        return "Muon's step does not go by chunks of the model"
    if not r.features.distributed_optimizer:
        return "it is the distributed optimizer's, which is off"
    if r.precision == "fp8mx" and r.features.fp8_param_gather:
        return "MXFP8 weights are gathered into the gradients' buffer (reuse_grad_buf_for_mxfp8_param_ag), which it excludes"
    return None


GATHER_IN_STEP = Condition(
    "gather-in-step",
    "overlap_param_gather_with_optimizer_step -> VP, distributed optimizer, Adam, no Megatron-FSDP, no reused MXFP8 buffers",
    "megatron/training/arguments.py:1032, megatron/core/optimizer/__init__.py:761, megatron/core/optimizer/optimizer_config.py:424",
    on=lambda r: r.features.gather_in_step,
    problem=_gather_in_step,
)


DEFERRED_EMBEDDING = Condition(
    "deferred-embedding",
    "defer_embedding_wgrad_compute -> PP>1",
    "megatron/core/model_parallel_config.py:546",
    on=lambda r: "deferred_embedding_wgrad" in r.unsettled,
    problem=lambda x, _r, _gpu: "it hides in the pipeline's bubble, and PP is 1" if x.pp == 1 else None,
)


def _layer_offload(x: Layout, r: Recipe, _gpu: Product | None) -> str | None:
    n, layers = r.features.cpu_offload_layers, len(r.architecture.layers())
    if x.pp > 1:
        return f"offloading layers to the host needs PP 1, not {x.pp}"
    if n >= layers and r.feasible:
        return f"{n} layers are to be offloaded, and the model has {layers}"
    return "offloading layers to the host excludes recomputation" if x.recompute.granularity else None


LAYER_OFFLOAD = Condition(
    "off-cpu",
    "layer offloading -> 0 <= n < num_layers, PP == 1, no recompute, no partial CUDA graph",
    "megatron/core/transformer/transformer_config.py:1707",
    on=lambda r: bool(r.features.cpu_offload_layers),
    problem=_layer_offload,
)


EXPERTS_OWN = ("moe_act", "expert_fc1", "fused_group_mlp")
"""Modules of experts whose activations can go to the host."""


def _core_layers(r: Recipe) -> bool:
    """Whether Megatron takes the layers for Core's own modules: those of Falcon H1 are (bridge/models/falcon_h1/falconh1_provider.py:94)."""
    return r.architecture.model_type == "falcon_h1" or r.features.transformer_impl != "transformer_engine"


def _module_offload(x: Layout, r: Recipe, _gpu: Product | None) -> str | None:
    modules = r.features.offload_modules
    if "mlp_norm" in modules and parts_experts(r.architecture):
        return (
            f"{r.model} does not offload mlp_norm: it gives its router, shared and routed experts inputs of their own"
        )
    if _core_layers(r):
        return f"modules are offloaded of Transformer Engine's layers alone, and Megatron takes those of {r.model} for Core's own"
    if r.features.cpu_offload_layers:
        return "offloading modules excludes offloading whole layers"
    if "attn_proj" in modules and "core_attn" not in modules:
        return "offloading attn_proj needs core_attn offloaded too"
    inner = [m for m in modules if m in EXPERTS_OWN]
    if inner and x.recompute.granularity == "selective" and "moe" in x.recompute.modules:
        return f"recomputing whole expert layers leaves nothing of {', '.join(inner)} to offload"
    if inner and r.features.paged_stash:
        return f"the recipe's paged stash holds the activations of {', '.join(inner)} already"
    return None


MODULE_OFFLOAD = Condition(
    "off-fine",
    "fine-grained offloading needs layers of Transformer Engine's and excludes layer offloading; attn_proj only with core_attn; modules "
    "of experts not with 'moe' recompute or a paged stash; mlp_norm not of Gemma 4 with experts",
    "megatron/core/transformer/transformer_config.py:1849, :1912, bridge/training/config.py:2047, "
    "bridge/models/gemma/gemma4_provider.py:68",
    on=lambda r: bool(r.features.offload_modules),
    problem=_module_offload,
)


UNREGISTERED = {"ddp.fsdp_manual_registration": False}
"""What goes with NCCL's user buffers off: Megatron-FSDP registers no others (bridge/training/config.py:1110), and recipes that have
them on may ask for it."""


BUCKETS = "ddp.num_buckets"


def unnumbered(r: Recipe) -> dict[str, object]:
    """What has to be said beside a size of buckets: a number of them that the recipe says does not stand, of which Megatron takes
    one or the other (megatron/core/distributed/distributed_data_parallel_config.py:270)."""
    return {BUCKETS: None} if "num_buckets" in r.unsettled else {}


def _deepep_size(x: Layout, _r: Recipe, _gpu: Product | None) -> str | None:
    return None if x.ep * x.etp > 1 else "DeepEP sends tokens between experts' GPUs, and EP and ETP are 1"


def _deepep_gpu(_x: Layout, _r: Recipe, gpu: Product | None) -> str | None:
    if gpu is None or "deepep" in gpu.dispatchers:
        return None
    return f"DeepEP does not run on {gpu.name}"


def _hybridep_gpu(_x: Layout, _r: Recipe, gpu: Product | None) -> str | None:
    if gpu is None or "hybridep" in gpu.dispatchers:
        return None
    return f"HybridEP does not run on {gpu.name}"


def _dispatches(kind: str) -> Callable[[Recipe], bool]:
    return lambda r: r.features.dispatcher == kind and bool(r.architecture.num_moe_experts)


DEEPEP_GPU = Condition(
    "ep-deepep-gpu",
    "deepep -> compute capability 8.x or 9.x, or a B200/B300 board",
    "bridge/training/flex_dispatcher_backend.py:60",
    on=_dispatches("deepep"),
    problem=_deepep_gpu,
)
HYBRIDEP_GPU = Condition(
    "ep-hybridep-gpu",
    "hybridep -> compute capability 8.x, 9.x or 10.x",
    "bridge/training/flex_dispatcher_backend.py:71",
    on=_dispatches("hybridep"),
    problem=_hybridep_gpu,
)
DEEPEP_SIZE = Condition(
    "ep-deepep-size",
    "deepep -> ETP*EP > 1",
    "megatron/core/transformer/moe/token_dispatcher.py:1770",
    on=_dispatches("deepep"),
    problem=_deepep_size,
)
DISPATCHERS = (DEEPEP_SIZE, DEEPEP_GPU, HYBRIDEP_GPU)


def gpu_of(cluster: Cluster | None) -> Product | None:
    """The data sheet of a cluster's GPUs; None where it has none, or one that no data sheet knows."""
    if cluster is None or not any(n.gpus for n in cluster.nodes):
        return None
    return sheet_of(cluster.gpu)


def dispatcher_problem(layout: Layout, recipe: Recipe, gpu: Product | None) -> str | None:
    """Why the recipe's token dispatcher cannot run here; None when it can."""
    found = (condition.broken(layout, recipe, gpu) for condition in DISPATCHERS)
    return next((sentence for sentence in found if sentence), None)


def legal_features(recipe: Recipe, layout: Layout, cluster: Cluster | None = None) -> Features:
    """The recipe's features less what this layout or machine makes illegal: what will really be on."""
    f, gpu = recipe.features, gpu_of(cluster)
    changes: dict[str, Any] = {"fsdp": layout.fsdp}
    if f.ep_overlap and OVERLAP.problem(layout, recipe, gpu):
        changes["ep_overlap"] = False
    if TP_OVERLAP.broken(layout, recipe, gpu):
        changes["tp_overlap"] = False
    if GATHER_IN_STEP.broken(layout, recipe, gpu):
        changes["gather_in_step"] = False
    if GRAPHS.broken(layout, recipe, gpu):
        changes |= {"cuda_graph": None, "cuda_graph_scope": ()}
    if LAYER_OFFLOAD.broken(layout, recipe, gpu):
        changes["cpu_offload_layers"] = 0
    if MODULE_OFFLOAD.broken(layout, recipe, gpu):
        changes["offload_modules"] = ()
    if dispatcher_problem(layout, recipe, gpu):
        changes["dispatcher"] = "alltoall"
    if f.router_padding:
        changes["router_padding"] = _padded(recipe)
    if f.fp8_output:  # a recipe's own, and said to be off in another precision
        changes["fp8_output"] = recipe.precision == "fp8mx"
    if layout.fsdp:
        changes["distributed_optimizer"] = True  # Bridge switches it on: bridge/training/config.py:1074
        if PRECISION not in recipe.bare:  # else it is a preset's name, without a part that says it
            # It has no buffers for packed weights (bridge/perf_recipes/nemotronh/common.py:102).
            changes["fp4_param_gather"] = False
    return replace(f, **changes)

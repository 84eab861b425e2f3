"""What expert parallelism and its dispatchers ask for."""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.rules.rule import Chapter

EXPERTS = Chapter()

DISPATCHERS = (None, "allgather", "alltoall", "deepep", "hybridep")
GRACE = ("GB200", "GB300", "VR200")
"""Products of an NVLink domain over many nodes: 72 GPUs."""


@EXPERTS.rule("ep-needs-moe", "EP>1 -> num_moe_experts > 0", "megatron/core/transformer/transformer_config.py:1596")
def needs_experts(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.architecture.num_moe_experts or (x.ep == 1 and x.etp == 1):
        return None
    what = f"EP {x.ep}" if x.ep > 1 else f"ETP {x.etp}"
    return f"{what} spreads experts, and {r.model} has none"


@EXPERTS.rule("ep-divides", "num_moe_experts % EP == 0", "megatron/core/transformer/moe/moe_layer.py:186")
def divides_experts(x: Layout, r: Recipe, _m: Rates) -> str | None:
    experts = r.architecture.num_moe_experts
    return None if not experts or experts % x.ep == 0 else f"EP {x.ep} does not divide the {experts} experts"


@EXPERTS.rule(
    "ep-dispatcher", "dispatcher in {allgather, alltoall, deepep, hybridep}",
    "megatron/core/transformer/moe/moe_layer.py:329",
)  # fmt: skip
def known_dispatcher(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    name = r.features.dispatcher
    return None if name in DISPATCHERS else f"dispatcher {name!r} is none of {', '.join(filter(None, DISPATCHERS))}"


@EXPERTS.rule(
    "ep-deepep-gpu", "deepep -> compute capability 8.x or 9.x, or a B200/B300 board",
    "bridge/training/flex_dispatcher_backend.py:59",
)  # fmt: skip
def deepep_gpu(_x: Layout, r: Recipe, m: Rates) -> str | None:
    p = m.product
    if r.features.dispatcher != "deepep" or not r.architecture.num_moe_experts or p.compute_capability[0] in (8, 9):
        return None
    return None if p.name.startswith(("B200", "B300")) else f"DeepEP does not run on {p.name}: use hybridep or alltoall"


@EXPERTS.rule(
    "ep-hybridep-gpu", "hybridep -> compute capability 8.x, 9.x or 10.x",
    "bridge/training/flex_dispatcher_backend.py:70",
)  # fmt: skip
def hybridep_gpu(_x: Layout, r: Recipe, m: Rates) -> str | None:
    p = m.product
    # Rubin ships recipes with HybridEP although the check read here ends at 10.x: newer Bridge lets it pass.
    if r.features.dispatcher != "hybridep" or not r.architecture.num_moe_experts or p.arch == "rubin":
        return None
    return None if p.compute_capability[0] in (8, 9, 10) else f"HybridEP does not run on {p.name}: use alltoall"


@EXPERTS.rule("ep-hybridep-domain", "hybridep on NVL72 -> EP <= 72", "bridge/scripts/performance/utils/utils.py:317")
def hybridep_domain(x: Layout, r: Recipe, m: Rates) -> str | None:
    if r.features.dispatcher != "hybridep" or not m.product.name.startswith(GRACE) or x.ep <= 72:
        return None
    return f"HybridEP reaches the 72 GPUs of one NVLink domain, and EP is {x.ep}"


@EXPERTS.rule("ep-deepep-size", "deepep -> ETP*EP > 1", "megatron/core/transformer/moe/token_dispatcher.py:1836")
def deepep_size(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.features.dispatcher != "deepep" or not r.architecture.num_moe_experts or x.ep * x.etp > 1:
        return None
    return "DeepEP sends tokens between experts' GPUs, and EP and ETP are 1"


@EXPERTS.rule(
    "ep-overlap",
    "overlap -> EP>1, dispatcher alltoall or flex, VP if PP>1, recompute not full, no 'moe' recompute, MTP <= 1",
    "bridge/training/comm_overlap.py:479",
)
def overlap(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if not r.features.ep_overlap or not r.architecture.num_moe_experts:
        return None
    say = "the recipe overlaps the expert all-to-all with compute, which"
    if x.ep == 1:
        return f"{say} needs EP above 1"
    if r.features.dispatcher == "allgather":
        return f"{say} the allgather dispatcher cannot"
    if x.pp > 1 and x.vp is None:
        return f"{say} needs VP when PP is {x.pp}"
    if x.recompute.granularity == "full":
        return f"{say} excludes full recomputation"
    if x.recompute.granularity == "selective" and "moe" in x.recompute.modules:
        return f"{say} excludes recomputing moe"
    if (r.architecture.mtp_num_layers or 0) > 1:
        return f"{say} takes at most one multi-token-prediction layer"
    return None


@EXPERTS.rule(
    "ep-overlap-graph", "overlap and TE graph -> moe, mlp not in scope",
    "megatron/core/transformer/transformer_config.py:3065",
)  # fmt: skip
def overlap_graph(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if not f.ep_overlap or f.cuda_graph != "transformer_engine" or not {"moe", "mlp"} & set(f.cuda_graph_scope):
        return None
    return "CUDA graphs over moe or mlp exclude the overlap of the expert all-to-all"


@EXPERTS.rule(
    "ep-paged-stash", "paged stash -> hybridep, no CPU offloading of layers",
    "megatron/core/transformer/transformer_config.py:2212",
)  # fmt: skip
def paged_stash(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if not f.paged_stash:
        return None
    if f.cpu_offload_layers:
        return "the paged stash excludes offloading layers to the host"
    return None if f.dispatcher == "hybridep" else "the paged stash needs the hybridep dispatcher"


@EXPERTS.rule(
    "ep-group-topk", "experts % groups == 0 and group_topk <= groups",
    "megatron/core/transformer/transformer_config.py:2682",
)  # fmt: skip
def routing_groups(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    groups = a.moe_router_num_groups
    if not a.num_moe_experts or not groups:
        return None
    if a.num_moe_experts % groups:
        return f"{groups} routing groups do not divide {a.num_moe_experts} experts"
    if (a.moe_router_group_topk or 0) > groups:
        return f"{a.moe_router_group_topk} groups are chosen of {groups}"
    return None

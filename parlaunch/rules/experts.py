"""What expert parallelism and its dispatchers ask for."""

from __future__ import annotations

from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.rule import Chapter
from parlaunch.rules.switches import DEEPEP_GPU, DEEPEP_SIZE, HYBRIDEP_GPU, OVERLAP

EXPERTS = Chapter()

DISPATCHERS = (None, "allgather", "alltoall", "deepep", "hybridep")


@EXPERTS.rule("ep-needs-moe", "EP>1 -> num_moe_experts > 0", "megatron/core/transformer/transformer_config.py:1469")
def needs_experts(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.architecture.num_moe_experts or (x.ep == 1 and x.etp == 1):
        return None
    what = f"EP {x.ep}" if x.ep > 1 else f"ETP {x.etp}"
    return f"{what} spreads experts, and {r.model} has none"


@EXPERTS.rule("ep-divides", "num_moe_experts % EP == 0", "megatron/core/transformer/moe/moe_layer.py:185")
def divides_experts(x: Layout, r: Recipe, _m: Rates) -> str | None:
    experts = r.architecture.num_moe_experts
    return None if not experts or experts % x.ep == 0 else f"EP {x.ep} does not divide the {experts} experts"


@EXPERTS.rule(
    "ep-dispatcher", "dispatcher in {allgather, alltoall, deepep, hybridep}",
    "megatron/core/transformer/moe/moe_layer.py:321",
)  # fmt: skip
def known_dispatcher(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    name = r.features.dispatcher
    return None if name in DISPATCHERS else f"dispatcher {name!r} is none of {', '.join(filter(None, DISPATCHERS))}"


DEEPEP_GPU.enter(EXPERTS)
HYBRIDEP_GPU.enter(EXPERTS)


@EXPERTS.rule("ep-hybridep-domain", "hybridep on NVL72 -> EP <= 72", "scripts/performance/utils/utils.py:322")
def hybridep_domain(x: Layout, r: Recipe, m: Rates) -> str | None:
    rack = m.product.rack_gpus
    if r.features.dispatcher != "hybridep" or rack is None or x.ep <= rack:
        return None
    return f"HybridEP reaches the {rack} GPUs of one NVLink domain, and EP is {x.ep}"


DEEPEP_SIZE.enter(EXPERTS)
OVERLAP.enter(EXPERTS)


@EXPERTS.rule(
    "ep-overlap-graph", "overlap and TE graph -> moe, mlp not in scope",
    "megatron/core/transformer/transformer_config.py:2740",
)  # fmt: skip
def overlap_graph(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if not f.ep_overlap or f.cuda_graph != "transformer_engine" or not {"moe", "mlp"} & set(f.cuda_graph_scope):
        return None
    return "CUDA graphs over moe or mlp exclude the overlap of the expert all-to-all"


@EXPERTS.rule(
    "ep-paged-stash", "paged stash -> hybridep, no CPU offloading of layers",
    "megatron/core/transformer/transformer_config.py:1906",
)  # fmt: skip
def paged_stash(_x: Layout, r: Recipe, _m: Rates) -> str | None:
    f = r.features
    if not f.paged_stash:
        return None
    if f.cpu_offload_layers:
        return "the paged stash excludes offloading layers to the host"
    if f.dispatcher == "hybridep":
        return None
    return "the paged stash needs the hybridep dispatcher; model.moe_paged_stash=False trains without"


@EXPERTS.rule(
    "ep-group-topk", "experts % groups == 0 and group_topk <= groups",
    "megatron/core/transformer/transformer_config.py:2349",
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

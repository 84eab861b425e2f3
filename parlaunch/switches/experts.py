"""Experts: how tokens travel to them, and whether that overlaps with compute."""

from __future__ import annotations

from parlaunch.hardware.installed import OVERLAP_NEEDS
from parlaunch.hardware.rates import GPU_DRIVEN
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.switches import DISPATCHERS, OVERLAP, SHARED_OVERLAP, graphed_biases, graphed_sums
from parlaunch.switches.switch import Place, lacks

DISPATCHER_KEYS = ("model.moe_token_dispatcher_type", "model.moe_flex_dispatcher_backend")


def dispatcher_keys(r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears of a dispatcher."""
    kind, backend = DISPATCHER_KEYS
    if value == "alltoall":
        return {kind: value, backend: None}
    keys: dict[str, object] = {kind: value, backend: None}
    if value != "allgather":
        keys = {kind: "flex", backend: value}
    # All but the first exclude it or, in Bridge's helper, turn it off (megatron/core/transformer/transformer_config.py:1644).
    return keys if SHARED_OVERLAP in r.unsettled else keys | {f"model.{SHARED_OVERLAP}": False}


def dispatcher_choices(r: Recipe, p: Place) -> tuple[str, ...]:
    """The dispatchers that run on this GPU with what is installed; none without experts, nor where a paged stash allows the recipe's
    alone."""
    if not r.architecture.num_moe_experts or r.features.paged_stash:
        return ()
    missing = p.installed.missing
    found = [d for d in p.rates.product.dispatchers if not missing("deep_ep" if d == "deepep" else "hybrid_ep")]
    return ("alltoall", *found)


def dispatcher_problem(x: Layout, r: Recipe, p: Place) -> str | None:
    """Why the recipe's dispatcher cannot run in this layout at this place."""
    kind = r.features.dispatcher
    if kind not in ("deepep", "hybridep"):
        return None
    if not r.architecture.num_moe_experts:
        return f"a dispatcher sends tokens to experts, and {r.model} has none"
    if sentence := next((s for c in DISPATCHERS if (s := c.broken(x, r, p.rates.product))), None):
        return sentence
    package, words = ("deep_ep", "DeepEP") if kind == "deepep" else ("hybrid_ep", "HybridEP")
    if p.installed.missing(package):
        return f"{words} is not installed"
    rates, group = p.rates, x.ep * x.etp
    whole = rates.product.rack_gpus
    if kind == "hybridep" and whole is not None and x.ep > whole:
        return f"HybridEP reaches the {whole} GPUs of one NVLink domain, and EP is {x.ep}"
    crosses = x.world > rates.nvlink_domain and (group > rates.nvlink_domain or rates.nvlink_domain % group)
    if crosses and rates.fabric_kind not in GPU_DRIVEN:
        return f"{words} crosses nodes over InfiniBand or RoCE with GPUs that drive the adapter, not over {rates.fabric_kind}"
    return None


def overlap_problem(x: Layout, r: Recipe, p: Place) -> str | None:
    """Why the overlap that the recipe has cannot be on in this layout at this place."""
    if not r.features.ep_overlap:
        return None
    if sentence := lacks(p, OVERLAP_NEEDS):
        return sentence
    return OVERLAP.problem(x, r, p.rates.product)


def overlap_choices(r: Recipe, _p: Place) -> tuple[str, ...]:
    """What the planner may take."""
    able = bool(r.architecture.num_moe_experts) and r.precision not in ("fp32",) and not r.frozen
    return ("off", "on") if able else ()


def overlap_keys(r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears of the overlap."""
    key = "comm_overlap.overlap_moe_expert_parallel_comm"
    if value == "off":
        return {key: False, "comm_overlap.delay_wgrad_compute": False}
    keys: dict[str, object] = {key: True}
    if r.architecture.moe_shared_expert_intermediate_size:
        keys[f"model.{SHARED_OVERLAP}"] = False
    return keys


def overlapped(x: Layout, r: Recipe, value: str) -> str | None:
    """Why what needs the overlap cannot be on."""
    on = r.features.ep_overlap and OVERLAP.problem(x, r, None) is None
    return "it needs the overlap of the expert all-to-all: ep_overlap=on" if value == "on" and not on else None


def delayed(x: Layout, r: Recipe, value: str) -> str | None:
    """Why weight gradients cannot wait for the all-to-all."""
    if value == "on" and graphed_biases(r):
        return "those of attention with biases cannot wait inside a CUDA graph: graphs=off, or graphs without attn"
    if value == "on" and graphed_sums(r):
        return "inside a CUDA graph those that wait are summed by the product itself: gradient_fusion=on, or graphs=off"
    return overlapped(x, r, value)


def flexible(_x: Layout, r: Recipe, _value: str) -> str | None:
    """Why there are no kernels that could take so many multiprocessors."""
    fused = r.features.dispatcher in ("deepep", "hybridep")
    return (
        None if fused else f"{r.features.dispatcher or 'alltoall'} sends tokens with NCCL, not with kernels of its own"
    )


def sms_keys(r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears of the multiprocessors of a dispatcher."""
    # Core 0.19 has one key for both and takes these still; older ones have only these. It refuses two that differ.
    mine = f"model.moe_{r.features.dispatcher}_num_sms"
    return dict.fromkeys(("model.moe_deepep_num_sms", "model.moe_hybridep_num_sms")) | {mine: int(value)}


def needed(_x: Layout, r: Recipe, value: str) -> str | None:
    """Why what works on experts cannot be on."""
    return "the model has no experts" if value == "on" and not r.architecture.num_moe_experts else None


OVERLAP_NEAR = 0.15
"""What overlapping experts has to gain inside an NVLink domain, where it hides little and its kernels take multiprocessors from those
beside them. No published pair of runs differs in it alone: by its own scripts Bridge 0.4.2 (26.04), whose Qwen3-235B on GB200 and GB300
gained 3 and 6 % over 26.02, had VP and not the overlap; 0.5.1 (26.06) has it together with graphs of whole iterations."""

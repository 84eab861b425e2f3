"""Optimizer and activations in host memory: `optimizer_offload` and `offload`."""

from __future__ import annotations

from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.switches import EXPERTS_OWN


def share(value: str) -> str | None:
    """The share of the optimizer as it is written; None: it is none."""
    try:
        share = float(value)
    except ValueError:
        return "0" if value == "off" else None
    return f"{share:g}" if 0 <= share <= 1 else None


def share_keys(_r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears of a share of the optimizer on the host."""
    share = float(value)
    if share == 0:
        return {"optimizer.optimizer_cpu_offload": False}
    return {"optimizer.optimizer_cpu_offload": True, "optimizer.optimizer_offload_fraction": share}


OFFLOADED = ("core_attn", "attn_proj", "attn_norm", "mlp_norm", "qkv_linear", "expert_fc1", "moe_act")
"""Modules whose activations can go to the host one by one (megatron/core/transformer/transformer_config.py:1848)."""


def modules(value: str) -> str | None:
    """The modules as they are written; None: one of them cannot go to the host."""
    return value if value == "off" or all(m in OFFLOADED for m in value.split("+")) else None


def module_keys(r: Recipe, value: str) -> dict[str, object]:
    """What Megatron Bridge hears of activations on the host."""
    if value == "off":
        return {"model.fine_grained_activation_offloading": False}
    return {
        "model.fine_grained_activation_offloading": True,
        "model.offload_modules": tuple(value.split("+")),
        **in_flight(r),
    }


def in_flight(r: Recipe) -> dict[str, object]:
    """What offloading needs under a graph of the whole iteration (megatron/core/transformer/transformer_config.py:2634): how many
    copies of a kind may be under way; as NVIDIA's recipe with both has it (bridge/perf_recipes/deepseek/gb300/deepseek_v3.py:339)."""
    both = r.features.offload_modules and r.features.cuda_graph == "full_iteration"
    return {"model.fine_grained_offloading_max_inflight_offloads": 1} if both else {}


def offloadable(_x: Layout, r: Recipe, value: str) -> str | None:
    """Why the model has none of a module's activations."""
    inner = [m for m in value.split("+") if m in EXPERTS_OWN]
    return (
        f"{inner[0]} is a module of experts, and {r.model} has none"
        if inner and not r.architecture.num_moe_experts
        else None
    )

"""The table of switches: one row each, with what it sets, where it may be on, what it needs and where that is written.

What a switch does to time and memory is not here: a value is a `Features` (parlaunch.model.recipe), and the estimates of a recipe
with those features say it. Conditions that Megatron enforces stand in `parlaunch.rules.switches`, once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.model.architecture import FUSED_ACTIVATIONS
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import GRAPH, MODULES, PRECISION, SCOPE
from parlaunch.rules.switches import DEFERRED_EMBEDDING, GATHER_IN_STEP, TP_OVERLAP, UNREGISTERED, Condition, unnumbered
from parlaunch.switches import experts, graphs, offloading
from parlaunch.switches.switch import Place, Switch, no_problem


def _tp_problem(x: Layout, r: Recipe, p: Place) -> str | None:
    if sentence := TP_OVERLAP.broken(x, r, p.rates.product):
        return sentence
    if r.features.tp_overlap and p.installed.missing("transformer_engine"):
        return "overlapping TP's traffic is Transformer Engine's, which is not installed"
    return None


def _flag(name: str) -> dict[str, Any]:
    """`read` and `put` of a feature that is on or off."""
    return {
        "read": lambda f: "on" if getattr(f, name) else "off",
        "put": lambda f, value: replace(f, **{name: value == "on"}),
        "values": ("on", "off"),
    }


def _unknown(*keys: str) -> dict[str, Any]:
    """A switch that the estimates do not know: it is set when asked for, never chosen."""
    return {"read": lambda _f: None, "put": lambda f, _value: f, "user_keys": keys, "error": {"": 1.0}}


def _plain(*keys: str) -> dict[str, Any]:
    """One that is on or off."""
    return _unknown(*keys) | {"values": ("on", "off"), "keys": lambda _r, value: dict.fromkeys(keys, value == "on")}


def _count(*keys: str) -> dict[str, Any]:
    """One that is a number; the example is what it takes."""
    return _unknown(*keys) | {"takes": _whole, "keys": lambda _r, value: dict.fromkeys(keys, int(value))}


def _whole(value: str) -> str | None:
    return str(int(value)) if value.isdecimal() and int(value) > 0 else None


def _excluded(condition: Condition) -> Callable[[Layout, Recipe, str], str | None]:
    """`stops` of a switch that Megatron has a condition for."""
    return lambda x, r, value: condition.problem(x, r, None) if value == "on" else None


def _interleaved(x: Layout, _r: Recipe, value: str) -> str | None:
    return (
        "it needs VP: only interleaved stages have work of their own meanwhile"
        if value == "on" and x.vp is None
        else None
    )


def _sharded(x: Layout, _r: Recipe, value: str) -> str | None:
    return None if x.fsdp or value == "off" else "it is Megatron-FSDP's: --fsdp"


def _of_distributed_optimizer(x: Layout, r: Recipe, value: str) -> str | None:
    there = x.fsdp or r.features.distributed_optimizer
    return None if there or value == "off" else "it is the distributed optimizer's, which is off"


def _gather_in_step_keys(_r: Recipe, value: str) -> dict[str, object]:
    # It starts the gathering that overlaps (megatron/training/arguments.py:1035).
    begun: dict[str, object] = dict.fromkeys(DP_OVERLAP, True) if value == "on" else {}
    return {"comm_overlap.overlap_param_gather_with_optimizer_step": value == "on"} | begun


def _gather_in_step(f: Features, value: str) -> Features:
    return replace(_overlapped(f, "on") if value == "on" else f, gather_in_step=value == "on")


def _bucket_keys(r: Recipe, value: str) -> dict[str, object]:
    return {"comm_overlap.bucket_size": int(value), **unnumbered(r)}


DP_OVERLAP = ("comm_overlap.overlap_grad_reduce", "comm_overlap.overlap_param_gather")


def _overlapping(f: Features) -> str:
    return "on" if f.dp_overlap else "off"


def _overlapped(f: Features, value: str) -> Features:
    return f if _overlapping(f) == value else replace(f, reduce_overlap=value == "on", gather_overlap=value == "on")


def _left_behind(r: Recipe, _p: Place) -> str | None:
    """Why it is left to the user to have both under compute. The reduction waits for all gradients of a bucket, and what a batch has
    nothing for gets none (megatron/core/distributed/param_and_grad_buffer.py, `finish_grad_sync`)."""
    if r.architecture.encoder is not None:
        return "a batch without images gives the encoder no gradients, and reducing under compute waits for all"
    if r.optimizer != "adam":
        return f"{r.optimizer} gathers weights in its own way"
    if not r.features.distributed_optimizer:
        return "gathering weights is the distributed optimizer's, which is off"
    return None


def _to_overlap(r: Recipe, p: Place) -> tuple[str, ...]:
    """On where it may be. No pair of runs says how wrong its gain is: its margin is what runs with neither under compute are wrong by as
    a whole (SimuMax's on B200, docs/accuracy.md), and a little."""
    settled = _overlapping(r.features) == "on" or p.rates.product == CPU_RANK or _left_behind(r, p)
    return () if settled else ("on",)


def _user_buffers(_r: Recipe, value: str) -> dict[str, object]:
    return {"ddp.nccl_ub": True} if value == "on" else {"ddp.nccl_ub": False, **UNREGISTERED}


def _registered(x: Layout, r: Recipe, value: str) -> str | None:
    if value == "off" and x.fsdp and r.features.nccl_ub:
        return "Megatron Bridge registers Megatron-FSDP's buffers by hand wherever nccl_ub is on"
    if value == "on" and not r.features.nccl_ub:
        return "it registers NCCL's user buffers: nccl_ub=on"
    return _sharded(x, r, value)


def _deferred_keys(_r: Recipe, value: str) -> dict[str, object]:
    key = "comm_overlap.defer_embedding_wgrad_compute"
    if value == "off":
        return {key: False}
    # Bridge's own limit, -1, is refused where it is on; this is its recipes' for 405B (bridge/recipes/llama/h100/llama3.py:2086).
    return {key: True, "comm_overlap.wgrad_deferral_limit": 22, "model.gradient_accumulation_fusion": True}


def _fusion_keys(_r: Recipe, value: str) -> dict[str, object]:
    key = "model.gradient_accumulation_fusion"
    # Refused without it: the first always, the second where modules are named for graphs, even if none is captured.
    needy = ("comm_overlap.defer_embedding_wgrad_compute", "comm_overlap.delay_wgrad_compute")
    return {key: True} if value == "on" else dict.fromkeys((key, *needy), False)


def _activation(_x: Layout, r: Recipe, value: str) -> str | None:
    kind = r.architecture.activation_func
    return f"no kernel joins a bias and {kind}" if value == "on" and kind not in FUSED_ACTIVATIONS else None


def _gather_problem(x: Layout, r: Recipe, _p: Place) -> str | None:
    f = r.features
    if not f.fp8_param_gather or r.precision not in GATHERED or r.frozen:
        return None  # Bridge does nothing about it in another precision, and no optimizer steps frozen weights
    if not (f.distributed_optimizer or x.fsdp):
        return "gathering weights in FP8 needs the distributed optimizer or Megatron-FSDP"
    if f.optimizer_offload and r.precision != "fp8ds":
        return "gathering weights in FP8 excludes an optimizer on the host, but for delayed scaling"
    return None


GATHERED = ("fp8cs", "fp8ds", "fp8mx")
"""Precisions whose weights Bridge gathers in FP8 (bridge/training/mixed_precision.py)."""


def _gather_keys(r: Recipe, value: str) -> dict[str, object]:
    on = value == "on"
    keys: dict[str, object] = {"mixed_precision.fp8_param_gather": on}
    if r.precision == "fp8mx" and not (on and r.features.fsdp):
        # Asserted where weights are gathered in FP8 outside of FSDP, and refused where they are not
        # (bridge/training/config.py:1349, megatron/core/distributed/distributed_data_parallel_config.py:253).
        keys["mixed_precision.reuse_grad_buf_for_mxfp8_param_ag"] = on
    return keys


def _gathered(_x: Layout, r: Recipe, value: str) -> str | None:
    if value == "on" and r.precision not in GATHERED:
        return f"weights in {r.precision} have no FP8 form to gather: one of {', '.join(GATHERED)}"
    if value == "off" and r.precision in GATHERED and PRECISION in r.bare:
        return f"{PRECISION} is the name of a preset here, which gathers weights in FP8 and has no parts to set"
    return None


def _rotary(_x: Layout, r: Recipe, value: str) -> str | None:
    a = r.architecture
    if value == "off":
        return None
    if a.position_embedding_type != "rope":
        # bridge/models/gpt_provider.py:229 takes it back.
        return f"the kernel is for plain rotary embeddings, and {r.model} has {a.position_embedding_type}"
    if a.experimental_attention_variant == "dsa" or a.model_type in UNFUSED_ROTARY:
        return f"the attention of {r.model} has no such kernel"
    return None


UNFUSED_ROTARY = ("exaone4_5", "qwen3_5", "qwen3_5_moe")
"""Models whose own rotary embeddings refuse it (bridge/models/exaone/exaone45/modelling_exaone45/rope.py:318,
bridge/models/qwen_vl/modelling_qwen3_vl/rope.py:477)."""


def _rotary_keys(r: Recipe, value: str) -> dict[str, object]:
    key, on = "model.apply_rope_fusion", value == "on"
    # Of latent attention it is experimental, and Core before 0.16 refuses it without (megatron/core/fusions/fused_mla_yarn_rope_apply.py);
    # Bridge's recipes set both (bridge/recipes/deepseek/h100/deepseek_v3.py:238).
    latent = {"dist.enable_megatron_core_experimental": True} if on and r.architecture.multi_latent_attention else {}
    return {key: on, **latent}


def _any(_value: str) -> bool:
    return True


SAME = "the same values: only the order in which work is issued changes"
KERNEL = "the same mathematics in another kernel: other rounding"
ORDER = "the same mathematics; sums are added in another order, as between any two runs"

SWITCHES: tuple[Switch, ...] = (
    Switch(
        name="dispatcher", what="how tokens travel to their experts", values=("alltoall", "deepep", "hybridep"),
        read=lambda f: f.dispatcher or "alltoall", put=lambda f, value: replace(f, dispatcher=value),
        keys=experts.dispatcher_keys, user_keys=experts.DISPATCHER_KEYS, choices=experts.dispatcher_choices, problem=experts.dispatcher_problem,
        error={"deepep": 0.08, "": 0.05}, known_off="alltoall", numerics=ORDER,
        source="megatron/core/transformer/moe/token_dispatcher.py, bridge/training/flex_dispatcher_backend.py:60",
    ),
    Switch(
        name="ep_overlap", what="expert all-to-all under another micro batch's compute", **_flag("ep_overlap"),
        keys=experts.overlap_keys, user_keys=("comm_overlap.overlap_moe_expert_parallel_comm",), choices=experts.overlap_choices,
        problem=experts.overlap_problem, error={"": 0.10}, error_near=experts.OVERLAP_NEAR, numerics=SAME,
        source="megatron/core/model_parallel_config.py:343, bridge/training/comm_overlap.py:479",
    ),
    Switch(
        name="graphs", stops=graphs.padded, what="CUDA graphs: the host issues a layer's kernels as one",
        values=("off", "full", "all", "attn", "attn+moe_router+moe_preprocess"), takes=graphs.taken,
        read=graphs.read, put=graphs.put, keys=graphs.keys,
        user_keys=(GRAPH, SCOPE, MODULES, "model.external_cuda_graph"),
        choices=graphs.choices, withheld=graphs.uncaptured, problem=graphs.problem, error={"": 0.08},
        numerics="the same values, with Transformer Engine's random number tracker, which comes with them; a graph of the whole "
        "iteration no longer looks for NaN in the loss",
        source="megatron/core/transformer/transformer_config.py:2445, megatron/training/arguments.py:1874",
    ),
    Switch(
        name="tp_overlap", what="TP's traffic under the products around it", **_flag("tp_overlap"),
        keys=lambda _r, value: {"comm_overlap.tp_comm_overlap": value == "on"}, user_keys=("comm_overlap.tp_comm_overlap",),
        problem=_tp_problem, stops=_excluded(TP_OVERLAP),
        withheld=lambda _r, _p: "no measured pair says how far off its predicted gain is", error={"": 0.05}, numerics=ORDER,
        source="bridge/training/comm_overlap.py:442",
    ),
    Switch(
        name="optimizer_offload", what="share of the optimizer that lives and steps on the host", values=("0", "0.5", "1"),
        takes=offloading.share, read=lambda f: f"{f.optimizer_offload:g}",
        put=lambda f, value: replace(f, optimizer_offload=float(value)), keys=offloading.share_keys, known_off="0",
        user_keys=("optimizer.optimizer_cpu_offload", "optimizer.optimizer_offload_fraction"), error={"": 0.5},
        numerics="Adam on the CPU rounds otherwise than on the GPU", source="megatron/core/optimizer/__init__.py:502",
    ),
    Switch(
        name="offload", what="activations of modules in host memory until the backward pass", values=("off", *offloading.OFFLOADED),
        takes=offloading.modules, read=lambda f: "+".join(f.offload_modules) or "off",
        put=lambda f, value: replace(f, offload_modules=() if value == "off" else tuple(value.split("+"))),
        keys=offloading.module_keys, user_keys=("model.fine_grained_activation_offloading", "model.offload_modules"), stops=offloading.offloadable,
        error={"": 0.1}, numerics="the same values: copies", source="megatron/core/transformer/transformer_config.py:1848",
    ),
    Switch(
        name="fp8_gather", what="FP8 weights are gathered as they are, with no bf16 copy of them", **_flag("fp8_param_gather"),
        keys=_gather_keys, user_keys=("mixed_precision.fp8_param_gather",), problem=_gather_problem,
        stops=_gathered, error={"": 0.05}, source="megatron/core/optimizer/distrib_optimizer.py:424, bridge/training/config.py:1349",
        numerics="the same weights in every product, which takes them in FP8 anyway; the first step's master weights round otherwise",
    ),
    Switch(
        name="nccl_ub", what="NCCL's own buffers for data parallel traffic", **_flag("nccl_ub"),
        keys=_user_buffers, user_keys=("ddp.nccl_ub",), error={"": 0.05}, numerics=ORDER,
        source="megatron/core/distributed/distributed_data_parallel_config.py:256",
    ),
    Switch(
        name="nccl_registration", what="Megatron-FSDP's buffers are registered with NCCL at once, by hand",
        **_plain("ddp.fsdp_manual_registration"), numerics=ORDER, stops=_registered, source="bridge/training/config.py:1107",
    ),
    Switch(
        name="fsdp", what="Megatron-FSDP in place of the distributed optimizer", values=("on", "off"), pin="fsdp",
        read=lambda f: "on" if f.fsdp else "off", put=lambda f, value: replace(f, fsdp=value == "on"),
        keys=lambda _r, value: {"dist.use_megatron_fsdp": value == "on", "ddp.use_megatron_fsdp": value == "on"},
        user_keys=("dist.use_megatron_fsdp", "ddp.use_megatron_fsdp"), error={"": 0.05},
        numerics="the same Adam; sums are added in another order", source="bridge/training/config.py:1076",
    ),
    Switch(
        name="fsdp_unit", what="parameters that Megatron-FSDP gathers and reduces at once", values=("100000000",),
        **_count("ddp.suggested_communication_unit_size"), numerics=SAME, stops=_sharded,
        source="megatron/core/distributed/distributed_data_parallel_config.py:107",
    ),
    Switch(
        name="fsdp_buffers", what="two fixed buffers for Megatron-FSDP's units, in place of fresh ones",
        **_plain("ddp.fsdp_double_buffer"), numerics=SAME, stops=_sharded,
        source="megatron/core/distributed/distributed_data_parallel_config.py:135",
    ),
    Switch(
        name="cp_exchange", on_cpu=lambda value: value == "all_gather", what="how context parallel ranks exchange keys and values", pin="cp_comm_type",
        values=("p2p", "a2a", "a2a+p2p", "all_gather"), **_unknown("model.cp_comm_type"), keys=lambda _r, _value: {},
        numerics=ORDER, source="bridge/training/config.py:1534, :1544",
    ),
    Switch(
        name="dispatcher_sms", what="multiprocessors that DeepEP or HybridEP sends with", values=("20",),
        **_count("model.moe_flex_dispatcher_num_sms", "model.moe_deepep_num_sms", "model.moe_hybridep_num_sms")
        | {"keys": experts.sms_keys}, numerics=SAME, stops=experts.flexible, source="megatron/core/transformer/transformer_config.py:926",
    ),
    Switch(
        name="delay_wgrad", what="weight gradients of experts after the all-to-all was started", **_plain("comm_overlap.delay_wgrad_compute"),
        stops=experts.delayed, numerics=SAME, source="megatron/core/model_parallel_config.py:348, bridge/training/comm_overlap.py:555",
    ),
    Switch(
        name="dp_overlap", on_cpu=_any, what="gradients and weights travel under compute",
        **_plain(*DP_OVERLAP) | {"read": _overlapping, "put": _overlapped, "choices": _to_overlap, "error": {"": 0.05}, "once": True},
        withheld=_left_behind, numerics=SAME, stops=_of_distributed_optimizer, source="bridge/training/comm_overlap.py:577",
    ),
    Switch(
        name="dp_bucket", on_cpu=_any, what="parameters of a bucket of gradients that travel at once", values=("128000000",),
        **_count("comm_overlap.bucket_size", "ddp.bucket_size", "ddp.num_buckets") | {"keys": _bucket_keys}, numerics=ORDER, stops=_of_distributed_optimizer, source="bridge/training/comm_overlap.py:590",
    ),
    Switch(
        name="p2p_overlap", on_cpu=lambda value: value == "on",  # interleaved stages over gloo always do
        what="what pipeline stages send each other travels under compute",
        **_unknown("comm_overlap.overlap_p2p_comm", "comm_overlap.batch_p2p_comm"), values=("on", "off"), stops=_interleaved,
        keys=lambda _r, value: {"comm_overlap.overlap_p2p_comm": value == "on", "comm_overlap.batch_p2p_comm": value != "on"},
        numerics=SAME, source="bridge/training/comm_overlap.py:453",
    ),
    Switch(
        name="gather_in_step", stops=_excluded(GATHER_IN_STEP), what="weights are gathered while the optimizer steps",
        **_plain("comm_overlap.overlap_param_gather_with_optimizer_step")
        | {"keys": _gather_in_step_keys, "put": _gather_in_step},
        numerics=SAME, source="megatron/training/arguments.py:1032, megatron/core/optimizer/__init__.py:1049",
    ),
    Switch(
        name="deferred_embedding", stops=_excluded(DEFERRED_EMBEDDING), what="weight gradients of the embedding in the pipeline's bubble",
        **_plain("comm_overlap.defer_embedding_wgrad_compute")
        | {"keys": _deferred_keys, "put": lambda f, value: replace(f, fused_accumulation=True) if value == "on" else f},
        numerics="the same sums; weight gradients are summed by the product itself (gradient_fusion), which comes with it",
        source=DEFERRED_EMBEDDING.source,
    ),
    Switch(
        name="permute_fusion", stops=experts.needed, what="one kernel for the permutation of tokens", **_plain("model.moe_permute_fusion"),
        numerics=KERNEL, source="megatron/core/transformer/transformer_config.py:912",
    ),
    Switch(
        name="router_fusion", stops=experts.needed, what="one kernel for the router",
        **_plain("model.moe_router_fusion") | _flag("router_fusion") | {"error": {"": 0.05}}, numerics=KERNEL,
        source="megatron/core/transformer/transformer_config.py:915",
    ),
    Switch(
        name="rope_fusion", stops=_rotary, what="one kernel for rotary embeddings",
        **_plain("model.apply_rope_fusion") | _flag("rope_fusion") | {"keys": _rotary_keys, "error": {"": 0.05}}, numerics=KERNEL,
        source="megatron/core/transformer/transformer_config.py:2165, :2838, bridge/utils/fusions.py:71",
    ),
    Switch(
        name="bias_fusion", on_cpu=_any, stops=_activation, what="one kernel for bias and activation, one for bias, dropout and residual",
        **_plain("model.bias_activation_fusion", "model.bias_dropout_fusion") | _flag("activation_fusion") | {"error": {"": 0.05}},
        numerics=KERNEL,
        source="megatron/core/transformer/transformer_config.py:482, :496",
    ),
    Switch(
        name="norm_fusion", what="one kernel for the residual's sum and the norm behind it", **_plain("model.fused_residual_rmsnorm"),
        stops=lambda _x, r, value: None if value == "off" or r.architecture.normalization == "RMSNorm"
        else f"it is RMSNorm's, and the model has {r.architecture.normalization}",
        numerics=KERNEL, source="megatron/core/transformer/transformer_config.py:508",
    ),
    Switch(
        name="gradient_fusion", what="weight gradients are summed by the product itself",
        **_plain("model.gradient_accumulation_fusion") | _flag("fused_accumulation") | {"keys": _fusion_keys, "error": {"": 0.05}},
        numerics="the same format of the sum, added in the product's epilogue",
        source="megatron/core/model_parallel_config.py:250, :550, bridge/training/comm_overlap.py:549",
    ),
)  # fmt: skip
"""Every switch, in the order in which they are shown. Those without `choices` are set when asked for, never by the planner."""


_CONDITIONED = tuple(row for row in SWITCHES if row.problem is not no_problem)
"""Those that something can be wrong with where nothing failed."""


CPU_RANKS = "they have no CUDA kernels, no streams and no NCCL"
"""Why CPU ranks cannot be told a switch."""


def switch(name: str) -> Switch | None:
    """The row of that name."""
    return next((s for s in SWITCHES if s.name == name), None)


def not_on_cpu(asked: Mapping[str, str]) -> str | None:
    """The first of the values that were asked for that gloo ranks cannot be told, as NAME=VALUE; None when they can be told all."""
    return next(
        (f"{s.name}={asked[s.name]}" for s in SWITCHES if s.name in asked and not s.on_cpu(asked[s.name])), None
    )


def with_values(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with these switches set."""
    features = recipe.features
    for row in SWITCHES:
        if row.name in values:
            features = row.put(features, values[row.name])
    return recipe if features == recipe.features else replace(recipe, features=features)


def problem(
    layout: Layout, recipe: Recipe, place: Place, *, given: Recipe | None = None, ours: Collection[str] = ()
) -> str | None:
    """The first reason why a switch that the recipe has cannot be on here; None when all can.

    What `given`, the recipe as it came, has on and this layout excludes falls by itself (`legal_features`), but for the switches
    in `ours`: those that were chosen or asked for.
    """
    for row in SWITCHES if place.failed else _CONDITIONED:
        sentence = row.refused(layout, recipe, place)
        if sentence and (given is None or row.name in ours or row.refused(layout, given, place) is None):
            return sentence
    return None


def stopped(layout: Layout, recipe: Recipe, asked: Mapping[str, str]) -> str | None:
    """The first reason why a value that was asked for cannot be in this layout; None when all can."""
    said: dict[str, tuple[str, object]] = {}  # key: by whom, and its value
    for row in SWITCHES:
        if row.name not in asked:
            continue
        value = asked[row.name]
        if why := row.stops(layout, recipe, value):
            return f"{row.name}={value}: {why}"
        for key, wanted in row.keys(recipe, value).items():
            other, before = said.setdefault(key, (f"{row.name}={value}", wanted))
            if before != wanted:
                return f"{row.name}={value}: it sets {key} to {wanted}, and {other} to {before}"
    return None

"""KEY=VALUE as a user types it: read in order, turned into pins, and into the recipe that will really be trained.

The grammar is Hydra's, as Megatron Bridge's `process_config_with_overrides` reads it. Which keys are planned with, and what
becomes of the others, is said in `parlaunch.environment.override_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.environment.exclusive import (
    EXTERNAL,
    FUSED,
    PADDED,
    goes_with,
)
from parlaunch.environment.model_keys import ACTIVATION, MODEL_KEYS, activation, drops
from parlaunch.environment.needed import GROUPED, check_needed
from parlaunch.environment.override_grammar import hydra, pairs_of, value
from parlaunch.environment.planned_values import read
from parlaunch.environment.user_switches import CAPACITY, EFFECTS, FILLED, NOT_EXTERNAL, features_of
from parlaunch.environment.value_types import OPTIMIZER, check_values
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import FOLLOWING, HYBRID, Architecture
from parlaunch.model.layout import NO_RECOMPUTE, Recompute, selective
from parlaunch.model.precision import BRIDGE_NAMES, QUANTIZED, SCALINGS, short_name, switched
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import GRAPH, OVERLAP, OVERLAP_OF_DP, PRECISION, SHARDED_DDP, places
from parlaunch.model.stages import EMBEDDING, FIRST, LAST, LAYOUT, LOSS, PREFIX, StageWish
from parlaunch.rules.switches import DETERMINISTIC, DROPOUTS, SHARED_OVERLAP, SPREAD, UNFILLED, UNGROUPED

PINS: Mapping[str, tuple[str, str]] = {
    "model.tensor_model_parallel_size": ("tp", "size"),
    "model.pipeline_model_parallel_size": ("pp", "size"),
    "model.virtual_pipeline_model_parallel_size": ("vp", "size or null"),
    "model.context_parallel_size": ("cp", "size"),
    "model.expert_model_parallel_size": ("ep", "size"),
    "model.expert_tensor_parallel_size": ("etp", "size or null"),
    "model.sequence_parallel": ("sequence_parallel", "bool"),
    "train.micro_batch_size": ("micro_batch_size", "size"),
    "train.global_batch_size": ("global_batch_size", "size"),
    "model.seq_length": ("seq_length", "size"),
    "dataset.seq_length": ("seq_length", "size"),
    "dataset.sequence_length": ("seq_length", "size"),
    "dist.use_megatron_fsdp": ("fsdp", "bool"),
    "ddp.use_megatron_fsdp": ("fsdp", "bool"),
    "model.cp_comm_type": ("cp_comm_type", "text or null"),
    "model.freeze_language_model": ("frozen_language_model", "bool"),
    "model.freeze_vision_model": ("frozen_encoder", "bool"),
    "model.recompute_granularity": ("granularity", "granularity"),
    "model.recompute_modules": ("modules", "names"),
    "model.recompute_method": ("method", "method"),
    "model.recompute_num_layers": ("num_layers", "size or null"),
}
"""Override keys that name something planned: the pin and the kind of its value."""

_RECOMPUTE = ("granularity", "modules", "method", "num_layers")

STAGES: Mapping[str, tuple[str, str]] = {
    PREFIX + LAYOUT: ("layout", "text or null"),
    PREFIX + FIRST: ("first", "size or null"),
    PREFIX + LAST: ("last", "size or null"),
    PREFIX + EMBEDDING: ("embedding", "bool"),
    PREFIX + LOSS: ("loss", "bool"),
}
"""Keys that say which layers a pipeline stage holds: the field of `StageWish` and the kind of its value."""

SHAPE: Mapping[str, str] = {
    f"model.{name}": kind
    for kind, names in {
        "size": (
            "num_layers", "hidden_size", "num_attention_heads", "vocab_size",
            "make_vocab_size_divisible_by", "moe_router_topk", "linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads",
            "linear_value_head_dim",
        ),
        "size or null": (
            *FOLLOWING, "num_moe_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_latent_size",
            "moe_router_num_groups", "moe_router_group_topk", "q_lora_rank", "kv_lora_rank", "qk_head_dim",
            "qk_pos_emb_head_dim", "v_head_dim", "mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups",
        ),
        "number or null": ("mtp_num_layers",),
        "bool": (
            "gated_linear_unit", "add_bias_linear", "add_qkv_bias", "qk_layernorm", "share_embeddings_and_output_weights",
            "attention_output_gate",
        ),
        "text": ("hybrid_layer_pattern", "activation_func"),
    }.items()
    for name in names
}  # fmt: skip
"""Keys that change the model's shape: the field of `Architecture` has the same name; the kind of its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOverrides:
    """What a user typed after the options: `pairs` as typed and in order, `given` each key's last text, `pins` what of it
    fixes a planned size, `stages` how they want the layers cut."""

    pairs: tuple[str, ...]
    given: Mapping[str, str]
    pins: Mapping[str, Any]
    stages: StageWish | None = None
    precision: str | None = None  # our short name of what they ask for


def read_overrides(pairs: Sequence[str]) -> UserOverrides:
    """Read KEY=VALUE arguments. A repeated key: the last one counts, as in Hydra.

    Raises `UsageError` for an argument without `=`, a value of the wrong type for a planned quantity, or two keys that
    fix one size differently (`model.seq_length` and `dataset.seq_length`).
    """
    given = pairs_of(pairs)
    planned = {key: read(key, given[key], PINS[key][1]) for key in given if key in PINS}
    stages = {STAGES[key][0]: read(key, given[key], STAGES[key][1]) for key in given if key in STAGES}
    return UserOverrides(
        pairs=tuple(pairs), given=given, pins=_pins(planned),
        stages=StageWish(**stages) if any(v for v in stages.values()) else None, precision=_precision(given),
    )  # fmt: skip


def pins_from(pairs: Sequence[str]) -> dict[str, Any]:
    """The pins among a user's overrides: tp, pp, vp (1: no interleaving), cp, ep, etp, micro_batch_size,
    global_batch_size, seq_length, sequence_parallel, fsdp, frozen_language_model, frozen_encoder, recompute (a `Recompute`); absent keys are not pinned."""
    return dict(read_overrides(pairs).pins)


def _pins(given: Mapping[str, Any]) -> dict[str, Any]:
    pins: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, found in given.items():
        name = PINS[key][0]
        if name in _RECOMPUTE or (name in ("etp", "cp_comm_type") and found is None):
            continue  # null: Megatron's default, which the planner knows too
        if name == "vp" and found is None:
            found = 1  # no interleaving
        if name in pins and pins[name] != found:
            raise UsageError(
                f"{origin[name]}={pins[name]} and {key}={found} contradict each other", hint="give both the same value"
            )
        pins[name], origin[name] = found, key
    recompute = {PINS[key][0]: found for key, found in given.items() if PINS[key][0] in _RECOMPUTE}
    if recompute:
        pins["recompute"] = _recompute_pin(recompute)
    return pins


def _recompute_pin(given: Mapping[str, Any]) -> Recompute:
    granularity = given.get("granularity")
    if "granularity" not in given:
        granularity = (
            "full" if given.get("method") or given.get("num_layers") else "selective" if given.get("modules") else None
        )
    if granularity is None:
        return NO_RECOMPUTE
    if granularity == "selective":
        if given.get("method") or given.get("num_layers"):
            raise UsageError(
                "model.recompute_granularity=selective takes neither recompute_method nor recompute_num_layers",
                hint="set model.recompute_modules=[core_attn,…], or granularity full",
            )
        return selective(given.get("modules"))
    return Recompute(
        granularity="full", method=given.get("method") or "uniform", num_layers=given.get("num_layers") or 1
    )


# --- The recipe that will be trained ----------------------------------------------------------------------------------


def changed(recipe: Recipe, said: UserOverrides) -> Recipe:
    """The recipe with the user's own model, precision and switches. Pins are not in it: they belong to the layout.

    Raises `UsageError` for values of the wrong type, and for a shape that contradicts itself.
    """
    if recipe.features.external_cuda_graph and GRAPH in said.given and EXTERNAL not in said.given:
        features = replace(recipe.features, **NOT_EXTERNAL)
        recipe = replace(recipe, features=features, spoken=(*recipe.spoken, f"{EXTERNAL}=False"))
    recipe = _without_overlap(recipe) if OVERLAP in said.given and value(said.given[OVERLAP]) is None else recipe
    made = replace(
        recipe,
        architecture=_architecture(recipe, said.given),
        precision=_made_in(recipe, said),
        features=features_of(recipe, said.given),
        bare=_bare(recipe, said.given),
        packing=_packing(recipe, said.given),
        unsettled=_unsettled(recipe, said.given),
        optimizer=_optimizer(recipe, said.given),
        added_mtp_layers=0 if "model.mtp_num_layers" in said.given else recipe.added_mtp_layers,
    )
    check_values(said.given)
    check_needed(recipe, made, said.given)
    beside = goes_with(made, said.given, MODEL_KEYS)
    fused = made.features.fused_accumulation or f"{FUSED}=True" in beside
    padded = made.features.router_padding and not any(f"{key}=False" in beside for key in PADDED)
    return replace(
        made,
        spoken=tuple(dict.fromkeys((*made.spoken, *beside))),
        features=replace(made.features, fused_accumulation=fused, router_padding=padded),
    )


def _made_in(recipe: Recipe, said: UserOverrides) -> str:
    """What it trains in: a kind of scaling is nothing by itself."""
    eight, kind = f"{PRECISION}.fp8", f"{PRECISION}.fp8_recipe"
    if PRECISION in said.given or not {eight, kind} & said.given.keys():
        return said.precision or recipe.precision
    on = value(said.given[eight]) is not None if eight in said.given else recipe.precision.startswith("fp8")
    if not on:
        return "bf16" if recipe.precision.startswith("fp8") else recipe.precision
    return said.precision or (recipe.precision if recipe.precision.startswith("fp8") else "fp8cs")


OFFLINE = ("dataset.enable_offline_packing", "dataset.offline_packing_specs", "dataset.packed_sequence_specs")
IN_BATCH = ("dataset.enable_in_batch_packing", "dataset.pack_sequences_in_batch")


def _packing(recipe: Recipe, given: Mapping[str, str]) -> str | None:
    """How samples are packed: Bridge takes one of its two ways, under names that differ by version."""
    for key in IN_BATCH:
        if key in given:
            on = read(key, given[key], "bool")
            return "in_batch" if on else None if recipe.packing == "in_batch" else recipe.packing
    left = any(key in given and value(given[key]) in (None, False) for key in OFFLINE)
    return None if left and recipe.packing == "offline" else recipe.packing


def _unsettled(recipe: Recipe, given: Mapping[str, str]) -> tuple[str, ...]:
    """With what the user turns on that no feature has, and that excludes others."""
    kinds = {**dict.fromkeys((SHARED_OVERLAP, DETERMINISTIC, SPREAD), "bool"), **dict.fromkeys(DROPOUTS, "share")}
    said = {
        name: read(f"model.{name}", given[f"model.{name}"], kind)
        for name, kind in kinds.items()
        if f"model.{name}" in given
    }
    if CAPACITY in given or FILLED in given:
        filled = read(FILLED, given[FILLED], "bool") if FILLED in given else recipe.features.expert_capacity > 0
        said[UNFILLED] = drops(recipe, given) and not filled
    if GROUPED in given:
        said[UNGROUPED] = not read(GROUPED, given[GROUPED], "bool")
    on = dict.fromkeys((*recipe.unsettled, *said))
    return tuple(name for name in on if said.get(name, True))


def _optimizer(recipe: Recipe, given: Mapping[str, str]) -> str:
    """Whose conditions hold; what another than the recipe's costs is not known."""
    named = str(value(given[OPTIMIZER])) if OPTIMIZER in given else recipe.optimizer
    return "muon" if "muon" in named else "adam"


def _without_overlap(recipe: Recipe) -> Recipe:
    """The recipe with its section emptied: what it overlaps it says there, and nowhere else, but for pretraining's data parallelism
    (bridge/recipes/common.py:83, :402)."""
    f, pretrains = recipe.features, recipe.task == "pretrain"
    f = replace(
        f, tp_overlap=False, ep_overlap=False, gather_in_step=False,
        reduce_overlap=f.reduce_overlap and pretrains, gather_overlap=f.gather_overlap and pretrains,
    )  # fmt: skip
    kept = [name for name in recipe.bare if name != OVERLAP_OF_DP]
    return replace(recipe, features=f, bare=tuple(dict.fromkeys((*kept, OVERLAP))))


def _bare(recipe: Recipe, given: Mapping[str, str]) -> tuple[str, ...]:
    """Sections in which a key does nothing, with what the user's own keys change of that."""
    named = (PRECISION,) if PRECISION in given else ()
    kept = [name for name in recipe.bare if name != OVERLAP_OF_DP or SHARDED_DDP not in given]
    if SHARDED_DDP in given and OVERLAP not in recipe.bare and not read(SHARDED_DDP, given[SHARDED_DDP], "bool"):
        kept.append(OVERLAP_OF_DP)
    return tuple(dict.fromkeys((*kept, *named)))


def _architecture(recipe: Recipe, given: Mapping[str, str]) -> Architecture:
    a = recipe.architecture
    changes = {key.removeprefix("model."): read(key, given[key], SHAPE[key]) for key in given if key in SHAPE}
    if a.hybrid_layer_pattern and (changes.get("mtp_num_layers", a.mtp_num_layers) or 0) != (a.mtp_num_layers or 0):
        raise UsageError(
            f"model.mtp_num_layers={given['model.mtp_num_layers']}: a hybrid model's pattern says how it predicts further tokens",
            hint="leave it out",
        )
    if "num_moe_experts" in changes and a.num_moe_experts and changes["num_moe_experts"] is None:
        # megatron/core/transformer/transformer_config.py:1538, :2349
        raise UsageError(
            f"model.num_moe_experts={given['model.num_moe_experts']}: the recipe's router, dispatcher and sizes of experts stand",
            hint="choose a recipe whose model is dense: `parlaunch recipes` lists them",
        )
    if changes.get("moe_ffn_hidden_size") and not (a.num_moe_experts or changes.get("num_moe_experts")):
        raise UsageError(
            f"model.moe_ffn_hidden_size={changes['moe_ffn_hidden_size']}: the model of {recipe.name} has no experts",
            hint="leave it out",
        )
    derived = tuple(name for name in FOLLOWING if name in changes and changes[name] is None)
    if derived:
        a = replace(a, derived=(*a.derived, *derived))
        changes = {name: size for name, size in changes.items() if name not in derived}
    if "moe_ffn_hidden_size" in changes and changes["moe_ffn_hidden_size"] is None and a.num_moe_experts:
        # megatron/core/transformer/transformer_config.py:1535
        changes["moe_ffn_hidden_size"] = changes.get("ffn_hidden_size", a.ffn_hidden_size)
    if ACTIVATION in given:
        changes["activation_func"] = activation(given[ACTIVATION])
    if MOE_LAYERS in given:
        freq = read(MOE_LAYERS, given[MOE_LAYERS], "layers")
        layers = changes.get("num_layers", a.num_layers)
        if isinstance(freq, tuple) and len(freq) != layers:
            raise UsageError(
                f"{MOE_LAYERS}={given[MOE_LAYERS]}: it speaks of {len(freq)} layers, and the model has {layers}",
                hint="a 0 or 1 for each, or how many layers go to one with experts",
            )
        pattern = tuple(int(i % freq == 0) for i in range(layers)) if isinstance(freq, int) else freq
        changes |= {"moe_layer_pattern": pattern, "first_k_dense": None}
    if not changes and not derived:
        return a
    if changes.get("num_moe_experts") and not a.num_moe_experts:
        raise UsageError(
            f"model.num_moe_experts={changes['num_moe_experts']}: the model of {recipe.name} is dense, and the recipe sets neither "
            "dispatcher nor kernels for experts",
            hint="choose a recipe whose model has experts: `parlaunch recipes` lists them",
        )
    if _known(changes.get("hybrid_layer_pattern")) and "num_layers" not in changes:
        changes["num_layers"] = len(replace(a, **changes).layers())
    made = a.with_sizes(changes)
    _agrees(a, made, changes)
    return made


def _known(pattern: str | None) -> str | None:
    """The pattern of a hybrid model, where each letter stands for something. Raises `UsageError` for others."""
    if unknown := sorted(set(pattern or "") - {*HYBRID, "|", "/"}):
        raise UsageError(
            f"model.hybrid_layer_pattern={pattern}: {', '.join(unknown)} is no kind of layer",
            hint=f"layers are {' '.join(HYBRID)}; | stands between stages, / before further tokens",
        )
    return pattern


MOE_LAYERS = "model.moe_layer_freq"


def _agrees(before: Architecture, a: Architecture, changes: Mapping[str, Any]) -> None:
    """Raise `UsageError` where heads or experts cannot be shared out, or where what is said layer by layer has another length
    than the model."""
    n = a.num_layers
    heads, groups, experts = a.num_attention_heads, a.num_query_groups, a.num_moe_experts
    if (
        {"num_attention_heads", "num_query_groups"} & changes.keys()
        and groups
        and not a.multi_latent_attention
        and heads % groups
    ):
        raise UsageError(
            f"{heads} attention heads cannot share {groups} key/value heads evenly",
            hint=f"model.num_query_groups={math.gcd(heads, groups)}, or another divisor of {heads}",
        )
    if a.complete and a.hidden_size < heads:
        raise UsageError(
            f"model.hidden_size={a.hidden_size}: fewer than the {heads} attention heads that share it",
            hint=f"say model.num_attention_heads={a.hidden_size} at most, too",
        )
    if experts and a.moe_router_topk > experts:
        raise UsageError(
            f"{a.moe_router_topk} experts a token of {experts}", hint=f"model.moe_router_topk={experts} at most"
        )
    if a.moe_router_group_topk:
        _groups(a)
    keys, values = a.linear_num_key_heads, a.linear_num_value_heads
    # megatron/core/transformer/transformer_config.py:1368
    if a.linear_attention_pattern and keys and values and values % keys:
        raise UsageError(
            f"{values} value heads of the linear attention are no multiple of its {keys} key heads",
            hint=f"model.linear_num_value_heads={math.ceil(values / keys) * keys}",
        )
    if a.multi_latent_attention and changes.get("attention_output_gate"):
        # megatron/core/transformer/transformer_config.py:2969
        raise UsageError("model.attention_output_gate=True: multi-latent attention has no gate", hint="leave it out")
    if a.hybrid_layer_pattern and len(a.layers()) != n:
        raise UsageError(
            f"model.num_layers={n} contradicts the model's hybrid_layer_pattern of {len(a.layers())} layers",
            hint="say model.hybrid_layer_pattern with as many letters; the number of layers follows from it",
        )
    if n == before.num_layers and "moe_layer_pattern" not in changes:
        return
    dense = a.first_k_dense
    if a.num_moe_experts and (dense or (a.moe_layer_pattern and len(a.moe_layer_pattern) != n)):
        old = before.moe_layer_pattern or tuple(int(i >= (dense or 0)) for i in range(before.num_layers))
        pattern = (*old[:n], *(old[-1:] * (n - len(old))))
        raise UsageError(
            f"model.num_layers={n} contradicts the model's moe_layer_freq, which says of {len(old)} layers whether they have experts",
            hint=f"add '{MOE_LAYERS}={hydra(pattern)}'",
        )
    for name in ("window_pattern", "linear_attention_pattern", "csa_compress_ratios", "dsa_indexer_layers"):
        pattern = getattr(a, name)
        if pattern is not None and len(pattern) != n:
            raise UsageError(
                f"model.num_layers={n}: this model says of each of its {len(pattern)} layers how it attends",
                hint="leave model.num_layers out, or choose a smaller model of the family",
            )


def _groups(a: Architecture) -> None:
    """Raise `UsageError` where experts are not routed by groups as Megatron can (megatron/core/transformer/transformer_config.py:2344)."""
    top, groups = a.moe_router_group_topk or 0, a.moe_router_num_groups
    key = "model.moe_router_num_groups"
    if not a.num_moe_experts:
        raise UsageError(f"model.moe_router_group_topk={top}: the model has no experts", hint="leave it out")
    if not groups:
        raise UsageError(
            f"model.moe_router_group_topk={top}: {key} is not said", hint=f"add {key}={math.gcd(a.num_moe_experts, 8)}"
        )
    if a.num_moe_experts % groups or top > groups:
        raise UsageError(
            f"{top} of {groups} groups of {a.num_moe_experts} experts: groups are equal, and no more can be chosen than there are",
            hint=f"{key}=, a divisor of {a.num_moe_experts} of {top} or more",
        )


def _precision(given: Mapping[str, str]) -> str | None:
    """Our short name of the precision that the overrides ask for; None when they say nothing of it."""
    if PRECISION in given:
        named = value(given[PRECISION])
        if named is None:
            return None
        short = short_name(str(named))
        if short is None:
            raise UsageError(
                f"{PRECISION}={named}: Megatron Bridge has no mixed precision of that name",
                hint="one of: " + ", ".join(BRIDGE_NAMES.values()),
            )
        return short
    if (kind := given.get(f"{PRECISION}.fp8_recipe")) is not None:
        if value(kind) is not None and str(value(kind)) not in SCALINGS:
            raise UsageError(
                f"{PRECISION}.fp8_recipe={kind}: no scaling of FP8 that is planned with has that name",
                hint="one of: " + ", ".join(SCALINGS),
            )
        return SCALINGS.get(str(value(kind)))
    if f"{PRECISION}.fp8" in given and value(given[f"{PRECISION}.fp8"]) is None:
        return "bf16"
    return None


def planned_keys(recipe: Recipe) -> frozenset[str]:
    """Every key that a plan of this recipe is made with."""
    switches = {place for keys, _ in EFFECTS for key in keys for place in places(key, recipe)}
    precision = {PRECISION, f"{PRECISION}.fp8", f"{PRECISION}.fp8_recipe"}
    return frozenset({OVERLAP, *OFFLINE, *IN_BATCH, *PINS, *STAGES, *SHAPE, MOE_LAYERS, *switches, *precision})


def contradicted(spoken: Sequence[str], said: UserOverrides, option: str) -> None:
    """Raise `UsageError` for the first key of the user's that would undo what an option amounts to."""
    for pair in spoken:
        key, _, wanted = pair.partition("=")
        text = said.given.get(key)
        if text is not None and value(text) != value(wanted):
            raise UsageError(f"{key}={text} contradicts {option}, which needs {pair}", hint=f"leave {key} out")


def with_precision(recipe: Recipe, precision: str) -> Recipe:
    """The recipe in a precision asked for by option. What it was in already stays as the recipe has it."""
    if precision == recipe.precision:
        return recipe
    features = replace(recipe.features, **switched(BRIDGE_NAMES.get(precision, "")))
    return replace(
        recipe, precision=precision, features=features, spoken=(*recipe.spoken, *_precision_said(precision, recipe.precision)),
        bare=tuple(dict.fromkeys((*recipe.bare, PRECISION))),
    )  # fmt: skip


def _precision_said(precision: str, before: str) -> tuple[str, ...]:
    """How Megatron Bridge hears of it. Everything of fp32 has to be said: without mixed precision, Bridge leaves the model's,
    DDP's and the optimizer's switches as the recipe has them."""
    if precision in BRIDGE_NAMES:
        return (f"{PRECISION}={BRIDGE_NAMES[precision]}",)
    off = [f"{where}.{kind}=False" for where in ("model", "optimizer") for kind in ("bf16", "fp16")]
    off += [f"{key}=False" for key in QUANTIZED_WEIGHTS if before.startswith(QUANTIZED)]
    wide = ("model.params_dtype=torch.float32", "model.pipeline_dtype=torch.float32", "ddp.grad_reduce_in_fp32=True")
    return (f"{PRECISION}=null", *off, *wide)


QUANTIZED_WEIGHTS = (
    "model.fp8_param", "ddp.fp8_param_gather", "ddp.reuse_grad_buf_for_mxfp8_param_ag", "optimizer.reuse_grad_buf_for_mxfp8_param_ag",
)  # fmt: skip
"""Switches of weights in 8 bits that recipes set beside their mixed precision, and that are refused without it
(megatron/core/transformer/transformer_config.py:1439, megatron/core/distributed/distributed_data_parallel_config.py:253)."""

"""KEY=VALUE as a user types it: read in order, turned into pins, and into the recipe that will really be trained.

The grammar is Hydra's, as Megatron Bridge's `process_config_with_overrides` reads it. Which keys are planned with, and what
becomes of the others, is said in `parlaunch.environment.override_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.environment.exclusive import (
    DISPATCHER,
    EXTERNAL,
    FINE,
    FINE_MODULES,
    FUSED,
    GRAPH,
    MODULES,
    OFFLOAD,
    OFFLOAD_SHARE,
    PADDED,
    SCOPE,
    WHOLE,
    goes_with,
)
from parlaunch.environment.model_keys import ACTIVATION, MODEL_KEYS, activation
from parlaunch.environment.needed import check_needed
from parlaunch.environment.override_grammar import hydra, pairs_of, value
from parlaunch.environment.value_types import check_values
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import FOLLOWING, Architecture
from parlaunch.model.layout import NO_RECOMPUTE, Recompute, selective
from parlaunch.model.precision import BRIDGE_NAMES, short_name, switched
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import OVERLAP, OVERLAP_OF_DP, PRECISION, SHARDED_DDP, places
from parlaunch.model.stages import EMBEDDING, FIRST, LAST, LAYOUT, LOSS, PREFIX, StageWish
from parlaunch.rules.switches import DETERMINISTIC, DROPOUTS, QUANTIZED, SHARED_OVERLAP, SPREAD, UNGROUPED
from parlaunch.switches.graphs import layerwise

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
            "qk_pos_emb_head_dim", "v_head_dim", "mtp_num_layers", "mamba_num_heads", "mamba_head_dim", "mamba_state_dim",
            "mamba_num_groups",
        ),
        "bool": (
            "gated_linear_unit", "add_bias_linear", "add_qkv_bias", "qk_layernorm", "share_embeddings_and_output_weights",
            "attention_output_gate",
        ),
        "text": ("hybrid_layer_pattern", "activation_func"),
    }.items()
    for name in names
}  # fmt: skip
"""Keys that change the model's shape: the field of `Architecture` has the same name; the kind of its value."""

_EXPECTED = {
    "size": "a whole number of 1 or more",
    "size or null": "a whole number of 1 or more, or null",
    "bool": "True or False",
    "granularity": "full, selective or null",
    "method": "uniform, block or null",
    "names": "a list: [core_attn,mlp]",
    "share": "a share between 0 and 1",
    "text": "a word",
    "text or null": "a word, or null",
    "layers": "a list with 0 or 1 for each layer, or how many layers go to one with experts",
}
_EXAMPLE_OF = {
    PREFIX + LAYOUT: "'Et*16|t*16L'", "model.cp_comm_type": "p2p", GRAPH: "transformer_engine", "model.cross_entropy_fusion_impl": "te",
    "model.transformer_impl": "local", "model.hybrid_layer_pattern": "'M*M-'",
    "model.activation_func": "squared_relu",
}  # fmt: skip
_EXAMPLE = {
    "bool": "True", "granularity": "selective", "method": "uniform", "names": "[core_attn]", "share": "0.5", "layers": "[0,1,1,1]",
}  # fmt: skip


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
    planned = {key: _read(key, given[key], PINS[key][1]) for key in given if key in PINS}
    stages = {STAGES[key][0]: _read(key, given[key], STAGES[key][1]) for key in given if key in STAGES}
    return UserOverrides(
        pairs=tuple(pairs), given=given, pins=_pins(planned),
        stages=StageWish(**stages) if any(v for v in stages.values()) else None, precision=_precision(given),
    )  # fmt: skip


def pins_from(pairs: Sequence[str]) -> dict[str, Any]:
    """The pins among a user's overrides: tp, pp, vp (1: no interleaving), cp, ep, etp, micro_batch_size,
    global_batch_size, seq_length, sequence_parallel, fsdp, frozen_language_model, frozen_encoder, recompute (a `Recompute`); absent keys are not pinned."""
    return dict(read_overrides(pairs).pins)


def _read(key: str, text: str, kind: str) -> Any:
    """One value of the kind. Raises `UsageError`."""
    try:
        return _of_kind(kind, value(text))
    except (ValueError, KeyError, UsageError):
        raise UsageError(
            f"{key}={text}: {text!r} is not {_EXPECTED[kind]}",
            hint=f"for example {key}={_EXAMPLE_OF.get(key) or _EXAMPLE.get(kind, '2')}",
        ) from None


def _of_kind(kind: str, found: Any) -> Any:
    """The value as one of its kind. Raises ValueError."""
    if kind.endswith(" or null") or kind in ("granularity", "method", "names"):
        if found is None or (isinstance(found, str) and found.lower() in ("none", "")):
            return None
        kind = kind.removesuffix(" or null")
    whole = isinstance(found, int) and not isinstance(found, bool)
    match kind:
        case "size" if whole and found >= 1:
            return found
        case "bool" if isinstance(found, bool):
            return found
        case "share" if (whole or isinstance(found, float)) and 0 <= found <= 1:
            return float(found)
        case "names" if isinstance(found, list):
            return tuple(str(n) for n in found if str(n))
        case "layers" if whole and found >= 1:
            return found
        case "layers" if isinstance(found, list) and set(found) <= {0, 1}:
            return tuple(found)
        case "granularity" if found in ("full", "selective"):
            return found
        case "method" if found in ("uniform", "block"):
            return found
        case "text" if isinstance(found, str) and found:
            return found
    raise ValueError


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
        features=_features(recipe, said.given),
        bare=_bare(recipe, said.given),
        packing=_packing(recipe, said.given),
        unsettled=_unsettled(recipe, said.given),
        optimizer=_optimizer(recipe, said.given),
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
            on = _read(key, given[key], "bool")
            return "in_batch" if on else None if recipe.packing == "in_batch" else recipe.packing
    left = any(key in given and value(given[key]) in (None, False) for key in OFFLINE)
    return None if left and recipe.packing == "offline" else recipe.packing


def _unsettled(recipe: Recipe, given: Mapping[str, str]) -> tuple[str, ...]:
    """With what the user turns on that no feature has, and that excludes others."""
    kinds = {**dict.fromkeys((SHARED_OVERLAP, DETERMINISTIC, SPREAD), "bool"), **dict.fromkeys(DROPOUTS, "share")}
    said = {
        name: _read(f"model.{name}", given[f"model.{name}"], kind)
        for name, kind in kinds.items()
        if f"model.{name}" in given
    }
    if GROUPED in given:
        said[UNGROUPED] = not _read(GROUPED, given[GROUPED], "bool")
    on = dict.fromkeys((*recipe.unsettled, *said))
    return tuple(name for name in on if said.get(name, True))


GROUPED = "model.moe_grouped_gemm"


def _optimizer(recipe: Recipe, given: Mapping[str, str]) -> str:
    """Whose conditions hold; what another than the recipe's costs is not known."""
    named = str(value(given["optimizer.optimizer"])) if "optimizer.optimizer" in given else recipe.optimizer
    return "muon" if "muon" in named else "adam"


def _without_overlap(recipe: Recipe) -> Recipe:
    """The recipe with its section emptied: what it overlaps it says there, and nowhere else."""
    f = replace(recipe.features, tp_overlap=False, ep_overlap=False, gather_in_step=False)
    kept = [name for name in recipe.bare if name != OVERLAP_OF_DP]
    return replace(recipe, features=f, bare=tuple(dict.fromkeys((*kept, OVERLAP))))


def _bare(recipe: Recipe, given: Mapping[str, str]) -> tuple[str, ...]:
    """Sections in which a key does nothing, with what the user's own keys change of that."""
    named = (PRECISION,) if PRECISION in given else ()
    kept = [name for name in recipe.bare if name != OVERLAP_OF_DP or SHARDED_DDP not in given]
    if SHARDED_DDP in given and OVERLAP not in recipe.bare and not _read(SHARDED_DDP, given[SHARDED_DDP], "bool"):
        kept.append(OVERLAP_OF_DP)
    return tuple(dict.fromkeys((*kept, *named)))


def _architecture(recipe: Recipe, given: Mapping[str, str]) -> Architecture:
    a = recipe.architecture
    changes = {key.removeprefix("model."): _read(key, given[key], SHAPE[key]) for key in given if key in SHAPE}
    if a.hybrid_layer_pattern and changes.get("mtp_num_layers", a.mtp_num_layers) != a.mtp_num_layers:
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
        # megatron/core/transformer/transformer_config.py:1527
        changes["moe_ffn_hidden_size"] = changes.get("ffn_hidden_size", a.ffn_hidden_size)
    if ACTIVATION in given:
        changes["activation_func"] = activation(given[ACTIVATION])
    if MOE_LAYERS in given:
        freq = _read(MOE_LAYERS, given[MOE_LAYERS], "layers")
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
    if changes.get("hybrid_layer_pattern") and "num_layers" not in changes:
        changes["num_layers"] = len(replace(a, **changes).layers())
    made = a.with_sizes(changes)
    _agrees(a, made, changes)
    return made


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
                f"model.num_layers={n}: this model says of each of its {len(pattern)} layers how it attends, and that cannot be cut",
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
        scaling = {"tensorwise": "fp8cs", "delayed": "fp8ds", "blockwise": "fp8sc", "mxfp8": "fp8mx"}
        if value(kind) is not None and str(value(kind)) not in scaling:
            raise UsageError(
                f"{PRECISION}.fp8_recipe={kind}: no scaling of FP8 that is planned with has that name",
                hint="one of: " + ", ".join(scaling),
            )
        return scaling.get(str(value(kind)))
    if f"{PRECISION}.fp8" in given and value(given[f"{PRECISION}.fp8"]) is None:
        return "bf16"
    return None


Given = Mapping[str, str]
_Effect = Callable[[Given, Features], dict[str, Any]]


def _switch(key: str, feature: str, kind: str = "bool") -> tuple[tuple[str, ...], _Effect]:
    """One key that is one feature."""
    return (key,), lambda given, _f: {feature: _read(key, given[key], kind)}


def _dispatcher(given: Given, f: Features) -> dict[str, Any]:
    kind, backend = given.get(DISPATCHER), given.get(BACKEND)
    flexible = f.dispatcher in ("deepep", "hybridep", "ncclep")
    named = value(kind) if kind is not None else "flex" if flexible else f.dispatcher
    if named != "flex":
        return {"dispatcher": named}
    chosen = value(backend) if backend is not None else f.dispatcher if flexible else "deepep"
    return {"dispatcher": chosen or "alltoall"}


NOT_EXTERNAL: Mapping[str, Any] = {"external_cuda_graph": False, "cuda_graph": None, "cuda_graph_scope": ()}
"""A recipe's features without Megatron's older switch for graphs, and so without them."""


def _external(given: Given, f: Features) -> dict[str, Any]:
    left = f.external_cuda_graph and not _read(EXTERNAL, given[EXTERNAL], "bool")
    return dict(NOT_EXTERNAL) if left else {}


def _graph(given: Given, f: Features) -> dict[str, Any]:
    kind = _read(GRAPH, given[GRAPH], "text or null") if GRAPH in given else f.cuda_graph
    if kind in (None, "none"):
        return {"cuda_graph": None, "cuda_graph_scope": ()}
    scope: tuple[str, ...] = f.cuda_graph_scope
    for key in GRAPH_MODULES:
        if key in given:
            named = value(given[key])
            scope = tuple(str(n) for n in named) if isinstance(named, list) else (str(named),) if named else ()
            _captures(kind, key, scope, given)
    if kind == "local" and "full_iteration" not in scope:
        raise UsageError(  # bridge/utils/cuda_graph.py:146
            f"{GRAPH}=local: Megatron Bridge captures single modules with Transformer Engine only",
            hint=f"say {GRAPH}=transformer_engine, or {GRAPH}=full_iteration",
        )
    if kind == "transformer_engine" and "full_iteration" in scope:
        raise UsageError(  # megatron/core/transformer/cuda_graph_config.py:109
            f"{GRAPH}=transformer_engine: it captures single modules, and a graph of the whole iteration is named",
            hint=f"say {GRAPH}=full_iteration",
        )
    if kind == "full_iteration" or "full_iteration" in scope:
        return {"cuda_graph": "full_iteration", "cuda_graph_scope": ()}
    return {"cuda_graph": kind, "cuda_graph_scope": tuple(n for n in scope if n != "full")}


def _captures(kind: Any, key: str, modules: Sequence[str], given: Given) -> None:
    """Raise `UsageError` for modules that graphs of this kind cannot be of (megatron/core/transformer/cuda_graph_config.py:117, :156)."""
    if "full_iteration_inference" in modules:
        raise UsageError(f"{key}={given[key]}: that is no graph of training", hint="leave it out")
    if kind == "full_iteration" and set(modules) - {"full", "full_iteration"}:
        raise UsageError(
            f"{key}={given[key]}: the graph is of the whole iteration, and has no modules",
            hint=f"leave {key} out" if GRAPH in given else f"add {GRAPH}=transformer_engine",
        )


def _optimizer_offload(given: Given, f: Features) -> dict[str, Any]:
    on = _read(OFFLOAD, given[OFFLOAD], "bool") if OFFLOAD in given else f.optimizer_offload > 0
    # Megatron Core's own share is 0: the switch alone moves nothing.
    share = _read(OFFLOAD_SHARE, given[OFFLOAD_SHARE], "share") if OFFLOAD_SHARE in given else f.optimizer_offload
    return {"optimizer_offload": share if on else 0.0}


def _sharded(given: Given, f: Features) -> dict[str, Any]:
    # Bridge switches both on where one of them is; only both together leave the optimizer whole.
    said = [_read(key, given[key], "bool") for key in SHARDED if key in given]
    return {"distributed_optimizer": True if any(said) else len(said) < len(SHARDED) and f.distributed_optimizer}


def _layer_offload(given: Given, f: Features) -> dict[str, Any]:
    on = _read(LAYERS_OFF, given[LAYERS_OFF], "bool") if LAYERS_OFF in given else f.cpu_offload_layers > 0
    number = _read(LAYERS_OFF_NUMBER, given[LAYERS_OFF_NUMBER], "size") if LAYERS_OFF_NUMBER in given else None
    return {"cpu_offload_layers": (number if number is not None else f.cpu_offload_layers) if on else 0}


def _fine_offload(given: Given, f: Features) -> dict[str, Any]:
    on = _read(FINE, given[FINE], "bool") if FINE in given else bool(f.offload_modules)
    modules = _read(FINE_MODULES, given[FINE_MODULES], "names") if FINE_MODULES in given else f.offload_modules
    return {"offload_modules": (modules or ()) if on else ()}


def _targets(given: Given, f: Features) -> tuple[str, ...]:
    return tuple(_read("peft.target_modules", given["peft.target_modules"], "names") or f.adapter_targets)


def _cross_entropy(given: Given, f: Features) -> dict[str, Any]:
    before = None if f.cross_entropy == "unfused" else f.cross_entropy
    kind = _read(CROSS_KIND, given[CROSS_KIND], "text") if CROSS_KIND in given else before
    on = _read(CROSS, given[CROSS], "bool") if CROSS in given else f.cross_entropy != "unfused"
    return {"cross_entropy": (kind or "native") if on else "unfused"}


def _padding(given: Given, _f: Features) -> dict[str, Any]:
    return {"router_padding": any([_read(key, text, "bool") for key, text in given.items()])}


def _repeatable(given: Given, _f: Features) -> dict[str, Any]:
    key = f"model.{DETERMINISTIC}"
    return {"cross_entropy": "unfused", "tp_overlap": False} if _read(key, given[key], "bool") else {}


def _no_transposes(given: Given, _f: Features) -> dict[str, Any]:
    key = "model.disable_parameter_transpose_cache"
    return {"transpose_cache": not _read(key, given[key], "bool")}


def _unquantized(given: Given, _f: Features) -> dict[str, Any]:
    return {"fp8_param_gather": False} if value(given[f"{PRECISION}.fp8"]) is None else {}


def _mixed(given: Given, _f: Features) -> dict[str, Any]:
    named = value(given[PRECISION])
    return switched(str(named)) if named is not None else {}


BACKEND = "model.moe_flex_dispatcher_backend"
GRAPH_MODULES = (SCOPE, MODULES)
SHARDED = (SHARDED_DDP, "optimizer.use_distributed_optimizer")
LAYERS_OFF, LAYERS_OFF_NUMBER = "model.cpu_offloading", "model.cpu_offloading_num_layers"
CROSS, CROSS_KIND = "model.cross_entropy_loss_fusion", "model.cross_entropy_fusion_impl"

EFFECTS: tuple[tuple[tuple[str, ...], _Effect], ...] = (
    ((PRECISION,), _mixed),
    ((f"model.{DETERMINISTIC}",), _repeatable),
    _switch("mixed_precision.grad_reduce_in_fp32", "grad_reduce_fp32"),
    _switch("mixed_precision.fp8_param_gather", "fp8_param_gather"),
    _switch("mixed_precision.fp4_param_gather", "fp4_param_gather"),
    ((DISPATCHER, BACKEND), _dispatcher),
    _switch("comm_overlap.overlap_moe_expert_parallel_comm", "ep_overlap"),
    _switch("comm_overlap.tp_comm_overlap", "tp_overlap"),
    _switch("comm_overlap.overlap_param_gather_with_optimizer_step", "gather_in_step"),
    ((EXTERNAL,), _external),
    ((GRAPH, *GRAPH_MODULES), _graph),
    _switch("ddp.nccl_ub", "nccl_ub"),
    (SHARDED, _sharded),
    _switch("optimizer.use_precision_aware_optimizer", "precision_aware_optimizer"),
    ((f"{PRECISION}.fp8",), _unquantized),
    (("optimizer.exp_avg_dtype",), lambda given, _f: {"moments": _dtype(given["optimizer.exp_avg_dtype"])}),
    (("optimizer.main_params_dtype",), lambda given, _f: {"master": _dtype(given["optimizer.main_params_dtype"])}),
    _switch("mixed_precision.fp8_dot_product_attention", "fp8_attention"),
    _switch("model.fp8_output_proj", "fp8_output"),
    _switch(FUSED, "fused_accumulation"),
    _switch("model.transformer_impl", "transformer_impl", "text"),
    _switch("model.activation_func_fp8_input_store", "fp8_activation_input"),
    _switch("peft.dim", "adapter_rank", "size"),
    _switch("peft.a2a_experimental", "adapter_a2a"),
    (("peft.target_modules",), lambda given, f: {"adapter_targets": _targets(given, f)}),
    (("peft.dropout",), lambda given, _f: {"adapter_dropout": _read("peft.dropout", given["peft.dropout"], "share") > 0}),
    ((OFFLOAD, OFFLOAD_SHARE), _optimizer_offload),
    ((FINE, FINE_MODULES), _fine_offload),
    ((LAYERS_OFF, LAYERS_OFF_NUMBER), _layer_offload),
    _switch("model.moe_router_force_load_balancing", "force_balance"),
    _switch("model.moe_paged_stash", "paged_stash"),
    (PADDED, _padding),
    (("model.disable_parameter_transpose_cache",), _no_transposes),
    ((CROSS, CROSS_KIND), _cross_entropy),
)  # fmt: skip
"""Keys that switch something of `Features`, together where one value is made of several keys."""


SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}
"""What Bridge takes for a type of torch's, and the name of that (bridge/utils/activation_map.py:107)."""


def _dtype(text: str) -> str:
    named = str(value(text)).removeprefix("torch.")
    return SHORT.get(named, named)


def _features(recipe: Recipe, given: Given) -> Features:
    f = recipe.features
    if OFFLOAD in given and WHOLE in recipe.unsettled:
        f = replace(f, optimizer_offload=1.0)  # the share that the switch turns on, or leaves off
    if GRAPH in given and f.cuda_graph in (None, "full_iteration"):
        f = replace(f, cuda_graph_scope=layerwise(recipe))  # what is captured where the user names a way and no modules
    for keys, effect in EFFECTS:
        said = {key: given[place] for key in keys for place in places(key, recipe) if place in given}
        if said:
            f = replace(f, **effect(said, f))
    return f


def planned_keys(recipe: Recipe) -> frozenset[str]:
    """Every key that a plan of this recipe is made with."""
    switches = {place for keys, _ in EFFECTS for key in keys for place in places(key, recipe)}
    precision = {PRECISION, f"{PRECISION}.fp8", f"{PRECISION}.fp8_recipe"}
    partly = {f"model.{DETERMINISTIC}"}  # how slow kernels are that repeat their result is not known
    return frozenset({OVERLAP, *OFFLINE, *IN_BATCH, *PINS, *STAGES, *SHAPE, MOE_LAYERS, *switches, *precision} - partly)


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
(megatron/core/transformer/transformer_config.py:1439, megatron/core/distributed/distributed_data_parallel_config.py:375)."""

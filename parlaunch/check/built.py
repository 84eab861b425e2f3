"""A plan held against the configuration that Megatron Bridge builds from its command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from parlaunch.model.architecture import FUSED_ACTIVATIONS
from parlaunch.model.parameters import chunk_sizes
from parlaunch.model.recipe import PLACEHOLDER, Features, features_from_json
from parlaunch.model.sections import OVERLAP, places
from parlaunch.planning.plan import Plan
from parlaunch.rules.switches import legal_features

SHAPE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "vocab_size",
    "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_shared_expert_intermediate_size",
    "multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim",
    "mtp_num_layers", "gated_linear_unit", "share_embeddings_and_output_weights",
)  # fmt: skip
"""Sizes of the model that memory and time are made of, under the name that both sides use."""

UNSEEN = ("sequence_parallel", "framework")
"""Of `Features`: a quantity of the layout, and what no configuration says."""


def compared(plan: Plan, built: Mapping[str, Any]) -> tuple[int, dict[str, str]]:
    """How many quantities of the plan the finished configuration has, and those that are not so in it: quantity to "planned …,
    Megatron Bridge builds …". `built` is what `parlaunch_probes.bridge_built.built` says of it, asked for the plan's `keys_of`."""
    have = _finished(plan, built)
    want = {name: value for name, value in quantities(plan).items() if name in have}
    for name, key, value in _asked(plan):
        want[f"switch {name}, {key}"], have[f"switch {name}, {key}"] = value, built["keys"][key]
    return len(want), {
        name: f"planned {_shown(value)}, Megatron Bridge builds {_shown(have[name])}"
        for name, value in want.items()
        if _same(value) != _same(have[name])
    }


def _same(value: Any) -> Any:
    """A value as JSON would hand it back."""
    return [_same(v) for v in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_shown(v) for v in value) + ")"
    return str(value)


def _asked(plan: Plan) -> Iterator[tuple[str, str, object]]:
    """Keys of the switches that the user fixed and the estimates do not know, each with its value; of communication overlap those
    that act, to which Bridge hands its section's."""
    empty = replace(plan.recipe, bare=(OVERLAP,))
    for s in plan.switches:
        if s.recipe_value is None:
            yield from ((s.name, place, value) for key, value in s.keys for place in places(key, empty))


def keys_of(plan: Plan) -> tuple[str, ...]:
    """Places in the finished configuration whose values a plan is held against beside its quantities."""
    return tuple(key for _, key, _ in _asked(plan))


def runner_arguments(plan: Plan) -> list[str]:
    """What the runner of a plan's command is given: the recipe, or the model, and the overrides."""
    argv = list(plan.argv)
    return argv[argv.index("--recipe" if "--recipe" in argv else "--model-config") :]


def quantities(plan: Plan) -> dict[str, Any]:
    """Every planned quantity, by name."""
    x, r = plan.layout, plan.configured
    f, a = legal_features(r, x, plan.cluster), r.architecture
    again = x.recompute
    found: dict[str, Any] = {
        "tp": x.tp, "pp": x.pp, "vp": x.vp, "cp": x.cp, "ep": x.ep, "dp": x.dp,
        "sequence_parallel": x.sequence_parallel and f.sequence_parallel,
        "micro_batch_size": x.micro_batch_size, "global_batch_size": x.global_batch_size,
        "micro batches": x.num_microbatches, "seq_length": r.seq_length, "precision": r.precision,
        "recompute": _recompute(again.granularity, again.modules, again.method, again.num_layers),
        "layers of each stage": chunk_sizes(a, x),
    }  # fmt: skip
    if a.num_moe_experts:
        found["etp"] = x.etp
    if x.cp > 1:
        found["cp_comm_type"] = x.cp_comm_type
    for name in SHAPE:
        if a.num_moe_experts or not name.startswith("moe_"):
            found[f"model.{name}"] = getattr(a, name) or None
    found |= {f"features.{name}": value for name, value in _features(f).items()}
    if not a.num_moe_experts:
        del found["features.dispatcher"], found["features.router_fusion"]
    elif f.dispatcher is None:
        found["features.dispatcher"] = "alltoall"
    if not a.gated_linear_unit or a.activation_func not in FUSED_ACTIVATIONS:
        del found["features.activation_fusion"]
    if x.dp == 1:  # there is nothing to overlap, and Bridge says so
        del found["features.reduce_overlap"], found["features.gather_overlap"]
    if a.position_embedding_type != "rope":  # Bridge takes it back for some, and it does nothing for the others
        del found["features.rope_fusion"]
    return found


def _finished(plan: Plan, built: Mapping[str, Any]) -> dict[str, Any]:
    """The same quantities as Bridge has them; one that this model's configuration does not have is left out."""
    layout, dp, batch = built["layout"], built["dp"], built["global_batch_size"]
    again, at_once, mock = layout["recompute"], layout["micro_batch_size"] * dp, plan.recipe.mock_tokens
    kind = again["granularity"]
    found: dict[str, Any] = {
        **{name: layout[name] for name in ("tp", "pp", "vp", "cp", "ep", "etp", "sequence_parallel", "micro_batch_size")},
        "dp": dp, "global_batch_size": batch,
        "micro batches": f"{batch}/{at_once}" if batch % at_once else batch // at_once,
        "seq_length": mock if mock and built["seq_length"] == PLACEHOLDER else built["seq_length"],
        "precision": built["precision"],
        "recompute": _recompute(kind, again["modules"] if kind else (), again["method"], again["num_layers"]),
        "cp_comm_type": built["cp_comm_type"],
        **{f"model.{name}": built["model"][name] or None for name in SHAPE if name in built["model"]},
        **{f"features.{name}": value for name, value in _features(features_from_json(built["features"])).items()},
    }  # fmt: skip
    if built["stages"] is not None:
        found["layers of each stage"] = built["stages"]
    return found


def _features(of: Features) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in fields(Features) if f.name not in UNSEEN}


def _recompute(
    granularity: str | None, modules: Sequence[str], method: str | None, layers: int | None
) -> tuple[Any, ...]:
    """Recomputation as one quantity: of whole layers how and how many, of modules which."""
    return (granularity, method, layers) if granularity == "full" else (granularity, tuple(sorted(modules)))

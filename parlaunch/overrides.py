"""KEY=VALUE for Megatron Bridge that makes it run exactly one layout and nothing else.

From a table: keys with values as a function of (recipe, layout, machine), and the reason. The grammar is Hydra's, as
`process_config_with_overrides` reads it. What belongs to convergence is never here: a batch appears only when the user
asked for another than the recipe's. What users type themselves is read by `parlaunch.user_overrides`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from parlaunch import catalog
from parlaunch.errors import UsageError
from parlaunch.layout import Layout
from parlaunch.machine import Cluster
from parlaunch.parameters import chunk_sizes
from parlaunch.recipe import Recipe
from parlaunch.switches import (
    dispatcher_problem,
    fine_offload_problem,
    graph_problem,
    legal_features,
    offload_problem,
    overlap_problem,
)
from parlaunch.user_overrides import UserOverrides, pins_from, read_overrides, spoken

__all__ = [
    "Override", "UserOverrides", "account_flags", "explained", "hydra", "legal_features", "override_reasons", "overrides",
    "pins_from", "pipeline_layout", "read_overrides", "spoken",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One KEY=VALUE and why it is there."""

    key: str
    value: str  # as Hydra reads it
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def hydra(value: object) -> str:
    """A value as Hydra's override grammar writes it.

    >>> hydra(None), hydra(True), hydra(("core_attn", "mlp")), hydra(8), hydra("Et*4|t*4L")
    ('null', 'True', '[core_attn,mlp]', '8', 'Et*4|t*4L')
    """
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "[" + ",".join(hydra(v) for v in value) + "]"
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_/.+*|%@?$:-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text


# --- Where the layers go ----------------------------------------------------------------------------------------------


def account_flags(chunks: Sequence[int]) -> tuple[bool, bool] | None:
    """(embedding, loss) counted as one layer each, when that alone gives these chunks; None when it does not.

    >>> account_flags((4, 4)), account_flags((3, 4, 3)), account_flags((4, 3)), account_flags((4, 4, 2))
    ((False, False), (True, True), (False, True), None)
    """
    full = max(chunks)
    for first, last in ((False, False), (False, True), (True, True), (True, False)):
        expected = [full] * len(chunks)
        expected[0] -= first
        expected[-1] -= last
        if list(chunks) == expected:
            return first, last
    return None


def pipeline_layout(chunks: Sequence[int], mtp_layers: int = 0) -> str:
    """Megatron's string form: one part a virtual stage, E embedding, t decoder, m multi-token prediction, L loss.

    >>> pipeline_layout((4, 3), mtp_layers=1)
    'Et*4|t*3mL'
    """
    parts = [("t" if n == 1 else f"t*{n}") if n else "" for n in chunks]
    parts[0] = "E" + parts[0]
    parts[-1] += "m" * mtp_layers + "L"
    return "|".join(parts)


# --- Ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """Keys with values from one function; an empty answer leaves them alone."""

    values: Callable[[Recipe, Layout, Cluster | None], Mapping[str, object]]
    reason: str
    bridge_only: bool = False  # the runner for CPU ranks has no such section
    problem: Callable[[Recipe, Layout, Cluster | None], str | None] = lambda _r, _x, _c: None  # why, for this layout


def _sizes(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {
        "model.tensor_model_parallel_size": x.tp,
        "model.pipeline_model_parallel_size": x.pp,
        "model.virtual_pipeline_model_parallel_size": x.vp,
        "model.context_parallel_size": x.cp,
        "model.expert_model_parallel_size": x.ep,
        "model.expert_tensor_parallel_size": x.etp,
        "model.sequence_parallel": x.sequence_parallel,
        "train.micro_batch_size": x.micro_batch_size,
    }


def _batch(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return (
        {"train.global_batch_size": x.global_batch_size} if _own(r, "global_batch_size") != x.global_batch_size else {}
    )


def _own(r: Recipe, field: str) -> object:
    """The value a recipe comes with, before the user's options changed it; None when only the recipe itself knows."""
    try:
        return getattr(catalog.recipe(r.name), field)
    except UsageError:
        return None


def _recompute(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    r = x.recompute
    values: dict[str, object] = {
        "model.recompute_granularity": r.granularity,
        "model.recompute_method": r.method if r.granularity == "full" else None,
        "model.recompute_num_layers": r.num_layers if r.granularity == "full" else None,
    }
    if r.granularity == "full":
        values["model.recompute_method"] = r.method or "uniform"
        values["model.recompute_num_layers"] = r.num_layers or 1
    # Megatron looks at the modules even where nothing is recomputed selectively; core_attn is its own default.
    values["model.recompute_modules"] = (r.modules if r.granularity == "selective" else ()) or ("core_attn",)
    return values


def _stages(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    chunks = chunk_sizes(r.architecture, x)
    flags, text = account_flags(chunks), None
    if flags is None:
        text, flags = pipeline_layout(chunks, _prediction_layers(r)), (False, False)
    return {
        "model.pipeline_model_parallel_layout": text,
        "model.account_for_embedding_in_pipeline_split": flags[0],
        "model.account_for_loss_in_pipeline_split": flags[1],
        "model.num_layers_in_first_pipeline_stage": None,
        "model.num_layers_in_last_pipeline_stage": None,
    }


def _prediction_layers(r: Recipe) -> int:
    """Multi-token prediction layers that the recipe trains: Qwen3-Next's pretraining adds one that its model lacks
    (B/recipes/qwen/h100/qwen3_next.py)."""
    added = 1 if r.model.startswith("qwen3_next") and r.task == "pretrain" else 0
    return r.architecture.mtp_num_layers or added


def _pipeline_dtype(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    dtype = {"fp16": "torch.float16", "fp32": "torch.float32"}.get(r.precision, "torch.bfloat16")
    return {"model.pipeline_dtype": dtype} if x.pp > 1 else {}


def _context(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"model.cp_comm_type": x.cp_comm_type} if x.cp > 1 and x.cp_comm_type else {}


def _tokens_count(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    packed = r.task != "pretrain" or r.architecture.kind == "multimodal"  # their data sets have tokens without a loss
    if not packed or x.cp == 1 or (r.defaults.cp or 1) > 1:
        return {}
    return {"model.calculate_per_token_loss": True, "ddp.average_in_collective": False}


def _fsdp(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    if x.fsdp == r.features.fsdp:
        return {}
    values: dict[str, object] = {"dist.use_megatron_fsdp": x.fsdp, "ddp.use_megatron_fsdp": x.fsdp}
    if x.fsdp:
        values["ddp.data_parallel_sharding_strategy"] = "optim_grads_params"
    elif r.features.fp8_param_gather and r.precision == "fp8mx":
        values["mixed_precision.reuse_grad_buf_for_mxfp8_param_ag"] = True  # asserted outside of FSDP
    return values | {"checkpoint.ckpt_format": "fsdp_dtensor" if x.fsdp else "torch_dist"}


def _ep_overlap(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    # Benchmark recipes turn it on or off between releases of Bridge: where it would be illegal, they hear it always.
    may_be_on = r.features.ep_overlap or (r.benchmark and r.model.startswith(("qwen3_235b", "deepseek_v3")))
    if not may_be_on or not overlap_problem(r, x):
        return {}
    return {"comm_overlap.overlap_moe_expert_parallel_comm": False, "comm_overlap.delay_wgrad_compute": False}


def _tp_overlap(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"comm_overlap.tp_comm_overlap": False} if r.features.tp_overlap and x.tp == 1 else {}


def _deferred(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    staged = r.defaults.pp is None or r.defaults.pp > 1
    may_be_on = r.features.tp_overlap or (r.benchmark and r.model == "llama3_70b")
    if not (may_be_on and staged and x.pp == 1):
        return {}
    return {"comm_overlap.defer_embedding_wgrad_compute": False}


def _shared_experts(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"model.moe_shared_expert_overlap": False} if "shared_experts" in x.recompute.modules else {}


def _energon(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"dataset.micro_batch_size": x.micro_batch_size} if "energon" in r.name else {}


def _graphs(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    if not graph_problem(r, x):
        return {}
    if "partial_cg" in r.name:  # captured by Megatron's older switch, which cuda_graph_impl does not undo
        return {"model.external_cuda_graph": False}
    return {"model.cuda_graph_impl": "none"} if r.features.cuda_graph else {}


def _layer_offload(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"model.cpu_offloading": False} if r.features.cpu_offload_layers and offload_problem(r, x) else {}


def _fine_offload(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"model.fine_grained_activation_offloading": False} if fine_offload_problem(r, x) else {}


def _dispatcher(r: Recipe, x: Layout, c: Cluster | None) -> dict[str, object]:
    if not dispatcher_problem(r, x, c):
        return {}
    return {"model.moe_token_dispatcher_type": "alltoall", "model.moe_flex_dispatcher_backend": None}


TABLE: tuple[_Row, ...] = (
    _Row(_sizes, "the layout"),
    _Row(_recompute, "recomputation of the layout"),
    _Row(_stages, "which decoder layers each pipeline stage holds"),
    _Row(_context, "how context parallel ranks exchange keys and values"),
    _Row(_pipeline_dtype, "Megatron needs to know what pipeline stages send each other", bridge_only=True),
    _Row(
        _tokens_count,
        "masked tokens and context parallelism: Megatron Bridge refuses a loss that is not averaged by token",
        True,
    ),
    _Row(_fsdp, "Megatron-FSDP in place of the distributed optimizer, or the other way round", True),
    _Row(_ep_overlap, "expert all-to-all overlap off", True, problem=lambda r, x, _c: overlap_problem(r, x)),
    _Row(_tp_overlap, "tensor parallel overlap off", True, problem=lambda _r, _x, _c: "it needs tp above 1"),
    _Row(_deferred, "deferred weight gradients of the embedding off: they hide in a pipeline's bubble", True),
    _Row(_shared_experts, "shared experts cannot be recomputed while they overlap with the dispatch"),
    _Row(_energon, "Energon's loader cuts micro batches itself, and Megatron Bridge asks for one size", True),
    _Row(_graphs, "CUDA graphs off", True, problem=lambda r, x, _c: graph_problem(r, x)),
    _Row(_layer_offload, "layer offloading off", True, problem=lambda r, x, _c: offload_problem(r, x)),
    _Row(_fine_offload, "fine-grained offloading off", True, problem=lambda r, x, _c: fine_offload_problem(r, x)),
    _Row(_dispatcher, "alltoall dispatches tokens", True, problem=dispatcher_problem),
    _Row(_batch, "the user asked for another global batch than the recipe's"),
)


def explained(
    recipe: Recipe, layout: Layout, *, device: str = "cuda", cluster: Cluster | None = None
) -> tuple[Override, ...]:
    """The overrides of a layout with their reasons, in the order they are handed on."""
    found = []
    for row in TABLE:
        if row.bridge_only and device == "cpu":
            continue
        values = row.values(recipe, layout, cluster)
        why = row.problem(recipe, layout, cluster) if values else None
        reason = f"{row.reason}: {why}" if why else row.reason
        found += [Override(key=key, value=hydra(value), reason=reason) for key, value in values.items()]
    return tuple(found)


def overrides(
    recipe: Recipe, layout: Layout, *, device: str = "cuda", cluster: Cluster | None = None
) -> tuple[str, ...]:
    """KEY=VALUE, complete: Megatron Bridge with these runs exactly this layout."""
    return tuple(str(o) for o in explained(recipe, layout, device=device, cluster=cluster))


def override_reasons(
    recipe: Recipe, layout: Layout, *, device: str = "cuda", cluster: Cluster | None = None
) -> dict[str, str]:
    """Key to reason, for `--explain` and the comments of a job script."""
    return {o.key: o.reason for o in explained(recipe, layout, device=device, cluster=cluster)}

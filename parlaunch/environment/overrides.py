"""KEY=VALUE for Megatron Bridge that makes it run exactly one layout and nothing else.

From a table: keys with values as a function of (recipe, layout, machine), and the reason. Every planned size is said, the
recipe's own too: Bridge's script rescales a benchmark's batch that the command line does not fix, and another version's
recipe may have other sizes. What users type themselves is read by `parlaunch.environment.user_overrides`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from parlaunch.environment.exclusive import EXTERNAL, PADDED, check_beside
from parlaunch.environment.override_grammar import deleted, hydra, value, within
from parlaunch.environment.user_overrides import PINS, STAGES, UserOverrides, read_overrides
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster
from parlaunch.model import catalog
from parlaunch.model.layout import SELECTIVE_RECOMPUTE, SIZES, Layout
from parlaunch.model.parameters import chunk_sizes
from parlaunch.model.precision import QUANTIZED
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import GRAPH, PRECISION, placed
from parlaunch.planning.plan import Switched
from parlaunch.rules.switches import (
    DEFERRED_EMBEDDING,
    GATHER_IN_STEP,
    GRAPHS,
    LAYER_OFFLOAD,
    MODULE_OFFLOAD,
    OVERLAP,
    SHARED_OVERLAP,
    TP_OVERLAP,
    UNREGISTERED,
    Condition,
    dispatcher_problem,
    gpu_of,
    graphed_biases,
)
from parlaunch.rules.tensor import hierarchy


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One KEY=VALUE and why it is there."""

    key: str
    value: str  # as Hydra reads it
    reason: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


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
    switched: bool = False  # asked of the recipe with the plan's switches, since one of them may be what excludes it


SPLIT = "model.sequence_parallel"


def alone(layout: Layout, given: Mapping[str, str]) -> bool:
    """Whether the user asks for sequence parallelism where there is no TP to split by: Megatron Bridge turns it off by itself then
    (bridge/models/transformer_config.py:179)."""
    return layout.tp == 1 and SPLIT in given and value(given[SPLIT]) is True


def _sizes(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    """Under the same keys that a user pins them by; one that is None and not for saying so is left to the recipe."""
    named = {key: (getattr(x, pin), kind) for key, (pin, kind) in PINS.items() if pin in SIZES}
    sizes = {key: value for key, (value, kind) in named.items() if value is not None or kind.endswith("null")}
    return sizes | {SPLIT: x.sequence_parallel and r.features.sequence_parallel}


def _batch(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"train.global_batch_size": x.global_batch_size}


def _sequence(r: Recipe, _x: Layout, _c: Cluster | None) -> dict[str, object]:
    if r.mock_tokens is not None and r.seq_length == r.mock_tokens:
        return {}  # as long as its mock data make it; the recipe has a placeholder there
    return {"model.seq_length": r.seq_length, "dataset.seq_length": r.seq_length}


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
    values["model.recompute_modules"] = (
        r.modules if r.granularity == "selective" else ()
    ) or SELECTIVE_RECOMPUTE.modules
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
    """Multi-token prediction layers that the recipe trains: some add one that their model lacks."""
    return r.architecture.mtp_num_layers or r.added_mtp_layers


def _pipeline_dtype(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    dtype = {"fp16": "torch.float16", "fp32": "torch.float32"}.get(r.precision, "torch.bfloat16")
    return {"model.pipeline_dtype": dtype} if x.pp > 1 else {}


def _context(r: Recipe, x: Layout, c: Cluster | None) -> dict[str, object]:
    if x.cp == 1 or not x.cp_comm_type:
        return {}
    values: dict[str, object] = {"model.cp_comm_type": x.cp_comm_type}
    if x.cp_comm_type == "a2a+p2p":
        levels = hierarchy(x, r.architecture, c.nvlink_domain_size if c else x.world)
        values["model.hierarchical_context_parallel_sizes"] = list(levels or ())
    return values


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
        if r.features.fp4_param_gather and r.precision == "nvfp4" and PRECISION not in r.bare:
            values["mixed_precision.fp4_param_gather"] = False  # it has no buffers for packed weights
    elif r.features.fp8_param_gather and r.precision == "fp8mx" and PRECISION not in r.bare:
        values["mixed_precision.reuse_grad_buf_for_mxfp8_param_ag"] = True  # asserted outside of FSDP
    return values | {"checkpoint.ckpt_format": "fsdp_dtensor" if x.fsdp else "torch_dist"}


def _registration(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    own = _own(r, "features")
    taken_back = isinstance(own, Features) and own.nccl_ub and not r.features.nccl_ub
    return dict(UNREGISTERED) if x.fsdp and taken_back else {}


def _excluded(
    condition: Condition, feature: str, *keys: str
) -> Callable[[Recipe, Layout, Cluster | None], dict[str, object]]:
    """The keys off, where a layout excludes what the recipe has on or what some release of Megatron Bridge turns on for it: where it
    would be illegal, such a recipe hears it always."""

    def values(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
        may_be_on = getattr(r.features, feature, False) or feature in r.unsettled
        return dict.fromkeys(keys, False) if may_be_on and condition.problem(x, r, None) else {}

    return values


def _why(condition: Condition) -> Callable[[Recipe, Layout, Cluster | None], str | None]:
    return lambda r, x, c: condition.problem(x, r, gpu_of(c))


def _off(condition: Condition, feature: str, reason: str, *keys: str) -> _Row:
    """A switch that a layout excludes, and why it does."""
    return _Row(_excluded(condition, feature, *keys), reason, True, _why(condition), switched=True)


def _delayed(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    if not graphed_biases(r) or OVERLAP.problem(x, r, None):
        return {}
    return {"comm_overlap.delay_wgrad_compute": False}


def _shared_experts(_r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {f"model.{SHARED_OVERLAP}": False} if "shared_experts" in x.recompute.modules else {}


def _energon(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"dataset.micro_batch_size": x.micro_batch_size} if r.loader == "energon" else {}


def _graphs(r: Recipe, x: Layout, c: Cluster | None) -> dict[str, object]:
    if not GRAPHS.problem(x, r, gpu_of(c)):
        return {}
    if r.features.external_cuda_graph:
        return {EXTERNAL: False}
    return {GRAPH: "none"} if r.features.cuda_graph else {}


def _dispatcher(r: Recipe, x: Layout, c: Cluster | None) -> dict[str, object]:
    planned = r.features.dispatcher == "alltoall" and bool(r.architecture.num_moe_experts)
    if not planned and not dispatcher_problem(x, r, gpu_of(c)):
        return {}
    return {"model.moe_token_dispatcher_type": "alltoall", "model.moe_flex_dispatcher_backend": None}


def _unquantized(r: Recipe, _x: Layout, _c: Cluster | None) -> dict[str, object]:
    own = str(_own(r, "precision") or "")
    left = r.precision != own and own.startswith(QUANTIZED)
    values: dict[str, object] = {"model.fp8_output_proj": False} if left and r.benchmark and own == "fp8mx" else {}
    padded = r.features.router_padding or (left and r.architecture.num_moe_experts)
    if padded and not r.precision.startswith(QUANTIZED):
        values |= dict.fromkeys(PADDED, False)
    return values


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
    _Row(_registration, "Megatron-FSDP registers NCCL's user buffers only, and they are off", True),
    _off(
        OVERLAP,
        "ep_overlap",
        "expert all-to-all overlap off",
        "comm_overlap.overlap_moe_expert_parallel_comm",
        "comm_overlap.delay_wgrad_compute",
    ),
    _Row(_delayed, "CUDA graphs over attention with biases exclude delayed weight gradients", True),
    _off(TP_OVERLAP, "tp_overlap", "tensor parallel overlap off", "comm_overlap.tp_comm_overlap"),
    _off(
        GATHER_IN_STEP,
        "gather_in_step",
        "gathering weights in the optimizer's step off",
        "comm_overlap.overlap_param_gather_with_optimizer_step",
    ),
    _Row(
        _excluded(DEFERRED_EMBEDDING, "deferred_embedding_wgrad", "comm_overlap.defer_embedding_wgrad_compute"),
        "deferred weight gradients of the embedding off: they hide in a pipeline's bubble",
        True,
    ),
    _Row(_shared_experts, "shared experts cannot be recomputed while they overlap with the dispatch"),
    _Row(_energon, "Energon's loader cuts micro batches itself, and Megatron Bridge asks for one size", True),
    _Row(_graphs, "CUDA graphs off", True, _why(GRAPHS), switched=True),
    _off(LAYER_OFFLOAD, "cpu_offload_layers", "layer offloading off", "model.cpu_offloading"),
    _off(MODULE_OFFLOAD, "offload_modules", "fine-grained offloading off", "model.fine_grained_activation_offloading"),
    _Row(_dispatcher, "alltoall dispatches tokens", True, lambda r, x, c: dispatcher_problem(x, r, gpu_of(c))),
    _Row(_unquantized, "what the recipe does for its own FP8 or FP4 is refused in another precision", True),
    _Row(
        _batch, "the recipe's global batch or the user's; unsaid, Megatron Bridge rescales a benchmark's with the GPUs"
    ),
    _Row(_sequence, "the length of a sequence, for model and data", True),
)


def overrides(
    recipe: Recipe,
    layout: Layout,
    *,
    device: str = "cuda",
    cluster: Cluster | None = None,
    said: Sequence[str] = (),
    switches: Sequence[Switched] = (),
    features: Features | None = None,
) -> tuple[Override, ...]:
    """KEY=VALUE with reasons, complete and in the order they are handed on: Megatron Bridge with these runs exactly this layout.
    `recipe` is as the runner makes it, `switches` what a plan has otherwise, and `features` what it then has; `said` are the user's own,
    which come behind them.

    Raises `UsageError` where the user's would undo what the plan needs.
    """
    theirs = read_overrides(said)
    running = recipe if features is None else replace(recipe, features=features)
    found = []
    for row in TABLE:
        if row.bridge_only and device == "cpu":
            continue
        asked = running if row.switched else recipe
        values: Mapping[str, object] = placed(row.values(asked, layout, cluster), recipe)
        if row.values is _stages and theirs.stages is not None:
            values = _in_their_words(theirs)
        why = row.problem(asked, layout, cluster) if values else None
        reason = f"{row.reason}: {why}" if why else row.reason
        found += [Override(key=key, value=hydra(v), reason=reason) for key, v in values.items()]
    found = [o for o in found if o.key not in {key for s in switches for key, _ in s.keys}]
    found += [Override(key=key, value=hydra(v), reason=s.reason) for s in switches for key, v in s.keys]
    if recipe.features.external_cuda_graph:  # which Megatron takes none of the others beside
        found += [Override(key=EXTERNAL, value="False", reason=s.reason) for s in switches if s.name == "graphs"]
    if alone(layout, theirs.given):
        found = [o for o in found if o.key != SPLIT]
    check_beside(recipe, layout, theirs.given)
    _agree(found, theirs)
    _not_taken_back(found, said)
    return tuple({o.key: o for o in found}.values())  # two switches may need the same key


def _in_their_words(theirs: UserOverrides) -> dict[str, object]:
    """Stages as the user cut them: Megatron takes one way of saying it, so the others are taken back."""
    return {
        key: value(theirs.given[key]) if key in theirs.given else False if kind == "bool" else None
        for key, (_, kind) in STAGES.items()
    }


def _agree(ours: Sequence[Override], theirs: UserOverrides) -> None:
    """Raise `UsageError` for the first key of the user's that would undo one of ours."""
    for override in ours:
        text = theirs.given.get(override.key)
        if text is None or _same(value(text), value(override.value)):
            continue
        raise UsageError(
            f"{override.key}={text} contradicts the plan, which needs {override}: {override.reason}",
            hint=f"leave {override.key} out",
        )


def _not_taken_back(ours: Sequence[Override], said: Sequence[str]) -> None:
    """Raise `UsageError` for the first deletion of the user's that would undo one of ours: Megatron Bridge trains what the recipe
    has then (bridge/training/utils/omegaconf_utils.py)."""
    for word in said:
        for override in ours:
            if word.startswith("~") and within(override.key, deleted(word)):
                raise UsageError(
                    f"{word} takes back {override}, which the plan needs: {override.reason}", hint=f"leave {word} out"
                )


def _same(a: object, b: object) -> bool:
    return set(a) == set(b) if isinstance(a, list) and isinstance(b, list) else a == b

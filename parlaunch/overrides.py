"""KEY=VALUE for Megatron Bridge: the ones that make it run exactly one layout, and the ones a user typed.

Ours come from a table: key, value as a function of (recipe, layout, machine), reason. The grammar is Hydra's, as
`process_config_with_overrides` reads it. What belongs to convergence is never among ours: a batch or a sequence length
appears only when the user asked for another than the recipe's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parlaunch import catalog
from parlaunch.datasheet import product
from parlaunch.errors import UsageError
from parlaunch.layout import NO_RECOMPUTE, Layout, Recompute
from parlaunch.machine import Cluster
from parlaunch.recipe import Features, Recipe


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


def account_flags(layout: Layout, num_layers: int) -> tuple[bool, bool] | None:
    """(embedding, loss) counted as one layer each, when that alone gives the layout's chunks; None when it does not."""
    chunks = layout.layers_per_chunk
    if chunks is None or sum(chunks) != num_layers:
        return (False, False) if chunks is None else None
    full = max(chunks)
    first, last = chunks[0] == full - 1, chunks[-1] == full - 1
    expected = [full] * len(chunks)
    expected[0] -= first
    expected[-1] -= last
    return (first, last) if list(chunks) == expected and len(chunks) > 1 else None


def pipeline_layout(layout: Layout, mtp_layers: int = 0) -> str:
    """Megatron's string form: one part a virtual stage, E embedding, t decoder, m multi-token prediction, L loss.

    >>> pipeline_layout(Layout(world=2, pp=2, layers_per_chunk=(4, 3)), mtp_layers=1)
    'Et*4|t*3mL'
    """
    chunks = layout.layers_per_chunk or ()
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
    bridge_only: bool = False  # no such section in the runner for CPU ranks


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
    flags = account_flags(x, r.architecture.num_layers)
    text = None
    if flags is None:
        text, flags = pipeline_layout(x, r.architecture.mtp_num_layers or 0), (False, False)
    return {
        "model.pipeline_model_parallel_layout": text,
        "model.account_for_embedding_in_pipeline_split": flags[0],
        "model.account_for_loss_in_pipeline_split": flags[1],
        "model.num_layers_in_first_pipeline_stage": None,
        "model.num_layers_in_last_pipeline_stage": None,
    }


def _pipeline_dtype(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    dtype = {"fp16": "torch.float16", "fp32": "torch.float32"}.get(r.precision, "torch.bfloat16")
    return {"model.pipeline_dtype": dtype} if x.pp > 1 else {}


def _context(r: Recipe, x: Layout, _c: Cluster | None) -> dict[str, object]:
    return {"model.cp_comm_type": x.cp_comm_type} if x.cp > 1 and x.cp_comm_type else {}


TABLE: tuple[_Row, ...] = (
    _Row(_sizes, "the layout"),
    _Row(_recompute, "recomputation of the layout"),
    _Row(_stages, "which decoder layers each pipeline stage holds"),
    _Row(_context, "how context parallel ranks exchange keys and values"),
    _Row(_pipeline_dtype, "Megatron needs to know what pipeline stages send each other", bridge_only=True),
    _Row(_batch, "the user asked for another global batch than the recipe's"),
)


def explained(
    recipe: Recipe, layout: Layout, *, device: str = "cuda", cluster: Cluster | None = None
) -> tuple[Override, ...]:
    """The overrides of a layout with their reasons, in the order they are handed on."""
    return tuple(
        Override(key=key, value=hydra(value), reason=row.reason)
        for row in TABLE
        if not (row.bridge_only and device == "cpu")
        for key, value in row.values(recipe, layout, cluster).items()
    )


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


# --- What a layout or machine makes illegal ---------------------------------------------------------------------------


def overlap_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why the expert all-to-all cannot run under the next micro batch's compute, or None when it can."""
    if not recipe.architecture.num_moe_experts:
        return "the model has no experts"
    if layout.ep == 1:
        return "it needs ep above 1"
    if layout.pp > 1 and not layout.vp:
        return f"pp={layout.pp} needs virtual stages for it"
    if layout.recompute.granularity == "full":
        return "it excludes full recomputation"
    if "moe" in layout.recompute.modules or "shared_experts" in layout.recompute.modules:
        return "it excludes recomputing the experts"
    if (recipe.architecture.mtp_num_layers or 0) > 1:
        return "it takes at most one multi-token prediction layer"
    return None


def graph_problem(recipe: Recipe, layout: Layout) -> str | None:
    """Why the recipe's CUDA graphs cannot be captured in this layout, or None when they can."""
    f, r = recipe.features, layout.recompute
    if r.granularity == "full" and f.cuda_graph != "full_iteration":
        return "full recomputation excludes graphs of single modules"
    if "moe" in r.modules and "moe_router" in f.cuda_graph_scope:
        return "recomputing the experts excludes a captured router"
    return None


def dispatcher_problem(recipe: Recipe, layout: Layout, cluster: Cluster | None) -> str | None:
    """Why the recipe's token dispatcher cannot run here, or None when it can."""
    kind = recipe.features.dispatcher
    if kind not in ("deepep", "hybridep"):
        return None
    if kind == "deepep" and layout.ep * layout.etp == 1:
        return "DeepEP needs ep or etp above 1"
    if cluster is None or not any(n.gpus for n in cluster.nodes):
        return None
    sheet = product(cluster.gpu.name)
    capability = cluster.gpu.compute_capability or (sheet.compute_capability if sheet else None)
    if capability is None:
        return None
    if (
        kind == "deepep"
        and capability[0] not in (8, 9)
        and not cluster.gpu.name.startswith(("NVIDIA B200", "NVIDIA B300"))
    ):
        return f"DeepEP runs on Ampere, Hopper, B200 and B300, not on {cluster.gpu.name}"
    if kind == "hybridep" and capability[0] not in (8, 9, 10):
        return f"HybridEP runs on compute capability 8, 9 and 10, not on {cluster.gpu.name}"
    return None


def legal_features(recipe: Recipe, layout: Layout, cluster: Cluster | None = None) -> Features:
    """The recipe's features less what this layout or machine makes illegal: what will really be on."""
    f = recipe.features
    changes: dict[str, Any] = {"fsdp": layout.fsdp}
    if f.ep_overlap and overlap_problem(recipe, layout):
        changes["ep_overlap"] = False
    if f.tp_overlap and layout.tp == 1:
        changes["tp_overlap"] = False
    if f.cuda_graph and graph_problem(recipe, layout):
        changes |= {"cuda_graph": None, "cuda_graph_scope": ()}
    if dispatcher_problem(recipe, layout, cluster):
        changes["dispatcher"] = "alltoall"
    return replace(f, **changes)


# --- The user's -------------------------------------------------------------------------------------------------------

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
    "model.recompute_granularity": ("granularity", "granularity"),
    "model.recompute_modules": ("modules", "names"),
    "model.recompute_method": ("method", "method"),
    "model.recompute_num_layers": ("num_layers", "size or null"),
}
"""Override keys that name something planned: the pin and the kind of its value."""

_RECOMPUTE = ("granularity", "modules", "method", "num_layers")

_EXPECTED = {
    "size": "a whole number of 1 or more",
    "size or null": "a whole number of 1 or more, or null",
    "bool": "True or False",
    "granularity": "full, selective or null",
    "method": "uniform, block or null",
    "names": "a list: [core_attn,mlp]",
}
_EXAMPLE = {"bool": "True", "granularity": "selective", "method": "uniform", "names": "[core_attn]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOverrides:
    """What a user typed after the options: `pairs` as typed and in order, `pins` what of it fixes a planned size."""

    pairs: tuple[str, ...]
    pins: Mapping[str, Any]


def _value(kind: str, text: str) -> Any:
    """One value of the kind. Raises ValueError."""
    word = text.strip()
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        word = word[1:-1]
    if word.lower() in ("null", "none", "") and kind in ("size or null", "granularity", "method", "names"):
        return None
    if kind.startswith("size"):
        if not re.fullmatch(r"\+?[0-9]+(_[0-9]+)*", word) or int(word) < 1:
            raise ValueError
        return int(word)
    if kind == "bool":
        return {"true": True, "false": False}[word.lower()]
    if kind == "names":
        names = re.fullmatch(r"\[(.*)\]", word)
        if names is None:
            raise ValueError
        return tuple(n.strip().strip("'\"") for n in names[1].split(",") if n.strip())
    if word not in {"granularity": ("full", "selective"), "method": ("uniform", "block")}[kind]:
        raise ValueError
    return word


def read_overrides(pairs: Sequence[str]) -> UserOverrides:
    """Read KEY=VALUE arguments. A repeated key: the last one counts, as in Hydra.

    Raises `UsageError` for an argument without `=`, a value of the wrong type for a planned size, or two keys that
    fix one size differently (`model.seq_length` and `dataset.seq_length`).
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if pair.startswith("~"):
            continue  # Hydra's deletion: KEY alone, handed on
        bare = key.lstrip("+")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w./@-]*", bare):
            near = "" if equals else "; options start with --, what follows `--` goes to the runner"
            raise UsageError(
                f"{pair!r} is no KEY=VALUE override", hint=f"for example model.tensor_model_parallel_size=2{near}"
            )
        if bare not in PINS:
            continue
        try:
            given[bare] = _value(PINS[bare][1], text)
        except (ValueError, KeyError):
            raise UsageError(
                f"{bare}={text}: {text!r} is not {_EXPECTED[PINS[bare][1]]}",
                hint=f"for example {bare}={_EXAMPLE.get(PINS[bare][1], '2')}",
            ) from None
    return UserOverrides(pairs=tuple(pairs), pins=_pins(given))


def _pins(given: Mapping[str, Any]) -> dict[str, Any]:
    pins: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in given.items():
        name = PINS[key][0]
        if name in _RECOMPUTE or (name == "etp" and value is None):
            continue  # etp null: Megatron's default, which the planner knows too
        if name == "vp" and value is None:
            value = 1  # no interleaving
        if name in pins and pins[name] != value:
            raise UsageError(
                f"{origin[name]}={pins[name]} and {key}={value} contradict each other", hint="give both the same value"
            )
        pins[name], origin[name] = value, key
    recompute = {PINS[key][0]: value for key, value in given.items() if PINS[key][0] in _RECOMPUTE}
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
        return Recompute(granularity="selective", modules=given.get("modules") or ("core_attn",))
    return Recompute(
        granularity="full", method=given.get("method") or "uniform", num_layers=given.get("num_layers") or 1
    )


MIXED_PRECISION = {
    "bf16": "bf16_mixed",
    "fp16": "fp16_mixed",
    "fp8cs": "bf16_with_fp8_current_scaling_mixed",
    "fp8ds": "bf16_with_fp8_delayed_scaling_mixed",
    "fp8sc": "bf16_with_fp8_subchannel_scaling_mixed",
    "fp8mx": "bf16_with_mxfp8_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}
"""Our short names to those of Megatron Bridge's `MIXED_PRECISION_RECIPES`."""


def spoken(recipe: Recipe, *, seq_length: int | None = None, precision: str | None = None) -> tuple[str, ...]:
    """What the user said by option and Megatron Bridge must hear: it belongs to convergence, so only they may say it.

    `recipe` already has the user's values. The global batch is part of the layout (`overrides`).
    """
    said = []
    if seq_length is not None:
        said += [f"model.seq_length={seq_length}", f"dataset.seq_length={seq_length}"]
    if precision is not None:
        said.append(f"mixed_precision={MIXED_PRECISION.get(precision, 'null')}")
    return tuple(said)


def pins_from(pairs: Sequence[str]) -> dict[str, Any]:
    """The pins among a user's overrides: tp, pp, vp (1: no interleaving), cp, ep, etp, micro_batch_size,
    global_batch_size, seq_length, sequence_parallel, fsdp, recompute (a `Recompute`); absent keys are not pinned."""
    return dict(read_overrides(pairs).pins)

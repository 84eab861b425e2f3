"""Keys of a user's that Megatron takes one of, or one only with another: what else has to be said, and what cannot be.

Each row has its source. What the recipe has of the other kind is taken back where that changes neither the numbers nor what is
trained on, or where Bridge's own preset of what the user says is without it (`goes_with`); elsewhere, and where the user said both,
an error names the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from parlaunch.environment.override_grammar import hydra, value
from parlaunch.errors import UsageError
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import GRAPH, MODULES, OVERLAP, PRECISION, SCOPE, heard, placed
from parlaunch.model.stages import LAYOUT, PREFIX, letters
from parlaunch.rules.switches import BUCKETS, SHARED_OVERLAP, unnumbered
from parlaunch.switches.table import SWITCHES

Given = Mapping[str, str]
"""A user's keys, each with its last text."""


def said(given: Given, key: str) -> object:
    """The value of a key; None where it is not said, or said to be nothing."""
    found = value(given[key]) if key in given else None
    return None if found in ("None", "none", [], "") else found


# --- What else has to be said -----------------------------------------------------------------------------------------

SIZE = "ddp.bucket_size"


def _buckets(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/distributed/distributed_data_parallel_config.py:270
    sized = [key for key in (SIZE, f"{OVERLAP}.bucket_size") if said(given, key) is not None]
    numbered = said(given, BUCKETS) is not None
    if numbered and sized:
        raise one_of(given, BUCKETS, sized[0])
    if numbered and heard(f"{OVERLAP}.bucket_size", r):
        # bridge/training/comm_overlap.py:577
        raise UsageError(
            f"{BUCKETS}={given[BUCKETS]}: {OVERLAP} gives buckets a size here, and Megatron takes a number or a size",
            hint=f"say {OVERLAP}.bucket_size, in parameters, in its place",
        )
    if numbered:
        return {SIZE: None} if "bucket_size" in r.unsettled else {}
    return unnumbered(r) if sized else {}


def _captured(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:2384
    if said(given, SCOPE) is not None and said(given, MODULES) is not None:
        raise one_of(given, SCOPE, MODULES)
    if MODULES in given:
        return {SCOPE: None}
    if SCOPE in given:
        return {MODULES: None} if "cuda_graph_modules" in r.unsettled else {}
    # The recipe may name modules for graphs that are off, or of another kind, and Megatron would take those.
    captured = GRAPH in given and r.features.cuda_graph is not None
    return {MODULES: r.features.cuda_graph_scope, SCOPE: None} if captured else {}


REUSED = f"{PRECISION}.reuse_grad_buf_for_mxfp8_param_ag"
ENDS = f"{PRECISION}.first_last_layers_bf16"


def _unquantized(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:1439
    left = f"{PRECISION}.fp8" in given and said(given, f"{PRECISION}.fp8") is None and PRECISION not in r.bare
    weights = (f"{PRECISION}.fp8_param", f"{PRECISION}.fp8_param_gather")
    if left:
        return dict.fromkeys((*weights, REUSED), False)
    scaling = f"{PRECISION}.fp8_recipe"
    kind = said(given, scaling)
    # Megatron has no such layers there (megatron/core/transformer/transformer_config.py:1402), Bridge's preset none either.
    ends: dict[str, object] = {ENDS: False} if kind == "delayed" else {}
    if ends and said(given, ENDS) is True:
        raise one_of(given, scaling, ENDS)
    # Asserted where weights in MXFP8 are gathered, refused where none are (bridge/training/config.py:1352).
    return {} if kind is None else ends | {REUSED: kind == "mxfp8" and r.features.fp8_param_gather}


DISPATCHER = "model.moe_token_dispatcher_type"
PADDED = ("model.moe_router_padding_for_quantization", "model.moe_router_padding_for_fp8")
"""Tokens of an expert padded to what FP8 and FP4 multiply: today's name and the older one, which switches it on as well."""

OFFLOAD, OFFLOAD_SHARE = "optimizer.optimizer_cpu_offload", "optimizer.optimizer_offload_fraction"
WHOLE = "optimizer_offload_fraction"
"""As `unsettled` names a share of 1 that the recipe has ready, with the offloading itself off."""


def _share(r: Recipe, given: Given) -> dict[str, object]:
    on = said(given, OFFLOAD) is True and OFFLOAD_SHARE not in given
    return {OFFLOAD_SHARE: r.features.optimizer_offload} if on and WHOLE in r.unsettled else {}


def _one_expert(_r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:2328; scores that are not made by softmax ask nobody for it
    return {"model.moe_router_pre_softmax": True} if said(given, "model.moe_router_topk") == 1 else {}


def _switched(r: Recipe, given: Given) -> dict[str, object]:
    parsed = {key: value(text) for key, text in given.items()}
    found: dict[str, object] = {}
    for row in SWITCHES:
        found |= row.beside(r, parsed)
    return found


Row = Callable[[Recipe, Given], Mapping[str, object]]
"""What has to be said beside a user's keys, for a recipe as these change it."""

GO_TOGETHER: tuple[Row, ...] = (
    _buckets, _captured, _unquantized, _share, _one_expert, _switched,
)  # fmt: skip


def goes_with(recipe: Recipe, given: Given, more: Sequence[Row] = ()) -> tuple[str, ...]:
    """KEY=VALUE that have to be said beside the user's own, for this recipe, by these rows and `more`. Raises `UsageError` for keys
    that exclude each other."""
    for row in ERRORS:
        row(recipe, given)
    found: dict[str, object] = {}
    for together in (*GO_TOGETHER, *more):
        found |= together(recipe, given)
    return tuple(f"{key}={hydra(v)}" for key, v in placed(found, recipe).items() if key not in given)


def one_of(given: Given, a: str, b: str) -> UsageError:
    """The error for two keys that exclude each other."""
    return UsageError(
        f"{a}={given[a]} and {b}={given[b]}: Megatron takes one of the two", hint=f"leave {a} out, or {b}"
    )


# --- What cannot be said ----------------------------------------------------------------------------------------------

EXTERNAL = "model.external_cuda_graph"

OLDER: Mapping[str, str] = {
    "model.enable_cuda_graph": "model.cuda_graph_impl=full_iteration",
    EXTERNAL: "model.cuda_graph_impl=transformer_engine",
    "model.moe_enable_deepep": "model.moe_token_dispatcher_type=flex model.moe_flex_dispatcher_backend=deepep",
    "model.moe_layer_recompute": "model.recompute_granularity=selective model.recompute_modules=[moe]",
}
"""Megatron's older switches, which it refuses beside today's or turns into them (megatron/core/transformer/transformer_config.py:1593,
:2365), with what to say in their place."""


def _older(r: Recipe, given: Given) -> None:
    for key, today in OLDER.items():
        if said(given, key) is True and not (key == EXTERNAL and r.features.external_cuda_graph):
            raise UsageError(
                f"{key}={given[key]}: Megatron has another switch for it today, and takes one of the two",
                hint=f"say {today}",
            )


def _shared_experts(r: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:1644
    if SHARED_OVERLAP in r.unsettled and r.features.dispatcher == "allgather":
        raise UsageError(
            f"model.{SHARED_OVERLAP}=True: the allgather dispatcher excludes it", hint="say another dispatcher"
        )


LENGTHS = ("train.train_iters", "train.train_samples", "train.num_epochs")


def _length(_r: Recipe, given: Given) -> None:
    # bridge/training/config.py:481
    first = LENGTHS[0]
    if said(given, first) == 0:
        raise UsageError(f"{first}=0: nothing would be trained", hint=f"say {first}=1 at least")
    if first in given and not any(said(given, key) for key in LENGTHS):
        raise UsageError(
            f"{first}={given[first]}: it is not said how long to train", hint="add train.train_samples=NUMBER"
        )
    named = [key for key in LENGTHS if said(given, key) is not None]
    if len(named) > 1:
        raise one_of(given, named[0], named[1])
    if named and named[0] != first and first not in given:
        raise UsageError(
            f"{named[0]}={given[named[0]]}: the recipe says {first}, and Megatron Bridge takes one of {', '.join(LENGTHS)}",
            hint=f"add {first}=null",
        )


def _warmup(_r: Recipe, given: Given) -> None:
    # bridge/training/config.py:430, :436; every recipe has a warmup in iterations
    iterations, share = "scheduler.lr_warmup_iters", "scheduler.lr_warmup_fraction"
    samples = [f"scheduler.{name}_samples" for name in ("lr_decay", "lr_warmup", "lr_wsd_decay")]
    asked = next((key for key in samples if said(given, key) not in (None, 0)), None)
    asked = share if said(given, share) is not None else asked
    if asked and iterations not in given:
        raise UsageError(
            f"{asked}={given[asked]}: the recipe says {iterations}, and Megatron Bridge takes one way of saying it",
            hint=f"add {iterations}=0",
        )


def _packs(_r: Recipe, given: Given) -> None:
    # bridge/training/config.py:1156
    packed, specs = "dataset.enable_offline_packing", "dataset.offline_packing_specs"
    on = value(given[packed]) if packed in given else None
    if on is False and specs not in given:
        raise UsageError(f"{packed}={given[packed]}: {specs} stands, which asks for packs", hint=f"add {specs}=null")
    if specs in given and said(given, specs) is None and packed not in given:
        raise UsageError(f"{specs}={given[specs]}: {packed} stands, which asks for it", hint=f"add {packed}=False")


def _groups(_r: Recipe, given: Given) -> None:
    # bridge/training/config.py:1403
    apart, gloo = "dist.use_decentralized_pg", "dist.use_gloo_process_groups"
    if said(given, apart) is True and (gloo not in given or said(given, gloo) is True):
        raise UsageError(f"{apart}=True: such process groups are NCCL's alone", hint=f"add {gloo}=False")


def _formats(r: Recipe, given: Given) -> None:
    # bridge/training/mixed_precision.py:108
    four = f"{PRECISION}.fp4"
    if said(given, four) is not None and r.precision != "nvfp4":
        raise UsageError(
            f"{four}={given[four]}: the recipe trains in {r.precision}, and Megatron takes FP8 or FP4 with all that goes with it",
            hint="--precision nvfp4",
        )
    if PRECISION in given and said(given, PRECISION) is None:
        raise UsageError(
            f"{PRECISION}={given[PRECISION]}: model, DDP and optimizer would have what each of them says by itself",
            hint="leave it out, and say --precision",
        )


FINE, FINE_MODULES = "model.fine_grained_activation_offloading", "model.offload_modules"


def _offloaded(r: Recipe, given: Given) -> None:
    # megatron/core/transformer/transformer_config.py:1855
    if said(given, FINE) is True and said(given, FINE_MODULES) is None and not r.features.offload_modules:
        raise UsageError(f"{FINE}=True: {FINE_MODULES} names nothing", hint=f"add '{FINE_MODULES}=[core_attn]'")


def _letters(r: Recipe, given: Given) -> None:
    # megatron/core/transformer/pipeline_parallel_layer_layout.py: validate_layer_layout
    found = said(given, f"{PREFIX}{LAYOUT}")
    if not isinstance(found, str):
        return
    plain, ahead = letters(found), r.architecture.mtp_num_layers or r.added_mtp_layers
    if plain[0] != "E" or plain[-1] != "L" or plain.count("E") != 1 or plain.count("L") != 1:
        raise UsageError(
            f"{PREFIX}{LAYOUT}={found}: the first stage has the embedding, the last the loss", hint="E…|…L"
        )
    if plain.count("m") != max(ahead, 0):
        raise UsageError(
            f"{PREFIX}{LAYOUT}={found}: it has {plain.count('m')} layers of multi-token prediction, and the model {max(ahead, 0)}",
            hint=f"end it with {'m' * max(ahead, 0)}L",
        )


def _layers(r: Recipe, given: Given) -> None:
    # megatron/core/models/gpt/experimental_attention_variant_module_specs.py:442
    key = "model.transformer_impl"
    kind, a = said(given, key), r.architecture
    if kind in (None, "transformer_engine"):
        return
    if kind != "local":
        raise UsageError(f"{key}={kind}: only transformer_engine and local train", hint="say one of the two")
    if a.experimental_attention_variant:
        raise UsageError(
            f"{key}={kind}: {r.model} attends with layers of Transformer Engine's alone ({a.experimental_attention_variant})",
            hint="leave it out",
        )


FUSED = "model.gradient_accumulation_fusion"


def _deferred(_r: Recipe, given: Given) -> None:
    # megatron/core/model_parallel_config.py:550
    for place in (OVERLAP, "model"):
        key = f"{place}.defer_embedding_wgrad_compute"
        if said(given, key) is True and FUSED in given and said(given, FUSED) is False:
            raise UsageError(
                f"{key}=True and {FUSED}=False: what is deferred is summed by the product itself",
                hint=f"leave {key} out, or {FUSED}",
            )


PROFILERS = ("profiling.use_nsys_profiler", "profiling.use_pytorch_profiler")


def _profilers(_r: Recipe, given: Given) -> None:
    # bridge/training/config.py:757
    if all(said(given, key) is True for key in PROFILERS):
        raise one_of(given, *PROFILERS)


KINDS = ("multi_latent_attention", "experimental_attention_variant")


def _kind(r: Recipe, given: Given) -> None:
    for name in KINDS:
        key = f"model.{name}"
        if key in given and (said(given, key) or None) != (getattr(r.architecture, name) or None):
            raise UsageError(
                f"{key}={given[key]}: that is another kind of model than {r.model}, whose other sizes the recipe does not have",
                hint="choose a recipe of such a model: `parlaunch recipes` lists them",
            )


def _saved(r: Recipe, given: Given) -> None:
    # bridge/training/config.py:1397
    form, apart = said(given, "checkpoint.ckpt_format"), "checkpoint.async_save"
    folder = "checkpoint.save"
    if said(given, apart) is True and said(given, folder) is None and (r.benchmark or folder in given):
        who, say = ("it", "say") if folder in given else ("a benchmark", "add")
        raise UsageError(f"{apart}=True: {who} saves nothing", hint=f"{say} {folder}=FOLDER")
    if said(given, apart) is True and form not in (None, "torch_dist", "fsdp_dtensor"):
        raise UsageError(
            f"{apart}=True: checkpoints of the format {form} are not written while training goes on",
            hint="leave checkpoint.ckpt_format out",
        )


ERRORS: tuple[Callable[[Recipe, Given], None], ...] = (
    _older, _shared_experts, _length, _warmup, _packs, _groups, _formats, _offloaded, _letters, _layers, _kind, _deferred, _saved, _profilers,
)  # fmt: skip


# --- What cannot be said beside this layout ---------------------------------------------------------------------------


def _checkpoints(_r: Recipe, x: Layout, given: Given) -> None:
    # bridge/training/config.py:1100, :1389
    key = "checkpoint.ckpt_format"
    form = said(given, key)
    if form is None or (form == "fsdp_dtensor") == x.fsdp:
        return
    why = "Megatron-FSDP writes fsdp_dtensor, and nothing else" if x.fsdp else "it is Megatron-FSDP's, which is off"
    raise UsageError(f"{key}={form}: {why}", hint=f"leave {key} out, or say --{'no-' if x.fsdp else ''}fsdp")


BESIDE_FSDP = {
    "dist.use_torch_fsdp2": "Megatron-FSDP is on, and Megatron Bridge takes one of the two",
    "dist.use_tp_pp_dp_mapping": "Megatron-FSDP takes the usual order of ranks only",
}
"""What Megatron-FSDP excludes (bridge/training/config.py:1116, :1342)."""


def _beside_fsdp(_r: Recipe, x: Layout, given: Given) -> None:
    for key, why in BESIDE_FSDP.items():
        if x.fsdp and said(given, key) is True:
            raise UsageError(f"{key}=True: {why}", hint="say --no-fsdp")


def _registered(r: Recipe, x: Layout, given: Given) -> None:
    # bridge/training/config.py:1110
    key = "ddp.fsdp_manual_registration"
    if x.fsdp and said(given, key) is True and not r.features.nccl_ub:
        raise UsageError(f"{key}=True: it registers NCCL's user buffers, which are off", hint="add ddp.nccl_ub=True")


EVALUATED = ("validation.eval_global_batch_size", "validation.eval_micro_batch_size", "dist.eval_context_parallel_size")


def _evaluation(_r: Recipe, x: Layout, given: Given) -> None:
    # bridge/training/config.py:1325
    if not given.keys() & set(EVALUATED):
        return
    batch, micro, cp = (
        own if not isinstance(found := said(given, key), int) or found < 1 else found
        for key, own in zip(EVALUATED, (x.global_batch_size, x.micro_batch_size, x.cp), strict=True)
    )
    if x.world % (x.tp * x.pp * cp):
        raise UsageError(
            f"{EVALUATED[2]}={cp}: TP {x.tp} x PP {x.pp} x {cp} does not divide {x.world} GPUs",
            hint=f"leave it out: validation has CP {x.cp} then",
        )
    dp = x.world // (x.tp * x.pp * cp)
    if batch % (micro * dp):
        raise UsageError(
            f"validation takes {batch} samples at once, no multiple of its micro batch {micro} x DP {dp}",
            hint=f"say {EVALUATED[0]}={max(1, batch // (micro * dp)) * micro * dp}",
        )


def _hierarchy(_r: Recipe, x: Layout, given: Given) -> None:
    # bridge/training/config.py:1556
    key = "model.hierarchical_context_parallel_sizes"
    sizes = said(given, key)
    if isinstance(sizes, list) and all(isinstance(n, int) for n in sizes) and prod(sizes) != x.cp:
        raise UsageError(
            f"{key}={given[key]}: their product is CP, which is {x.cp}", hint=f"leave it out, or say --cp {prod(sizes)}"
        )


CLASHES: tuple[Callable[[Recipe, Layout, Given], None], ...] = (
    _checkpoints,
    _beside_fsdp,
    _registered,
    _evaluation,
    _hierarchy,
)


def check_beside(recipe: Recipe, layout: Layout, given: Given) -> None:
    """Raise `UsageError` for the first of the user's keys that Megatron Bridge would refuse beside this layout."""
    for row in CLASHES:
        row(recipe, layout, given)

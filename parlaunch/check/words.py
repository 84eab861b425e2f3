"""How tables of runs write things, in our own words: fields, formats, tasks, recomputation, units, outcomes, machines, models.

A table is read as it was meant or not at all: what is supposed is said in `notes`, and a word that could mean two things, or
none, raises `UsageError` with those that are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from parlaunch.data import load
from parlaunch.errors import UsageError
from parlaunch.hardware.datasheet import Product, name_key, preset_of, preset_row, product
from parlaunch.model.architecture import Architecture
from parlaunch.model.hf_config import NAMES
from parlaunch.model.layout import NO_RECOMPUTE, Recompute, recompute_from_json, selective
from parlaunch.model.precision import SCALINGS, short_name
from parlaunch.model.recipe import PRECISIONS, TASKS, Features
from parlaunch.rules.working import MODULES

# --- fields -------------------------------------------------------------------------------------------------------

FIELDS: Mapping[str, tuple[str, ...]] = {
    "model": ("model_name",),
    "model_id": ("hf_id", "hf_model", "huggingface_id"),
    "gpus": ("num_gpus", "n_gpus", "gpu_count", "world_size"),
    "nodes": ("num_nodes", "nnodes"),
    "mbs": ("micro_batch_size", "micro_batch"),
    "gbs": ("global_batch_size", "global_batch"),
    "seq": ("seq_length", "seq_len", "sequence_length", "seqlen"),
    "num_microbatches": ("micro_batches", "gradient_accumulation_steps", "grad_accumulation_steps", "gradient_accumulation"),
    "tp": ("tensor_model_parallel_size", "tensor_parallel_size", "tensor_parallel"),
    "pp": ("pipeline_model_parallel_size", "pipeline_parallel_size", "pipeline_parallel"),
    "vp": ("vpp", "virtual_pipeline_model_parallel_size"),
    "cp": ("context_parallel_size", "context_parallel"),
    "ep": ("expert_model_parallel_size", "expert_parallel_size", "expert_parallel"),
    "etp": ("expert_tensor_parallel_size",),
    "dp": ("data_parallel_size", "data_parallel"),
    "gpu_type": ("gpu", "gpu_name", "gpu_model", "accelerator"),
    "iteration_time_s": (
        "step_time_s", "time_per_iteration_s", "seconds_per_iteration", "iteration_time", "step_time", "s_per_iter", "s_per_iteration",
        "s_per_step", "seconds_per_step", "elapsed_time_per_iteration_s", "time_per_step_s",
    ),
    "tokens_per_s_per_gpu": ("tokens_per_second_per_gpu", "tokens_per_sec_per_gpu", "tok_per_s_per_gpu", "tokens_s_gpu"),
    "tflops_per_gpu": ("tflop_per_s_per_gpu", "tflops_per_s_per_gpu", "tflops_gpu", "throughput_per_gpu_tflop_per_s_per_gpu"),
    "model_tflops_per_gpu": ("model_tflop_per_s_per_gpu",),
    "precision": ("mixed_precision",),
}  # fmt: skip
"""Our name of a field, and the names that others give it."""

_NOTHING = ("", "-", "–", "—", "n/a", "na", "nan", "null")
"""What stands in the cells of a table that says nothing."""
DEGREES = ("tp", "pp", "vp", "cp", "ep", "etp")
SIZES = ("gpus", "nodes", "mbs", "gbs", "seq", "num_microbatches", "tp", "pp", "vp", "cp", "ep", "etp", "dp")
READ = frozenset({
    *FIELDS, "id", "recipe", "model", "model_id", "arch", "task", "hardware", "precision", "recompute", "features", "framework",
    "sharding", "layers_per_chunk", "cp_comm_type", "fabric_bytes_per_s_per_gpu", "software", "source", "current", "group", "status",
    "model_tflops_per_gpu", "tflops_per_gpu", "tflops_kind", "peak_memory_gb", "peak_mem", "unit", "metric", "peak_memory_metric",
    "planned",
})  # fmt: skip
TOLD = frozenset({
    "run_id", "run", "run_name", "name", "notes", "note", "comment", "licence", "license", "confidence", "capacity_gb", "recompute_note", "date", "url",
})  # fmt: skip
"""What is for people: nothing is read from it, and nobody is told so."""


RECOMPUTED = {
    "recompute_granularity": "granularity", "recompute_method": "method", "recompute_num_layers": "num_layers",
    "recompute_modules": "modules",
}  # fmt: skip
"""Megatron's fields of recomputation, and ours."""


class _Other(NamedTuple):
    """A measured quantity in another unit than ours."""

    ours: str
    factor: float = 1.0
    over: str | None = None  # divided by the row's own: GPUs
    times: str | None = None  # and multiplied
    unit: str | None = None
    metric: str | None = None


OTHERS: Mapping[str, _Other] = {
    **dict.fromkeys(
        ("iteration_time_ms", "step_time_ms", "ms_per_iter", "ms_per_iteration", "ms_per_step", "elapsed_time_per_iteration_ms"),
        _Other("iteration_time_s", 1e-3),
    ),
    **dict.fromkeys(
        ("tokens_per_s", "tokens_per_second", "tokens_per_sec", "tok_per_s"), _Other("tokens_per_s_per_gpu", over="gpus")
    ),
    **dict.fromkeys(("ktokens_per_s_per_gpu", "ktok_per_s_per_gpu"), _Other("tokens_per_s_per_gpu", 1e3)),
    **dict.fromkeys(
        ("samples_per_s", "samples_per_second", "sequences_per_s"), _Other("tokens_per_s_per_gpu", over="gpus", times="seq")
    ),
    "peak_memory_gib": _Other("peak_memory_gb", unit="GiB"),
    "peak_memory_mib": _Other("peak_memory_gb", unit="MiB"),
    "peak_memory_bytes": _Other("peak_memory_gb", unit="bytes"),
    "max_memory_allocated_gb": _Other("peak_memory_gb", metric="allocated"),
    "max_memory_reserved_gb": _Other("peak_memory_gb", metric="reserved"),
}  # fmt: skip


def spelt(row: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The row under our names; names that nothing reads are noted. Raises `UsageError` where two of one thing differ."""
    ours = {other: name for name, others in FIELDS.items() for other in others}
    out: dict[str, Any] = {}
    unread = []
    for written, value in row.items():
        key = _key(written)
        name = ours.get(key, key)
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            continue
        told = key in TOLD or key.startswith("_")
        if not told and name not in READ and key not in OTHERS and key not in ("mfu", "mfu_pct", *RECOMPUTED):
            unread.append(key)
        if name in out and out[name] != value and name not in row:
            raise UsageError(f"the row has two of {name}: {out[name]} and {value}", hint="leave one out")
        if name not in out or key == name:
            out[name] = value
    if unread:
        notes.append("not read: " + ", ".join(unread))
    for name in DEGREES:
        if str(out.get(name)) in ("0", "0.0"):
            del out[name]  # not used
    _cells(out)
    if "recompute" not in out and out.get("recompute_granularity"):
        out["recompute"] = _recomputed(out)
    return out | {name: number(name, out[name]) for name in SIZES if name in out}


def _recomputed(row: Mapping[str, Any]) -> dict[str, Any]:
    """What Megatron's fields say of recomputation; modules count where it is selective."""
    said = {ours: row[name] for name, ours in RECOMPUTED.items() if name in row}
    if isinstance(said.get("modules"), str):
        said["modules"] = re.findall(r"\w+", said["modules"])
    if "num_layers" in said:
        said["num_layers"] = number("recompute_num_layers", said["num_layers"])
    if str(said["granularity"]).lower() != "selective":
        said.pop("modules", None)
    return said


def is_read(written: str) -> bool:
    """Whether a field of this name says something of a run."""
    key = _key(written)
    return key in _KEYS or key in OTHERS or key in READ - {"id", "status", "source", "group", "unit", "metric"}


def _key(written: str) -> str:
    """A field's name; of a whole configuration (model.tensor_model_parallel_size) what it ends with, where that is known."""
    key, last = field(written), field(written.rsplit(".", 1)[-1])
    return last if key not in _KEYS and key not in READ and last in _KEYS else key


def field(written: str) -> str:
    """A field's name without capitals, signs and units' brackets: `Tokens/s/GPU`, `step time (ms)`, `micro-batch-size`."""
    lower = written.strip().lower()
    return lower if lower.startswith("_") else re.sub(r"[^a-z0-9]+", "_", lower.replace("/", " per ")).strip("_")


_KEYS = frozenset({*FIELDS, *(other for others in FIELDS.values() for other in others), *RECOMPUTED})
"""Names that may end the name of a field in a whole configuration."""
QUANTITIES = (
    "iteration_time_s",
    "tokens_per_s_per_gpu",
    "tflops_per_gpu",
    "model_tflops_per_gpu",
    "peak_memory_gb",
    "peak_mem",
)
"""What is measured, in units of ours."""
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "min": 60.0}


def _cells(row: dict[str, Any]) -> None:
    """Make numbers of the cells that say what was measured; one that says OOM in its place is how the run ended."""
    for name in (*OTHERS, *QUANTITIES):
        if isinstance(row.get(name), str):
            if oom(row[name]):
                del row[name]
                row["status"] = "oom"
            else:
                _measured(row, name)


def _measured(row: dict[str, Any], name: str) -> None:
    """Make a number of a cell that says what was measured: digits with commas, a time or a memory with its unit. Raises `UsageError` for
    anything else."""
    text: str = row[name]
    found = re.fullmatch(r"([-+]?[\d.,]*\d(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf))\s*([a-zA-Z]*)", text.strip())
    digits, unit = (found[1], found[2].lower()) if found else ("", "")
    # Three digits behind every comma are thousands; else it is a decimal comma.
    thousands = re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", digits)
    factor = 0.0 if unit else 1.0
    if name == "iteration_time_s":
        factor = _SECONDS.get(unit, factor)
    elif name in ("peak_memory_gb", "peak_mem") and unit in _UNITS:
        factor, row["unit"] = 1.0, unit
    try:
        value = float(digits.replace(",", "" if thousands else "."))
    except ValueError:
        factor = 0.0
    if not factor:
        raise UsageError(f"{name} is {text!r}", hint="give a number; its unit stands in the field's name")
    row[name] = value * factor


def converted(row: dict[str, Any], gpus: int, seq: int) -> dict[str, Any]:
    """The row with what was measured in another unit under our names, where it does not say it in ours as well."""
    for key, other in OTHERS.items():
        if key in row and other.ours not in row:
            value = float(row[key]) * other.factor
            value *= seq if other.times else 1
            row[other.ours] = value / gpus if other.over else value
            row["unit"] = other.unit or row.get("unit")
            row["peak_memory_metric"] = other.metric or row.get("peak_memory_metric")
    return row


def noted(text: Any, said: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Switches that a row's notes name and its features do not."""
    found = {}
    for words, (name, same) in NOTED.items():
        seen = re.search(rf"\b(no |without )?{words}\b", str(text or ""), re.IGNORECASE)
        if seen and name not in said:
            found[name] = (seen[1] is None) == same
    if found:
        notes.append("from the row's notes: " + ", ".join(found))
    return found


def number(name: str, value: Any) -> int:
    """A size as a whole number of one or more; of digits with commas too. Raises `UsageError` for anything else."""
    text = str(value).strip().replace(",", "").replace("_", "")
    if name == "seq" and (thousands := re.fullmatch(r"(\d+)\s*([kKmM])", text)):
        return int(thousands[1]) * (1024 if thousands[2] in "kK" else 2**20)
    try:
        found = float(text)
    except ValueError:
        found = 0.5
    if isinstance(value, bool) or found != int(found) or found < 1:
        raise UsageError(f"{name} is {value!r}: a field is missing or wrong", hint="give a whole number of 1 or more")
    return int(found)


FEATURES: Mapping[str, tuple[str, bool]] = {
    "distributed_optimizer": ("no_distributed_optimizer", False), "use_distributed_optimizer": ("no_distributed_optimizer", False),
    "dp_overlap": ("no_dp_overlap", False), "reduce_overlap": ("no_reduce_overlap", False), "gather_overlap": ("no_gather_overlap", False),
    "overlap_grad_reduce": ("no_reduce_overlap", False), "overlap_param_gather": ("no_gather_overlap", False),
    "tp_comm_overlap": ("tp_overlap", True), "use_megatron_fsdp": ("fsdp", True), "apply_rope_fusion": ("rope_fusion", True),
    "bias_activation_fusion": ("activation_fusion", True), "moe_router_fusion": ("router_fusion", True),
    "overlap_moe_expert_parallel_comm": ("ep_overlap", True), "moe_router_force_load_balancing": ("force_balance", True),
    "grad_reduce_in_fp32": ("grad_reduce_fp32", True), "accumulate_allreduce_grads_in_fp32": ("grad_reduce_fp32", True),
    "fp8_param": ("fp8_param_gather", True), "fp8_dot_product_attention": ("fp8_attention", True),
    "use_precision_aware_optimizer": ("precision_aware_optimizer", True), "exp_avg_dtype": ("moments", True),
    "gradient_accumulation_fusion": ("fused_accumulation", True), "cross_entropy_fusion_impl": ("cross_entropy", True),
    "num_distributed_optimizer_instances": ("optimizer_instances", True), "cpu_offloading_num_layers": ("cpu_offload_layers", True),
    "lora_rank": ("adapter_rank", True),
}  # fmt: skip
"""Other names of switches: ours, and whether both say the same."""
NOTED: Mapping[str, tuple[str, bool]] = {
    "ddp overlap": ("no_dp_overlap", False), "tp overlap": ("tp_overlap", True), "fp8 attention": ("fp8_attention", True),
}  # fmt: skip
"""Words by which notes beside a row name switches, with "no" or "without" in front where they were off; as `FEATURES`."""
_SWITCHES = frozenset({*Features.__dataclass_fields__, *(name for name, _ in FEATURES.values())})
_FALSE = ("false", "no", "off", "0", "none", "")
_DISPATCHERS = {word: word for word in ("alltoall", "allgather", "deepep", "hybridep")} | {
    "a2a": "alltoall",
    "flex": "deepep",
}
"""What sends tokens to experts, without signs; Megatron's flexible one has DeepEP behind it unless told otherwise."""
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def features_of(given: Any, notes: list[str]) -> dict[str, Any]:
    """Switches of a row, by name; a list has those that were on."""
    if isinstance(given, list | tuple):
        given = dict.fromkeys(given, True)
    given, unread = _joined(dict(given or {}))
    out: dict[str, Any] = {}
    for key, value in given.items():
        name, same = FEATURES.get(key, (key, True))
        if name not in _SWITCHES:
            unread.append(f"features.{key}")
            continue
        plain = Features.__dataclass_fields__[name].type == "bool" if name in Features.__dataclass_fields__ else True
        if plain and isinstance(value, str):
            value = value.strip().lower() not in _FALSE
        if value is not None:
            out[name] = value if same else not value
    if (out.get("cuda_graph") or ["captured"])[0] == "none":
        out["cuda_graph"] = None  # in place of the graphs of the recipe that the row names
    if unread:
        notes.append("not read: " + ", ".join(unread))
    return out


def _joined(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Switches of a row with those that several names say, or words of their own, under our names and in our words; and what of them is
    no word of anybody's."""
    unread = []
    sent = None
    for key in ("moe_token_dispatcher_type", "moe_flex_dispatcher_backend", "dispatcher"):
        if (word := given.pop(key, None)) is not None:
            known = _DISPATCHERS.get(re.sub(r"[^a-z0-9]", "", str(word).lower()))
            sent = known or sent
            unread += [] if known else [f"features.{key}"]
    if sent is not None:
        given["dispatcher"] = sent
    impl = next(
        (given.pop(key) for key in ("cuda_graph", "cuda_graph_impl", "enable_cuda_graph") if key in given), None
    )
    scope: Any = given.pop("cuda_graph_scope", None) or []
    if isinstance(impl, bool):
        impl = "transformer_engine" if impl else "none"
    if isinstance(impl, str):
        impl = [impl, [scope] if isinstance(scope, str) else list(scope)]
    if impl is not None:
        given["cuda_graph"] = impl
    for key in ("moments", "exp_avg_dtype", "master"):
        if isinstance(dtype := given.get(key), str):
            short = dtype.strip().lower().removeprefix("torch.")
            given[key] = _DTYPES.get(short, short)
    return given, unread


SHORT_NAMES = {
    "layers": "num_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_query_groups",
    "ffn": "ffn_hidden_size", "gated_mlp": "gated_linear_unit", "vocab": "vocab_size",
}  # fmt: skip
SAME_NAMES = {other: ours for ours, others in NAMES.items() for other in others if other != ours} | {
    "query_groups": "num_query_groups", "num_heads": "num_attention_heads", "swiglu": "gated_linear_unit", "gated": "gated_linear_unit",
    "tied": "share_embeddings_and_output_weights", "tie_word_embeddings": "share_embeddings_and_output_weights",
    "experts": "num_moe_experts", "topk": "moe_router_topk", "top_k": "moe_router_topk", "expert_ffn": "moe_ffn_hidden_size",
}  # fmt: skip
"""Names of a model's sizes in configurations of Hugging Face and in tables."""
_NESTED = (
    "provider",
    "dsa",
    "vision",
    "audio",
    "multimodal",
    "params",
    "lightning_indexer_layers",
    "index_n_heads",
    "index_head_dim",
)
"""What an entry of `architectures.json` has beside sizes."""
_DECODERS = ("gpt", "dense", "decoder", "llm", "llama", "moe", "transformer", "hybrid", "mamba", "causal")
_GATED = ("swiglu", "geglu", "reglu")


def sizes_of(arch: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its model's shape, under Megatron's names."""
    return {SHORT_NAMES.get(k, k): v for k, v in arch.items() if v is not None and k != "type"}


def shape_of(arch: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The same for any spelling: sizes whole, gated activations split into their two parts, names that nothing reads noted. Raises
    `UsageError` for a model that is no decoder."""
    kind = str(arch.get("type") or "").lower()
    if kind and not any(word in kind for word in _DECODERS):
        raise UsageError(f"a model of type {arch['type']!r} is no decoder that is predicted here")
    given: dict[str, Any] = {}
    for key, value in sizes_of({**arch, **(arch.get("provider") or {})}).items():
        given[key if key in _NESTED else SAME_NAMES.get(key, key)] = value
    act = str(
        given.pop("activation", None) or given.pop("hidden_act", None) or given.get("activation_func") or ""
    ).lower()
    if act:
        gated = act in _GATED
        given["activation_func"] = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "gelu_new": "gelu"}.get(
            act, act
        )
        if gated:
            given["gated_linear_unit"] = True
    every = moe_every(given)
    if shared := given.pop("n_shared_experts", None):
        given["moe_shared_expert_intermediate_size"] = int(shared) * int(given.get("moe_ffn_hidden_size") or 0)
    if given.get("kv_lora_rank"):
        every["multi_latent_attention"] = True
    known = Architecture.__dataclass_fields__
    if unread := [k for k in given if k not in known and k not in _NESTED]:
        notes.append("not read: " + ", ".join(f"arch.{k}" for k in unread))
    for name, value in given.items():
        if (
            name in known
            and "int" in str(known[name].type)
            and isinstance(value, int | float | str)
            and not isinstance(value, bool)
        ):
            given[name] = 0 if str(value) in ("0", "0.0") else number(name, value)
    return given | every


def moe_every(given: dict[str, Any]) -> dict[str, Any]:
    """Which layers have experts, where a frequency says it: Megatron's `moe_layer_freq`, a number or a list."""
    freq = given.pop("moe_layer_freq", None)
    if freq is None or given.get("moe_layer_pattern"):
        return {}
    if isinstance(freq, list | tuple):
        return {"moe_layer_pattern": list(freq)}
    return {"moe_layer_pattern": [int(i % int(freq) == 0) for i in range(int(given.get("num_layers") or 0))]}


# --- words --------------------------------------------------------------------------------------------------------

_SIXTEEN = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "tf32": "fp32",
}
_SCALINGS = SCALINGS | {
    "mx": "fp8mx", "current": "fp8cs", "cs": "fp8cs", "ds": "fp8ds", "subchannel": "fp8sc", "sc": "fp8sc", "block": "fp8sc",
}  # fmt: skip


_BESIDE = frozenset({"mixed", "amp", "precision", "pure", "true", "params", "weights", "o1", "o2"})
_MASTERS = frozenset({"master", "masters", "optimizer", "states", "moments"})


def precision_of(given: Any, software: str, notes: list[str]) -> tuple[str, bool]:
    """Our short name of a training format, and whether gradients are said to be summed in float32. FP8 without its scaling is what the
    `software` of its time (a key of `SOFTWARE`) did, and noted. Raises `UsageError` for an unknown one."""
    text = str(given or "bf16").strip().lower()
    wide = bool(re.search(r"fp32 (grad|accum|reduc)", text))
    main = re.sub(r"[+,&]?\s*(with )?fp32 (grad|accum|reduc).*", "", text).strip()
    if main in PRECISIONS:
        return main, wide
    if (short := short_name(main)) is not None and "mixed" in main:
        return short, wide
    words = re.findall(r"[a-z]*\d+|[a-z]+", re.sub(r"(?<=fp8)(?=[a-z])|(?<=fp8)[-_ ]", " ", main))
    if "nvfp4" in words or "fp4" in words:
        return "nvfp4", wide
    if "fp8" in words or "mxfp8" in words or "float8" in words:
        found = {_SCALINGS[w] for w in words if w in _SCALINGS}
        if len(found) == 1:
            return found.pop(), wide
        if not found:
            short, how = ("fp8ds", "delayed") if software == "nemo-2025" else ("fp8cs", "current")
            notes.append(f"{given} does not say its scaling: taken as {how}")
            return short, wide
    plain = {_SIXTEEN[w] for w in words if w in _SIXTEEN}
    if len(plain) == 2 and _MASTERS.intersection(words):
        plain.discard("fp32")  # of the optimizer, as everybody's
    if len(plain) == 1 and all(w in _SIXTEEN or w in _BESIDE or w in _MASTERS for w in words):
        return plain.pop(), wide
    raise UsageError(f"precision {given!r} is unknown", hint="one of " + ", ".join(PRECISIONS))


_TASKS = {
    "pretrain": "pretrain", "pretraining": "pretrain", "continuedpretraining": "pretrain", "sft": "sft", "finetune": "sft",
    "finetuning": "sft", "fullfinetuning": "sft", "peft": "peft", "lora": "peft", "peftlora": "peft", "dora": "peft",
}  # fmt: skip


def task_of(given: Any) -> str:
    """pretrain, sft or peft. Raises `UsageError` for another."""
    text = str(given or "pretrain").lower()
    letters = re.sub(r"[^a-z]", "", text)
    found = _TASKS.get(letters) or _TASKS.get(text.split("_")[0])
    if found is None and (words := re.search(r"lora|peft|finetun|pretrain", letters)):
        found = _TASKS.get(words[0], "sft")
    if found is None:
        raise UsageError(f"task {given!r} is unknown", hint="one of " + ", ".join(TASKS))
    return found


def _recompute_of_fields(given: Mapping[str, Any]) -> Recompute:
    """Recomputation by Megatron's fields, with `recompute_` in front or without."""
    fields = {str(key).removeprefix("recompute_"): value for key, value in given.items()}
    if "granularity" not in fields and fields.get("method"):
        fields["granularity"] = "full"
    if isinstance(fields.get("granularity"), str):
        fields["granularity"] = fields["granularity"].lower()
    if fields.get("granularity") in ("none", "no", ""):
        return NO_RECOMPUTE
    if not fields.get("granularity") and fields.get("modules"):
        fields["granularity"] = "selective"
    if fields.get("granularity") == "full" and not fields.get("method"):
        fields = {"num_layers": 1} | {k: v for k, v in fields.items() if v is not None} | {"method": "uniform"}
    return recompute_from_json(fields)


def recompute_of(given: Any) -> Recompute:
    """Recomputation: Megatron's fields, a list of modules, or words ("full", "full, block, 8 layers", "selective (moe_act)"). Raises
    `UsageError` for words that say neither what nor how much."""
    if isinstance(given, Mapping):
        return _recompute_of_fields(given)
    if isinstance(given, list | tuple):
        return selective([str(m) for m in given])
    if given is None or given is False:
        return NO_RECOMPUTE
    text = str(given).strip().lower()
    words = re.findall(r"[a-z_]+|\d+", text)
    if not words or words[0] in ("none", "no", "off", "null", "false"):
        return NO_RECOMPUTE
    if words[0] in ("full", "uniform", "block") or re.fullmatch(r"(all|every) layers?", text):
        number_of_layers = next((int(w) for w in words if w.isdigit()), 1)
        method = "block" if "block" in words else "uniform"
        return Recompute(granularity="full", method=method, num_layers=number_of_layers)
    named = [w for w in words if w in MODULES]
    if named:
        return selective(named)
    if words[0] == "selective" or re.fullmatch(r"(core )?attention( only)?", text):
        return selective(None)
    raise UsageError(
        f"recompute {given!r}: neither how much nor what",
        hint="none, full, selective, or a list of " + ", ".join(MODULES),
    )


def oom(status: Any) -> bool:
    """Whether a run ended for want of memory."""
    text = str(status or "").lower()
    return bool(re.match(r"oom\b|(cuda )?out[ _]of[ _]memory", text))


_UNITS = {
    "gb": 10**9,
    "gib": 2**30,
    "mb": 10**6,
    "mib": 2**20,
    "tb": 10**12,
    "tib": 2**40,
    "b": 1,
    "byte": 1,
    "bytes": 1,
}


def unit_of(given: Any) -> int | None:
    """Bytes of a unit of memory; None where none is named. Raises `UsageError` for one that is none."""
    text = str(given or "").strip()
    if not text:
        return None
    word = re.match(r"[A-Za-z]+", text)
    found = _UNITS.get(word[0].lower()) if word else None
    if found is None:
        raise UsageError(f"unit {given!r} is none of memory", hint="GB, GiB, MB, MiB or bytes")
    return found


def sharding_of(given: Any, notes: list[str]) -> dict[str, Any]:
    """The features that a row's words on sharding amount to; what they say beyond is noted."""
    text = re.sub(r"[-_ ]+", " ", str(given or "").strip().lower())
    found: dict[str, Any] = {}
    zero = re.search(r"\b(?:zero ?(?:stage )?|stage )(\d)", text)
    stage = zero[1] if zero else "2" if "shard grad op" in text else None  # PyTorch's word
    if re.match(r"none|no\b|ddp\b", text) or "no shard" in text or stage == "0":
        found["no_distributed_optimizer"] = True
    elif "hsdp" in text or "hybrid shard" in text:
        notes.append(f"sharding {given!r} is taken as the distributed optimizer's")
    elif stage == "2":
        notes.append("gradients are taken to be whole on every rank: only ZeRO-1 and ZeRO-3 are known")
    elif stage == "3" or re.search(r"fsdp|full(?:y)? shard", text):
        found["fsdp"] = True
    elif text and not zero and not re.search(r"dist(?:ributed)? opt", text):
        notes.append(f"sharding {given!r} is not read: taken as the distributed optimizer's")
    if stage == "1" and (ranks := re.search(r"over (\d+) ranks", text)):
        found["optimizer_ranks"] = int(ranks[1])
    if "tp comm overlap" in text:
        found["tp_overlap"] = True
    return found


# --- machines -----------------------------------------------------------------------------------------------------

_COUNTED = re.compile(r"(.+):(\d+)")
_CLOUD = re.compile(r"^(Standard_|BM\.|a\d-|a\dx-|g\d|p\d|u-|\w+\.\w+$)")


class Machine(NamedTuple):
    """A preset, how many of them the row counted, and the GPU that stands in it in place of its own."""

    preset: str
    nodes: int | None = None
    gpu: Product | None = None


def machine_of(hardware: Any, gpu: Any, notes: list[str]) -> Machine:
    """The preset that a row means by its `hardware`, or the usual machine around its `gpu_type`, which is noted. Raises `UsageError`
    with the nearest."""
    given = str(hardware or gpu or "").strip()
    if not given:
        raise UsageError("the row names no hardware", hint="give a preset, e.g. dgx-h100")
    name, nodes = given, None
    if counted := _COUNTED.fullmatch(given):
        name, nodes = counted[1], int(counted[2])
    name = re.sub(r"^\d+\s*[x×]\s*", "", name)
    dashed = re.sub(r"[\s_]+", "-", name)
    for spelling in (name, dashed, re.sub(r"(?<=\d)gb$", "g", dashed.lower()), name_key(name)):
        if (known := preset_of(spelling)) is not None:
            return Machine(known, nodes)
    found = _usual(name)
    if found is None:
        preset_row(name)  # raises, with the nearest
        raise AssertionError(name)
    around, inside = found
    notes.append(
        f"{given}: taken as {around}, the usual machine around that GPU"
        if inside is None
        else f"{given}: taken as {inside.name} in {around}, the machine around the nearest GPU"
    )
    return Machine(around, nodes, inside)


_MAKERS = {"nvidia", "geforce", "tesla", "gpu", "dgx", "hgx"}


@cache
def _usual(gpu: str) -> tuple[str, Product | None] | None:
    """The usual machine around a GPU: one that no cloud sells under a name of its own; SXM where the name leaves it open. With the GPU
    itself where there is none around it, and the machine is that of the nearest on such a board."""
    sheet = product(gpu)
    text = re.sub(r"hbm\d\w*|tensor core|(server|workstation) edition", " ", gpu.lower())
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"sxm\d", "sxm", text))) - _MAKERS
    every = (product(name) for name in load("products.json")["products"])
    sheets = [p for p in every if p is not None and (p is sheet if sheet is not None else _means(words, p))]
    data = load("presets.json")
    presets: Mapping[str, Any] = data["presets"]
    meant = {*data["aliases"].values()}  # by a GPU's plain name
    own: dict[str, list[str]] = {}
    for name, row in presets.items():
        if not _CLOUD.match(name):
            own.setdefault(row["gpu"], []).append(name)

    def largest(names: list[str]) -> str:
        boards = ("dgx", "hgx")
        return max(names, key=lambda n: (n.startswith(boards), n in meant, presets[n]["gpus_per_node"], -len(n)))

    ranked = sorted(sheets, key=lambda p: ("SXM" not in p.name, -p.memory_bytes))
    for found in ranked:
        if found.name in own:
            return largest(own[found.name]), None
    if not ranked:
        return None

    mine = ranked[0]

    def unlike(name: str) -> tuple[bool, bool, bool, int]:
        other = product(name)
        assert other is not None
        chip = other.compute_capability != mine.compute_capability
        return other.board != mine.board, chip, other.arch != mine.arch, abs(other.memory_bytes - mine.memory_bytes)

    return largest(own[min(own, key=unlike)]), mine


def _means(words: set[str], sheet: Product) -> bool:
    """Whether all words are of that product's name or say its memory, and one of them is of its name."""
    own = set(re.sub(r"sxm\d", "sxm", sheet.name.lower()).split())
    sizes = {sheet.memory_bytes / 2**30, sheet.memory_bytes / 1e9}

    def memory(word: str) -> bool:
        size = re.fullmatch(r"(\d+)gb?", word)
        return size is not None and any(abs(int(size[1]) / s - 1) < 0.03 for s in sizes)

    return bool(words & own) and all(word in own or memory(word) for word in words)


# --- models -------------------------------------------------------------------------------------------------------

_VARIANTS = re.compile(r"(?:[-_ ](?:base|instruct|it|pt|chat|hf|thinking|\d{4}|bf16|fp8|v0\.\d))+$", re.IGNORECASE)


def _model_key(name: str) -> tuple[str, ...]:
    """What tells models apart in their names: without owner, maker's prefix, variant of the same weights' shape."""
    short = _VARIANTS.sub("", name.rsplit("/", 1)[-1].removeprefix("explicit:"))
    words = re.findall(r"\d+(?:\.\d+)?|[a-z]+", short.lower())
    return tuple(w for w in words if w not in ("meta", "nvidia"))


@cache
def _models() -> Mapping[tuple[str, ...], str | None]:
    """The model of every key; None where two share it."""
    found: dict[tuple[str, ...], str | None] = {}
    pairs = [(m, m) for m in load("architectures.json")]
    pairs += [(r["model"], r["model_id"]) for r in load("recipes.json")["recipes"] if r.get("model_id")]
    for name, model in pairs:
        key = _model_key(name)
        found[key] = model if found.get(key, model) == model else None
    return found


def model_of(name: str, notes: list[str]) -> str:
    """The catalog's name of a model that a row names in another way, which is noted; the row's own where none is meant."""
    if name in load("architectures.json"):
        return name
    if (known := _models().get(_model_key(name))) is None:
        return name
    notes.append(f"{name}: taken as {known}")
    return known


_PARAMETERS = {"m": 1e6, "b": 1e9, "t": 1e12}


def size_in(name: Any) -> float | None:
    """Parameters that a model's name says it has ("GPT-22B"): not what is active of them ("A3B"), nor a product ("8x7B")."""
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)\s?([mbt])(?![a-z0-9])", str(name or "").lower())
    return float(found[1]) * _PARAMETERS[found[2]] if found else None

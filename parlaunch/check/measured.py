"""Rows of published or own runs as planner values: recipe, layout, machine, and what was measured.

A row is a mapping as `parlaunch validate` reads it: `recipe` (a name of the catalog, which fills in what the row leaves out),
`model_id` (a Hugging Face name) or `arch` (Megatron's names, or the short ones layers, hidden, heads, kv_heads, ffn, gated_mlp,
vocab), `hardware` (a preset), `gpus`, sizes, features (overlaps, adapters, …), and measured quantities; other spellings are
`parlaunch.check.words`'. Fields may be missing; what is filled in, supposed or not read is said in `notes`, and a row that cannot be
read raises `UsageError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from math import inf
from typing import Any

from parlaunch.check.released import as_then, sequential, take_back, unstash
from parlaunch.check.words import (
    Machine,
    converted,
    features_of,
    machine_of,
    model_of,
    noted,
    oom,
    precision_of,
    recompute_of,
    shape_of,
    sharding_of,
    size_in,
    sizes_of,
    spelt,
    task_of,
    unit_of,
)
from parlaunch.data import load, rows
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.estimate.cross_entropy import with_loss_of
from parlaunch.estimate.frameworks import framework_of, named
from parlaunch.estimate.memory import estimate_memory, rank_zero_memory, stage_memories
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.values import Estimate, Memory
from parlaunch.frozen import dataclass
from parlaunch.hardware.datasheet import preset, preset_row
from parlaunch.hardware.installed import numbers
from parlaunch.hardware.rates import Rates, calibrated_by, rates_from_json, rates_of
from parlaunch.model.architecture import Architecture, architecture_from_json, flaw
from parlaunch.model.catalog import architecture, catalog_row
from parlaunch.model.layout import (
    Layout,
    Recompute,
    layout_from_json,
    selective,
)
from parlaunch.model.parameters import split_layers, total_params
from parlaunch.model.recipe import Recipe, features_from_json
from parlaunch.planning.plan import recipe_from_json


@dataclass(frozen=True, slots=True)
class Site:
    """A machine that published runs come from, where it differs from the preset that their tables name."""

    mark: str  # in the row's source
    fabric_bytes_per_s_per_gpu: float
    why: str
    framework: str | None = None  # a closer name than the table's


SITES = (
    Site("vTrain", 12.5e9, "vTrain's nodes of eight A100 have four 200 Gb/s ports (MICRO 2024)"),
    Site(
        "bigscience",
        6.25e9,
        "Jean Zay's nodes of eight A100 have four 100 Gb/s Omni-Path ports (BLOOM, arXiv:2211.05100), and the runs had "
        "CUDA_LAUNCH_BLOCKING=1, without which they hung (tr11-176B-ml/chronicles-prequel.md)",
        framework="Megatron-DeepSpeed (blocking launches)",
    ),
    Site("InternEvo", 6.25e9, "50 GB/s a node of eight A100, as its table says"),
)


MLPERF_LORA = {
    "adapter_rank": 16, "adapter_targets": ["linear_qkv", "linear_proj"], "adapter_dropout": True, "adapter_a2a": True,
    "fp8_attention": True, "fp8_param_gather": True, "fp4_param_gather": True, "transpose_cache": False,
}  # fmt: skip
"""What the benchmark `llama2_70b_lora` of MLPerf Training fixes (rank 16 on attention, dropout 0.1), and what every submission
with NeMo has: attention in FP8, frozen weights in FP8 or FP4 alone, transposed when needed."""


NEMO_2, PLAIN_IN_NEMO = {"tp_overlap": True}, ("mixtral",)
"""What NeMo 2's recipes have on with TP and its tables do not say, and models of which they do not (nemo/collections/llm/recipes,
`MegatronCommOverlapCallback`)."""


def site_of(row: Mapping[str, Any]) -> Site | None:
    """The machine that a row's source ran on, where we know better than the table."""
    return next((site for site in SITES if site.mark in str(row.get("source") or "")), None)


TIMES = ("iteration_time_s", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "tflops_per_gpu")
"""Measured quantities that say how long an iteration takes, the most direct first."""

MEASURED = (*TIMES, "peak_memory_gb", "peak_mem")
"""Quantities that are compared, under the names that rows give them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One row, understood."""

    id: str
    recipe: Recipe
    layout: Layout
    rates: Rates
    source: str  # group of tables it comes from: the framework's name without its version
    machine: str
    group: str | None  # rows of one group differ in layout only: same model and shape, machine, batch and release
    measured: Mapping[str, float]
    oom: bool
    memory_kind: str  # allocated | reserved | nvidia-smi
    memory_unit: int  # bytes
    memory_rank: str  # whose memory it is: fullest | first (rank 0) | pipeline (the fullest stage of rank 0's pipeline) | planned (its plan's)
    hardware_flops: bool  # TFLOP/s count the recomputed forward pass
    notes: tuple[str, ...]
    scored: bool = True  # its batch, length and GPUs are its own; else it is shown, and counts nowhere

    @property
    def recomputed(self) -> float:
        """What `tflops_per_gpu` counts over model FLOPs: a fully recomputed run does the forward pass twice."""
        return 4 / 3 if self.hardware_flops else 1.0


def speeds(run: Run, estimate: Estimate) -> dict[str, float]:
    """What is predicted of each of `TIMES`."""
    tflops = estimate.model_tflops_per_gpu
    values = (estimate.iteration_time_s, estimate.tokens_per_s_per_gpu, tflops, tflops * run.recomputed)
    return dict(zip(TIMES, values, strict=True))


def measured_seconds(run: Run, estimate: Estimate) -> float | None:
    """Measured seconds of one iteration, from the most direct quantity that the row has; None when it has none.

    Rates say how much faster or slower the run was than `estimate`, which knows its tokens and FLOPs.
    """
    for name, predicted in speeds(run, estimate).items():
        if measured := run.measured.get(name):
            return measured if name == "iteration_time_s" else estimate.iteration_time_s * predicted / measured
    return None


def run_of(row: Mapping[str, Any], machines: Machines) -> Run:
    """Read one row. Raises `UsageError` with the reason when it cannot be."""
    notes: list[str] = []
    try:
        run = _planned(row, machines) if "planned" in row else _run(_with_recipe(spelt(row, notes)), machines, notes)
        # What cannot be predicted is said of the row, and costs no other.
        if not (
            0 < estimate_time(run.recipe, run.layout, run.rates).iteration_time_s < inf and memory_of(run).peak >= 0
        ):
            raise ValueError("it takes no time, or no memory")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"row {row.get('id', '?')}: a field is missing or wrong: {error}") from error
    for name, value in run.measured.items():
        if not 0 <= value < inf:  # a 0 is how some tables say that it was not measured
            raise UsageError(f"row {run.id}: {name} is {value}", hint="give what was measured, or leave it out")
    return run


def readable(rows: Iterable[Mapping[str, Any]], machines: Machines) -> Iterator[tuple[Mapping[str, Any], Run]]:
    """The rows that can be read, each with its run."""
    for row in rows:
        try:
            run = run_of(row, machines)
        except ParlaunchError:
            continue
        yield row, run


@dataclass(frozen=True, slots=True)
class Timed:
    """A row that counts and has a time: what it says, its run, and seconds of an iteration."""

    row: Mapping[str, Any]
    run: Run
    predicted_s: float
    measured_s: float


def timed(rows: Iterable[Mapping[str, Any]]) -> Iterator[Timed]:
    """The rows that can be read, count, ran, and say how long an iteration took."""
    for row, run in readable(rows, Machines()):
        if run.oom or not run.scored:
            continue
        estimate = estimate_time(run.recipe, run.layout, run.rates)
        if measured := measured_seconds(run, estimate):
            yield Timed(row, run, estimate.iteration_time_s, measured)


def _with_recipe(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the recipe that it names says in place of what it leaves out."""
    if not row.get("recipe"):
        return row
    found = catalog_row(str(row["recipe"]))
    said: dict[str, Any] = {k: found[k] for k in ("model", "model_id", "task", "precision", "seq", "gbs", "gpus")} | (
        found.get("layout") or {}
    )
    if any(row.get(k, said.get(k)) != said.get(k) for k in ("pp", "vp", "arch", "model_id")):
        said.pop("layers_per_chunk", None)  # of the recipe's own pipeline
    if row.get("pp", said.get("pp")) != said.get("pp"):
        said.pop("vp", None)
    if row.get("model_id", row.get("arch")):
        said["model"] = None
    return said | row


INVENTED = "the row does not say"
"""Ends the notes of what had to be made up."""


def _planned(row: Mapping[str, Any], machines: Machines) -> Run:
    """A row of the history (`parlaunch.check.remembered`): recipe, layout and rates are those of its plan, to the last field."""
    planned, name = row["planned"], str(row.get("id"))
    recipe, layout = recipe_from_json(planned["recipe"]), layout_from_json(planned["layout"])
    rates = rates_from_json(planned["rates"], where=f"row {name}")
    if machines.file is not None:
        rates = replace(rates, **calibrated_by(machines.file, rates.product.name))
    kind, unit = _memory_kind(row)
    run = Run(
        id=name, recipe=recipe, layout=layout, rates=rates, source=str(row.get("source") or "history"),
        machine=str(row.get("hardware") or row.get("gpu") or "?"), group=None,
        measured={k: float(row[k]) for k in MEASURED if row.get(k) is not None}, oom=oom(row.get("status")),
        memory_kind=kind, memory_unit=unit, memory_rank="planned", hardware_flops=False, notes=(),
    )  # fmt: skip
    hash((recipe, layout, rates))
    sizes = (layout.world, layout.dp, layout.tp, layout.pp, layout.cp, layout.ep, layout.etp)
    if min(*sizes, layout.micro_batch_size, layout.global_batch_size) < 1:
        raise ValueError(f"{layout} is no layout")
    if not isinstance(recipe.name, str):
        raise TypeError(f"the name of its recipe is {recipe.name}")
    return run


def _run(row: Mapping[str, Any], machines: Machines, notes: list[str]) -> Run:
    framework = str(row.get("framework") or "")
    machine = machine_of(row.get("hardware"), row.get("gpu_type"), notes)
    tp, pp, cp = (row.get(name) or 1 for name in ("tp", "pp", "cp"))
    gpus, mbs, gbs, seq = _amounts(row, machine, tp * pp * cp, pp, notes)
    row = converted(dict(row), gpus, seq)
    rates = machines.of(row, machine, gpus, notes)
    dp = max(1, gpus // (tp * pp * cp))
    if row.get("dp", dp) != dp:
        notes.append(f"dp {row['dp']} is not that of {gpus} GPUs: taken as {dp}")
    vp = row.get("vp")
    architecture_of = _architecture(row, notes)
    chunks = _chunks(row.get("layers_per_chunk"), architecture_of, pp, vp)
    recompute = recompute_of(row.get("recompute"))
    precision, wide = precision_of(row.get("precision"), framework_of(framework).software, notes)
    row |= {"precision": precision, "task": task_of(row.get("task"))}
    if row.get("features") is not None:
        row["features"] = features_of(row["features"], notes)
    gpu = rates.product.hardware
    nearest = _nearest(row, gpu)
    benchmark = _benchmark_recipe(row, gpu) if row.get("features") is None and _benchmark(framework) else None
    if benchmark:
        row["features"], recomputed = _as_benchmarked(benchmark, row, framework, gpu, notes)
        recompute = recomputed if row.get("recompute") is None else recompute
    features = _features(row, framework, recompute, gpu, notes)
    if ranks := features.pop("optimizer_ranks", None):
        features["optimizer_instances"] = max(1, dp * cp // ranks)
    features |= _of_nearest(nearest, features, framework)
    features |= _of_generation(framework, rates, notes)
    layout = Layout(
        world=gpus, tp=tp, pp=pp, vp=vp if vp and vp > 1 else None, cp=cp, ep=row.get("ep") or 1,
        etp=row.get("etp") or 1, micro_batch_size=mbs, global_batch_size=gbs, recompute=recompute,
        fsdp=bool(features.get("fsdp")), cp_comm_type=_first(row.get("cp_comm_type")),
        layers_per_chunk=chunks,
    )  # fmt: skip
    if gpus % (tp * pp * cp):
        raise UsageError(f"{gpus} GPUs do not divide by tp·pp·cp = {tp * pp * cp}")
    if gbs % (mbs * dp):
        notes.append(f"global batch {gbs} is no multiple of {mbs}·{dp}: rounded down")
    if gbs < mbs * dp:
        raise UsageError(f"a global batch of {gbs} is less than one micro batch of {mbs} on {dp} replicas")
    if wide:
        features["grad_reduce_fp32"] = True
    recipe = Recipe(
        name=str(row.get("model") or row.get("model_id") or row.get("id")), source="catalog", task=row["task"],
        model=str(nearest["model"] if nearest else row.get("model") or ""), model_id=row.get("model_id"), architecture=architecture_of,
        seq_length=seq, global_batch_size=gbs, precision=precision,
        features=features_from_json(features), benchmark=_benchmark(framework),
    )  # fmt: skip
    if engine := re.search(r"\bTE (\d+(?:\.\d+)+)", f"{row.get('software') or ''} {row.get('notes') or ''}"):
        recipe = with_loss_of(recipe, numbers(engine[1]))
    kind, unit = _memory_kind(row)
    text = str(row.get("tflops_kind") or "").lower()
    _with_mfu(row, rates, notes)
    return Run(
        id=str(row.get("id")), recipe=recipe, layout=layout, rates=rates,
        source=_source(framework, row), machine=str(row.get("hardware") or row.get("gpu_type") or "?"),
        group=_group(row, framework, gbs), measured={k: float(row[k]) for k in MEASURED if row.get(k) is not None},
        oom=oom(row.get("status")), memory_kind=kind, memory_unit=unit, memory_rank=_memory_rank(row),
        hardware_flops=recompute.granularity == "full" and not text.startswith(("model", "mfu")), notes=tuple(notes),
        scored=not any(note.endswith(INVENTED) for note in notes),
    )  # fmt: skip


def _of_nearest(nearest: Mapping[str, Any] | None, features: Mapping[str, Any], framework: str) -> Mapping[str, Any]:
    """What the row leaves out, as the catalog's nearest recipe has it."""
    if not nearest:
        return {}
    found, said = {}, nearest.get("features") or {}
    if not features.get("cross_entropy"):
        found["cross_entropy"] = said.get("cross_entropy")
    if _benchmark(framework):
        found |= {name: said.get(name, True) for name in FUSIONS if name not in features}
        found |= {name: said[name] for name in FORMATS if name in said and name not in features}
        take_back(found, framework, [])
    return found


def _of_generation(framework: str, rates: Rates, notes: list[str]) -> Mapping[str, Any]:
    """What follows from the software beside its constants; what no run here was measured with is noted."""
    known = named(framework)
    if framework and known is None:
        notes.append(f"framework {framework!r} is not known: predicted as Megatron Bridge's")
    if known is not None and known.software == "pytorch":
        notes.append(f"framework {framework!r}: as eager PyTorch with flash attention, with which no run here was made")
    if known is not None and known.keeping == "megatron-lm" and rates.product.arch not in ("volta", "ampere"):
        # Megatron-LM of Hopper's years has Megatron-Core and fused attention inside.
        return {"framework": "Megatron-Core", "sequence_parallel": True}
    return {}


def _chunks(given: Any, a: Architecture, pp: int, vp: int | None) -> tuple[int, ...] | None:
    """Layers of each virtual stage, where they are not equal."""
    stages = pp * (vp or 1)
    if given and len(given) != stages:
        raise UsageError(f"layers_per_chunk has {len(given)} chunks, and pp·vp is {stages}")
    if not given and len(a.layers()) % stages:
        # It ran, so it said how; Megatron's flags for embedding and loss, or a layout by hand. Ours is as even as can be.
        return tuple(len(kinds) for kinds in split_layers(a, pp, vp if vp and vp > 1 else None))
    return tuple(given) if given else None


def _first(value: Any) -> Any:
    """Of a list, one for each layer, the first."""
    return value[0] if isinstance(value, list | tuple) and value else value


def _with_mfu(row: dict[str, Any], rates: Rates, notes: list[str]) -> None:
    """Make model FLOPs of a share of the peak, where nothing else says how long an iteration takes."""
    given = row.get("mfu", row.get("mfu_pct"))
    if given is None or any(row.get(name) for name in TIMES):
        return
    if row["precision"] not in ("bf16", "fp16"):
        notes.append("MFU is not read: of which format's peak it is a share, the row does not say")
        return
    share = float(str(given).rstrip("% "))
    peak = rates.product.peak_flops(row["precision"]) / 1e12
    row["model_tflops_per_gpu"] = (share / 100 if share > 1 else share) * peak
    notes.append(f"MFU is taken of {peak:,.0f} TFLOP/s")


def _nearest(row: Mapping[str, Any], gpu: str | None) -> Mapping[str, Any] | None:
    """The catalog's recipe that the row names; else the one for its model, task and GPU that shares most of what the row says."""
    recipes = load("recipes.json")["recipes"]
    if row.get("recipe"):
        return catalog_row(str(row["recipe"]))
    task, features = row["task"], row.get("features") or {}
    families = {r["model"] for r in recipes if r.get("model_id") and r["model_id"] == row.get("model_id")} | {
        row.get("model")
    }
    known = [r for r in recipes if r["model"] in families and r["task"] == task]

    def shared(r: Mapping[str, Any]) -> int:
        same = (r["hardware"] == gpu, r["precision"] == row.get("precision"), r["gpus"] == row.get("gpus"))
        graph = (r.get("features") or {}).get("cuda_graph") == features.get("cuda_graph")
        return sum((*same, graph, r["seq"] == row.get("seq")))

    return max(known, key=shared, default=None)


def _amounts(
    row: Mapping[str, Any], machine: Machine, replica: int, pp: int, notes: list[str]
) -> tuple[int, int, int, int]:
    """GPUs, micro batch, global batch and sequence length; what the row leaves out is made up, and noted."""
    gpus, mbs, gbs, seq = (row.get(name) for name in ("gpus", "mbs", "gbs", "seq"))
    if gpus is None and (nodes := row.get("nodes") or machine.nodes):
        gpus = nodes * preset_row(machine.preset)["gpus_per_node"]
        notes.append(f"{gpus} GPUs: those of {nodes} {machine.preset}")
    if gpus is None and row.get("dp"):
        gpus = replica * row["dp"]
        notes.append(f"{gpus} GPUs: tp·pp·cp·dp")
    if gpus is None:
        gpus = replica
        notes.append(f"{gpus} GPUs: {INVENTED}")
    if mbs is None:
        mbs = 1
        notes.append(f"micro batch 1: {INVENTED}")
    if gbs is None and row.get("num_microbatches"):
        gbs = mbs * max(1, gpus // replica) * row["num_microbatches"]
    if gbs is None:
        gbs = mbs * max(1, gpus // replica) * 2 * pp
        notes.append(f"global batch {gbs}: {INVENTED}")
    if seq is None:
        seq = 4096
        notes.append(f"{seq} tokens: {INVENTED}")
    return gpus, mbs, gbs, seq


def _architecture(row: Mapping[str, Any], notes: list[str]) -> Architecture:
    whole = _catalogued(row, notes)
    if arch := row.get("arch"):
        given = shape_of(arch, notes)
        missing = [name for name in ("num_layers", "hidden_size", "num_attention_heads") if not given.get(name)]
        size = size_in(row.get("model")) if whole is None and missing == ["num_layers"] else None
        if missing and whole is None and size is None:
            raise UsageError("the row's architecture lacks " + ", ".join(missing))
        if missing and whole is not None:
            changed = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            notes.append("sizes that arch has not are those of the model")
            return whole.with_sizes(changed)
        if given.get("kind") != "diffusion":
            given = {"normalization": "LayerNorm"} | given
        if not given.get("vocab_size") and given.get("kind") != "diffusion":
            given["vocab_size"] = VOCABULARY
            notes.append(f"a vocabulary of {VOCABULARY:,}: GPT-2's, as Megatron-LM pads it")
        if given.get("gated_linear_unit") and not (given.get("ffn_hidden_size") or given.get("moe_ffn_hidden_size")):
            notes.append("an MLP four times as wide as the model, as Megatron has it where nobody says")
        if size is not None:
            given["num_layers"] = _layers_of(given, size)
            notes.append(f"{given['num_layers']} layers: what makes {row['model']!r} of its other sizes")
        return _inline(json.dumps(given, sort_keys=True))
    if whole is None:
        raise _no_model(row)
    return whole


def _layers_of(given: Mapping[str, Any], size: float) -> int:
    """How many layers of those sizes a model of so many parameters has, all being alike, with one matrix for its vocabulary where it does
    not say (Megatron-LM's default)."""
    tied = {"share_embeddings_and_output_weights": True} | dict(given)
    one, two = (total_params(_inline(json.dumps(tied | {"num_layers": n}, sort_keys=True))) for n in (1, 2))
    return max(1, round((size - one) / (two - one)) + 1)


def _catalogued(row: Mapping[str, Any], notes: list[str]) -> Architecture | None:
    """The architecture that the row names: by its Hugging Face name, else by the name that people give the model."""
    if row.get("model_id"):
        return architecture(model_of(str(row["model_id"]), notes))
    if row.get("arch") or not row.get("model"):
        return None
    name = model_of(str(row["model"]), notes)
    return architecture(name) if name in load("architectures.json") else None


def _no_model(row: Mapping[str, Any]) -> UsageError:
    """That a row's model is none that is known, and what to try."""
    given = row.get("model")
    if not given:
        return UsageError("the row has neither model_id nor arch", hint="give a Hugging Face name or the sizes")
    near = get_close_matches(str(given), load("architectures.json"), n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}; or give" if near else "give"
    return UsageError(
        f"no model is known as {given!r}",
        hint=f"{hint} its sizes as arch (num_layers, hidden_size, num_attention_heads, …)",
    )


VOCABULARY = 51200


@lru_cache(maxsize=512)
def _inline(given: str) -> Architecture:
    made = architecture_from_json(json.loads(given))
    if (wrong := flaw(made)) is not None:
        raise UsageError(f"the row's architecture: {wrong}", hint="give its sizes as whole numbers")
    return made


def _as_benchmarked(
    benchmark: Mapping[str, Any], row: Mapping[str, Any], framework: str, gpu: str | None, notes: list[str]
) -> tuple[dict[str, Any], Recompute]:
    """Features and recomputation of a benchmark recipe as they were in the row's release."""
    features = dict(benchmark.get("features") or {})
    if sequential(row) and features.pop("ep_overlap", None):
        # Bridge switches graphs of whole iterations and attention in FP8 on together with the overlap.
        unstash(features)
        features.pop("fp8_attention", None)
    modules = as_then(features, row, framework, gpu, notes)
    notes.append("features and recomputation of the catalog's benchmark recipe: the row has none")
    return features, selective(modules) if modules else _published_recompute(benchmark["name"])


def _features(
    row: Mapping[str, Any], framework: str, recompute: Recompute, gpu: str | None, notes: list[str]
) -> dict[str, Any]:
    features = dict(row.get("features") or {})
    take_back(features, framework, notes)
    features |= noted(row.get("notes"), features, notes)
    if re.match(r"nemo[ -]2\.", framework, re.IGNORECASE) and not str(row.get("model")).lower().startswith(
        PLAIN_IN_NEMO
    ):
        features = NEMO_2 | features
    if row.get("task") == "peft" and framework.startswith("NeMo (MLPerf"):
        features = MLPERF_LORA | {k: v for k, v in features.items() if v is not None}
    if row.get("recipe") and (known := _nearest(row, gpu)):
        features = dict(known.get("features") or {}) | features
    named_in = framework if re.search(r"fsdp|zero[-_ ]?3", framework.lower()) else None
    if named_in is None and not row.get("sharding") and (usual := SHARDS.match(framework.lower())):
        named_in = "FSDP"
        notes.append(f"fully sharded, as {usual[0]} shards unless told otherwise")
    features |= sharding_of(row.get("sharding") or named_in, notes)
    older = framework_of(framework).software == "megatron-lm-2022"
    if older and recompute.granularity != "selective" and "sequence_parallel" not in features:
        # Korthikanti et al. compare with the code as it was before: all-reduces, no sequence parallelism.
        features["sequence_parallel"] = False
    site = site_of(row)
    return features | {"framework": (site.framework if site and site.framework else framework) or None}


SHARDS = re.compile(r"torchtitan|(?:mosaicml )?(?:llm[- ]?foundry|composer)")
"""Software that shards everything where nobody says how (`data_parallel_shard_degree` is -1, torchtitan/config/job_config.py;
`fsdp_config: sharding_strategy: FULL_SHARD` in llm-foundry's scripts/train/yamls)."""


def _benchmark(framework: str) -> bool:
    """Whether a row is of NVIDIA's own tables of benchmarks, which write the release in small letters."""
    return framework.startswith("megatron-bridge")


FORMATS = ("bf16_ends", "module_formats", "fp8_attention", "fp8_output")
FUSIONS = ("router_fusion", "rope_fusion")
"""What tables of benchmarks do not say, and the releases' own scripts have as today's recipes have it."""


def _benchmark_recipe(row: Mapping[str, Any], gpu: str | None) -> Mapping[str, Any] | None:
    """The benchmark recipe for the same model, GPU, precision and task; of the same count where there is one."""
    found = [
        r
        for r in load("recipes.json")["recipes"]
        if r["kind"] == "benchmark"
        and (r["model"], r["hardware"], r["precision"]) == (row.get("model"), gpu, row.get("precision"))
        and r["task"] == row["task"]
    ]
    found.sort(key=lambda r: abs((r.get("gpus") or 0) - int(row.get("gpus") or 0)))
    return found[0] if found else None


def _published_recompute(name: str) -> Recompute:
    """What a benchmark recipe recomputes, in the layout that it was published with."""
    said = next((r["layout"].get("recompute") for r in rows("evidence.json", "name", name)), None)
    return recompute_of(said)


class Machines:
    """The machines that a table names, one `Rates` for each kind, count and fabric: estimates are cached by it.

    `file` is a machine file that stands in for data sheets (`parlaunch.check.calibrate`).
    """

    def __init__(self, file: Mapping[str, Any] | None = None) -> None:
        self.file = file
        self._known: dict[tuple[Machine, int, float | None], Rates] = {}

    def of(self, row: Mapping[str, Any], machine: Machine, gpus: int, notes: list[str]) -> Rates:
        """As many machines of that kind as `gpus` need, with the fabric of the row."""
        fabric = row.get("fabric_bytes_per_s_per_gpu")
        nodes = max(1, -(-gpus // preset_row(machine.preset)["gpus_per_node"]))
        site = site_of(row)
        if fabric is None and nodes > 1 and site is not None:
            fabric = site.fabric_bytes_per_s_per_gpu
            notes.append(site.why)
        key = (machine._replace(nodes=None), nodes, None if fabric is None else float(fabric))
        if key not in self._known:
            rates = rates_of(preset(machine.preset, nodes, machine.gpu), machine_file=self.file)
            self._known[key] = rates if fabric is None else replace(rates, fabric_bytes_per_s=float(fabric))
        return self._known[key]


def _source(framework: str, row: Mapping[str, Any]) -> str:
    name = framework.rsplit(" ", 1)[0] if framework[-1:].isdigit() else framework
    # The same layout has become up to half as fast again since.
    return (name or str(row.get("source") or "?").split(" ")[0]) + (
        ", superseded" if row.get("current") is False else ""
    )


def _group(row: Mapping[str, Any], framework: str, gbs: int) -> str | None:
    """Rows of one group differ in layout only: tables also group over releases, batches and shapes, which differ in more."""
    name = row.get("group")
    if name is None:
        return None
    # Tables call all candidates of one size the same, whatever their heads.
    shape = sorted(sizes_of(row.get("arch") or {}).items())
    return "|".join((str(name), framework, str(gbs), *(f"{k}={v}" for k, v in shape)))


def _memory_rank(row: Mapping[str, Any]) -> str:
    text = f"{row.get('peak_memory_metric') or ''} {row.get('metric') or ''}".lower()
    if "logger ranks" in text:  # Megatron Bridge's logs: the maximum over the pipeline of rank 0
        return "pipeline"
    either = re.search(r"max(imum)?( over|/)", text)
    return "first" if re.search(r"rank ?0|first rank", text) and not either else "fullest"


def seen_of(run: Run, memory: Memory) -> int:
    """Bytes that what measured the run would show of a GPU."""
    return {"allocated": memory.allocated, "reserved": memory.reserved, "nvidia-smi": memory.peak}[run.memory_kind]


def memory_of(run: Run) -> Memory:
    """The predicted memory of the GPU that was measured: of all, the one that shows most of what was measured."""
    if run.memory_rank == "planned":
        return estimate_memory(run.recipe, run.layout, run.rates, headroom=0.0)
    if run.memory_rank == "fullest":
        stages = stage_memories(run.recipe, run.layout, run.rates, headroom=0.0)
        return max(stages, key=lambda memory: seen_of(run, memory))
    return rank_zero_memory(
        run.recipe, run.layout, run.rates, headroom=0.0, fullest_stage=run.memory_rank == "pipeline"
    )


def _memory_kind(row: Mapping[str, Any]) -> tuple[str, int]:
    text = f"{row.get('peak_memory_metric') or ''} {row.get('metric') or ''}".lower()
    smi = re.search(r"nvidia-smi|nvml", text)
    kind = "nvidia-smi" if smi else "reserved" if "reserved" in text else "allocated"
    measured = row.get("peak_memory_gb") is not None or row.get("peak_mem") is not None
    unit = unit_of(row.get("unit") or re.search(r"\bgi?b\b|$", text)[0]) if measured else None  # type: ignore[index]
    # nvidia-smi prints MiB; who writes "GB" from it has divided by a thousand.
    return kind, 1000 * 2**20 if smi and unit in (None, 10**9) else unit or 10**9

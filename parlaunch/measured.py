"""Rows of published or own runs as planner values: recipe, layout, machine, and what was measured.

A row is a mapping as `parlaunch validate` reads it: `model_id` or `arch` (Megatron's names, or the short ones layers,
hidden, heads, kv_heads, ffn, gated_mlp, vocab), `hardware` (a preset), `gpus`, sizes, features, and measured quantities.
Fields may be missing; what is filled in is said in `notes`, and a row that cannot be read raises `UsageError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from parlaunch.architecture import Architecture, architecture_from_json
from parlaunch.catalog import architecture, load
from parlaunch.datasheet import preset
from parlaunch.errors import UsageError
from parlaunch.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute, recompute_from_json
from parlaunch.parameters import split_layers
from parlaunch.rates import Rates, rates_of
from parlaunch.recipe import PRECISIONS, TASKS, Recipe, features_from_json

SHORT_NAMES = {
    "layers": "num_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_query_groups",
    "ffn": "ffn_hidden_size", "gated_mlp": "gated_linear_unit", "vocab": "vocab_size",
}  # fmt: skip

GPU_TYPES = {
    "A100-80GB-SXM": "dgx-a100-80g", "A100-40GB-SXM": "dgx-a100-40g", "H100-80GB-SXM": "dgx-h100", "V100-32GB-SXM": "dgx1-v100",
}  # fmt: skip
"""`gpu_type` of a row without `hardware`: the usual machine around that GPU."""


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


def site_of(row: Mapping[str, Any]) -> Site | None:
    """The machine that a row's source ran on, where we know better than the table."""
    return next((site for site in SITES if site.mark in str(row.get("source") or "")), None)


MEASURED = (
    "iteration_time_s", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "tflops_per_gpu", "peak_memory_gb", "peak_mem",
)  # fmt: skip
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
    hardware_flops: bool  # TFLOP/s count the recomputed forward pass
    notes: tuple[str, ...]

    @property
    def recomputed(self) -> float:
        """What `tflops_per_gpu` counts over model FLOPs: a fully recomputed run does the forward pass twice."""
        return 4 / 3 if self.hardware_flops else 1.0


def run_of(row: Mapping[str, Any], machines: Machines) -> Run:
    """Read one row. Raises `UsageError` with the reason when it cannot be."""
    notes: list[str] = []
    try:
        return _run(row, machines, notes)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"row {row.get('id', '?')}: a field is missing or wrong: {error}") from error


def _run(row: Mapping[str, Any], machines: Machines, notes: list[str]) -> Run:
    framework = str(row.get("framework") or "")
    rates = machines.of(row, notes)
    gpus = _number(row, "gpus")
    tp, pp, cp = (_number(row, name) or 1 for name in ("tp", "pp", "cp"))
    if gpus is None:
        gpus = tp * pp * cp * (_number(row, "dp") or 1)
        notes.append(f"{gpus} GPUs: the row does not say how many")
    mbs = _number(row, "mbs")
    if mbs is None:
        mbs = 1
        notes.append("micro batch 1: the row does not say")
    dp = max(1, gpus // (tp * pp * cp))
    gbs = _number(row, "gbs")
    if gbs is None:
        gbs = mbs * dp * 2 * pp
        notes.append(f"global batch {gbs}: the row does not say")
    vp = _number(row, "vp")
    architecture_of = _architecture(row)
    chunks = row.get("layers_per_chunk")
    stages = pp * (vp or 1)
    if not chunks and len(architecture_of.layers()) % stages:
        # It ran, so it said how; Megatron's flags for embedding and loss, or a layout by hand. Ours is as even as can be.
        chunks = [len(kinds) for kinds in split_layers(architecture_of, pp, vp if vp and vp > 1 else None)]
    recompute = _recompute(row.get("recompute"))
    features = _features(row, framework, recompute, notes)
    if framework.startswith("Megatron-LM") and rates.product.arch not in ("volta", "ampere"):
        # Megatron-LM of Hopper's years has Megatron-Core and fused attention inside.
        features |= {"framework": "Megatron-Core", "sequence_parallel": True}
    layout = Layout(
        world=gpus, tp=tp, pp=pp, vp=vp if vp and vp > 1 else None, cp=cp, ep=_number(row, "ep") or 1,
        etp=_number(row, "etp") or 1, micro_batch_size=mbs, global_batch_size=gbs, recompute=recompute,
        fsdp=bool(features.get("fsdp")), cp_comm_type=row.get("cp_comm_type"),
        layers_per_chunk=tuple(chunks) if chunks else None,
    )  # fmt: skip
    if gpus % (tp * pp * cp):
        raise UsageError(f"{gpus} GPUs do not divide by tp·pp·cp = {tp * pp * cp}")
    if gbs % (mbs * dp):
        notes.append(f"global batch {gbs} is no multiple of {mbs}·{dp}: rounded down")
    # "bf16 + fp32 grad accumulation"
    precision, _, extra = str(row.get("precision") or "bf16").partition(" ")
    if "fp32 grad" in extra:
        features["grad_reduce_fp32"] = True
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown", hint="one of " + ", ".join(PRECISIONS))
    task = str(row.get("task") or "pretrain").split("_")[0]
    task = "peft" if task == "lora" else task
    if task not in TASKS:
        raise UsageError(f"task {task!r} is unknown", hint="one of " + ", ".join(TASKS))
    recipe = Recipe(
        name=str(row.get("model") or row.get("model_id") or row["id"]), source="catalog", task=task,
        model=str(row.get("model") or ""), model_id=row.get("model_id"), architecture=architecture_of,
        seq_length=_number(row, "seq") or _number(row, "seq_length") or 4096, global_batch_size=gbs, precision=precision,
        features=features_from_json(features), benchmark=framework.startswith("megatron-bridge"),
    )  # fmt: skip
    kind, unit = _memory_kind(row)
    text = str(row.get("tflops_kind") or "")
    return Run(
        id=str(row.get("id")), recipe=recipe, layout=layout, rates=rates,
        source=_source(framework, row), machine=str(row.get("hardware") or row.get("gpu_type") or "?"),
        group=_group(row, framework, gbs), measured={k: float(row[k]) for k in MEASURED if row.get(k) is not None},
        oom=row.get("status") == "oom", memory_kind=kind, memory_unit=unit,
        hardware_flops=recompute.granularity == "full" and not text.startswith("model"), notes=tuple(notes),
    )  # fmt: skip


def _number(row: Mapping[str, Any], name: str) -> int | None:
    value = row.get(name)
    return None if value is None else int(value)


def _sizes(arch: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its model's shape, under Megatron's names."""
    return {SHORT_NAMES.get(k, k): v for k, v in arch.items() if v is not None and k != "type"}


def _architecture(row: Mapping[str, Any]) -> Architecture:
    if arch := row.get("arch"):
        given = _sizes(arch)
        missing = [name for name in ("num_layers", "hidden_size", "num_attention_heads") if not given.get(name)]
        if missing:
            raise UsageError("the row's architecture lacks " + ", ".join(missing))
        return _inline(tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in given.items())))
    if row.get("model_id"):
        return architecture(str(row["model_id"]))
    raise UsageError("the row has neither model_id nor arch", hint="give a Hugging Face name or the sizes")


@lru_cache(maxsize=512)
def _inline(given: tuple[tuple[str, Any], ...]) -> Architecture:
    # A published table of a dense GPT without a vocabulary means GPT-2's, as Megatron-LM pads it.
    return architecture_from_json({"vocab_size": 51200, "normalization": "LayerNorm"} | dict(given))


def _recompute(given: Any) -> Recompute:
    if isinstance(given, str):
        if given.startswith("full"):
            return FULL_RECOMPUTE
        if given.startswith("selective"):
            return Recompute(granularity="selective", modules=("core_attn",))
        return NO_RECOMPUTE
    return recompute_from_json(given)


def _features(row: Mapping[str, Any], framework: str, recompute: Recompute, notes: list[str]) -> dict[str, Any]:
    features = dict(row.get("features") or {})
    if row.get("features") is None and framework.startswith("megatron-bridge"):
        features = _benchmark_features(row)
        if (_number(row, "pp") or 1) > 1 and (_number(row, "vp") or 1) == 1 and features.pop("ep_overlap", None):
            # The overlap needs an interleaved pipeline, and Bridge switches graphs of whole iterations on together with it.
            features.pop("paged_stash", None)
            features["cuda_graph"] = ["transformer_engine", ["attn", "moe_router", "moe_preprocess"]]
        if features:
            notes.append("features of the catalog's benchmark recipe: the row has none")
    sharding = str(row.get("sharding") or "")
    if sharding == "none" or sharding.startswith("ddp"):
        features["no_distributed_optimizer"] = True
    if "tp-comm-overlap" in sharding:
        features["tp_overlap"] = True
    if framework == "Megatron-LM" and recompute.granularity != "selective" and "sequence_parallel" not in features:
        # Korthikanti et al. compare with the code as it was before: all-reduces, no sequence parallelism.
        features["sequence_parallel"] = False
    site = site_of(row)
    return features | {"framework": (site.framework if site and site.framework else framework) or None}


def _benchmark_features(row: Mapping[str, Any]) -> dict[str, Any]:
    """Features of the benchmark recipe for the same model, GPU, precision and task; of the same count where there is one."""
    gpu = str(row.get("hardware") or "").removeprefix("dgx-").removesuffix("-nvl72")
    found = [
        r
        for r in load("recipes.json")["recipes"]
        if r["kind"] == "benchmark"
        and (r["model"], r["hardware"], r["precision"]) == (row.get("model"), gpu, row.get("precision"))
        and r["task"] == str(row.get("task") or "pretrain")
    ]
    found.sort(key=lambda r: abs((r.get("gpus") or 0) - int(row.get("gpus") or 0)))
    return dict(found[0].get("features") or {}) if found else {}


class Machines:
    """The machines that a table names, one `Rates` for each kind, count and fabric: estimates are cached by it.

    `file` is a machine file that stands in for data sheets (`parlaunch.calibrate`).
    """

    def __init__(self, file: Mapping[str, Any] | None = None) -> None:
        self.file = file
        self._known: dict[tuple[str, int, float | None], Rates] = {}

    def of(self, row: Mapping[str, Any], notes: list[str]) -> Rates:
        """The machine of a row. Raises `UsageError` when it names none that is known."""
        name = row.get("hardware") or GPU_TYPES.get(str(row.get("gpu_type")))
        if not name:
            raise UsageError("the row names no hardware", hint="give a preset, e.g. dgx-h100")
        fabric = row.get("fabric_bytes_per_s_per_gpu")
        nodes = max(1, -(-int(row.get("gpus") or 1) // preset(str(name)).gpus_per_node))
        site = site_of(row)
        if fabric is None and nodes > 1 and site is not None:
            fabric = site.fabric_bytes_per_s_per_gpu
            notes.append(site.why)
        key = (str(name), nodes, None if fabric is None else float(fabric))
        if key not in self._known:
            rates = rates_of(preset(str(name), nodes), machine_file=self.file)
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
    shape = sorted(_sizes(row.get("arch") or {}).items())
    return "|".join((str(name), framework, str(gbs), *(f"{k}={v}" for k, v in shape)))


def _memory_kind(row: Mapping[str, Any]) -> tuple[str, int]:
    text = f"{row.get('peak_memory_metric') or ''} {row.get('metric') or ''}".lower()
    kind = "nvidia-smi" if "nvidia-smi" in text else "reserved" if "reserved" in text else "allocated"
    unit = str(row.get("unit") or "")
    if unit.startswith("GiB"):
        return kind, 2**30
    # nvidia-smi prints MiB; who writes "GB" from it has divided by a thousand.
    return kind, 1000 * 2**20 if kind == "nvidia-smi" else 10**9

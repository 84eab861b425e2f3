"""No constant of the memory model can move without a test noticing: predictions are pinned, and each constant moves one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from parlaunch.estimate import allocator, cross_entropy, memory, micro_batches, routing, stages, states
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import activations, matrices
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import FULL_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe

LLAMA, QWEN, NEMOTRON, NEXT = (
    architecture(name)
    for name in (
        "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-30B-A3B", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
    )
)  # fmt: skip
SOME = Recompute(granularity="selective", modules=("moe_act", "layernorm"))


def _plan(a: Architecture, layout: Layout, machine: str, **changes: Any) -> tuple[Recipe, Layout, str]:
    given: dict[str, Any] = {"task": "pretrain", "precision": "bf16", "features": Features()} | changes
    recipe = Recipe(
        name="pinned", source="catalog", model="pinned", model_id=None, architecture=a, seq_length=4096,
        global_batch_size=layout.global_batch_size, **given,
    )  # fmt: skip
    return recipe, layout, machine


ONE = Layout(world=8, global_batch_size=64)
PLANS: Mapping[str, tuple[Recipe, Layout, str]] = {
    "dense, one of each": _plan(LLAMA, replace(ONE, tp=2, pp=2, micro_batch_size=2), "dgx-h100"),
    "dense, delayed scaling": _plan(LLAMA, replace(ONE, tp=2), "dgx-h100", precision="fp8ds"),
    "dense, current scaling, its weights in FP8": _plan(
        LLAMA,
        replace(ONE, tp=2),
        "dgx-b200",
        precision="fp8cs",
        features=Features(fp8_param_gather=True, fp8_attention=True),
    ),
    "dense, blocks": _plan(LLAMA, ONE, "dgx-h100", precision="fp8sc"),
    "dense, MXFP8": _plan(LLAMA, ONE, "dgx-b200", precision="fp8mx"),
    "dense, NVFP4": _plan(LLAMA, ONE, "dgx-b200", precision="nvfp4"),
    "dense, float32": _plan(LLAMA, ONE, "dgx-b200", precision="fp32"),
    "dense, graphs of whole iterations": _plan(LLAMA, ONE, "dgx-b200", features=Features(cuda_graph="full_iteration")),
    "dense, registered buffers": _plan(LLAMA, ONE, "dgx-h100", features=Features(nccl_ub=True, cross_entropy="te")),
    "dense, sharded": _plan(LLAMA, replace(ONE, fsdp=True), "dgx-h100"),
    "dense, everything again": _plan(LLAMA, replace(ONE, recompute=FULL_RECOMPUTE), "dgx-a100-80g"),
    "dense, Volta": _plan(LLAMA, replace(ONE, tp=8), "dgx1-v100", precision="fp16"),
    "dense, Ada": _plan(LLAMA, replace(ONE, tp=8), "l40s-pcie-8"),
    "dense, Turing": _plan(LLAMA, replace(ONE, world=4, tp=4), "g4dn.12xlarge", precision="fp16"),
    "dense, Rubin": _plan(LLAMA, ONE, "vr200-nvl72"),
    "dense, DeepSpeed in half precision": _plan(
        LLAMA, ONE, "dgx-a100-80g", precision="fp16", features=Features(framework="Megatron-DeepSpeed")
    ),
    "dense, DeepSpeed": _plan(LLAMA, ONE, "dgx-a100-80g", features=Features(framework="Megatron-DeepSpeed")),
    "dense, Megatron-LM": _plan(LLAMA, ONE, "dgx-a100-80g", features=Features(framework="Megatron-LM")),
    "dense, Megatron Core": _plan(LLAMA, ONE, "dgx-h100", features=Features(framework="Megatron-Core")),
    "dense, PyTorch": _plan(LLAMA, replace(ONE, fsdp=True), "dgx-h100", features=Features(framework="torchtitan")),
    "dense, NeMo": _plan(LLAMA, ONE, "dgx-h100", features=Features(framework="NeMo (MLPerf Training v5.0)")),
    "dense, native loss on Hopper": _plan(LLAMA, replace(ONE, tp=4), "dgx-h200", features=Features(nccl_ub=True)),
    "dense, NeMo of today": _plan(LLAMA, ONE, "dgx-h100", features=Features(framework="NeMo (MLPerf Training v5.1)")),
    "dense, Megatron-LM in half precision": _plan(
        LLAMA, ONE, "dgx-a100-80g", precision="fp16", features=Features(framework="Megatron-LM")
    ),
    "dense, a small share of DeepSpeed's buckets": _plan(
        LLAMA, replace(ONE, world=64, tp=8, pp=4), "dgx-a100-80g", features=Features(framework="Megatron-DeepSpeed")
    ),
    "dense, two samples of registered buffers": _plan(
        LLAMA, replace(ONE, micro_batch_size=2), "dgx-h100", features=Features(nccl_ub=True, cross_entropy="te")
    ),
    "adapters": _plan(LLAMA, ONE, "dgx-h100", task="peft", features=Features(adapter_dropout=True)),
    "context swapped": _plan(LLAMA, replace(ONE, cp=4, cp_comm_type="a2a"), "dgx-h100"),
    "experts, free": _plan(QWEN, replace(ONE, ep=8), "dgx-h100", features=Features(dispatcher="deepep")),
    "experts, few to choose from": _plan(architecture("openai/gpt-oss-20b"), replace(ONE, ep=8), "dgx-h100"),
    "experts, narrow moments": _plan(
        NEMOTRON,
        replace(ONE, world=64, pp=2, ep=32, recompute=SOME),
        "dgx-h100",
        features=Features(dispatcher="hybridep", precision_aware_optimizer=True, moments="bfloat16", master="float16"),
    ),
    "experts, eight-bit moments": _plan(
        QWEN, replace(ONE, ep=8), "dgx-b200", features=Features(precision_aware_optimizer=True, moments="fp8")
    ),
    **{
        f"experts, moments in {kind}": _plan(
            QWEN, replace(ONE, ep=8), "dgx-b200", features=Features(precision_aware_optimizer=True, moments=kind)
        )
        for kind in ("float32", "float16", "uint8", "float8_e4m3fn")
    },
    "dense, offloaded": _plan(LLAMA, ONE, "dgx-h100", features=Features(cpu_offload_layers=8)),
    "experts, overlapped": _plan(QWEN, replace(ONE, ep=8), "dgx-h100", features=Features(ep_overlap=True)),
    "dense, a loss in float32": _plan(LLAMA, ONE, "dgx-h100", features=Features(nccl_ub=True, cross_entropy="te_wide")),
    "dense, capped logits": _plan(
        architecture("google/gemma-2-2b"), ONE, "dgx-h100", features=Features(cross_entropy="te")
    ),
    "images, an encoder that says how it merges": _plan(architecture("Qwen/Qwen2.5-VL-7B-Instruct"), ONE, "dgx-h200"),
    "images, one that does not": _plan(architecture("google/gemma-3-4b-it"), ONE, "dgx-h200"),
    "images, a frozen encoder": _plan(
        architecture("Qwen/Qwen2.5-VL-7B-Instruct"), ONE, "dgx-h200", features=Features(frozen_encoder=True)
    ),
    "delta rule": _plan(NEXT, replace(ONE, world=64, ep=32), "dgx-b200", features=Features(force_balance=True)),
}


MODULES = (memory, stages, micro_batches, routing, allocator, cross_entropy, states, activations, matrices)


@contextmanager
def changed(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """One constant of a module, as this module and those that took it by name see it, with nothing remembered."""
    modules = [m for m in MODULES if getattr(m, name, None) is getattr(module, name)]
    before = getattr(module, name)
    for m in modules:
        setattr(m, name, value)
    _forget()
    try:
        yield
    finally:
        for m in modules:
            setattr(m, name, before)
        _forget()


def _forget() -> None:
    for m in MODULES:
        for made in vars(m).values():
            if hasattr(made, "cache_clear"):
                made.cache_clear()


def predictions() -> dict[str, dict[str, float]]:
    found = {}
    for name, (recipe, layout, machine) in PLANS.items():
        rates = rates_of(preset(machine, -(-layout.world // preset(machine).gpus_per_node)))
        m = memory.estimate_memory(recipe, layout, rates)
        found[name] = {
            "allocated": m.allocated, "reserved": m.reserved, "peak": m.peak, "limit": m.limit, "error_band": m.error_band,
            "risk_band": m.risk_band, "spare": m.spare,
        }  # fmt: skip
    return found


def test_predictions_are_the_pinned_ones(golden: Callable[[str, str], None]) -> None:
    golden("memory.json", json.dumps(predictions(), indent=1) + "\n")


def _numbers(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where numbers stand in a constant: keys, indices and fields that lead to each."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int | float):
        yield ()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from ((key, *rest) for rest in _numbers(inner))
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from ((i, *rest) for rest in _numbers(inner))
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from ((key, *rest) for rest in _numbers(getattr(value, key)))


def _at(value: Any, path: tuple[Any, ...]) -> float:
    for key in path:
        value = getattr(value, key) if hasattr(value, "__dataclass_fields__") else value[key]
    return float(value)


def _with(value: Any, path: tuple[Any, ...], by: float) -> Any:
    if not path:
        return value * by
    key, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {**value, key: _with(value[key], rest, by)}
    if isinstance(value, tuple):
        return tuple(_with(v, rest, by) if i == key else v for i, v in enumerate(value))
    return replace(value, **{key: _with(getattr(value, key), rest, by)})


CONSTANTS: Mapping[ModuleType, tuple[str, ...]] = {
    memory: ("PEAK_BAND", "RISK", "WIDER"),
    stages: ("IMAGES", "MERGE"),
    routing: ("OVERALL", "IN_A_SEQUENCE", "SPECIALISED"),
    allocator: (
        "CONTEXT", "COMMUNICATOR", "WORKSPACE", "GRAPH", "GRAPH_POOL", "DEEPEP_BUFFER", "CROWDED", "HOLES", "OVERLAP_POOLS",
    ),
    cross_entropy: ("LOGIT", "CAPPED"),
    states: ("MOMENT", "BUCKET", "FRAGMENTS", "KEEPING"),
    activations: ("WIDE", "SAVED_INPUT", "DELTA_CHUNK"),
}  # fmt: skip
EACH = [
    (module, name, path)
    for module, names in CONSTANTS.items()
    for name in names
    for path in _numbers(getattr(module, name))
    if _at(getattr(module, name), path)
]


@pytest.mark.parametrize("module", CONSTANTS, ids=lambda m: m.__name__)
def test_no_constant_is_left_out(module: ModuleType) -> None:
    here = {
        name
        for name, value in vars(module).items()
        if name.isupper()
        and list(_numbers(value))
        and name not in ("GIB", "MIB", "WIDE_LOSS", "WIDEST_HEAD", "FUSED_SOFTMAX", "CPU_RANK")
    }
    elsewhere = {name for other, names in CONSTANTS.items() if other is not module for name in names}
    assert here - elsewhere - {"HEADROOM"} == {*CONSTANTS[module]}


@pytest.fixture(scope="module")
def pinned() -> dict[str, dict[str, float]]:
    return predictions()


@pytest.mark.parametrize(("module", "name", "path"), EACH, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_constant_that_moves_is_noticed(
    module: ModuleType, name: str, path: tuple[Any, ...], pinned: dict[str, dict[str, float]]
) -> None:
    """By 30 %, up and down: some pinned prediction is another one."""
    for by in (0.7, 1.3):
        with changed(module, name, _with(getattr(module, name), path, by)):
            assert predictions() != pinned

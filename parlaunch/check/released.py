"""What benchmarks of earlier releases of Megatron Bridge had otherwise than today's recipes, which a table's row without features names.

Facts of the releases' own scripts (scripts/performance: run_script.py and configs of v0.1.0rc4 for 25.09; the workload_base_configs of
v0.2.0 for 25.11, v0.3.1 for 26.02, v0.4.2 for 26.04 and v0.5.1 for 26.06).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

STASHED = (26, 6)
"""The release whose benchmarks first captured whole iterations of experts (a paged stash holds activations of unknown size)."""
PACKED = (26, 4)
"""The first with weights in FP4 alone: Bridge 0.3, of 26.02, has no setting for them."""

_EAGER = {"ep_overlap": None, "cuda_graph": None, "paged_stash": None}
_PLAIN = _EAGER | {"dispatcher": "alltoall"}
_OVERLAPPED = _PLAIN | {"ep_overlap": True}
_MODULES_GRAPHED = {"cuda_graph": ["transformer_engine", ["attn", "moe_router", "moe_preprocess"]]}
_ROUTER_GRAPHED = _PLAIN | {"cuda_graph": ["transformer_engine", ["moe_router", "moe_preprocess"]]}
_DEEPEP = _OVERLAPPED | {"dispatcher": "deepep"}
_FILLED = _PLAIN | {"expert_capacity": 1.0, "force_balance": None}
_FILLED_GRAPHED = _FILLED | {"cuda_graph": ["local", []]}

Q30, Q235, DEEPSEEK, NANO = "qwen3_30b_a3b", "qwen3_235b_a22b", "deepseek_v3", "nemotron_3_nano"


class _Then(NamedTuple):
    """How benchmarks with experts ran up to a release."""

    before: tuple[int, int]  # year and month of the container that had it no longer
    models: tuple[str, ...]  # none named: all
    gpus: tuple[str, ...]  # the same
    features: Mapping[str, Any]  # None: not there
    said: str
    precisions: tuple[str, ...] = ()  # as models
    recomputed: tuple[str, ...] = ()  # modules, where they were others than today


_THEN = (
    _Then((25, 11), (DEEPSEEK,), ("h100",), _DEEPEP, "tokens sent by DeepEP, without graphs"),
    _Then((25, 11), (Q30,), ("b200", "gb200"), _FILLED_GRAPHED, "tokens over the experts' capacity dropped, graphs of whole layers"),
    _Then((25, 11), (Q235,), ("gb200",), _FILLED_GRAPHED, "tokens over the experts' capacity dropped, graphs of whole layers"),
    _Then((25, 11), (), (), _FILLED, "tokens over the experts' capacity dropped, without graphs"),
    _Then((26, 2), (DEEPSEEK,), ("h100",), _DEEPEP, "tokens sent by DeepEP, without graphs"),
    _Then((26, 2), (Q30,), ("b200",), _ROUTER_GRAPHED, "tokens sent by alltoall, graphs of router and preprocessing"),
    _Then((26, 2), (Q235,), ("h100", "b200"), _OVERLAPPED, "tokens sent by alltoall, without graphs"),
    _Then((26, 2), (), ("h100", "b200"), _PLAIN, "tokens sent by alltoall, without graphs"),
    _Then((26, 4), (Q235,), ("b300",), _PLAIN, "tokens sent by alltoall, without graphs"),
    _Then((26, 6), (Q235,), ("b200",), _PLAIN, "tokens sent by alltoall, without graphs"),
    _Then((26, 6), (Q235,), ("b300",), _EAGER, "without overlap and graphs"),
    _Then(
        (26, 8), (NANO,), ("h100",), {"cuda_graph": ["transformer_engine", ["mamba"]]}, "experts and attention recomputed, graphs of Mamba layers",
        precisions=("fp8cs",), recomputed=("moe", "layernorm", "core_attn", "moe_act"),
    ),
)  # fmt: skip
"""The first that fits."""


CONTAINERS = {
    (0, 1): (25, 9), (0, 2): (25, 11), (0, 3): (26, 2), (0, 4): (26, 4), (0, 5): (26, 6), (0, 6): (26, 8),
}  # fmt: skip
"""Year and month of the container that a version of Megatron Bridge came with."""


def _release(framework: str) -> tuple[int, int] | None:
    """Year and month of a benchmark's container ("megatron-bridge 26.04.01", "megatron-bridge v0.4.2"); None for today's and for other
    software."""
    found = re.match(r"megatron-bridge v?(\d+)\.(\d+)", framework)
    if found is None:
        return None
    said = int(found[1]), int(found[2])
    return CONTAINERS.get(said) if said[0] == 0 else said


def sequential(row: Mapping[str, Any]) -> bool:
    """Whether a row's pipeline is not interleaved: the overlap of experts' traffic needs one that is."""
    return (row.get("pp") or 1) > 1 and (row.get("vp") or 1) == 1


def unstash(features: dict[str, Any]) -> None:
    """Take out the stash, and with it the graphs of whole iterations; single modules have graphs in their place."""
    features.pop("paged_stash", None)
    features.update(_MODULES_GRAPHED)


def as_then(
    features: dict[str, Any], row: Mapping[str, Any], framework: str, gpu: str | None, notes: list[str]
) -> tuple[str, ...]:
    """Change the features of today's recipe, where it has experts, to what they were in the row's release; a note says so. The modules that
    it recomputed, where they were others than today."""
    release, model, precision = _release(framework), row.get("model"), row.get("precision")
    if release is None or not features.get("dispatcher"):
        return ()
    for then in _THEN:
        named = ((then.models, model), (then.gpus, gpu), (then.precisions, precision))
        if release < then.before and all(not some or its in some for some, its in named):
            features.update(then.features)
            if sequential(row):
                features["ep_overlap"] = None
            notes.append(f"{then.said}, as its release had it")
            return then.recomputed
    return ()


def take_back(features: dict[str, Any], framework: str, notes: list[str]) -> None:
    """Take out of a row's features what its release did not have yet; a note says what."""
    release = _release(framework)
    if release is None:
        return
    if features.get("paged_stash") and release < STASHED:
        unstash(features)
        features["ep_overlap"] = None
        notes.append("graphs of router and preprocessing: its release had none of whole iterations with experts")
    narrow = [name for name in ("fp8_attention", "fp8_output") if features.get(name)]
    if narrow and release < STASHED:
        for name in narrow:
            del features[name]
        notes.append("attention and output layer in 16 bits: no benchmark of its release had them in FP8")
    if features.get("fp4_param_gather") and release < PACKED:
        del features["fp4_param_gather"]
        notes.append("weights in 16 bits beside FP4: its release had none in FP4 alone")

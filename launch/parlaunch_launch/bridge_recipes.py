"""Where Megatron Bridge keeps a recipe, which one a name means, and what belongs to the name: task and forward step.

The order is that of Bridge's own `scripts/training/run_recipe.py` since 0.6: a name that both of its recipe packages
export means the benchmark, and the library's stays reachable under its short name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.model.catalog import renamed

LIBRARY, BENCHMARKS = "megatron.bridge.recipes", "megatron.bridge.perf_recipes"

_BENCHMARK = re.compile(
    r"_(?P<task>pretrain|sft|peft)_[1-9][0-9]*gpu_[a-z0-9]+_(?P<precision>bf16|fp8cs|fp8ds|fp8mx|fp8sc|nvfp4)(?:_[a-z0-9_]+)?_config$"
)
"""A benchmark's name says what it is (scripts/training/recipe_metadata.py: BENCHMARK_RECIPE_PATTERN)."""

STEPS = {
    "audio_lm_step": ("megatron.bridge.training.audio_lm_step", "forward_step"),
    "dsv4_step": ("megatron.bridge.models.deepseek.deepseek_v4_step", "forward_step"),
    "gpt_step": ("megatron.bridge.training.gpt_step", "forward_step"),
    "llm_step": ("megatron.bridge.training.gpt_step", "forward_step"),
    "vlm_step": ("megatron.bridge.training.vlm_step", "forward_step"),
    "qwen3_omni_step": ("megatron.bridge.models.qwen_omni.qwen3_omni_step", "forward_step"),
    "qwen3_vl_step": ("megatron.bridge.models.qwen_vl.qwen3_vl_step", "forward_step"),
    "step37_flickr8k_step": ("megatron.bridge.models.stepfun.step37_flickr8k_step", "forward_step"),
    "llava_step": ("megatron.bridge.training.llava_step", "forward_step"),
    "nemotron_omni_step": ("megatron.bridge.training.nemotron_omni_step", "forward_step"),
    "flux_step": ("megatron.bridge.diffusion.models.flux.flux_step", "FluxForwardStep"),
    "wan_step": ("megatron.bridge.diffusion.models.wan.wan_step", "WanForwardStep"),
}
"""Bridge's names of its forward steps (scripts/training/recipe_runner.py: STEP_FUNCTIONS)."""

TEXT_STEPS = ("gpt_step", "llm_step", "dsv4_step")

_STEP_OF = (
    ("nemotron_nano_v2_vl_", "llava_step"), ("nemotron_omni_", "nemotron_omni_step"), ("qwen2_audio_", "audio_lm_step"),
    ("qwen3_omni_", "qwen3_omni_step"), ("qwen3_vl_", "qwen3_vl_step"), ("qwen35_vl_", "qwen3_vl_step"),
    ("step37_", "step37_flickr8k_step"), ("gemma3_vl_", "vlm_step"), ("gemma4_vl_", "vlm_step"), ("glm_45v_", "vlm_step"),
    ("kimi_k25_vl_", "vlm_step"), ("ministral3_", "vlm_step"), ("qwen25_vl_", "vlm_step"), ("flux_", "flux_step"),
    ("wan_", "wan_step"),
)  # fmt: skip
"""Beginnings of recipe names and the step their batches need (recipe_metadata.py: RECIPE_FORWARD_STEP_PREFIXES)."""

_FAMILIES = (
    ("qwen3_vl_", "qwen_vl"), ("qwen35_vl_", "qwen_vl"), ("deepseek_", "deepseek"), ("gpt_oss_", "gpt_oss"),
    ("nemotron", "nemotronh"), ("llama", "llama"), ("qwen", "qwen"), ("kimi_", "kimi"), ("glm5", "glm_moe_dsa"), ("wan_", "wan"),
)  # fmt: skip
"""Beginnings of benchmark names and the package of their family (recipe_metadata.py: BENCHMARK_RECIPE_FAMILY_PREFIXES)."""


def mode_of(name: str) -> str:
    """pretrain, sft, dora or lora, as Bridge reads it from a recipe's name; pretrain where the name says nothing."""
    words = f"_{name.lower().strip('_')}_"
    for mode, marks in (
        ("pretrain", ("pretrain",)), ("sft", ("sft", "finetune")), ("dora", ("dora",)), ("lora", ("peft", "lora")),
    ):  # fmt: skip
        if any(f"_{mark}_" in words for mark in marks):
            return mode
    return "pretrain"


def step_of(name: str, *, energon_packing: bool = False) -> str:
    """The forward step that Bridge gives a recipe of this name.

    `energon_packing`: its data set packs by Energon's buffer, whose batches Qwen's own step does not read.
    """
    qwen = name.startswith(("qwen3_vl_", "qwen35_vl_"))
    if qwen and (energon_packing or re.fullmatch(r"qwen3_vl_8b_peft_(1gpu_h100_bf16_)?energon_config", name)):
        return "vlm_step"
    return next((step for prefix, step in _STEP_OF if name.startswith(prefix)), "llm_step")


def forward_step(step: str, mode: str = "pretrain") -> Any:
    """The forward step of that name. Raises UsageError for one that Bridge does not know, ParlaunchError for one that the
    installed Bridge lacks. `mode` is what diffusion steps are made for."""
    if step.lower() not in STEPS:
        raise UsageError(f"--step_func {step}: there is no such step", hint=f"one of: {', '.join(sorted(STEPS))}")
    module, attribute = STEPS[step.lower()]
    try:
        made: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ParlaunchError(
            f"the installed megatron.bridge has no {module}: {error}", hint="name another with `-- --step_func NAME`"
        ) from error
    if not inspect.isclass(made):
        return made
    make: Any = made
    return make(mode=mode) if "mode" in inspect.signature(make).parameters else make()


def _module(name: str) -> ModuleType | None:
    """The module; None where this Bridge has none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            return None
        raise


def benchmark(name: str) -> re.Match[str] | None:
    """What a benchmark's name says (`task`, `precision`), when the installed Bridge exports it as one; else None."""
    said = _BENCHMARK.search(name)
    family = next((package for prefix, package in _FAMILIES if name.startswith(prefix)), None)
    if said is None or family is None:
        return None
    home = _module(f"{BENCHMARKS}.{family}")
    return said if callable(getattr(home, name, None)) else None


def find_recipe(name: str) -> Callable[..., Any]:
    """The function that builds the recipe. Raises UsageError with the nearest names that this Bridge has."""
    names: set[str] = set()
    later = renamed(name)
    for known in (name,) if later is None else (name, later[0]):
        for home in _homes(known):
            if callable(build := getattr(home, known, None)):
                return build  # type: ignore[no-any-return]
            names |= {n for n in dir(home) if n.endswith("_config")}
    near = difflib.get_close_matches(name, sorted(names), n=5, cutoff=0.6)
    raise UsageError(
        f"the installed megatron.bridge has no recipe {name!r}", hint="nearest: " + ", ".join(near) if near else ""
    )


def _homes(name: str) -> Iterator[ModuleType]:
    """Where a recipe of this name is looked for, in Bridge's order; behind it, whatever other package has it."""
    for prefix, package in _FAMILIES:
        if _BENCHMARK.search(name) and name.startswith(prefix):
            if (home := _module(f"{BENCHMARKS}.{package}")) is not None:
                yield home
            break
    library = importlib.import_module(LIBRARY)
    yield library
    yield from _families(library)
    if (benchmarks := _module(BENCHMARKS)) is not None:  # Bridge before 0.6 has none
        yield from _families(benchmarks)


def _families(package: ModuleType) -> Iterator[ModuleType]:
    """The packages of recipe families, and the per-hardware packages inside them."""
    import pkgutil

    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.ispkg and not found.name.rsplit(".", 1)[1].startswith("_"):
            family = importlib.import_module(found.name)
            yield family
            yield from _families(family)

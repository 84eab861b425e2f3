"""Run in a child process by `parlaunch_probes.bridge`: build one recipe with Megatron Bridge, print it as one JSON line."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from parlaunch.architecture import Architecture

PRECISION = (  # mixed_precision names of Megatron Bridge, by what they contain, first match wins
    ("nvfp4", "nvfp4"), ("mxfp8", "fp8mx"), ("fp8_current_scaling", "fp8cs"), ("fp8_delayed_scaling", "fp8ds"),
    ("fp8_subchannel", "fp8sc"), ("fp16", "fp16"), ("bf16", "bf16"),
)  # fmt: skip


def precision(config: Any) -> str | None:
    """Our short name of a configuration's mixed precision; None when it is none we know."""
    mixed = config.mixed_precision
    if isinstance(mixed, str):
        return next((short for part, short in PRECISION if part in mixed), None)
    fp8 = getattr(mixed, "fp8_recipe", None) if getattr(mixed, "fp8", None) else None
    scaling = {"tensorwise": "fp8cs", "delayed": "fp8ds", "blockwise": "fp8sc", "mxfp8": "fp8mx"}
    if fp8 in scaling:
        return scaling[str(fp8)]
    return "fp16" if getattr(mixed, "fp16", False) else "bf16" if mixed is not None else None


def plain(value: Any) -> bool:
    """Whether JSON can hold the value as it is."""
    return value is None or isinstance(value, bool | int | float | str) or (
        isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value)
    )  # fmt: skip


def describe(config: Any) -> dict[str, Any]:
    """What the planner needs of a ConfigContainer."""
    m, t, d = config.model, config.train, config.dataset
    model = {f: getattr(m, f) for f in Architecture.__dataclass_fields__ if getattr(m, f, None) is not None}
    model = {k: list(v) if isinstance(v, tuple) else v for k, v in model.items() if plain(v)}
    model["vocab_size"] = m.vocab_size
    seq = getattr(d, "seq_length", None) or getattr(d, "sequence_length", None) or m.seq_length
    return {
        "model": model,
        "seq_length": seq,
        "global_batch_size": t.global_batch_size,
        "precision": precision(config),
        "layout": {
            "tp": m.tensor_model_parallel_size, "pp": m.pipeline_model_parallel_size,
            "vp": m.virtual_pipeline_model_parallel_size, "cp": m.context_parallel_size,
            "ep": m.expert_model_parallel_size, "etp": m.expert_tensor_parallel_size,
            "micro_batch_size": t.micro_batch_size, "sequence_parallel": m.sequence_parallel,
            "recompute": {
                "granularity": m.recompute_granularity, "modules": list(getattr(m, "recompute_modules", None) or []),
                "method": m.recompute_method, "num_layers": m.recompute_num_layers,
            },
        },
        "features": {
            "dispatcher": getattr(m, "moe_token_dispatcher_type", None),
            "frozen_language_model": bool(getattr(m, "freeze_language_model", False)),
        },
        "env": {k: str(v) for k, v in (getattr(config, "env_vars", None) or {}).items()},
    }  # fmt: skip


def main(name: str, prepare: str = "") -> None:
    """Load the recipe and print it as JSON; an error is printed as JSON too."""
    try:
        if prepare:
            module, _, function = prepare.partition(":")
            getattr(importlib.import_module(module), function)()
        build = getattr(importlib.import_module("megatron.bridge.recipes"), name, None)
        answer = {"error": f"it has no recipe of that name ({name})"} if build is None else describe(build())
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""KEY=VALUE as a user types it: read in order, checked where it names a planned size, and turned into pins.

The grammar is Hydra's, as Megatron Bridge's `process_config_with_overrides` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.layout import NO_RECOMPUTE, Recompute
from parlaunch.recipe import Recipe

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
    "model.freeze_language_model": ("frozen_language_model", "bool"),
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
    global_batch_size, seq_length, sequence_parallel, fsdp, frozen_language_model, recompute (a `Recompute`); absent keys are not pinned."""
    return dict(read_overrides(pairs).pins)

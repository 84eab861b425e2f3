"""KEY=VALUE for the Core runner: Bridge's sections and field names, read without Bridge."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from parlaunch.errors import UsageError

LEFT_TO_BRIDGE = {
    "checkpoint": "writes one file a rank where checkpoint.save names a folder",
    "comm_overlap": "has no CUDA streams to overlap on",
    "dist": "meets over gloo",
    "ft": "has no fault tolerance",
    "inprocess_restart": "has no in-process restart",
    "logger": "logs every iteration to the screen",
    "nvrx_straggler": "looks for no stragglers",
    "peft": "trains all weights",
    "profiling": "has no profiler",
    "rerun_state_machine": "reruns nothing",
    "rng": "has a fixed seed",
    "straggler": "looks for no stragglers",
    "tensor_inspect": "inspects no tensors",
    "tokenizer": "makes its own tokens",
    "validation": "does not validate",
}
"""Sections of Bridge's configuration that the Core runner reads past, and what it does in place of them."""

PRECISIONS = {"bf16_mixed": "bf16", "bf16-mixed": "bf16", "bf16": "bf16", "fp32": "fp32", "32": "fp32", "null": "fp32"}
"""Values of `mixed_precision` that train on a CPU."""


def value_of(text: str) -> Any:
    """A value as Hydra writes it: null, True, numbers, quoted or plain words, lists of those.

    >>> value_of("null"), value_of("true"), value_of("[core_attn,mlp]"), value_of("[1,0]"), value_of("1e-3")
    (None, True, ['core_attn', 'mlp'], [1, 0], 0.001)
    """
    word = text.strip()
    if word.lower() in ("null", "none", ""):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        if word.startswith("[") and word.endswith("]"):
            return [value_of(part) for part in word[1:-1].split(",") if part.strip()]
        return word


def read(overrides: Sequence[str], known: Mapping[str, Iterable[str]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Sections of values, and a sentence for every section that this runner reads past.

    `known` are the fields of each section it uses; `mixed_precision` stands alone and becomes `train.precision`. Raises
    UsageError with the nearest names for a field or section that neither this runner nor Bridge has.
    """
    sections: dict[str, dict[str, Any]] = {name: {} for name in known}
    unused: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        section, _, name = key.partition(".")
        if not equals:
            raise UsageError(f"{override!r} is no KEY=VALUE override", hint="for example train.train_iters=20")
        if key == "mixed_precision":
            if text not in PRECISIONS:
                raise UsageError(f"mixed_precision={text} does not train on a CPU", hint="bf16_mixed, or fp32")
            sections["train"]["precision"] = PRECISIONS[text]
        elif section in LEFT_TO_BRIDGE:
            unused[section] = LEFT_TO_BRIDGE[section]
        elif section not in known:
            raise UsageError(
                f"{override}: there is no section {section!r}",
                hint="one of: " + ", ".join(sorted({*known, *LEFT_TO_BRIDGE})),
            )
        elif name not in known[section]:
            near = difflib.get_close_matches(name, list(known[section]), n=3)
            hint = "nearest: " + ", ".join(f"{section}.{n}" for n in near) if near else ""
            raise UsageError(f"{override}: {section} has no field {name!r}", hint=hint)
        else:
            sections[section][name] = value_of(text)
    return sections, [f"{section}.*: this runner {what}" for section, what in sorted(unused.items())]

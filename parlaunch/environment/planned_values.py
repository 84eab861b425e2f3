"""A value of a key that a plan is made with, as one of its kind: what Hydra reads and Megatron would take."""

from __future__ import annotations

from typing import Any

from parlaunch.environment.override_grammar import value
from parlaunch.errors import UsageError
from parlaunch.model.sections import GRAPH
from parlaunch.model.stages import LAYOUT, PREFIX

_EXPECTED = {
    "size": "a whole number of 1 or more",
    "size or null": "a whole number of 1 or more, or null",
    "number": "a whole number",
    "number or null": "a whole number, or null",
    "bool": "True or False",
    "granularity": "full, selective or null",
    "method": "uniform, block or null",
    "names": "a list: [core_attn,mlp]",
    "share": "a share between 0 and 1",
    "factor or null": "a number, or null",
    "text": "a word",
    "text or null": "a word, or null",
    "layers": "a list with 0 or 1 for each layer, or how many layers go to one with experts",
}
_EXAMPLE_OF = {
    PREFIX + LAYOUT: "'Et*16|t*16L'", "model.cp_comm_type": "p2p", GRAPH: "transformer_engine", "model.cross_entropy_fusion_impl": "te",
    "model.transformer_impl": "local", "model.hybrid_layer_pattern": "'M*M-'",
    "model.activation_func": "squared_relu",
}  # fmt: skip
_EXAMPLE = {
    "bool": "True", "granularity": "selective", "method": "uniform", "names": "[core_attn]", "share": "0.5", "layers": "[0,1,1,1]",
    "factor or null": "1.0",
}  # fmt: skip


def read(key: str, text: str, kind: str) -> Any:
    """The value of a key, of one of the kinds above. Raises `UsageError`."""
    try:
        return _of_kind(kind, value(text))
    except (ValueError, KeyError, UsageError):
        raise UsageError(
            f"{key}={text}: {text!r} is not {_EXPECTED[kind]}",
            hint=f"for example {key}={_EXAMPLE_OF.get(key) or _EXAMPLE.get(kind, '2')}",
        ) from None


def _of_kind(kind: str, found: Any) -> Any:
    """The value as one of its kind. Raises ValueError."""
    if kind.endswith(" or null") or kind in ("granularity", "method", "names"):
        if found is None or (isinstance(found, str) and found.lower() in ("none", "")):
            return None
        kind = kind.removesuffix(" or null")
    whole = isinstance(found, int) and not isinstance(found, bool)
    match kind:
        case "size" | "number" if whole and found >= (kind == "size"):
            return found
        case "bool" if isinstance(found, int) and found in (0, 1):  # what Megatron asks is whether it is true
            return bool(found)
        case "share" | "factor" if (whole or isinstance(found, float)) and (kind == "factor" or 0 <= found <= 1):
            return float(found)
        case "names" if isinstance(found, list):
            return tuple(str(n) for n in found if str(n))
        case "layers" if whole and found >= 1:
            return found
        case "layers" if isinstance(found, list) and set(found) <= {0, 1}:
            return tuple(found)
        case "granularity" if found in ("full", "selective"):
            return found
        case "method" if found in ("uniform", "block"):
            return found
        case "text" if isinstance(found, str) and found:
            return found
    raise ValueError

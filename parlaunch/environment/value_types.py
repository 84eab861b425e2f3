"""Whether a user's value is what its field takes, as far as the field is of one simple type.

Hydra hands on what it reads, and dataclasses ask nothing: a word in place of a number stops the training when the number is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache

from parlaunch.data import load
from parlaunch.environment.override_grammar import value
from parlaunch.errors import UsageError

EXPECTED = {
    "bool": ("True or False", "True"),
    "int": ("a whole number", "8"),
    "float": ("a number", "0.1"),
    "list": ("a list", "[…]"),
}
"""What each type is called, and an example."""

INSIDE = "model.transformer."
"""Where newer models keep their sizes; Bridge hears them one level up too."""


def check_values(given: Mapping[str, str]) -> None:
    """Raise `UsageError` for the first value that its field does not take. Null is nobody's wrong type, and what Hydra fills in
    (`${…}`) is not known."""
    known = types()
    for key, text in given.items():
        kind = known.get(f"model.{key.removeprefix(INSIDE)}" if key.startswith(INSIDE) else key)
        if kind is None or text.strip().startswith("${") or _is(kind, found := value(text)):
            continue
        if kind in EXPECTED:
            what, example = EXPECTED[kind]
            word = f"[{text}]" if kind == "list" else example
            raise UsageError(f"{key}={text}: {text!r} is not {what}", hint=f"for example {key}={word}")
        words = kind.split("|")
        near = difflib.get_close_matches(str(found), words, n=1)
        hint = f"nearest: {near[0]}; one of: {', '.join(words)}" if near else f"one of: {', '.join(words)}"
        raise UsageError(f"{key}={text}: it has no value {text!r}", hint=hint)


@cache
def types() -> Mapping[str, str]:
    """Key to the type that its field has in every listed version: bool, int, float, list, or words with | between."""
    return {
        f"{section}.{name}": kind
        for kind, sections in load("bridge_fields.json")["values"].items()
        for section, names in sections.items()
        for name in names.split()
    }


def _is(kind: str, found: object) -> bool:
    if found is None:
        return True
    match kind:
        case "bool":
            return isinstance(found, int)  # some fields of that type hold numbers, as `train.manual_gc_eval` does
        case "int":
            return isinstance(found, int | float) and float(found).is_integer()  # True is one
        case "float":
            return isinstance(found, int | float) or str(found).lower().lstrip("+-") in ("inf", "nan")
        case "list":
            return isinstance(found, list)
    return str(found).rpartition(".")[2] in kind.split("|")

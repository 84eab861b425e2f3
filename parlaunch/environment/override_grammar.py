"""KEY=VALUE as Hydra writes and reads it: the part of its grammar that a Megatron Bridge configuration needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.errors import UsageError

LONGEST = 20
"""Digits of a number: seeds of 64 bits have as many."""

_KEY = re.compile(r"(?:\+\+|\+)?([A-Za-z_][\w./@-]*)")


def pairs_of(words: Sequence[str]) -> dict[str, str]:
    """Key to text, the `+` of additions taken away. A repeated key: the last one counts, as in Hydra. A deletion (`~key`)
    takes back what was said of a key or a section before it: Megatron Bridge then leaves it as the recipe has it.

    Raises `UsageError` for a word that is no KEY=VALUE.
    """
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("~"):
            found = {key: text for key, text in found.items() if not within(key, deleted(word))}
            continue
        key, equals, text = word.partition("=")
        named = _KEY.fullmatch(key)
        if not equals or named is None:
            near = (
                ""
                if equals
                else "; a command stands first (parlaunch plan), options start with --, what follows `--` goes to the runner"
            )
            raise UsageError(
                f"{word!r} is no KEY=VALUE override", hint=f"for example model.tensor_model_parallel_size=2{near}"
            )
        found[named[1]] = text
    return found


def deleted(word: str) -> str:
    """The key or section of a deletion: `~key`, or `~key=VALUE`."""
    return word[1:].partition("=")[0]


def within(key: str, section: str) -> bool:
    """Whether a key is this one, or of this section."""
    return key == section or key.startswith(f"{section}.")


def value(text: str) -> Any:
    """What a value's text means: null, a truth value, a number, a list, a mapping, else the text itself.

    >>> value("null"), value("True"), value("1_000"), value("1e-4"), value("[core_attn,mlp]"), value("'a b'")
    (None, True, 1000, 0.0001, ['core_attn', 'mlp'], 'a b')

    Raises `UsageError` for a text that Hydra cannot read: an open quote or bracket.
    """
    word = text.strip()
    if word[:1] in "'\"" and word[:1]:
        if len(word) < 2 or word[-1] != word[0]:
            raise UsageError(f"{text!r} has a quote that does not end", hint="quote it once more for the shell")
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    if word[:1] in ("[", "{"):
        if word[-1] != {"[": "]", "{": "}"}[word[0]]:
            raise UsageError(f"{text!r} has a bracket that does not end", hint="for example [core_attn,mlp]")
        parts = _parts(word[1:-1])
        if word[0] == "[":
            return [value(part) for part in parts]
        return {k.strip(): value(v) for k, _, v in (part.partition(":") for part in parts)}
    lower = word.lower()
    if lower in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[lower]
    if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", word):
        if (digits := sum(c.isdigit() for c in word)) > LONGEST:
            raise UsageError(
                f"{word[:20]}… is a number of {digits} digits", hint="write one that something is counted in"
            )
        return int(word)
    if re.fullmatch(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word):
        return float(word)
    return word


def _parts(text: str) -> list[str]:
    """The elements of a list or mapping, split at the commas of its own level."""
    parts, depth, current, quote, escaped = [], 0, "", "", False
    for letter in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [*parts, current] if current.strip() or parts else []


def hydra(value: object) -> str:
    """A value as Hydra's override grammar writes it.

    >>> hydra(None), hydra(True), hydra(("core_attn", "mlp")), hydra(8), hydra("Et*4|t*4L")
    ('null', 'True', '[core_attn,mlp]', '8', 'Et*4|t*4L')
    """
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{hydra(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(hydra(v) for v in value) + "]"
    text = str(value)
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_/.+*|%@?$:-]+", text):
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return text

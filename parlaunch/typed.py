"""Whether values that come from files have the types which their classes declare."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

MOST = 2**64
"""No number of ours is as large; NaN is not below it either."""


def types(kind: Any) -> dict[str, Any]:
    """The fields of a class with their types."""
    return _types(kind)


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def fits(wanted: Any) -> Callable[[Any], bool]:
    """A test for values of an annotated type; a whole number will do where any number is wanted."""
    if wanted is Any:
        return lambda _: True
    origin, given = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is tuple and given[-1] is Ellipsis:
        each = fits(given[0])
        return lambda value: isinstance(value, tuple) and all(map(each, value))
    inside = tuple(map(fits, given))
    if origin is tuple:
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(inside)
            and all(good(v) for good, v in zip(inside, value, strict=True))
        )
    if origin is Mapping:
        return lambda value: isinstance(value, Mapping) and all(inside[0](k) and inside[1](v) for k, v in value.items())
    if inside:
        return lambda value: any(good(value) for good in inside)
    if wanted in (int, float):
        return lambda value: isinstance(value, (int, wanted)) and not isinstance(value, bool) and -MOST < value < MOST
    return lambda value: isinstance(value, wanted)


def misfit(value: Any, without: tuple[str, ...] = ()) -> str | None:
    """The first value in a dataclass, or in those that it holds, that is none of its declared type, as the end of a sentence.

    Fields that `without` names are not looked at.
    """
    if isinstance(value, tuple):
        return next(filter(None, map(misfit, value)), None)
    if not is_dataclass(value):
        return None
    kinds = types(type(value))
    for field in fields(value):
        if field.name not in without:
            inner = getattr(value, field.name)
            if not fits(kinds[field.name])(inner):
                return f"{type(value).__name__}'s {field.name} cannot be {inner!r:.60}"
            if (found := misfit(inner)) is not None:
                return found
    return None

"""Values from files are held to the types that their classes declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from parlaunch.typed import misfit


@dataclass(frozen=True)
class Inner:
    number: float = 1
    pair: tuple[str, int] = ("a", 1)


@dataclass(frozen=True)
class Outer:
    count: int = 1
    maybe: int | None = None
    flag: bool = True
    words: tuple[str, ...] = ()
    rates: Mapping[str, float] | None = None
    anything: Any = None
    one: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"maybe": 3}, {"words": ("a", "b")}, {"rates": {"a": 1}}, {"anything": object()},
        {"one": Inner(2), "many": (Inner(), Inner(1.5))}, {"count": 2**64 - 1},
    ],
)  # fmt: skip
def test_what_is_declared_fits(changes: dict[str, Any]) -> None:
    assert misfit(replace(Outer(), **changes)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 1.5}, "Outer's count cannot be 1.5"),
        ({"count": True}, "count"),
        ({"count": 2**64}, "count"),
        ({"maybe": "3"}, "maybe"),
        ({"flag": 1}, "flag"),
        ({"words": ["a"]}, "words"),
        ({"words": ("a", 1)}, "words"),
        ({"rates": {"a": "fast"}}, "rates"),
        ({"rates": ()}, "rates"),
        ({"one": Inner(float("nan"))}, "Inner's number cannot be nan"),
        ({"many": (Inner(), Inner(pair=("a",)))}, "Inner's pair"),  # type: ignore[arg-type]
        ({"many": (Inner(), 1)}, "many"),
    ],
)
def test_what_is_not_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in (misfit(replace(Outer(), **changes)) or "")


def test_fields_that_another_has_looked_at_are_skipped() -> None:
    assert misfit(Outer(count="1"), without=("count",)) is None  # type: ignore[arg-type]

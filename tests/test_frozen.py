"""Values behave as Python's own frozen dataclasses do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from parlaunch.frozen import HashedOnce, dataclass, replaced


@dataclass(frozen=True, slots=True)
class Ours:
    """Every kind of field."""

    size: int
    name: str = "a"
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    note: str = dataclasses.field(default="", compare=False, repr=False)
    last: int = dataclasses.field(default=7, kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Pythons:
    """The same, made by Python."""

    size: int
    name: str = "a"
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    note: str = dataclasses.field(default="", compare=False, repr=False)
    last: int = dataclasses.field(default=7, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Open:
    """Without slots, and with a check of its own."""

    size: int = 1
    seen: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen.append(self.size)


GIVEN: list[dict[str, Any]] = [
    {"size": 1}, {"size": 1, "note": "x"}, {"size": 2, "name": "b"}, {"size": 1, "rates": {"x": 1.0}}, {"size": 1, "last": 8},
]  # fmt: skip


@pytest.mark.parametrize("one", GIVEN)
@pytest.mark.parametrize("other", GIVEN)
def test_equality_hash_and_words_are_those_of_python(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (Ours(**one) == Ours(**other)) == (Pythons(**one) == Pythons(**other))
    assert (hash(Ours(**one)) == hash(Ours(**other))) == (hash(Pythons(**one)) == hash(Pythons(**other)))
    assert repr(Ours(**one)) == repr(Pythons(**one)).replace("Pythons", "Ours")
    pythons: Any = Pythons(**one)
    assert Ours(**one) != pythons


def test_the_signature_is_that_of_python() -> None:
    ours, pythons = inspect.signature(Ours), inspect.signature(Pythons)
    assert [(p.name, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.kind) for p in pythons.parameters.values()
    ]
    with pytest.raises(TypeError, match="size"):
        Ours()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Ours(1, "a", {}, "", 8)  # type: ignore[call-arg]


def fresh(*, often: bool) -> Any:
    """A class like `Ours`, of which no value was made yet, or so many that it has an `__init__` of its own."""

    @dataclass(frozen=True, slots=True)
    class Fresh:
        size: int
        name: str = "a"
        rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
        last: int = dataclasses.field(default=7, kw_only=True)

    for number in range(100 if often else 0):
        assert Fresh(number).size == number
    return Fresh


@pytest.mark.parametrize("often", [False, True])
def test_few_values_are_made_as_many_are(often: bool) -> None:
    made = fresh(often=often)
    value = made(1, "b", last=8)
    assert dataclasses.astuple(value) == (1, "b", {}, 8)
    assert value == made(size=1, name="b", rates={}, last=8) != made(1, "b")
    assert value.rates is not made(1).rates


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize(
    ("places", "names", "said"),
    [
        ((), {}, "missing 1 required positional argument: 'size'"),
        ((1, "b", {}, 8), {}, "takes from 2 to 4 positional arguments but 5"),
        ((1,), {"size": 1}, "multiple values for argument 'size'"),
        ((1,), {"nam": "b"}, "unexpected keyword argument 'nam'"),
        ((), {"nam": "b"}, "unexpected keyword argument 'nam'"),
    ],
)
def test_what_does_not_fit_the_fields_is_refused_as_python_does(
    often: bool, places: tuple[Any, ...], names: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        fresh(often=often)(*places, **names)


@pytest.mark.parametrize("value", [Ours(1, rates={"x": 2.0}, note="n"), Open(size=3)])
def test_a_value_stays_what_it_is(value: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.size = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.size
    assert copy.deepcopy(value) == value == pickle.loads(pickle.dumps(value))
    assert dataclasses.replace(value, size=9).size == 9
    assert dataclasses.asdict(value)["size"] == value.size


def test_defaults_are_made_anew_and_checks_are_called() -> None:
    assert Ours(1).rates is not Ours(1).rates
    assert Open(size=4).seen == [4]
    assert not hasattr(Ours(1), "__dict__")


def test_what_changes_is_no_value() -> None:
    with pytest.raises(TypeError, match="frozen"):
        dataclass(slots=True)


@dataclass(frozen=True, slots=True)
class Key(HashedOnce):
    """Its hash is kept."""

    parts: tuple[object, ...]
    name: str = "a"


class Counted:
    """Counts how often it was hashed."""

    asked = 0

    def __hash__(self) -> int:
        self.asked += 1
        return 7


def test_a_hash_that_is_kept_is_computed_once_and_is_not_part_of_the_value() -> None:
    part = Counted()
    key = Key((part,))
    assert hash(key) == hash(key) == hash(Key((part,)))
    assert part.asked == 2  # once for each
    assert key == Key((part,))
    assert [f.name for f in dataclasses.fields(key)] == ["parts", "name"]
    assert hash(pickle.loads(pickle.dumps(Key((1,))))) == hash(Key((1,)))


def test_a_value_with_another_field_is_what_python_makes_of_it() -> None:
    key = Key((1,))
    other = replaced(key, name="b")
    assert hash(key) != hash(other)
    assert other == dataclasses.replace(key, name="b") == Key((1,), "b")
    assert replaced(Ours(1, note="n"), size=2) == dataclasses.replace(Ours(1, note="n"), size=2)
    with pytest.raises(TypeError, match="nam"):
        replaced(key, nam="b")

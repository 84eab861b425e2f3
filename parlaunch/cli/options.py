"""How an option is described, and how a described dataclass becomes the parameters of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from inspect import Parameter, Signature
from math import inf
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.units import MOST

T = TypeVar("T")
REPEATED = tuple[str, ...]
"""The type of an option that may be given several times; typer knows lists only."""
_LISTS: Mapping[Any, Any] = {REPEATED: list[str] | None, tuple[float, ...]: list[float] | None}


def option(*names: str, panel: str, help: str, **more: Any) -> Any:
    """An option with its names, the panel of the help page it stands in, its one line there, and its variable."""
    return typer.Option(
        *names, help=help, rich_help_panel=panel, envvar=variable_of(names[0]), show_envvar=False, **more
    )


def variable_of(name: str) -> str:
    """The variable that stands in for an option.

    >>> variable_of("--evidence/--no-evidence")
    'PARLAUNCH_EVIDENCE'
    """
    return "PARLAUNCH_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()


def _can_be(number: float) -> bool:
    """Whether an option can have this number: not so nan, infinities and what overflows in the first product."""
    return -MOST < number < MOST


@dataclass(frozen=True, slots=True)
class Described:
    """One annotated field of a dataclass of options."""

    field: str
    kind: Any  # the type of its values, without None
    default: Any
    info: Any  # what typer knows of it

    @property
    def name(self) -> str:
        """As it is typed: --tp, --evidence."""
        return self._written.partition("/")[0]

    @property
    def _written(self) -> str:
        # The first name stands where typer expects a default outside of `Annotated`.
        names = (self.info.default, *(self.info.param_decls or ()))
        return next(str(n) for n in names if str(n).startswith("--"))

    @property
    def key(self) -> str:
        """As a file spells it."""
        return self.name.removeprefix("--")

    @property
    def help(self) -> str:
        return str(self.info.help)

    @property
    def what(self) -> str:
        """Its values in a word."""
        word = {int: "whole number", float: "number", bool: "true or false", REPEATED: "list of words"}.get(
            self.kind, "text"
        )
        least, most = self.info.min, self.info.max
        limits = [f"{least:g} or more"] if least is not None else []
        limits += [f"{most:g} or less"] if most is not None else []
        return ", ".join([word, *limits])

    def spelled(self, value: Any) -> list[str]:
        """The words that give it this value on a command line."""
        if isinstance(value, tuple):
            return [f"{self.name}={word}" for word in value]
        if isinstance(value, bool):
            on, _, off = self._written.partition("/")
            return [on if value else off or f"{on}=false"]
        return [self.name, str(value)]

    def read(self, given: Any) -> Any:
        """The value of a file as the field's type; None when it is none."""
        kind = self.kind
        if kind == REPEATED:
            words = [given] if isinstance(given, str) else given
            return list(words) if isinstance(words, list) and all(isinstance(w, str) for w in words) else None
        if kind is bool or isinstance(given, bool):
            return given if kind is bool and isinstance(given, bool) else None
        if kind in (int, float):
            number = isinstance(given, int) or (kind is float and isinstance(given, float))
            low = -inf if self.info.min is None else self.info.min
            high = inf if self.info.max is None else self.info.max
            return kind(given) if number and low <= given <= high and _can_be(given) else None
        if kind is str and isinstance(given, int | float):
            return str(given)
        return kind(given) if isinstance(given, str) and given else None


@cache
def _hints(source: Any) -> dict[str, Any]:
    """The annotations of a dataclass; Python compiles each of them anew when asked."""
    return get_type_hints(source, include_extras=True)


def described(source: type) -> Iterator[Described]:
    """The options among the annotated fields of a dataclass."""
    hints = _hints(source)
    for f in fields(source):
        kind, *how = get_args(hints[f.name]) if hasattr(hints[f.name], "__metadata__") else (None,)
        if how and isinstance(how[0], OptionInfo):
            plain = next((k for k in get_args(kind) if k is not NoneType), kind) if kind != REPEATED else kind
            yield Described(f.name, plain, f.default, how[0])


def words(*known: str) -> Callable[[str], list[str]]:
    """A completer for an option with few values."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def _recipes() -> tuple[str, ...]:
    from parlaunch.model.catalog import recipe_names

    return recipe_names()


def _gpus() -> tuple[str, ...]:
    from parlaunch.hardware.datasheet import product_names

    return tuple(name.replace(" ", "-") for name in product_names())


def _precisions() -> tuple[str, ...]:
    from parlaunch.model.recipe import PRECISIONS

    return PRECISIONS


def _presets() -> tuple[str, ...]:
    from parlaunch.hardware.datasheet import preset_names

    return preset_names()


def recompute_words() -> tuple[str, ...]:
    """What `--recompute` takes, beside lists of modules."""
    from parlaunch.rules.working import MODULES

    return ("none", "full", "selective", *MODULES)


def _objectives() -> tuple[str, ...]:
    from parlaunch.planning.objective import OBJECTIVES

    return tuple(OBJECTIVES)


def _schemas() -> tuple[str, ...]:
    from parlaunch.data import schemas

    return schemas()


def _switches() -> tuple[str, ...]:
    from parlaunch.switches.table import SWITCHES

    return ("auto", "recipe", *(f"{s.name}={value}" for s in SWITCHES for value in s.values))


def _releases() -> tuple[str, ...]:
    from parlaunch.hardware.installed import releases

    return tuple(r.source for r in releases())


NAMES: Mapping[str, Callable[[], tuple[str, ...]]] = {
    "recipe": _recipes, "gpu": _gpus, "precision": _precisions, "preset": _presets, "recompute": recompute_words,
    "objective": _objectives, "schema": _schemas, "switches": _switches, "software": _releases,
}  # fmt: skip


def names_of(kind: str) -> Callable[[str], list[str]]:
    """A completer that loads the names only when a shell asks."""
    return lambda incomplete: [name for name in NAMES[kind]() if name.startswith(incomplete)]


def takes(*described: type, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, written as `(ctx, **given)`, the annotated fields of these dataclasses for parameters."""
    parameters = [Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for source in described:
        hints = _hints(source)
        for f in fields(source):
            kind, *how = get_args(hints[f.name]) if hasattr(hints[f.name], "__metadata__") else (None,)
            if not how or f.name in without:
                continue
            default = f.default
            if kind in _LISTS:
                kind, default = _LISTS[kind], None
            parameters.append(
                Parameter(f.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, how[0]])
            )

    def give(command: Callable[..., None]) -> Callable[..., None]:
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return give


def _check_finite(source: type, values: Mapping[str, Any]) -> None:
    """Raise `UsageError` for the first number that is none: what is computed with it would be wrong in silence."""
    for o in described(source):
        found = values.get(o.field)
        for number in found if isinstance(found, tuple) else (found,):
            if isinstance(number, int | float) and not _can_be(number):
                raise UsageError(f"{o.name} {number} is no number to plan with", hint="write a number, or leave it out")


def picked(described: type[T], given: Mapping[str, Any], **more: Any) -> T:
    """The dataclass from what typer hands over."""
    names = {f.name for f in fields(described)}  # type: ignore[arg-type]
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n in names}
    source: Any = described
    _check_finite(described, values)
    repeated = {n for n, kind in _hints(source).items() if (get_args(kind) or (None,))[0] in _LISTS}
    return described(**{n: v for n, v in values.items() if not (n in repeated and v is None)}, **more)

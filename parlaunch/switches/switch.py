"""What a switch is: its values, what sets them, where it may be on; and the place that it is asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from parlaunch.frozen import dataclass
from parlaunch.hardware.installed import Installed, Need
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import HANDED, OVERLAP, placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a plan will run: the machine's rates and the software on it."""

    rates: Rates
    installed: Installed
    failed: Mapping[tuple[str, str], str] = field(
        default_factory=dict, hash=False
    )  # name and value, and the day it failed here


Problem = Callable[[Layout, Recipe, Place], str | None]
"""Why the value that the recipe has cannot be on in this layout at this place; None: it can."""


def no_problem(_x: Layout, _r: Recipe, _p: Place) -> str | None:
    """Nothing can be wrong with it."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One row."""

    name: str  # as --switches, screen and JSON have it
    what: str  # in a few words, for people
    values: tuple[str, ...]  # that it takes; for people, where lists of modules are taken as well
    read: Callable[[Features], str | None]  # its value; None: the estimates do not know it
    put: Callable[[Features, str], Features]
    keys: Callable[[Recipe, str], Mapping[str, object]]  # what Megatron Bridge hears; the recipe has the value already
    user_keys: tuple[str, ...]  # a user's KEY=VALUE with one of these fixes it
    numerics: str  # what it does to the numbers
    source: str
    # What the planner may take, beside the recipe's own; None: it never chooses.
    choices: Callable[[Recipe, Place], tuple[str, ...]] | None = None
    # Why it leaves all other values to the user; None: there is nothing to say of it.
    withheld: Callable[[Recipe, Place], str | None] = lambda _r, _p: None
    problem: Problem = no_problem
    # Share of the iteration that a value has to gain before it is taken: how wrong the gain is on measured pairs, and what
    # may go wrong beside (docs/switches.md). By value, "" for all others.
    error: Mapping[str, float]
    error_near: float | None = None  # the same where experts stay inside an NVLink domain; None: no other
    once: bool = False  # what it gains is a part of the iteration, and of no micro batch
    known_off: str = "off"  # what `read` gives where nothing is on
    # Why a value that was asked for, and that the recipe does not show, cannot be in this layout.
    stops: Callable[[Layout, Recipe, str], str | None] = lambda _x, _r, _value: None
    pin: str | None = None  # the field of `Wishes` that it is a pin of: the layout has it then
    takes: Callable[[str], str | None] | None = None  # the value as it is written; None: it is none
    on_cpu: Callable[[str], bool] = lambda value: value in ("off", "0")  # whether gloo ranks can be told this value

    def accepts(self, value: str) -> str | None:
        """The value in its written form; None for what the switch does not take."""
        if self.takes is not None:
            return self.takes(value)
        return value if value in self.values else None

    def own_keys(self) -> frozenset[str]:
        """The keys that fix it, wherever a recipe's configuration hears them."""
        handed = (
            f"{place}.{field}"
            for section, _, field in (key.partition(".") for key in self.user_keys)
            if section == OVERLAP
            for place in HANDED.get(field, ())
        )
        return frozenset((*self.user_keys, *handed))

    def said(self, recipe: Recipe, given: Mapping[str, object]) -> str | None:
        """The value that a user's keys amount to, which the recipe has already as far as the estimates know it; None: to none."""
        mine = self.own_keys() & given.keys()
        if not mine:
            return None
        if (known := self.read(recipe.features)) is not None:
            return known
        numbers = (str(given[key]) for key in mine if self.takes is not None)
        for value in (*self.values, *(n for n in numbers if self.accepts(n) == n)):
            keys = placed(self.keys(recipe, value), recipe)
            if keys.keys() & mine and all(keys[key] == given[key] for key in keys.keys() & mine):
                return value
        return None

    def beside(self, recipe: Recipe, given: Mapping[str, object]) -> dict[str, object]:
        """What has to be said beside a user's keys that fix it, or Megatron refuses them."""
        value = self.said(recipe, given)
        keys = {} if value is None else placed(self.keys(recipe, value), recipe)
        return {key: v for key, v in keys.items() if key not in self.own_keys()}

    def refused(self, layout: Layout, recipe: Recipe, place: Place) -> str | None:
        """Why the value that the recipe has cannot be on in this layout at this place: Megatron, what is here, or that it failed."""
        value = self.read(recipe.features)
        if value is not None and (day := place.failed.get((self.name, value))) is not None:
            return f"{self.name}={value} failed here on {day}"
        return self.problem(layout, recipe, place)

    @property
    def chosen(self) -> bool:
        """Whether the planner chooses it."""
        return self.choices is not None

    def margin(self, value: str, *, near: bool) -> float:
        """What a value has to gain, as a share of the iteration. `near`: experts stay inside an NVLink domain."""
        if near and self.error_near is not None:
            return self.error_near
        return self.error.get(value, self.error[""])

    def unasked(self, value: str, recipe: Recipe, place: Place) -> str | None:
        """Why the planner does not take the value by itself, however much it gains; None: it may."""
        offered = self.choices(recipe, place) if self.choices else ()
        if value in (self.read(recipe.features), *offered):
            return None
        if self.choices is None:
            return self.withheld(recipe, place) or "it is set when asked for, never chosen"
        return self.withheld(recipe, place) or f"of {self.name} parlaunch chooses among {', '.join(offered)}"


def lacks(p: Place, need: Need) -> str | None:
    """Why a package is too old for it."""
    return (
        f"{need.what}, and this is {p.installed.text(need.package)}"
        if p.installed.before(need.package, need.version)
        else None
    )

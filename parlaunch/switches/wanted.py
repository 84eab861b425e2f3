"""`--switches`: auto, recipe, or a list of NAME=VALUE; beside either word as well: `auto,graphs=off`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.switches.table import SWITCHES, switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which switches are ours to choose, and what the user fixed."""

    auto: bool = False  # the others are ours to choose; else they stay as the recipe has them
    fixed: tuple[tuple[str, str], ...] = ()  # name, value: by option
    spoken_for: tuple[
        str, ...
    ] = ()  # names of switches that the user's KEY=VALUE set: the recipe has their values already
    given: tuple[tuple[str, object], ...] = ()  # those KEY=VALUE

    def open(self, name: str) -> bool:
        """Whether the planner chooses this one."""
        return self.auto and name not in self.spoken_for and name not in dict(self.fixed)

    def pins(self) -> dict[str, str | bool]:
        """What of it is a pin of the layout, by the names of `Wishes`."""
        rows = ((switch(name), value) for name, value in self.fixed)
        return {
            row.pin: {"on": True, "off": False}.get(value, value) for row, value in rows if row is not None and row.pin
        }


AS_RECIPE = Wanted()


def wanted_from(text: str, given: Mapping[str, object] | None = None) -> Wanted:
    """What was asked for. `given` are the user's KEY=VALUE: each is a pin of its switch.

    Raises `UsageError` naming the part that is no switch, or whose value it does not take.
    """
    auto = True
    fixed: dict[str, str] = {}
    for at, part in enumerate(p.strip() for p in text.split(",")):
        if at == 0 and part in ("auto", "recipe"):
            auto = part == "auto"
            continue
        name, equals, value = part.partition("=")
        known = switch(name)
        if known is not None and not equals:
            raise UsageError(
                f"--switches {text!r}: {part!r} has no value", hint=f"{part}= and one of: {', '.join(known.values)}"
            )
        if known is None:
            near = difflib.get_close_matches(name, [s.name for s in SWITCHES], n=3, cutoff=0.5)
            raise UsageError(
                f"--switches {text!r}: {part!r} is no switch",
                hint=f"{'nearest' if near else 'one of'}: {', '.join(near or [s.name for s in SWITCHES])}; or auto, recipe",
            )
        taken = known.accepts(value)
        if taken is None:
            raise UsageError(
                f"--switches {part}: {known.name} does not take {value!r}", hint=f"one of: {', '.join(known.values)}"
            )
        if name in fixed and fixed[name] != taken:
            raise UsageError(f"--switches gives {name} twice: {fixed[name]} and {taken}", hint="keep one of the two")
        fixed[name] = taken
    given = given or {}
    spoken = [s for s in SWITCHES if s.own_keys() & given.keys()]
    spoken_for = tuple(s.name for s in spoken)
    theirs = frozenset[str]().union(*(s.own_keys() for s in spoken))
    if both := [n for n in fixed if n in spoken_for]:
        raise UsageError(f"--switches {both[0]}=… and an override speak of the same switch", hint="keep one of the two")
    return Wanted(
        auto=auto, fixed=tuple(fixed.items()), spoken_for=spoken_for,
        given=tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in given.items() if key in theirs),
    )  # fmt: skip

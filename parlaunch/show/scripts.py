"""What scripts of all kinds are made of: comments, exports with their reasons, and words that a shell leaves whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from parlaunch.planning.plan import Variable


def exports(variables: Iterable[Variable]) -> list[str]:
    """`export` lines, each with its reason. What is set where they run stands; what was set here is only mentioned."""
    lines = []
    for v in variables:
        if v.kept:
            lines += comments(
                f"{v.name}={shlex.quote(v.value)} is yours and stays" + (f": {v.warning}" if v.warning else "")
            )
        else:
            lines += [*comments(v.reason), _unless_set(v.name, v.value)]
    return lines


def _unless_set(name: str, value: str) -> str:
    """The line of a shell, any shell, that exports a variable where it is not set."""
    if re.fullmatch(r"[\w./:,=@%+^-]*", value):
        return f'export {name}="${{{name}-{value}}}"'
    return f'[ -n "${{{name}+set}}" ] || export {name}={shlex.quote(value)}'


def quoted(argv: Sequence[str]) -> str:
    """The command with shell quotes; words that stand for a variable of each node (`$NAME…`) stay open."""
    return " ".join(f'"{word}"' if word.startswith("${") else shlex.quote(word) for word in argv)


def comments(text: str) -> list[str]:
    """The text as comment lines, whatever newlines are in it."""
    return [f"# {line}" for line in text.splitlines() or [""]]

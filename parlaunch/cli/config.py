"""What is configured once: `parlaunch.toml` here, the user's, the site's, and a variable for every option.

The command line stands above the variables, the variables above the files, the nearer file above the farther one.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from parlaunch.cli.files import regular
from parlaunch.cli.options import Described, described, variable_of
from parlaunch.cli.request import Request, Trial
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass

NAME = "parlaunch.toml"
SITE = Path("/etc/parlaunch") / NAME
OURS = ("PARLAUNCH_CPUS", "PARLAUNCH_SYSROOT", "PARLAUNCH_SECRET", "PARLAUNCH_SECRET_FILE")
"""Variables of ours that are no option."""


@dataclass(frozen=True, slots=True)
class Configured:
    """One value with where it came from: a file, a variable, or `default`."""

    value: Any
    origin: str


def files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where configuration is looked for, the nearest first."""
    from parlaunch_launch.home import home

    own = environ.get("XDG_CONFIG_HOME") or home(environ) / ".config"
    return Path(NAME), Path(own) / "parlaunch" / NAME, SITE


@cache
def options() -> Mapping[str, Described]:
    """Every option that may be configured, by its name in a file."""
    return {d.key: d for source in (Trial, Request) for d in described(source)}


def from_files(paths: Sequence[Path]) -> dict[str, Configured]:
    """The keys of all files that are there, each from the nearest one. Raises `UsageError` naming file and key."""
    found: dict[str, Configured] = {}
    for path in paths:
        for key, value in _read(path).items():
            found.setdefault(key, Configured(value, str(path)))
    return found


def _read(path: Path) -> dict[str, Any]:
    regular(path, "the configuration")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", hint="mend it, or move it away") from error
    import tomllib

    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no TOMLDecodeError
        raise UsageError(
            f"{path} is not TOML: {error}", hint='for example: price = 2.50, or partition = "h100"'
        ) from error
    return {key: value for name, given in data.items() for key, value in [_checked(path, name, given)]}


def _checked(path: Path, name: str, given: Any) -> tuple[str, Any]:
    key = name.replace("_", "-")
    option = options().get(key)
    if option is None:
        near = difflib.get_close_matches(key, options(), n=3, cutoff=0.5)
        raise UsageError(
            f"{path}: unknown key {name!r}",
            hint=f"nearest: {', '.join(near)}"
            if near
            else "keys are the options of `parlaunch plan`, without the dashes",
        )
    value = option.read(given)
    if value is None:
        raise UsageError(f"{path}: {name} = {given!r} is no {option.what}", hint=f"{option.name} {option.help}")
    if isinstance(value, Path) and not value.is_absolute():
        value = path.parent / os.path.expanduser(value)  # beside the file that names it; a `~` of nobody's stays
    return key, value


def defaults(configured: Mapping[str, Configured]) -> dict[str, Any]:
    """The values of files by parameter, as a command takes them for its defaults."""
    return {options()[key].field: c.value for key, c in configured.items()}


def effective(environ: Mapping[str, str], configured: Mapping[str, Configured]) -> dict[str, Configured]:
    """Every option with its value where the command line says nothing, and where that came from."""
    made = {}
    for key, option in options().items():
        variable = variable_of(option.name)
        if environ.get(variable):
            made[key] = Configured(environ[variable], variable)
        else:
            made[key] = configured.get(key) or Configured(option.default, "default")
    return made


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence on each PARLAUNCH_ variable that is nobody's."""
    known = {variable_of(option.name) for option in options().values()} | set(OURS)
    for name in sorted(environ):
        if name.startswith("PARLAUNCH_") and name not in known and not _of_another_command(name):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                yield f"{name} is no variable of ours; did you mean {near[0]}?"


def _of_another_command(name: str) -> bool:
    """Whether the variable belongs to a command that is not configured by files: PARLAUNCH_RECIPES_TASK."""
    from parlaunch.cli import COMMANDS

    return name.removeprefix("PARLAUNCH_").partition("_")[0].lower() in COMMANDS


def show(*, every: bool, format: str) -> None:
    """`parlaunch config`: print what is configured, every value with where it came from."""
    paths = files(os.environ)
    values = effective(os.environ, from_files(paths))
    chosen = {key: c for key, c in values.items() if every or c.origin != "default"}
    if format == "json":
        rows = {key: {"value": _plain(c.value), "origin": c.origin} for key, c in chosen.items()}
        there = [{"path": str(path), "exists": os.path.isfile(path)} for path in paths]
        print(json.dumps({"schema": "parlaunch.config/1", "files": there, "values": rows}, indent=2))
        return
    rows_ = [(key, str(_plain(c.value)), c.origin) for key, c in chosen.items()]
    widths = [max(map(len, column)) for column in zip(*rows_, strict=True)] if rows_ else []
    for row in rows_:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if not rows_:
        print("nothing is configured")
    print("\nlooked for, the first one first:")
    for path in paths:
        print(f"  {path}{'' if os.path.isfile(path) else '  (not there)'}")
    for sentence in misspelt(os.environ):
        print(f"mind: {sentence}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value

"""Files that options name: regular ones of bounded size, and what is in them cannot steer a terminal or a script."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from parlaunch.errors import UsageError
from parlaunch.show.plain import clean

MOST = 64 * 2**20
"""Bytes: twenty times the plan of a thousand nodes."""

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


def there(path: Path | str) -> bool:
    """Whether a file or folder is there, or may be behind a folder that is closed to us: whoever reads it says that."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def regular(path: Path, option: str) -> None:
    """Raise `UsageError` for what is no regular file: a pipe is waited on for ever, and some devices never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever reads it says what is wrong
    for is_kind, words in _KINDS:
        if is_kind(mode):
            raise UsageError(f"{option} {path} is {words}, not a file", hint="save it to a file first")


def read_text(path: Path, option: str, *, hint: str) -> str:
    """The text of a file. Raises `UsageError` naming option and file."""
    regular(path, option)
    try:
        # Not blocking: what is a pipe by now is not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(MOST + 1)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{option} {str(path)!r}: {error}", hint=hint) from error
    if len(content) > MOST:
        raise UsageError(f"{option} {path} has more than {MOST >> 20} MiB", hint=hint)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is no text: {error.reason} at byte {error.start}", hint=hint) from error


def read_json(path: Path, option: str, *, hint: str) -> Any:
    """What a JSON file holds, names without control characters, numbers finite. Raises `UsageError` naming option and file."""
    text = read_text(path, option, hint=hint)
    try:
        return clean(json.loads(text, parse_constant=_not_finite, parse_float=_finite))
    except RecursionError as error:
        raise UsageError(f"{option} {path} is nested too deeply", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{option} {path} is not JSON: {error}", hint=hint) from error


def _not_finite(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number

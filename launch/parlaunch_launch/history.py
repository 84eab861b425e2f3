"""Runs measured on this cluster, one JSON object a line, in the user's state folder.

Rows are those of `parlaunch.check.remembered.row`; planning, `parlaunch validate` and `parlaunch calibrate` read them. Several
processes may write at once, and a line that was cut off costs no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 16 * 2**20
"""Size from which the oldest rows go: some two thousand runs."""


def path(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/parlaunch/history.jsonl`, by default under ~/.local/state."""
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "/tmp"), ".local", "state"))
    return Path(home, "parlaunch", "history.jsonl")


def append(row: Mapping[str, Any], file: Path, *, most_bytes: int = MOST_BYTES) -> str | None:
    """Add one row. None when it is written, else why it could not be: a full or read-only home spoils no measurement."""
    line = json.dumps(dict(row)).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            with file.open("ab+") as out:
                end = out.seek(0, os.SEEK_END)
                if end:
                    out.seek(end - 1)
                    if out.read(1) != b"\n":  # somebody was cut off
                        line = b"\n" + line
                out.write(line)  # in append mode every write goes to the end
            if end + len(line) > most_bytes:
                _shorten(file, most_bytes // 2)
    except OSError as error:
        return f"{file} was not written: {error.strerror}"
    return None


def read(file: Path) -> list[dict[str, Any]]:
    """All rows that can be read, oldest first; a line cut off by a full disk is left out."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                rows.append(found)
    return rows


def forget(file: Path, unwanted: Callable[[Mapping[str, Any]], bool]) -> int:
    """Take rows out of the file; how many. Raises OSError where it cannot be written."""
    if not file.exists():
        return 0
    with _alone(file):
        rows = read(file)
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) < len(rows):
            _replace(file, b"".join(json.dumps(row).encode() + b"\n" for row in kept))
    return len(rows) - len(kept)


def _shorten(file: Path, most_bytes: int) -> None:
    """Keep the newest rows."""
    kept: list[bytes] = []
    size = 0
    for line in reversed(file.read_bytes().splitlines(keepends=True)):
        size += len(line)
        if size > most_bytes:
            break
        kept.append(line)
    _replace(file, b"".join(reversed(kept)))


def _replace(file: Path, data: bytes) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(file)


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Nobody else writes meanwhile, where the file system knows locks; where it does not, appends are whole all the same."""
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Runs measured on this cluster, one JSON object a line, in the user's state folder.

Rows are those of `parlaunch.check.remembered.row`; planning, `parlaunch validate` and `parlaunch calibrate` read them. Several
processes may write at once, and a line that was cut off costs no other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from parlaunch_launch.awake import Awake
from parlaunch_launch.home import home

MOST_BYTES = 16 * 2**20
"""Size from which the oldest rows go: some two thousand runs."""


WRITING_S = 20.0


def path(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/parlaunch/history.jsonl`, by default under ~/.local/state."""
    return Path(environ.get("XDG_STATE_HOME") or home(environ) / ".local" / "state", "parlaunch", "history.jsonl")


def append(row: Mapping[str, Any], file: Path, *, most_bytes: int = MOST_BYTES) -> str | None:
    """Add one row. None when it is written, else why it could not be: a full or read-only home spoils no measurement."""
    line = json.dumps(dict(row)).encode() + b"\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file) as alone:
            with file.open("ab+") as out:
                end = out.seek(0, os.SEEK_END)
                if end:
                    out.seek(end - 1)
                    if out.read(1) != b"\n":  # somebody was cut off
                        line = b"\n" + line
                out.write(line)  # in append mode every write goes to the end
            if alone and end + len(line) > most_bytes:
                with contextlib.suppress(OSError):  # the row is in: another one may find room to make room
                    _shorten(file, most_bytes // 2)
    except OSError as error:
        return f"{file} was not written: {error.strerror}"
    return None


def read(file: Path) -> list[dict[str, Any]]:
    """All rows that can be read, oldest first; none of a file that cannot."""
    try:
        return rows_of(file)
    except OSError:
        return []


def rows_of(file: Path) -> list[dict[str, Any]]:
    """All rows, oldest first, without lines that were cut off. Raises OSError for a file that is there and cannot be read."""
    try:
        # Not blocking: a pipe of that name is not waited for.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
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
    with _alone(file) as alone:
        if not alone:
            raise OSError(errno.EAGAIN, "another process has been writing it for a while")
        rows = rows_of(file)
        kept = [row for row in rows if not unwanted(row)]
        if len(kept) < len(rows):
            replaced(file, b"".join(json.dumps(row).encode() + b"\n" for row in kept))
    return len(rows) - len(kept)


def _shorten(file: Path, most_bytes: int) -> None:
    """Keep the newest rows."""
    kept: list[bytes] = []
    size = 0
    for line in reversed(file.read_bytes().splitlines(keepends=True)):
        size += len(line)
        if kept and size > most_bytes:
            break
        kept.append(line)
    replaced(file, b"".join(reversed(kept)))


def replaced(file: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError; then what was there is still there, and nothing beside it."""
    there = file.resolve()  # a link stays one
    fresh = there.with_name(f".{there.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as out:
            with contextlib.suppress(OSError):
                os.fchmod(out.fileno(), there.stat().st_mode & 0o777)
            out.write(data)
        fresh.replace(there)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Nobody else writes meanwhile, where the file system knows locks; where it does not, appends are whole all the same. False:
    somebody has written for longer than WRITING_S, so it is one that was stopped: nobody waits for it for ever."""
    awake = Awake()
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if awake() < WRITING_S:
                    time.sleep(0.05)
                    continue
                yield False
                return
            except OSError:
                pass
            yield True
            return

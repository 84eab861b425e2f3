"""Runs measured on this cluster, one JSON object a line, in the user's state folder.

Rows are those of `parlaunch.verdict.row`; `parlaunch validate` and `parlaunch calibrate` read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def path(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/parlaunch/history.jsonl`, by default under ~/.local/state."""
    home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "/tmp"), ".local", "state"))
    return Path(home, "parlaunch", "history.jsonl")


def append(row: Mapping[str, Any], file: Path) -> str | None:
    """Add one row. None when it is written, else why it could not be: a full or read-only home spoils no measurement."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(dict(row)) + "\n")  # one write below the size of a page: appends do not mix
    except OSError as error:
        return f"{file} was not written: {error.strerror}"
    return None


def read(file: Path) -> list[dict[str, Any]]:
    """All rows that can be read, oldest first; a line cut off by a full disk is left out."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            rows.append(found)
    return rows

"""`parlaunch schema`: the JSON schemas of outputs and tables, as they ship in the package."""

from __future__ import annotations

import difflib

from parlaunch.data import schemas, text
from parlaunch.errors import UsageError


def run(name: str | None) -> None:
    """Print one schema, or the names of all. Raises `UsageError` with the nearest names."""
    known = schemas()
    if name is None:
        print("\n".join(known))
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise UsageError(f"no schema {name!r}", hint=f"one of: {', '.join(near or known)}")
    print(text(f"schemas/{name}.json"), end="")

"""The tables that ship in this package, each read once. Nothing else in `parlaunch/` opens a file."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

_HERE = __file__.rpartition("/")[0]


@cache
def text(name: str) -> str:
    """One of the package's data files as text."""
    # As the import system reads it, from a folder or an archive: `importlib.resources` takes longer to load than the tables.
    assert __spec__ is not None
    loader: Any = __spec__.loader
    content: bytes = loader.get_data(f"{_HERE}/data/{name}")
    return content.decode()


@cache
def load(name: str) -> Any:
    """One of the package's JSON tables, parsed once. Callers share the value: nobody changes it."""
    return json.loads(text(name))


@cache
def entry(name: str, key: str) -> Any:
    """What a table says under this key, without parsing the rest of it: tables have one row a line. None: not there."""
    head = f"\n{json.dumps(key, ensure_ascii=False)}: "
    content = text(name)
    at = content.find(head)
    if at < 0:
        return None
    end = content.index("\n", at + len(head))
    return json.loads(content[at + len(head) : end].rstrip(","))


@cache
def rows(name: str, field: str, value: str) -> tuple[Any, ...]:
    """The rows of a table in which a field has this value, in order, without parsing the others."""
    wanted = f"{json.dumps(field)}: {json.dumps(value, ensure_ascii=False)}"
    found = (json.loads(line.rstrip(",")) for line in text(name).splitlines() if wanted in line and line[0] == "{")
    return tuple(row for row in found if row.get(field) == value)


def schemas() -> tuple[str, ...]:
    """Names of the JSON schemas of this package's outputs and tables, sorted; each is `text("schemas/NAME.json")`."""
    from importlib.resources import files

    found = files("parlaunch").joinpath("data", "schemas").iterdir()
    return tuple(sorted(entry.name.removesuffix(".json") for entry in found if entry.name.endswith(".json")))

"""The form of the tables in parlaunch/data/: one row a line, sorted, fields in the order of the schema.

    python scripts/make/tables.py          rewrites every table in that form, for after an edit by hand

A change in a table is then a diff of the rows that changed. The generators in this folder write through `write`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "parlaunch" / "data"
# Beside the tables' schemas stand those of what the commands print.
NAMES = tuple(sorted(p.stem for p in (DATA / "schemas").glob("*.json") if (DATA / p.name).exists()))


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of a table."""
    return dict(json.loads((DATA / "schemas" / f"{name}.json").read_text(encoding="utf-8")))


def _is_table(shape: Mapping[str, Any]) -> bool:
    """Whether a value of this schema is many entries: a list, or an object whose names are not fixed."""
    return shape.get("type") == "array" or (shape.get("type") == "object" and "properties" not in shape)


def _ordered(value: Any, shape: Mapping[str, Any]) -> Any:
    """The value with the fields of every object in its schema's order; what the schema does not name stands last, sorted."""
    if isinstance(value, dict):
        known = shape.get("properties") or {}
        rest = shape.get("additionalProperties")
        inner = rest if isinstance(rest, Mapping) else {}
        names = [*(k for k in known if k in value), *sorted(value.keys() - known.keys())]
        return {k: _ordered(value[k], known.get(k, inner)) for k in names}
    if isinstance(value, list):
        return [_ordered(v, shape.get("items") or {}) for v in value]
    return value


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _block(value: Any, shape: Mapping[str, Any]) -> str:
    """A table with one entry a line; anything else on one line."""
    if not _is_table(shape) or not value:
        return _line(_ordered(value, shape))
    value = _ordered(value, shape)
    if isinstance(value, list):
        return "[\n" + ",\n".join(sorted(map(_line, value))) + "\n]"
    return "{\n" + ",\n".join(f"{_line(k)}: {_line(v)}" for k, v in value.items()) + "\n}"


def canonical(name: str, table: Mapping[str, Any]) -> str:
    """The text of a table."""
    shape = schema(name)
    if _is_table(shape):
        return _block(dict(table), shape) + "\n"
    known = shape["properties"]
    parts = [f"{_line(k)}: {_block(table[k], known[k])}" for k in known if k in table]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(name: str, table: Mapping[str, Any]) -> Path:
    """Write a table; its file."""
    path = DATA / f"{name}.json"
    path.write_text(canonical(name, table), encoding="utf-8")
    return path


if __name__ == "__main__":
    for each in NAMES:
        print(write(each, json.loads((DATA / f"{each}.json").read_text(encoding="utf-8"))))

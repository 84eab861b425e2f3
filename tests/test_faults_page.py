"""The page of faults: sixty rows and more, each held by a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"

pytestmark = pytest.mark.checkout


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if re.match(r"\| \d+ \|", line)]
    return cells


def test_there_are_sixty_and_they_are_numbered() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, len(rows()) + 1))
    assert len(rows()) >= 60
    assert all(len(row) == 7 and all(row) for row in rows())


def test_every_row_names_a_test_that_is_there() -> None:
    known = {
        f"{path.parent.name}/{path.stem}": {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        }
        for path in TESTS.glob("*/test_*.py")
    }
    for row in rows():
        file, _, words = row[6].partition(": ")
        assert f"test_{words.replace(' ', '_')}" in known[file.strip("`")], row

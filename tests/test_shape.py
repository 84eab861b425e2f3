"""The shape of the code itself: what may import what."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.checkout
ROOT = Path(__file__).parent.parent
MACHINE = {"os", "subprocess", "socket", "time", "random", "threading", "torch", "pynvml", "psutil"}
FORBIDDEN = {
    "parlaunch": MACHINE | {"parlaunch_probes", "parlaunch_launch"},
    "probes/parlaunch_probes": {"parlaunch_launch", "torch"},
    "launch/parlaunch_launch": {"parlaunch_probes"},
}
# The command line wires the three folders together; it alone sees the machine and the other packages.
WIRING = {"cli.py", "__main__.py"}
FILES = [
    (folder, path)
    for folder in FORBIDDEN
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not (folder == "parlaunch" and (path.name in WIRING or path.parent.name == "cli"))
]


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("folder", "path"), FILES, ids=lambda v: v.name if isinstance(v, Path) else None)
def test_the_arrows_go_one_way(folder: str, path: Path) -> None:
    assert not imported(path) & FORBIDDEN[folder]


TEXTS = [
    path
    for pattern in ("*.md", "*.toml", "*.yml", "*.py", "*.sh", "*.json", "*.txt", "*.html", "*.sbatch", "*.yaml")
    for path in sorted(ROOT.rglob(pattern))
    if not {".git", ".venv", ".venv-bridge", "site", "build", "dist", "node_modules"}
    & set(path.relative_to(ROOT).parts)
]
# Spelled apart, so that this file does not find itself.
FOREIGN = re.compile(
    r"(?<![\w.])/wor"
    r"k/|(?<![\w/])shar"
    r"ed/(?:data|reference|captures|guide|design)|issu"
    r"e #?\d\d?\b|py"
    r"pi\.org|files\.python"
    r"hosted"
)


@pytest.mark.checkout
def test_no_text_speaks_of_where_it_was_written() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in TEXTS
        if (hit := FOREIGN.search(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert not found


def public_functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Without `main`, whose module says it, and without rules, whose sentence stands in the decorator."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and node.name != "main"
        and not (node.decorator_list and path.parent.name == "rules")
    ]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_modules_and_public_functions_say_what_they_are_for(folder: str) -> None:
    silent = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            silent.append(str(path.relative_to(ROOT)))
        silent += [f"{path.name}: {f.name}" for f in public_functions(path) if ast.get_docstring(f) is None]
    assert not silent

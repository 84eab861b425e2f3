"""The shape of the code itself: what may import what."""

from __future__ import annotations

import ast
import re
from functools import cache
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
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def drawn() -> tuple[tuple[str, ...], ...]:
    """The rooms of `parlaunch/` as CONTRIBUTING.md draws them, floor by floor from the top."""
    drawing = re.search(r"^```text\n(front\.py.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert drawing is not None
    lines = [re.match(r"(?:[a-z]+(?:/|\.py)\s+)+", line + " ") for line in drawing[1].splitlines()]
    return tuple(tuple(re.findall(r"([a-z]+)(?:/|\.py)", line[0])) for line in lines if line)


FLOORS = drawn()  # each room imports only from floors below its own
# The command line wires the three folders together; it alone sees the machine and the other packages.
WIRING = {"__main__.py"}
FILES = [
    (folder, path)
    for folder in FORBIDDEN
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not (folder == "parlaunch" and (path.name in WIRING or path.parent.name == "cli"))
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, late imports and those for types too; names from a package both ways."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize(("folder", "path"), FILES, ids=lambda v: v.name if isinstance(v, Path) else None)
def test_the_arrows_go_one_way(folder: str, path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN[folder]


@cache
def modules(folder: str) -> dict[str, Path]:
    """Dotted name and file of every module of a source root's package."""
    base = ROOT / folder
    found = {}
    for path in sorted(base.rglob("*.py")):
        parts = (base.name, *path.relative_to(base).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def arrows(folder: str) -> dict[str, set[str]]:
    """What each module imports of its own package."""
    known = modules(folder)
    found = {}
    for name, path in known.items():
        names = imported(path) & set(known)
        # `from package import module` needs the package only where it takes more than modules from it.
        found[name] = {n for n in names if n != name and not any(m.startswith(n + ".") for m in names)}
    return found


def test_every_room_stands_on_a_floor() -> None:
    rooms = {name.split(".")[1] for name in modules("parlaunch") if "." in name}
    assert rooms - {"__main__"} == {room for floor in FLOORS for room in floor}
    assert len([p for p in (ROOT / "parlaunch").glob("*.py")]) <= 10


def test_rooms_import_only_from_below() -> None:
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    up = []
    for name, targets in arrows("parlaunch").items():
        room = name.split(".")[1] if "." in name else None
        for target in targets:
            other = target.split(".")[1] if "." in target else None
            if room in floor and other in floor and room != other and floor[other] <= floor[room]:
                up.append(f"{name} -> {target}")
    assert not up


def test_the_guide_names_files_that_are_there() -> None:
    named = set(re.findall(r"`((?:parlaunch|probes|launch|tests|scripts|docs)/[\w./-]*)`", GUIDE))
    assert len(named) > 15
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_imports_go_in_a_circle(folder: str) -> None:
    left = arrows(folder)
    while free := [name for name, targets in left.items() if not targets & set(left)]:
        for name in free:
            del left[name]
    # What is left is a circle, or leads to one.
    while ends := [name for name in left if not any(name in targets for targets in left.values())]:
        for name in ends:
            del left[name]
    assert not sorted(left)


def test_names_are_imported_from_where_they_are_defined() -> None:
    """A room's `__init__.py` alone may hand on what another file defines."""
    known = {name: path for folder in FORBIDDEN for name, path in modules(folder).items()}
    taken: dict[str, set[str]] = {}
    for name, path in known.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        taken[name] = {a.asname or a.name for n in nodes if n.module in known for a in n.names}
    handed = []
    for top in ("parlaunch", "probes", "launch", "scripts", "examples", "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                if isinstance(node, ast.ImportFrom) and module in known and known[module].name != "__init__.py":
                    handed += [f"{path.name}: {module}.{a.name}" for a in node.names if a.name in taken[module]]
    assert not handed


def test_every_room_says_what_it_knows() -> None:
    for folder in (p for p in (ROOT / "parlaunch").rglob("*") if p.is_dir() and list(p.glob("*.py"))):
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), folder


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


def public(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions and classes: without `main`, whose module says it, and without rules, whose sentence stands in the decorator."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name != "main"
        and not (node.decorator_list and path.parent.name == "rules")
    ]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_modules_public_functions_and_classes_say_what_they_are_for(folder: str) -> None:
    silent = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            silent.append(str(path.relative_to(ROOT)))
        silent += [f"{path.name}: {f.name}" for f in public(path) if ast.get_docstring(f) is None]
    assert not silent


SCRIPTS = sorted((ROOT / "scripts").rglob("*.py")) + sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_import_what_exists(path: Path) -> None:
    known = {name: path for folder in FORBIDDEN for name, path in modules(folder).items()}
    ours = re.compile(r"parlaunch(?:_probes|_launch)?(?:\.\w+)*")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and ours.fullmatch(node.module or ""):
            assert node.module in known, f"{path.name} imports {node.module}"
            defined = known[node.module].read_text(encoding="utf-8")
            for alias in node.names:
                assert f"{node.module}.{alias.name}" in known or re.search(rf"\b{alias.name}\b", defined), alias.name

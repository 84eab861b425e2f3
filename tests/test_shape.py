"""The shape of the code itself: what may import what."""

from __future__ import annotations

import ast
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

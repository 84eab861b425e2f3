"""Sources that are named by file and line are of the releases that the tests install, and lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need

BRIDGE = os.environ.get("BRIDGE_PYTHON", "")  # read before the tests clear what is ours
ROOT = Path(__file__).parent.parent
PLACE = re.compile(
    r"(?<![\w/])((?:bridge|megatron/core|megatron/training|B|M/core|M/training)/[\w/]+\.py)((?::\d+)(?:, :\d+)*)(?! of \d)(?!\d)"
)
FOLDERS = "import json, importlib.util as u; print(json.dumps({n: u.find_spec('megatron.' + n).submodule_search_locations[0] for n in %r}))"
OURS = ("bridge", "core", "training")


def cited() -> dict[tuple[str, str, int], str]:
    """Package, file and line of every source, with the file of ours that names it."""
    found = {}
    for folder in ("parlaunch", "probes", "launch", "docs"):
        for path in (p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".py", ".json", ".md")):
            for place, lines in PLACE.findall(path.read_text(encoding="utf-8")):
                inside = re.sub(r"^B/", "bridge/", re.sub(r"^(megatron|M)/", "", place))
                package, _, file = inside.partition("/")
                for line in re.findall(r"\d+", lines):
                    found[package, file, int(line)] = str(path.relative_to(ROOT))
    return found


@pytest.mark.bridge
@pytest.mark.checkout
def test_a_line_that_is_cited_says_something() -> None:
    need(BRIDGE, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    said = subprocess.run([BRIDGE, "-c", FOLDERS % (OURS,)], capture_output=True, text=True, check=True).stdout
    roots = {name: Path(folder) for name, folder in json.loads(said).items()}
    found = cited()
    assert len(found) > 200
    astray = []
    for (package, file, line), where in found.items():
        lines = (roots[package] / file).read_text(encoding="utf-8").splitlines()
        if not 0 < line <= len(lines) or not re.search("[A-Za-z]{2}", lines[line - 1]):
            astray.append(f"{where}: {package}/{file}:{line}")
    assert not astray

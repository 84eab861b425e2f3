"""What a release says of itself: one version, one licence, a citation."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from parlaunch import __version__
from tests.conftest import need

pytestmark = pytest.mark.checkout
ROOT = Path(__file__).parent.parent


def test_the_citation_names_this_version_and_licence() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert re.search(r"^license: (.+)$", text, re.MULTILINE)[1] == project["license"]  # type: ignore[index]


def test_the_version_stands_in_one_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    path = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'"{__version__}"' in path.read_text(encoding="utf-8")


def test_the_source_archive_holds_what_git_does_and_nothing_else_of_a_checkout() -> None:
    need((ROOT / ".git").exists(), "a checkout by git")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    always = {".gitignore", "pyproject.toml"}
    assert {*build["targets"]["sdist"]["only-include"]} == {path.split("/")[0] for path in listed} - always

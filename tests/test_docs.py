"""README and docs: the commands in them run, and the output in the README is what they print."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said, parlaunch

__all__ = ["parlaunch"]
ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXIT = {"sh": 0, "sh-exit-3": 3, "sh-exit-any": None}
"""Fences whose lines are run here, one after the other in an empty folder, and the exit code each has to end with."""


def fences(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```([\w-]+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_on_a_page_runs(
    page: Path, parlaunch: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("config.json", "runs.json"):
        if (ROOT / "examples" / name).exists():
            shutil.copy(ROOT / "examples" / name, tmp_path)
    for language, text in fences(page):
        if language not in EXIT:
            continue
        for line in commands(text):
            words = shlex.split(line)
            assert words[0] == "parlaunch", f"{page.name}: {line}"
            said = parlaunch(*words[1:])
            assert EXIT[language] in (None, said.code), f"{line}\n{said.err}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_shows_what_its_command_prints(
    parlaunch: Callable[..., Said], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "python")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    command = re.search(r"^    parlaunch (.*)$", text, re.MULTILINE)
    assert command is not None
    said = parlaunch(*shlex.split(command[1]))
    decision = said.out.split("\nEnvironment\n")[0].rstrip()
    made = re.sub(r"```text\n.*?```", lambda _: f"```text\n{decision}\n```", text, count=1, flags=re.DOTALL)
    if request.config.getoption("--update-golden"):
        readme.write_text(made, encoding="utf-8")
    assert readme.read_text(encoding="utf-8") == made, "run pytest --update-golden and read the diff"

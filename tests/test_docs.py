"""README and docs: the commands in them run, and the output in the README is what they print."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from parlaunch.cli import COMMANDS
from parlaunch.data import load
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


def shown(text: str, names: dict[str, object]) -> str:
    """The lines of a `pycon` fence with what Python prints for them."""
    made = []
    for example in doctest.DocTestParser().get_examples(text):
        out = StringIO()
        with redirect_stdout(out):
            exec(compile(example.source, "<page>", "single"), names)
        first, *more = example.source.splitlines()
        made += [f">>> {first}", *(f"... {line}" for line in more), *out.getvalue().splitlines()]
    return "\n".join(made) + "\n"


@pytest.mark.parametrize("page", [p for p in PAGES if "```pycon" in p.read_text()], ids=lambda p: p.name)
def test_what_a_page_shows_of_python_is_what_python_prints(page: Path, request: pytest.FixtureRequest) -> None:
    names: dict[str, object] = {}
    text = page.read_text(encoding="utf-8")
    made = re.sub(
        r"^```pycon\n(.*?)^```",
        lambda fence: f"```pycon\n{shown(fence[1], names)}```",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    if request.config.getoption("--update-golden"):
        page.write_text(made, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == made, "run pytest --update-golden and read the diff"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.checkout
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_a_file_of_ours_that_a_page_names_is_there(page: Path) -> None:
    ours = r"(?<![\w./-])(?:(?:parlaunch|probes|launch|tests|validation|examples)|scripts/(?:bench|fuzz|make))/[\w./-]+\.\w+"
    named = set(re.findall(ours, page.read_text(encoding="utf-8")))
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_the_readme_has_a_row_for_every_command() -> None:
    rows = set(re.findall(r"^\| `parlaunch ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == {*COMMANDS} - {"launch"}  # that is the row without a word


def test_the_page_of_machines_has_the_tables_of_the_code(
    parlaunch: Callable[..., Said], request: pytest.FixtureRequest
) -> None:
    page = ROOT / "docs" / "comparing.md"
    text = page.read_text(encoding="utf-8")
    head, mark, _ = text.partition("against the tables. -->\n\n")
    made = f"{head}{mark}{parlaunch('machines', '--format', 'markdown').out}"
    if request.config.getoption("--update-golden"):
        page.write_text(made, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == made, "run pytest --update-golden and read the diff"


def test_the_readme_shows_what_its_command_prints(
    parlaunch: Callable[..., Said], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "python")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    command = re.search(r"^    parlaunch (.*)$", text, re.MULTILINE)
    assert command is not None
    said = parlaunch(*shlex.split(command[1]))
    made = re.sub(r"```text\n.*?```", lambda _: f"```text\n{said.out}```", text, count=1, flags=re.DOTALL)
    if request.config.getoption("--update-golden"):
        readme.write_text(made, encoding="utf-8")
    assert readme.read_text(encoding="utf-8") == made, "run pytest --update-golden and read the diff"


SCRIPTS = re.findall(
    r"^```bash\n(#!/bin/bash\n.*?)^```", (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8"), re.M | re.S
)


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_script_of_the_cookbook_is_bash_and_its_overrides_are_bridges(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    keys = load("bridge_fields.json")["keys"]
    assert {k for k in re.findall(r"\b([a-z_]+\.[a-z_.]+)=", script)} <= set(keys)
    assert re.search(r"^DATA=", script, re.M)
    assert re.search(r"^CKPT=", script, re.M)


@pytest.mark.parametrize("word", ["resume", "why-not", "oom", "out of memory", "checkpoint", "requeue", "torchrun"])
def test_what_people_look_for_stands_on_a_page(word: str) -> None:
    assert any(re.search(rf"\b{word}", p.read_text(encoding="utf-8"), re.I) for p in PAGES if p.name != "reference.md")

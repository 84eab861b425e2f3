"""`scripts/again` gives what failed a second try by itself, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AGAIN = Path(__file__).parent.parent / "scripts" / "again"

ONCE = """\
from pathlib import Path

def test_passes(): pass

def test_fails_once():
    tried = Path(__file__).with_name("tried")
    before = tried.exists()
    tried.touch()
    assert before
"""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ONCE, 0),
        (f"{ONCE}\ndef test_fails(): assert False\n", 1),
        ("import nothing_of_this_name\n", 2),
    ],
    ids=["fails once", "fails twice", "is no test"],
)
def test_only_what_failed_twice_fails(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(text)
    done = subprocess.run(
        [str(AGAIN), sys.executable, "-m", "pytest", "-q", "-p", "xdist"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert ("by itself" in done.stdout) is (code < 2)

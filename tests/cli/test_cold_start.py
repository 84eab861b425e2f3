"""What a cold start loads: the libraries that take longer than a plan stay out of a dry run, the planner out of completion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SLOW = frozenset({"rich.console", "rich.table", "rich.markdown", "pydantic", "statistics", "asyncio"})
PLANNER = frozenset({"parlaunch.planning.search", "parlaunch.estimate.memory", "parlaunch.environment.variables"})
ASKED = {
    "_PARLAUNCH_COMPLETE": "complete_bash", "COMP_WORDS": "parlaunch --recipe llama3_8b_pre", "COMP_CWORD": "2",
}  # fmt: skip


def loaded(*words: str, environ: dict[str, str]) -> tuple[set[str], str]:
    """The modules of one run of the command line, and what it printed."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parlaunch", *words],
        env=os.environ | environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.count("|") == 2}, ran.stdout


@pytest.mark.parametrize("environ", [{}, {"FORCE_COLOR": "1"}])
def test_a_dry_run_loads_no_library_that_takes_longer_than_its_plan(environ: dict[str, str]) -> None:
    words = ("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:2", "--dry-run")
    modules, said = loaded(*words, environ=environ)
    assert "llama32_1b_pretrain_config" in said
    assert "parlaunch.planning.search" in modules
    assert not modules & SLOW


def test_completion_loads_no_planner() -> None:
    modules, said = loaded(environ=ASKED)
    assert "llama3_8b_pretrain_config" in said
    assert not modules & (SLOW | PLANNER)

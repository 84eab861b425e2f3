"""The command line before typer sees it."""

from __future__ import annotations

import pytest

from parlaunch.cli import arguments


@pytest.mark.parametrize(
    ("typed", "seen", "rest"),
    [
        (["--recipe", "x"], ["launch", "--recipe", "x"], []),
        (["model.a=1", "--recipe", "x"], ["launch", "model.a=1", "--recipe", "x"], []),
        (["plan", "--recipe", "x"], ["plan", "--recipe", "x"], []),
        (["--recipe", "x", "--", "--foo", "--", "b c"], ["launch", "--recipe", "x"], ["--foo", "--", "b c"]),
        (["-h"], ["-h"], []),
        (["--version"], ["--version"], []),
        ([], ["--help"], []),
    ],
)
def test_no_command_word_means_launch_and_two_dashes_end_our_part(
    typed: list[str], seen: list[str], rest: list[str]
) -> None:
    assert arguments(typed) == (seen, rest)

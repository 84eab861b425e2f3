"""Completion in bash, zsh and fish. A command line without a command word is a launch, there as everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ASKED = "_PARLAUNCH_COMPLETE"
"""Set by the completion script of the shell when it asks."""


def completed_words(environ: Mapping[str, str], commands: Sequence[str]) -> dict[str, str]:
    """What to change in the environment so that the options of launch are offered without its word.

    Bash gives its words and the number of the one at the cursor; zsh and fish give the line up to the cursor.
    """
    name = "COMP_WORDS" if environ[ASKED].endswith("bash") else "_TYPER_COMPLETE_ARGS"
    line = environ.get(name, "")
    program, *words = line.split() or [""]
    # An option first, or one more word after something that is no command; `parlaunch <TAB>` offers the commands.
    if not words or words[0] in commands or not (words[0].startswith("-") or len(words) > 1 or "=" in words[0]):
        return {}
    changes = {name: line.replace(program, f"{program} launch", 1)}
    if name == "COMP_WORDS":
        changes["COMP_CWORD"] = str(int(environ.get("COMP_CWORD", "1")) + 1)
    return changes

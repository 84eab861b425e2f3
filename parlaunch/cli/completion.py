"""Completion in bash, zsh and fish. A command line without a command word is a launch, there as everywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from parlaunch.errors import ParlaunchError

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


def asked_word(environ: Mapping[str, str]) -> str:
    """The command whose options or values a shell asks for; empty while the command itself is being typed."""
    words = environ.get("COMP_WORDS" if environ[ASKED].endswith("bash") else "_TYPER_COMPLETE_ARGS", "").split()
    return words[1] if len(words) > 2 else ""


PLACES = {
    "bash": (".bash_completions/parlaunch.sh", ".bashrc", "source ~/.bash_completions/parlaunch.sh"),
    "zsh": (".zfunc/_parlaunch", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": (".config/fish/completions/parlaunch.fish", None, None),  # fish looks there by itself
}
"""Under $HOME: where the script of a shell goes, and the line of which start file reads it."""


def install(shell: str, script: str) -> Path:
    """Write the completion script of a shell under $HOME, and what reads it into the start file; the script's place. Raises
    `ParlaunchError` naming the file that cannot be written."""
    from parlaunch_launch.home import home

    place, start, line = PLACES[shell]
    under = home(os.environ)
    written = under / place
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(script, encoding="utf-8")
        if start and line:
            _add(under / start, line.encode())
    except OSError as error:
        raise ParlaunchError(
            f"--install-completion {shell}: {error.filename}: {error.strerror}",
            hint=f"parlaunch --show-completion {shell} prints the script, for a place of your own",
        ) from error
    return written


def _add(file: Path, line: bytes) -> None:
    """Put a line behind what is in a file, whatever its encoding, unless it is there: on a full disk nothing of it is lost."""
    with file.open("ab+") as out:
        out.seek(0)
        before = out.read()
        if line not in before.splitlines():
            out.write((b"" if before.endswith(b"\n") or not before else b"\n") + line + b"\n")

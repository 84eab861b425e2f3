"""Write docs/reference.md and docs/parlaunch.1: every command and option, from the command line itself.

python scripts/make/reference.py            writes both
python scripts/make/reference.py --check    exit 1 when either is stale
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from written import write_or_check

from parlaunch.cli import app, tools
from parlaunch.errors import ParlaunchError
from parlaunch.version import __version__

DOCS = Path(__file__).parents[2] / "docs"
EXIT_CODES = (
    (0, "done"),
    (1, "refused by parlaunch, or a FAIL of the preflight"),
    (2, "wrong usage"),
    (3, "no layout fits"),
)
"""Before the launch; afterwards the code is the training's own. `ParlaunchError` and its kinds carry them."""


# Commands and their parameters are those of the click inside of typer, which has no name of its own: hence Any.


def commands(root: Any) -> Iterator[tuple[str, Any]]:
    """Every command with its words, in the order of the help page."""
    for name, command in root.commands.items():
        if command.hidden:
            continue
        yield name, command
        for word, below in getattr(command, "commands", {}).items():
            yield f"{name} {word}", below


def options(command: Any) -> Iterator[tuple[str, Any]]:
    """Panel and option, in order; help and what is hidden left out."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden and parameter.name != "help":
            yield getattr(parameter, "rich_help_panel", None) or "Options", parameter


def spelled(option: Any) -> str:
    """`--format TEXT`, `-s, --search TEXT`, `--env / --no-env`."""
    names = ", ".join(option.opts)
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag else f"{names} {option.metavar or value(option)}"


def value(option: Any) -> str:
    """What the option wants, in one word."""
    described = getattr(option, "type_descriptor", None)  # typer before 0.29 has click's types
    # Of a list, what its words are.
    kind = (get_args(described.annotation) or (described.annotation,))[0].__name__ if described else option.type.name
    words = {"str": "TEXT", "text": "TEXT", "int": "NUMBER", "integer": "NUMBER", "float": "NUMBER", "path": "FILE"}
    return words.get(kind.lower().removesuffix(" range"), kind.upper())


def default(option: Any) -> str:
    """What holds where the option is not given; empty where that is nothing."""
    value = option.default
    if value is None or callable(value) or value == () or (option.is_flag and not option.secondary_opts):
        return ""
    if option.is_flag:
        return (option.opts if value else option.secondary_opts)[0]
    return str(value)


def variable(option: Any, words: str) -> str:
    """The environment variable that stands for an option of the command with these words."""
    given = option.envvar
    if given:
        return given if isinstance(given, str) else str(given[0])
    return f"PARLAUNCH_{words.replace(' ', '_').upper()}_{option.name.upper()}"


def text_of(help: str | None) -> str:
    """Help without markup."""
    return re.sub(r"\[/?[a-z ]+\]", "", (help or "").replace("\b\n", "")).strip()


def page() -> str:
    """docs/reference.md."""
    root: Any = typer.main.get_command(app.app)
    assert tools  # imported for the commands that it registers
    told: dict[str, str] = {}  # an option, as spelled and helped, and the first command that has it
    lines = [
        "# Commands and options",
        "",
        "Every command and every option. Written by `python scripts/make/reference.py` from the command line itself; "
        "`parlaunch COMMAND -h` says the same in a terminal.",
        "",
        "## Exit codes",
        "",
        "| code | when |",
        "|---|---|",
        *(f"| {code} | {when} |" for code, when in EXIT_CODES),
        "",
        "After the launch the code is the training's own.",
        "",
    ]
    for words, command in commands(root):
        lines += [f"## parlaunch {words}", "", text_of(command.help), ""]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        for argument in arguments:
            name = argument.metavar or (argument.name or "").upper()
            lines += [f"`{name}`: {text_of(getattr(argument, 'help', None)) or 'see above'}", ""]
        panels: dict[str, list[Any]] = {}
        like: dict[str, int] = {}
        for panel, option in options(command):
            fact = f"{spelled(option)} {default(option)} {option.help}"
            first = told.setdefault(fact, words)
            like[first] = like.get(first, 0) + 1
            panels.setdefault(panel, []).append((option, first))
        # launch, plan and verify share most of theirs: they stand once.
        shared = next((first for first, count in like.items() if first != words and count > 10), None)
        if shared:
            link = f"[parlaunch {shared}](#parlaunch-{shared.replace(' ', '-')})"
            more = " and:" if any(first != shared for found in panels.values() for _, first in found) else ""
            lines += [f"The options of {link}{more or '.'}", ""]
        found_by_panel = {k: [o for o, first in v if first != shared] for k, v in panels.items()}
        panels = {k: v for k, v in found_by_panel.items() if v}
        for panel, found in panels.items():
            lines += [f"### {panel}" if len(panels) > 1 else "", ""] if len(panels) > 1 else []
            lines += ["| option | default | variable | what |", "|---|---|---|---|"]
            for option in found:
                cells = [f"`{spelled(option)}`", f"`{default(option)}`" if default(option) else ""]
                cells.append(f"`{variable(option, words)}`")
                lines.append("| " + " | ".join([*cells, text_of(option.help).replace("|", "\\|")]) + " |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _roff(words: str) -> str:
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in escaped.splitlines())


def manual() -> str:
    """docs/parlaunch.1."""
    root: Any = typer.main.get_command(app.app)
    lines = [
        f'.TH PARLAUNCH 1 "" "parlaunch {__version__}" "User Commands"',
        ".SH NAME",
        "parlaunch \\- plan and launch a Megatron Bridge training for the machine it stands on",
        ".SH SYNOPSIS",
        ".B parlaunch",
        "[\\fIOPTIONS\\fR] \\-\\-recipe \\fINAME\\fR [\\fIKEY=VALUE\\fR ...]",
        ".br",
        ".B parlaunch",
        "\\fICOMMAND\\fR [\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION",
        _roff(text_of(root.help)),
    ]
    for words, command in commands(root):
        lines += [f".SH {words.upper()}", _roff(text_of(command.help))]
        for _, option in options(command):
            what = text_of(option.help) + (f" (default: {default(option)})" if default(option) else "")
            lines += [".TP", f".B {_roff(spelled(option))}", _roff(what)]
    lines += [".SH EXIT STATUS"]
    for code, when in EXIT_CODES:
        lines += [".TP", f".B {code}", _roff(when)]
    lines += [".PP", "After the launch, the code of the training."]
    return "\n".join(lines) + "\n"


def main() -> None:
    kinds = [ParlaunchError, *ParlaunchError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= {code for code, _ in EXIT_CODES}
    write_or_check({DOCS / "reference.md": page(), DOCS / "parlaunch.1": manual()})


if __name__ == "__main__":
    main()

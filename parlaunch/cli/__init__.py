"""The command line: options in, one library call, text out, an exit code. It alone sees probes, planner and launcher.

`parlaunch` with no command word launches. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from parlaunch.cli.completion import ASKED, completed_words
from parlaunch.errors import ParlaunchError, UsageError

COMMANDS = ("launch", "plan", "probe", "doctor", "recipes", "validate", "calibrate", "verify", "diff")


def arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with its command word, and what comes after `--` (the runner's own, untouched).

    Raises `UsageError` for a first word that is neither a command nor anything that launch takes.
    """
    args = list(argv)
    rest: list[str] = []
    if "--" in args:
        at = args.index("--")
        args, rest = args[:at], args[at + 1 :]
    if not args or (
        args[0] not in COMMANDS
        and args[0] not in ("-h", "--help", "--version", "--install-completion", "--show-completion")
    ):
        if args and re.fullmatch(r"[A-Za-z][\w-]*", args[0]):
            near = difflib.get_close_matches(args[0], COMMANDS, n=2) or COMMANDS
            raise UsageError(
                f"no command {args[0]!r}",
                hint=f"did you mean {' or '.join(near)}?"
                if near is not COMMANDS
                else "commands: " + ", ".join(COMMANDS),
            )
        args.insert(0, "launch" if args else "--help")
    return args, rest


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. Our own refusals end in one message and the exit code of their kind."""
    from parlaunch.cli import tools  # noqa: F401  registers its commands
    from parlaunch.cli.app import app

    if os.environ.get(ASKED, "").startswith("complete_"):
        os.environ.update(completed_words(os.environ, COMMANDS))
    try:
        args, rest = arguments(sys.argv[1:] if argv is None else argv)
        app(args, prog_name="parlaunch", obj=rest)
    except ParlaunchError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; there is nobody to tell
        sys.exit(141)
    sys.exit(0)

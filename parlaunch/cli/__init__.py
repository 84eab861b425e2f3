"""The command line: options in, one library call, text out, an exit code. It alone sees probes, planner and launcher.

`parlaunch` with no command word launches. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import gc
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO
from itertools import takewhile
from typing import NoReturn

from parlaunch.cli.completion import ASKED, asked_word, completed_words, install
from parlaunch.cli.writer import Writer, writers
from parlaunch.errors import ParlaunchError, UsageError

COMMANDS = (
    "launch",
    "plan",
    "probe",
    "doctor",
    "recipes",
    "validate",
    "calibrate",
    "verify",
    "compare",
    "history",
    "machines",
    "diff",
    "config",
    "schema",
)
ALL_HELP = "--help-all"
ALIKE_S = 5.0
"""Between the starts of the tasks of one step, on nodes that are busy too."""

COLLECTED = (100_000, 20, 50)
"""When Python looks for garbage, as `gc.set_threshold` takes it: a plan lives for a second and keeps what it makes."""


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
        and args[0] not in ("-h", "--help", ALL_HELP, "-V", "--version", "--install-completion", "--show-completion")
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
    if args[0] == "recipes" and args[1:] and not args[1].startswith("-") and args[1] != "show":
        words = list(takewhile(lambda word: not word.startswith("-"), args[1:]))
        args[1 : 1 + len(words)] = ["--search", " ".join(words)]
    return args, rest


SHELLS = ("bash", "zsh", "fish")


def _shell_named(args: Sequence[str]) -> str | None:
    """The shell whose completion is to be shown or installed; None: none is named, and typer takes the one around it."""
    if not args or args[0] not in ("--show-completion", "--install-completion") or len(args) < 2:
        return None
    if args[1] not in SHELLS:
        raise UsageError(f"{args[0]} {args[1]!r} is no shell with completion", hint=f"one of: {', '.join(SHELLS)}")
    return args[1]


def _defaults(args: Sequence[str]) -> dict[str, dict[str, object]]:
    """What the files of this place, this user and this site say, for the commands that plan."""
    from parlaunch.cli.app import CONFIGURED

    if not args or args[0] not in CONFIGURED or "-h" in args or "--help" in args:
        return {}
    from parlaunch.cli import config

    for sentence in config.misspelt(os.environ):
        print(f"note: {sentence}", file=sys.stderr)
    found = config.defaults(config.from_files(config.files(os.environ)))
    several = {many: [found[one]] for one, many in (("hardware", "machines"), ("price", "prices")) if one in found}
    return dict.fromkeys(CONFIGURED, found | several)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. Our own refusals end in one message and the exit code of their kind."""
    gc.set_threshold(*COLLECTED)
    atexit.register(gc.freeze)  # what is left goes with the process: nobody needs the garbage in it found
    with writers() as (out, err):
        code = _run(sys.argv[1:] if argv is None else argv, err)
        out.flush()
        if out.failed is not None and code == 0:
            code = _unread(out.failed)
    sys.exit(code)


def _run(argv: Sequence[str], err: Writer) -> int:
    """The exit code of one command."""
    from parlaunch.cli import tools  # noqa: F401  registers its commands
    from parlaunch.cli.app import alone, app

    if os.environ.get(ASKED, "").startswith("complete_"):
        os.environ.update(completed_words(os.environ, COMMANDS))
    try:
        err.muted = _others_say_it(argv)
        args, rest = arguments(argv)
        if shell := _shell_named(args):
            installing = args[0] == "--install-completion"
            os.environ[ASKED], args = f"source_{shell}", []
            if installing:
                place = install(shell, _printed(lambda: app([], prog_name="parlaunch")))
                print(f"{shell} completion installed in {place}; it works in the next terminal")
                return 0
        completing = ASKED in os.environ
        if not completing and {"-h", "--help", ALL_HELP} & set(args):
            from parlaunch.cli.help import page

            page(app, args)
        else:
            word = asked_word(os.environ) if completing else next(iter(args), "")
            asked = alone(word) if word else app
            asked(args, prog_name="parlaunch", obj=rest, default_map=_defaults(args))
    except ParlaunchError as error:
        sys.stdout.flush()
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        return _together(error.exit_code, muted=err.muted)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return _together(code, muted=err.muted)
    return 0


def _printed(command: Callable[[], object]) -> str:
    """What a command writes to stdout before it exits."""
    with redirect_stdout(StringIO()) as out, suppress(SystemExit):
        command()
    return out.getvalue()


def _others_say_it(argv: Sequence[str]) -> bool:
    """Whether what is wrong with this command line is said by the first task of the step: the words are the same in all.
    Only of a launch, and only until its words are read (`parlaunch.cli.launch`)."""
    first = next(iter(argv), "--help")
    task = os.environ.get("SLURM_PROCID", "0")
    return "SLURM_STEP_ID" in os.environ and task.isdigit() and task != "0" and first not in COMMANDS[1:]


def _together(code: int, *, muted: bool) -> int:
    """The code, after a moment in which the other tasks of the step find the same (srun ends all when the first has failed), or
    srun hears what this one said."""
    task = os.environ.get("SLURM_PROCID")
    if code and task and os.environ.get("SLURM_NTASKS", "1") != "1":
        from parlaunch_launch.ends import HEARD_S
        from parlaunch_launch.party import unhurried

        unhurried()
        time.sleep(ALIKE_S if muted or task == "0" else HEARD_S)
    return code


def _unread(error: OSError) -> int:
    """The exit code of a command whose output did not arrive: a plan that nobody has is no success."""
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE  # the reader of a pipe went away; there is nobody to tell
    print(f"error: stdout cannot be written: {error.strerror}", file=sys.stderr)
    return 1

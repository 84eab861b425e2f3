"""Become another program: the launch is an exec, so signals and the exit code pass through."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from parlaunch.errors import ParlaunchError

NEEDS_TORCH = ("torch.distributed.run", "parlaunch_launch.elastic", "parlaunch_launch.supervise")


def installed(module: str) -> bool:
    """Whether this interpreter would find the module. Imports its parents at most: `torch` costs nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def for_a_rank(module: str) -> bool:
    """Whether a rank would find the module: it has the working directory in front, which this process has not."""
    top = importlib.machinery.PathFinder.find_spec(module.partition(".")[0], [os.getcwd()])
    return top is not None or installed(module)


def become(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    execvpe: Callable[..., Any] = os.execvpe,
    has: Callable[[str], bool] = installed,
) -> NoReturn:
    """Replace this process by `argv` with exactly `env`. Tests pass their own `execvpe`; nothing is patched.

    Raises ParlaunchError when torch is missing (asked of this interpreter, when it is the one to run), or when the
    program is not there or not executable.
    """
    command = list(argv)
    if command[0] == sys.executable and any(m in command[:4] for m in NEEDS_TORCH) and not has("torch"):
        raise ParlaunchError(
            f"torch is not installed in {sys.executable}, and the launch runs `python -m {NEEDS_TORCH[0]}` there",
            hint="install parlaunch into the environment you train in, or add torch here: pip install 'parlaunch[torch]'",
        )
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores SIGPIPE and exec hands that down; a program that is not Python would then never notice a closed pipe.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        execvpe(command[0], command, dict(env))
    except FileNotFoundError as error:
        raise ParlaunchError(
            f"cannot start {command[0]}: there is no such program", hint="check PATH, or the path"
        ) from error
    except OSError as error:
        raise ParlaunchError(f"cannot start {command[0]}: {error.strerror}", hint="check the path") from error
    finally:
        signal.signal(signal.SIGPIPE, before)
    raise AssertionError("exec came back")

"""What the sbatch that is installed here knows."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from collections.abc import Sequence

from parlaunch.errors import UsageError

TIMEOUT_S = 5.0


def check(options: Sequence[str]) -> None:
    """Raise `UsageError` with the nearest for an option that the sbatch here does not have. Without one, nothing is said."""
    known = _known()
    for option in options:
        name = option.partition("=")[0]
        if not known or not name.startswith("--") or any(k.startswith(name) for k in known):
            continue  # a beginning of a name is enough for sbatch
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        raise UsageError(
            f"--sbatch-arg {option}: the sbatch here has no {name}",
            hint=f"nearest: {', '.join(near)}" if near else "`sbatch --help` lists what it has",
        )


def _known() -> frozenset[str]:
    """The long options that `sbatch --help` and `--usage` name; none where there is no sbatch that answers."""
    program = shutil.which("sbatch")
    if program is None:
        return frozenset()
    found: set[str] = set()
    for word in ("--help", "--usage"):
        try:
            told = subprocess.run([program, word], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found |= set(re.findall(r"--[a-z][a-z0-9-]+", told.stdout + told.stderr))
    return frozenset(found) if "--partition" in found else frozenset()

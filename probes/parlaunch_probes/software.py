"""What training software this Python would run, asked in a child process: versions, without importing any of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from parlaunch.hardware.installed import PACKAGES

TIMEOUT_S = 120.0
"""From a file system that is cold or far, the metadata alone takes half a minute."""


def software(environ: Mapping[str, str]) -> tuple[tuple[str, str | None], ...] | None:
    """(package, version or None for missing), in the order of `PACKAGES`. None: there is no torch here, so training runs with
    another Python or another container, or the child failed: nothing is known."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "parlaunch_probes.software_child"], capture_output=True, text=True,
            timeout=TIMEOUT_S, env=dict(environ), check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read(done.stdout)


def read(text: str) -> tuple[tuple[str, str | None], ...] | None:
    """What the child printed; None for anything else, and where it found no torch."""
    try:
        answer = json.loads(text.strip().splitlines()[-1])
        versions = {package: answer[package] for package in PACKAGES}
    except (ValueError, IndexError, KeyError, TypeError):
        return None
    if versions["torch"] is None or not all(v is None or isinstance(v, str) for v in versions.values()):
        return None
    return tuple(versions.items())

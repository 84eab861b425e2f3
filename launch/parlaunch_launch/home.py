"""Where a user's own files are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def home(environ: Mapping[str, str]) -> Path:
    """$HOME; where that is not set (a prolog, cron) what the system knows. A user whom it does not know (a container) has none,
    and a folder of its own among the temporary ones."""
    found = environ.get("HOME") or os.path.expanduser("~")
    return Path(tempfile.gettempdir(), f"parlaunch-{os.getuid()}") if found.startswith("~") else Path(found)

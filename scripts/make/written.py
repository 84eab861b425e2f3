"""How a generator in this folder ends: its files are written, or with `--check` held against what it would write."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(files: Mapping[Path, str]) -> None:
    """Write each text into its file. With `--check` write nothing, and exit 1 naming the files that are missing or stale."""
    stale = []
    for path, made in files.items():
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != made:
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: stale; run scripts/make/{Path(sys.argv[0]).name} and read the diff")

"""What stdout is: whether it takes colour, and how wide it is. FORCE_COLOR and NO_COLOR have their say, the second one the last."""

from __future__ import annotations

import os
import shutil
import sys

PLAIN_COLUMNS = 100
"""The width where nothing says another."""


def coloured() -> bool:
    """Colour on a terminal, or where FORCE_COLOR asks for it; never against NO_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def columns(otherwise: int = PLAIN_COLUMNS) -> int:
    """COLUMNS, or the width of the terminal; `otherwise` where there is neither."""
    return shutil.get_terminal_size((otherwise, 40)).columns

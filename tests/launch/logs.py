"""What tests make of a whole training log."""

from __future__ import annotations

from parlaunch.check.verdict import Measured
from parlaunch_launch.training_log import read_run


def read(text: str) -> Measured:
    """A whole log."""
    return read_run([text.splitlines()])

"""What can be refused, and with which exit code.

ParlaunchError             1   our refusal: what is wrong with what was given, and what to try
├── UsageError             2   a wrong name, option, value, or pins that contradict each other
├── NoLayoutError          3   no layout fits this model on this machine
└── ProbeError             1   the machine, or a file about one, could not be read
"""

from __future__ import annotations

from typing import ClassVar


class ParlaunchError(Exception):
    """What is wrong, in terms of what the user gave us, and what to try next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.told = False  # another node of the job prints it into the same log

    def __str__(self) -> str:
        return f"{self.problem}\n  hint: {self.hint}" if self.hint else self.problem


class UsageError(ParlaunchError):
    """The command line, or a value on it, is wrong."""

    exit_code = 2


class NoLayoutError(ParlaunchError):
    """Every layout was refused by a rule or does not fit in memory."""

    exit_code = 3


class ProbeError(ParlaunchError):
    """A machine or a file that describes one cannot be read."""

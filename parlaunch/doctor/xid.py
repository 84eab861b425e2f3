"""Errors that NVIDIA's driver logs by number: what each means, and whether the GPU is fit for work after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from parlaunch.data import load
from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Xid:
    """One number. `fatal`: a job on the GPU ends, and the GPU needs a reset, a reboot or a technician."""

    words: str
    fatal: bool
    source: str


@cache
def xids() -> Mapping[int, Xid]:
    """The table `xids.json`."""
    return {row["xid"]: Xid(row["words"], row["fatal"], row["source"]) for row in load("xids.json")["rows"]}

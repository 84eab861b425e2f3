"""The plan of a job's last run, kept for the run after a requeue. In the user's cache folder, which nodes share as a rule."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from parlaunch_launch.home import home

KEEP_S = 30 * 24 * 3600.0  # longer than any site lets a job wait


def folder(environ: Mapping[str, str]) -> Path:
    """Where the last run of each job is kept: under $XDG_CACHE_HOME, or ~/.cache."""
    base = environ.get("XDG_CACHE_HOME") or home(environ) / ".cache"
    return Path(base, "parlaunch", "jobs")


def recall(job_id: str, environ: Mapping[str, str]) -> bytes | None:
    """The plan that `remember` kept for this job, or None."""
    with contextlib.suppress(OSError):
        return (folder(environ) / f"{Path(job_id).name}.json").read_bytes()
    return None


def remember(job_id: str, plan: bytes, environ: Mapping[str, str]) -> None:
    """Keep the plan of this run and drop those of long ago. A home that cannot be written to is no reason to stop."""
    place = folder(environ)
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        fresh = place / f".{Path(job_id).name}.{os.getpid()}"
        fresh.write_bytes(plan)
        fresh.replace(place / f"{Path(job_id).name}.json")
        for old in place.glob("*.json"):
            if time.time() - old.stat().st_mtime > KEEP_S:
                old.unlink()

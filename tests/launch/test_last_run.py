"""The plan of the run before a requeue."""

from __future__ import annotations

import os
from pathlib import Path

from parlaunch_launch import last_run


def test_the_plan_of_the_last_run_is_found_again(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert last_run.recall("7", environ) is None
    last_run.remember("7", b"one", environ)
    last_run.remember("7", b"two", environ)
    assert last_run.recall("7", environ) == b"two"
    assert last_run.recall("8", environ) is None
    assert os.listdir(tmp_path / "parlaunch" / "jobs") == ["7.json"]


def test_plans_of_long_ago_are_dropped(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    last_run.remember("7", b"old", environ)
    os.utime(last_run.folder(environ) / "7.json", (0, 0))
    last_run.remember("8", b"new", environ)
    assert last_run.recall("7", environ) is None
    assert last_run.recall("8", environ) == b"new"


def test_a_home_that_cannot_be_written_to_is_no_reason_to_stop() -> None:
    last_run.remember("7", b"x", {"HOME": "/dev/null"})
    assert last_run.recall("7", {"HOME": "/dev/null"}) is None


def test_a_job_id_is_no_path(tmp_path: Path) -> None:
    last_run.remember("../../x", b"x", {"XDG_CACHE_HOME": str(tmp_path / "a")})
    assert [p.name for p in tmp_path.rglob("*.json")] == ["x.json"]

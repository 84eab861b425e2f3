"""The history: rows of one's own runs in a file that several processes write."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch_launch import history
from parlaunch_launch.home import home
from tests.conftest import HANGS_S


def test_the_history_keeps_what_can_be_read(tmp_path: Path) -> None:
    file = history.path({"XDG_STATE_HOME": str(tmp_path)})
    assert history.read(file) == []
    assert history.append({"id": "a"}, file) is None
    with file.open("a") as out:
        out.write('{"id": "cut o\n')
    assert history.append({"id": "b"}, file) is None
    assert [row["id"] for row in history.read(file)] == ["a", "b"]


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    os.mkfifo(file)
    assert history.read(file) == []
    assert "was not written" in str(history.append({"id": "a"}, file))


def test_a_history_that_cannot_be_written_spoils_nothing(tmp_path: Path) -> None:
    (tmp_path / "parlaunch").write_text("a file where the folder should be")
    problem = history.append({"id": "a"}, history.path({"XDG_STATE_HOME": str(tmp_path)}))
    assert problem is not None
    assert "was not written" in problem


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"id": "a"}\n{"id": "cut')
    assert history.append({"id": "b"}, file) is None
    assert [row["id"] for row in history.read(file)] == ["a", "b"]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    program = (
        "import sys; from pathlib import Path; from parlaunch_launch import history\n"
        "for n in range(60): history.append({'id': f'{sys.argv[2]}-{n}', 'fill': 'x' * 9000}, Path(sys.argv[1]))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(file), name]) for name in "ab"]
    assert [w.wait(timeout=HANGS_S) for w in writers] == [0, 0]
    rows = history.read(file)
    assert sorted(r["id"] for r in rows) == sorted(f"{name}-{n}" for name in "ab" for n in range(60))
    assert len(file.read_text().splitlines()) == 120


def test_the_oldest_rows_go_when_the_file_is_large(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for n in range(50):
        assert history.append({"id": n, "fill": "x" * 100}, file, most_bytes=2000) is None
    ids = [row["id"] for row in history.read(file)]
    assert ids == list(range(ids[0], 50))
    assert file.stat().st_size <= 2000


def test_rows_are_forgotten_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert history.forget(file, lambda row: True) == 0
    for n in range(3):
        history.append({"id": n}, file)
    assert history.forget(file, lambda row: row["id"] == 1) == 1
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [0, 2]


def test_a_writer_that_was_stopped_holds_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "WRITING_S", 0.0)
    file = tmp_path / "history.jsonl"
    with (tmp_path / "history.jsonl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert history.append({"id": "a"}, file, most_bytes=1) is None
        assert [row["id"] for row in history.read(file)] == ["a"]  # and nothing is taken out meanwhile
        with pytest.raises(OSError, match="another process"):
            history.forget(file, lambda row: True)
    assert history.forget(file, lambda row: True) == 1


def test_the_newest_row_stays_however_large_it_is(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for name in "ab":
        assert history.append({"id": name, "fill": "x" * 500}, file, most_bytes=100) is None
    assert [row["id"] for row in history.read(file)] == ["b"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    there, link = tmp_path / "elsewhere" / "kept", tmp_path / "link"
    there.write_text("old")
    there.chmod(0o640)
    link.symlink_to(there)
    history.replaced(link, b"new")
    assert link.is_symlink()
    assert there.read_text() == "new"
    assert there.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="directory"):
        history.replaced(tmp_path / "elsewhere", b"a folder is there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "link"]


def test_a_file_that_cannot_be_read_is_no_empty_history(tmp_path: Path) -> None:
    assert history.read(tmp_path) == []
    with pytest.raises(OSError, match="directory"):
        history.rows_of(tmp_path)


def test_without_home_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert history.path({"HOME": "/home/me"}) == Path("/home/me/.local/state/parlaunch/history.jsonl")
    monkeypatch.delenv("HOME", raising=False)
    known = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert home({}) == home({"HOME": ""}) == known
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user whom nobody knows
    assert home({}).name == f"parlaunch-{os.getuid()}"

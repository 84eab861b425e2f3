"""The history: rows of one's own runs in a file that several processes write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from parlaunch_launch import history
from tests.conftest import HANGS_S


def test_the_history_keeps_what_can_be_read(tmp_path: Path) -> None:
    file = history.path({"XDG_STATE_HOME": str(tmp_path)})
    assert history.read(file) == []
    assert history.append({"id": "a"}, file) is None
    with file.open("a") as out:
        out.write('{"id": "cut o\n')
    assert history.append({"id": "b"}, file) is None
    assert [row["id"] for row in history.read(file)] == ["a", "b"]


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

"""stdout and stderr of every kind: the text degrades, and nothing stops for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said
from tests.conftest import HANGS_S

PLAN = ["plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:2"]
OWN = [sys.executable, "-P", "-m", "parlaunch"]


def run(*words: str, shell: str = "", **environ: str) -> subprocess.CompletedProcess[bytes]:
    """parlaunch, behind a shell's redirections."""
    script = f'exec "$@" {shell}'
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG")}
    return subprocess.run(
        ["bash", "-c", script, "sh", *OWN, *words], capture_output=True, timeout=HANGS_S, env={**env, **environ}
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_plan_is_printed_in_any_encoding(encoding: str) -> None:
    done = run(*PLAN, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "TP 1" in text
    assert ("2 nodes x 8" if encoding == "ascii" else "2 nodes × 8") in text


def test_the_c_locale_gets_a_plan() -> None:
    done = run(*PLAN, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_plan_that_nobody_got_is_no_success() -> None:
    done = run(*PLAN, shell="> /dev/full")
    assert (done.returncode, done.stderr) == (1, b"error: stdout cannot be written: No space left on device\n")


def test_a_plan_that_does_not_fit_on_the_disk_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("the plan of before")
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "sh", *OWN, *PLAN, "--save-plan", str(file), "--quiet"]
    done = subprocess.run(limited, capture_output=True, timeout=HANGS_S, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"error: --save-plan {file}: File too large")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plan.json", "the plan of before")]


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_and_full_outputs_stop_nothing(shell: str) -> None:
    done = run(*PLAN, shell=shell)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_an_error_has_its_code_where_it_cannot_be_said() -> None:
    assert run("plan", "--recipe", "nothing_like_it", "--hardware", "dgx-h100:2", shell=">&- 2>&-").returncode == 2


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    script = 'set -o pipefail; "$@" | true'
    for _ in range(2):
        done = subprocess.run(["bash", "-c", script, "sh", *OWN, *PLAN, "--format", "json"], capture_output=True)
        assert done.returncode in (0, 141)  # 0 when the pipe took it all before its reader left
        assert done.stderr == b""


def test_a_launch_goes_on_without_any_output(tmp_path: Path) -> None:
    """What it becomes runs, and no socket of ours has become its stdout."""
    pytest.importorskip("torch")
    said = tmp_path / "said"
    script = tmp_path / "train.py"
    script.write_text(
        f"import os\nopen({str(said)!r}, 'w').write(' '.join(os.readlink(f'/proc/self/fd/{{n}}') for n in (0, 1, 2)))\n"
    )
    words = [
        "--recipe",
        "llama32_1b_pretrain_config",
        "--device",
        "cpu",
        "--nproc-per-node",
        "1",
        "--script",
        str(script),
    ]
    assert run(*words, shell="<&- >&- 2>&-").returncode == 0
    assert "socket" not in said.read_text()


def test_control_characters_of_a_plan_reach_neither_terminal_nor_script(
    parlaunch: Callable[..., Said], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    assert parlaunch(*PLAN, "--save-plan", str(file)).code == 0
    plan = json.loads(file.read_text())
    for node in plan["hardware"]["nodes"]:
        for gpu in node["gpus"]:
            gpu["name"] = "NVIDIA H100 80GB HBM3\n#SBATCH --wrap='rm -rf /'\n\x1b]0;owned\x07\x1b[2J"
        node["hostname"] = "n\r\x1b[2Jx"
    file.write_text(json.dumps(plan))
    for form in ("text", "sbatch", "shell", "json"):
        said = parlaunch("plan", "--plan", str(file), "--format", form)
        assert not {"\x1b", "\x07", "\r"} & set(said.out + said.err)
        assert not [line for line in said.out.splitlines() if line.startswith("#SBATCH --wrap")]


def test_a_terminal_gets_no_control_characters_either(tmp_path: Path) -> None:
    """On a real terminal colours pass, and what a name holds is written out."""
    import pty

    name = "x\x1b[2J\x1b]0;owned\x07"
    primary, secondary = pty.openpty()
    done = subprocess.Popen(
        [*OWN, "plan", "--recipe", name, "--hardware", "dgx-h100:2"], stdout=secondary, stderr=secondary, cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(secondary)
    assert done.wait(HANGS_S) == 2
    text = b""
    try:
        while chunk := os.read(primary, 65536):
            text += chunk
    except OSError:
        pass
    os.close(primary)
    assert b"unknown recipe" in text
    assert b"\x1b[2J" not in text
    assert b"\x07" not in text

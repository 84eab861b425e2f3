"""A plain launch that dies says at its end why, and which option goes without what failed: through the real torchrun."""

from __future__ import annotations

import importlib.util
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch_launch.overheard import KEPT, Overheard, why
from tests.conftest import HANGS_S, need

FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("what came before", file=sys.stderr)
    raise {error}
time.sleep(1200)
"""
ENDS = [
    ("ImportError('DeepEP is not installed. Please install DeepEP package.')", "--switches dispatcher=alltoall"),
    ("ImportError('HybridEP is not installed. Please install HybridEP package.')", "--switches dispatcher=alltoall"),
    (
        "RuntimeError('/te/comm_gemm_overlap/userbuffers/userbuffers-host.cpp:240 in function "
        "create_communicator_grouped2: CUDA Error: invalid argument')",
        "--switches tp_overlap=off",
    ),
    ("RuntimeError('CUDA error: operation not permitted when stream is capturing')", "--switches graphs=off"),
]


def launched(tmp_path: Path, script: str, **given: int) -> subprocess.CompletedProcess[str]:
    """torchrun, as a launch on one machine becomes it, with two ranks of a script that is a user's own."""
    need(importlib.util.find_spec("torch"), "torch")
    file = tmp_path / "train.py"
    file.write_text(script)
    command = [sys.executable, "-P", "-m", "parlaunch_launch.elastic", "--", "--standalone", "--local-addr=127.0.0.1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--nproc-per-node=2", str(file)], stdout=subprocess.PIPE, stderr=given.get("stderr", subprocess.PIPE),
        text=True, env=env, timeout=HANGS_S, check=False,
    )  # fmt: skip


@pytest.mark.training
@pytest.mark.parametrize(("error", "option"), ENDS, ids=["deepep", "hybridep", "userbuffers", "capture"])
def test_a_launch_that_dies_of_a_switch_ends_with_the_option_that_goes_without_it(
    tmp_path: Path, error: str, option: str
) -> None:
    done = launched(tmp_path, FAILS.format(error=error))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("parlaunch: rank 1 failed: "), done.stderr
    assert option in last
    assert "what came before" in done.stderr  # nothing of what the ranks say is lost
    assert "Root Cause" in done.stderr


@pytest.mark.training
def test_a_failure_that_nobody_knows_ends_with_torchrun_s_own_words(tmp_path: Path) -> None:
    done = launched(tmp_path, FAILS.format(error="KeyError('lr')"))
    assert done.returncode == 1
    assert "parlaunch:" not in done.stderr
    assert "KeyError: 'lr'" in done.stderr


@pytest.mark.training
def test_a_terminal_stays_one_for_the_ranks(tmp_path: Path) -> None:
    main, sub = pty.openpty()
    try:
        script = f"import os, sys\nopen({str(tmp_path / 'said')!r} + os.environ['RANK'], 'w').write(str(sys.stderr.isatty()))\n"
        assert launched(tmp_path, script, stderr=sub).returncode == 0
    finally:
        os.close(main)
        os.close(sub)
    assert {(tmp_path / f"said{rank}").read_text() for rank in (0, 1)} == {"True"}


def test_all_goes_where_it_went_and_the_end_is_kept() -> None:
    read, write = os.pipe()
    with Overheard(write) as heard:
        child = [sys.executable, "-c", f"import os; os.write({write}, b'of a child\\n')"]
        subprocess.run(child, pass_fds=(write,), check=True)
        os.write(write, b"the last\n")
    os.close(write)
    with os.fdopen(read, "rb") as rest:
        assert rest.read() == b"of a child\nthe last\n"
    assert heard.tell() == "of a child\nthe last\n"


def test_no_more_than_the_end_is_kept() -> None:
    with open(os.devnull, "wb") as nowhere, Overheard(nowhere.fileno()) as heard:
        for _ in range(40):
            os.write(nowhere.fileno(), b"x" * (1 << 14))
        os.write(nowhere.fileno(), b"the last")
    assert len(heard.tell()) <= KEPT + (1 << 16)
    assert heard.tell().endswith("the last")


def test_a_reader_that_is_gone_holds_and_kills_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    with Overheard(write) as heard:
        for _ in range(300):  # more than a pipe holds
            os.write(write, b"y" * (1 << 14))
    os.close(write)
    assert heard.tell().endswith("y")


def test_what_ranks_see_of_another_s_end_is_no_cause() -> None:
    assert why("RuntimeError: NCCL error: remote process exited or there was a network error") == ""
    assert why("[rank3]: ValueError: something") == ""
    assert why("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.").startswith(
        "a GPU ran out of memory; "
    )

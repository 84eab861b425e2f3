"""The CPU runner's checkpoints: a training that is ended by a signal comes back and computes what it would have computed."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANGS_S, need

pytestmark = pytest.mark.training

RECIPE = "llama32_1b_pretrain_config"


def argv(folder: Path, iterations: int, *words: str) -> list[str]:
    own = [
        sys.executable,
        "-P",
        "-m",
        "parlaunch",
        "--recipe",
        RECIPE,
        "--device",
        "cpu",
        "--nproc-per-node",
        "2",
        "--tp",
        "1",
    ]
    keep = [f"checkpoint.save={folder}", f"checkpoint.load={folder}", "scheduler.lr_decay_iters=400"]
    return [*own, "--quiet", f"train.train_iters={iterations}", *keep, *words]


def train(folder: Path, iterations: int, *words: str) -> tuple[list[float], str]:
    """Losses by iteration, and all that was said."""
    done = subprocess.run(
        argv(folder, iterations, *words), capture_output=True, text=True, timeout=HANGS_S, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(x) for x in re.findall(r"lm loss: (\S+)", done.stdout)], done.stdout


@pytest.fixture(autouse=True)
def core_is_here() -> None:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")


def test_a_training_in_two_parts_computes_what_one_would(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", 6)
    first, _ = train(tmp_path / "parts", 3)
    second, said = train(tmp_path / "parts", 6)
    assert "loaded checkpoint of iteration 3" in said
    assert [*first, *second] == pytest.approx(whole, rel=1e-5)


def test_sigterm_saves_and_the_next_start_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    words = argv(folder, 100_000, "train.exit_signal_handler=True")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as started:
        assert started.stdout is not None
        for line in started.stdout:
            if "iteration        3/" in line:
                break
        started.send_signal(signal.SIGTERM)
        rest = started.stdout.read()
        assert started.wait(HANGS_S) == 0, rest
    at = re.search(r"saved checkpoint of iteration (\d+)", rest)
    assert at is not None, rest
    _, said = train(folder, int(at[1]) + 1)
    assert f"loaded checkpoint of iteration {at[1]}" in said

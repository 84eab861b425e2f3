"""Scripts hold nothing of the machine that they were printed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said

PLAN = ("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:2")
Run = Callable[..., Said]


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an interpreter, a Bridge and variables of its own."""
    home = tmp_path / "laptop"
    (home / "Megatron-Bridge" / "scripts" / "training").mkdir(parents=True)
    (home / "Megatron-Bridge" / "scripts" / "training" / "run_recipe.py").write_text("")
    monkeypatch.setattr("sys.executable", str(home / "python"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MEGATRON_BRIDGE_HOME", str(home / "Megatron-Bridge"))
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "wlan7")
    return home


@pytest.mark.parametrize("format", ["shell", "sbatch"])
def test_nothing_of_the_laptop_is_in_a_script(parlaunch: Run, laptop: Path, format: str) -> None:
    text = parlaunch(*PLAN, "--format", format).out
    for trace in (str(laptop), "laptop", "77", "wlan7", "yours"):
        assert trace not in text
    assert "parlaunch --recipe" in text or "python -m torch.distributed.run" in text


def test_the_interpreter_is_the_one_that_is_named(parlaunch: Run, laptop: Path) -> None:
    named = ("--python", "/opt/venv/bin/python")
    assert "\n/opt/venv/bin/python -m torch.distributed.run" in parlaunch(*PLAN, *named, "--format", "shell").out
    last = parlaunch(*PLAN, *named, "--format", "sbatch").out.splitlines()[-1]
    assert "/opt/venv/bin/python -m parlaunch --recipe llama3_8b_pretrain_config" in last


def test_an_interface_that_is_named_is_the_one_of_both_kinds_of_sockets(parlaunch: Run, laptop: Path) -> None:
    text = parlaunch(*PLAN, "--interface", "ib7", "--format", "shell").out
    assert 'export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME-=ib7}"' in text
    assert 'export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME-ib7}"' in text


def test_the_words_of_a_script_make_the_plan_again(parlaunch: Run) -> None:
    asked = (
        "--tp",
        "2",
        "--no-fsdp",
        "--headroom",
        "0.2",
        "--srun-arg=--mpi=none",
        "--seq-length",
        "4096",
        "train.train_iters=9",
        "--",
        "--x",
        "y z",
    )
    last = parlaunch(*PLAN, *asked[:-3], "--format", "sbatch", *asked[-3:]).out.splitlines()[-1]
    assert last.endswith(
        "parlaunch --recipe llama3_8b_pretrain_config --seq-length 4096 --tp 2 --no-fsdp --headroom 0.2 "
        "--srun-arg=--mpi=none train.train_iters=9 -- --x 'y z'"
    )


@pytest.mark.parametrize("format", ["shell", "sbatch"])
def test_a_script_is_printed_and_nothing_launched(
    parlaunch: Callable[..., Said], format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parlaunch.cli.launch.become", lambda *_: pytest.fail("it launches"))
    said = parlaunch(*PLAN[1:], "--format", format)
    assert said.code == 0, said.err
    assert said.out == parlaunch(*PLAN, "--format", format).out

"""verify: real child processes that log as ranks do, well or badly, and one real training."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

from parlaunch.errors import ParlaunchError
from parlaunch.layout import Layout
from parlaunch.plan import Candidate
from parlaunch_launch import history, torchrun
from parlaunch_launch.verify import Launch, Progress, Run, _parent, descendants, measure, verify, verify_overrides
from tests.conftest import need
from tests.test_verdict import CANDIDATE

LINE = (
    "print(f' [2026-01-01 00:00:00] iteration {n:8d}/{of:8d} | elapsed time per iteration (ms): {ms:.1f} |"
    " lm loss: {12.0 - n:.6E} | number of skipped iterations:   0 | number of nan iterations:   0 |', flush=True)"
)
GOOD = f"import sys\nof, ms = 3, float(sys.argv[1])\nfor n in range(1, of + 1):\n    {LINE}\n"
OUT_OF_MEMORY = (
    "import sys\n"
    "print('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
    " of which 1.10 GiB is free. Of the allocated memory 74.00 GiB is allocated by PyTorch', file=sys.stderr)\n"
    "sys.exit(1)\n"
)
HANG = (
    "import subprocess, sys, time\n"
    "of, ms, n = 3, 5.0, 1\n"
    f"{LINE}\n"
    # As torchrun does: the rank stands in a session of its own.
    "rank = 'import time\\ndef all_reduce():\\n    time.sleep(600)\\nall_reduce()'\n"
    "subprocess.run([sys.executable, '-c', rank], start_new_session=True)\n"
    "sys.exit(1)\n"
)


def launch(program: str, *args: str, candidate: Candidate = CANDIDATE) -> Launch:
    return Launch(argv=(sys.executable, "-c", program, *args), env=dict(os.environ), candidate=candidate)


def test_a_good_run_is_read_while_it_goes_and_its_log_is_kept(tmp_path: Path) -> None:
    run = measure(launch(GOOD, "100"), log=tmp_path / "a.log", iterations=3)
    assert run.verdict.ok
    assert run.returncode == 0
    assert run.measured.iteration_time_s == pytest.approx(0.1)
    assert len(run.log.read_text().splitlines()) == 3


def test_top_measures_the_best_and_keeps_the_fastest(tmp_path: Path) -> None:
    launches = [launch(GOOD, "300"), launch(GOOD, "200"), launch(GOOD, "100")]
    seen: list[int] = []
    outcome = verify(launches, log_dir=tmp_path, iterations=3, top=2, done=lambda n, run: seen.append(n))
    assert seen == [0, 1]
    assert outcome.winner is outcome.runs[1]
    assert outcome.exit_code == 0


def test_out_of_memory_is_explained_and_the_next_plan_is_tried(tmp_path: Path) -> None:
    outcome = verify([launch(OUT_OF_MEMORY), launch(GOOD, "100")], log_dir=tmp_path, iterations=3, retries=1)
    assert [run.verdict.status for run in outcome.runs] == ["oom", "ok"]
    assert "torch needed at least 77.0 GiB, predicted were 58.0 GiB" in outcome.runs[0].verdict.sentences[-1]
    assert outcome.winner is outcome.runs[1]


def test_without_retries_the_first_failure_is_the_answer(tmp_path: Path) -> None:
    outcome = verify([launch(OUT_OF_MEMORY), launch(GOOD, "100")], log_dir=tmp_path, iterations=3)
    assert len(outcome.runs) == 1
    assert outcome.winner is None
    assert outcome.exit_code == 1


def test_a_run_that_hangs_is_asked_where_it_stands_and_leaves_no_process_behind(tmp_path: Path) -> None:
    before = set(descendants(os.getpid()))
    started = time.monotonic()
    run = measure(launch(HANG), log=tmp_path / "hang.log", iterations=3, silence_s=3.0)
    assert run.verdict.status == "hang"
    assert run.returncode is None
    assert "after iteration 1" in run.verdict.sentences[0]
    assert "all_reduce" in run.verdict.sentences[0]
    assert time.monotonic() - started < 60
    assert not {pid for pid in descendants(os.getpid()) if _parent(pid) is not None} - before


def test_progress_is_reported_every_second(tmp_path: Path) -> None:
    seen: list[Progress] = []
    slow = GOOD + "import time\ntime.sleep(2.5)\n"
    samples = iter([5, 9, 7, *[1] * 1000])
    run = measure(
        launch(slow, "100"), log=tmp_path / "a.log", iterations=3, progress=seen.append, sample=lambda: next(samples)
    )
    assert len(seen) >= 2
    assert (seen[-1].iteration, seen[-1].of) == (3, 3)
    assert run.sampled_peak == 9


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = Launch(argv=("/nowhere/torchrun",), env={}, candidate=CANDIDATE)
    with pytest.raises(ParlaunchError, match="cannot start /nowhere/torchrun"):
        measure(missing, log=tmp_path / "a.log")


def test_output_that_ends_without_a_newline_is_read(tmp_path: Path) -> None:
    run = measure(launch("import sys; sys.stderr.write('KeyError: 1'); sys.exit(3)"), log=tmp_path / "a.log")
    assert run.verdict.sentences == ("the training failed: KeyError: 1",)
    assert run.returncode == 3


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


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real training on two gloo ranks through verify."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    runner = [
        *("-m", "parlaunch_launch.cpu.core_runner", "--recipe", "llama32_1b_pretrain_config"),
        *("model.tensor_model_parallel_size=2", "model.sequence_parallel=True", *verify_overrides(4)),
    ]
    argv = torchrun.command(runner, python=sys.executable, nnodes=1, nproc_per_node=2)
    layout = Layout(world=2, tp=2, global_batch_size=8)
    candidate = Candidate(layout=layout, memory=CANDIDATE.memory, estimate=CANDIDATE.estimate)
    one = Launch(argv=tuple(argv), env={**os.environ, "OMP_NUM_THREADS": "1"}, candidate=candidate)
    folder = tmp_path_factory.mktemp("verify")
    return verify([one], log_dir=folder, iterations=4, device="cpu", silence_s=300).runs[0]


@pytest.mark.training
def test_a_real_training_is_verified(real: Run) -> None:
    assert real.verdict.ok, real.log.read_text()[-3000:]
    assert {c.name: c.ok for c in real.verdict.checks} == {
        "finished": True, "finite loss": True, "layout": True, "iteration time": None, "peak memory": None,
    }  # fmt: skip
    assert (real.measured.layout["tp"], real.measured.layout["dp"]) == (2, 1)
    assert real.measured.host_peak

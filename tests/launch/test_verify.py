"""verify: real child processes that log as ranks do, well or badly, and one real training."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.turns import Turns
from parlaunch.environment import torchrun
from parlaunch.errors import ParlaunchError
from parlaunch.model.layout import Layout
from parlaunch.planning.plan import Candidate
from parlaunch_launch.elastic import children
from parlaunch_launch.family import MARK, environ_of
from parlaunch_launch.verify import Heard, Launch, Outcome, Progress, Run, measure, tapped, verify, verify_overrides
from tests.check.test_verdict import CANDIDATE
from tests.conftest import HANGS_S, need

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
    "import os, subprocess, sys, time\n"
    "of, ms, n = 3, 5.0, 1\n"
    # As torchrun does: the ranks stand in sessions of their own, and one hears nothing.
    'stay = \'open(os.environ["UP"] + os.environ["RANK"], "w").close(); time.sleep(1200)\\n\'\n'
    "rank = f'import os, time\\ndef all_reduce():\\n    {stay}all_reduce()'\n"
    "deaf = 'import faulthandler, os, signal, time\\nfaulthandler.disable()\\n'\n"
    "deaf += f'for n in (6, 15, 1, 2): signal.signal(n, signal.SIG_IGN)\\n{stay}'\n"
    "named = lambda n: subprocess.Popen(['sed', '-u', f's/^/[default{n}]:/'], stdin=subprocess.PIPE).stdin\n"
    "start = lambda n, code: subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stderr=named(n),\n"
    "    env={**os.environ, 'RANK': n, 'LOCAL_RANK': n})\n"
    "ranks = [start('0', rank), start('1', deaf if sys.argv[1:] == ['deaf'] else rank)]\n"
    "while not all(os.path.exists(os.environ['UP'] + n) for n in '01'): time.sleep(0.02)\n"
    f"{LINE}\n"
    "for each in ranks: each.wait()\n"
    "sys.exit(1)\n"
)


def left_behind(tester: int | None = None) -> list[int]:
    """Live processes of all runs that a process has started."""
    found = {int(p.name): environ_of(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    mine = str(os.getpid() if tester is None else tester)
    return [pid for pid, env in found.items() if env.get("PARLAUNCH_TEST") == mine and MARK in env]


def launch(program: str, *args: str, up: Path = Path()) -> Launch:
    """`up` is the folder in which ranks say that they are there."""
    return Launch(
        argv=(sys.executable, "-c", program, *args),
        env={**os.environ, "PARLAUNCH_TEST": str(os.getpid()), "UP": str(up / "up-")},
        candidate=CANDIDATE,
    )


def after_an_iteration(log: Path) -> Callable[[], float]:
    """A clock that begins to go once an iteration is logged, a second a look: nobody is too slow before."""
    seconds = [0.0]

    def clock() -> float:
        seconds[0] += log.exists() and "iteration" in log.read_text()
        return seconds[0]

    return clock


def tried(launches: Sequence[Launch], *, top: int = 1, retries: int = 0, **given: Any) -> Outcome:
    """The outcome of these launches in their turns."""
    turns = Turns(launches, top=top, retries=retries, candidate=lambda each: each.candidate)
    return verify(turns, lambda _number, each: each, **given)


def test_a_good_run_is_read_while_it_goes_and_its_log_is_kept(tmp_path: Path) -> None:
    run = measure(launch(GOOD, "100"), log=tmp_path / "a.log", iterations=3)
    assert run.verdict.ok
    assert run.returncode == 0
    assert run.measured.iteration_time_s == pytest.approx(0.1)
    assert len(run.log.read_text().splitlines()) == 3


def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    full = Path("/dev/full")
    run = measure(launch(GOOD, "100"), log=full, iterations=3, most=1 << 20)
    assert run.verdict.ok
    assert run.lost == "No space left on device"
    assert run.heard.count(b"lm loss") == 3
    run = measure(launch("import sys; sys.exit('ended')"), log=full, iterations=3)
    assert run.verdict.status == "disk"
    assert "/dev cannot be written: No space left on device" in run.verdict.sentences[0]


def test_a_folder_that_is_gone_is_made_again_and_one_that_cannot_be_costs_the_log_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "gone" / "too", tmp_path / "file" / "logs"):
        outcome = tried([launch(GOOD, "100")], log_dir=folder, iterations=3)
        assert outcome.exit_code == 0
        assert outcome.runs[0].lost == ("Not a directory" if folder.name == "logs" else None)


def test_of_a_long_output_its_beginning_and_its_end_are_kept_and_all_of_it_in_the_file(tmp_path: Path) -> None:
    with Heard(tmp_path / "log", most=8) as heard:
        for data in (b"ab", b"cdef", b"gh", b"i\xffj"):
            heard.keep(data)
    assert heard.ends() == b"abcd\nhi\xffj"
    assert (tmp_path / "log").read_bytes() == b"abcdefghi\xffj"


def test_time_that_was_slept_through_is_no_hang(tmp_path: Path) -> None:
    hours = count(0.0, 3600.0).__next__  # between two looks
    assert measure(
        launch(GOOD, "100"), log=tmp_path / "a.log", iterations=3, silence_s=2 * HANGS_S, clock=hours
    ).verdict.ok


def test_top_measures_the_best_and_keeps_the_fastest(tmp_path: Path) -> None:
    launches = [launch(GOOD, "300"), launch(GOOD, "200"), launch(GOOD, "100")]
    seen: list[str] = []
    outcome = tried(launches, log_dir=tmp_path, iterations=3, top=2, done=lambda each, run: seen.append(each.argv[-1]))
    assert seen == ["300", "200"]
    assert outcome.winner is outcome.runs[1]
    assert outcome.exit_code == 0


def test_out_of_memory_is_explained_and_the_next_plan_is_tried(tmp_path: Path) -> None:
    outcome = tried([launch(OUT_OF_MEMORY), launch(GOOD, "100")], log_dir=tmp_path, iterations=3, retries=1)
    assert [run.verdict.status for run in outcome.runs] == ["oom", "ok"]
    assert "torch needed at least 77.0 GiB, predicted were 58.0 GiB" in outcome.runs[0].verdict.sentences[-1]
    assert outcome.winner is outcome.runs[1]


def test_without_retries_the_first_failure_is_the_answer(tmp_path: Path) -> None:
    outcome = tried([launch(OUT_OF_MEMORY), launch(GOOD, "100")], log_dir=tmp_path, iterations=3)
    assert len(outcome.runs) == 1
    assert outcome.winner is None
    assert outcome.exit_code == 1


def test_what_another_plan_does_not_mend_is_not_tried_again(tmp_path: Path) -> None:
    nan = "import sys\nprint('RuntimeError: Rank 3: found NaN in local grad norm')\nsys.exit(1)\n"
    outcome = tried([launch(nan), launch(GOOD, "100")], log_dir=tmp_path, iterations=3, retries=3)
    assert [run.verdict.status for run in outcome.runs] == ["nan"]


def test_a_refused_switch_is_worth_another_plan(tmp_path: Path) -> None:
    refused = "import sys\nprint('AssertionError: recompute_method is not supported with this.')\nsys.exit(1)\n"
    outcome = tried([launch(refused), launch(GOOD, "100")], log_dir=tmp_path, iterations=3, retries=1)
    assert [run.verdict.status for run in outcome.runs] == ["refused", "ok"]


def test_a_switch_that_fails_is_named_and_plans_without_it_are_tried_in_place_of_all_that_wait(tmp_path: Path) -> None:
    failing = "import sys\nprint('RuntimeError: DeepEP error: timeout (dispatch CPU)')\nsys.exit(1)\n"
    asked: list[str | None] = []

    def without(_each: Launch, run: Run) -> list[Launch]:
        asked.append(run.measured.failures[0].switch)
        return [launch(GOOD, "100")]

    launches = [launch(failing), launch(GOOD, "300")]
    outcome = tried(launches, log_dir=tmp_path, iterations=3, retries=1, without=without)
    assert asked == ["dispatcher"]
    assert [run.verdict.status for run in outcome.runs] == ["switch", "ok"]
    assert outcome.runs[1].measured.iteration_time_s == pytest.approx(0.1)
    assert len({run.log for run in outcome.runs}) == 2


def test_a_switch_that_is_not_to_be_dropped_is_not_tried_again(tmp_path: Path) -> None:
    failing = "import sys\nprint('RuntimeError: DeepEP error: timeout (dispatch CPU)')\nsys.exit(1)\n"
    launches = [launch(failing), launch(GOOD, "300")]
    outcome = tried(launches, log_dir=tmp_path, iterations=3, retries=1, without=lambda _each, _run: [])
    assert [run.verdict.status for run in outcome.runs] == ["switch"]


def test_top_measures_as_many_as_asked_whatever_becomes_of_the_first(tmp_path: Path) -> None:
    broken = launch("import sys; sys.exit('KeyError: 1')")
    outcome = tried([broken, launch(GOOD, "200"), launch(GOOD, "100")], log_dir=tmp_path, iterations=3, top=3)
    assert [run.verdict.status for run in outcome.runs] == ["error", "ok", "ok"]
    assert outcome.winner is outcome.runs[2]
    assert outcome.exit_code == 0


def test_a_run_that_hangs_is_asked_where_it_stands_and_leaves_no_process_behind(tmp_path: Path) -> None:
    log = tmp_path / "hang.log"
    hangs = launch(HANG, up=tmp_path)
    run = measure(hangs, log=log, iterations=3, silence_s=3.0, clock=after_an_iteration(log))
    assert run.verdict.status == "hang"
    assert run.returncode is None
    assert "after iteration 1" in run.verdict.sentences[0]
    assert "all_reduce" in run.verdict.sentences[0]
    assert not left_behind()


def test_a_hang_names_the_rank_that_does_not_answer_and_kills_it(tmp_path: Path) -> None:
    log = tmp_path / "hang.log"
    hangs = launch(HANG, "deaf", up=tmp_path)
    run = measure(hangs, log=log, iterations=3, silence_s=3.0, clock=after_an_iteration(log))
    assert "rank 1 does not answer" in run.verdict.sentences[0]
    assert not left_behind()


ALONE = """
import os, sys
from pathlib import Path
from parlaunch_launch import verify
from tests.launch.test_verify import HANG, launch, tried
folder, verify.GRACE_S = Path(sys.argv[1]), float(sys.argv[2])
launches = [launch(HANG, "deaf", up=folder), launch(HANG, up=folder)]
outcome = tried(launches, log_dir=folder, iterations=3, top=2, silence_s=3600)
print([run.verdict.status for run in outcome.runs], flush=True)
sys.exit(outcome.exit_code)
"""


@pytest.mark.parametrize(
    ("sent", "grace_s", "code"),
    [
        ((signal.SIGTERM,), 1, 143),
        ((signal.SIGHUP,), 1, 129),
        ((signal.SIGINT, signal.SIGINT), 3600, 130),  # in a hurry nothing is waited for
    ],
)
def test_told_to_end_it_takes_every_rank_with_it(
    tmp_path: Path, sent: tuple[signal.Signals, ...], grace_s: float, code: int
) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path), str(grace_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        try:
            log = tmp_path / "verify-1.log"
            until = time.monotonic() + HANGS_S
            while not (log.exists() and "iteration" in log.read_text()):
                assert time.monotonic() < until
                time.sleep(0.1)
            for number in sent:
                child.send_signal(number)
                while children(child.pid):  # what it started is told to end: it has heard, and two are not one
                    assert time.monotonic() < until
                    time.sleep(0.1)
            said, _ = child.communicate(timeout=HANGS_S)
        finally:
            left = left_behind(child.pid)
            for pid in (child.pid, *left):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert not left
    assert child.returncode == code
    assert said.strip() == "['interrupted']"


def test_torchrun_s_command_gets_a_log_for_each_rank_and_nothing_else_changes(tmp_path: Path) -> None:
    argv = torchrun.command(["train.py"], python="python", nnodes=1, nproc_per_node=2)
    got = tapped(argv, tmp_path)
    assert [w for w in got if w not in ("--tee=3", f"--log_dir={tmp_path}")] == list(argv)
    assert tapped(("sh", "-c", "true"), tmp_path) == ("sh", "-c", "true")


def test_progress_is_reported_every_second(tmp_path: Path) -> None:
    seen: list[Progress] = []
    slow = GOOD + "import os, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.05)\n"
    samples = chain([5, 9, 7], repeat(1))

    def progress(made: Progress) -> None:
        seen.append(made)
        if len(seen) > 3 and made.iteration == 3:
            (tmp_path / "go").touch()

    run = measure(
        launch(slow, "100", str(tmp_path / "go")), log=tmp_path / "a.log", iterations=3, progress=progress,
        sample=lambda: next(samples),
    )  # fmt: skip
    assert (seen[-1].iteration, seen[-1].of) == (3, 3)
    assert run.sampled_peak == 9


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = Launch(argv=("/nowhere/torchrun",), env={}, candidate=CANDIDATE)
    with pytest.raises(ParlaunchError, match="cannot start /nowhere/torchrun"):
        measure(missing, log=tmp_path / "a.log", iterations=3)


def test_output_that_ends_without_a_newline_is_read(tmp_path: Path) -> None:
    run = measure(
        launch("import sys; sys.stderr.write('KeyError: 1'); sys.exit(3)"), log=tmp_path / "a.log", iterations=3
    )
    assert run.verdict.sentences == ("the training failed: KeyError: 1",)
    assert run.returncode == 3


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
    return tried([one], log_dir=folder, iterations=4, device="cpu", silence_s=300).runs[0]


@pytest.mark.training
def test_a_real_training_is_verified(real: Run) -> None:
    assert real.verdict.ok, real.log.read_text()[-3000:]
    assert {c.name: c.ok for c in real.verdict.compared} == {
        "finished": True, "optimizer steps": True, "finite loss": True, "layout": True, "global batch": True,
        "iteration time": None, "peak memory": None,
    }  # fmt: skip
    assert (real.measured.layout["tp"], real.measured.layout["dp"]) == (2, 1)
    assert real.measured.host_peak

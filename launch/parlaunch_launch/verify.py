"""Run a plan for a few iterations and hold it against its prediction; try the next one when it runs out of memory.

The launch is the real one, with the real argv and environment, as a child whose output is read while it goes and kept in
a file. Nothing here decides: `parlaunch.verdict` judges, `parlaunch_launch.training_log` reads.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from parlaunch.errors import ParlaunchError
from parlaunch.plan import Candidate
from parlaunch.verdict import Failure, Measured, Verdict, judge
from parlaunch_launch.training_log import LogReader

ITERATIONS = 10
"""Two to warm up and eight to take the median of."""

SILENCE_S = 600.0
"""Time without a sign of life that counts as a hang; loading a large model and the first compilation stay below it."""

GRACE_S = 15.0
"""Time a stopped run gets to end by itself."""

STOOD_IN = re.compile(r'File "([^"]+)", line \d+ in (\S+)')
"""A line of the stack that Python's faulthandler prints, innermost call first."""


def verify_overrides(iterations: int = ITERATIONS) -> tuple[str, ...]:
    """KEY=VALUE that make a launch a short one: so many iterations, each logged; no validation, no checkpoint, no tracker.

    Learning-rate warm-up goes, since Megatron wants it to be shorter than the run. They belong behind the user's own.
    """
    return (
        f"train.train_iters={iterations}", "scheduler.lr_warmup_iters=0", "validation.eval_iters=0",
        "validation.eval_interval=0", "checkpoint.save=null", "checkpoint.save_interval=0", "logger.log_interval=1",
        "logger.tensorboard_dir=null",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One candidate: what to run and what is expected of it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `iteration` None: it has not finished its first one."""

    iteration: int | None
    of: int
    elapsed_s: float
    seconds_per_iteration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one launch. `returncode` None: we ended it."""

    launch: Launch
    measured: Measured
    verdict: Verdict
    returncode: int | None
    seconds: float
    log: Path
    sampled_peak: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All runs in the order they were made, and the fastest of those that passed."""

    runs: tuple[Run, ...]
    winner: Run | None

    @property
    def exit_code(self) -> int:
        return 0 if self.winner is not None else 1


def verify(
    launches: Sequence[Launch],
    *,
    log_dir: Path,
    iterations: int = ITERATIONS,
    top: int = 1,
    retries: int = 0,
    silence_s: float = SILENCE_S,
    device: str = "cuda",
    progress: Callable[[int, Launch, Progress], None] | None = None,
    done: Callable[[int, Run], None] | None = None,
    sample: Callable[[], int | None] | None = None,
) -> Outcome:
    """Measure the `top` best of `launches`, which stand best first, one after another.

    A run that runs out of memory, hangs or fails is replaced by the next launch, at most `retries` times. `progress` is
    called every second with the number of the launch, `done` after each run; `sample` gives the bytes in use on the
    fullest GPU, if somebody can tell. Logs stay in `log_dir`.
    """
    runs: list[Run] = []
    passed = failed = 0
    log_dir.mkdir(parents=True, exist_ok=True)
    for number, launch in enumerate(launches):
        if passed == top or failed > retries:
            break
        report = None if progress is None else (lambda p, n=number, x=launch: progress(n, x, p))
        run = measure(
            launch, log=log_dir / f"verify-{number + 1}.log", iterations=iterations, silence_s=silence_s, device=device,
            progress=report, sample=sample,
        )  # fmt: skip
        runs.append(run)
        if done is not None:
            done(number, run)
        passed += run.verdict.ok
        failed += not run.verdict.ok
    good = [run for run in runs if run.verdict.ok and run.measured.iteration_time_s is not None]
    winner = min(good, key=lambda run: run.measured.iteration_time_s or 0.0, default=None)
    return Outcome(runs=tuple(runs), winner=winner)


def measure(
    launch: Launch,
    *,
    log: Path,
    iterations: int = ITERATIONS,
    silence_s: float = SILENCE_S,
    device: str = "cuda",
    progress: Callable[[Progress], None] | None = None,
    sample: Callable[[], int | None] | None = None,
) -> Run:
    """Run one launch to its end, or until it gives no sign of life for `silence_s` seconds.

    Before the first iteration any line is a sign of life, after it only iterations are. A run that hangs is asked where it
    stands (Python prints its stack on SIGABRT) before it is ended. Raises ParlaunchError when it cannot be started.
    """
    started = time.monotonic()
    reader, hung, peak = LogReader(), False, None
    # Ranks print their stack when we abort them, and print at all before they end.
    env = {**launch.env, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8", errors="replace") as file, _started(launch.argv, env) as child:
        alive = started
        for line in _lines(child):
            now = time.monotonic()
            if line is not None:
                file.write(line)
                before = reader.last_iteration
                reader.feed(line)
                after = reader.last_iteration
                if after is None or after is not before:
                    alive = now
            else:
                if sample is not None and (seen := sample()) is not None:
                    peak = max(peak or 0, seen)
                if progress is not None:
                    progress(_progress(reader, iterations, now - started))
                if now - alive > silence_s:
                    hung = True
                    break
        stack = _stop(child, file, reader) if hung else ()
    measured = reader.measured()
    if hung:
        measured = replace(measured, failures=(_hang(measured, silence_s, stack), *measured.failures))
    returncode = None if hung else child.returncode
    verdict = judge(
        launch.candidate,
        measured,
        returncode=returncode,
        iterations=iterations,
        hung=hung,
        device=device,
        sampled_peak=peak,
    )
    return Run(
        launch=launch, measured=measured, verdict=verdict, returncode=returncode, seconds=time.monotonic() - started, log=log,
        sampled_peak=peak,
    )  # fmt: skip


def _progress(reader: LogReader, iterations: int, elapsed: float) -> Progress:
    last = reader.last_iteration
    return Progress(
        iteration=None if last is None else last.number,
        of=iterations,
        elapsed_s=elapsed,
        seconds_per_iteration=None if last is None else last.seconds,
    )


@contextlib.contextmanager
def _started(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The child with both outputs in one pipe; whatever happens here, it does not outlive us."""
    try:
        child = subprocess.Popen(
            list(argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ParlaunchError(f"cannot start {argv[0]}: {error.strerror}", hint="check the path") from error
    try:
        yield child
    finally:
        if child.poll() is None:
            _end(child)
        if child.stdout is not None:
            child.stdout.close()


def _lines(child: subprocess.Popen[bytes], tick_s: float = 1.0) -> Iterator[str | None]:
    """The child's lines as they come, and None about once a second; ends with the child."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    rest, next_tick = b"", time.monotonic() + tick_s
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while True:
            if ready.select(timeout=max(0.0, next_tick - time.monotonic())):
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace") + "\n"
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + tick_s
                yield None
                if child.poll() is not None and not ready.select(timeout=0):
                    break  # a grandchild may keep the pipe open for ever
    if rest:
        yield rest.decode(errors="replace") + "\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE_S)


def _stop(child: subprocess.Popen[bytes], file: IO[str], reader: LogReader) -> tuple[str, ...]:
    """Ask the ranks of a hung run where they stand, then end it. Answers the innermost frames of the first that says."""
    for pid in descendants(child.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
    frames: list[str] = []
    dumping = False
    deadline = time.monotonic() + GRACE_S
    for line in _lines(child):
        if line is None:
            if time.monotonic() > deadline:
                break
            continue
        file.write(line)
        if "Fatal Python error: Aborted" in line:
            dumping = not frames
        elif dumping and (found := STOOD_IN.search(line)):
            frames.append(f"{found[2]} ({Path(found[1]).name})")
        elif dumping and frames:
            dumping = False
    _end(child)
    return tuple(frames[:3])


def _hang(measured: Measured, silence_s: float, stack: Sequence[str]) -> Failure:
    last = measured.iterations[-1].number if measured.iterations else 0
    where = f"after iteration {last}" if last else "before the first iteration"
    at = f"; a rank stood in {' < '.join(stack)}" if stack else ""
    return Failure(
        kind="hang",
        sentence=f"no sign of life for {silence_s:.0f} s {where}{at}",
        todo="--timeout gives it longer; NCCL_DEBUG=INFO shows which link it waits for",
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM first, which torchrun hands to its ranks, then SIGKILL for all that is left."""
    family = [child.pid, *descendants(child.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)
    try:
        child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pid in family[1:]:
        if _parent(pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int | None:
    """A process's parent; None when it is gone or waits to be buried."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before children. torchrun gives each rank a session of its own."""
    parents = {int(p.name): _parent(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found

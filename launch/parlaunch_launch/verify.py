"""Run a plan for a few iterations and hold it against its prediction; go on to the next one where that can help.

The launch is the real one, with the real argv and environment, as a child whose output is read while it goes and kept in
a file. Nothing here decides: `parlaunch.check.verdict` judges, `parlaunch.check.turns` says what is next, `parlaunch_launch.training_log`
reads.
"""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from parlaunch.check.symptoms import CAUSE_FIRST
from parlaunch.check.turns import Turns
from parlaunch.check.verdict import Failure, Measured, Verdict, judge
from parlaunch.errors import ParlaunchError
from parlaunch.frozen import dataclass
from parlaunch.planning.plan import Candidate
from parlaunch_launch.awake import Awake
from parlaunch_launch.family import GRACE_S, MARK, Orders, dying_with_us, end, new_mark
from parlaunch_launch.stacks import Stand, stands
from parlaunch_launch.training_log import Lines, LogReader

SILENCE_S = 600.0
"""Time without a sign of life that counts as a hang; loading a large model and the first compilation stay below it."""

TICK_S = 0.5

ABORTED_S = 3.0
"""Time for torchrun to see that its ranks are gone."""

TORCHRUN = ("-m", "torch.distributed.run")

T = TypeVar("T")


def verify_overrides(iterations: int) -> tuple[str, ...]:
    """KEY=VALUE that make a launch a short one: so many iterations, each logged; no validation, no checkpoint, no tracker.

    Learning-rate warm-up goes, since Megatron wants it to be shorter than the run. They belong behind the user's own.
    """
    return (
        f"train.train_iters={iterations}", "scheduler.lr_warmup_iters=0", "validation.eval_iters=0",
        "validation.eval_interval=0", "checkpoint.save=null", "checkpoint.save_interval=0", "logger.log_interval=1",
        "logger.tensorboard_dir=null",
    )  # fmt: skip


def tapped(argv: Sequence[str], folder: Path) -> tuple[str, ...]:
    """torchrun's command with a log for every rank in `folder`, and each line on the screen under its rank's name."""
    if tuple(argv[1:3]) != TORCHRUN:
        return tuple(argv)
    return (*argv[:3], "--tee=3", f"--log_dir={folder}", *argv[3:])  # spelled so, since before torch 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One candidate: what to run and what is expected of it. `ranks` is the folder of the ranks' own logs, if they write any;
    `machine_file` is what the prediction rests on; `fds` are file descriptors that the command needs."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    candidate: Candidate
    precision: str | None = None
    ranks: Path | None = None
    machine_file: str | None = None
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. `iteration` None: it has not finished its first one."""

    iteration: int | None
    of: int
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one launch. `returncode` None: we ended it. `rank_log`: of the rank that failed first. `heard`: the beginning
    and the end of its output, where they were asked for. `lost`: why its log is not whole."""

    launch: Launch
    measured: Measured
    verdict: Verdict
    returncode: int | None
    seconds: float
    log: Path
    sampled_peak: int | None = None
    rank_log: Path | None = None
    heard: bytes = b""
    lost: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All runs in the order they were made, and the fastest of those that passed. `told`: the signal that ended it all;
    `whole` False: it could not go on to the end."""

    runs: tuple[Run, ...]
    winner: Run | None
    told: int | None = None
    whole: bool = True

    @property
    def exit_code(self) -> int:
        """0 when a plan passed and all was measured; of a process that a signal ended, what a shell says of it."""
        if self.told is not None:
            return 128 + self.told
        return 0 if self.winner is not None and self.whole else 1


def verify(
    turns: Turns[T],
    launched: Callable[[int, T], Launch],
    *,
    log_dir: Path,
    iterations: int,
    silence_s: float = SILENCE_S,
    device: str = "cuda",
    tolerance: float | None = None,
    progress: Callable[[int, Launch, Progress], None] | None = None,
    done: Callable[[T, Run], None] | None = None,
    without: Callable[[T, Run], Sequence[T]] | None = None,
    sample: Callable[[], int | None] | None = None,
) -> Outcome:
    """Measure plans one after another, in their turns. `launched` makes the launch of one, given its number from 0.

    `progress` is called every tick with the number of the launch, `done` after each run; `without` gives the plans made anew
    without the switch that a run failed of, none where it is not to be dropped; `sample` gives the bytes in use on the
    fullest GPU, if somebody can tell. Logs stay in `log_dir`. SIGTERM, Ctrl-C and a lost terminal end the run and all its
    processes; a second signal does so at once.
    """
    runs: list[Run] = []
    with Orders() as orders:
        while orders.told is None and (plan := turns.take()) is not None:
            number = len(runs)
            launch = launched(number, plan)
            report = None if progress is None else (lambda p, n=number, x=launch: progress(n, x, p))
            run = measure(
                launch, log=log_dir / f"verify-{number + 1}.log", iterations=iterations, silence_s=silence_s, device=device,
                tolerance=tolerance, progress=report, sample=sample, orders=orders,
            )  # fmt: skip
            runs.append(run)
            if done is not None:
                done(plan, run)
            anew = None if without is None else (lambda x=plan, r=run: without(x, r))
            turns.ended(plan, run.verdict.status, without=anew)
    return outcome_of(runs, told=orders.told)


def outcome_of(runs: Sequence[Run], *, told: int | None = None) -> Outcome:
    """The runs with the fastest of those that passed."""
    good = [run for run in runs if run.verdict.ok and run.measured.iteration_time_s is not None]
    winner = min(good, key=lambda run: run.measured.iteration_time_s or 0.0, default=None)
    return Outcome(runs=tuple(runs), winner=winner, told=told)


def measure(
    launch: Launch,
    *,
    log: Path,
    iterations: int,
    silence_s: float = SILENCE_S,
    device: str = "cuda",
    tolerance: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    sample: Callable[[], int | None] | None = None,
    orders: Orders | None = None,
    most: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """Run one launch to its end, or until it gives no sign of life for `silence_s` seconds, or until we are told to end.

    Before the first iteration any line is a sign of life, after it only iterations are; time that we slept through is no
    silence. A run that hangs is asked where it stands (Python prints its stack on SIGABRT) before it is ended. `most` bytes of
    its output are in what comes of it. Raises ParlaunchError when it cannot be started.
    """
    started, awake = clock(), Awake(clock)
    orders = orders or Orders()
    reader, ended, peak, mark = LogReader(), None, None, new_mark()
    # Ranks print their stack when we abort them, print at all before they end, and say what memory they took.
    env = {**launch.env, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", MARK: mark}
    stood: tuple[Stand, ...] = ()
    with Heard(log, most) as heard, _started(launch, env, mark, orders) as child:
        alive = awake()
        for line in _lines(child, heard.keep):
            now = awake()
            if orders.told is not None:
                ended = "interrupted"
                break
            if line is not None:
                before = reader.last_iteration
                reader.feed(line)
                after = reader.last_iteration
                if after is None or after is not before:
                    alive = now
            else:
                if sample is not None and (seen := sample()) is not None:
                    peak = max(peak or 0, seen)
                if progress is not None:
                    progress(_progress(reader, iterations, clock() - started))
                if now - alive > silence_s:
                    ended = "hang"
                    break
        if ended == "hang":
            stood = stands(mark, _lines(child, heard.keep), orders)
        # The ranks of a run that hangs were aborted: who is still there has nothing to save.
        end(child, mark, orders, ask=ended is not None, grace_s=GRACE_S if ended == "interrupted" else ABORTED_S)
    measured = reader.measured()
    if ended == "hang":
        measured = replace(measured, failures=(_hang(measured, silence_s, stood), *measured.failures))
    returncode = None if ended else child.returncode
    if heard.lost is not None and returncode:
        measured = without_room(measured, log.parent, heard.lost)
    verdict = judge(
        launch.candidate, measured, returncode=returncode, iterations=iterations, ended=ended, device=device,
        precision=launch.precision, sampled_peak=peak, tolerance=tolerance,
    )  # fmt: skip
    return Run(
        launch=launch, measured=measured, verdict=verdict, returncode=returncode, seconds=clock() - started, log=log,
        sampled_peak=peak, rank_log=_rank_log(launch.ranks, measured), heard=heard.ends(), lost=heard.lost,
    )  # fmt: skip


def _progress(reader: LogReader, iterations: int, elapsed: float) -> Progress:
    last = reader.last_iteration
    return Progress(
        iteration=None if last is None else last.number,
        of=iterations,
        elapsed_s=elapsed,
    )


def _rank_log(folder: Path | None, measured: Measured) -> Path | None:
    """The log of the rank that failed first, when it is here."""
    if folder is None or measured.failed_rank is None:
        return None
    found = sorted(folder.glob(f"*/attempt_*/{measured.failed_rank.local_rank}/stderr.log"))
    return found[-1] if found else None


@contextlib.contextmanager
def _started(launch: Launch, env: Mapping[str, str], mark: str, orders: Orders) -> Iterator[subprocess.Popen[bytes]]:
    """The child with both outputs in one pipe; whatever happens here, neither it nor its ranks outlive us."""
    try:
        child = subprocess.Popen(
            list(launch.argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, pass_fds=launch.fds, preexec_fn=dying_with_us(),
        )  # fmt: skip
    except OSError as error:
        raise ParlaunchError(f"cannot start {launch.argv[0]}: {error.strerror}", hint="check the path") from error
    for fd in launch.fds:
        os.close(fd)  # the child's now: who waits for its end must not wait for ours
    try:
        yield child
    finally:
        end(child, mark, orders, ask=child.poll() is None)
        if child.stdout is not None:
            child.stdout.close()


class Heard:
    """What a run says: all of it in a file, of `most` bytes the beginning and the end in memory. A disk that is full, or a folder
    that somebody removed, costs the file and not the run."""

    def __init__(self, file: Path, most: int = 0) -> None:
        self.file = file
        self.lost: str | None = None
        self._half, self._size, self._first, self._last = most // 2, 0, bytearray(), bytearray()
        self._out: io.FileIO | None = None

    def __enter__(self) -> Heard:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._out = io.FileIO(self.file, "w")
        except OSError as error:
            self.lost = error.strerror
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            with contextlib.suppress(OSError):  # a file system over a network says only now that it is full
                self._out.close()

    def keep(self, data: bytes) -> None:
        """Add what came."""
        self._size += len(data)
        room = self._half - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        del self._last[: -self._half or None]
        left = memoryview(data)
        while self._out is not None and left:
            try:
                left = left[self._out.write(left) :]
            except OSError as error:
                self.lost = error.strerror
                break

    def ends(self) -> bytes:
        """The beginning and the end: all, where it was no more than `most` bytes."""
        return bytes(self._first + (b"\n" if self._size > 2 * self._half else b"") + self._last)


def without_room(measured: Measured, folder: Path, why: str) -> Measured:
    """What was measured of a run that failed while the folder of its logs could not be written."""
    full = Failure(
        kind="disk",
        sentence=f"{folder} cannot be written: {why}; the ranks write their output there too",
        todo="make room, or set XDG_STATE_HOME to a folder that has some",
    )
    failures = sorted((full, *measured.failures), key=lambda f: CAUSE_FIRST.index(f.kind))
    return replace(measured, failures=tuple(failures))


def _lines(
    child: subprocess.Popen[bytes], keep: Callable[[bytes], None], tick_s: float = TICK_S
) -> Iterator[str | None]:
    """The child's lines as they come, all of them kept, and None every tick; ends with the child."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    lines, next_tick = Lines(), time.monotonic() + tick_s
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while True:
            if ready.select(timeout=max(0.0, next_tick - time.monotonic())):
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                keep(chunk)
                yield from lines.cut(chunk)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + tick_s
                yield None
                if child.poll() is not None and not ready.select(timeout=0):
                    break  # a grandchild may keep the pipe open for ever
    yield from lines.end()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE_S)


def _hang(measured: Measured, silence_s: float, stood: Sequence[Stand]) -> Failure:
    last = measured.iterations[-1].number if measured.iterations else 0
    where = f"after iteration {last}" if last else "before the first iteration"
    return Failure(
        kind="hang",
        sentence=f"no sign of life for {silence_s:.0f} s {where}" + "".join(f"; {s}" for s in _odd(stood)),
        todo="--timeout gives it longer; NCCL_DEBUG=INFO shows which link it waits for",
    )


def _odd(stood: Sequence[Stand]) -> list[str]:
    """Who does not answer, and who stands elsewhere than the others; where all stand when nobody differs."""
    silent = [s for s in stood if not s.frames]
    said = [f"rank {s.rank} does not answer" + (f" ({s.state})" if s.state else "") for s in silent]
    speaking = [s for s in stood if s.frames]
    places = [s.frames[0] for s in speaking]
    usual = max(set(places), key=lambda p: (places.count(p), p), default=None)
    odd = [s for s in speaking if s.frames[0] != usual] if len(speaking) > 2 else []
    for s in odd:
        said.append(f"rank {s.rank} stands in {' < '.join(s.frames)}")
    if (waiting := next((s for s in speaking if s.frames[0] == usual), None)) is not None:
        who = "the others stand" if odd or silent else "a rank stood"
        said.append(f"{who} in {' < '.join(waiting.frames)}")
    return said

"""torchrun, in this process, with the exit code of the training in place of its own 1.

    python -P -m parlaunch_launch.elastic [--report-fd=N] -- torchrun's words

It is `torch.distributed.run` and nothing is taken away: its words, its report, its restarts. What is added:

- The exit code is that of the first rank that failed: 42 stays 42, a signal is 128 + its number.
- A rank that the kernel killed for want of memory is told apart from one that somebody killed.
- SIGTERM reaches the ranks, and torchrun then waits for them for as long as whoever sent it does, not for 30 s: who saves at
  SIGTERM gets the whole grace that Slurm or Kubernetes gives. A second one is torchrun's own affair.
- Where the line that ended it is known (`parlaunch/data/symptoms.json`), the cause and the way out stand at the end.
- SIGUSR1 and SIGUSR2, which Slurm sends to every process of a step, do not kill torchrun (`supervise` sees to the ranks).

`-P`, and no `-m torch.distributed.run`: a file `types.py` in the working directory is training's, and not ours to import.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from parlaunch_launch.ends import Failure, code_of, first
from parlaunch_launch.family import MARK
from parlaunch_launch.overheard import Overheard, why

MODULE = "torch.distributed.run"


def command(argv: Sequence[str], *, report_fd: int | None = None) -> list[str]:
    """torchrun's command as it is printed, as it is run: through this module."""
    if list(argv[1:3]) != ["-m", MODULE]:
        return list(argv)
    report = [] if report_fd is None else [f"--report-fd={report_fd}"]
    return [argv[0], "-P", "-m", "parlaunch_launch.elastic", *report, "--", *argv[3:]]


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run torchrun with the words behind `--`; its end is ours."""
    given = list(sys.argv[1:] if words is None else words)
    at = given.index("--")
    report = next((int(w.partition("=")[2]) for w in given[:at] if w.startswith("--report-fd=")), None)
    if report is not None:
        os.set_inheritable(report, False)
    sys.exit(run(given[at + 1 :], report))


def run(words: Sequence[str], report_fd: int | None = None) -> int:
    """The exit code of the training that torchrun runs with these words."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    before = oom_kills()
    # The ranks inherit that these are ignored; who wants them sets a handler of its own.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    overheard = Overheard() if MARK not in os.environ else None  # `verify` reads all of it itself
    try:
        with overheard or nullcontext():
            try:
                torchrun.main([*_patient(words), *words])
            except ChildFailedError:
                traceback.print_exc()
                raise
    except ChildFailedError as error:
        ends = [Failure(code_of(f.exitcode), float(f.timestamp), rank) for rank, f in error.failures.items()]
        primary = first(ends)
        failed = error.failures[primary.rank]
        cause = ""
        if overheard is not None and -failed.exitcode not in ORDERED:
            cause = why(f"{overheard.tell()}\n{failed.message}")
        return _reported(replace(primary, why=cause), _killed(failed.exitcode, before), report_fd)
    except SignalException as error:
        traceback.print_exc()
        return code_of(-int(error.sigval))
    return 0


ORDERED = (signal.SIGTERM, signal.SIGINT)
"""Signals by which somebody ends a training: nothing is to be explained then."""


def _reported(failure: Failure, killed: str, report_fd: int | None) -> int:
    """Say what is known beside the code: to the supervisor, which knows the other nodes, or, without one, on the screen."""
    cause = f"rank {failure.rank} failed: {failure.why}" if failure.why and report_fd is None else ""
    for words in filter(None, (f"rank {failure.rank} {killed}" if killed else "", cause)):
        with contextlib.suppress(OSError, ValueError):
            print(f"parlaunch: {words}", file=sys.stderr, flush=True)
    if report_fd is not None:
        with contextlib.suppress(OSError):
            os.write(report_fd, json.dumps(asdict(failure)).encode() + b"\n")
    return failure.code


# ------------------------------------------------------------------ the kernel's memory killer


def oom_kills(root: Path = Path("/")) -> dict[str, int]:
    """How often the kernel has killed for want of memory, so far: of this process's cgroup, and of the whole node."""
    found = {}
    for where, file in (("this job's memory limit", _memory_events(root)), ("this node", root / "proc/vmstat")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            rows = dict(line.split()[:2] for line in (file or Path()).read_text().splitlines())
            found[where] = int(rows["oom_kill"]) if "oom_kill" in rows else 0
    return found


def _memory_events(root: Path) -> Path | None:
    """The file with the count of this process's cgroup: memory.events (v2), memory.oom_control (v1)."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                return root / "sys/fs/cgroup" / path.lstrip("/") / "memory.events"
            if "memory" in controllers.split(","):
                return root / "sys/fs/cgroup/memory" / path.lstrip("/") / "memory.oom_control"
    return None


def _killed(status: int, before: dict[str, int], root: Path = Path("/")) -> str:
    """What is known of a death by SIGKILL beside its number."""
    if status != -signal.SIGKILL:
        return ""
    now = oom_kills(root)
    for where, count in now.items():
        if count > before.get(where, count):
            return f"was killed by the kernel: {where} ran out of memory (host memory, not the GPU's)"
    return "was killed (SIGKILL), and not by the kernel for want of memory: somebody sent it"


# ------------------------------------------------------------------ a patient end


def _patient(words: Sequence[str]) -> list[str]:
    """torchrun's option that leaves SIGTERM to us, and our handler. Nothing where this torchrun has no such option, where the
    user gave it, or where it would start new ranks for those that end."""
    from torch.distributed.launcher.api import LaunchConfig

    names = {word.partition("=")[0].replace("_", "-") for word in words}
    if (
        "signals_to_handle" not in getattr(LaunchConfig, "__dataclass_fields__", {})
        or "--signals-to-handle" in names
        or "PET_SIGNALS_TO_HANDLE" in os.environ
        or _restarts(words)
    ):
        return []
    signal.signal(signal.SIGTERM, functools.partial(_hand_down, _reaped()))
    return ["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT"]


def _restarts(words: Sequence[str]) -> bool:
    for at, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == "--max-restarts":
            return (value or "".join(words[at + 1 : at + 2])) != "0"
    return os.environ.get("PET_MAX_RESTARTS", "0") != "0"


def _hand_down(reaped_before: int, number: int, _: FrameType | None) -> None:
    """SIGTERM to every rank. The agent goes on watching them: it ends with them. Where they have ended already, it waits for
    the other nodes, which may still save, and its own end is theirs; where there are none yet, it ends as any process does."""
    ranks = children(os.getpid())
    if not ranks and not _had_children(reaped_before):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _had_children(reaped_before: int) -> bool:
    """Whether this process has had a child that ended: one that waits to be reaped, or one that was."""
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
    return _reaped() != reaped_before


def _reaped() -> int:
    """Page faults of the children that were waited for: more with every one of them."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt


def children(pid: int) -> list[int]:
    """The processes that one started itself, and that live."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
                if state not in "ZX" and int(parent) == pid:
                    found.append(int(entry))
    return found


if __name__ == "__main__":
    main()

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from parlaunch_launch.ends import Failure, code_of, first
from parlaunch_launch.family import MARK, parents
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


@dataclass(frozen=True, slots=True)
class Kills:
    """How often, so far, the kernel has killed for want of memory. None: that cannot be read here.

    `own`: processes of this process's cgroup, whichever memory ran out; `limit`: how often the limit of it, or of one above it
    that can be seen, was reached; `node`: on the whole node, in other jobs and containers too. `seen` is whether there is no
    limit that is not seen.
    """

    own: int | None
    limit: int | None
    node: int | None
    seen: bool


def oom_kills(root: Path = Path("/")) -> Kills:
    """The kernel's counts. Another container's end stands in those of the node, so they say nothing for sure of ours."""
    node = _rows(root / "proc/vmstat").get("oom_kill")
    mount, path, file = _memory_cgroup(root)
    # In a container's own view of the cgroups the path may be the host's, and the root is the container.
    here = path if (mount / path / file).exists() else Path()
    own = _rows(mount / here / file).get("oom_kill")
    above = [_rows(mount / folder / file) for folder in (here, *here.parents)] if file == "memory.events" else []
    reached = [rows["oom"] for rows in above if "oom" in rows]
    # The kernel's own root has no limit, and no such file.
    return Kills(own, sum(reached) if reached else None, node, bool(above) and not above[-1])


def _memory_cgroup(root: Path) -> tuple[Path, Path, str]:
    """Where this process's memory is counted: the hierarchy, the path in it, and the file: memory.oom_control (v1),
    memory.events (v2)."""
    found = root / "sys/fs/cgroup", Path(), "memory.events"
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return root / "sys/fs/cgroup/memory", Path(path.lstrip("/")), "memory.oom_control"
            if controllers == "":
                found = root / "sys/fs/cgroup", Path(path.lstrip("/")), "memory.events"
    return found


def _rows(file: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number a line; none where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        pairs = (line.split() for line in file.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    return {}


def _killed(status: int, before: Kills, root: Path = Path("/")) -> str:
    """What is known of a death by SIGKILL beside its number."""
    if status != -signal.SIGKILL:
        return ""
    now = oom_kills(root)
    ours, theirs = _more(before.own, now.own), _more(before.node, now.node)
    if ours:
        limit = "this job's memory limit"
        ran_out = limit if _more(before.limit, now.limit) else "this node" if now.seen else f"{limit}, or this node,"
        return f"was killed by the kernel: {ran_out} ran out of memory (host memory, not the GPU's)"
    if ours is False or theirs is False:
        return "was killed (SIGKILL), and not by the kernel for want of memory: somebody sent it"
    return "was killed (SIGKILL): by the kernel for want of host memory, or by somebody who sent it " + (
        "(it has killed on this node meanwhile; `dmesg` names whom)"
        if theirs
        else "(the kernel's counts are not to be read here)"
    )


def _more(before: int | None, now: int | None) -> bool | None:
    """Whether a count rose; None where it is not known."""
    return None if before is None or now is None else now > before


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
    return [child for child, parent in parents().items() if parent == pid]


if __name__ == "__main__":
    main()

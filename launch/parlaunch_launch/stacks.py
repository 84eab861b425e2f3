"""Where the ranks of a run that hangs stand: asked with SIGABRT, on which Python prints its stack."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from parlaunch.frozen import dataclass
from parlaunch_launch.awake import Awake
from parlaunch_launch.family import GRACE_S, Orders, environ_of, members, state_of
from parlaunch_launch.training_log import without_prefix

STOOD_IN = re.compile(r'File "([^"]+)", line \d+ in (\S+)')
"""A line of the stack that Python's faulthandler prints, innermost call first."""

ABORTED = "Fatal Python error: Aborted"
FRAMES = 3
QUIET_S = 4.0
"""So long after the last word, whoever said nothing does not answer."""
STATES = {
    "D": "it waits inside the kernel: a device or a file system",
    "T": "it is stopped",
    "t": "a debugger holds it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """One rank: the innermost calls of its main thread. None: it did not answer, and `state` may say why."""

    rank: str
    frames: tuple[str, ...] = ()
    state: str = ""


def ranks_of(mark: str) -> dict[int, str]:
    """The ranks of a run by process: those that torchrun started, without what they started themselves."""
    found = {pid: environ_of(pid) for pid in members(mark)}
    ranks = {pid: env for pid, env in found.items() if "LOCAL_RANK" in env}
    return {
        pid: env.get("RANK", env["LOCAL_RANK"])
        for pid, env in ranks.items()
        if (state := state_of(pid)) is not None and state[1] not in ranks
    }


def stands(mark: str, lines: Iterator[str | None], orders: Orders) -> tuple[Stand, ...]:
    """Ask every rank where it stands and read the answers from the run's output. The ranks are dead afterwards."""
    ranks = ranks_of(mark)
    local = {environ_of(pid).get("LOCAL_RANK", ""): rank for pid, rank in ranks.items()}
    states = {rank: STATES.get(found[0], "") for pid, rank in ranks.items() if (found := state_of(pid))}
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGABRT)
    frames: dict[str, list[str]] = {}
    dumping: set[str] = set()
    awake, heard = Awake(), 0.0
    for line in lines:
        now = awake()
        quiet = any(frames.values()) and now - heard > QUIET_S
        if now > GRACE_S or quiet or orders.hurry or (line is None and _all_said(frames, local, dumping)):
            break
        if line is not None:
            heard = now
            _hear(line, frames, dumping)
    if set(frames) == {""} and len(local) == 1:  # nothing says who printed a line, and there is one rank only
        frames = {next(iter(local)): frames[""]}
    answered = tuple(
        Stand(
            rank=rank, frames=tuple(frames.get(key, ())[:FRAMES]), state="" if frames.get(key) else states.get(rank, "")
        )
        for key, rank in sorted(local.items(), key=lambda item: int(item[1]) if item[1].isdigit() else 0)
    )
    return (
        answered
        if any(s.frames for s in answered) or "" not in frames
        else (Stand(rank="?", frames=tuple(frames[""][:FRAMES])),)
    )


def _all_said(frames: dict[str, list[str]], local: dict[str, str], dumping: set[str]) -> bool:
    return not dumping and bool(frames) and (set(local) <= set(frames) or set(frames) == {""}) and any(frames.values())


def _hear(line: str, frames: dict[str, list[str]], dumping: set[str]) -> None:
    said, who = without_prefix(line)
    who = who.rpartition("/")[2]
    if ABORTED in said:
        frames.setdefault(who, [])
    elif said.startswith("Current thread") and who in frames and not frames[who]:
        dumping.add(who)  # the one that was asked; stacks of the others stand around it
    elif who in dumping and (found := STOOD_IN.search(said)):
        frames[who].append(f"{found[2]} ({Path(found[1]).name})")
        if len(frames[who]) >= FRAMES:
            dumping.discard(who)
    elif who in dumping and frames[who]:
        dumping.discard(who)

"""Bind this rank to the CPUs beside its GPU. Called first thing in a rank: what allocates later allocates near."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, MutableMapping

from parlaunch.environment.binding import VARIABLE, read, spell


def bind_here(
    environ: MutableMapping[str, str] = os.environ,
    *,
    allowed: Callable[[int], Collection[int]] = os.sched_getaffinity,
    bind: Callable[[int, Collection[int]], None] = os.sched_setaffinity,
    threads: Callable[[], list[int]] | None = None,
) -> str | None:
    """Bind every thread of this process as `PARLAUNCH_CPUS` says for `LOCAL_RANK`; the CPUs as the kernel lists them.

    None when there is nothing to do. Never stops a rank: a list that is not readable, or CPUs that are not ours any
    more, leave it where it is, with a line on stderr. CPUs outside the cgroup are left out.
    """
    text, rank = environ.get(VARIABLE), environ.get("LOCAL_RANK", "")
    if not text or not rank.isdigit():
        return None
    try:
        lists = read(text)
    except ValueError as error:
        print(f"{VARIABLE}={text} is not readable ({error}); rank {rank} stays unbound", file=sys.stderr)
        return None
    mine = lists[int(rank)] if int(rank) < len(lists) else None
    usable = sorted(set(mine or ()) & set(allowed(0)))
    if not usable:
        if mine:
            print(f"CPUs {spell(mine)} are not ours to use; local rank {rank} stays unbound", file=sys.stderr)
        return None
    try:
        bind(0, usable)
    except OSError as error:
        print(f"local rank {rank} cannot be bound to CPUs {spell(usable)}: {error}", file=sys.stderr)
        return None
    for thread in (threads or _threads)():
        with contextlib.suppress(OSError):  # it may have ended
            bind(thread, usable)
    return spell(usable)


def _threads() -> list[int]:
    """Threads that libraries have started already; the main one is bound by then."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return []

"""Slurm's lists of hosts and of counts, read without `scontrol`, which containers lack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from parlaunch.errors import UsageError

MOST = 65536
"""Hosts that one list may name: Slurm's own MAX_HOSTLIST is 64 Ki; a typing error must not fill the memory."""

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_NUMBERED = re.compile(r"(.*?)(\d{1,18})")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def hostnames(nodelist: str) -> tuple[str, ...]:
    """The hosts of `gpu[01-04,07],login1`, in the order written: `gpu01 … gpu04 gpu07 login1`.

    A leading zero of the low end pads; several brackets multiply, the last one running fastest (Slurm
    itself brackets the last number only). Doubles stay, as with
    `scontrol show hostnames`. Raises UsageError for what Slurm itself would refuse: brackets that do not match, a range
    that runs backwards, anything but digits in brackets, no host between commas, or more than 65,536 hosts.
    """
    found: list[str] = []
    for part in _split(nodelist):
        for host in _expand(part, nodelist):
            found.append(host)
            if len(found) > MOST:
                raise UsageError(f"the node list {nodelist!r} names more than {MOST} hosts", hint="check the brackets")
    if nodelist and not found:
        raise _unreadable(nodelist, "it names no host")
    return tuple(found)


def counts(text: str) -> tuple[int, ...]:
    """The numbers of `8(x2),4`, one a node: `8 8 4` (SLURM_TASKS_PER_NODE, SLURM_JOB_CPUS_PER_NODE)."""
    found: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part.strip())
        if match is None or int(match[2] or 1) > MOST:
            raise UsageError(f"{text!r} is no list of counts as Slurm writes it", hint="for example 8(x2),4")
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


def short(hosts: tuple[str, ...]) -> str:
    """A few host names as a person reads them: all of them up to six, else how many and the first ones."""
    if len(hosts) <= 6:
        return ", ".join(hosts)
    return f"{', '.join(hosts[:5])} and {len(hosts) - 5} more"


def shortened(hosts: Iterable[str], most: int = 12) -> str:
    """Host names as Slurm writes them, ranges in brackets: `gpu[01-04,07],login1`, which `hostnames` reads. Of more than `most`
    ranges and names the first ones, and how many hosts more there are.

    >>> shortened(["gpu01", "gpu02", "gpu03", "gpu07", "login1"]), shortened(["a1", "a3", "a5"], most=2)
    ('gpu[01-03,07],login1', 'a[1,3] and 1 more')
    """
    names = tuple(dict.fromkeys(hosts))
    numbered = {host: match for host in names if (match := _NUMBERED.fullmatch(host)) is not None}
    padded = {(m[1], len(m[2])) for m in numbered.values() if m[2].startswith("0")}
    runs: dict[tuple[str, int], list[list[int]]] = {}
    for m in sorted(numbered.values(), key=lambda m: int(m[2])):
        width = len(m[2]) if (m[1], len(m[2])) in padded else 0
        group, number = runs.setdefault((m[1], width), []), int(m[2])
        if group and number == group[-1][1] + 1:
            group[-1][1] = number
        else:
            group.append([number, number])
    left, shown, said = most, 0, []
    for (stem, width), group in runs.items():
        kept, left = group[: max(0, left)], left - len(group)
        shown += sum(high - low + 1 for low, high in kept)
        spelled = ["-".join(str(n).zfill(width) for n in dict.fromkeys(run)) for run in kept]
        if spelled:
            alone = len(spelled) == 1 and "-" not in spelled[0]
            said.append(f"{stem}{spelled[0]}" if alone else f"{stem}[{','.join(spelled)}]")
    plain = [host for host in names if host not in numbered][: max(0, left)]
    more = len(names) - shown - len(plain)
    return ",".join([*said, *plain]) + (f" and {more:,} more" if more else "")


def _split(nodelist: str) -> Iterator[str]:
    """The parts between commas that stand outside brackets."""
    depth, start = 0, 0
    for at, char in enumerate(nodelist):
        depth += (char == "[") - (char == "]")
        if depth not in (0, 1):
            raise _unreadable(nodelist, "its brackets do not match")
        if char == "," and depth == 0:
            yield nodelist[start:at].strip()
            start = at + 1
    if depth:
        raise _unreadable(nodelist, "its brackets do not match")
    yield nodelist[start:].strip()


def _expand(part: str, nodelist: str) -> Iterator[str]:
    if not part:
        return
    opened = _BRACKETS.search(part)
    if opened is None:
        if any(char.isspace() for char in part):
            raise _unreadable(nodelist, f"{part!r} has a blank in it")
        yield part
        return
    # Recursion keeps the order: the first bracket changes slowest.
    for number in _numbers(opened[1], nodelist):
        for rest in _expand(part[opened.end() :], nodelist) if opened.end() < len(part) else ("",):
            yield f"{part[: opened.start()]}{number}{rest}"


def _numbers(text: str, nodelist: str) -> Iterator[str]:
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if match is None:
            raise _unreadable(nodelist, f"[{text}] holds something else than numbers and ranges")
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low):
            raise _unreadable(nodelist, f"the range {piece} runs backwards")
        if int(high) - int(low) >= MOST:
            raise _unreadable(nodelist, f"the range {piece} is longer than {MOST}")
        for number in range(int(low), int(high) + 1):
            yield str(number).zfill(len(low))


def _unreadable(nodelist: str, why: str) -> UsageError:
    return UsageError(f"the node list {nodelist!r} is not readable: {why}", hint="Slurm writes gpu[01-04,07],login1")

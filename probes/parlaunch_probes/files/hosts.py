"""One text of several hosts taken apart: pdsh and `srun -l` prefixes, clush headings, banners, prompts, listings that begin anew."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator

from parlaunch.errors import ParlaunchError
from parlaunch.where.nodelist import hostnames
from parlaunch_probes.files.clean import PROMPT

Part = tuple[str | None, str]  # host, where it is said, and its text
MOST = 4096  # hosts of one file
_PREFIX = re.compile(r"^\s{0,4}([A-Za-z0-9][\w.-]{0,62}):(?: |$)(.*)$")
_RULE = re.compile(r"^-{4,}$")
_BANNER = re.compile(
    r"^(?:={2,}>?|#{2,}|\*{2,}|-{2,}|>{2,})\s*(?:(?:on )?(?:host|hostname|node)\s*[:=]?\s*)?([\w.-]{1,63})\s*:?\s*(?:<?={2,}|#{2,}|\*{2,}|-{2,}|<{2,})?$",
    re.IGNORECASE,
)
_ANSIBLE = re.compile(r"^([\w.-]{1,63}) \| (?:CHANGED|SUCCESS|FAILED)\b")
_TOOLS = re.compile(
    r"nvidia|nvsmi|smi|topo|lspci|lstopo|lscpu|ib(stat|v|dev|net)|rdma|numactl|nccl|legend|log|gpu|mig|end|start",
    re.IGNORECASE,
)
_DEVICE = re.compile(r"(gpu|nic|port|cpu|rank)[-_]?\d", re.IGNORECASE)  # "gpu01" and "gpu-node1" are hosts
_FIRST = re.compile(r"^\s{0,4}GPU 0: .{2,80}? \(UUID: ([\w-]{8,60})\)")
_LOG = re.compile(r"^=+NVSMI LOG=+$")
_UUID = re.compile(r"\bGPU UUID\s+:\s+([\w-]{8,60})")


def split(text: str) -> list[Part]:
    """The text by hosts, in order. One part (with the host, where prefixes name it) when it is of one host."""
    for cut in (_xml_logs, _prefixed, _grouped, _bannered, _prompted, _anew):
        parts = cut(text)
        if parts is not None:
            return parts[:MOST]
    return [(None, text)]


def _xml_logs(text: str) -> list[Part] | None:
    """Several documents of `nvidia-smi -q -x`, one after the other."""
    starts = [m.start() for m in re.finditer(r"<nvidia_smi_log>", text)]
    return [(None, text[a:b]) for a, b in itertools.pairwise([*starts, len(text)])] if len(starts) > 1 else None


def _prefixed(text: str) -> list[Part] | None:
    """`node1: text` on every line, as pdsh, `srun --label` (task numbers) and `clush` write it."""
    lines = [line for line in text.split("\n") if line.strip()]
    matches = [_PREFIX.match(line) if len(line) < 4000 else None for line in lines]
    if len(lines) < 3 or not all(matches):
        return None
    count = Counter(m[1] for m in matches if m)
    # Keys of a listing come once or twice; and a PCI domain is no host.
    if len(lines) < 3 * len(count) or any(re.fullmatch(r"[0-9a-f]{4}|GPU|NIC|CA|Port \d+", name) for name in count):
        return None
    found: dict[str, list[str]] = {name: [] for name in count}
    for match in matches:
        if match:
            found[match[1]].append(match[2])
    return [(_name(host), "\n".join(body)) for host, body in found.items()]


def _name(host: str) -> str | None:
    return None if host.isdigit() else host


def _grouped(text: str) -> list[Part] | None:
    """`clush -b`: hosts between two rules, then what they have in common."""
    lines = text.split("\n")
    heads = [
        at
        for at in range(len(lines) - 2)
        if _RULE.match(lines[at])
        and _RULE.match(lines[at + 2])
        and re.fullmatch(r"[\w.,\[\]-]+( \(\d+\))?", lines[at + 1])
    ]
    if not heads:
        return None
    parts: list[Part] = []
    for at, following in zip(heads, [*heads[1:], len(lines)], strict=True):
        body = "\n".join(lines[at + 3 : following])
        try:
            names = hostnames(lines[at + 1].split(" ")[0])
        except ParlaunchError:
            return None
        parts += [(name, body) for name in names[:MOST]]
    return parts


def _bannered(text: str) -> list[Part] | None:
    """A line with the host's name before its text: `=== node1 ===`, `node1 | CHANGED | rc=0 >>`."""

    def host(line: str) -> str | None:
        match = (_ANSIBLE.match(line) or _BANNER.match(line)) if len(line) < 200 else None
        # Headings of sections are words; hosts are numbered, or have a domain.
        if match is None or not re.search(r"[\d.]|\w-\w", match[1]) or _DEVICE.fullmatch(match[1]):
            return None
        return None if _TOOLS.search(match[1]) and not re.search(r"\d", match[1]) else match[1]

    return _sections(text, host)


def _prompted(text: str) -> list[Part] | None:
    """Prompts of several hosts."""

    def host(line: str) -> str | None:
        match = PROMPT.match(line) if len(line) < 400 else None
        return match[1] if match else None

    return _sections(text, host)


def _sections(text: str, host: Callable[[str], str | None]) -> list[Part] | None:
    found: dict[str, list[str]] = {}
    body: list[str] = []
    before = body
    for line in text.split("\n"):
        name = host(line)
        if name is not None:
            body = found.setdefault(name, [])
        body.append(line)
    if len(found) < 2:
        return None
    first = next(iter(found))
    found[first] = [*before, *found[first]]
    return [(name, "\n".join(lines)) for name, lines in found.items()]


def _anew(text: str) -> list[Part] | None:
    """A list or a log of GPUs that begins again, with other GPUs in it."""
    cuts = list(_starts(text))
    if len(cuts) < 2:
        return None
    bounds = [0, *cuts[1:], len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
    seen: dict[str, None] = {}
    out: list[Part] = []
    for part in parts:
        key = _identity(part)
        if key is None or key not in seen:
            out.append((None, part))
        if key is not None:
            seen[key] = None
    return out if len(seen) > 1 else None


def _starts(text: str) -> Iterator[int]:
    at = 0
    for line in text.split("\n"):
        if _LOG.match(line) or _FIRST.match(line):
            yield at
        at += len(line) + 1


def _identity(part: str) -> str | None:
    match = _UUID.search(part) or re.search(r"\(UUID: ([\w-]{8,60})\)", part)
    return match[1] if match else None

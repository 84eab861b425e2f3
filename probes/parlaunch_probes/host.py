"""The one door to the machine's files. Every read of this package goes through a `Host`.

A `Host` has a root ("/" is this machine; a captured tree is another, unless `ours` says otherwise). It can keep what it answered, and
`RecordedHost` gives those answers again, so that a probe of a saved machine runs the same code as a live one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LIMIT = 1 << 20  # bytes of one file that anyone looks at
# "NVRM: Xid (PCI:0000:1b:00): 79, pid=...": the address and the number; processes' names are nobody's business.
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): ([0-9]{1,6})")
# "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 ...": lines with more data follow, without that word.
_SXID = re.compile(r"SXid \(PCI:([0-9a-fA-F:.]+)\): ([0-9]{1,6}), (Fatal|Non-fatal), ([^\\\n]{1,80})")


class Host:
    """A file system to probe. Paths start with "/" and stay under `root`, also through links.

    Every method answers None (or nothing) where the machine does not: a file that is missing, forbidden, gone
    between listing and reading, or refuses the read, as `net/*/speed` of a link that is down does.
    """

    def __init__(self, root: str | Path = "/", *, ours: bool | None = None, record: bool = False) -> None:
        self.root = Path(root)
        self._base = os.path.realpath(self.root)
        self._ours = self._base == "/" if ours is None else ours
        self._kept: dict[str, dict[str, Any]] | None = {} if record else None
        self._log: list[tuple[str, int]] | None = None

    @classmethod
    def here(cls, environ: Mapping[str, str], *, record: bool = False) -> Host:
        """This machine. PARLAUNCH_SYSROOT says where its files are, when not under "/": a container that is not shown
        the host's /sys and /proc may have them mounted elsewhere."""
        return cls(environ.get("PARLAUNCH_SYSROOT") or "/", ours=True, record=record)

    @property
    def live(self) -> bool:
        """This machine itself: what no file says (NVML, addresses, the kernel log) may be asked too."""
        return self._ours

    def read(self, path: str) -> str | None:
        """The text of one file, stripped."""
        text: str | None = self._answer("text", path, self._read)
        return text

    def find(self, path: str, what: str, pattern: str) -> tuple[tuple[str, ...], ...] | None:
        """The groups of every match of a regular expression in a file, line by line; None when there is no such file.

        For files that say more than we ask: a recording keeps the matches alone, under the name `what`."""

        def ask(path: str) -> Any:
            text = self._read(path)
            return None if text is None else [list(m.groups()) for m in re.finditer(pattern, text, re.MULTILINE)]

        found = self._answer("find", f"{path} {what}", lambda _: ask(path))
        return None if found is None else tuple(tuple(str(cell) for cell in row) for row in found)

    def digest(self, path: str, what: str, make: Callable[[bytes], Any]) -> Any:
        """What `make` sees in the content of a file, as JSON; a recording keeps that alone, under the name `what`."""

        def ask(path: str) -> Any:
            content = self._content(path)
            return None if content is None else make(content)

        return self._answer("digest", f"{path} {what}", lambda _: ask(path))

    def number(self, path: str) -> int | None:
        """The file as a whole number, decimal or 0x."""
        text = self.read(path)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, sorted; nothing when it is not there."""
        return tuple(self._answer("names", path, self._names) or ())

    def real(self, path: str) -> str | None:
        """Where a path leads after all links, as a path under the root; None when missing or outside of it."""
        real: str | None = self._answer("real", path, self._real)
        return real

    def exists(self, path: str) -> bool:
        return self.real(path) is not None

    def addresses(self) -> dict[str, list[str]]:
        """IP addresses of every interface; only this machine itself can be asked."""
        return self._answer("live", "addresses", lambda _: self._addresses()) or {}

    def xids(self) -> list[list[Any]] | None:
        """NVIDIA's errors in the kernel log, as [number, PCI address, seconds ago]; None when we may not read it."""
        found: list[list[Any]] | None = self._answer("live", "xids", lambda _: self._xids())
        return found

    def sxids(self) -> list[list[Any]] | None:
        """Errors of NVSwitches in the kernel log, as [number, PCI address, seconds ago, fatal, words]; None when we may not read it."""
        found: list[list[Any]] | None = self._answer("live", "sxids", lambda _: self._sxids())
        return found

    def space(self, path: str) -> list[int] | None:
        """[bytes in all, bytes left to us] of the file system at a path; only this machine itself can be asked."""
        found: list[int] | None = self._answer("live", f"space {path}", lambda _: self._space(path))
        return found

    def kept(self) -> dict[str, dict[str, Any]]:
        """Everything answered so far, when made with `record=True`."""
        return self._kept or {}

    # ------------------------------------------------------------------ how it is done

    def _answer(self, kind: str, path: str, ask: Any) -> Any:
        answer = ask(path)
        if self._kept is not None:
            self._kept.setdefault(kind, {})[path] = answer
        return answer

    def _at(self, path: str) -> str | None:
        # Path("/captured") / "/sys" is Path("/sys"): a leading slash would leave the captured tree.
        at = os.path.join(self._base, path.lstrip("/"))
        if self._base == "/":
            return at
        try:
            at = os.path.realpath(at)
        except (OSError, ValueError):
            return None
        return at if at == self._base or at.startswith(self._base + "/") else None

    def _content(self, path: str) -> bytes | None:
        at = self._at(path)
        if at is None:
            return None
        try:
            # Not to wait for a pipe that lies in a captured tree; without a meaning for the kernel's own files.
            number = os.open(at, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                return None
            parts = []
            left = LIMIT
            while left > 0 and (part := os.read(number, min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        except OSError:
            return None
        finally:
            os.close(number)

    def _read(self, path: str) -> str | None:
        content = self._content(path)
        return None if content is None else content.decode("utf-8", "replace").strip()

    def _names(self, path: str) -> list[str] | None:
        at = self._at(path)
        try:
            return None if at is None else sorted(os.listdir(at))
        except (OSError, ValueError):
            return None

    def _real(self, path: str) -> str | None:
        at = self._at(path)
        if at is None:
            return None
        try:
            at = os.path.realpath(at, strict=True)
        except (OSError, ValueError):
            return None
        return at if self._base == "/" else at[len(self._base) :] or "/"

    def _addresses(self) -> dict[str, list[str]] | None:
        if not self.live:
            return None
        import socket

        try:
            import psutil

            known = psutil.net_if_addrs()
        except (ImportError, OSError, RuntimeError):
            return None
        families = (socket.AF_INET, socket.AF_INET6)
        return {
            name: [a.address.partition("%")[0] for a in found if a.family in families] for name, found in known.items()
        }

    def _space(self, path: str) -> list[int] | None:
        at = self._at(path)
        try:
            found = os.statvfs(at) if self.live and at is not None else None
        except (OSError, ValueError):
            return None
        return None if found is None else [found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize]

    def _xids(self) -> list[list[Any]] | None:
        log = self._kernel_log()
        return None if log is None else [x for text, ago in log if (x := xid_of(text, ago)) is not None]

    def _sxids(self) -> list[list[Any]] | None:
        log = self._kernel_log()
        return None if log is None else [x for text, ago in log if (x := sxid_of(text, ago)) is not None]

    def _kernel_log(self) -> list[tuple[str, int]] | None:
        """What the kernel log says of NVIDIA's errors: lines, and seconds since each; None when we may not read it."""
        if self._log is not None or not self.live:
            return self._log
        uptime = (self._read("/proc/uptime") or "").split()
        try:
            now = float(uptime[0])
            number = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError, IndexError):
            return None
        found: list[tuple[str, int]] = []
        try:
            for _ in range(100_000):  # more lines than the ring holds
                try:
                    record = os.read(number, 8192)
                except BrokenPipeError:  # overwritten while we read: go on with the next
                    continue
                except OSError:  # BlockingIOError: the end; EPERM: not for us
                    break
                if not record:
                    break
                if b"Xid (" in record and (line := line_of(record.decode("utf-8", "replace"), now)):
                    found.append(line)
        finally:
            os.close(number)
        self._log = found
        return found


def line_of(record: str, now_s: float) -> tuple[str, int] | None:
    """Text and seconds ago of a record of /dev/kmsg (`priority,sequence,microseconds,flags;text`); None for what is none.
    `now_s` counts from the boot, as the record does."""
    head, _, text = record.partition(";")
    cells = head.split(",")
    if len(cells) < 3 or not cells[2].isdecimal():
        return None
    return text, max(0, round(now_s - int(cells[2]) / 1e6))


def xid_of(text: str, ago_s: int) -> list[Any] | None:
    """[number, PCI address, seconds ago] of a line that reports an Xid; None for any other.

    >>> xid_of("NVRM: Xid (PCI:0000:1B:00): 79, pid='<unknown>', name=<unknown>", 60)
    [79, '0000:1b:00', 60]
    """
    match = _XID.search(text)
    return None if match is None else [int(match[2]), match[1].lower(), ago_s]


def sxid_of(text: str, ago_s: int) -> list[Any] | None:
    """[number, PCI address, seconds ago, fatal, words] of a line that reports an error of an NVSwitch; None for any other.

    >>> sxid_of("nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up", 60)
    [20034, '0000:05:00.0', 60, True, 'Link 30 LTSSM Fault Up']
    """
    match = _SXID.search(text)
    if match is None:
        return None
    return [int(match[2]), match[1].lower(), ago_s, match[3] == "Fatal", match[4].strip()]


class RecordedHost(Host):
    """The answers of another machine, as `Host.kept` gave them."""

    def __init__(self, kept: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__("/nowhere")
        self._answers = kept

    @property
    def live(self) -> bool:
        return False

    def _answer(self, kind: str, path: str, ask: Any) -> Any:
        return self._answers.get(kind, {}).get(path)

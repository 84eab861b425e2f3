"""The one writer behind stdout and stderr: whatever they are, what we say degrades and nothing stops for it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast

from parlaunch.show.plain import in_encoding, painted, unpainted


class Writer(io.TextIOBase):
    """Text to a stream that may be closed, full, broken, of few characters, or a terminal."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.failed: OSError | None = None  # why some of it was lost
        self.muted = False  # another process says the same into the same log
        terminal = self.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self._colours = terminal or bool(os.environ.get("FORCE_COLOR"))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "ascii"

    @property
    def buffer(self) -> object:
        return getattr(self.stream, "buffer", None)

    def write(self, text: str) -> int:
        shown = in_encoding(painted(text) if self._colours else unpainted(text), self.encoding)
        if self.stream is not None and self.failed is None and not self.muted:
            try:
                self.stream.write(shown)
                if self.isatty() or "\n" in shown:
                    self.stream.flush()
            except OSError as error:
                self._lost(error)
            except ValueError:  # closed under us
                self._lost(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and self.failed is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._lost(error)
            except ValueError:
                self._lost(OSError(errno.EBADF, os.strerror(errno.EBADF)))

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return bool(self.stream is not None and self.stream.isatty())
        return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("closed")
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def _lost(self, error: OSError) -> None:
        self.failed = error

    def finish(self) -> None:
        """At the end of this process: what is left in a buffer would fail again, with a traceback."""
        self.flush()
        if self.failed is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
                os.close(nowhere)


def speak() -> None:
    """What is said from here on is this process' own."""
    if isinstance(sys.stderr, Writer):
        sys.stderr.muted = False


@contextlib.contextmanager
def writers() -> Iterator[tuple[Writer, Writer]]:
    """stdout and stderr through Writers, for as long as a command runs; the three standard descriptors are open then, so that
    no socket of ours becomes training's stdout."""
    _three_are_open()
    before = sys.stdout, sys.stderr
    out, err = Writer(sys.stdout), Writer(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.finish()
        err.finish()
        sys.stdout, sys.stderr = before


def _three_are_open() -> None:
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)

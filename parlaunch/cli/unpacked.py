"""Tables and logs as people keep them: compressed, in the encoding of another system, cut off in the middle; as UTF-8, piece by piece."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from parlaunch.cli.inputs import note
from parlaunch.errors import UsageError

PIECE = 1 << 20
"""Bytes that are read at once."""
_PACKED: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open),
)  # fmt: skip
_CLOSED = ((b"\x28\xb5\x2f\xfd", "zstd -d"), (b"PK\x03\x04", "unzip"))
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def pieces(path: Path, option: str = "") -> Iterator[bytes]:
    """What is in the file, as UTF-8 where a mark says another encoding. What is cut off ends where it was cut, with a note.

    Raises `OSError`, and `UsageError` for what is compressed in a way that is not read here."""
    with path.open("rb") as file:
        start = file.read(8)
        for mark, command in _CLOSED:
            if start.startswith(mark):
                raise UsageError(f"{option} {path} is compressed".strip(), hint=f"unpack it first: {command} {path}")
        open_packed = next((opener for mark, opener in _PACKED if start.startswith(mark)), None)
        if open_packed is None:
            yield from _decoded(start, file.read)
            return
        file.seek(0)
        with open_packed(file) as packed:
            yield from _whole(packed, path)


def _whole(packed: Any, path: Path) -> Iterator[bytes]:
    try:
        # One block at a time: of what `read` had before an error, it gives nothing.
        yield from _decoded(packed.read(8), packed.read1)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        note(f"note: {path} is cut off or damaged ({error}): what stands before is read")


def _decoded(start: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    decode = None
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            decode = codecs.getincrementaldecoder(encoding)("replace").decode
            break
    while start:
        yield start if decode is None else decode(start).encode()
        start = read(PIECE)

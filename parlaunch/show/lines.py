"""Lines of styled text: wrapped between words, beside each other in columns, painted for a terminal or plain. Pure.

A plan is printed at every dry run, and a library for terminals takes longer to load than that takes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple


class Piece(NamedTuple):
    """Text in one style: words of `CODES`, or none."""

    text: str
    style: str = ""


Line = tuple[Piece, ...]
"""One line, or a sentence that is still to be wrapped."""

CODES = {
    "bold": 1, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36, "bright_black": 90,
}  # fmt: skip
"""What a terminal is told for each word of a style."""

EMPTY: Line = ()


def line(*pieces: str | Piece) -> Line:
    """A line of these pieces; words alone have no style."""
    return tuple(piece if isinstance(piece, Piece) else Piece(piece) for piece in pieces)


def columns(text: str) -> int:
    """How many columns of a terminal the text takes: two for wide letters, none for marks upon letters."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def length(of: Line) -> int:
    """The columns of a whole line."""
    return sum(columns(piece.text) for piece in of)


def _breaks(text: str, width: int) -> Iterator[int]:
    """Where lines of at most `width` columns begin: between words, inside one that is longer than a line."""
    used, at = 0, 0
    while at < len(text):
        end = at
        while end < len(text) and text[end] == " ":
            end += 1
        while end < len(text) and text[end] != " ":
            end += 1
        start, word = at, columns(text[at:end])
        if used and used + word > width:
            start = at + len(text[at:end]) - len(text[at:end].lstrip())
            yield start
            used, word = 0, columns(text[start:end])
        if word <= width:
            used += word
        else:
            for place in range(start, end):
                wide = columns(text[place])
                if used and used + wide > width:
                    yield place
                    used = 0
                used += wide
        at = end


def wrapped(sentence: Line | str, width: int, *, indent: int = 0) -> list[Line]:
    """The sentence as lines of at most `width` columns, each `indent` blanks in; a line feed in it ends a line."""
    pieces = (Piece(sentence),) if isinstance(sentence, str) else sentence
    text, margin = "".join(piece.text for piece in pieces), line(" " * indent) if indent else EMPTY
    starts, at = [0], 0
    for paragraph in text.split("\n"):
        if at:
            starts.append(at)
        starts += [at + place for place in _breaks(paragraph, max(1, width - indent))]
        at += len(paragraph) + 1
    ends = [*starts[1:], len(text)]
    return [margin + _cut(pieces, start, end) for start, end in zip(starts, ends, strict=True)]


def _cut(pieces: Line, start: int, end: int) -> Line:
    """The part of a sentence between two places, without the blanks or the line feed at its end."""
    text = "".join(piece.text for piece in pieces)
    end = start + len(text[start:end].rstrip())
    found, at = [], 0
    for piece in pieces:
        part = piece.text[max(0, start - at) : max(0, end - at)]
        if part:
            found.append(Piece(part, piece.style))
        at += len(piece.text)
    return tuple(found)


def beside(blocks: Sequence[tuple[Sequence[Line], int]], *, gap: int = 2) -> list[Line]:
    """Blocks of lines next to each other, each as wide as its number says, `gap` blanks between them."""
    rows = []
    for parts in zip_longest(*(lines for lines, _ in blocks), fillvalue=EMPTY):
        row: list[Piece] = []
        for (_, width), part in zip(blocks, parts, strict=True):
            row += [*part, Piece(" " * (width - length(part) + gap))]
        rows.append(tuple(row))
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, right: Iterable[str] = ()) -> list[Line]:
    """Columns under bold heads and a rule; where they are too wide, the widest ones wrap."""
    gap, edge = 3, " "
    wide = [max(columns(row[at]) for row in (head, *rows)) for at in range(len(head))]
    while sum(wide) + gap * (len(wide) - 1) + 2 > width and max(wide) > 1:
        wide[wide.index(max(wide))] -= 1
    ends = [name in set(right) for name in head]

    def drawn(cells: Sequence[str], style: str) -> list[Line]:
        blocks = []
        for cell, room, end in zip(cells, wide, ends, strict=True):
            lines = wrapped((Piece(cell, style),), room)
            blocks.append(([line(" " * (room - length(one))) + one for one in lines] if end else lines, room))
        return [line(edge) + row for row in beside(blocks, gap=gap)]

    rule = line("─" * (sum(wide) + gap * (len(wide) - 1) + 2))
    return [*drawn(head, "bold"), rule, *(one for row in rows for one in drawn(row, ""))]


def text(lines: Iterable[Line], *, colour: bool) -> str:
    """The lines as text, painted or plain, without blanks at their ends."""
    return "".join(f"{_painted(one) if colour else _plain(one)}\n" for one in lines)


def _plain(one: Line) -> str:
    return "".join(piece.text for piece in one).rstrip()


def _painted(one: Line) -> str:
    shown = _cut(one, 0, sum(len(piece.text) for piece in one))
    return "".join(
        f"\x1b[{';'.join(str(CODES[word]) for word in piece.style.split())}m{piece.text}\x1b[0m"
        if piece.style and piece.text.strip()
        else piece.text
        for piece in shown
    )

"""XML out of files as they come: with text before and after it, and cut off in the middle."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree.ElementTree import Element

DEEPEST = 200  # levels of nesting that anyone needs; more is an attack or a broken file
_START = re.compile(r"<\?xml|<!DOCTYPE|<!--|<(?:system|graphs|nvidia_smi_log|topology|topologydiff)\b")


def parse(text: str) -> tuple[Element, bool] | None:
    """The root element, and whether the document is whole. None when there is no XML in the text."""
    from xml.etree.ElementTree import ParseError, XMLPullParser

    start = _START.search(text)
    if start is None:
        return None
    body = re.sub(r"^<\?xml[^>]*\?>", "", text[start.start() :])  # its encoding is that of the bytes we decoded
    parser: XMLPullParser[Element] = XMLPullParser(events=("start", "end"))
    root: Element | None = None
    whole, depth = False, 0
    for piece in _pieces(body):
        broken = False
        try:
            parser.feed(piece)
        except (ParseError, ValueError):
            broken = True
        try:
            for event, element in cast("Iterator[tuple[str, Element]]", parser.read_events()):
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                whole = whole or (event == "end" and element is root)
                if depth > DEEPEST:
                    return (root, False) if root is not None else None
        except (ParseError, ValueError):
            broken = True
        if broken:
            break
    return None if root is None else (root, whole)


def _pieces(body: str, size: int = 1 << 14) -> list[str]:
    """In pieces, so that what stands before an error has been read when it comes."""
    return [body[at : at + size] for at in range(0, len(body), size)]

"""Text for any output: nothing in it steers a terminal, and what the output cannot spell is spelt more simply. Pure."""

from __future__ import annotations

import re
import unicodedata

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What paints text and does nothing else: the one kind of sequence that we send."""

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but for line feed and tab, and those that turn the direction of writing or end a line unseen."""

_SIMPLER = str.maketrans({
    "·": "-", "•": "-", "…": "...", "→": "->", "←": "<-", "×": "x", "±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "–": "-",
    "—": "-", "\u2018": "'", "\u2019": "'", "“": '"', "”": '"', "µ": "u", "─": "-", "━": "-", "│": "|", "┃": "|", "█": "#", "▓": "#",
    "▒": "=", "░": ".", "✓": "ok", "✗": "x", "√": "sqrt", "Σ": "sum", "°": " deg",
})  # fmt: skip


def visible(text: str) -> str:
    """The text with everything that would steer a terminal written out: ESC is the four characters `\\x1b`."""
    return _STEERS.sub(lambda found: _spelt(found[0]), text)


def one_line(text: str) -> str:
    """`visible`, and line feeds and tabs written out too: a name stays a name, also in a script."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def painted(text: str) -> str:
    """`visible`, but for colours."""
    parts = COLOUR.split(text)
    colours = [*COLOUR.findall(text), ""]
    return "".join(visible(part) + colour for part, colour in zip(parts, colours, strict=True))


def unpainted(text: str) -> str:
    """`visible`, without the colours."""
    return visible(COLOUR.sub("", text))


def in_encoding(text: str, encoding: str) -> str:
    """The text in characters that the encoding has: simpler signs, letters without accents, `?` for the rest."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_in(character, encoding) for character in text)
    except LookupError:
        return in_encoding(text, "ascii")
    return text


def clean(data: object) -> object:
    """JSON with every string in it on one line, keys too."""
    if isinstance(data, str):
        return one_line(data)
    if isinstance(data, list):
        return [clean(item) for item in data]
    if isinstance(data, dict):
        return {clean(name): clean(value) for name, value in data.items()}
    return data


def _spelt(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def _in(character: str, encoding: str) -> str:
    simpler = character.translate(_SIMPLER)
    letters = unicodedata.normalize("NFKD", simpler).encode("ascii", "ignore").decode()
    for candidate in (character, simpler, letters or "?"):
        try:
            candidate.encode(encoding)
        except UnicodeEncodeError:
            continue
        return candidate
    return "?"

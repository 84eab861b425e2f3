"""Text as people paste and save it, made plain: byte order marks, other encodings, colours, line ends, prompts."""

from __future__ import annotations

import codecs
import re

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
# "user@host:~$ ", "[root@host ~]# ", "host> ": kept as a line of their own, so that no format takes them for its own.
PROMPT = re.compile(r"^\s*(?:\$\s+)?\[?(?:[\w.-]+@)([\w-][\w.-]*)[ :][^\n$#>]{0,80}[$#>]\s*(\S.*)?$")
COMMAND = re.compile(r"^\s*(?:\[?[\w.-]+@[\w.-]+[ :][^\n$#>]{0,80}[$#>]|[$#>])\s*(?:sudo\s+)?(\S.*)$")


def decode(content: bytes) -> str:
    """The text of a file, whatever wrote it. Bytes that are no text become replacement characters."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return plain(content.decode(encoding, "replace"))
    return plain(content.decode("utf-8", "replace"))


def plain(text: str) -> str:
    """Without colours and underlines (nvidia-smi writes its headings underlined), with one kind of line end."""
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").replace("\xa0", " ")
    return text.lstrip("\ufeff")


def commands(text: str) -> list[str]:
    """The commands whose prompts stand in the text, without the prompts."""
    return [m[1].strip() for line in text.split("\n") if len(line) < 400 and (m := COMMAND.match(line))]


def host_of(text: str) -> str | None:
    """The host name of the first prompt that has one."""
    for line in text.split("\n"):
        if len(line) < 400 and (match := PROMPT.match(line)):
            return match[1]
    return None


def mebibytes(text: str | None) -> int | None:
    """Bytes of "81559 MiB", "23.5 GiB", "1024 KiB"; None of "N/A" and of anything else."""
    match = re.match(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([KMGT])i?B\b", text or "")
    if match is None:
        return None
    unit: int = 1024 ** " KMGT".index(match[2])
    return round(float(match[1]) * unit)


def whole(text: str | None) -> int | None:
    """The number that a text begins with ("1980 MHz", "16x"), or None."""
    match = re.match(r"\s*([0-9]{1,18})(?![0-9])", text or "", re.ASCII)
    return int(match[1]) if match else None


def decimal(text: str | None) -> float | None:
    """The decimal number that a text begins with ("700.00 W"), or None."""
    match = re.match(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)", text or "", re.ASCII)
    return float(match[1]) if match else None

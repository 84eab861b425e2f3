"""Numbers and lists as people read and write them: prefixes are put on, and taken off, here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence

COUNT = "0*[1-9][0-9]{0,8}"
"""Of what is counted by hand: a whole number of one or more."""
MOST = 1e18
"""Larger than anything that is counted or measured here."""


def gib(size: float) -> str:
    """Bytes as GiB: "38.2 GiB"; small ones as MiB."""
    if abs(size) < 0.05 * 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:,.1f} GiB"


def seconds(time: float) -> str:
    """A duration with three significant digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(time) >= size:
            return f"{time / size:.{max(0, 2 - len(str(int(abs(time) / size))) + 1)}f} {unit}"
    return f"{time * 1e6:.0f} µs"


def duration(time: float) -> str:
    """A stretch of time that people wait for: "45 s", "58 min", "13.4 h", "41.2 days"."""
    for unit, size, most in (("s", 1.0, 120), ("min", 60.0, 120), ("h", 3600.0, 72)):
        if time < most * size:
            return f"{time / size:.3g} {unit}" if time < 10 * size else f"{time / size:.0f} {unit}"
    return f"{time / 86400:,.1f} days"


def percent(share: float) -> str:
    """A share as whole per cent, one digit below ten."""
    return f"{share:.1%}" if abs(share) < 0.0995 else f"{share:.0%}"


def count(number: float) -> str:
    """A count with a decimal prefix: "1.24 B", "671 B"."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:  # three digits of anything above round up to the prefix
            digits = f"{number / size:.3g}"
            return f"{number / size:.0f} {suffix}" if "e" in digits else f"{digits} {suffix}"
    return f"{number:.0f}"


def rate(bytes_per_s: float) -> str:
    """A bandwidth: "50 GB/s"."""
    return f"{bytes_per_s / 1e9:.3g} GB/s"


def few(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


_TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}
_NUMBER = r"\s*(\d[\d_,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s*"


def amount(text: str) -> float:
    """ "15T", "300B", "1e12" or "2,000,000" as a number. Raises `ValueError` for anything else."""
    found = re.fullmatch(_NUMBER + r"([kmbgtp]?)", text, re.IGNORECASE)
    if found is None or not (number := _plain(found[1]) * _TIMES[found[2].lower()]) > 0:
        raise ValueError(f"{text!r} is no number above zero: write 15T, 300B or 1e12")
    if number > MOST:
        raise ValueError(f"{text!r} is more than anybody trains: write 15T, 300B or 1e12")
    return number


def size(text: str) -> float:
    """ "141GiB" or "80GB" in bytes. Raises `ValueError` for anything else, a bare number too."""
    found = re.fullmatch(_NUMBER + r"([kmgtp]?)(i?)b", text, re.IGNORECASE)
    if found is None or not (number := _plain(found[1]) * _prefix(found[2], found[3])) > 0:
        raise ValueError(f"{text!r} is no size: write 141GiB or 80GB")
    return number


def speed(text: str) -> float:
    """ "25GB/s", "400Gb/s" or "400Gbit/s" in bytes/s. Raises `ValueError` for anything else, a bare number too."""
    found = re.fullmatch(_NUMBER + r"([kmgtp]?)(i?)(b|bit|bps)(?:/s)?", text, re.IGNORECASE)
    if found is None or not (number := _plain(found[1]) * _prefix(found[2], found[3])) > 0:
        raise ValueError(f"{text!r} is no rate: write 25GB/s, or 200Gb/s for bits")
    return number if found[4] == "B" else number / 8


def _plain(digits: str) -> float:
    return float(digits.replace("_", "").replace(",", ""))


def _prefix(letter: str, binary: str) -> float:
    return 1024.0 ** ("kmgtp".index(letter.lower()) + 1) if letter and binary else _TIMES[letter.lower()]

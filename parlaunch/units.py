"""Numbers as people read them: prefixes are put on here and nowhere else."""

from __future__ import annotations


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


def percent(share: float) -> str:
    """A share as whole per cent, one digit below ten."""
    return f"{share:.1%}" if abs(share) < 0.0995 else f"{share:.0%}"


def count(number: float) -> str:
    """A count with a decimal prefix: "1.24 B", "671 B"."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {suffix}"
    return f"{number:.0f}"


def rate(bytes_per_s: float) -> str:
    """A bandwidth: "50 GB/s"."""
    return f"{bytes_per_s / 1e9:.3g} GB/s"

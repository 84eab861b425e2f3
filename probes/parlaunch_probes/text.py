"""The small grammars of /proc and /sys, and of NVML: lists of CPUs, rates, PCI addresses."""

from __future__ import annotations

import re

_BDF = re.compile(r"^(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])$")
_RATE = re.compile(r"^([\d.]+)\s*Gb/sec")


def cpu_list(text: str | None, most: int = 1 << 16) -> tuple[int, ...] | None:
    """`0-3,8` as numbers; None when it is not such a list. Blank is no CPU at all."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not part.strip():
            continue
        # `isdecimal` would take other scripts' digits, and `0-4294967295` would fill the memory.
        if not (first.isascii() and first.isdigit()) or (last and not (last.isascii() and last.isdigit())):
            return None
        low, high = int(first), int(last or first)
        if high - low >= most or high >= most:
            return None
        found.extend(range(low, high + 1))
    return tuple(sorted(set(found)))


def pci_address(text: str | None) -> str | None:
    """Any writing of a PCI address as sysfs has it: lower case, a domain of four digits or, beyond FFFF, of eight."""
    match = _BDF.match((text or "").strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    if set((domain or "0") + bus) <= {"f", "F"}:
        return None  # all ones: hardware that is not there, or that a hypervisor hides
    return f"{int(domain or '0', 16):04x}:{bus.lower()}:{device.lower()}.{function}"


def gigabits(rate: str | None) -> float | None:
    """Gb/s of `400 Gb/sec (4X NDR)`."""
    match = _RATE.match(rate or "")
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def after_colon(text: str | None) -> str | None:
    """`ACTIVE` of `4: ACTIVE`."""
    head, colon, tail = (text or "").partition(":")
    return (tail if colon else head).strip() or None

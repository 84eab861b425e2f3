"""Write `parlaunch/data/pci_names.json`: the driver's names of GPUs by PCI device id.

    python scripts/make/pci_names.py README.md

README.md is that of NVIDIA/open-gpu-kernel-modules, whose table "Compatible GPUs" is the driver's own list.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tables

ROW = re.compile(r"^\| (\S.*?)\s*\| ([0-9A-F]{4})((?: [0-9A-F]{4}){0,2})\s*\|")
RELEASE = re.compile(r"version (\d{3}\.[\d.]+\d)")


def table(text: str) -> dict[str, list[str]]:
    """Names by device id in lower case: the board that is sold under the id alone, else every name of its boards."""
    plain: dict[str, str] = {}
    boards: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := ROW.match(line):
            name, device = match[1], match[2].lower()
            if match[3]:
                boards.setdefault(device, []).append(name)
            else:
                plain[device] = name
    found = {d: list(dict.fromkeys(names)) for d, names in boards.items()} | {d: [n] for d, n in plain.items()}
    return dict(sorted(found.items()))


def main(path: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    found = table(text)
    release = RELEASE.search(text)
    about = (
        f"Names that the driver gives to GPUs, by device id of vendor 10de; several where boards share an id. Source: README of "
        f"NVIDIA/open-gpu-kernel-modules {release[1] if release else ''}, compatible GPUs; scripts/make/pci_names.py."
    )
    tables.write("pci_names", {"about": about, "names": found})
    print(f"{len(found)} device ids")


if __name__ == "__main__":
    main(sys.argv[1])

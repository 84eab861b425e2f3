"""Reads the machine: NVML, PCI, NUMA, the fabric, the host, captured machines and other tools' files.

from parlaunch_probes import probe

cluster = probe()  # this node
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parlaunch_probes.host import Host
    from parlaunch_probes.node import probe

__all__ = ["Host", "probe"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: the reader of NVML is started with this package and needs none of it."""
    if name == "probe":
        from parlaunch_probes.node import probe

        return probe
    if name == "Host":
        from parlaunch_probes.host import Host

        return Host
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

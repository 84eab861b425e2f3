"""Reads the machine: NVML, PCI, NUMA, the fabric, the host, captured machines and other tools' files."""

from parlaunch_probes.host import Host
from parlaunch_probes.node import probe

__all__ = ["Host", "probe"]

"""Reads the machine: NVML, PCI, NUMA, the fabric, the host, captured machines and other tools' files."""

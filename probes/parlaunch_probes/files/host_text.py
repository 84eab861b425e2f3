"""`lscpu`, `numactl --hardware`, and the prompts between them: the host around the GPUs."""

from __future__ import annotations

import re

from parlaunch_probes.files.clean import host_of, whole
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import cpu_list

_LSCPU = re.compile(
    r"^(Model name|Socket\(s\)|Core\(s\) per socket|Core\(s\) per cluster|NUMA node\(s\)|Hypervisor vendor|NUMA node(\d{1,4}) CPU\(s\)):\s*(\S.*)$",
    re.MULTILINE,
)
_NODE_CPUS = re.compile(r"^node (\d{1,4}) cpus:(.*)$", re.MULTILINE)
_NODE_SIZE = re.compile(r"^node (\d{1,4}) size: (\d{1,9}) MB$", re.MULTILINE)


def find(text: str) -> Facts | None:
    """CPUs, NUMA nodes and memory; None where none of the tools was run."""
    facts = Facts("lscpu and numactl")
    said = {m[1]: m[3].strip() for m in _LSCPU.finditer(text)}
    cpus: dict[int, tuple[int, ...]] = {}
    for match in _LSCPU.finditer(text):
        if match[2] is not None and (found := cpu_list(match[3])):
            cpus[int(match[2])] = found
    for match in _NODE_CPUS.finditer(text):
        found = cpu_list(",".join(match[2].split()))
        if found:
            cpus.setdefault(int(match[1]), found)
    if said.get("Model name"):
        facts.node["cpu_model"] = said["Model name"]
    sockets, each = whole(said.get("Socket(s)")), whole(said.get("Core(s) per socket"))
    if sockets:
        facts.node["sockets"] = sockets
        if each:
            facts.node["cores"] = sockets * each
    if said.get("Hypervisor vendor"):
        facts.node["virtual"] = said["Hypervisor vendor"].lower()
    if cpus:
        facts.node["numa_cpus"] = tuple(sorted(cpus.items()))
        facts.node["numa_nodes"] = len(cpus)
    sizes = {int(m[1]): int(m[2]) for m in _NODE_SIZE.finditer(text)}
    total = sum(size for node, size in sizes.items() if not cpus or node in cpus)
    if total:
        facts.node["memory_bytes"] = total * 2**20
    if (name := host_of(text)) is not None:
        facts.node["hostname"] = name
    return facts if facts.node else None

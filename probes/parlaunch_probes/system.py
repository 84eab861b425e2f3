"""The host around the GPUs: CPUs, memory, NUMA, limits, container and virtual machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNLIMITED
from parlaunch_probes.host import Host
from parlaunch_probes.text import cpu_list

# DMI vendor or product -> hypervisor. Amazon's and Google's bare-metal shapes carry the vendor's name too, and are
# told apart by the CPU's hypervisor flag.
HYPERVISORS: tuple[tuple[str, str], ...] = (
    ("qemu", "kvm"),
    ("kvm", "kvm"),
    ("amazon ec2", "kvm"),
    ("google compute engine", "kvm"),
    ("openstack", "kvm"),
    ("alibaba cloud", "kvm"),
    ("ovhcloud", "kvm"),
    ("firecracker", "kvm"),
    ("virtual machine", "hyper-v"),
    ("vmware", "vmware"),
    ("xen", "xen"),
    ("virtualbox", "virtualbox"),
)
# Where a container engine shows itself: a file it makes, or its word in the cgroup path.
CONTAINER_FILES = (
    ("/.dockerenv", "docker"),
    ("/run/.containerenv", "podman"),
    ("/.singularity.d", "apptainer"),
)
CONTAINER_CGROUPS = (
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("/lxc", "lxc"),
    ("containerd", "containerd"),
    ("garden", "garden"),
)
CONTAINER_VARIABLES = (
    ("KUBERNETES_SERVICE_HOST", "kubernetes"),
    ("APPTAINER_CONTAINER", "apptainer"),
    ("SINGULARITY_CONTAINER", "apptainer"),
)
# CPU part numbers of Arm's MIDR, for kernels that print no model name.
ARM_PARTS = {
    ("0x41", "0xd4f"): "Arm Neoverse-V2 (NVIDIA Grace)",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
}


@dataclass(frozen=True, slots=True)
class Cpus:
    """Model, packages, physical cores, and NUMA nodes that have CPUs."""

    model: str | None
    sockets: int | None
    cores: int | None
    numa: tuple[tuple[int, tuple[int, ...]], ...]
    hypervisor: bool  # the CPU says that it is a guest's
    arm: bool


def _cpuinfo(content: bytes) -> dict[str, Any]:
    text = content.decode("utf-8", "replace")

    def every(key: str) -> list[str]:
        return [value.strip() for value in re.findall(rf"^{key}[ \t]*:(.*)$", text, re.MULTILINE)]

    packages, cores = every("physical id"), every("core id")
    told = bool(packages) and len(packages) == len(cores)
    return {
        "model": next(iter(every("model name") or every("cpu")), None),
        "part": [next(iter(every("CPU implementer")), ""), next(iter(every("CPU part")), "")],
        "sockets": len(set(packages)) if told else None,
        "cores": len(set(zip(packages, cores, strict=True))) if told else None,
        "guest": re.search(r"\bhypervisor\b", text) is not None,
    }


def cpus(host: Host) -> Cpus:
    """What /proc/cpuinfo says of the processors."""
    info = host.digest("/proc/cpuinfo", "cpus", _cpuinfo) or {}
    model, part = info.get("model"), tuple(info.get("part") or ("", ""))
    if model is None and part[1]:
        model = ARM_PARTS.get(part, f"Arm CPU {part[0]}/{part[1]}")
    sockets, cores = info.get("sockets"), info.get("cores")
    if sockets is None:
        sockets, cores = _topology(host)
    return Cpus(model, sockets, cores, _numa(host), bool(info.get("guest")), bool(part[1]))


def _topology(host: Host) -> tuple[int | None, int | None]:
    """Packages and cores from sysfs, where cpuinfo does not tell (Arm, POWER)."""
    at = "/sys/devices/system/cpu"
    seen = set()
    for number in cpu_list(host.read(f"{at}/online")) or ():
        package = host.read(f"{at}/cpu{number}/topology/physical_package_id")
        core = host.read(f"{at}/cpu{number}/topology/core_id")
        if package is None or core is None:
            return None, None
        seen.add((package, core))
    return (len({p for p, _ in seen}) or None), (len(seen) or None)


def _numa(host: Host) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """NUMA nodes with CPUs. GPU memory on Grace and POWER9 is a node too, and has none."""
    found = []
    for name in host.names("/sys/devices/system/node"):
        match = re.fullmatch(r"node([0-9]{1,5})", name)
        listed = cpu_list(host.read(f"/sys/devices/system/node/{name}/cpulist")) if match else None
        if match and listed:
            found.append((int(match[1]), listed))
    return tuple(sorted(found))


def virtual(host: Host, cpu: Cpus) -> str | None:
    """The hypervisor, when this is a virtual machine."""
    if "microsoft" in (host.read("/proc/sys/kernel/osrelease") or "").lower():
        return "wsl2"
    kind = host.read("/sys/hypervisor/type")
    words = " ".join(host.read(f"/sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name")).lower()
    named = next((name for word, name in HYPERVISORS if word in words), None)
    if named is not None and cpu.model is not None and not cpu.hypervisor and ("amazon" in words or "google" in words):
        # Arm has no such flag: there an instance counts as virtual unless it is called metal.
        named = named if cpu.arm and "metal" not in words else None
    return named or (kind if kind and kind != "none" else None) or ("unknown hypervisor" if cpu.hypervisor else None)


def container(host: Host, environ: Mapping[str, str]) -> str | None:
    """The container engine, when this is inside one."""
    for name, engine in CONTAINER_VARIABLES:
        if environ.get(name):
            return engine
    for path, engine in CONTAINER_FILES:
        if host.exists(path):
            return engine
    groups = (host.read("/proc/1/cgroup") or "") + (host.read("/proc/self/cgroup") or "")
    return next((engine for word, engine in CONTAINER_CGROUPS if word in groups), host.read("/run/systemd/container"))


def memory(host: Host) -> Mapping[str, int]:
    """/proc/meminfo in bytes (counts of pages as they are)."""
    found = {}
    for line in (host.read("/proc/meminfo") or "").splitlines():
        match = re.match(r"^([\w()]+):\s+([0-9]{1,18})(\s+kB)?$", line)
        if match:
            found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    return found


def host_memory(host: Host, cpu: Cpus, total: int | None) -> int | None:
    """Bytes of the CPUs' own memory. On Grace and POWER9 the memory of the GPUs is NUMA nodes without CPUs, which
    /proc/meminfo counts too."""
    nodes = [n for n in host.names("/sys/devices/system/node") if re.fullmatch(r"node[0-9]{1,5}", n)]
    if len(nodes) <= len(cpu.numa):
        return total
    sizes = []
    for number, _ in cpu.numa:
        said = host.find(f"/sys/devices/system/node/node{number}/meminfo", "size", r"MemTotal:\s+([0-9]{1,15}) kB")
        sizes.append(int(said[0][0]) * 1024 if said else None)
    known = [s for s in sizes if s is not None]
    return sum(known) if known and len(known) == len(sizes) else total


def cgroup_limits(host: Host) -> tuple[int | None, float | None]:
    """(bytes of memory, CPUs) that the control groups above this process allow; None: no limit. Every level counts."""
    memories: list[int] = []
    quotas: list[float] = []
    for line in (host.read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for level in _upwards(path):
            if not controllers:
                base = f"/sys/fs/cgroup{level}"
                memories += _below(host.read(f"{base}/memory.max"))
                quotas += _quota(*(host.read(f"{base}/cpu.max") or "").split()[:2])
            if "memory" in controllers.split(","):
                memories += _below(host.read(f"/sys/fs/cgroup/memory{level}/memory.limit_in_bytes"))
            if "cpu" in controllers.split(","):
                base = f"/sys/fs/cgroup/cpu{level}"
                quotas += _quota(
                    host.read(f"{base}/cpu.cfs_quota_us") or "", host.read(f"{base}/cpu.cfs_period_us") or ""
                )
    return min(memories, default=None), min(quotas, default=None)


def _upwards(path: str) -> list[str]:
    """A group and all above it; in a container the namespace shows the own group as the root."""
    parts = [p for p in path.split("/") if p and p != ".."][:16]
    return ["/" + "/".join(parts[:n]) if n else "" for n in range(len(parts), -1, -1)]


def _below(text: str | None) -> list[int]:
    """A limit in bytes; version 1 writes "no limit" as a number close to 2**63."""
    return [int(text)] if text and text.isascii() and text.isdigit() and int(text) < 2**60 else []


def _quota(quota: str = "", period: str = "") -> list[float]:
    good = quota.isascii() and quota.isdigit() and period.isascii() and period.isdigit() and int(period) > 0
    return [int(quota) / int(period)] if good and int(quota) > 0 else []


def limits(host: Host) -> tuple[int | None, int | None]:
    """Soft limits of locked memory (bytes) and open files, as this process has them."""
    found: dict[str, int] = {}
    pattern = r"^Max (locked memory|open files)\s+(unlimited|[0-9]{1,20})\s"
    for name, value in host.find("/proc/self/limits", "limits", pattern) or ():
        found[name] = UNLIMITED if value == "unlimited" else int(value)
    return found.get("locked memory"), found.get("open files")


def shared_memory(host: Host) -> tuple[int | None, int | None]:
    """Size of /dev/shm, and what is left in it, in bytes. Containers get 64 MiB unless told otherwise. A captured tree says no
    more than what its mount does."""
    if (space := host.space("/dev/shm")) is not None:
        return space[0], space[1]
    for (options,) in host.find("/proc/mounts", "shm", r"^\S+ /dev/shm \S+ (\S+)") or ():
        match = re.search(r"(?:^|,)size=([0-9]{1,15})([kmg]?)", options)
        if match:
            return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]], None
    return None, None


def transparent_huge_pages(host: Host) -> str | None:
    """The setting in force: always, madvise or never; None when it is not known."""
    match = re.search(r"\[(\w+)\]", host.read("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return match[1] if match else None


def own_name_is_loopback(host: Host, hostname: str) -> bool | None:
    """Whether /etc/hosts sends our own name to 127.x: Gloo then binds to the loopback and no other node finds it."""

    def look(content: bytes) -> bool:
        for line in content.decode("utf-8", "replace").splitlines():
            cells = line.partition("#")[0].split()
            if len(cells) > 1 and hostname in cells[1:] and ":" not in cells[0]:
                return cells[0].startswith("127.")
        return False

    answer: bool | None = host.digest("/etc/hosts", "own name is loopback", look)
    return answer


def xids(host: Host) -> tuple[tuple[int, str, int], ...] | None:
    """Xid errors of the kernel log: (number, PCI address, seconds ago)."""
    found = host.xids()
    if found is None:
        return None
    return tuple((int(n), a if "." in a else a + ".0", int(ago)) for n, a, ago in found)


def sxids(host: Host) -> tuple[tuple[int, str, int, bool, str], ...] | None:
    """Errors of NVSwitches in the kernel log: (number, PCI address, seconds ago, fatal, words)."""
    found = host.sxids()
    if found is None:
        return None
    return tuple((int(n), str(a), int(ago), bool(fatal), str(words)) for n, a, ago, fatal, words in found)

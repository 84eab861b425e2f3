"""GPUs: NVML's answers as values, and what the kernel module and the PCI bus say when NVML says nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch.hardware.datasheet import name_of_pci
from parlaunch_probes.host import Host
from parlaunch_probes.links import Ends, Fabric
from parlaunch_probes.nvml import NvmlReading
from parlaunch_probes.pci import Device, numa_of
from parlaunch_probes.text import cpu_list, pci_address

PROC = "/proc/driver/nvidia"
VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


def _int(answers: Mapping[str, Any], key: str) -> int | None:
    value = answers.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _first(answers: Mapping[str, Any], key: str, at: int = 0) -> int | None:
    value = answers.get(key)
    return value[at] if isinstance(value, list) and len(value) > at and isinstance(value[at], int) else None


def _times(value: int | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _hertz(megahertz: int | None) -> int | None:
    return None if megahertz is None else megahertz * 1_000_000


def _flag(value: int | None) -> bool | None:
    return None if value is None else value == 1


def gpu_of(record: Mapping[str, Any], host: Host, ends: Ends | None, fabric: Fabric | None) -> Gpu:
    """One GPU of a reading. Its NUMA node is the one that sysfs gives to the PCI device, else NVML's."""
    said = record["answers"]
    address = pci_address(said.get("pci"))
    nodes = said.get("numa") or []
    numa = numa_of(host, address)
    if numa is None and len(nodes) == 1:  # several: the mask is not about one node, as in a container
        numa = nodes[0]
    memory = said.get("memory") or {}
    fields = said.get("fields") or {}
    capability = said.get("capability")
    rows = said.get("remapped_rows")
    errors = [
        fields[k] for k in ("nvlink_crc_flit", "nvlink_crc_data", "nvlink_replay", "nvlink_recovery") if k in fields
    ]
    return Gpu(
        index=int(record["index"]),
        name=str(said.get("name") or UNKNOWN),
        uuid=said.get("uuid"),
        pci=address,
        memory_bytes=memory.get("total"),
        compute_capability=(capability[0], capability[1]) if capability else None,
        numa=numa,
        nvlinks=ends.active if ends else None,
        fabric_id=fabric.key if fabric else None,
        cpus=_cpus(host, address, said),
        error=record.get("lost"),
        minor=_int(said, "minor"),
        serial=said.get("serial"),
        vbios=said.get("vbios"),
        numa_memory=_int(said, "numa_memory"),
        memory_used_bytes=memory.get("used"),
        memory_reserved_bytes=memory.get("reserved"),
        processes=None if said.get("processes") is None else tuple((p[0], p[1]) for p in said["processes"]),
        clock_sm_hz=_hertz(_int(said, "clock_sm")),
        clock_sm_max_hz=_hertz(_int(said, "clock_sm_max")),
        clock_sm_app_hz=_hertz(_int(said, "clock_sm_app")),
        clock_memory_hz=_hertz(_int(said, "clock_memory")),
        clock_memory_max_hz=_hertz(_int(said, "clock_memory_max")),
        power_w=_times(_int(said, "power"), 1e-3),
        power_limit_w=_times(_int(said, "power_limit"), 1e-3),
        power_default_w=_times(_int(said, "power_default"), 1e-3),
        power_max_w=_times(_first(said, "power_range", 1), 1e-3),
        temperature_c=_int(said, "temperature"),
        throttle=_int(said, "throttle"),
        pstate=_int(said, "pstate"),
        persistence=_flag(_int(said, "persistence")),
        compute_mode=None if (mode := _int(said, "compute_mode")) is None else COMPUTE_MODES.get(mode, f"mode {mode}"),
        ecc=_flag(_first(said, "ecc")),
        ecc_pending=_flag(_first(said, "ecc", 1)),
        ecc_uncorrected=_int(said, "ecc_uncorrected"),
        ecc_sram_uncorrected=_int(said, "ecc_sram_uncorrected"),
        remapped_rows=(rows[0], rows[1], rows[2], rows[3]) if rows and len(rows) == 4 else None,
        retired_pending=_flag(_int(said, "retired_pending")),
        recovery_action=fields.get("recovery_action"),
        mig=_flag(_first(said, "mig")),
        mig_devices=tuple(
            (str(m.get("uuid")), str(m.get("name")), m.get("memory")) for m in said.get("mig_devices") or ()
        ),
        mig_instances=tuple((int(m.get("gi") or 0), int(m.get("ci") or 0)) for m in said.get("mig_devices") or ()),
        pcie_gen=_int(said, "pcie_gen"),
        pcie_gen_max=_int(said, "pcie_gen_max"),
        pcie_width=_int(said, "pcie_width"),
        pcie_width_max=_int(said, "pcie_width_max"),
        nvlinks_down=ends.down if ends else None,
        nvlinks_assumed=ends.assumed if ends else None,
        nvlinks_switch=ends.switch if ends else None,
        nvlinks_hidden=ends.hidden if ends else None,
        nvlink_version=ends.version if ends else None,
        nvlink_bytes_per_s=ends.bytes_per_s if ends else None,
        nvlink_errors=sum(errors) if errors else None,
        fabric_state=fabric.state if fabric else None,
        fabric_status=fabric.status if fabric and fabric.state == "completed" else None,
        fabric_health=fabric.health if fabric else (),
        fabric_summary=fabric.summary if fabric else None,
        fabric_cluster=fabric.cluster if fabric else None,
        fabric_clique=fabric.clique if fabric else None,
        cores=_int(said, "cores"),
        memory_bus_bits=_int(said, "bus_width"),
        vgpu=None if (mode := _int(said, "virtualization")) is None else mode == VGPU,
    )


def _cpus(host: Host, address: str | None, said: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The CPUs beside a GPU that this process may run on: NVML cuts the list by the cpuset already, sysfs does not."""
    allowed = allowed_cpus(host)
    near = cpu_list(host.read(f"/sys/bus/pci/devices/{address}/local_cpulist")) if address else None
    given = near or (tuple(said["cpus"]) if said.get("cpus") else None)
    if given is None or allowed is None:
        return given
    return tuple(sorted(set(given) & set(allowed))) or None


def allowed_cpus(host: Host) -> tuple[int, ...] | None:
    """The CPUs that this process may run on."""
    found = host.find("/proc/self/status", "cpus allowed", r"^Cpus_allowed_list:\s*(\S*)$")
    return cpu_list(found[0][0]) if found else None


def slice_of(gpu: Gpu, uuid: str) -> Gpu:
    """The GPU as a process sees it through one of its MIG devices."""
    found = next((m for m in gpu.mig_devices if m[0] == uuid), None)
    return gpu if found is None else replace(gpu, uuid=uuid, name=found[1], memory_bytes=found[2], mig=True)


def from_kernel_module(host: Host) -> tuple[Gpu, ...]:
    """GPUs as the loaded kernel module lists them in /proc, without NVML: identity and place, no capacity."""
    found: list[Gpu] = []
    for folder in host.names(f"{PROC}/gpus"):
        text = host.read(f"{PROC}/gpus/{folder}/information")
        if text is None:
            continue
        said = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
        address = pci_address(said.get("Bus Location")) or pci_address(folder)
        if said.get("GPU Excluded") == "Yes":
            continue
        minor = said.get("Device Minor", "")
        uuid = said.get("GPU UUID")
        found.append(
            Gpu(
                index=len(found),
                name=said.get("Model") or UNKNOWN,
                uuid=uuid if uuid and "?" not in uuid else None,  # question marks: the GPU was never initialised
                pci=address,
                numa=numa_of(host, address),
                cpus=_cpus(host, address, {}),
                minor=int(minor) if minor.isascii() and minor.isdigit() else None,
            )
        )
    return tuple(found)


def from_pci(host: Host, devices: Sequence[Device]) -> tuple[Gpu, ...]:
    """GPUs as the PCI bus lists them, with no driver to ask: only what the device id tells."""
    return tuple(
        Gpu(
            index=at,
            name=name_of_pci(f"{d.device:04x}") or f"NVIDIA GPU 10de:{d.device:04x}",
            pci=d.address,
            numa=numa_of(host, d.address),
            cpus=_cpus(host, d.address, {}),
        )
        for at, d in enumerate(devices)
    )


def kernel_driver(host: Host) -> tuple[str | None, bool | None]:
    """Version of the loaded kernel module, and whether it is the open one."""
    text = host.read(f"{PROC}/version")
    version = host.read("/sys/module/nvidia/version")
    if text is None:
        return version, None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text + " ")
    return match[1] if match else version, "Open Kernel Module" in text


def unanswered(reading: NvmlReading) -> tuple[str, ...]:
    """One sentence for every question that some GPUs did not answer for a reason other than "not supported"."""
    expected = {"NOT_SUPPORTED", "FUNCTION_NOT_FOUND"}
    silent: dict[tuple[str, str], list[int]] = {}
    for gpu in reading.gpus:
        for key, why in gpu.get("reasons", {}).items():
            if why not in expected and not gpu.get("lost"):
                silent.setdefault((key, why), []).append(gpu["index"])
    return tuple(
        f"{key.replace('_', ' ')} of GPU {', '.join(map(str, indexes))} is not known: NVML answered {why}"
        for (key, why), indexes in sorted(silent.items())
    )

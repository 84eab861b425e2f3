"""`nvidia-smi -q -x`: the same as `-q`, as XML. Element names are turned into the text's headings and read by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from parlaunch_probes.files import smi_q
from parlaunch_probes.files.clean import whole
from parlaunch_probes.files.facts import Facts

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

WHAT = "nvidia-smi -q -x"
# Where the XML's path differs from the text's by more than case and underscores.
_PATHS = {
    "product_name": "Product Name",
    "product_architecture": "Product Architecture",
    "uuid": "GPU UUID",
    "minor_number": "Minor Number",
    "serial": "Serial Number",
    "vbios_version": "VBIOS Version",
    "gsp_firmware_version": "GSP Firmware Version",
    "persistence_mode": "Persistence Mode",
    "compute_mode": "Compute Mode",
    "performance_state": "Performance State",
    "mig_mode/current_mig": "MIG Mode/Current",
    "ecc_mode/current_ecc": "ECC Mode/Current",
    "fb_memory_usage/total": "FB Memory Usage/Total",
    "cc_protected_memory_usage/total": "Conf Compute Protected Memory Usage/Total",
    "fb_memory_usage/used": "FB Memory Usage/Used",
    "fb_memory_usage/reserved": "FB Memory Usage/Reserved",
    "gpu_virtualization_mode/virtualization_mode": "GPU Virtualization Mode/Virtualization Mode",
    "platformInfo/peer_type": "Platform Info/Peer Type",
    "platform_info/peer_type": "Platform Info/Peer Type",
    "pci/pci_device_id": "PCI/Device Id",
    "pci/pci_gpu_link_info/pcie_gen/current_link_gen": "PCI/GPU Link Info/PCIe Generation/Current",
    "pci/pci_gpu_link_info/pcie_gen/max_link_gen": "PCI/GPU Link Info/PCIe Generation/Max",
    "pci/pci_gpu_link_info/link_widths/current_link_width": "PCI/GPU Link Info/Link Width/Current",
    "pci/pci_gpu_link_info/link_widths/max_link_width": "PCI/GPU Link Info/Link Width/Max",
    "clocks/sm_clock": "Clocks/SM",
    "clocks/mem_clock": "Clocks/Memory",
    "max_clocks/sm_clock": "Max Clocks/SM",
    "max_clocks/mem_clock": "Max Clocks/Memory",
    "temperature/gpu_temp": "Temperature/GPU Current Temp",
    "fabric/state": "Fabric/State",
    "fabric/status": "Fabric/Status",
    "fabric/cliqueId": "Fabric/CliqueId",
    "fabric/clusterUuid": "Fabric/ClusterUUID",
    "fabric/clique_id": "Fabric/CliqueId",
    "fabric/cluster_uuid": "Fabric/ClusterUUID",
} | {
    f"{group}/{name}": f"GPU Power Readings/{words}"
    for group in ("power_readings", "gpu_power_readings")
    for name, words in (
        ("power_draw", "Power Draw"),
        ("average_power_draw", "Average Power Draw"),
        ("power_limit", "Power Limit"),
        ("current_power_limit", "Current Power Limit"),
        ("default_power_limit", "Default Power Limit"),
        ("max_power_limit", "Max Power Limit"),
    )
}


def find(root: Element) -> Facts | None:
    """The machine of a log; None when the root is another format's."""
    if root.tag != "nvidia_smi_log":
        return None
    facts = Facts(WHAT)
    facts.attached = whole(root.findtext("attached_gpus"))
    head = (
        ("driver", root.findtext("driver_version") or root.findtext("kmd_version")),
        ("cuda", root.findtext("cuda_version") or root.findtext("cuda_umd_version")),
    )
    facts.node = {k: v.strip() for k, v in head if v and smi_q.known(v)}
    virtual: set[str | None] = set()
    peers: list[str | None] = []
    blocks: list[tuple[str, dict[str, str]]] = []
    for index, element in enumerate(root.findall("gpu")):
        fields = {_PATHS[path]: value for path, value in _paths(element) if path in _PATHS}
        for n, slice_ in enumerate(element.findall("mig_devices/mig_device")):
            at = f"MIG Devices/Device {n}"
            fields[f"{at}/GPU Instance ID"] = (slice_.findtext("gpu_instance_id") or "?").strip()
            fields[f"{at}/Compute Instance ID"] = (slice_.findtext("compute_instance_id") or "?").strip()
            sms = slice_.findtext("device_attributes/shared/multiprocessor_count")
            fields[f"{at}/Multiprocessor count"] = (sms or "?").strip()
            fields[f"{at}/FB Memory Usage/Total"] = (slice_.findtext("fb_memory_usage/total") or "").strip()
        virtual.add(fields.get("GPU Virtualization Mode/Virtualization Mode"))
        peers.append(fields.get("Platform Info/Peer Type"))
        bus = element.get("id") or element.findtext("pci/pci_bus_id") or ""
        blocks.append((bus.strip(), fields))
        if not fields:
            facts.notes.append(f"GPU {bus or index} has no data in this file")
    smi_q.take(facts, blocks)
    if not facts.gpus and not facts.lost:
        return None
    smi_q.conclude(facts, virtual, peers)
    return facts


def _paths(element: Element, above: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > 12:
        return
    for child in element:
        path = f"{above}/{child.tag}" if above else str(child.tag)
        text = (child.text or "").strip()
        if text:
            yield path, text
        if child.tag not in ("mig_devices", "processes", "supported_clocks", "accounted_processes"):
            yield from _paths(child, path, depth + 1)

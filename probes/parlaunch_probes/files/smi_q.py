"""`nvidia-smi -q`: one block a GPU, indented keys and values. Read by indentation, so that new fields do no harm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parlaunch.hardware.cluster import UNKNOWN, Gpu
from parlaunch.hardware.derived import sheet_of
from parlaunch_probes.files import lost
from parlaunch_probes.files.clean import decimal, mebibytes, whole
from parlaunch_probes.files.conclude import by_device
from parlaunch_probes.files.facts import Facts
from parlaunch_probes.text import pci_address

WHAT = "nvidia-smi -q"
_GPU = re.compile(r"^GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\s*$")
_NONE = (
    "",
    "N/A",
    "[N/A]",
    "None",
    "Unknown Error",
    "[Unknown Error]",
    "[GPU is lost]",
    "GPU is lost",
    "GPU requires reset",
    "[GPU requires reset]",
    "Not Found",
    "Requested functionality has been deprecated",
)
# What the architecture tells where the product is not known; Ampere and Blackwell are two generations each.
_ARCHITECTURES = {"Volta": (7, 0), "Turing": (7, 5), "Ada Lovelace": (8, 9), "Hopper": (9, 0)}
Paths = Mapping[str, str]
STATES = {
    "Completed": "completed",
    "In Progress": "in_progress",
    "Not Started": "not_started",
    "N/A": "not_supported",
    "Not Supported": "not_supported",
}


def find(text: str) -> Facts | None:
    """Every GPU block in the text; None without one."""
    head: dict[str, str] = {}
    blocks: list[tuple[str, dict[str, str]]] = []
    stack: list[tuple[int, str]] = []
    again = False
    for line in text.split("\n"):
        if match := _GPU.match(line):
            if any(bus == match[1] for bus, _ in blocks):
                again = True
                break  # the same listing once more, or another node's
            blocks.append((match[1], {}))
            stack = []
            continue
        bare = line.expandtabs(4)
        content = bare.strip()
        indent = len(bare) - len(bare.lstrip())
        if not content or (indent == 0 and blocks and ":" not in content):
            continue
        key, colon, value = (part.strip() for part in content.partition(" :" if " :" in content else ":"))
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = "/".join([name for _, name in stack] + [key])
        if colon:
            into = blocks[-1][1] if blocks and indent > 0 else head
            into.setdefault(path, value)
        else:
            stack.append((indent, _section(blocks[-1][1] if blocks else head, path, key)))
    if not blocks:
        return None
    facts = Facts(WHAT)
    facts.attached = whole(head.get("Attached GPUs"))
    # From the 610 series on the heads are called KMD and CUDA UMD.
    versions = (
        ("driver", head.get("Driver Version") or head.get("KMD Version")),
        ("cuda", head.get("CUDA Version") or head.get("CUDA UMD Version")),
    )
    facts.node = {k: v for k, v in versions if known(v)}
    take(facts, blocks)
    virtual = {f.get("GPU Virtualization Mode/Virtualization Mode") for _, f in blocks}
    conclude(facts, virtual, [f.get("Platform Info/Peer Type") for _, f in blocks])
    if again:
        facts.notes.append("the GPUs repeat in this file: only the first listing was read")
    return facts


def take(facts: Facts, blocks: Sequence[tuple[str, Paths]]) -> None:
    """GPUs of the blocks, those that give no values any more apart."""
    for i, (bus, fields) in enumerate(blocks):
        asked = (fields.get(key) for key in ("Product Name", "GPU UUID", "FB Memory Usage/Total", "Performance State"))
        if (why := lost.reason(asked)) is not None:
            facts.lost.append(lost.lost(i, pci_address(bus), why, known(fields.get("Product Name")) or UNKNOWN))
        else:
            facts.gpus.append(gpu_of(i, bus, fields))
    if any((mebibytes(f.get("Conf Compute Protected Memory Usage/Total")) or 0) > 0 for _, f in blocks):
        facts.node["confidential"] = True


def _section(into: dict[str, str], path: str, key: str) -> str:
    """MIG devices repeat under one heading ("MIG Device" or "Device"): number them, so that none hides another."""
    if key in ("MIG Device", "Device", "Process") or key.startswith("MIG Device"):
        count = int(into.get(f"#{path}", "0"))
        into[f"#{path}"] = str(count + 1)
        return f"{key} {count}"
    return key


def known(value: str | None) -> str | None:
    """The value, or None where nvidia-smi says that it has none."""
    return None if value is None or value.strip() in _NONE else value.strip()


def gpu_of(index: int, bus: str, fields: Paths) -> Gpu:
    """A GPU from the paths of its block ("FB Memory Usage/Total")."""

    def get(*paths: str) -> str | None:
        return next((v for p in paths if (v := known(fields.get(p))) is not None), None)

    def flag(path: str) -> bool | None:
        return {"Enabled": True, "Disabled": False}.get(fields.get(path, ""))

    def megahertz(path: str) -> int | None:
        value = whole(get(path))
        return None if value is None else value * 1_000_000

    state = STATES.get(fields.get("Fabric/State", ""))
    cluster, clique = (
        get("Fabric/ClusterUUID", "Fabric/Cluster UUID"),
        whole(get("Fabric/CliqueId", "Fabric/Clique ID")),
    )
    status = {"Success": 0}.get(fields.get("Fabric/Status", ""))
    multi = state == "completed" and status in (0, None) and cluster is not None and cluster.strip("0-") != ""
    limits = (
        get("GPU Power Readings/Current Power Limit", "Power Readings/Power Limit", "GPU Power Readings/Power Limit"),
    )
    named = Gpu(index=index, name=get("Product Name") or UNKNOWN)
    gpu = Gpu(
        index=index,
        name=named.name,
        uuid=get("GPU UUID"),
        pci=pci_address(bus),
        memory_bytes=mebibytes(get("FB Memory Usage/Total")),
        compute_capability=_ARCHITECTURES.get(get("Product Architecture") or "") if sheet_of(named) is None else None,
        memory_used_bytes=mebibytes(get("FB Memory Usage/Used")),
        memory_reserved_bytes=mebibytes(get("FB Memory Usage/Reserved")),
        minor=whole(get("Minor Number")),
        serial=get("Serial Number"),
        persistence=flag("Persistence Mode"),
        compute_mode=(get("Compute Mode") or "").lower().replace(" ", "_") or None,
        ecc=flag("ECC Mode/Current") if "ECC Mode/Current" in fields else flag("Ecc Mode/Current"),
        mig=flag("MIG Mode/Current"),
        mig_devices=_slices(fields),
        pcie_gen=whole(get("PCI/GPU Link Info/PCIe Generation/Current")),
        pcie_gen_max=whole(get("PCI/GPU Link Info/PCIe Generation/Max")),
        pcie_width=whole(get("PCI/GPU Link Info/Link Width/Current")),
        pcie_width_max=whole(get("PCI/GPU Link Info/Link Width/Max")),
        pstate=whole((get("Performance State") or "").lstrip("P")),
        clock_sm_hz=megahertz("Clocks/SM"),
        clock_sm_max_hz=megahertz("Max Clocks/SM"),
        clock_memory_hz=megahertz("Clocks/Memory"),
        clock_memory_max_hz=megahertz("Max Clocks/Memory"),
        power_w=decimal(
            get("GPU Power Readings/Power Draw", "Power Readings/Power Draw", "GPU Power Readings/Average Power Draw")
        ),
        power_limit_w=decimal(limits[0]),
        power_default_w=decimal(get("GPU Power Readings/Default Power Limit", "Power Readings/Default Power Limit")),
        power_max_w=decimal(get("GPU Power Readings/Max Power Limit", "Power Readings/Max Power Limit")),
        temperature_c=whole(get("Temperature/GPU Current Temp")),
        fabric_state=state,
        fabric_status=status,
        fabric_cluster=cluster,
        fabric_clique=clique,
        fabric_id=(cluster, clique or 0) if multi and cluster is not None else None,
        vbios=get("VBIOS Version"),
    )
    device = re.fullmatch(r"0x([0-9A-Fa-f]{4})10DE", fields.get("PCI/Device Id", ""))
    return by_device(gpu, device[1]) if device and gpu.name == UNKNOWN else gpu


def _slices(fields: Paths) -> tuple[tuple[str, str, int | None], ...]:
    """MIG devices as (id, name, bytes): -q shows no UUID of theirs, so the instance ids stand in."""
    found: dict[str, dict[str, str]] = {}
    for path, value in fields.items():
        parts = path.split("/")
        for n, part in enumerate(parts):
            if re.fullmatch(r"(MIG )?Device \d+", part) and parts[0].startswith("MIG Device"):
                found.setdefault("/".join(parts[: n + 1]), {})["/".join(parts[n + 1 :])] = value
                break
    out = []
    for one in found.values():
        gi, ci = one.get("GPU Instance ID"), one.get("Compute Instance ID")
        sms = next((v for k, v in one.items() if k.endswith("Multiprocessor count")), None)
        if gi is not None:
            out.append((f"gi {gi} ci {ci}", f"{sms or '?'} SMs", mebibytes(one.get("FB Memory Usage/Total"))))
    return tuple(out)


def conclude(facts: Facts, virtual: set[str | None], peers: Sequence[str | None]) -> None:
    """What the GPUs' blocks together say of the node."""
    if "Pass-Through" in virtual:
        facts.node["virtual"] = "pass-through"
    elif "VGPU" in virtual:
        facts.node["virtual"] = "vgpu"
        facts.gpus = [replace(g, vgpu=True) for g in facts.gpus]
    if any(p == "Switch Connected" for p in peers):
        facts.switched = True
    minors = [g.minor for g in facts.gpus if g.minor is not None]
    if len(minors) == len(facts.gpus) > 0 and sorted(minors) != list(range(len(minors))):
        gap = sorted(set(range(min(max(minors), 255) + 1)) - set(minors))
        if gap and len(gap) <= 64:
            facts.notes.append(f"device minors {gap} are not here: the host has more GPUs than this view, or lost some")

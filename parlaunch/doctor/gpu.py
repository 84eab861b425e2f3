"""What can be wrong with the GPUs of a node and their NVLinks. Rows of the preflight catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from parlaunch.doctor.finding import FAIL, INFO, WARN, Inspection, Sight, Use, of_gpus
from parlaunch.doctor.unread import gpus_unread
from parlaunch.doctor.xid import xids
from parlaunch.hardware.cluster import UNKNOWN, Gpu, Node
from parlaunch.hardware.datasheet import product
from parlaunch.units import few

MIB, GIB = 1 << 20, 1 << 30
RECENT_S = 2 * 3600
MANY_LINK_ERRORS = 100  # since the counters were cleared; single ones are repaired without notice
LOW_CLOCK = 0.7  # of the maximum: default application clocks lie above (A100 at 0.78)
ACTIONS = {1: "reset it", 2: "reboot the node", 3: "drain P2P traffic, then reset", 4: "drain it and reset it",
           5: "recover the IMEX domain", 6: "reset its bus", 7: "reboot the system"}  # fmt: skip
THROTTLES = (
    (0x8, "hardware slowdown"),
    (0x20, "software thermal slowdown"),
    (0x40, "hardware thermal slowdown"),
    (0x80, "power brake"),
)
# Errors of nvmlInit: what they mean, and what to do about them.
NVML_ERRORS = {
    "LIBRARY_NOT_FOUND": (
        "libnvidia-ml.so.1 is not here",
        "install the NVIDIA driver; in a container start it with the NVIDIA runtime (--gpus all)",
    ),
    "DRIVER_NOT_LOADED": (
        "the NVIDIA kernel module is not loaded",
        "sudo modprobe nvidia, and read dmesg if that fails",
    ),
    "LIB_RM_VERSION_MISMATCH": (
        "driver library and kernel module have different versions: the driver was updated under a running kernel",
        "reboot, or unload and reload the nvidia kernel modules; in a container restart it after that",
    ),
    "NO_PERMISSION": ("no permission to talk to the driver", "check the modes of /dev/nvidia* and the device cgroup"),
    "UNKNOWN": (
        "the driver refuses to answer; in a container its device cgroup was rewritten (systemctl daemon-reload does it)",
        "restart the container; on a bare host read dmesg for NVRM lines",
    ),
    "GPU_NOT_FOUND": ("the driver finds no GPU", "read dmesg for NVRM and Xid lines; reset or reboot"),
}


def _nvml(node: Node, use: Use) -> Iterator[Sight]:
    error = node.nvml_error
    if error is None or error.startswith("not asked"):
        return
    if not node.gpus and not node.gpus_unusable and not node.gpus_pci:
        return  # `gpu-count` says that there is no GPU at all
    words = error.partition(":")[0]
    if words == "TIMEOUT":
        yield (
            FAIL,
            f"NVML did not answer ({error})",
            "read dmesg for NVRM and Xid lines; the node needs a reboot as a rule",
        )
        return
    meaning, do = NVML_ERRORS.get(error, (f"NVML cannot be used: {error}", "run nvidia-smi and follow what it says"))
    versions = f" (kernel module {node.driver_kernel})" if node.driver_kernel else ""
    yield FAIL, f"{meaning}{versions}", do


def _versions(node: Node, use: Use) -> Iterator[Sight]:
    if node.driver and node.driver_kernel and node.driver != node.driver_kernel:
        yield FAIL, f"driver library {node.driver}, kernel module {node.driver_kernel}"


def _count(node: Node, use: Use) -> Iterator[Sight]:
    have = len(node.gpus)
    if gpus_unread(node):
        return
    if not have and not node.gpus_unusable:
        bus = "" if node.gpus_pci is None else f", {node.gpus_pci} on the PCI bus"
        hidden = f", {len(node.gpus_invisible)} hidden by CUDA_VISIBLE_DEVICES" if node.gpus_invisible else ""
        do = "ask for them: --gpus-per-node of srun, --gpus all of docker, a limit of nvidia.com/gpu in Kubernetes"
        if node.gpus_invisible:
            do = "unset CUDA_VISIBLE_DEVICES, or name GPUs that are here"
        elif node.gpus_pci == 0:
            do = "call it on a node that has GPUs; --hardware FILE judges what was captured on one"
        yield FAIL, f"no GPU that a job could use{bus}{hidden}", do
    elif use.ranks_per_node is not None and have < use.ranks_per_node:
        yield FAIL, f"{have} GPUs for {use.ranks_per_node} ranks"


def _lost(node: Node, use: Use) -> Iterator[Sight]:
    does = {
        "NO_PERMISSION": "ask the scheduler for it, or leave it out with CUDA_VISIBLE_DEVICES",
        "TIMEOUT": "read dmesg for Xid lines; a GPU that hangs the driver needs a reboot",
        "RESET_REQUIRED": "nvidia-smi --gpu-reset -i INDEX with no process on it, or reboot",
    }
    for gpu in node.gpus_unusable:
        error = gpu.error or "it does not answer"
        place = f" at {gpu.pci}" if gpu.pci else ""
        uuid = f" {gpu.uuid}" if gpu.uuid else ""
        do = does.get(error, "read dmesg for its Xid (79: fallen off the bus); reset or reboot, else replace it")
        yield FAIL, f"GPU {gpu.index}{uuid}{place}: {error}", do


def _absent(node: Node, use: Use) -> Iterator[Sight]:
    listed = len(node.gpus) + len(node.gpus_unusable) + len(node.gpus_invisible)
    if node.gpus_pci is None or node.gpus_pci <= listed or node.nvml_error is not None or not listed:
        return
    granted = node.container is not None or node.cuda_visible_devices is not None
    words = f"{node.gpus_pci} GPUs on the PCI bus, NVML lists {listed}"
    yield INFO if granted else WARN, words + (": the others are not granted to us" if granted else "")


def _board(node: Node, use: Use) -> Iterator[Sight]:
    """GPUs that come eight to a board, one or two of them missing."""
    sheet = product(node.gpus[0].name) if node.gpus else None
    every = (*node.gpus, *node.gpus_invisible, *node.gpus_left_out)
    have = sum(g.name == node.gpus[0].name for g in every) if node.gpus else 0
    if sheet is None or sheet.board != "nvswitch" or have in (1, 2, 4, 8, 16) or have > 16 or node.gpus_unusable:
        return
    if (node.gpus_pci or 0) > have:
        return  # `gpu-absent` says it
    whole = 16 if have > 8 else 8 if have > 4 else 4
    granted = node.container is not None or node.cuda_visible_devices is not None or node.virtual is not None
    words = f"{have} {sheet.name} where boards of theirs have {whole}"
    yield INFO if granted else WARN, words + (": the others are not granted to us" if granted else "")


def _shared(node: Node, use: Use) -> Iterator[Sight]:
    """Ways in which a GPU is not all ours, or not quite a GPU."""
    yield from of_gpus(
        node.gpus, lambda g: (WARN, "a virtual GPU: others may share it, and it has no peers") if g.vgpu else None
    )
    if node.confidential:
        joined = any(g.nvlink_domain is not None for g in node.gpus)  # protected PCIe, or NVLink that is encrypted
        closed = ""
        if len(node.gpus) > 1 and not joined:
            closed = ", and peers and GPUDirect RDMA are closed"
        elif len(node.gpus) > 1 or use.spans:
            closed = f", {'GPUs reach each other over NVLink, ' if joined else ''}and GPUDirect RDMA is closed"
        yield WARN, f"confidential computing is on: every transfer to the host is encrypted{closed}"
    if node.virtual == "wsl2":
        yield WARN, "this is WSL2: no GPUDirect, and peers over shared memory only"


def _recovery(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        action = gpu.recovery_action
        return (FAIL, f"the driver asks to {ACTIONS.get(action, f'act ({action})')}") if action else None

    yield from of_gpus(node.gpus, say)


def _memory_broken(node: Node, use: Use) -> Iterator[Sight]:
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (FAIL, "row remapping failed: no spare row is left") if g.remapped_rows and g.remapped_rows[3] else None
        ),
    )
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (FAIL, f"{g.ecc_sram_uncorrected} uncorrectable SRAM errors since the driver was loaded")
            if g.ecc_sram_uncorrected
            else None
        ),
    )


def _memory_pending(node: Node, use: Use) -> Iterator[Sight]:
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (WARN, "a row remap is pending: it takes effect at the next reset")
            if g.remapped_rows and g.remapped_rows[2]
            else None
        ),
    )
    yield from of_gpus(
        node.gpus, lambda g: (WARN, "memory pages wait to be retired at the next reset") if g.retired_pending else None
    )
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (WARN, f"{g.ecc_uncorrected} uncorrectable memory errors since the driver was loaded")
            if g.ecc_uncorrected and not g.ecc_sram_uncorrected
            else None
        ),
    )


def _ecc(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        if gpu.ecc is None:
            return None
        if gpu.ecc_pending is not None and gpu.ecc_pending != gpu.ecc:
            return (
                WARN,
                f"ECC is {'on' if gpu.ecc else 'off'} and will be {'on' if gpu.ecc_pending else 'off'} after a reset",
            )
        if not gpu.ecc and (sheet := product(gpu.name)) is not None and sheet.ecc:
            return WARN, "ECC is off: a flipped bit in memory goes unseen into the weights"
        return None

    yield from of_gpus(node.gpus, say)


def _usual_links(node: Node) -> dict[str, int]:
    """Active links of most GPUs of each model, the larger number on a tie."""
    counts: dict[str, Counter[int]] = {}
    for gpu in node.gpus:
        if gpu.nvlinks is not None:
            counts.setdefault(gpu.name, Counter())[gpu.nvlinks] += 1
    return {name: max(found, key=lambda n: (found[n], n)) for name, found in counts.items()}


def _links(node: Node, use: Use) -> Iterator[Sight]:
    usual = _usual_links(node)
    bridged = node.link_type in ("pairs", "none")

    def say(gpu: Gpu) -> tuple[str, str] | None:
        want = usual.get(gpu.name)
        if gpu.nvlinks is None or want is None or gpu.nvlinks >= want:
            return None
        down = f" (down: {', '.join(map(str, gpu.nvlinks_down))})" if gpu.nvlinks_down and gpu.nvlinks else ""
        # Cards joined by bridges: a pair without one is slow, not broken.
        return WARN if bridged else FAIL, f"{gpu.nvlinks} active NVLinks where its twins have {want}{down}"

    yield from of_gpus(node.gpus, say)
    every = [g.nvlinks for g in node.gpus]
    if bridged and not node.nvswitches_pci and every and not any(every) and any(g.nvlinks_down for g in node.gpus):
        yield INFO, "every NVLink of every card is down: no bridge is fitted"


def _links_down(node: Node, use: Use) -> Iterator[Sight]:
    usual = _usual_links(node)

    def say(gpu: Gpu) -> tuple[str, str] | None:
        if not gpu.nvlinks or not gpu.nvlinks_down or gpu.nvlinks < usual.get(gpu.name, 0):
            return None
        return INFO, f"{len(gpu.nvlinks_down)} NVLinks are not active, on its twins too"

    yield from of_gpus(node.gpus, say)


def _off_fabric(node: Node, use: Use) -> Iterator[Sight]:
    if node.link_type not in ("nvswitch", "nvswitch_mnnvl", "mesh", "cube_mesh"):
        return
    inside = [g for g in node.gpus if g.nvlink_domain is not None]
    if not inside:
        return
    usual = _usual_links(node)
    yield from of_gpus(
        [g for g in node.gpus if g.nvlink_domain is None and not g.mig and g.name in {i.name for i in inside}],
        lambda g: (
            FAIL,
            f"reaches no other GPU over NVLink, {len(inside)} others reach each other"
            + ("" if (g.nvlinks or 0) >= usual.get(g.name, 0) else ", its links are down"),
        ),
    )
    sizes = Counter(g.nvlink_domain for g in inside)
    # Bridges over four cards each make several equal meshes; the switches of one board make one domain.
    if len(sizes) > 1 and not (node.link_type == "mesh" and len(set(sizes.values())) == 1):
        groups: dict[int | None, list[int]] = {}
        for gpu in inside:
            groups.setdefault(gpu.nvlink_domain, []).append(gpu.index)
        yield FAIL, "the GPUs of one board fall into NVLink groups " + " and ".join(str(g) for g in groups.values())


def _hidden_switches(node: Node, use: Use) -> Iterator[Sight]:
    some = [g for g in node.gpus if g.nvlinks_assumed]
    if some and len(some) < len([g for g in node.gpus if g.nvlinks]):
        yield from of_gpus(
            some, lambda g: (WARN, "the far ends of its NVLinks cannot be seen, those of the others can")
        )


def _p2p(node: Node, use: Use) -> Iterator[Sight]:
    linked = {(a, b) for a, b, _ in node.nvlinks}
    domains = {g.index: g.nvlink_domain for g in node.gpus}
    broken: dict[tuple[str, str], list[str]] = {}
    for a, b, why in node.p2p_broken:
        mine = domains.get(a)
        joined = (a, b) in linked or (
            mine is not None and node.link_type in ("nvswitch", "nvswitch_mnnvl") and mine == domains.get(b)
        )
        severity = FAIL if joined else INFO if why == "GPU_NOT_SUPPORTED" else WARN
        if why == "NOT_SUPPORTED" and any(g.mig for g in node.gpus if g.index in (a, b)):
            continue  # `mig` says it
        if not joined and why == "IOH_TOPOLOGY_NOT_SUPPORTED":
            continue  # two sockets: staged through memory, as everywhere
        broken.setdefault((severity, why), []).append(f"{a}-{b}")
    for (severity, why), pairs in broken.items():
        yield (
            severity,
            f"GPU {few(pairs, 4)}: peer access is refused: {why}"
            + (" although NVLink joins them" if severity == FAIL else ""),
        )


def _fabric(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        if gpu.fabric_state in ("not_started", "in_progress"):
            return FAIL, f"the NVSwitch fabric is {gpu.fabric_state.replace('_', ' ')}: CUDA answers error 802 or hangs"
        if gpu.fabric_state == "completed" and gpu.fabric_status:
            return FAIL, f"registration with the NVSwitch fabric ended with error {gpu.fabric_status}"
        wrong = [
            h for h in gpu.fabric_health if h not in ("degraded_bandwidth", "route_recovery", "access_timeout_recovery")
        ]
        if gpu.fabric_summary == "unhealthy" or wrong:
            return FAIL, "its NVSwitch fabric is unhealthy" + (
                f": {', '.join(gpu.fabric_health)}" if gpu.fabric_health else ""
            )
        if gpu.fabric_summary == "limited_capacity" or gpu.fabric_health:
            return WARN, "its NVSwitch fabric runs with " + (", ".join(gpu.fabric_health) or "limited capacity")
        return None

    yield from of_gpus(node.gpus, say)
    # Boards before Hopper do not say how their fabric fares: their links stay dark until the fabric manager trains them.
    sheet = product(node.gpus[0].name) if node.gpus else None
    silent = all(g.fabric_state in (None, "not_supported") and g.nvlinks == 0 for g in node.gpus)
    if sheet is not None and sheet.board == "nvswitch" and node.nvswitches_pci and silent:
        yield (
            FAIL,
            f"no NVLink of any GPU is active beside {node.nvswitches_pci} NVSwitches: the fabric manager does not run",
        )


def _link_errors(node: Node, use: Use) -> Iterator[Sight]:
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (
                WARN if g.nvlink_errors >= MANY_LINK_ERRORS else INFO,
                f"{g.nvlink_errors:,} NVLink errors (replays, recoveries, CRC)",
            )
            if g.nvlink_errors
            else None
        ),
    )


def _mnnvl(node: Node, use: Use) -> Iterator[Sight]:
    if node.link_type != "nvswitch_mnnvl":
        if use.multi_node_nvlink and any(g.fabric_cluster and not g.fabric_cluster.strip("0-") for g in node.gpus):
            yield FAIL, "the cluster UUID is all zero: this NVLink fabric ends at the node"
        return
    severity = FAIL if use.multi_node_nvlink else WARN if use.spans else INFO
    if node.imex_channels == 0:
        yield severity, "no IMEX channel: /dev/nvidia-caps-imex-channels/channel0 is not here"
    ids = {g.fabric_id for g in node.gpus if g.fabric_id is not None}
    if len(ids) > 1:
        yield (
            FAIL,
            f"its GPUs are in {len(ids)} NVLink partitions: cliques {', '.join(sorted(str(i[1]) for i in ids))}",
            "ask for one NVLink partition (nmx-c / fabric manager); the node's GPUs must share a clique",
        )


def _mig(node: Node, use: Use) -> Iterator[Sight]:
    chosen = (node.cuda_visible_devices or "").startswith("MIG-") and len(node.gpus) == 1

    def say(gpu: Gpu) -> tuple[str, str] | None:
        if not gpu.mig or (gpu not in node.gpus and node.gpus):
            return None
        if chosen and (use.ranks_per_node or 1) == 1 and not use.spans:
            return WARN, f"one MIG device of it is all that this process sees: {gpu.name}"
        return FAIL, f"MIG mode is on ({len(gpu.mig_devices)} devices)"

    yield from of_gpus([*node.gpus, *node.gpus_invisible], say)


def _compute_mode(node: Node, use: Use) -> Iterator[Sight]:
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (FAIL, "compute mode is PROHIBITED: no CUDA context may be made")
            if g.compute_mode == "prohibited"
            else None
        ),
    )


def _busy(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        used, total = gpu.memory_used_bytes, gpu.memory_bytes
        if used is None or not total or (used <= 0.02 * total and used <= GIB):
            return None
        pids = [str(pid) for pid, _ in gpu.processes or ()]
        who = f" by process {', '.join(pids[:4])}" if pids else ""
        return (
            FAIL if used > use.headroom * total else WARN
        ), f"{used / GIB:.1f} of {total / GIB:.1f} GiB are taken already{who}"

    yield from of_gpus(node.gpus, say)


def _throttle(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        reasons = [name for bit, name in THROTTLES if (gpu.throttle or 0) & bit]
        heat = f" at {gpu.temperature_c} °C" if gpu.temperature_c is not None else ""
        return (WARN, f"clocks are held down{heat}: {', '.join(reasons)}") if reasons else None

    yield from of_gpus(node.gpus, say)


def _locked(node: Node, use: Use) -> Iterator[Sight]:
    """Clocks that somebody set low and forgot, by -ac or -lgc."""

    def say(gpu: Gpu) -> tuple[str, str] | None:
        most = gpu.clock_sm_max_hz
        set_to = gpu.clock_sm_hz if (gpu.throttle or 0) & 0x2 else gpu.clock_sm_app_hz
        if not most or not set_to or set_to >= LOW_CLOCK * most:
            return None
        return WARN, f"clocks are set to {set_to / 1e6:.0f} of {most / 1e6:.0f} MHz"

    yield from of_gpus(node.gpus, say)


def _power(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        limit, default = gpu.power_limit_w, gpu.power_default_w
        return (
            (WARN, f"power limit {limit:.0f} W, default {default:.0f} W")
            if limit and default and limit < 0.99 * default
            else None
        )

    yield from of_gpus(node.gpus, say)
    if len({g.name for g in node.gpus}) == 1:
        limits = sorted({g.power_limit_w for g in node.gpus if g.power_limit_w is not None})
        clocks = sorted({g.clock_sm_app_hz for g in node.gpus if g.clock_sm_app_hz is not None})
        if len(limits) > 1:
            yield WARN, f"power limits differ: {', '.join(f'{w:.0f} W' for w in limits)}"
        if len(clocks) > 1:
            yield WARN, f"application clocks differ: {', '.join(f'{hz / 1e6:.0f} MHz' for hz in clocks)}"


def _pcie(node: Node, use: Use) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        if gpu.pcie_width and gpu.pcie_width_max and gpu.pcie_width < gpu.pcie_width_max:
            return WARN, f"PCIe runs with {gpu.pcie_width} of {gpu.pcie_width_max} lanes"
        if gpu.pstate == 0 and gpu.pcie_gen and gpu.pcie_gen_max and gpu.pcie_gen < gpu.pcie_gen_max:
            return WARN, f"PCIe runs at generation {gpu.pcie_gen} of {gpu.pcie_gen_max}, at full clocks"
        return None

    yield from of_gpus(node.gpus, say)


def _mixed(node: Node, use: Use) -> Iterator[Sight]:
    names = Counter(g.name for g in node.gpus if g.name != UNKNOWN)
    if len(names) > 1:
        yield WARN, "GPU models differ: " + ", ".join(f"{n} x {name}" for name, n in names.most_common())
    sizes = {g.memory_bytes // (256 * MIB) for g in node.gpus if g.memory_bytes}
    if len(names) == 1 and len(sizes) > 1:
        least, most = min(g.memory_bytes or 0 for g in node.gpus), max(g.memory_bytes or 0 for g in node.gpus)
        yield WARN, f"GPU memory differs: {least / GIB:.1f} to {most / GIB:.1f} GiB"
    firmware = {g.vbios for g in node.gpus if g.vbios}
    if len(names) == 1 and len(firmware) > 1:
        yield INFO, f"VBIOS versions differ: {', '.join(sorted(firmware))}"


def _xids(node: Node, use: Use) -> Iterator[Sight]:
    index = {g.pci: g.index for g in (*node.gpus, *node.gpus_unusable) if g.pci}
    seen: dict[tuple[int, str], int] = {}
    known = xids() if node.xids else {}
    for number, address, ago in node.xids or ():
        if (xid := known.get(number)) is not None and (ago <= RECENT_S or xid.fatal):
            seen[number, address] = min(ago, seen.get((number, address), ago))
    for (number, address), ago in sorted(seen.items()):
        which = f"GPU {index[address]}" if address in index else f"GPU at {address}"
        xid = known[number]
        # An old one may have been followed by a reset: the log does not say.
        severity = FAIL if xid.fatal and ago <= RECENT_S else WARN
        yield severity, f"{which}: Xid {number} ({xid.words}) {_ago(ago)}"


def _sxids(node: Node, use: Use) -> Iterator[Sight]:
    """The driver says by itself which errors of a switch are fatal: every program on the GPUs behind it ends."""
    seen: dict[tuple[int, str, bool], list[tuple[int, str]]] = {}
    for number, address, ago, fatal, words in node.sxids or ():
        if fatal or ago <= RECENT_S:
            seen.setdefault((number, address, fatal), []).append((ago, words))
    for (number, address, fatal), times in sorted(seen.items()):
        ago, words = min(times)
        severity = INFO if not fatal else FAIL if ago <= RECENT_S else WARN
        more = f", {len(times)} times" if len(times) > 1 else ""
        kind = "fatal" if fatal else "not fatal"
        yield severity, f"NVSwitch at {address}: SXid {number} ({kind}: {words}){more} {_ago(ago)}"


def _ago(seconds: int) -> str:
    if seconds < 2 * 3600:
        return f"{seconds // 60} minutes ago"
    return f"{seconds // 3600} hours ago; a reset since then would have mended it"


def _persistence(node: Node, use: Use) -> Iterator[Sight]:
    yield from of_gpus(node.gpus, lambda g: (INFO, "persistence mode is off") if g.persistence is False else None)


def _visible(node: Node, use: Use) -> Iterator[Sight]:
    if node.cuda_visible_notes:
        short = not node.gpus or (use.ranks_per_node is not None and len(node.gpus) < use.ranks_per_node)
        value = node.cuda_visible_devices
        set_to = " is not set" if value is None else f"={value}"
        yield (FAIL if short else WARN), f"CUDA_VISIBLE_DEVICES{set_to}: " + "; ".join(node.cuda_visible_notes)


HEALTH = "nvml.h; Azure NHC; leptonai/gpud"
GPU_INSPECTIONS: tuple[Inspection, ...] = (
    Inspection("nvml", _nvml, "without the driver no rank gets a GPU", "", "nvml.h; NVIDIA/nvidia-docker#1730"),
    Inspection("driver-versions", _versions, "CUDA fails at its first call when the two differ", "reboot, or reload the nvidia kernel modules", "tinygrad/open-gpu-kernel-modules#47"),
    Inspection("gpu-count", _count, "every rank needs a GPU of its own", "start fewer ranks (--nproc-per-node), or ask for more GPUs", "Azure NHC"),
    Inspection("gpu-lost", _lost, "CUDA fails on this node as soon as it touches the GPU, and mostly before", "", "leptonai/gpud#604; NVIDIA/nvidia-docker#1553"),
    Inspection("gpu-absent", _absent, "a GPU that the driver does not list may have died; other nodes have one more", "compare with lspci -d 10de: and read dmesg", "nvidia-smi captures of 9 of 10 GPUs"),
    Inspection("gpu-board", _board, "a GPU that died is missing from the bus too; NVLink's switches keep its ports dark", "lspci -d 10de: and dmesg; compare with a twin of this node", "HGX boards hold four, eight or sixteen"),
    Inspection("gpu-shared", _shared, "it trains, at a rate that nobody can promise", "use a whole GPU of a bare machine for large jobs", "NVIDIA vGPU, Confidential Computing and CUDA on WSL user guides"),
    Inspection("gpu-recovery", _recovery, "the driver itself says that the GPU is not fit for work", "do so before the launch: nvidia-smi -q shows `GPU Recovery Action`", "nvml.h, field 230"),
    Inspection("gpu-memory-broken", _memory_broken, "the GPU will corrupt or abort the job: it is a case for replacement", "take the node out of service and open a hardware ticket", HEALTH),
    Inspection("gpu-memory-pending", _memory_pending, "errors were found; the repair waits for a reset", "reset the GPU or reboot when the node is free", HEALTH),
    Inspection("ecc", _ecc, "memory size and bandwidth change with ECC, and errors go unseen without", "nvidia-smi -e 1, then reset", HEALTH),
    Inspection("nvlink-links", _links, "NCCL builds its rings on the weakest GPU; all ranks wait for it", "reset the GPU; if the links stay down, reseat or replace the board or bridge", "Azure/azhpc-diagnostics#73; NVIDIA/k8s-device-plugin#436"),
    Inspection("nvlink-errors", _link_errors, "a link that repairs itself loses time, and soon a job", "watch whether they grow (nvidia-smi nvlink -e); reset the GPU, then reseat or replace the board", "nvml.h; Azure NHC"),
    Inspection("nvlink-spare", _links_down, "as the product is built, as far as the GPUs beside it tell", "nothing", "NVIDIA/DCGM#49"),
    Inspection("nvlink-off-fabric", _off_fabric, "traffic to it goes over PCIe, ten times slower, and NVLS fails", "restart nvidia-fabricmanager, reset the GPU; or leave it out with CUDA_VISIBLE_DEVICES", "vllm-project/vllm#16336; leptonai/gpud#1085"),
    Inspection("nvlink-hidden", _hidden_switches, "NCCL may take it for a GPU without NVLink", "compare the virtual machine's device list with its twins", "NVIDIA/nccl#1182"),
    Inspection("p2p", _p2p, "without peer access traffic is staged through host memory; over NVLink NCCL aborts", "check MIG, IOMMU and ACS; nvidia-smi topo -p2p r shows the matrix", "NCCL; noonghunna/club-3090#1229"),
    Inspection("nvswitch-fabric", _fabric, "CUDA cannot start on a GPU whose fabric is not registered", "start nvidia-fabricmanager (its version must be the driver's); on GB200 also check IMEX and the NVLink subnet manager", "pytorch/pytorch#35710; Azure/azhpc-images#506"),
    Inspection("multi-node-nvlink", _mnnvl, "NVLink between nodes needs one cluster UUID and clique, and an IMEX channel in every process", "start nvidia-imex on all nodes, put channel0 into the container; else NCCL_MNNVL_ENABLE=0", "NVIDIA/nvbandwidth#46; meta-pytorch/torchcomms#3612"),
    Inspection("mig", _mig, "a process sees one slice, without peers and NVLink: no multi-GPU training", "nvidia-smi -mig 0, or ask for whole GPUs", "CUDA documentation; nvitop"),
    Inspection("compute-mode", _compute_mode, "the ranks cannot use the GPU", "nvidia-smi -c DEFAULT", "nvml.h"),
    Inspection("gpu-busy", _busy, "the plan counts on this memory", "end the other process, or ask for GPUs of your own", "rust-nvml/nvml-wrapper#57"),
    Inspection("gpu-throttled", _throttle, "one slow GPU slows all ranks", "check cooling and power supply of the node", HEALTH),
    Inspection("gpu-clocks", _locked, "the plan counts on clocks that the card may choose itself", "nvidia-smi -rgc and -rac give them back", HEALTH),
    Inspection("gpu-power", _power, "ranks with lower caps are stragglers in every step", "set equal limits: nvidia-smi -pl, nvidia-smi -rac", HEALTH),
    Inspection("pcie-link", _pcie, "host transfers and GPUDirect run at a fraction of the slot's rate", "reseat the card or riser; compare with its twins", HEALTH),
    Inspection("gpu-mixed", _mixed, "the plan is made for the weakest GPU", "choose equal GPUs with CUDA_VISIBLE_DEVICES", "vllm-project/vllm#53834"),
    Inspection("xid", _xids, "the driver logged an error that ends jobs or precedes one", "dmesg | grep Xid; NVIDIA's Xid catalogue says which part to replace", "Azure NHC; NVIDIA Xid catalogue"),
    Inspection("nvswitch-sxid", _sxids, "a fatal error of an NVSwitch ends every program on the GPUs behind it", "reset the GPUs and NVSwitches together, or reboot; if it comes back, replace the board", "NVIDIA Fabric Manager user guide, SXid errors; leptonai/gpud"),
    Inspection("persistence", _persistence, "the first CUDA call initialises the driver anew, seconds a GPU", "sudo nvidia-smi -pm 1", HEALTH),
    Inspection("cuda-visible-devices", _visible, "ranks may get other GPUs than meant, or none", "list full UUIDs without spaces, each once; in a Slurm job ordinals count from 0", "CUDA documentation; vllm-project/vllm#41848"),
)  # fmt: skip

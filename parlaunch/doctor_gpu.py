"""What can be wrong with the GPUs of a node and their NVLinks. Rows of the preflight catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from parlaunch.finding import FAIL, INFO, WARN, Check, Job, Sight, of_gpus
from parlaunch.machine import UNKNOWN, Gpu, Node

MIB, GIB = 1 << 20, 1 << 30
RECENT_S = 2 * 3600
# Numbers of NVIDIA's Xid catalogue that Azure's node health checks look for; the first end a training job.
FATAL_XIDS = frozenset({48, 64, 74, 79, 95, 119, 120})
BAD_XIDS = FATAL_XIDS | {56, 57, 58, 62, 63, 65, 68, 69, 73, 80, 81, 92, 94}
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
DATA_CENTRE = ("A100", "A800", "H100", "H800", "H200", "H20", "B200", "B300", "GB200", "GB300", "GH200", "V100", "A30", "A40", "L40", "A10", "L4")  # fmt: skip


def _nvml(node: Node, job: Job) -> Iterator[Sight]:
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


def _versions(node: Node, job: Job) -> Iterator[Sight]:
    if node.driver and node.driver_kernel and node.driver != node.driver_kernel:
        yield FAIL, f"driver library {node.driver}, kernel module {node.driver_kernel}"


def _count(node: Node, job: Job) -> Iterator[Sight]:
    have = len(node.gpus)
    if not have and not node.gpus_unusable:
        bus = "" if node.gpus_pci is None else f", {node.gpus_pci} on the PCI bus"
        hidden = f", {len(node.gpus_invisible)} hidden by CUDA_VISIBLE_DEVICES" if node.gpus_invisible else ""
        yield FAIL, f"no GPU that a job could use{bus}{hidden}"
    elif job.ranks_per_node is not None and have < job.ranks_per_node:
        yield FAIL, f"{have} GPUs for {job.ranks_per_node} ranks"


def _lost(node: Node, job: Job) -> Iterator[Sight]:
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


def _absent(node: Node, job: Job) -> Iterator[Sight]:
    listed = len(node.gpus) + len(node.gpus_unusable) + len(node.gpus_invisible)
    if node.gpus_pci is None or node.gpus_pci <= listed or node.nvml_error is not None or not listed:
        return
    granted = node.container is not None or node.cuda_visible_devices is not None
    words = f"{node.gpus_pci} GPUs on the PCI bus, NVML lists {listed}"
    yield INFO if granted else WARN, words + (": the others are not granted to us" if granted else "")


def _recovery(node: Node, job: Job) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        action = gpu.recovery_action
        return (FAIL, f"the driver asks to {ACTIONS.get(action, f'act ({action})')}") if action else None

    yield from of_gpus(node.gpus, say)


def _memory_broken(node: Node, job: Job) -> Iterator[Sight]:
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


def _memory_pending(node: Node, job: Job) -> Iterator[Sight]:
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


def _ecc(node: Node, job: Job) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        if gpu.ecc is None:
            return None
        if gpu.ecc_pending is not None and gpu.ecc_pending != gpu.ecc:
            return (
                WARN,
                f"ECC is {'on' if gpu.ecc else 'off'} and will be {'on' if gpu.ecc_pending else 'off'} after a reset",
            )
        if not gpu.ecc and any(word in gpu.name.replace("-", " ").split() for word in DATA_CENTRE):
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


def _links(node: Node, job: Job) -> Iterator[Sight]:
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
    if bridged and every and not any(every) and any(g.nvlinks_down for g in node.gpus):
        yield INFO, "every NVLink of every card is down: no bridge is fitted"


def _links_down(node: Node, job: Job) -> Iterator[Sight]:
    usual = _usual_links(node)

    def say(gpu: Gpu) -> tuple[str, str] | None:
        if not gpu.nvlinks or not gpu.nvlinks_down or gpu.nvlinks < usual.get(gpu.name, 0):
            return None
        return INFO, f"{len(gpu.nvlinks_down)} NVLinks are not active, on its twins too"

    yield from of_gpus(node.gpus, say)


def _off_fabric(node: Node, job: Job) -> Iterator[Sight]:
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
    if len({g.nvlink_domain for g in inside}) > 1:
        groups: dict[int | None, list[int]] = {}
        for gpu in inside:
            groups.setdefault(gpu.nvlink_domain, []).append(gpu.index)
        yield FAIL, "the GPUs of one board fall into NVLink groups " + " and ".join(str(g) for g in groups.values())


def _hidden_switches(node: Node, job: Job) -> Iterator[Sight]:
    some = [g for g in node.gpus if g.nvlinks_assumed]
    if some and len(some) < len([g for g in node.gpus if g.nvlinks]):
        yield from of_gpus(
            some, lambda g: (WARN, "the far ends of its NVLinks cannot be seen, those of the others can")
        )


def _p2p(node: Node, job: Job) -> Iterator[Sight]:
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
        shown = ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")
        yield (
            severity,
            f"GPU {shown}: peer access is refused: {why}" + (" although NVLink joins them" if severity == FAIL else ""),
        )


def _fabric(node: Node, job: Job) -> Iterator[Sight]:
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


def _mnnvl(node: Node, job: Job) -> Iterator[Sight]:
    if node.link_type != "nvswitch_mnnvl":
        if job.multi_node_nvlink and any(g.fabric_cluster and not g.fabric_cluster.strip("0-") for g in node.gpus):
            yield FAIL, "the cluster UUID is all zero: this NVLink fabric ends at the node"
        return
    severity = FAIL if job.multi_node_nvlink else WARN if job.spans else INFO
    if node.imex_channels == 0:
        yield severity, "no IMEX channel: /dev/nvidia-caps-imex-channels/channel0 is not here"
    ids = {g.fabric_id for g in node.gpus if g.fabric_id is not None}
    if len(ids) > 1:
        yield (
            FAIL,
            f"its GPUs are in {len(ids)} NVLink partitions: cliques {', '.join(sorted(str(i[1]) for i in ids))}",
            "ask for one NVLink partition (nmx-c / fabric manager); the node's GPUs must share a clique",
        )


def _mig(node: Node, job: Job) -> Iterator[Sight]:
    yield from of_gpus(
        [*node.gpus, *node.gpus_invisible],
        lambda g: (
            (FAIL, f"MIG mode is on ({len(g.mig_devices)} devices)")
            if g.mig and (g in node.gpus or not node.gpus)
            else None
        ),
    )


def _compute_mode(node: Node, job: Job) -> Iterator[Sight]:
    yield from of_gpus(
        node.gpus,
        lambda g: (
            (FAIL, "compute mode is PROHIBITED: no CUDA context may be made")
            if g.compute_mode == "prohibited"
            else None
        ),
    )


def _busy(node: Node, job: Job) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        used, total = gpu.memory_used_bytes, gpu.memory_bytes
        if used is None or not total or (used <= 0.02 * total and used <= GIB):
            return None
        pids = [str(pid) for pid, _ in gpu.processes or ()]
        who = f" by process {', '.join(pids[:4])}" if pids else ""
        return (
            FAIL if used > job.headroom * total else WARN
        ), f"{used / GIB:.1f} of {total / GIB:.1f} GiB are taken already{who}"

    yield from of_gpus(node.gpus, say)


def _throttle(node: Node, job: Job) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        reasons = [name for bit, name in THROTTLES if (gpu.throttle or 0) & bit]
        heat = f" at {gpu.temperature_c} °C" if gpu.temperature_c is not None else ""
        return (WARN, f"clocks are held down{heat}: {', '.join(reasons)}") if reasons else None

    yield from of_gpus(node.gpus, say)


def _power(node: Node, job: Job) -> Iterator[Sight]:
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


def _pcie(node: Node, job: Job) -> Iterator[Sight]:
    def say(gpu: Gpu) -> tuple[str, str] | None:
        if gpu.pcie_width and gpu.pcie_width_max and gpu.pcie_width < gpu.pcie_width_max:
            return WARN, f"PCIe runs with {gpu.pcie_width} of {gpu.pcie_width_max} lanes"
        if gpu.pstate == 0 and gpu.pcie_gen and gpu.pcie_gen_max and gpu.pcie_gen < gpu.pcie_gen_max:
            return WARN, f"PCIe runs at generation {gpu.pcie_gen} of {gpu.pcie_gen_max}, at full clocks"
        return None

    yield from of_gpus(node.gpus, say)


def _mixed(node: Node, job: Job) -> Iterator[Sight]:
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


def _xids(node: Node, job: Job) -> Iterator[Sight]:
    if node.xids is None:
        if node.gpus:
            yield INFO, "the kernel log may not be read: recent GPU errors are not known"
        return
    index = {g.pci: g.index for g in (*node.gpus, *node.gpus_unusable) if g.pci}
    seen: dict[tuple[int, str], int] = {}
    for number, address, ago in node.xids:
        if number in BAD_XIDS and ago <= RECENT_S:
            seen[number, address] = min(ago, seen.get((number, address), ago))
    for (number, address), ago in sorted(seen.items()):
        which = f"GPU {index[address]}" if address in index else f"GPU at {address}"
        yield FAIL if number in FATAL_XIDS else WARN, f"{which}: Xid {number} {ago // 60} minutes ago"


def _persistence(node: Node, job: Job) -> Iterator[Sight]:
    yield from of_gpus(node.gpus, lambda g: (INFO, "persistence mode is off") if g.persistence is False else None)


def _visible(node: Node, job: Job) -> Iterator[Sight]:
    if node.cuda_visible_notes:
        short = not node.gpus or (job.ranks_per_node is not None and len(node.gpus) < job.ranks_per_node)
        value = node.cuda_visible_devices
        set_to = "is not set" if value is None else f"={value}"
        yield (FAIL if short else WARN), f"CUDA_VISIBLE_DEVICES{set_to}: " + "; ".join(node.cuda_visible_notes)


HEALTH = "nvml.h; Azure NHC; leptonai/gpud"
GPU_CHECKS: tuple[Check, ...] = (
    Check("nvml", _nvml, "without the driver no rank gets a GPU", "", "nvml.h; NVIDIA/nvidia-docker#1730"),
    Check("driver-versions", _versions, "CUDA fails at its first call when the two differ", "reboot, or reload the nvidia kernel modules", "tinygrad/open-gpu-kernel-modules#47"),
    Check("gpu-count", _count, "every rank needs a GPU of its own", "start fewer ranks (--nproc-per-node), or ask for more GPUs", "Azure NHC"),
    Check("gpu-lost", _lost, "CUDA fails on this node as soon as it touches the GPU, and mostly before", "", "leptonai/gpud#604; NVIDIA/nvidia-docker#1553"),
    Check("gpu-absent", _absent, "a GPU that the driver does not list may have died; other nodes have one more", "compare with lspci -d 10de: and read dmesg", "nvidia-smi captures of 9 of 10 GPUs"),
    Check("gpu-recovery", _recovery, "the driver itself says that the GPU is not fit for work", "do so before the launch: nvidia-smi -q shows `GPU Recovery Action`", "nvml.h, field 230"),
    Check("gpu-memory-broken", _memory_broken, "the GPU will corrupt or abort the job: it is a case for replacement", "take the node out of service and open a hardware ticket", HEALTH),
    Check("gpu-memory-pending", _memory_pending, "errors were found; the repair waits for a reset", "reset the GPU or reboot when the node is free", HEALTH),
    Check("ecc", _ecc, "memory size and bandwidth change with ECC, and errors go unseen without", "nvidia-smi -e 1, then reset", HEALTH),
    Check("nvlink-links", _links, "NCCL builds its rings on the weakest GPU; all ranks wait for it", "reset the GPU; if the links stay down, reseat or replace the board or bridge", "Azure/azhpc-diagnostics#73; NVIDIA/k8s-device-plugin#436"),
    Check("nvlink-spare", _links_down, "as the product is built, as far as the GPUs beside it tell", "nothing", "NVIDIA/DCGM#49"),
    Check("nvlink-off-fabric", _off_fabric, "traffic to it goes over PCIe, ten times slower, and NVLS fails", "restart nvidia-fabricmanager, reset the GPU; or leave it out with CUDA_VISIBLE_DEVICES", "vllm-project/vllm#16336; leptonai/gpud#1085"),
    Check("nvlink-hidden", _hidden_switches, "NCCL may take it for a GPU without NVLink", "compare the virtual machine's device list with its twins", "NVIDIA/nccl#1182"),
    Check("p2p", _p2p, "without peer access traffic is staged through host memory; over NVLink NCCL aborts", "check MIG, IOMMU and ACS; nvidia-smi topo -p2p r shows the matrix", "NCCL; noonghunna/club-3090#1229"),
    Check("nvswitch-fabric", _fabric, "CUDA cannot start on a GPU whose fabric is not registered", "start nvidia-fabricmanager (its version must be the driver's); on GB200 also check IMEX and the NVLink subnet manager", "pytorch/pytorch#35710; Azure/azhpc-images#506"),
    Check("multi-node-nvlink", _mnnvl, "NVLink between nodes needs one cluster UUID and clique, and an IMEX channel in every process", "start nvidia-imex on all nodes, put channel0 into the container; else NCCL_MNNVL_ENABLE=0", "NVIDIA/nvbandwidth#46; meta-pytorch/torchcomms#3612"),
    Check("mig", _mig, "a process sees one slice, without peers and NVLink: no multi-GPU training", "nvidia-smi -mig 0, or ask for whole GPUs", "CUDA documentation; nvitop"),
    Check("compute-mode", _compute_mode, "the ranks cannot use the GPU", "nvidia-smi -c DEFAULT", "nvml.h"),
    Check("gpu-busy", _busy, "the plan counts on this memory", "end the other process, or ask for GPUs of your own", "rust-nvml/nvml-wrapper#57"),
    Check("gpu-throttled", _throttle, "one slow GPU slows all ranks", "check cooling and power supply of the node", HEALTH),
    Check("gpu-power", _power, "ranks with lower caps are stragglers in every step", "set equal limits: nvidia-smi -pl, nvidia-smi -rac", HEALTH),
    Check("pcie-link", _pcie, "host transfers and GPUDirect run at a fraction of the slot's rate", "reseat the card or riser; compare with its twins", HEALTH),
    Check("gpu-mixed", _mixed, "the plan is made for the weakest GPU", "choose equal GPUs with CUDA_VISIBLE_DEVICES", "vllm-project/vllm#53834"),
    Check("xid", _xids, "the driver logged an error that ends jobs or precedes one", "dmesg | grep Xid; NVIDIA's Xid catalogue says which part to replace", "Azure NHC; NVIDIA Xid catalogue"),
    Check("persistence", _persistence, "the first CUDA call initialises the driver anew, seconds a GPU", "sudo nvidia-smi -pm 1", HEALTH),
    Check("cuda-visible-devices", _visible, "ranks may get other GPUs than meant, or none", "list full UUIDs without spaces, each once; in a Slurm job ordinals count from 0", "CUDA documentation; vllm-project/vllm#41848"),
)  # fmt: skip

"""This node as a cluster of one: NVML, PCI, fabric and host put together, with a note for everything left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parlaunch.hardware.cluster import Cluster, Gpu, Node, domains_of
from parlaunch_probes import fabric, gpus, pci, rails, system, visible
from parlaunch_probes.host import Host
from parlaunch_probes.links import Board, Ends, Fabric, board, ends_of, fabric_of
from parlaunch_probes.nvml import PATIENCE_S, LibraryNvml, NoNvml, Nvml, NvmlReading
from parlaunch_probes.text import pci_address

# The variables that decide what a probe sees; a saved capture keeps these and no others.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    *(name for name, _ in system.CONTAINER_VARIABLES),
)

NO_PEERS = 0  # NVML_CC_SYSTEM_MULTIGPU_NONE; the others are protected PCIe (Hopper) and encrypted NVLink (Blackwell)


def probe(
    host: Host | None = None,
    nvml: Nvml | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Cluster:
    """This node as a one-node cluster, as a training process in this environment would see it.

    `host` is the file system to read (another root: a captured tree, whose NVML is not asked), `nvml` whoever answers
    for NVML, `environ` the variables (CUDA_VISIBLE_DEVICES decides which GPUs count), `timeout_s` the time that NVML
    gets. Does not raise for a sick machine: what could not be read is None, and `notes` say what was left out and why.
    """
    environ = dict(os.environ) if environ is None else environ
    host = Host.here(environ) if host is None else host
    if nvml is None:
        nvml = LibraryNvml() if host.live else NoNvml("not asked: these are the files of another machine")
    return cluster_of(host, nvml.read(timeout_s), environ)


def cluster_of(host: Host, reading: NvmlReading, environ: Mapping[str, str]) -> Cluster:
    """The cluster that files, NVML's answers and the environment amount to. Asks nothing else."""
    notes: list[str] = [*reading.late]
    if reading.old_bindings is not None:
        notes.append(f"{reading.old_bindings} is too old to ask for the NVSwitch fabric: pip install -U nvidia-ml-py")
    cpus = system.cpus(host)
    hypervisor = system.virtual(host, cpus)
    on_bus = pci.nvidia_devices(host)
    listed, unusable, wired = _gpus(host, reading, on_bus, notes)
    shown, hidden, seen = _visible(listed, environ, bool(unusable), notes)
    module, is_open = gpus.kernel_driver(host)

    ports = fabric.read(host, shown, vm=hypervisor is not None)
    default = fabric.default_interface(host)
    nics = rails.choose(fabric.only_way_out(ports, default), len(shown))
    notes += [f"{n.name}{'' if n.port is None else f':{n.port}'} left out: {n.why_not}" for n in nics if not n.rail]
    notes += rails.dark_notes(nics)

    places = {g.index: pci.place_of(host, g.pci) for g in shown}
    rail_places = [p for n in nics if n.rail and (p := pci.place_of(host, n.pci)) is not None]
    gpu_places = [p for p in places.values() if p is not None]
    direct, by = fabric.gpudirect(host, is_open)
    limit, quota = system.cgroup_limits(host)
    memory = system.memory(host)
    memlock, nofile = system.limits(host)
    shm, shm_free = system.shared_memory(host)
    hostname = host.read("/proc/sys/kernel/hostname") or host.read("/etc/hostname") or "localhost"
    answers = reading.system.get("answers", {})
    kept = {g.index for g in shown}
    node = Node(
        hostname=hostname,
        gpus=shown,
        nics=nics,
        nvlinks=tuple(row for row in wired.links if row[0] in kept and row[1] in kept),
        link_type=wired.kind,
        cpu_model=cpus.model,
        sockets=cpus.sockets,
        cores=cpus.cores,
        cpus_allowed=gpus.allowed_cpus(host),
        numa_nodes=len(cpus.numa) or None,
        memory_bytes=system.host_memory(host, cpus, memory.get("MemTotal")),
        driver=answers.get("driver") or module,
        cuda=_cuda(answers.get("cuda")),
        virtual=hypervisor,
        gpudirect=direct,
        gpus_unusable=unusable,
        gpus_invisible=hidden,
        gpus_pci=sum(map(pci.is_gpu, on_bus)) if host.exists(pci.DEVICES) else None,
        nvswitches_pci=sum(map(pci.is_nvswitch, on_bus)) if host.exists(pci.DEVICES) else None,
        gpu_distances=_distances(reading, shown, places, hypervisor is not None),
        p2p_broken=tuple(
            (a, b, why) for a, b, _, why, _ in reading.pairs if {a, b} <= kept and why not in (None, "OK")
        ),
        confidential=None if (state := answers.get("confidential")) is None else state == 1,
        nvml_error=reading.error,
        nvml_version=answers.get("nvml"),
        driver_kernel=module,
        driver_open=is_open,
        cuda_visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
        cuda_visible_notes=seen.notes,
        cuda_visible_exact=seen.exact,
        gpudirect_by=by,
        gdrcopy=host.exists("/dev/gdrdrv") if host.exists("/dev/null") else None,
        imex_channels=len([n for n in host.names("/dev/nvidia-caps-imex-channels") if n.startswith("channel")])
        if host.exists("/dev/null") or host.exists("/dev/nvidia-caps-imex-channels")
        else None,
        acs_redirects=pci.acs_redirects(host, gpu_places, [*gpu_places, *rail_places]) if gpu_places else None,
        iommu=pci.iommu(host, [p.address for p in (*gpu_places, *rail_places)]),
        container=system.container(host, environ),
        kernel=host.read("/proc/sys/kernel/osrelease"),
        cpu_limit=quota,
        memory_limit_bytes=limit,
        memory_available_bytes=memory.get("MemAvailable"),
        shm_bytes=shm,
        shm_free_bytes=shm_free,
        memlock_bytes=memlock,
        nofile=nofile,
        huge_pages=memory.get("HugePages_Total"),
        huge_page_bytes=memory.get("Hugepagesize"),
        transparent_huge_pages=system.transparent_huge_pages(host),
        numa_cpus=cpus.numa,
        default_netdev=default,
        hostname_loopback=system.own_name_is_loopback(host, hostname),
        xids=system.xids(host),
        sxids=system.sxids(host),
    )
    return Cluster(
        source="probe",
        nodes=(node,),
        nvlink_domains=domains_of((node,)),
        fabric=rails.fabric_of(nics, shown),
        notes=tuple(notes),
    )


def _gpus(
    host: Host, reading: NvmlReading, on_bus: Sequence[pci.Device], notes: list[str]
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...], Board]:
    """GPUs that work, GPUs that do not, and how the working ones are linked: by NVML, else the kernel module, else PCI."""
    if reading.gpus or (reading.error is None and reading.system):
        notes += gpus.unanswered(reading)
        return _from_nvml(host, reading, on_bus, notes)
    if reading.error is not None:
        notes.append(
            f"NVML was not asked: {reading.error}"
            if reading.error.startswith("not asked")
            else f"NVML: {reading.error}"
        )
    unknown = Board((), (), None)
    listed = gpus.from_kernel_module(host)
    if listed:
        notes.append(f"{len(listed)} GPUs as the kernel module lists them: memory, NVLink and health are not known")
        return listed, (), unknown
    found = [d for d in on_bus if pci.is_gpu(d)]
    taken = [d for d in found if d.driver not in (None, "nvidia")]
    listed = gpus.from_pci(host, [d for d in found if d not in taken])
    if listed:
        notes.append(f"{len(listed)} GPUs as the PCI bus lists them: no NVIDIA driver answers, nothing else is known")
    lost = tuple(
        replace(g, index=len(listed) + g.index, error=f"bound to the driver {d.driver}")
        for g, d in zip(gpus.from_pci(host, taken), taken, strict=True)
    )
    return listed, lost, unknown


def _from_nvml(
    host: Host, reading: NvmlReading, on_bus: Sequence[pci.Device], notes: list[str]
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...], Board]:
    records = {int(r["index"]): r for r in reading.gpus}
    by_pci = {a: i for i, r in records.items() if (a := pci_address(r["answers"].get("pci"))) is not None}
    bus = frozenset(d.address for d in on_bus if pci.is_gpu(d))
    ends: dict[int, Ends | None] = {}
    fabrics: dict[int, Fabric | None] = {}
    for i, record in records.items():
        links = record["answers"].get("links")
        ends[i] = None if links is None else ends_of(links, by_pci, bus)
        fabrics[i] = fabric_of(record["answers"].get("fabric"))
    every = [gpus.gpu_of(r, host, ends[i], fabrics[i]) for i, r in sorted(records.items())]
    lost = tuple(g for g in every if g.error is not None)
    notes += [f"GPU {g.index} left out: {g.error}" for g in lost]
    # A GPU whose links are not known says nothing about the board: the others decide.
    working = [g for g in every if g.error is None]
    known = {g.index: e for g in working if (e := ends[g.index]) is not None}
    refused = frozenset((a, b) for a, b, _, _, nvlink in reading.pairs if nvlink not in (None, "OK"))
    wired = board(known, fabrics, refused)
    said = reading.system.get("answers", {})
    if wired.domains and said.get("confidential") == 1 and said.get("confidential_peers") == NO_PEERS:
        wired = Board((), (), "none")
        notes.append("confidential computing is on without a mode for several GPUs: no NVLink between them")
    for g in working:
        end = known.get(g.index)
        blackwell = g.compute_capability is not None and g.compute_capability[0] >= 10
        if end is not None and end.assumed and not blackwell:  # NVLink 5 switches show no address to anyone
            notes.append(f"GPU {g.index}: the far ends of {end.assumed} NVLinks are hidden; taken for NVSwitches")
        if end is not None and end.hidden:
            notes.append(f"GPU {g.index}: {end.hidden} NVLinks lead to GPUs that are not shown to us")
    domain = {i: at for at, group in enumerate(wired.domains) for i in group}
    return tuple(_joined(g, domain.get(g.index), known.get(g.index)) for g in working), lost, wired


def _joined(gpu: Gpu, domain: int | None, ends: Ends | None) -> Gpu:
    """The GPU with its domain. Registered in a fabric, but without a link to a switch, it reaches nobody by it."""
    reaches = ends is None or ends.switch > 0
    return replace(gpu, nvlink_domain=domain, fabric_id=gpu.fabric_id if reaches else None)


def _visible(
    listed: tuple[Gpu, ...], environ: Mapping[str, str], some_lost: bool, notes: list[str]
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...], visible.Visible]:
    """GPUs that CUDA shows, in its order, and those that it does not."""
    value = environ.get("CUDA_VISIBLE_DEVICES")
    named = {g.uuid or f"GPU at {g.pci or g.index}": g for g in listed}
    known = [visible.Candidate(uuid, g.name, g.pci or "", _slices(g) if g.mig else None) for uuid, g in named.items()]
    seen = visible.resolve(value, known, environ.get("CUDA_DEVICE_ORDER"))
    if some_lost and value is not None and value[:1].isdigit():
        seen = replace(
            seen,
            exact=False,
            notes=(*seen.notes, "a GPU is lost: which one an ordinal means now is CUDA's secret; use UUIDs"),
        )
    notes += [f"CUDA_VISIBLE_DEVICES: {note}" for note in seen.notes]
    shown = []
    for uuid in seen.devices:
        whole = named.get(uuid) or next(g for g in listed if any(m[0] == uuid for m in g.mig_devices))
        shown.append(whole if uuid in named else _slice_alone(whole, uuid))
    ours = {g.index for g in shown}
    hidden = tuple(g for g in listed if g.index not in ours)
    if hidden:
        why = "CUDA does not show it" if value is None else f"not in CUDA_VISIBLE_DEVICES={value}"
        notes.append(f"GPU {', '.join(str(g.index) for g in hidden)} left out: {why}")
    return tuple(shown), hidden, seen


def _slice_alone(gpu: Gpu, uuid: str) -> Gpu:
    """A MIG device has neither peers nor NVLink."""
    return replace(gpus.slice_of(gpu, uuid), nvlink_domain=None, fabric_id=None)


def _slices(gpu: Gpu) -> tuple[tuple[str, int, int], ...]:
    return tuple((uuid, gi, ci) for (uuid, _, _), (gi, ci) in zip(gpu.mig_devices, gpu.mig_instances, strict=True))


def _distances(
    reading: NvmlReading, shown: Sequence[Gpu], places: Mapping[int, pci.Place | None], vm: bool
) -> tuple[tuple[int, int, str], ...]:
    """PCI levels between GPUs: NVML's word, else what sysfs amounts to."""
    said = {(a, b): level for a, b, level, _, _ in reading.pairs}
    found = []
    ordered = sorted(shown, key=lambda g: g.index)
    for at, a in enumerate(ordered):
        for b in ordered[at + 1 :]:
            level = said.get((a.index, b.index)) or pci.distance(
                places[a.index], places[b.index], a.numa, b.numa, vm=vm
            )
            if level is not None:
                found.append((a.index, b.index, level))
    return tuple(found)


def _cuda(version: int | None) -> str | None:
    """12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}" if isinstance(version, int) and version > 0 else None

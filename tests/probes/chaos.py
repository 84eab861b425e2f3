"""Machines that nobody built: random file trees, drivers that refuse at random, captures that were damaged.

`one(seed, ...)` makes one of them, probes it, and holds the result to what is promised: a cluster or a `ProbeError`,
within a time, whose views can be printed and which survives its own capture.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from parlaunch.doctor.preflight import examine, findings_to_json, findings_to_text
from parlaunch.environment.network import node_rules
from parlaunch.errors import ParlaunchError, ProbeError
from parlaunch.hardware.cluster import Cluster, cluster_from_json, cluster_to_json
from parlaunch.hardware.datasheet import product
from parlaunch.hardware.mixed import even
from parlaunch.hardware.rates import rates_from_json, rates_of, rates_to_json
from parlaunch.show.probe_view import probe_to_text
from parlaunch_probes import Host, capture
from parlaunch_probes.files import read_hardware, replicate
from parlaunch_probes.nvml import NvmlReading, RecordedNvml
from parlaunch_probes.nvml_reader import Reader
from tests.probes import tree
from tests.probes_files import samples

HERE = Path(__file__).parent
FAKES = HERE.parent / "fake_nvml" / "machines"
SAVED = HERE.parent / "machines"
JUNK: tuple[bytes, ...] = (
    b"",
    b"\n",
    b"-1",
    b"4: ACTIVE",
    b"5: LinkUp",
    b"1: DOWN",
    b"0x10de",
    b"0x030200",
    b"99999999999999999999999999",
    b"0-4294967295",
    b"0-3,8,",
    b"400 Gb/sec (4X NDR)",
    b"1e400 Gb/sec (9999999999X)",
    b"nan",
    b"InfiniBand",
    b"Ethernet",
    b"\xff\xfe\x00junk",
    "٣".encode(),
    b"a" * 5000,
    b"[always]",
    b"0::/" + b"x/" * 200,
    b"max 0",
    b"0 0",
)
ERRORS = (
    "GPU_IS_LOST",
    "NOT_SUPPORTED",
    "UNKNOWN",
    "NO_PERMISSION",
    "TIMEOUT",
    "INVALID_ARGUMENT",
    "RESET_REQUIRED",
    "FUNCTION_NOT_FOUND",
    "31337",
)
FUNCTIONS = (
    "*", "nvmlDeviceGet*", "nvmlDeviceGetNvLink*", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo*", "nvmlDeviceGetName",
    "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetP2PStatus", "nvmlDeviceGetTopologyCommonAncestor", "nvmlInit*",
    "nvmlSystemGet*", "nvmlDeviceGetCount_v2", "nvmlDeviceGetFieldValues", "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetMig*",
)  # fmt: skip


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def random_tree(rng: random.Random, root: Path) -> None:
    """A machine's tree with files emptied, filled with junk, removed, or turned into links, loops, folders and pipes."""
    build: Callable[[Path], object] = rng.choice(
        [
            tree.a100_pairs,
            tree.l40s,
            tree.desktop,
            tree.Tree,
            tree.slingshot,
            tree.spark,
            tree.eight_bonds,
            lambda r: tree.hgx_b200(r, up=rng.random() < 0.5, vpd=rng.random() < 0.5),
            lambda r: tree.Tree(r).host(),
        ]
    )
    build(root)
    t = tree.Tree(root)
    for _ in range(rng.randint(0, 3)):
        bus = rng.randrange(0x10, 0xF0)
        at = t.pci(
            f"pci0000:{bus:02x}/0000:{bus:02x}:00.0/0000:{bus + 1:02x}:00.{rng.randrange(8)}",
            rng.choice([-1, 0, 1, 99]),
            None,
            rng.choice(["0x030200", "0x020700", "junk"]),
            rng.choice(["0x10de", "0x1d0f", ""]),
            rng.choice(["0x2330", "0xefa1", "?"]),
        )
        if rng.random() < 0.7:
            t.verbs(
                rng.choice(["mlx5_7", "rxe0", "mlx5_bond_0", "odd name"]),
                at,
                port=rng.choice([1, 2, 255]),
                layer=rng.choice(["InfiniBand", "Ethernet", "Unknown", ""]),
            )
    every = [p for p in root.rglob("*") if p.is_file() or p.is_symlink()]
    for path in rng.sample(every, min(len(every), rng.choice([0, 1, 5, 40]))):
        if not os.path.lexists(path):
            continue
        what = rng.randrange(7)
        if what < 3 and path.is_file():
            path.write_bytes(rng.choice(JUNK))
            continue
        path.unlink()
        if what == 3:
            path.symlink_to(rng.choice(["/etc/passwd", "../..", path.name, "gone", "/"]))
        elif what == 4:
            path.mkdir()
        elif what == 5:
            os.mkfifo(path)


def random_nvml(rng: random.Random) -> str:
    """A description for the fake NVML: one of the machines, with random refusals and random values."""
    base = rng.choice(sorted(p for p in FAKES.iterdir() if not p.name.startswith("x_")))
    lines = [base.read_text()]
    for _ in range(rng.choice([0, 0, 1, 3, 8])):
        after = f" after={rng.randrange(200)}" if rng.random() < 0.5 else ""
        lines.append(
            f"fail {rng.choice(['*', '0', '1', '0-1', '2'])} {rng.choice(ERRORS)} {rng.choice(FUNCTIONS)}{after}"
        )
    for _ in range(rng.choice([0, 1, 4])):
        value = rng.choice(
            ["-", "0", "1", "18446744073709551615", "4294967295,4294967295", "!UNKNOWN", "%FF%FE", "0-63"]
        )
        lines.append(
            f"set {rng.choice(['*', '0', '1'])} {rng.choice(['mem', 'cc', 'fab', 'nvlver', 'ecc', 'name', 'uuid', 'pcie', 'cpus', 'node', 'mig', 'remap', 'procs', 'fi91', 'fi230', 'bus'])}={value}"
        )
    for _ in range(rng.choice([0, 1, 2])):
        lines.append(
            rng.choice(
                [
                    "nvdown 0 *",
                    "nvdown 1 0-3",
                    "nvidle * 2",
                    "nvfar 0 3 255 -",
                    "nvfar * 2 0 0000:99:00.0",
                    "p2p * * 5 *",
                    "topo 0 1 PIX",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def read_here(library: Path, description: Path) -> NvmlReading:
    """The fake's answers, asked in this process: a child for each of thousands would take hours."""
    ctypes.CDLL(str(library))  # its SONAME is what pynvml loads next
    import pynvml

    os.environ["FAKE_NVML_MACHINE"] = str(description)
    reading = NvmlReading()
    Reader(pynvml, lambda piece: reading.take(json.loads(json.dumps(piece)))).read()
    return reading


def mutate(rng: random.Random, content: bytes) -> bytes:
    """A capture cut off, with bytes changed, or with some of its values replaced by others."""
    kind = rng.randrange(8)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        spoilt = bytearray(content)
        for _ in range(rng.choice([1, 5, 50])):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        return bytes(spoilt)
    data = json.loads(content)
    for _ in range(rng.choice([1, 2, 8])):
        _spoil(rng, data)
    return json.dumps(data).encode()


def _spoil(rng: random.Random, value: Any) -> None:
    """Replace one value somewhere inside."""
    junk: Any = rng.choice(
        [None, True, -1, 1.5, 10**30, "", "x", "GPU-", [], [[]], {}, {"a": 1}, [None], ["x", 1], "0000:ff:00.0"]
    )
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.85:
            value = value[key]
            continue
        if rng.random() < 0.2 and isinstance(value, dict):
            del value[key]
        else:
            value[key] = junk
        return


def show(cluster: Any) -> None:
    """Everything that is made of a cluster for people and programs."""
    data = json.loads(json.dumps(cluster_to_json(cluster)))
    assert replace(cluster_from_json(data), notes=cluster.notes) == cluster
    _plannable(cluster)
    found = examine(cluster, ranks_per_node=2, multi_node_nvlink=True)
    json.dumps(findings_to_json(found))
    findings_to_text(found, colour=True)
    for width in (40, 100):
        probe_to_text(cluster, colour=width == 40, width=width)


def _plannable(cluster: Cluster) -> None:
    """Rates and variables of the part that a plan would use, or a sentence on why there are none."""
    part = even(cluster)
    try:
        rates = rates_of(part)
    except ProbeError:
        return
    assert rates_from_json(json.loads(json.dumps(rates_to_json(rates))), where="chaos") == rates
    for at in range(min(2, len(part.nodes))):
        list(node_rules(part, at, {}))


def one(seed: int, folder: Path, library: Path, *, seconds: float = 20.0) -> str:
    """One case; what became of it, in a word. Raises `AssertionError`, or whatever went wrong."""
    rng = random.Random(seed)
    work = folder / f"case{seed}"
    work.mkdir(parents=True)
    try:
        with within(seconds):
            kind = rng.randrange(3)
            return (
                _damaged(rng, work) if kind == 0 else _listed(rng, work) if kind == 1 else _probed(rng, work, library)
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _probed(rng: random.Random, work: Path, library: Path) -> str:
    random_tree(rng, work / "root")
    description = work / "machine.txt"
    description.write_text(random_nvml(rng))
    reading = read_here(library, description)
    value = rng.choice([None, None, "0", "1,0", "GPU-", "0,0", "", "-1", "MIG-", "9", "0,1,x"])
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    taken = capture.take(Host(work / "root"), RecordedNvml(reading), environ=environ)
    show(taken.cluster)
    path = capture.save(work / "saved.json", taken)
    assert replace(capture.read(path), source="probe") == taken.cluster
    show(capture.redacted(taken).cluster)
    return "probed"


def _texts() -> list[str]:
    """What other tools print of machines."""
    graph = samples.GRAPH.format(width="370.8", far="NVS/0-0", back="NVS/0-0")
    ports = [(f"mlx5_{n}", "MT4129", "Active", "LinkUp", 400, "InfiniBand") for n in range(8)]
    return [
        samples.RDMA, samples.LSTOPO, samples.NODE.format(name="gpu[01-04]", gres="gpu:h100:8", state="IDLE"),
        samples.nccl_log("node01", graph) + "\n" + samples.nccl_log("node02", graph), samples.ibstat(ports),
        samples.matrix(8, lambda a, b: "NV18"), samples.smi_q("NVIDIA H100 80GB HBM3", 8, mig="Enabled", slices=2),
        samples.smi_xml("NVIDIA GB200", 4, slices=1, fabric="Completed", cluster="12345678-0000"),
        "\n".join(f"GPU {n}: NVIDIA B300 SXM6 AC (UUID: GPU-{n:08d}-0000)" for n in range(8)),
        "Unable to determine the device handle for GPU1: 0000:34:00.0: Unknown Error\n",
        "mlx5_0 port 1 ==> ibp26s0 (Down)\nroceP2p1s0f1 port 1 ==> enP2p1s0f1np1 (Up)\n",
        "#  Rank  0 Group  0 Pid 2 on   a device  0 [0x07] NVIDIA A100-SXM4-80GB\n",
    ]  # fmt: skip


def _listed(rng: random.Random, work: Path) -> str:
    """Other tools' texts, one after the other, of one host or several, with lines lost, doubled, moved, cut and spoilt."""
    lines = "\n".join(rng.choices(_texts(), k=rng.choice([1, 1, 2, 4]))).split("\n")
    for _ in range(rng.choice([0, 1, 4, 20])):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        what = rng.randrange(6)
        if what == 0:
            lines[at] = lines[other]
        elif what == 1:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        elif what == 2:
            lines.insert(
                at,
                rng.choice(
                    ["=== node1 ===", "---------------", "n1 | CHANGED | rc=0 >>", "me@n2:~$ x", "", "\x00\u0663"]
                ),
            )
        elif what == 3 and len(lines) > 1:
            del lines[at]
        else:
            junk = rng.choice([b.decode("utf-8", "replace") for b in JUNK[:12]])
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = junk
            lines[at] = " ".join(words)
    if rng.random() < 0.3:
        lines = [f"{rng.choice(['a', 'b', 'node-3'])}: {line}" for line in lines]
    path = work / "listed"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        cluster = read_hardware(path, rng.choice([None, None, product("GB200"), product("H200 NVL")]))
        cluster = replicate(cluster, rng.choice([1, 2]) * len(cluster.nodes))
    except ParlaunchError as error:
        return "refused" if str(error) else "refused without a word"
    show(cluster)
    return "read"


def _damaged(rng: random.Random, work: Path) -> str:
    files = sorted(SAVED.glob("*/capture.json"))
    path = work / "damaged.json"
    path.write_bytes(mutate(rng, rng.choice(files).read_bytes()))
    try:
        cluster = capture.read(path)
    except ProbeError as error:
        return "refused" if str(error) else "refused without a word"
    show(cluster)
    return "read"

"""Machines from files: whatever other tools print or save about a node, recognised by content, never by name.

`read_hardware` takes our own captures, `nvidia-smi topo -m`, `nvidia-smi` (table, `-L`, `-q`, `-q -x`, `nvlink -s`),
NCCL topology XML and debug logs, hwloc XML and `lstopo`'s text, `lspci`, `ibstat` and its kin, `rdma link`, a captured
/sys as folder or tar, `nvidia-imex-ctl -N`, NetQ's compute nodes, `ibnetdiscover`, `scontrol show node`. A text may hold
several of them, and those of several hosts. What a file does not say stays unknown.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parlaunch.errors import ProbeError, UsageError
from parlaunch.hardware.cluster import Cluster, Gpu, Node, cluster_from_json, domains_of
from parlaunch.hardware.datasheet import Product, product
from parlaunch.hardware.gather import gather
from parlaunch_probes import capture
from parlaunch_probes.files import (
    host_text,
    hosts,
    hwloc_xml,
    ib_text,
    lost,
    lspci,
    lstopo_text,
    nccl_log,
    nccl_xml,
    racks,
    slurm_nodes,
    smi_q,
    smi_text,
    smi_xml,
    sysfs_tree,
    topo_m,
    xml_text,
)  # fmt: skip
from parlaunch_probes.files.clean import decode
from parlaunch_probes.files.conclude import cluster_of
from parlaunch_probes.files.facts import Facts, join

__all__ = ["is_machine", "read_hardware", "replicate"]

MOST = 256 << 20  # bytes of a file
TRAYS = 18  # nodes of an NVLink rack whose GPUs are not known (NVL72)
ACCEPTED = (
    "accepted: a capture of `parlaunch probe --save`; `nvidia-smi topo -m`, `-q`, `-q -x` or `-L`; NCCL's topology XML or "
    "debug log; `lstopo` as text or XML; lspci; ibstat, `rdma link`, ibdev2netdev; `scontrol show node`; a captured /sys "
    "as folder or tar"
)
_JSON = re.compile(r'\s*(\{\s*["}]|\[\s*[\[{"\]])')  # "[user@host ~]$" is a prompt
_SCHEMAS = ("parlaunch.probe/1", "parlaunch.plan/1")
# In the order in which they are believed where two speak of the same thing.
_TEXTS: tuple[Callable[[str], Facts | None], ...] = (
    smi_q.find, smi_text.find_list, smi_text.find_csv, smi_text.find_table, topo_m.find, lspci.find, lstopo_text.find,
    nccl_log.find, ib_text.find, host_text.find, lost.find,
)  # fmt: skip
_FAILURES = (
    ("NVIDIA-SMI has failed because", "nvidia-smi could not reach the driver there"),
    ("Failed to initialize NVML", "nvidia-smi could not reach the driver there"),
    ("No devices were found", "nvidia-smi found no GPU there"),
    ("command not found", "the command was not there"),
    ('vendor="0x1002"', "its GPUs are of another maker than NVIDIA"),
    ("ROCm System Management Interface", "its GPUs are of another maker than NVIDIA"),
)


def read_hardware(path: Path | str, gpu: Product | None = None) -> Cluster:
    """The machine that a file or folder describes, recognised by its content. `gpu` is the product of its GPUs where the
    file does not name it: boards and links are concluded from it. Raises `ProbeError` naming the file."""
    given = Path(path)
    try:
        if given.is_dir():
            return _folder(given)
        size = given.stat().st_size
        if size > MOST:
            raise ProbeError(f"{path} has more than {MOST >> 20} MiB", hint=ACCEPTED)
        content = given.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ProbeError(f"cannot read {path}: {why}", hint="give a file or folder that you may read") from error
    try:
        return _content(content, given, gpu)
    except (RecursionError, MemoryError) as error:
        raise ProbeError(f"{path} is nested too deeply or too large to read", hint=ACCEPTED) from error


def is_machine(path: Path | str) -> bool:
    """Whether a folder holds a machine: a capture, or a captured /sys."""
    return capture.is_capture(path) or sysfs_tree.is_folder(Path(path))


def _folder(path: Path) -> Cluster:
    if capture.is_capture(path):
        return capture.read(path)
    if sysfs_tree.is_folder(path):
        return sysfs_tree.read_folder(path)
    raise ProbeError(
        f"{path} is a folder without a capture ({capture.FILE}) and without a captured /sys", hint=ACCEPTED
    )


def _content(content: bytes, path: Path, gpu: Product | None) -> Cluster:
    if not content.strip():
        raise ProbeError(f"{path} is empty", hint="`nvidia-smi nvlink -s` prints nothing without NVLink; " + ACCEPTED)
    if (
        content[:3] == b"BZh"
        or content[:2] == b"\x1f\x8b"
        or content[:6] == b"\xfd7zXZ\x00"
        or content[257:262] == b"ustar"
    ):
        found = sysfs_tree.read_archive(content, path)
        if found is not None:
            return found
        if content[:2] != b"\x1f\x8b":
            raise ProbeError(f"{path} is an archive that cannot be read, or no tar", hint=ACCEPTED)
        content = _unzipped(content, path)
    if content[:2] == b"PK":
        raise ProbeError(f"{path} is a zip archive", hint="unpack it first; " + ACCEPTED)
    text = decode(content)
    source = f"file {path.name}"
    if _JSON.match(text):
        return _json(text, path, source)
    found = racks.find_imex(text, source) or racks.find_ibnetdiscover(text, source)
    if found is not None:
        return found
    nodes = _nodes(text)
    if not nodes:
        raise ProbeError(f"{path} is no description of a machine that we know: {_looks(text)}", hint=ACCEPTED)
    for facts in nodes:
        facts.product = gpu
    if len(nodes) == 1:
        return cluster_of(nodes[0], source)
    return _together([cluster_of(facts, source) for facts in nodes], source)


def _together(each: list[Cluster], source: str) -> Cluster:
    """Hosts of one file as one cluster. Where some show no GPU, the file was about something else: they stand as they are."""
    nodes = tuple(n for c in each for n in c.nodes)
    notes = tuple(dict.fromkeys(note for c in each for note in c.notes))
    if all(n.gpus for n in nodes):
        racked = _racked(nodes)
        whole = gather([replace(c, nodes=(n,)) for c, n in zip(each, racked, strict=True)])
        notes += (_taken(racked[0]),) if racked != nodes else ()
        return replace(whole, source=source, notes=(*notes, *(n for n in whole.notes if n not in notes)))
    return Cluster(source=source, nodes=nodes, nvlink_domains=domains_of(nodes), fabric=each[0].fabric, notes=notes)


def _racked(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Trays of NVLink racks of which no file says the rack: racks are filled in order, as of one tray written several times."""
    every = [g for n in nodes for g in n.gpus]
    told = any(g.fabric_id or g.fabric_state for g in every)
    if told or any(n.link_type != "nvswitch_mnnvl" for n in nodes):
        return nodes
    out = []
    for at, node in enumerate(nodes):
        key = (f"rack/{at // _trays(node)}", 0)
        gpus = (replace(g, fabric_id=key) if g.nvlink_domain is not None else g for g in node.gpus)
        out.append(replace(node, gpus=tuple(gpus)))
    return tuple(out)


def _taken(node: Node) -> str:
    return f"the nodes are taken for trays of NVLink racks, {_trays(node)} to a rack"


def _nodes(text: str) -> list[Facts]:
    """What the text says of each host that it speaks of."""
    several = slurm_nodes.find(text) or nccl_log.hosts(text) or _documents(text)
    for at, facts in enumerate(several):
        facts.node.setdefault("hostname", f"node{at}")
    if several:
        return several
    parts = hosts.split(text)
    told = [(name, found) for name, part in parts if (found := _one(part)) is not None]
    if len(told) < 2 or not all(facts.gpus or facts.nics for _, facts in told):
        whole = _one(text if len(parts) > 1 else parts[0][1])
        return [] if whole is None else [whole]
    for at, (name, facts) in enumerate(told):
        facts.node["hostname"] = name or facts.node.get("hostname") or f"node{at}"
    return [facts for _, facts in told]


def _one(text: str) -> Facts | None:
    """The parts of one host's text, put together; None when there is no machine in them."""
    parts = [p for p in (*_xml(text), *(find(text) for find in _TEXTS)) if p is not None]
    if not any(p.gpus or p.lost or p.nics or p.preset or p.what == hwloc_xml.WHAT for p in parts):
        return None
    return join(parts)


def _documents(text: str) -> list[Facts]:
    """The hosts of a topology that NCCL wrote for several (multi-node NVLink)."""
    parsed = xml_text.parse(text)
    return [] if parsed is None else nccl_xml.hosts(parsed[0], text)


def _unzipped(content: bytes, path: Path) -> bytes:
    try:
        with gzip.open(_bytes_file(content)) as file:
            return file.read(MOST)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ProbeError(f"{path} is damaged: {error}", hint="compress it again") from error


def _bytes_file(content: bytes) -> Any:
    import io

    return io.BytesIO(content)


def _xml(text: str) -> list[Facts]:
    parsed = xml_text.parse(text)
    if parsed is None:
        return []
    root, whole = parsed
    facts = smi_xml.find(root) or nccl_xml.find(root, text) or hwloc_xml.find(root)
    if facts is None:
        return []
    if not whole:
        facts.notes.append("the XML is cut off: what stands before the cut was read")
    return [facts]


def _json(text: str, path: Path, source: str) -> Cluster:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{path} looks like JSON and is not: {error}", hint="it may have been cut off") from error
    if racks.is_netq(data):
        return racks.netq(data, source)
    if (links := ib_text.find_json(data)) is not None:
        return cluster_of(links, source)
    if isinstance(data, dict):
        if data.get("schema") == capture.SCHEMA:
            return capture.read(path)
        if data.get("schema") in _SCHEMAS and isinstance(data.get("hardware"), dict):
            return replace(cluster_from_json(data["hardware"], where=str(path)), source=source)
        if isinstance(data.get("nodes"), list):
            return replace(cluster_from_json(data, where=str(path)), source=source)
    schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
    raise ProbeError(f"{path} is JSON of a kind that we do not know ({schema})", hint=ACCEPTED)


def _looks(text: str) -> str:
    for mark, meaning in _FAILURES:
        if mark in text:
            return meaning
    strange = sum(c == "\ufffd" or (c < " " and c not in "\n\t\f") for c in text[:4096])
    if strange * 10 > len(text[:4096]):
        return "it is binary"
    if "<html" in text[:2000].lower():
        return "it is a web page"
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return f"it begins {first[:60]!r}"


def replicate(cluster: Cluster, nodes: int) -> Cluster:
    """`nodes` nodes like those of the cluster: host names apart, identities (UUIDs, serials) left out.

    Trays of an NVLink rack fill racks in order. Raises `UsageError` when the cluster has several nodes and
    `nodes` is not a multiple of them.
    """
    have = len(cluster.nodes)
    if nodes < 1:
        raise UsageError(f"{nodes} nodes make no cluster", hint="write FILE:1 or more")
    if have == nodes:
        return cluster
    if have == 0 or nodes % have:
        raise UsageError(
            f"{cluster.source} describes {have} nodes, {nodes} were asked for",
            hint="leave the number out, or a multiple",
        )
    made = tuple(_copy(cluster.nodes[at % have], at, have) for at in range(nodes))
    notes = list(cluster.notes)
    if any(g.fabric_id for n in made if n.link_type == "nvswitch_mnnvl" for g in n.gpus):
        notes.append(_taken(made[0]))
    return replace(cluster, nodes=made, nvlink_domains=domains_of(made), notes=tuple(notes))


def _trays(node: Node) -> int:
    """Nodes like this one in a rack that NVLink joins."""
    sheet = product(node.gpus[0].name) if node.gpus else None
    return sheet.rack_gpus // racks.TRAY if sheet is not None and sheet.rack_gpus else TRAYS


def _copy(node: Node, at: int, have: int) -> Node:
    rack = at // _trays(node) if have == 1 else at // have

    def gpu(g: Gpu) -> Gpu:
        name, clique = g.fabric_id or ("rack", 0)
        shared = (
            (f"{name}/{rack}", clique) if node.link_type == "nvswitch_mnnvl" and g.nvlink_domain is not None else None
        )
        return replace(g, uuid=None, serial=None, fabric_id=shared)

    return replace(node, hostname=f"{node.hostname}-{at}", gpus=tuple(gpu(g) for g in node.gpus))

"""A captured /sys (and /proc): a folder, or a tar of one, compressed or not. Read by the code that reads live machines."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.hardware.cluster import Cluster, domains_of
from parlaunch.hardware.datasheet import product
from parlaunch_probes.files.conclude import with_board
from parlaunch_probes.host import LIMIT, Host
from parlaunch_probes.node import probe
from parlaunch_probes.nvml import NoNvml

MOST = 512 << 20  # bytes of one unpacked archive
MEMBERS = 1_000_000
_HERE = ("sys/class", "sys/bus", "sys/devices", "proc/driver/nvidia", "proc/cpuinfo")
_WHY = "not asked: these are the files of another machine"


class TarHost(Host):
    """The files of an archive as a machine's root, held in memory: nothing is unpacked to disk."""

    def __init__(self, nodes: Mapping[str, bytes | str | None]) -> None:
        """`nodes`: path under the root without a leading slash -> content, target of a link (str), or None for a folder."""
        super().__init__("/nowhere")
        self._nodes = dict(nodes)
        self._children: dict[str, set[str]] = {}
        for path in list(self._nodes):
            while path:
                above, _, name = path.rpartition("/")
                self._children.setdefault(above, set()).add(name)
                self._nodes.setdefault(above, None)
                path = above

    @property
    def live(self) -> bool:
        return False

    def _resolved(self, path: str) -> str | None:
        """The path after all links; None when it is not there, leads outside, or runs in circles."""
        parts = [p for p in path.split("/") if p][::-1]
        at: list[str] = []
        steps = 0
        while parts:
            steps += 1
            if steps > 400:
                return None
            part = parts.pop()
            if part == ".":
                continue
            if part == "..":
                if not at:
                    return None
                at.pop()
                continue
            here = "/".join([*at, part])
            if here not in self._nodes:
                return None
            content = self._nodes[here]
            if isinstance(content, str):
                if content.startswith("/"):
                    at = []
                parts += [p for p in content.split("/") if p][::-1]
            else:
                at.append(part)
        return "/".join(at)

    def _content(self, path: str) -> bytes | None:
        real = self._resolved(path)
        content = None if real is None else self._nodes.get(real)
        return content if isinstance(content, bytes) else None

    def _names(self, path: str) -> list[str] | None:
        real = self._resolved(path)
        if real is None or isinstance(self._nodes.get(real), bytes):
            return None
        return sorted(self._children.get(real, ()))

    def _real(self, path: str) -> str | None:
        real = self._resolved(path)
        return None if real is None else "/" + real


def is_folder(path: Path) -> bool:
    """Whether a folder holds a captured tree, at its top or one level down."""
    return _top(path) is not None


def _top(path: Path) -> Path | None:
    try:
        if path.name == "sys" and (path / "class").is_dir():
            return path.parent
        inside = sorted(p for p in path.iterdir() if p.is_dir())
    except OSError:
        return None
    return next((p for p in (path, *inside[:50]) if any(os.path.exists(p / here) for here in _HERE)), None)


def read_folder(path: Path) -> Cluster:
    """The machine whose files lie in a folder. Raises `ProbeError` when there are none."""
    top = _top(path)
    if top is None:
        raise ProbeError(f"{path} holds no captured /sys", hint="give the folder that has `sys` in it")
    return _cluster(Host(top), path.name)


def read_archive(content: bytes, given: Path) -> Cluster | None:
    """The machine in a tar; None when the bytes are no tar, or hold no /sys. Raises `ProbeError` for a damaged one."""
    nodes: dict[str, bytes | str | None] = {}
    damage = None
    try:
        _unpack(content, given, nodes)
    except (tarfile.TarError, EOFError, OSError, ValueError, IndexError) as error:
        damage = str(error) or type(error).__name__
    except Exception as error:  # zlib.error and lzma.LZMAError have no common parent; damaged headers raise others
        damage = str(error) or type(error).__name__
        if isinstance(error, ProbeError | MemoryError):
            raise
    if not nodes:
        return None
    tops = sorted({""} | {"/".join(p.split("/")[:1]) for p in nodes})
    top = next((t for t in tops if any(_holds(nodes, posixpath.join(t, here)) for here in _HERE)), None)
    if top is None:
        raise ProbeError(
            f"{given} is an archive without a captured /sys",
            hint="it should hold `sys` (and `proc`) at its top or one level down",
        )
    under = {p[len(top) :].lstrip("/"): v for p, v in nodes.items() if p.startswith(top)}
    cluster = _cluster(TarHost({p: v for p, v in under.items() if p}), given.name)
    if damage is not None:
        cluster = replace(
            cluster,
            notes=(*cluster.notes, f"the archive is damaged ({damage}): what stands before the damage was read"),
        )
    return cluster


def _unpack(content: bytes, given: Path, nodes: dict[str, bytes | str | None]) -> None:
    """Fill `nodes` with a tar's files (bytes), links (their targets) and folders (None), as far as it can be read."""
    total = 0
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
        for count, member in enumerate(archive):
            path = posixpath.normpath(member.name).lstrip("/")
            if path in (".", "") or path.startswith(".."):
                continue
            if member.issym():
                nodes[path] = member.linkname
            elif member.isdir():
                nodes.setdefault(path, None)
            elif member.isfile() and (file := archive.extractfile(member)) is not None:
                nodes[path] = file.read(LIMIT)
                total += len(nodes[path] or b"")
            if total > MOST or count > MEMBERS:
                raise ProbeError(f"{given} unpacks to more than {MOST >> 20} MiB: not a capture of /sys")


def _holds(nodes: Mapping[str, Any], path: str) -> bool:
    """Whether a file or folder stands there, or something below it."""
    return path in nodes or any(p.startswith(path + "/") for p in nodes)


def _cluster(host: Host, name: str) -> Cluster:
    found = probe(host, NoNvml(_WHY), environ={})
    notes = [n for n in found.notes if not n.startswith("NVML was not asked")]
    node = found.nodes[0]
    if node.gpus and product(node.gpus[0].name) is None:
        notes.append("the GPU model is not known to us")
    node = with_board(node, notes)
    return replace(
        found,
        source=f"file {name}",
        nodes=(node,),
        nvlink_domains=domains_of((node,)),
        notes=tuple(dict.fromkeys(notes)),
    )

"""A machine saved to disk: everything that a probe read, so that the same probe can be run on it elsewhere.

`save` writes one JSON file, or a folder with `capture.json` and a line `about` it. `read` replays it: the code that
reads a live machine runs on the recorded answers, so a newer parlaunch sees more in an old capture. A capture without
recorded answers (made from another tool's file) carries the cluster alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import GPU_LISTS, Cluster, cluster_from_json, cluster_to_json
from parlaunch_probes.host import Host, RecordedHost
from parlaunch_probes.node import VARIABLES, cluster_of
from parlaunch_probes.nvml import PATIENCE_S, LibraryNvml, NoNvml, Nvml, NvmlReading

SCHEMA = "parlaunch.capture/1"
FILE, ABOUT = "capture.json", "about"
_UUID = re.compile(r"GPU-[0-9a-fA-F-]{36}")
MOST = 64 << 20  # bytes of a capture file
# What a damaged recording can make of code that expects a machine's own answers.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError, StopIteration)


@dataclass(frozen=True, slots=True)
class Capture:
    """What was read, and the cluster that it amounts to. Without `files` and `nvml` there is the cluster alone."""

    cluster: Cluster
    files: Mapping[str, Mapping[str, Any]] | None = None  # kind of question -> path -> answer
    nvml: Mapping[str, Any] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    about: str = ""

    def replay(self) -> Cluster:
        """The cluster that today's code makes of the recorded answers."""
        if self.files is None or self.nvml is None:
            return self.cluster
        again = cluster_of(RecordedHost(self.files), NvmlReading.from_json(self.nvml), self.environ)
        # What is installed was asked of this Python and stands in no file of those.
        software = self.cluster.nodes[0].software if self.cluster.nodes else None
        return replace(again, nodes=tuple(replace(node, software=software) for node in again.nodes))


def take(
    host: Host | None = None,
    nvml: Nvml | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Capture:
    """Probe as `parlaunch_probes.probe` does, and keep what was read."""
    every = dict(os.environ) if environ is None else environ
    door = Host.here(every, record=True) if host is None else Host(host.root, ours=host.live, record=True)
    if nvml is None:
        nvml = LibraryNvml() if door.live else NoNvml("not asked: these are the files of another machine")
    reading = nvml.read(timeout_s)
    ours = {name: every[name] for name in VARIABLES if name in every}
    cluster = cluster_of(door, reading, ours)
    return Capture(cluster, door.kept(), reading.to_json(), ours)


def save(path: str | Path, capture: Capture, *, redact: bool = False, about: str = "") -> Path:
    """Write a capture: one file when `path` ends in .json, else a folder. Returns the path of the JSON file.

    `redact` takes out what tells whose machine it is: host name, addresses, UUIDs, serial numbers, GUIDs, and the
    names of control groups. Raises `ProbeError` when it cannot be written.
    """
    given = capture if not redact else redacted(capture)
    about = about or given.about
    data = {
        "schema": SCHEMA,
        "about": about,
        "redacted": redact,
        "hardware": cluster_to_json(given.cluster),
        "notes": list(given.cluster.notes),
        "environ": dict(given.environ),
        "nvml": given.nvml,
        "files": given.files,
    }
    target = Path(path)
    try:
        if target.suffix != ".json":
            target.mkdir(parents=True, exist_ok=True)
            (target / ABOUT).write_text((about or "saved by parlaunch probe --save") + "\n")
            target = target / FILE
        target.write_text(_lines(data, 3) + "\n")
    except OSError as error:
        raise ProbeError(
            f"cannot write the capture to {path}: {error.strerror}",
            hint="name a file NAME.json, or a folder, that you may write",
        ) from error
    return target


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON that a person can read and compare: objects and lists of objects line by line, down to a depth."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value and depth > 0:
        rows = [f"{deeper}{json.dumps(k)}: {_lines(value[k], depth - 1, deeper)}" for k in sorted(value)]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(deeper + _lines(v, depth - 1, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value, sort_keys=True)


def is_capture(path: str | Path) -> bool:
    """Whether `read` takes it: a folder with a capture, or a JSON file of our schema."""
    given = Path(path)
    if given.is_dir():
        return (given / FILE).is_file()
    try:
        with given.open("rb") as file:
            content = file.read(MOST)
    except OSError:
        return False
    return content.lstrip().startswith(b"{") and f'"{SCHEMA}"'.encode() in content


def load(path: str | Path) -> Capture:
    """The capture in a file or folder. Raises `ProbeError` naming the path."""
    given = Path(path)
    file = given / FILE if os.path.isdir(given) else given
    try:
        if file.stat().st_size > MOST:
            raise ProbeError(f"{path} has more than {MOST >> 20} MiB", hint="a capture of parlaunch is far smaller")
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ProbeError(
            f"cannot read {file}: {error.strerror}", hint="give a file or folder that `parlaunch probe --save` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{file} is not JSON: {error}", hint="it may have been cut off: save it again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        what = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ProbeError(f"{file} is not a capture: its schema is {what!r}, not {SCHEMA!r}")
    try:
        cluster = replace(
            cluster_from_json(data["hardware"], where=str(file)), notes=tuple(map(str, data.get("notes") or ()))
        )
        return Capture(
            cluster,
            files=data.get("files"),
            nvml=data.get("nvml"),
            environ={str(k): str(v) for k, v in (data.get("environ") or {}).items()},
            about=str(data.get("about") or ""),
        )
    except DAMAGE as error:
        raise ProbeError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def read(path: str | Path) -> Cluster:
    """The cluster of a saved machine: what the probe saw, with the file as its source. Raises `ProbeError`."""
    capture = load(path)
    try:
        cluster = capture.replay()
        # The detour checks the type of every value: a damaged recording may hold a word where a number belongs.
        checked = cluster_from_json(cluster_to_json(cluster), where=str(path))
    except DAMAGE as error:
        raise ProbeError(
            f"{path} is damaged: {type(error).__name__}: {error}", hint="save it again with `parlaunch probe --save`"
        ) from error
    return replace(checked, source=f"file {Path(path).name}")


# ---------------------------------------------------------------------- without the owner's names


def _uuid(text: str) -> str:
    """Another UUID of the same form. The same one gets the same, so that GPUs of one NVLink domain still agree."""
    if not text.strip("0-"):
        return text  # all zero means something
    digits = hashlib.sha256(text.replace("-", "").encode()).hexdigest()[:32]
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}" if "-" in text else digits


def _device(text: str) -> str:
    """GPU-... or MIG-... with another UUID."""
    head, dash, tail = text.partition("-")
    return f"{head}-{_uuid(tail)}" if dash else text


def _group(path: str) -> str:
    """A control group's path without ids of users, jobs and containers."""
    return re.sub(r"[0-9a-f]{12,}|[0-9]{3,}", "0", path)


def _address(text: str, known: dict[str, str]) -> str:
    """An address of the ranges kept for documentation; loopback and link-local prefixes stay."""
    if text.startswith("127.") or text == "::1":
        return text
    number = known.setdefault(text, str(len(known) + 1))
    return f"2001:db8::{number}" if ":" in text else f"192.0.2.{number}"


def _token(token: str, devices: list[str]) -> str:
    """An entry of CUDA_VISIBLE_DEVICES that still means the same devices after their UUIDs have changed."""
    if not token.startswith(("GPU-", "MIG-")) or "/" in token:
        return token
    hits = [d for d in dict.fromkeys(devices) if d.startswith(token)]
    if len(hits) == 1:
        return _device(hits[0])
    return token[:4] if hits else token[:4] + "unknown"


def redacted(capture: Capture) -> Capture:
    """The same machine without host name, addresses, UUIDs, serial numbers and GUIDs; replayed, so that the cluster
    and its notes carry none of them either."""
    if capture.files is None or capture.nvml is None:
        return replace(capture, cluster=_redacted_cluster(capture.cluster))
    nvml, devices = _redacted_nvml(capture.nvml)
    for path, answer in capture.files.get("text", {}).items():
        if path.startswith("/proc/driver/nvidia/gpus/") and isinstance(answer, str):
            devices += _UUID.findall(answer)
    known: dict[str, str] = {}
    files: dict[str, dict[str, Any]] = {}
    for kind, answers in capture.files.items():
        mine = files.setdefault(kind, {})
        for path, answer in answers.items():
            mine[_group(path) if "/cgroup/" in path else path] = _redacted_file(kind, path, answer, known)
    blank = replace(capture, files=files, nvml=nvml, environ=_redacted_environ(capture.environ, devices))
    return replace(blank, cluster=blank.replay())


def _redacted_nvml(recorded: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """NVML's answers without UUIDs and serial numbers, and the UUIDs that they had."""
    nvml = json.loads(json.dumps(recorded))
    devices: list[str] = []
    for gpu in nvml["gpus"]:
        said = gpu["answers"]
        for one in (said, *said.get("mig_devices", ())):
            if one.get("uuid"):
                devices.append(one["uuid"])
                one["uuid"] = _device(one["uuid"])
        if "serial" in said:
            said["serial"] = "0"
        if said.get("fabric"):
            said["fabric"]["uuid"] = _uuid(said["fabric"]["uuid"])
    return nvml, devices


def _redacted_environ(recorded: Mapping[str, str], devices: list[str]) -> dict[str, str]:
    """The variables with what CUDA_VISIBLE_DEVICES says under the new UUIDs; of the others only that they are set."""
    environ = dict(recorded)
    if "CUDA_VISIBLE_DEVICES" in environ:
        entries = environ["CUDA_VISIBLE_DEVICES"].split(",")
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(_token(e, devices) for e in entries)
    return {
        name: value if name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER") else "1" for name, value in environ.items()
    }


def _redacted_file(kind: str, path: str, answer: Any, known: dict[str, str]) -> Any:
    if kind == "live" and path == "addresses" and answer:
        return {name: [_address(a, known) for a in found] for name, found in answer.items()}
    if not isinstance(answer, str):
        return answer
    if path in ("/proc/sys/kernel/hostname", "/etc/hostname"):
        return "node"
    if path.endswith("/node_guid"):
        return answer if not answer.strip("0:") else "0000:0000:0000:0001"
    if path.endswith("/sys_image_guid") and answer.strip("0:"):
        known.setdefault(answer, f"{len(known) + 1:04x}")  # ports of one chip still agree
        return f"0000:0000:0001:{known[answer]}"
    if path.startswith("/proc/driver/nvidia/gpus/"):
        return _UUID.sub(lambda m: _device(m[0]), answer)
    if path in ("/proc/self/cgroup", "/proc/1/cgroup"):
        return _group(answer)
    return answer


def _redacted_cluster(cluster: Cluster) -> Cluster:
    """A cluster that carries no recording: the values themselves."""
    known: dict[str, str] = {}
    nodes = []
    for at, node in enumerate(cluster.nodes):
        kinds: dict[str, Any] = {
            name: tuple(
                replace(
                    g,
                    uuid=g.uuid and _device(g.uuid),
                    serial=g.serial and "0",
                    fabric_id=g.fabric_id and (_uuid(g.fabric_id[0]), g.fabric_id[1]),
                    fabric_cluster=g.fabric_cluster and _uuid(g.fabric_cluster),
                    mig_devices=tuple((_device(u), name, size) for u, name, size in g.mig_devices),
                )
                for g in getattr(node, name)
            )
            for name in GPU_LISTS
        }
        nics = tuple(replace(n, guid=None, addresses=tuple(_address(a, known) for a in n.addresses)) for n in node.nics)
        nodes.append(
            replace(node, hostname=f"node{at}", nics=nics, cuda_visible_devices=None, cuda_visible_notes=(), **kinds)
        )
    return replace(cluster, nodes=tuple(nodes), notes=())

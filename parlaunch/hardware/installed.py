"""What software is installed where the training will run: versions by package, as a probe read them or as a release has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from parlaunch.data import load
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster

PACKAGES: Mapping[str, str] = {
    "torch": "PyTorch",
    "cuda": "CUDA",
    "nccl": "NCCL",
    "cudnn": "cuDNN",
    "transformer_engine": "Transformer Engine",
    "megatron_core": "Megatron Core",
    "megatron_bridge": "Megatron Bridge",
    "deep_ep": "DeepEP",
    "hybrid_ep": "HybridEP",
    "flash_attn": "flash-attention",
}
"""What is asked about, by the name it has in JSON; the name for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """Versions of `PACKAGES`. A package that is not among them is not known; one with None is known to be missing."""

    versions: tuple[tuple[str, str | None], ...] = ()
    source: str = "not known"  # probe | a release's name | file NAME
    assumed: bool = False  # nobody looked: these are the newest release's

    def text(self, package: str) -> str | None:
        """The version as it calls itself; None when missing or not known."""
        return dict(self.versions).get(package)

    def words(self, package: str) -> str:
        """Name and version for people."""
        return f"{PACKAGES[package]} {self.text(package) or 'missing'}"

    def missing(self, package: str) -> bool:
        """Somebody looked, and it is not there."""
        found = dict(self.versions)
        return package in found and found[package] is None

    def version(self, package: str) -> tuple[int, ...] | None:
        """The leading numbers: (2, 11, 0) of "2.11.0a0+eb65b36914"; None when missing or not known."""
        return numbers(self.text(package))

    def before(self, package: str, version: tuple[int, ...]) -> bool:
        """It is there, and older than that."""
        found = self.version(package)
        return found is not None and found < version


def numbers(text: str | None) -> tuple[int, ...] | None:
    """The numbers that a version begins with.

    >>> numbers("2.11.0a0+eb65b36914.nv26.02"), numbers("main:0.16.0"), numbers("dev"), numbers(None)
    ((2, 11, 0), (0, 16, 0), None, None)
    """
    found = re.search(r"\d+(\.\d+)*", text or "")
    return tuple(map(int, found[0].split("."))) if found else None


@dataclass(frozen=True, slots=True)
class Need:
    """A switch that a package allows from some version on."""

    package: str
    version: tuple[int, ...]
    what: str  # does not work before
    source: str


OVERLAP_NEEDS = Need(
    "torch", (2, 6), "overlapping the expert all-to-all hangs before PyTorch 2.6",
    "megatron/core/transformer/transformer_config.py:2669",
)  # fmt: skip
GRAPHS_NEED = Need(
    "transformer_engine", (2, 7), "CUDA graphs of single modules need Transformer Engine 2.7",
    "megatron/core/transformer/cuda_graphs.py",
)  # fmt: skip
BUFFERS_NEED = Need(
    "torch", (2, 11), "NCCL's user buffers exclude growing segments of memory before PyTorch 2.11",
    "megatron/core/distributed/distributed_data_parallel_config.py:256",
)  # fmt: skip
DELAY_NEEDS = Need(
    "transformer_engine", (2, 7), "delayed weight gradients need Transformer Engine 2.7",
    "bridge/training/comm_overlap.py:520",
)  # fmt: skip
NEEDS = (OVERLAP_NEEDS, GRAPHS_NEED, BUFFERS_NEED, DELAY_NEEDS)
"""What an old package leaves without; the conditions of the switches' table and `parlaunch doctor` take it from here."""


@lru_cache(maxsize=1)
def releases() -> tuple[Installed, ...]:
    """The software of every release in `data/software.json`, newest first."""
    rows = load("software.json")["releases"]
    found = (
        Installed(versions=tuple((p, row["versions"][p]) for p in PACKAGES if p in row["versions"]), source=row["name"])
        for row in rows
    )
    return tuple(sorted(found, key=lambda known: known.version("megatron_bridge") or (), reverse=True))


def release(name: str) -> Installed:
    """A release by name: `nemo-26.04`, or `bridge-0.4` for the newest with that Megatron Bridge. Raises `UsageError`."""
    for known in releases():
        bridge = known.text("megatron_bridge") or ""
        if name == known.source or (name.startswith("bridge-") and f"{bridge}.".startswith(f"{name[7:]}.")):
            return known
    names = [f"{r.source} (bridge-{r.text('megatron_bridge')})" for r in releases()]
    raise UsageError(f"--software {name!r} is no release that is known", hint="one of: " + ", ".join(names))


def newest() -> Installed:
    """The newest release, taken for a machine that nobody has looked at."""
    latest = releases()[0]
    return Installed(versions=latest.versions, source=latest.source, assumed=True)


def installed_on(cluster: Cluster) -> Installed:
    """What all nodes have: a package in its oldest version, missing where one node lacks it; the newest release where no node
    was asked."""
    found = [dict(node.software) for node in cluster.nodes if node.software is not None]
    if not found:
        return newest()
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        have = [node[package] for node in found if package in node]
        if have:
            versions[package] = None if None in have else min(have, key=lambda v: numbers(v) or ())
    return Installed(versions=tuple(versions.items()), source=cluster.source)


def differing(cluster: Cluster) -> tuple[str, ...]:
    """One sentence for each package that nodes have in several versions."""
    out = []
    for package, words in PACKAGES.items():
        by_version: dict[str | None, list[str]] = {}
        for node in cluster.nodes:
            if node.software is not None and package in dict(node.software):
                by_version.setdefault(dict(node.software)[package], []).append(node.hostname)
        if len(by_version) > 1:
            said = [f"{version or 'missing'} on {hosts[0]}" for version, hosts in by_version.items()]
            out.append(f"{words} differs between nodes: {', '.join(said)}")
    return tuple(out)


def software_to_json(software: Installed) -> dict[str, Any]:
    """The `software` object of `parlaunch.plan/1`: version by package (null: missing or not known), source, assumed."""
    return {
        **{package: software.text(package) for package in PACKAGES},
        "missing": [package for package in PACKAGES if software.missing(package)],
        "source": software.source, "assumed": software.assumed,
    }  # fmt: skip


def software_from_json(data: Mapping[str, Any]) -> Installed:
    """What `software_to_json` wrote."""
    versions = [(p, data.get(p)) for p in PACKAGES if data.get(p) is not None or p in data.get("missing", ())]
    return Installed(versions=tuple(versions), source=data["source"], assumed=bool(data["assumed"]))

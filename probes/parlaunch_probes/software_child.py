"""Run in a child process by `parlaunch_probes.software`: versions of the training software, as one JSON line. Nothing is imported.

Packages say their version in their metadata; what torch was built with stands in its `version.py`; NCCL and cuDNN are asked as
libraries, which is why this is a process of its own.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

DISTRIBUTIONS = {
    "torch": ("torch",),
    "transformer_engine": ("transformer-engine", "transformer-engine-torch"),
    "megatron_core": ("megatron-core",),
    "megatron_bridge": ("megatron-bridge",),
    "deep_ep": ("deep-ep", "deep_ep"),
    "flash_attn": ("flash-attn", "flash_attn"),
}
"""Names under which a package may have been installed."""

NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


def version_of(names: tuple[str, ...]) -> str | None:
    """The version of the first distribution that is installed; None where none is."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def folder_of(module: str) -> Path | None:
    """Where a top-level package is; None where it is not."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def cuda_of_torch() -> str | None:
    """The CUDA release that torch was built with; None for a build without."""
    folder = folder_of("torch")
    try:
        text = (folder / "version.py").read_text(encoding="utf-8") if folder else ""
    except OSError:
        return None
    found = re.search(r"^cuda[^=\n]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def library_version(name: str, function: str, *, by_pointer: bool) -> int | None:
    """The number that a library calls its version; None where it cannot be loaded."""
    try:
        library = ctypes.CDLL(name)
        if not by_pointer:
            asked = getattr(library, function)
            asked.restype = ctypes.c_size_t
            return int(asked())
        number = ctypes.c_int()
        return number.value if getattr(library, function)(ctypes.byref(number)) == 0 else None
    except (OSError, AttributeError):
        return None


def nccl() -> str | None:
    """2.27.7: of the package that torch loads, else of the system's library."""
    number = library_version("libnccl.so.2", "ncclGetVersion", by_pointer=True) if version_of(NCCL) is None else None
    if number is None:
        return version_of(NCCL)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def cudnn() -> str | None:
    """9.14.0, likewise."""
    number = (
        library_version("libcudnn.so.9", "cudnnGetVersion", by_pointer=False) if version_of(CUDNN) is None else None
    )
    if number is None:
        return version_of(CUDNN)
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def found() -> dict[str, str | None]:
    """Version by package; None where it is missing."""
    versions: dict[str, str | None] = {name: version_of(names) for name, names in DISTRIBUTIONS.items()}
    deep_ep = folder_of("deep_ep")
    if versions["deep_ep"] is None and deep_ep is not None:
        versions["deep_ep"] = "unknown"  # built in place, without metadata
    hybrid = deep_ep is not None and any((deep_ep / name).exists() for name in ("hybrid_ep_buffer.py", "hybrid_ep.py"))
    versions["hybrid_ep"] = versions["deep_ep"] if hybrid else None
    return versions | {"cuda": cuda_of_torch(), "nccl": nccl(), "cudnn": cudnn()}


if __name__ == "__main__":
    print(json.dumps(found()))

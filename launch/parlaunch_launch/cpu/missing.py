"""What newer Python or packages have and Megatron asks for while it is imported. Comes before the first import of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import types
import typing
import warnings
from typing import Any

QUIET = (
    r".*Apex (?:is|are) not installed",
    r".*[Ff]ull scope is deprecated",
    r".*is deprecated\. Please use `torch\.distributed",
    r".*CUDA_DEVICE_MAX_CONNECTIONS",
)
"""Warnings that every rank would repeat and nobody who trains on a CPU can do anything about."""


def fill_in() -> None:
    """Make `import megatron.core` work without triton, and on Python 3.11. Nothing is compiled: it takes longer than it saves."""
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    for about in QUIET:
        warnings.filterwarnings("ignore", message=about)
    if not hasattr(typing, "override"):  # new in 3.12
        setattr(typing, "override", lambda method: method)  # noqa: B010  # type checkers know that 3.11 has none
    if importlib.util.find_spec("nvidia_resiliency_ext") is not None:
        import nvidia_resiliency_ext

        if not hasattr(nvidia_resiliency_ext, "__version__"):  # 0.4.1, the newest for 3.11, does not say
            nvidia_resiliency_ext.__version__ = "0.6.0"
    if _wants_triton() and importlib.util.find_spec("triton") is None:
        _defined_not_called("triton", "triton.language")


def _wants_triton() -> bool:
    """Megatron Core 0.17 and newer import it without asking whether it is there."""
    major, minor = importlib.metadata.version("megatron-core").split(".")[:2]
    return (int(major), int(minor)) >= (0, 17)


def _defined_not_called(*names: str) -> None:
    """Modules full of mocks: kernels are decorated with triton where they are defined, and never called on a CPU."""
    from unittest.mock import MagicMock

    # torch looks for triton as well, and should find that there is none.
    importlib.import_module("torch._inductor.compile_fx")
    for name in names:
        module: Any = types.ModuleType(name)
        module.__getattr__ = lambda _: MagicMock()
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        sys.modules[name] = module

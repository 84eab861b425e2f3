"""One GPU that is a CPU: what torch and Megatron Core ask of CUDA, answered by the CPU, so that the branches for GPUs are run where none is.

Imported first in a process of its own (`python -c "import tests.fake_cuda; …"`): nothing of it is taken back.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TORCH_COMPILE_DISABLE"] = "1"

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
ALLOCATED, RESERVED = 5 * 2**30, 6 * 2**30


def _cuda(device: Any) -> bool:
    return str(device).startswith("cuda")


class OnTheCpu(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """Every tensor for "cuda" is the CPU's, and says that it is CUDA's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if _cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = tuple(CPU if isinstance(x, (str, torch.device)) and _cuda(x) else x for x in args)
        if func is torch.Tensor.type and len(args) == 1:
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


class Answers:
    """A stream, an event or a generator: takes whatever it is asked."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what a stream takes."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self

    def __getitem__(self, _: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing was begun."""

    def get_state(self) -> Any:
        return torch.get_rng_state()


def _put(module: Any, **answers: Any) -> None:
    for name, answer in answers.items():
        setattr(module, name, answer)


_put(
    torch.cuda,
    is_available=lambda: True, device_count=lambda: 1, current_device=lambda: CPU, set_device=lambda *_: None,
    get_device_name=lambda *_: "NVIDIA H200", get_device_capability=lambda *_: (9, 0), synchronize=lambda *_: None,
    max_memory_allocated=lambda: ALLOCATED, max_memory_reserved=lambda: RESERVED,
    Stream=Answers, Event=Answers, stream=Answers, current_stream=Answers, default_generators=Answers(),
    manual_seed=torch.manual_seed, get_rng_state=lambda *_, **__: torch.get_rng_state(), set_rng_state=lambda *_, **__: None,
    _lazy_call=lambda work, **_: work(), _lazy_init=lambda: None,
)  # fmt: skip
_put(torch.cuda.random, get_rng_state=torch.cuda.get_rng_state, set_rng_state=torch.cuda.set_rng_state)
torch.nn.Module.cuda = lambda self, *_: self
_started = dist.init_process_group
dist.init_process_group = lambda _backend, **words: _started("gloo", **words)
OnTheCpu().__enter__()

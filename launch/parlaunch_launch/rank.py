"""One rank of torchrun: what it runs, and how it fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from parlaunch.errors import ParlaunchError
from parlaunch_launch.bind import bind_here
from parlaunch_launch.family import MARK


def run_rank(train: Callable[[], None]) -> None:
    """Train; a failure's traceback goes into torchrun's report, our own refusals are one message and an exit code."""
    bind_here()  # before torch is imported: what allocates later allocates near
    from torch.distributed.elastic.multiprocessing.errors import record

    def refusing() -> None:
        try:
            train()
        except ParlaunchError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from None
        finally:
            if MARK in os.environ:
                say_memory()

    record(refusing)()


def say_memory() -> None:
    """One line with the most that this rank had of its GPU: Megatron prints its own before the optimizer's states are counted."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        allocated, reserved = (b / 2**20 for b in (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
        rank = os.environ.get("RANK", "?")
        print(
            f"[Rank {rank}] (at the end) memory (MB) | max allocated: {allocated:.2f} | max reserved: {reserved:.2f}",
            flush=True,
        )

"""Checkpoints of the Core runner: one file a rank, for the layout that wrote it, as Bridge's `checkpoint.save` and `.load` ask.

Bridge's own checkpoints can be read in another layout; these serve a training that is ended and comes back: a time limit, a
requeue, a signal (`train.exit_signal_handler`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parlaunch.errors import UsageError
from parlaunch_launch.cpu.report import say


class Keeper:
    """Loads before the first iteration, saves every `save_interval`, at the end, and when the exit signal came."""

    def __init__(
        self, said: Mapping[str, Any], train: Mapping[str, Any], model: Sequence[Any], optimizer: Any, scheduler: Any
    ) -> None:
        import torch.distributed as dist

        self.save_to, self.load_from = said.get("save"), said.get("load")
        self.interval, self.last = int(said.get("save_interval") or 0), int(train["train_iters"])
        self.model, self.optimizer, self.scheduler = list(model), optimizer, scheduler
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.signalled, self.heeds = False, bool(train.get("exit_signal_handler"))
        if self.heeds:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.signalled = True

    def begin(self) -> int:
        """The iteration that was finished last; 0 without a checkpoint. Raises UsageError for one of another layout."""
        import torch

        file = Path(str(self.load_from), f"rank-{self.rank}.pt") if self.load_from else None
        if file is None or not file.exists():
            return 0
        state = torch.load(file, weights_only=True)
        if state["world"] != self.world:
            raise UsageError(
                f"{file.parent} was written by {state['world']} ranks, and these are {self.world}",
                hint="start as many, or load another with checkpoint.load",
            )
        for chunk, saved in zip(self.model, state["model"], strict=True):
            chunk.load_state_dict(saved, strict=False)
        for optimizer, saved in zip(self._optimizers(), state["optimizer"], strict=True):
            optimizer.load_state_dict(saved["state"])
            for parameter, value in zip(_parameters(optimizer), saved["main"], strict=True):
                parameter.data.copy_(value)
        self.scheduler.load_state_dict(state["scheduler"])
        iteration = int(state["iteration"])
        if self.rank == 0:
            say(f" loaded checkpoint of iteration {iteration} from {self.load_from}")
        return iteration

    def ends_after(self, iteration: int) -> bool:
        """Save what is due after this iteration; whether training ends with it, on every rank alike."""
        leaving = self._leaving()
        due = bool(self.interval and iteration % self.interval == 0)
        if self.save_to and (leaving or due or iteration == self.last):
            self._save(iteration)
        if leaving and self.rank == 0:
            say(f" exiting program after receiving SIGTERM, at iteration {iteration}")
        return leaving

    def _leaving(self) -> bool:
        import torch
        import torch.distributed as dist

        if not self.heeds:
            return False
        told = torch.tensor([int(self.signalled)])
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def _save(self, iteration: int) -> None:
        import torch
        import torch.distributed as dist

        folder = Path(str(self.save_to))
        folder.mkdir(parents=True, exist_ok=True)
        for chunk in self.model:
            if chunk.ddp_config.overlap_param_gather:  # the next forward would fetch what other ranks have stepped
                chunk.start_param_sync(force_sync=True)
        state = {
            "iteration": iteration, "world": self.world,
            "model": [_tensors(chunk.state_dict()) for chunk in self.model],
            "optimizer": [
                {"state": o.state_dict(), "main": [p.data for p in _parameters(o)]} for o in self._optimizers()
            ],
            "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip
        # Whole or not at all: the job may be killed while it writes.
        fresh = folder / f".rank-{self.rank}.{os.getpid()}"
        torch.save(state, fresh)
        dist.barrier()
        fresh.replace(folder / f"rank-{self.rank}.pt")
        if self.rank == 0:
            say(f" saved checkpoint of iteration {iteration} to {folder}")

    def _optimizers(self) -> list[Any]:
        """What holds Adam's state: the inner optimizer of each of Megatron's."""
        chained = getattr(self.optimizer, "chained_optimizers", [self.optimizer])
        return [one.optimizer for one in chained]


def _parameters(optimizer: Any) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without Transformer Engine's extra state, which is empty on a CPU."""
    return {name: value for name, value in state.items() if "_extra_state" not in name}

"""How long one training iteration takes, from the shapes, the layout and the machine; no profile needed."""

from __future__ import annotations

from parlaunch.estimate.timing.iteration import estimate_time, micro_batch_time, stage_times

__all__ = ["estimate_time", "micro_batch_time", "stage_times"]

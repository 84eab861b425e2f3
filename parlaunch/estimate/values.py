"""What the estimates answer: peak bytes and seconds of one iteration, by part."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One field that is a part of the whole: how lists name it, and how a sentence does."""

    name: str
    word: str
    phrase: str


def _part(word: str, phrase: str | None = None, **given: Any) -> Any:
    return field(metadata={"part": (word, phrase or word)}, **given)


def _parts(values: type) -> tuple[Part, ...]:
    return tuple(Part(f.name, *f.metadata["part"]) for f in fields(values) if "part" in f.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak bytes on the fullest GPU of the fullest pipeline stage."""

    weights: int = _part("weights")
    gradients: int = _part("gradients")
    optimizer: int = _part("optimizer", "the optimizer")
    activations: int = _part("activations")
    logits: int = _part("logits")
    buffers: int = _part("buffers")  # communication buffers, dispatch, workspaces
    # CUDA context, NCCL, allocator slack: what nvidia-smi shows on top of the tensors
    runtime: int = _part("runtime", "the runtime")
    capacity: int
    limit: int  # capacity less headroom
    stage: int = 0  # the pipeline stage it is about
    error_band: float = 0.10  # ± share within which two of three runs lie
    risk_band: float = 0.10  # share on top that one run of twenty needs
    slack: int = 0  # of `runtime`: what the caching allocator holds beyond the tensors, and gives back when it must
    pool: int = 0  # of `runtime`: what it holds for captured graphs
    # On top of the peak: what the allocator must find free to keep what it frees. With less it gives all of it back, waits for
    # the GPU, and asks again, in every iteration: the run does not fail, and takes many times as long.
    spare: int = 0

    @property
    def allocated(self) -> int:
        """What torch.cuda.max_memory_allocated would say."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def reserved(self) -> int:
        """What torch.cuda.max_memory_reserved would say."""
        return self.allocated + self.slack + self.pool

    @property
    def peak(self) -> int:
        """What nvidia-smi would show."""
        return self.allocated + self.runtime

    @property
    def runs(self) -> bool:
        """It would not run out of memory: no headroom asked, and the allocator gives back what it caches when it must."""
        return self.peak - self.slack <= self.capacity

    @property
    def fits(self) -> bool:
        """It leaves the headroom free."""
        return self.peak <= self.limit

    @property
    def at_speed(self) -> bool:
        """It leaves the allocator what it needs."""
        return self.peak + self.spare <= self.capacity


MEMORY_PARTS = _parts(Memory)
"""What the peak is made of, in the order in which it is shown: they add up to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Seconds of one iteration on the critical path; they add up to the iteration."""

    compute_s: float = _part("compute", default=0.0)
    tp_s: float = _part("tensor parallel", "TP communication", default=0.0)
    cp_s: float = _part("context parallel", "CP communication", default=0.0)
    ep_s: float = _part("expert all-to-all", "expert dispatch", default=0.0)
    pp_bubble_s: float = _part("pipeline bubble", "the pipeline bubble", default=0.0)
    pp_p2p_s: float = _part("pipeline transfer", "sends between stages", default=0.0)
    dp_exposed_s: float = _part("data parallel", "DP traffic", default=0.0)
    optimizer_s: float = _part("optimizer", "the optimizer step", default=0.0)
    host_s: float = _part("host", "the host", default=0.0)

    @property
    def total(self) -> float:
        """Seconds of the iteration."""
        return sum(float(getattr(self, part.name)) for part in TIME_PARTS)

    def times(self, factor: float) -> Breakdown:
        """Every part so many times as long."""
        if factor == 1.0:
            return self
        return Breakdown(**{part.name: factor * float(getattr(self, part.name)) for part in TIME_PARTS})


TIME_PARTS = _parts(Breakdown)
"""What an iteration is made of, in the order in which it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Predicted time of one iteration and what follows from it."""

    iteration_time_s: float
    error_band: float  # ± share, from the residuals on published runs of this kind
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    mfu: float  # of what is done: frozen weights get no gradients, which Bridge counts in the TFLOP/s that it prints unless adapters freeze them
    breakdown: Breakdown


def components(memory: Memory) -> dict[str, int]:
    """Bytes of each part of the peak."""
    return {part.name: getattr(memory, part.name) for part in MEMORY_PARTS}


def breakdown(estimate: Estimate) -> dict[str, float]:
    """Seconds of each part of an iteration."""
    return {part.name: getattr(estimate.breakdown, part.name) for part in TIME_PARTS}


def memory_to_json(memory: Memory) -> dict[str, Any]:
    """The `memory` object of `parlaunch.plan/1`, in bytes."""
    return {
        "peak_bytes": memory.peak,
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "slack_bytes": memory.slack,
        "pool_bytes": memory.pool,
        "spare_bytes": memory.spare,
        "error_band": memory.error_band,
        "risk_band": memory.risk_band,
        "capacity_bytes": memory.capacity,
        "limit_bytes": memory.limit,
        "fits": memory.fits,
        "at_speed": memory.at_speed,
        "stage": memory.stage,
        "components": components(memory),
    }


def estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    """The `estimate` object of `parlaunch.plan/1`, in seconds and per second."""
    return {
        "iteration_time_s": estimate.iteration_time_s,
        "error_band": estimate.error_band,
        "tokens_per_s_per_gpu": estimate.tokens_per_s_per_gpu,
        "model_tflops_per_gpu": estimate.model_tflops_per_gpu,
        "mfu": estimate.mfu,
        "breakdown": breakdown(estimate),
    }

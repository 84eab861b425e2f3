"""A plan held against its first iterations: what was measured, what was predicted, and what to make of it.

Values and decisions only. `parlaunch_launch.training_log` reads a log into `Measured`, `parlaunch_launch.verify` runs it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parlaunch.catalog import load
from parlaunch.datasheet import product
from parlaunch.layout import Layout, layout_to_json
from parlaunch.machine import Cluster
from parlaunch.plan import Candidate, Memory, Plan
from parlaunch.units import gib, seconds

WARM_UP = 2
"""Iterations left out of the time: the first allocates, builds communicators and compiles, the second still does some of it."""

COMPONENTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")

LAYOUT_WORDS = {
    "world": "world size", "tp": "tensor parallel", "pp": "pipeline parallel", "vp": "virtual pipeline",
    "cp": "context parallel", "ep": "expert parallel", "etp": "expert tensor parallel", "dp": "data parallel",
    "edp": "expert data parallel",
}  # fmt: skip
"""Sizes a log may name, by our names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One line of the training log. None: the line does not say; a loss that is not finite is left out by Megatron."""

    number: int
    of: int
    seconds: float
    loss: float | None = None
    grad_norm: float | None = None
    tflops: float | None = None  # TFLOP/s a GPU, by Megatron's own count
    skipped: int = 0
    nans: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that went wrong, recognised in the log."""

    kind: str  # oom | host-oom | nan | hang | nccl | cuda | assertion | network | package | hub | checkpoint | error
    sentence: str
    todo: str = ""
    line: str = ""  # of the log, as it stands there


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """What torch says when an allocation fails, in bytes, and what the model was doing."""

    tried: int | None = None
    capacity: int | None = None
    free: int | None = None
    allocated: int | None = None  # by torch, in use
    unallocated: int | None = None  # reserved by torch and not in use: fragmentation
    component: str | None = None  # one of COMPONENTS, from the place in the traceback


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one log shows."""

    layout: Mapping[str, int] = field(default_factory=dict)  # sizes the log names, by our names
    iterations: tuple[Iteration, ...] = ()
    peak_allocated: int | None = None  # bytes, the fullest GPU whose rank reports
    peak_reserved: int | None = None
    host_peak: int | None = None  # bytes resident, CPU ranks
    failures: tuple[Failure, ...] = ()  # the cause first
    out_of_memory: OutOfMemory | None = None

    @property
    def iteration_time_s(self) -> float | None:
        """The median after the warm-up; of all iterations when there are no more."""
        times = [i.seconds for i in self.iterations]
        return statistics.median(times[WARM_UP:] or times) if times else None

    @property
    def loss(self) -> float | None:
        """The last loss that the log shows."""
        return next((i.loss for i in reversed(self.iterations) if i.loss is not None), None)

    @property
    def loss_is_finite(self) -> bool | None:
        """None before the first iteration. Megatron leaves a NaN loss out of its line and counts it."""
        if not self.iterations:
            return None
        return all(
            i.nans == 0 and i.loss is not None and math.isfinite(i.loss) for i in self.iterations if not i.skipped
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the comparison. `ok` None: nothing to hold it against."""

    name: str
    predicted: str
    measured: str
    ok: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one run."""

    status: str  # ok, or the kind of the first failure; `layout` when Megatron ran another one
    checks: tuple[Check, ...]
    sentences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def judge(
    candidate: Candidate,
    measured: Measured,
    *,
    returncode: int | None,
    iterations: int,
    hung: bool = False,
    device: str = "cuda",
    sampled_peak: int | None = None,
) -> Verdict:
    """Hold one run against its prediction.

    It passes with exit code 0, all `iterations` done, every loss finite, and the layout that was planned. Time and memory
    outside the band are reported and do not fail it: they are news about the model, not about the run. `sampled_peak` is
    the fullest GPU as NVML saw it, in bytes.
    """
    checks = [
        _exit(returncode, measured, iterations),
        _loss(measured),
        *_layout(candidate.layout, measured.layout),
        _time(candidate, measured, device),
        _memory(candidate.memory, measured, device, sampled_peak),
    ]
    failures = list(measured.failures)
    if hung and not any(f.kind == "hang" for f in failures):
        failures.insert(0, Failure(kind="hang", sentence="nothing came for the whole time limit"))
    status = "ok"
    if returncode != 0 or hung:
        status = failures[0].kind if failures else "error"
    elif any(c.ok is False for c in checks if c.name == "finite loss"):
        status = "nan"
    elif any(c.ok is False for c in checks if c.name.startswith("layout")):
        status = "layout"
    elif any(c.ok is False for c in checks if c.name == "finished"):
        status = "error"
    sentences = [f.sentence + (f"; {f.todo}" if f.todo else "") for f in failures] if status != "ok" else []
    if measured.out_of_memory is not None and status == "oom":
        sentences.append(underestimated(candidate.memory, measured.out_of_memory))
    return Verdict(status=status, checks=tuple(checks), sentences=tuple(dict.fromkeys(sentences)))


def _exit(returncode: int | None, measured: Measured, iterations: int) -> Check:
    done = max((i.number for i in measured.iterations), default=0)
    code = "still running, ended by us" if returncode is None else f"exit code {returncode}"
    return Check(
        name="finished",
        predicted=f"exit code 0 after {iterations} iterations",
        measured=f"{code} after {done}",
        ok=returncode == 0 and done >= iterations,
    )


def _loss(measured: Measured) -> Check:
    loss = measured.loss
    said = "no iteration" if not measured.iterations else "not a number" if loss is None else f"{loss:.4f}"
    first = next((i.loss for i in measured.iterations if i.loss is not None), None)
    if loss is not None and first is not None and len(measured.iterations) > 1:
        said = f"{first:.4f} → {loss:.4f}"
    return Check(name="finite loss", predicted="finite", measured=said, ok=measured.loss_is_finite)


def _layout(layout: Layout, seen: Mapping[str, int]) -> list[Check]:
    wanted = layout_to_json(layout) | {"world": layout.world}
    dense = layout.ep == 1 and seen.get("ep", 1) == 1  # nothing is spread over these groups then
    names = [name for name in LAYOUT_WORDS if name in seen and not (dense and name in ("etp", "edp"))]
    if not names:
        return [Check(name="layout", predicted=str(layout), measured="the log does not say", ok=None)]
    wrong = [name for name in names if (wanted[name] or 1) != seen[name]]
    if not wrong:
        said = " ".join(f"{name}={seen[name]}" for name in names)
        return [Check(name="layout", predicted=str(layout), measured=said, ok=True)]
    return [
        Check(
            name=f"layout: {LAYOUT_WORDS[name]}", predicted=str(wanted[name] or 1), measured=str(seen[name]), ok=False
        )
        for name in wrong
    ]


def _time(candidate: Candidate, measured: Measured, device: str) -> Check:
    predicted, band = candidate.estimate.iteration_time_s, candidate.estimate.error_band
    took = measured.iteration_time_s
    if took is None:
        return Check(name="iteration time", predicted=seconds(predicted), measured="not measured", ok=None)
    if device == "cpu":
        return Check(name="iteration time", predicted="not predicted for CPU", measured=seconds(took), ok=None)
    off = took / predicted - 1
    return Check(
        name="iteration time",
        predicted=f"{seconds(predicted)} ± {band:.0%}",
        measured=f"{seconds(took)} ({off:+.0%})",
        ok=abs(off) <= band,
    )


def _memory(memory: Memory, measured: Measured, device: str, sampled: int | None) -> Check:
    if device == "cpu":
        said = (
            "not measured"
            if measured.host_peak is None
            else f"{gib(measured.host_peak)} resident a rank, with Python and torch"
        )
        return Check(name="peak memory", predicted="not predicted for CPU", measured=said, ok=None)
    pairs = (
        ("allocated by torch", memory.allocated, measured.peak_allocated),
        ("in use", memory.peak, sampled if sampled is not None else measured.peak_reserved),
    )
    for what, predicted, seen in pairs:
        if seen is not None:
            off = seen / predicted - 1
            return Check(
                name="peak memory",
                predicted=f"{gib(predicted)} {what} ± {memory.error_band:.0%}",
                measured=f"{gib(seen)} ({off:+.0%})",
                ok=abs(off) <= memory.error_band,
            )
    return Check(name="peak memory", predicted=gib(memory.peak), measured="not measured", ok=None)


def underestimated(memory: Memory, oom: OutOfMemory) -> str:
    """Which part of the memory estimate was too small, as far as torch's message tells.

    What is known to be needed is what torch had in use plus what it tried to add; where it was in the model tells which
    part was growing.
    """
    if oom.allocated is not None:
        needed = oom.allocated + (oom.tried or 0)
        said = f"torch needed at least {gib(needed)}, predicted were {gib(memory.allocated)}"
        if oom.unallocated and oom.unallocated > (oom.tried or 0) and needed <= memory.allocated:
            return (
                f"{said}: the tensors would have fitted, but {gib(oom.unallocated)} lie in fragments; "
                "PYTORCH_ALLOC_CONF=expandable_segments:True joins them"
            )
        if needed <= memory.allocated and oom.capacity is not None:
            outside = oom.capacity - (oom.free or 0) - oom.allocated - (oom.unallocated or 0)
            return f"{said}: {gib(outside)} of the GPU belong to others than torch (predicted: {gib(memory.runtime)})"
    else:
        said = f"predicted were {gib(memory.allocated)} of tensors"
    if oom.component is None:
        return f"{said}; the log does not tell which part grew"
    return f"{said}; {oom.component} were being made, so more than the predicted {gib(getattr(memory, oom.component))} of them"


def preset_like(cluster: Cluster) -> str | None:
    """The preset whose machines are most like these: same GPU, then same number of them, then NVLink or not, then same kind
    of fabric. None where no preset has this GPU: a CPU, or a product that no data sheet knows."""
    found = product(cluster.gpu.name) if cluster.world_size else None
    if found is None:
        return None
    rows = {name: row for name, row in load("presets.json")["presets"].items() if row["gpu"] == found.name}

    def likeness(name: str) -> tuple[bool, bool, bool]:
        row = rows[name]
        joined = row["nvlink_group"] * row["nvlink_domain_nodes"] > 1
        return (
            row["gpus_per_node"] == cluster.gpus_per_node,
            joined == (cluster.nvlink_domain_size > 1),
            row["fabric"]["kind"] == cluster.fabric.kind,
        )

    return max(rows, key=likeness, default=None)


def row(
    plan: Plan, measured: Measured, verdict: Verdict, *, when: str, sampled_peak: int | None = None
) -> dict[str, Any]:
    """One row of a table of measured runs, as `parlaunch validate` reads them. `when` is an ISO time."""
    layout, recipe = plan.layout, plan.recipe
    took = measured.iteration_time_s if verdict.ok else None
    tokens = layout.global_batch_size * recipe.seq_length
    allocated = measured.peak_allocated
    peak, kind = (allocated, "allocated") if allocated is not None else (sampled_peak, "nvidia-smi")
    flops = [i.tflops for i in measured.iterations[WARM_UP:] if i.tflops]
    return {
        "id": f"{recipe.name}/{layout}/{when}", "when": when, "recipe": recipe.name,
        "model_id": recipe.model_id, "arch": recipe.architecture.shape(), "task": recipe.task,
        "hardware": preset_like(plan.cluster), "machine": plan.cluster.source, "gpu": plan.cluster.gpu.name,
        "fabric_bytes_per_s_per_gpu": plan.cluster.fabric.bytes_per_s_per_gpu, "gpus": layout.world, "precision": recipe.precision, "seq": recipe.seq_length,
        "gbs": layout.global_batch_size, "mbs": layout.micro_batch_size, "tp": layout.tp, "pp": layout.pp, "vp": layout.vp,
        "cp": layout.cp, "ep": layout.ep, "etp": layout.etp, "recompute": layout_to_json(layout)["recompute"],
        "status": "oom" if verdict.status == "oom" else "ok" if verdict.ok else verdict.status,
        "iteration_time_s": took,
        "tokens_per_s_per_gpu": None if took is None else tokens / took / layout.world,
        "model_tflops_per_gpu": statistics.median(flops) if flops and verdict.ok else None,
        "peak_memory_gb": None if peak is None else peak / 2**30, "unit": "GiB", "peak_memory_metric": kind,
        "predicted": {"iteration_time_s": plan.chosen.estimate.iteration_time_s, "peak_bytes": plan.chosen.memory.peak},
    }  # fmt: skip

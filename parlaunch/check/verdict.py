"""A plan held against its first iterations: what was measured, what was predicted, and what to make of it.

Values and decisions only. `parlaunch_launch.training_log` reads a log into `Measured`, `parlaunch_launch.verify` runs it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import field, replace
from itertools import pairwise

from parlaunch.estimate.values import Memory
from parlaunch.frozen import dataclass
from parlaunch.model.layout import SELECTIVE_RECOMPUTE, Layout, Recompute, layout_to_json
from parlaunch.model.precision import QUANTIZED, product_format
from parlaunch.planning.plan import Candidate
from parlaunch.units import gib, percent, seconds

WARM_UP = 2
"""Iterations left out of the time: the first allocates, builds communicators and compiles, the second still does some of it."""

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
    global_batch: int | None = None
    skipped: int = 0  # since the line before: the optimizer made no step
    nans: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that went wrong, recognised in the log."""

    kind: str  # one of `parlaunch.check.symptoms.KINDS`
    sentence: str
    todo: str = ""
    line: str = ""  # of the log, as it stands there
    switch: str | None = None  # the switch that it speaks of, by its name in `--switches`


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRank:
    """The rank that ended badly before all others, as torchrun reports it. `status`: its exit code, negative for a signal."""

    rank: int
    local_rank: int | None = None
    host: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """What torch says when an allocation fails, in bytes, and what the model was doing."""

    tried: int | None = None
    capacity: int | None = None
    free: int | None = None
    allocated: int | None = None  # by torch, in use
    unallocated: int | None = None  # reserved by torch and not in use: fragmentation
    component: str | None = None  # one of `MEMORY_PARTS`, from the place in the traceback


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one log shows. Peaks are in bytes, of the fullest GPU whose rank reports, and hold the optimizer's states: what
    was printed before its first step was over is `early_allocated`, a lower bound."""

    layout: Mapping[str, int] = field(default_factory=dict)  # sizes the log names, by our names
    micro_batch: int | None = None
    seq_length: int | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    precision: str | None = None  # bf16 | fp16 | fp32, with +fp8 or +fp4
    recompute: Recompute | None = None
    iterations: tuple[Iteration, ...] = ()
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    early_allocated: int | None = None
    host_peak: int | None = None  # bytes resident, CPU ranks
    failures: tuple[Failure, ...] = ()  # the cause first
    out_of_memory: OutOfMemory | None = None
    failed_rank: FailedRank | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def iteration_time_s(self) -> float | None:
        """The median after the warm-up; of all iterations when there are no more."""
        times = [i.seconds for i in self.iterations]
        return statistics.median(times[WARM_UP:] or times) if times else None

    @property
    def steps(self) -> int:
        """Steps that the optimizer made. A line speaks of all iterations since the line before."""
        spans = _spans(self.iterations)
        return sum(max(0, span - i.skipped) for i, span in zip(self.iterations, spans, strict=True))

    @property
    def skipped(self) -> int:
        """Iterations without a step: the loss scale was too high, or a gradient was not a number."""
        return sum(i.skipped for i in self.iterations)

    @property
    def loss(self) -> float | None:
        """The last loss that the log shows."""
        return next((i.loss for i in reversed(self.iterations) if i.loss is not None), None)

    @property
    def global_batch(self) -> int | None:
        """Sequences of the last iteration: a batch may grow at first."""
        return next((i.global_batch for i in reversed(self.iterations) if i.global_batch is not None), None)

    @property
    def loss_is_finite(self) -> bool | None:
        """Of the last iterations that stepped; None without one. Megatron leaves a NaN loss out of its line and counts it."""
        if self.iterations and self.iterations[-1].nans:
            return False
        stepped = [i for i, span in zip(self.iterations, _spans(self.iterations), strict=True) if i.skipped < span]
        if not stepped:
            return None
        return stepped[-1].loss is not None and math.isfinite(stepped[-1].loss)


def _spans(iterations: tuple[Iteration, ...]) -> list[int]:
    """How many iterations each line speaks of. A log begins anywhere: its first line speaks of as many as the second."""
    numbers = [i.number for i in iterations]
    steps = [b - a for a, b in pairwise(numbers)]
    return [min(numbers[0], steps[0]) if steps else 1, *steps] if numbers else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One line of the comparison. `ok` None: nothing to hold it against. `counts`: a failure of it fails the run.

    `expected` and `found` are the two sides as numbers, in the unit of the quantity (seconds, bytes), where they are numbers.
    """

    name: str
    predicted: str
    measured: str
    ok: bool | None
    counts: bool = True
    expected: float | None = None
    found: float | None = None
    band: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one run."""

    status: str  # ok, the kind of the first failure, or what of the run is not as planned
    compared: tuple[Compared, ...]
    sentences: tuple[str, ...] = ()
    last_lines: tuple[str, ...] = ()  # of the log, where nothing better explains a failure

    @property
    def ok(self) -> bool:
        """Whether the run passed."""
        return self.status == "ok"


def judge(
    candidate: Candidate,
    measured: Measured,
    *,
    returncode: int | None,
    iterations: int | None,
    ended: str | None = None,
    device: str = "cuda",
    precision: str | None = None,
    seq_length: int | None = None,
    sampled_peak: int | None = None,
    tolerance: float | None = None,
) -> Verdict:
    """Hold one run against its prediction.

    It passes with exit code 0, all `iterations` done (None: as many as the log has), at least one step of the optimizer, a
    finite loss at the end, and the layout, batch, `precision` and `seq_length` that were planned. Time and memory outside their band are
    reported and fail nothing: they are news about the model, not about the run; with a `tolerance`, the share that they may
    be off, they count. `ended`: why we ended it (hang | interrupted). `sampled_peak` is the fullest GPU as NVML saw it, in
    bytes.
    """
    compared = [
        _exit(returncode, measured, iterations, ended),
        _steps(measured),
        _loss(measured),
        *_layout(candidate.layout, measured.layout),
        *(_recompute(candidate.layout, measured.recompute) if device != "cpu" else ()),
        *_batch(candidate.layout, measured, seq_length),
        *_precision(precision if device != "cpu" else None, measured),
        _time(candidate, measured, device, tolerance),
        *_memory(candidate.memory, measured, device, sampled_peak, tolerance),
    ]
    failures = list(measured.failures)
    if ended == "hang" and not any(f.kind == "hang" for f in failures):
        failures.insert(0, Failure(kind="hang", sentence="nothing came for the whole time limit"))
    status = _status(compared, failures, failed=returncode not in (0, None) or ended is not None, ended=ended)
    sentences: list[str] = []
    tail: tuple[str, ...] = ()
    if status != "ok":
        broken = ended is not None or returncode != 0
        sentences = [f.sentence + (f"; {f.todo}" if f.todo else "") for f in failures] if broken else []
        if status != "error" or not failures:
            sentences += _explained(status, compared)
        # Of a run that we ended, the ranks fail because we did.
        sentences += _rank_words(measured.failed_rank if ended not in ("hang", "interrupted") else None)
        if not sentences or not failures:
            tail = measured.last_lines
    if measured.out_of_memory is not None and status == "oom":
        sentences.append(underestimated(candidate.memory, measured.out_of_memory))
    return Verdict(status=status, compared=tuple(compared), sentences=tuple(dict.fromkeys(sentences)), last_lines=tail)


STATUS_OF = {
    "finite loss": "nan", "optimizer steps": "skipped", "layout": "layout", "global batch": "batch",
    "micro batch": "batch", "sequence length": "batch", "recompute": "recompute", "precision": "precision", "finished": "error", "iteration time": "time",
    "peak memory": "memory",
}  # fmt: skip
"""What a run is called that ended well and is not as planned, by the first words of what was compared; the gravest first."""

EXPLAINED = {
    "skipped": "the optimizer made no step: every iteration was skipped. With fp16 the loss scale starts too high and halves "
    "with every overflow: give it more --iterations, or a lower optimizer.initial_loss_scale; in bf16 it means gradients "
    "that are not finite",
    "nan": "the loss is not finite at the end; try --precision bf16, a lower optimizer.lr, or a longer warm-up",
    "layout": "Megatron ran another layout than planned: an override of the recipe or the script took it back",
    "batch": "Megatron ran another batch than planned: the script or an override sets it",
    "recompute": "Megatron computed other parts again than planned: an override, or the recipe's script, took it back",
    "precision": "Megatron ran in another precision than planned: the script or an override sets it",
    "time": "slower or faster than --tolerance allows",
    "memory": "more or less memory than --tolerance allows",
    "interrupted": "ended before it was done, because this process was told to end",
}
"""What a status means that no line of the log explains."""


def _status(compared: list[Compared], failures: list[Failure], *, failed: bool, ended: str | None) -> str:
    if ended is not None:
        return ended
    if failed:
        return failures[0].kind if failures else "error"
    for start, status in STATUS_OF.items():
        if any(c.ok is False and c.counts for c in compared if c.name.startswith(start)):
            return status
    return "ok"


def _explained(status: str, compared: list[Compared]) -> list[str]:
    if status == "error" and (short := next((c for c in compared if c.name == "finished" and c.ok is False), None)):
        if not short.found and short.measured.startswith("exit code 0"):
            return [
                "it ended well and logged no iteration: does it train, and log every iteration (logger.log_interval=1)?"
            ]
        early = "early" if (short.found or 0) < (short.expected or 0) else "badly"
        return [f"it ended {early}: {short.measured}"]
    return [EXPLAINED[status]] if status in EXPLAINED else []


def _rank_words(rank: FailedRank | None) -> list[str]:
    if rank is None:
        return []
    where = f" on {rank.host}" if rank.host else ""
    how = "" if rank.status is None else f", {status_words(rank.status)}"
    return [f"rank {rank.rank}{where} failed first{how}"]


def status_words(status: int) -> str:
    """An exit status as a person reads it; a signal is negative, or 128 more than its number.

    >>> status_words(-11), status_words(137), status_words(3)
    ('ended by SIGSEGV', 'ended by SIGKILL', 'exit code 3')
    """
    number = -status if status < 0 else status - 128 if 128 < status < 128 + 65 else None
    if number is None:
        return f"exit code {status}"
    return f"ended by {SIGNALS.get(number, f'signal {number}')}"


SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM",
}  # fmt: skip


def _exit(returncode: int | None, measured: Measured, iterations: int | None, ended: str | None) -> Compared:
    done = max((i.number for i in measured.iterations), default=0)
    if iterations is None:
        # A finished log: its own last line says how many there were to be.
        of = max((i.of for i in measured.iterations), default=0)
        return Compared(
            name="finished", predicted=f"{of} iterations", measured=f"{done} in the log",
            ok=None if done and not measured.failures else bool(done), expected=of, found=done,
        )  # fmt: skip
    code = "still running, ended by us" if returncode is None or ended is not None else status_words(returncode)
    return Compared(
        name="finished",
        predicted=f"exit code 0 after {iterations} iterations",
        measured=f"{code} after {done}",
        ok=returncode == 0 and ended is None and done >= iterations,
        expected=iterations,
        found=done,
    )


def _steps(measured: Measured) -> Compared:
    steps, skipped = measured.steps, measured.skipped
    said = f"{steps} of {steps + skipped}" if measured.iterations else "no iteration"
    return Compared(
        name="optimizer steps", predicted="at least one", measured=said,
        ok=steps > 0 if measured.iterations else None, expected=1, found=steps,
    )  # fmt: skip


def _loss(measured: Measured) -> Compared:
    loss = measured.loss
    said = "no iteration" if not measured.iterations else "not a number" if loss is None else f"{loss:.4f}"
    first = next((i.loss for i in measured.iterations if i.loss is not None), None)
    if loss is not None and first is not None and len(measured.iterations) > 1:
        said = f"{first:.4f} → {loss:.4f}"
    finite = measured.loss_is_finite
    if finite is False and loss is not None:
        said += ", and then not a number"
    elif finite is None and measured.iterations:
        said = "no iteration stepped"
    return Compared(name="finite loss", predicted="finite", measured=said, ok=finite, found=loss)


def _layout(layout: Layout, seen: Mapping[str, int]) -> list[Compared]:
    wanted = layout_to_json(layout) | {"world": layout.world}
    dense = layout.ep == 1 and seen.get("ep", 1) == 1  # nothing is spread over these groups then
    names = [name for name in LAYOUT_WORDS if name in seen and not (dense and name in ("etp", "edp"))]
    if not names:
        return [Compared(name="layout", predicted=str(layout), measured="the log does not say", ok=None)]
    wrong = [name for name in names if (wanted[name] or 1) != seen[name]]
    if not wrong:
        said = " ".join(f"{name}={seen[name]}" for name in names)
        return [Compared(name="layout", predicted=str(layout), measured=said, ok=True)]
    return [
        Compared(
            name=f"layout: {LAYOUT_WORDS[name]}", predicted=str(wanted[name] or 1), measured=str(seen[name]), ok=False,
            expected=wanted[name] or 1, found=seen[name],
        )
        for name in wrong
    ]  # fmt: skip


def _recompute(layout: Layout, seen: Recompute | None) -> list[Compared]:
    if seen is None:
        return []
    want = layout.recompute
    same = want.granularity == seen.granularity and (
        set(want.modules or SELECTIVE_RECOMPUTE.modules) == set(seen.modules or SELECTIVE_RECOMPUTE.modules)
        if want.granularity == "selective"
        else str(want) == str(seen)
    )
    return [Compared(name="recompute", predicted=str(want), measured=str(seen), ok=same)]


def _batch(layout: Layout, measured: Measured, seq_length: int | None) -> list[Compared]:
    pairs = (
        ("global batch", layout.global_batch_size, measured.global_batch),
        ("micro batch", layout.micro_batch_size, measured.micro_batch),
        ("sequence length", seq_length, measured.seq_length),
    )
    return [
        Compared(name=name, predicted=f"{want:,}", measured=f"{seen:,}", ok=want == seen, expected=want, found=seen)
        for name, want, seen in pairs
        if want is not None and seen is not None
    ]


def _precision(planned: str | None, measured: Measured) -> list[Compared]:
    if planned is None or measured.precision is None:
        return []
    want = numbers_of(planned)
    return [Compared(name="precision", predicted=want, measured=measured.precision, ok=want == measured.precision)]


def numbers_of(precision: str) -> str:
    """The number formats behind a precision's name: what a log can tell of it.

    >>> numbers_of("fp8mx"), numbers_of("nvfp4"), numbers_of("fp16")
    ('bf16+fp8', 'bf16+fp4', 'fp16')
    """
    return f"bf16+{product_format(precision)}" if precision.startswith(QUANTIZED) else precision


def _compared(
    name: str, predicted: float, seen: float, band: float, tolerance: float | None, words: tuple[str, str]
) -> Compared:
    off = seen / predicted - 1 if predicted else math.inf
    allowed = band if tolerance is None else tolerance
    return Compared(
        name=name, predicted=f"{words[0]} ± {percent(allowed)}", measured=f"{words[1]} ({off:+.0%})", ok=abs(off) <= allowed,
        counts=tolerance is not None, expected=predicted, found=seen, band=allowed,
    )  # fmt: skip


def _time(candidate: Candidate, measured: Measured, device: str, tolerance: float | None) -> Compared:
    predicted, band = candidate.estimate.iteration_time_s, candidate.estimate.error_band
    took, name = measured.iteration_time_s, "iteration time"
    if device == "cpu":
        said = "not measured" if took is None else seconds(took)
        return Compared(name=name, predicted="not predicted for CPU", measured=said, ok=None, found=took)
    if took is None:
        return Compared(name=name, predicted=seconds(predicted), measured="not measured", ok=None, expected=predicted)
    return _compared(name, predicted, took, band, tolerance, (seconds(predicted), seconds(took)))


def _memory(
    memory: Memory, measured: Measured, device: str, sampled: int | None, tolerance: float | None
) -> list[Compared]:
    if device == "cpu":
        said = (
            "not measured"
            if measured.host_peak is None
            else f"{gib(measured.host_peak)} resident a rank, with Python and torch"
        )
        name = "peak memory"
        return [
            Compared(name=name, predicted="not predicted for CPU", measured=said, ok=None, found=measured.host_peak)
        ]
    sources = (
        ("allocated", memory.allocated, measured.peak_allocated),
        ("reserved", memory.reserved, measured.peak_reserved),
        ("in use", memory.peak, sampled),
    )
    compared = [
        _compared(
            f"peak memory, {what}", predicted, seen, memory.error_band, tolerance if what == "allocated" else None,
            (gib(predicted), gib(seen)),
        )
        for what, predicted, seen in sources
        if seen is not None
    ]  # fmt: skip
    if not compared and measured.early_allocated is not None:
        early = measured.early_allocated
        said = f"at least {gib(early)}, printed before the optimizer's states were there"
        return [Compared(name="peak memory, allocated", predicted=gib(memory.allocated), measured=said,
                      ok=False if early > memory.allocated * (1 + memory.error_band) else None, counts=False,
                      expected=memory.allocated, found=early)]  # fmt: skip
    if tolerance is not None and compared and not any(c.counts for c in compared):
        # Torch did not say: the largest that anybody saw decides.
        compared = [replace(c, counts=c is compared[-1]) for c in compared]
    return compared or [
        Compared(name="peak memory", predicted=gib(memory.peak), measured="not measured", ok=None, expected=memory.peak)
    ]


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

"""Read a training's log as it grows: layout, iterations, memory, and what went wrong.

Lines of Megatron Bridge 0.3 to 0.6, of Megatron-LM from 2022 to Core 0.19, and of our CPU runners. Lines of many ranks
come mixed, sometimes two in one: everything is searched for inside a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from parlaunch.verdict import Failure, Iteration, Measured, OutOfMemory
from parlaunch_launch.symptoms import CAUSE_FIRST, COMPONENT_OF, GENERAL, SYMPTOMS

ITERATION = re.compile(r"iteration +(\d+)/ *(\d+) \|(.*)")
TOOK = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
NUMBER = r"([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf|NAN|INF))"
LOSS = re.compile(rf"\bloss: {NUMBER} \|")  # of a model that is no language model
LM_LOSS = re.compile(rf"\blm loss: {NUMBER} \|")
NUMBERS = {
    "grad_norm": re.compile(r"grad norm: (\S+) \|"),
    "tflops": re.compile(r"throughput per GPU \(TFLOP/s/GPU\): (\S+) \|"),
    "skipped": re.compile(r"number of skipped iterations: +(\d+)"),
    "nans": re.compile(r"number of nan iterations: +(\d+)"),
}
BRIDGE_TFLOPS = re.compile(r"GPU utilization: ([\d.]+) ?MODEL_TFLOP/s/GPU")

LAYOUT = {
    "world": re.compile(r"using world size: (\d+)"),
    "dp": re.compile(r"[ ,]data-parallel[ -]size: (\d+)"),
    "cp": re.compile(r"[ ,]context-parallel size: (\d+)"),
    "tp": re.compile(r"(?:[ ,]tensor-model-parallel size|initialized tensor model parallel with size):? (\d+)"),
    "pp": re.compile(r"(?:[ ,]pipeline-model-parallel size|initialized pipeline model parallel with size):? (\d+)"),
    "vp": re.compile(r"virtual-pipeline-model-parallel size: (\d+)"),
    "ep": re.compile(r"expert-model-parallel size: (\d+)"),
    "etp": re.compile(r"expert-tensor-parallel size: (\d+)"),
    "edp": re.compile(r"expert-data-parallel size: (\d+)"),
}
CONFIGURED = {
    "tensor_model_parallel_size": "tp", "pipeline_model_parallel_size": "pp", "context_parallel_size": "cp",
    "virtual_pipeline_model_parallel_size": "vp", "expert_model_parallel_size": "ep", "expert_tensor_parallel_size": "etp",
}  # fmt: skip
"""Fields of the model section in the configuration that Bridge prints; it holds what differs from Megatron's default."""
SECTION = re.compile(
    r"^(?:\[default\d+\]: ?)?(?:\[(\w+)\](?: Non-default values.*)?|(\w+)):\s*$|^\[(\w+)\] Non-default values"
)
FIELD = re.compile(r"^(?:\[default\d+\]: ?)? +(\w+): (\d+)\b")
UNSAID = {"tp": 1, "pp": 1, "cp": 1, "ep": 1}
"""Bridge 0.5 and newer print what differs from Megatron's default: a size that is not there is 1."""

ALLOCATED = (
    (re.compile(r"max allocated: ([\d.]+)"), 2**20),
    (re.compile(r"mem-max-allocated-gigabytes: ([\d.]+)"), 10**9),
)
RESERVED = (
    (re.compile(r"max reserved: ([\d.]+)"), 2**20),
    (re.compile(r"mem-max-reserved-gigabytes: ([\d.]+)"), 10**9),
)
RESIDENT = re.compile(r"host memory \(MB\) \| max resident: ([\d.]+)")

SIZE = r"([\d.]+ [KMGT]?i?B|0 bytes)"
OUT_OF_MEMORY = {
    "tried": re.compile(rf"Tried to allocate {SIZE}"),
    "capacity": re.compile(rf"total capac?i?ty of {SIZE}|{SIZE} total capacity"),
    "free": re.compile(rf"of which {SIZE} is free|{SIZE} free"),
    "allocated": re.compile(rf"allocated memory {SIZE} is allocated by PyTorch|{SIZE} already allocated"),
    "unallocated": re.compile(rf"{SIZE} is reserved by PyTorch but unallocated"),
}
"""torch's message before and after 2.1; "capacty" is how torch 2.1 to 2.2 spell it."""
SCALE = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
FRAME = re.compile(r'File "([^"]+)", line \d+, in (\S+)')


def size(text: str) -> int:
    """Bytes of torch's "2.00 GiB".

    >>> size("2.00 GiB"), size("0 bytes")
    (2147483648, 0)
    """
    number, unit = text.split()
    return int(float(number) * SCALE[unit[0].lower()])


class LogReader:
    """Feed it lines; `measured` is what they show so far."""

    def __init__(self) -> None:
        self._layout: dict[str, int] = {}
        self._configured: dict[str, int] = {}
        self._iterations: dict[int, Iteration] = {}
        self._peaks: dict[str, int] = {}
        self._failures: dict[str, Failure] = {}
        self._section: str | None = None
        self._frames: dict[str, list[tuple[str, str]]] = {}
        self._oom: OutOfMemory | None = None
        self._tflops: float | None = None

    @property
    def last_iteration(self) -> Iteration | None:
        return self._iterations[max(self._iterations)] if self._iterations else None

    def feed(self, line: str) -> None:
        line = line.rstrip("\n")
        if (found := ITERATION.search(line)) and (took := TOOK.search(found[3])):
            self._iteration(int(found[1]), int(found[2]), float(took[1]) / 1000, found[3])
        elif found := BRIDGE_TFLOPS.search(line):
            self._tflops = float(found[1])
        self._sizes(line)
        self._memory(line)
        self._trouble(line)

    def _iteration(self, number: int, of: int, took: float, rest: str) -> None:
        loss = LM_LOSS.search(rest) or LOSS.search(rest)
        values = {name: float(m[1]) for name, pattern in NUMBERS.items() if (m := pattern.search(rest))}
        tflops = values.get("tflops", self._tflops)  # Bridge prints it on a line of its own, before this one
        self._tflops = None
        self._well()
        self._iterations[number] = Iteration(
            number=number, of=of, seconds=took, loss=float(loss[1]) if loss else None, grad_norm=values.get("grad_norm"),
            tflops=tflops, skipped=int(values.get("skipped", 0)), nans=int(values.get("nans", 0)),
        )  # fmt: skip

    def _well(self) -> None:
        """Forget the exceptions so far: whoever got further than them had caught them."""
        for kind in GENERAL:
            self._failures.pop(kind, None)

    def _sizes(self, line: str) -> None:
        if "parallel" in line:
            for name, pattern in LAYOUT.items():
                if found := pattern.search(line):
                    self._layout[name] = int(found[1])
                    self._well()
        if found := SECTION.match(line):
            self._section = next(name for name in found.groups() if name)
            if self._section == "model" and "Non-default" in line:
                self._configured = {**UNSAID, **self._configured}
        elif self._section == "model" and (found := FIELD.match(line)) and found[1] in CONFIGURED:
            self._configured[CONFIGURED[found[1]]] = int(found[2])
        elif self._section == "dataset" and (found := FIELD.match(line)) and found[1] == "data_parallel_size":
            self._configured["dp"] = int(found[2])

    def _memory(self, line: str) -> None:
        if "memory" not in line:
            return
        for name, patterns in (("allocated", ALLOCATED), ("reserved", RESERVED), ("host", ((RESIDENT, 2**20),))):
            for pattern, unit in patterns:
                if found := pattern.search(line):
                    self._peaks[name] = max(self._peaks.get(name, 0), int(float(found[1]) * unit))

    def _trouble(self, line: str) -> None:
        rank = (re.match(r"\[?(?:rank)?(\d+)\]?[:>]", line) or [line[:0]])[0]
        if found := FRAME.search(line):
            self._frames.setdefault(rank, []).append((found[1], found[2]))
            return
        for symptom in SYMPTOMS:
            if (match := symptom.pattern.search(line)) is None:
                continue
            if symptom.kind in GENERAL:
                self._well()
            if symptom.kind not in self._failures:
                sentence = symptom.sentence.format(*(g or "" for g in match.groups()))
                self._failures[symptom.kind] = Failure(
                    kind=symptom.kind, sentence=sentence, todo=symptom.todo, line=line.strip()[:400]
                )
                if symptom.kind == "oom":
                    self._oom = self._memory_error(line, self._frames.get(rank, []))
            break
        if "Traceback (most recent call last)" in line:
            self._frames[rank] = []

    def _memory_error(self, line: str, frames: Iterable[tuple[str, str]]) -> OutOfMemory:
        said = {}
        for name, pattern in OUT_OF_MEMORY.items():
            if found := pattern.search(line):
                said[name] = size(next(group for group in found.groups() if group))
        component = None
        for path, function in frames:  # the innermost frame that tells counts
            for pattern, name in COMPONENT_OF:
                if pattern.search(f"{path}:{function}"):
                    component = name
                    break
        return OutOfMemory(**said, component=component)

    def measured(self) -> Measured:
        """What was read. The failures come with the likeliest cause first: what a peer saw stands behind what broke."""
        failures = sorted(self._failures.values(), key=lambda f: CAUSE_FIRST.index(f.kind))
        layout = {**self._configured, **self._layout}
        return Measured(
            layout=layout,
            iterations=tuple(self._iterations[n] for n in sorted(self._iterations)),
            peak_allocated=self._peaks.get("allocated"),
            peak_reserved=self._peaks.get("reserved"),
            host_peak=self._peaks.get("host"),
            failures=tuple(failures),
            out_of_memory=self._oom,
        )


def read(text: str) -> Measured:
    """A whole log."""
    reader = LogReader()
    for line in text.splitlines():
        reader.feed(line)
    return reader.measured()

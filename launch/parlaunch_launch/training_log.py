"""Read a training's log as it grows: layout, iterations, memory, and what went wrong.

Lines of Megatron Bridge 0.3 to 0.6, of Megatron-LM from 2020 to Core 0.19, of NeMo 1 and 2, and of our CPU runners. Lines of
many ranks come mixed, sometimes two in one, with the prefixes of torchrun, srun and mpirun: everything is searched for inside
a line.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from parlaunch.check.symptoms import CAUSE_FIRST, COMPONENT_OF, FORGIVEN, GENERAL, HARMLESS, symptom_of
from parlaunch.check.verdict import FailedRank, Failure, Iteration, Measured, OutOfMemory
from parlaunch.model.layout import NO_RECOMPUTE, Recompute, selective
from parlaunch_launch.ends import Failure as Ended
from parlaunch_launch.ends import code_of, first

PREFIX = re.compile(
    r"\[default(?P<tee>\d+)\]: ?|\[rank(?P<torch>\d+)\]: ?|\[\d+,(?P<mpi>\d+)\]<std(?:out|err)>: ?|(?P<srun>\d{1,6}): "
)
"""Who printed a line: torchrun's --tee (a local rank), torch, mpirun, srun --label (a task)."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

ITERATION = re.compile(r"iteration +(\d+)/ *(\d+) \|(.*)")
TOOK = re.compile(r"elapsed time per iteration \((m?s)\): ([\d.]+)")
NUMBER = r"([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf|NAN|INF))"
LOSS = re.compile(rf"\bloss: {NUMBER} \|")  # of a model that is no language model
LM_LOSS = re.compile(rf"\blm loss: {NUMBER} \|")
NUMBERS = {
    "grad_norm": re.compile(r"grad norm: (\S+) \|"),
    "tflops": re.compile(r"(?:throughput per GPU \(TFLOP/s/GPU\)|TFLOPs): (\S+) \|"),
    "skipped": re.compile(r"number of skipped iterations: +(\d+)"),
    "nans": re.compile(r"number of nan iterations: +(\d+)"),
    "global_batch": re.compile(r"global batch size: +(\d+)"),
}
BRIDGE_TFLOPS = re.compile(r"GPU utilization: ([\d.]+) ?MODEL_TFLOP/s/GPU")

NEMO2 = re.compile(r"Training epoch (?P<epoch>\d+), iteration (?P<at>\d+)/(?P<of>\d+) \|(?P<rest>.*)")
NEMO1 = re.compile(
    r"Epoch (?P<epoch>\d+): .{0,500}?(?:\| +(?P<at>\d+)/(?P<of>\d+)|: +\d+it) \[(?P<rest>[^\]]{0,2000})\]"
)
"""A line of NeMo 2's ProgressPrinter, and the bar of Lightning that NeMo 1 leaves, which has no total where it knows none."""
NEMO = {
    "seconds": re.compile(rf"train_step_timing in s[:=] ?{NUMBER}"),
    "loss": re.compile(rf"reduced_train_loss[:=] ?{NUMBER}"),
    "grad_norm": re.compile(rf"grad_norm[:=] ?{NUMBER}"),
    "tflops": re.compile(rf"TFLOPS_per_GPU[:=] ?{NUMBER}"),
    "global_batch": re.compile(rf"global_batch_size[:=] ?{NUMBER}"),
    "step": re.compile(rf"global_step[:=] ?{NUMBER}"),
}

LAYOUT = {
    "world": re.compile(r"using world size: (\d+)"),
    "dp": re.compile(r"[ ,]data-parallel[ -]size: (\d+)"),
    "cp": re.compile(r"[ ,]context-parallel size: (\d+)"),
    "tp": re.compile(
        r"(?:[ ,]tensor-model-parallel size|[ ,]model-parallel size|"
        r"initialized tensor model parallel with size):? (\d+)"
    ),
    "pp": re.compile(r"(?:[ ,]pipeline-model-parallel size|initialized pipeline model parallel with size):? (\d+)"),
    "vp": re.compile(r"virtual-pipeline-model-parallel size: (\d+)"),
    "ep": re.compile(r"expert-model-parallel size: (\d+)"),
    "etp": re.compile(r"expert-tensor-parallel size: (\d+)"),
    "edp": re.compile(r"expert-data-parallel size: (\d+)"),
}
GROUPS = {
    "tp": re.compile(r"Rank \d+ has tensor model parallel group: \[([\d, ]+)\]"),
    "pp": re.compile(r"Rank \d+ has pipeline model parallel group: \[([\d, ]+)\]"),
    "cp": re.compile(r"Rank \d+ has context parallel group: \[([\d, ]+)\]"),
    "dp": re.compile(r"Rank \d+ has data parallel group ?: \[([\d, ]+)\]"),
    "ep": re.compile(r"Rank \d+ has expert model parallel group: \[([\d, ]+)\]"),
}
"""NeMo names the members of each group."""
NEMO_WORLD = re.compile(r"GLOBAL_RANK: \d+, MEMBER: \d+/(\d+)")  # of Lightning
SIZES = {
    "tensor_model_parallel_size": "tp", "pipeline_model_parallel_size": "pp", "context_parallel_size": "cp",
    "virtual_pipeline_model_parallel_size": "vp", "expert_model_parallel_size": "ep", "expert_tensor_parallel_size": "etp",
}  # fmt: skip
"""Fields of the model section in the configuration that Bridge prints; it holds what differs from Megatron's default."""
ARGUMENT = re.compile(r"^\s*(\w+) \.{3,} (.+?)\s*$")  # Megatron-LM's list of its arguments
ARGUMENTS = SIZES | {"world_size": "world", "data_parallel_size": "dp"}
SECTION = re.compile(r"^(?:\[(\w+)\](?: Non-default values.*)?|(\w+)):\s*$|^\[(\w+)\] Non-default values")
FIELD = re.compile(r"^ +(\w+): '?([\w.]+|\[[^\]]*\])")
LISTED = re.compile(r"^ +(\w+):\s*$|^ +- '?([\w.]+)'?\s*$")  # a list in YAML, an entry a line
RECOMPUTE = {
    "recompute_granularity": "granularity", "recompute_method": "method", "recompute_num_layers": "num_layers",
    "recompute_modules": "modules",
    "activations_checkpoint_method": "method", "activations_checkpoint_num_layers": "num_layers",  # Megatron-LM until 2022
}  # fmt: skip
SHAPE = ("num_layers", "hidden_size")
"""Sizes by which a log's model is told from another."""
UNSAID = {"tp": 1, "pp": 1, "cp": 1, "ep": 1}
"""Bridge 0.5 and newer print what differs from Megatron's default: a size that is not there is 1."""

STARTS = re.compile(
    r"using world size: \d|> initialized tensor model parallel with size|^-+ arguments -+|\] Non-default values|"
    r"Rank 0 has tensor model parallel group"
)
"""What the first rank prints as a run begins."""

AFTER = re.compile(r"after (\d+) iterations?\)? memory")
ALLOCATED = (
    (re.compile(r"max allocated: ([\d.]+)"), 2**20),
    (re.compile(r"mem-max-allocated-gigabytes: ([\d.]+)"), 10**9),
    (re.compile(r"mem-max-allocated-bytes: (\d+)"), 1),
    (re.compile(r"max_memory_allocated: ([\d.]+(?:e[+]\d+)?)"), 1),  # NeMo 2
)
RESERVED = (
    (re.compile(r"max reserved: ([\d.]+)"), 2**20),
    (re.compile(r"mem-max-reserved-gigabytes: ([\d.]+)"), 10**9),
    (re.compile(r"mem-max-reserved-bytes: (\d+)"), 1),
    (re.compile(r"max_memory_reserved: ([\d.]+(?:e[+]\d+)?)"), 1),
)
RESIDENT = re.compile(r"host memory \(MB\) \| max resident: ([\d.]+)")

SIZE = r"(?<![\d.])([\d.]+ [KMGT]?i?B|0 bytes)"  # begun anywhere in a long number, it would take for ever
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

ROOT_CAUSE = re.compile(r"Root Cause(?: \(first observed failure\))?:")
ROOT_FIELD = re.compile(r"^\s*(time|host|rank|exitcode)\s*: (.*)$")
ROOT_LINES = 9
"""Lines that torchrun gives to the first failure: its number, time, host, rank, exit code, files and a message."""

WAITED = re.compile(r"Rank (\d+)\].*(?:Watchdog caught|Timeout at NCCL work)")
ENQUEUED = re.compile(r"Rank (\d+)\].*last enqueued (?:NCCL )?work: (-?\d+)")
LONGEST = 1 << 14
"""Bytes of a line that are looked at: a group of two thousand ranks, and no file that a program printed as one line."""
CUT = b" (...) "  # no number goes on behind it
ENDS = re.compile(rb"[\r\n]")
MANY_RANKS = 8
"""More ranks than these are not named one by one."""
LAST_LINES = 15


def size(text: str) -> int:
    """Bytes of torch's "2.00 GiB".

    >>> size("2.00 GiB"), size("0 bytes")
    (2147483648, 0)
    """
    number, unit = text.split()
    return int(float(number) * SCALE[unit[0].lower()])


def iterates(line: str) -> bool:
    """Whether a line says how long an iteration took."""
    plain = ANSI.sub("", line)
    if (found := ITERATION.search(plain)) and TOOK.search(found[3]):
        return True
    found = NEMO2.search(plain) or NEMO1.search(plain)
    return found is not None and NEMO["seconds"].search(found["rest"]) is not None


def without_prefix(line: str) -> tuple[str, str]:
    """The line as the program wrote it, and who wrote it: "" when nothing tells.

    >>> without_prefix("3: [default1]:hello")
    ('hello', '3/1')
    """
    said, who = ANSI.sub("", line), []
    while (found := PREFIX.match(said)) is not None:
        who.append(next(g for g in found.groups() if g is not None))
        said = said[found.end() :]
    return said, "/".join(who)


class Lines:
    """Bytes as they come, cut into lines: at newlines, and at the carriage returns with which progress bars go over themselves.
    Of a line that is longer than LONGEST its beginning and its end are left; empty ones are left out."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[str]:
        """The lines that are whole by now."""
        more, *others = ENDS.split(data)
        whole = [self._rest + more, *others]
        self._rest = _ends(whole.pop())
        return [_ends(line).decode(errors="replace") for line in whole if line]

    def end(self) -> list[str]:
        """What came behind the last of them."""
        return self.cut(b"\n")


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a log."""
    lines = Lines()
    for chunk in chunks:
        yield from lines.cut(chunk)
    yield from lines.end()


def _ends(line: bytes) -> bytes:
    return line if len(line) <= LONGEST else line[: LONGEST // 2] + CUT + line[len(CUT) - LONGEST // 2 :]


def read_run(logs: Iterable[Iterable[str]]) -> Measured:
    """What the logs of one run, each as its lines, show together."""
    reader = LogReader()
    for lines in logs:
        reader.another()
        for line in lines:
            reader.feed(line)
    return reader.measured()


class LogReader:
    """Feed it lines; `measured` is what they show so far."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._settled: list[Failure] = []  # of logs that were read before
        self._before: Measured | None = None  # the same log's runs that this one came after
        self._begin()

    def _begin(self) -> None:
        """Nothing is known of the run."""
        self._here = False  # whether this log has iterations of it
        self._layout: dict[str, int] = {}
        self._configured: dict[str, int] = {}
        self._numbers: dict[str, str] = {}  # bf16, fp8, … as the configuration says them
        self._iterations: dict[int, Iteration] = {}
        self._peaks: dict[tuple[str, int | None], int] = {}  # by kind and by the iteration they were printed after
        self._failures: dict[str, Failure] = {}
        self._section: str | None = None
        self._recomputed: dict[str, str] = {}  # as RECOMPUTE names it
        self._list: str | None = None  # the field whose entries follow
        self._frames: dict[str, list[tuple[str, str]]] = {}
        self._oom: OutOfMemory | None = None
        self._tflops: float | None = None
        self._roots: list[dict[str, str]] = []  # torchrun's reports, one a node
        self._root_left = 0
        self._waited: set[int] = set()
        self._enqueued: dict[int, int] = {}

    @property
    def last_iteration(self) -> Iteration | None:
        return self._iterations[max(self._iterations)] if self._iterations else None

    def feed(self, raw: str) -> None:
        line, rank = without_prefix(raw.rstrip("\r\n"))
        if line.strip():
            self._last.append(line.strip()[:300])
        if self._here and STARTS.search(line):  # requeued, or started again by torchrun
            self._before = self.measured()
            self._begin()
        if (found := ITERATION.search(line)) and (took := TOOK.search(found[3])):
            unit = 1000 if took[1] == "ms" else 1
            self._iteration(int(found[1]), int(found[2]), float(took[2]) / unit, found[3])
        elif found := BRIDGE_TFLOPS.search(line):
            self._tflops = float(found[1])
        elif (found := NEMO2.search(line) or NEMO1.search(line)) and (took := NEMO["seconds"].search(found["rest"])):
            self._nemo(found, float(took[1]))
        self._sizes(line)
        self._memory(line)
        self._root_cause(line)
        self._trouble(line, rank)

    def another(self) -> None:
        """What follows is of another log of the same run: what goes well there forgives nothing that was read until here."""
        self._settled += self._failures.values()
        self._here = False
        self._failures, self._frames, self._section, self._list, self._root_left = {}, {}, None, None, 0

    # --- iterations

    def _iteration(self, number: int, of: int, took: float, rest: str) -> None:
        loss = LM_LOSS.search(rest) or LOSS.search(rest)
        if loss is None and not rest.rstrip().endswith("|"):
            return  # cut off before its loss
        values = {name: float(m[1]) for name, pattern in NUMBERS.items() if (m := pattern.search(rest))}
        tflops = values.get("tflops", self._tflops)  # Bridge prints it on a line of its own, before this one
        self._tflops = None
        self._here = True
        self._well()
        batch = values.get("global_batch")
        self._iterations[number] = Iteration(
            number=number, of=of, seconds=took, loss=float(loss[1]) if loss else None, grad_norm=values.get("grad_norm"),
            tflops=tflops, global_batch=None if batch is None else int(batch), skipped=int(values.get("skipped", 0)),
            nans=int(values.get("nans", 0)),
        )  # fmt: skip

    def _nemo(self, found: re.Match[str], took: float) -> None:
        """NeMo 2 counts iterations from 0, its first releases from 1; steps always count from 0. Both print four digits of a
        float, so a step from 10,000 on is the bar's to tell; the bar begins anew with each epoch."""
        values = {name: float(m[1]) for name, pattern in NEMO.items() if (m := pattern.search(found["rest"]))}
        step, at = values.get("step"), None if found["at"] is None else int(found["at"])
        of = 0 if found["of"] is None else int(found["of"])
        if found.re is NEMO2:
            assert at is not None
            from_zero = step is None or int(step) >= at
            number, of = at + from_zero, of + from_zero
        elif at is not None and (step is None or found["epoch"] == "0"):
            number = at
        else:
            number = int(step or 0) + 1
        self._here = True
        self._well()
        batch = values.get("global_batch")
        self._iterations[number] = Iteration(
            number=number, of=of or number, seconds=took, loss=values.get("loss"),
            grad_norm=values.get("grad_norm"), tflops=values.get("tflops"),
            global_batch=None if batch is None else int(batch),
        )  # fmt: skip

    def _well(self) -> None:
        """Forget the exceptions so far: whoever got further than them had caught them."""
        for kind in FORGIVEN:
            self._failures.pop(kind, None)

    # --- sizes

    def _sizes(self, line: str) -> None:
        if "parallel" in line:
            for name, pattern in LAYOUT.items():
                if found := pattern.search(line):
                    self._layout[name] = int(found[1])
                    self._well()
            for name, pattern in GROUPS.items():
                if found := pattern.search(line):
                    self._layout[name] = found[1].count(",") + 1
        elif found := NEMO_WORLD.search(line):
            self._layout["world"] = int(found[1])
        if found := ARGUMENT.match(line):
            self._argument(found[1], found[2])
        elif found := SECTION.match(line):
            self._section = next(name for name in found.groups() if name)
            if self._section == "model" and "Non-default" in line:
                self._configured = {**UNSAID, **self._configured}
                self._numbers.setdefault("said", "all")
        elif self._section is not None and (found := FIELD.match(line)):
            self._list = None
            self._field(self._section, found[1], found[2], nested=line[2] == " ")
        elif self._section == "model" and (found := LISTED.match(line)):
            self._listed(found[1], found[2])

    def _argument(self, name: str, value: str) -> None:
        """One of Megatron-LM's arguments, of which it prints all."""
        if name in ARGUMENTS and value.isdigit():
            self._configured[ARGUMENTS[name]] = int(value)
        elif name in RECOMPUTE:
            self._recomputed.setdefault(RECOMPUTE[name], value)
        elif name in ("bf16", "fp16", "fp8", "fp4", "micro_batch_size", "seq_length", *SHAPE):
            self._numbers[name] = value
            if name == "fp16":  # every release lists it: without it, the list is cut off
                self._numbers.setdefault("said", "all")

    def _field(self, section: str, name: str, value: str, *, nested: bool) -> None:
        """One field of a section; a `nested` size is an encoder's, or another part's."""
        if nested and name in SHAPE:
            return
        if section == "model" and name in SIZES and value.isdigit():
            self._configured[SIZES[name]] = int(value)
        elif section == "model" and name in RECOMPUTE:
            self._recomputed[RECOMPUTE[name]] = value
        elif section == "dataset" and name == "data_parallel_size" and value.isdigit():
            self._configured["dp"] = int(value)
        elif (section, name) in (("train", "micro_batch_size"), ("dataset", "seq_length"), ("model", "seq_length")) or (
            section == "model" and name in ("bf16", "fp16", "fp8", "fp4", "micro_batch_size", *SHAPE)
        ):
            self._numbers[name] = value

    def _listed(self, name: str | None, entry: str | None) -> None:
        """The beginning of a list in YAML, or an entry of it."""
        if name is not None:
            self._list = name
        elif self._list == "recompute_modules":
            self._recomputed["modules"] = f"{self._recomputed.get('modules', '')} {entry}"

    def _recompute(self) -> Recompute | None:
        """What is computed again; None where the log shows no configuration."""
        said = {k: v for k, v in self._recomputed.items() if v.lower() not in ("none", "null")}
        layers = _whole(said.get("num_layers"))
        match said.get("granularity"):
            case "full":
                return Recompute(granularity="full", method=said.get("method", "uniform"), num_layers=layers or 1)
            case "selective":
                return selective(re.findall(r"\w+", said.get("modules", "")) or None)
        if "granularity" not in self._recomputed and "method" in said:  # Megatron-LM until 2022
            return Recompute(granularity="full", method=said["method"], num_layers=layers or 1)
        known = "granularity" in self._recomputed or "method" in self._recomputed or "said" in self._numbers
        return NO_RECOMPUTE if known else None

    def _precision(self) -> str | None:
        """The formats of the numbers; None where the log shows no configuration."""
        said = {k for k, v in self._numbers.items() if v not in ("False", "None")}
        base = next((name for name in ("fp16", "bf16") if name in said), "fp32" if "said" in said else None)
        return base and base + next((f"+{name}" for name in ("fp4", "fp8") if name in said), "")

    # --- memory

    def _memory(self, line: str) -> None:
        if "memory" not in line:
            return
        after = AFTER.search(line)
        at = int(after[1]) if after else None
        for name, patterns in (("allocated", ALLOCATED), ("reserved", RESERVED), ("host", ((RESIDENT, 2**20),))):
            for pattern, unit in patterns:
                if found := pattern.search(line):
                    key = (name, at)
                    self._peaks[key] = max(self._peaks.get(key, 0), int(float(found[1]) * unit))

    def _peak(self, name: str, *, early: bool = False) -> int | None:
        """The largest that was printed once the optimizer had stepped; `early`: until then."""
        lines = self._ordered()
        first = next((i.number for i in lines if not i.skipped), None)
        if first is not None and first == lines[0].number:
            first = 1  # a log may begin later than its training, and speak of several iterations at once
        values = [
            v
            for (kind, at), v in self._peaks.items()
            if kind == name and (at is not None and (first is None or at <= first)) == early
        ]
        return max(values, default=None)

    def _ordered(self) -> list[Iteration]:
        return [self._iterations[n] for n in sorted(self._iterations)]

    # --- what went wrong

    def _root_cause(self, line: str) -> None:
        """torchrun's report: which rank failed first, and how."""
        if ROOT_CAUSE.search(line):
            self._roots.append({})
            self._root_left = ROOT_LINES
        elif self._root_left > 0:
            self._root_left -= 1
            if found := ROOT_FIELD.match(line):
                self._roots[-1].setdefault(found[1], found[2])

    def _failed_rank(self) -> FailedRank | None:
        """Of several nodes' reports the one that was the cause of the others."""
        known: dict[int, tuple[Ended, FailedRank]] = {}
        for root in self._roots:
            if (ranks := re.match(r"(\d+) \(local_rank: (\d+)\)", root.get("rank", ""))) is None:
                continue
            status = re.match(r"-?\d+", root.get("exitcode", ""))
            rank = FailedRank(
                rank=int(ranks[1]),
                local_rank=int(ranks[2]),
                host=root.get("host"),
                status=int(status[0]) if status else None,
            )
            known[rank.rank] = (Ended(code_of(rank.status or 1), _when(root.get("time", "")), rank.rank), rank)
        return known[first([e for e, _ in known.values()]).rank or 0][1] if known else None

    def _trouble(self, line: str, rank: str) -> None:
        rank = rank or (re.match(r"\[?(?:rank)?(\d+)\]?[:>]", line) or [""])[0]
        if found := WAITED.search(line):
            self._waited.add(int(found[1]))
        if found := ENQUEUED.search(line):
            self._enqueued[int(found[1])] = int(found[2])
        if found := FRAME.search(line):
            self._frames.setdefault(rank, []).append((found[1], found[2]))
            return
        if (known := symptom_of(line)) is not None and known[0].kind != HARMLESS:
            symptom, match = known
            if symptom.kind in GENERAL:
                for kind in GENERAL:
                    self._failures.pop(kind, None)
            if symptom.kind not in self._failures:
                self._failures[symptom.kind] = Failure(
                    kind=symptom.kind,
                    sentence=symptom.said(match),
                    todo=symptom.todo,
                    line=line.strip()[:400],
                    switch=symptom.switch,
                )
                if symptom.kind == "oom":
                    self._oom = self._memory_error(line, self._frames.get(rank, []))
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

    def _missing(self, world: int | None) -> str:
        """Who did not come to a collective that timed out, as far as those who waited tell."""
        if self._enqueued and (least := min(self._enqueued.values())) < max(self._enqueued.values()):
            behind = sorted(r for r, n in self._enqueued.items() if n == least)
            if len(behind) <= MANY_RANKS:
                return f"; {_ranks(behind)} came only to collective {least} of {max(self._enqueued.values())}"
        silent = sorted(set(range(world or 0)) - self._waited)
        if self._waited and 0 < len(silent) <= MANY_RANKS:
            return f"; {_ranks(silent)} reported no time-out: the others wait for it"
        return ""

    def measured(self) -> Measured:
        """What was read: of the last run in the log, with what one before it in the same way had measured."""
        now, before = self._measured(), self._before
        if before is None:
            return now
        if not now.iterations and not now.failures:  # it came to nothing
            return replace(before, last_lines=now.last_lines)
        if not now.iterations and before.layout == now.layout:
            return replace(
                before, failures=now.failures, failed_rank=now.failed_rank, out_of_memory=now.out_of_memory,
                last_lines=now.last_lines,
            )  # fmt: skip
        if _way(before) != _way(now):
            return now
        every = {i.number: i for i in (*before.iterations, *now.iterations)}
        return replace(
            now, iterations=tuple(every[n] for n in sorted(every)), host_peak=_larger(before.host_peak, now.host_peak),
            peak_allocated=_larger(before.peak_allocated, now.peak_allocated),
            peak_reserved=_larger(before.peak_reserved, now.peak_reserved),
        )  # fmt: skip

    def _measured(self) -> Measured:
        """What was read of the last run. The failures come with the likeliest cause first: what a peer saw stands behind what broke."""
        every = {f.kind: f for f in reversed([*self._settled, *self._failures.values()])}
        failures = sorted(every.values(), key=lambda f: CAUSE_FIRST.index(f.kind))
        layout = {**self._configured, **self._layout}
        failures = [
            replace(f, sentence=f.sentence + self._missing(layout.get("world"))) if f.kind == "hang" else f
            for f in failures
        ]
        allocated = self._peak("allocated")
        return Measured(
            layout=layout,
            micro_batch=_whole(self._numbers.get("micro_batch_size")),
            seq_length=_whole(self._numbers.get("seq_length")),
            num_layers=_whole(self._numbers.get("num_layers")),
            hidden_size=_whole(self._numbers.get("hidden_size")),
            precision=self._precision(),
            recompute=self._recompute(),
            iterations=tuple(self._ordered()),
            peak_allocated=allocated,
            peak_reserved=self._peak("reserved"),
            early_allocated=self._peak("allocated", early=True) if allocated is None else None,
            host_peak=self._peak("host"),
            failures=tuple(failures),
            out_of_memory=self._oom,
            failed_rank=self._failed_rank(),
            last_lines=tuple(self._last),
        )


def _way(run: Measured) -> tuple[object, ...]:
    """How a run was spread and what it computed."""
    batch = {i.global_batch for i in run.iterations}
    return dict(run.layout), run.micro_batch, run.seq_length, run.precision, run.recompute, batch


def _larger(one: int | None, other: int | None) -> int | None:
    return max((n for n in (one, other) if n is not None), default=None)


def _when(text: str) -> float:
    """Seconds of torchrun's "2026-01-31_12:00:00"; 0 where it does not say. Only differences count."""
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%d_%H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _ranks(numbers: list[int]) -> str:
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(map(str, numbers))


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None

"""What NVML answered, and where the answers come from: the driver on this machine, or a recording.

The driver is asked in a child process under a time limit. A GPU that makes it hang is named, and the others are asked
again without it; a child that cannot even be killed is left behind, and does not keep us from exiting or from `exec`.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

# -S: no site, hence no .pth hooks (the retired `pynvml` package has one that costs 20 ms); the path is handed over.
BOOT = "import sys,json;sys.path[:]=json.loads(sys.argv[1]);from parlaunch_probes.nvml_reader import main;main(sys.argv[2])"

PATIENCE_S = 45.0
"""How long all of NVML's answers may take. Without persistence mode the driver wakes one GPU after another, seconds each, and a Python
from a cold file system is slow to start; Slurm gives its HealthCheckProgram a minute."""

REAP_S = 1.0
"""How long a child that was killed may take to go."""


@dataclass(slots=True)
class NvmlReading:
    """Answers as JSON: `system` and every GPU have `answers` and, for what was not answered, `reasons`."""

    error: str | None = None  # why there are none at all
    system: dict[str, Any] = field(default_factory=dict)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[list[Any]] = field(default_factory=list)  # [a, b, PCI level, P2P read, P2P NVLink]
    late: list[str] = field(default_factory=list)  # what did not answer in time
    old_bindings: str | None = None

    def take(self, piece: Mapping[str, Any]) -> None:
        """Add one line of the reader."""
        if "error" in piece:
            self.error = str(piece["error"])
        elif "old_bindings" in piece:
            self.old_bindings = str(piece["old_bindings"])
        elif "system" in piece:
            self.system = piece["system"]
        elif "gpu" in piece:
            self.gpus = [g for g in self.gpus if g["index"] != piece["gpu"]["index"]] + [piece["gpu"]]
        elif "pairs" in piece:
            self.pairs = piece["pairs"]
            for gpu in self.gpus:
                if why := piece.get("lost", {}).get(str(gpu["index"])):
                    gpu["lost"] = why

    def to_json(self) -> dict[str, Any]:
        return {
            "error": self.error,
            "system": self.system,
            "gpus": self.gpus,
            "pairs": self.pairs,
            "late": self.late,
            "old_bindings": self.old_bindings,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NvmlReading:
        known = {
            k: data[k] for k in ("error", "system", "gpus", "pairs", "late", "old_bindings") if data.get(k) is not None
        }
        return cls(**known)


class Nvml(Protocol):
    """Whoever can say what NVML says."""

    def read(self, timeout_s: float) -> NvmlReading:
        """All answers that came within the time. Does not raise."""
        ...


@dataclass(frozen=True, slots=True)
class RecordedNvml:
    """Answers given before."""

    reading: NvmlReading

    def read(self, timeout_s: float) -> NvmlReading:
        return self.reading


@dataclass(frozen=True, slots=True)
class NoNvml:
    """A machine, or a captured file tree, whose NVML cannot be asked."""

    why: str = "not asked"

    def read(self, timeout_s: float) -> NvmlReading:
        return NvmlReading(error=self.why)


@dataclass(frozen=True, slots=True)
class LibraryNvml:
    """The driver of this machine, in a child process. `environ` is what the child sees: the loader path, for one."""

    environ: Mapping[str, str] | None = None
    clock: Callable[[], float] = time.monotonic

    def read(self, timeout_s: float) -> NvmlReading:
        end = self.clock() + timeout_s
        reading = NvmlReading()
        skip: list[int] = []
        while True:
            left = end - self.clock()
            # A first hang must leave time to ask the other GPUs without the one that hangs.
            stuck = self._attempt(reading, skip, left, left / 2)
            if stuck is None:
                break
            at, why = stuck
            silent = f"did not answer within {timeout_s:g} s" if why == "TIMEOUT" else "killed the process that asked"
            reading.late.append(f"{at}: NVML {silent}")
            number = at.removeprefix("GPU ")
            if not (at.startswith("GPU ") and number.isdigit()) or end - self.clock() < 0.05:
                if not reading.gpus and reading.error is None:
                    reading.error = (
                        f"{why}: no answer to {at} within {timeout_s:g} s" if why == "TIMEOUT" else f"{why}: {at}"
                    )
                break
            skip.append(int(number))
            reading.gpus.append({"index": int(number), "answers": {}, "reasons": {}, "lost": why})
        reading.gpus.sort(key=lambda gpu: int(gpu["index"]))
        return reading

    def _attempt(self, reading: NvmlReading, skip: list[int], limit_s: float, stall_s: float) -> tuple[str, str] | None:
        """Run one reader. None when it ended well; else what it was asking, and TIMEOUT or CRASH."""
        if not sys.executable:
            reading.error = "there is no Python executable to ask NVML with"
            return None
        environ = dict(os.environ if self.environ is None else self.environ)
        environ.pop("NVML_MPS_DEVICE_ENUMERATION", None)  # it would replace the devices by MPS's view of them
        argv = [
            sys.executable,
            "-P",  # what lies in the working directory is not ours to import
            "-S",
            "-c",
            BOOT,
            json.dumps([os.path.abspath(p) for p in sys.path]),
            ",".join(map(str, skip)),
        ]
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
            )
        except OSError as error:
            reading.error = f"the reader of NVML cannot be started: {error}"
            return None
        end = self.clock() + limit_s
        at, ended = self._listen(child, reading, limit_s, stall_s)
        if not ended:
            child.kill()
        code = _reap(child, max(REAP_S, end - self.clock()) if ended else REAP_S)
        if not ended:
            return at, "TIMEOUT"
        return (at, "CRASH") if code else None

    def _listen(
        self, child: subprocess.Popen[bytes], reading: NvmlReading, limit_s: float, stall_s: float
    ) -> tuple[str, bool]:
        """Take lines until the child closes its end (True) or is silent too long (False); where it was last."""
        assert child.stdout is not None
        number = child.stdout.fileno()
        os.set_blocking(number, False)
        end = self.clock() + limit_s
        at, rest = "starting the reader", b""
        with selectors.DefaultSelector() as ready, child.stdout:
            ready.register(number, selectors.EVENT_READ)
            while (left := end - self.clock()) > 0:
                # Only a GPU can be gone round; for anything else there is nothing better to do than to wait.
                if not ready.select(min(left, stall_s) if at.startswith("GPU ") else left):
                    break
                part = os.read(number, 1 << 16)
                if not part:
                    return at, True
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    piece = json.loads(line)
                    at = piece.get("at", at)
                    reading.take(piece)
        return at, False


def _reap(child: subprocess.Popen[bytes], seconds: float) -> int:
    """Its exit code, waited for so long. One that a dead driver holds in the kernel cannot be waited for; it is nobody's to wait for."""
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.returncode = -9
        return -9

"""How long a probe takes: eight GPUs with all pairs, answered by the fake NVML, beside ten NICs, and its share of a cold
`parlaunch probe`.

    python scripts/bench/probe.py [--rounds 15] [--format json]

Medians, minima and mean CPU time over rounds that take the parts in turn, so that a noisy moment hits all of them alike. "cold" is a
new process each time, with warm file caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
ALONE = """import os, sys
from pathlib import Path
from parlaunch_probes import Host, probe
from parlaunch_probes.nvml import LibraryNvml
assert len(probe(Host(Path(sys.argv[1])), LibraryNvml(dict(os.environ)), environ={}).nodes[0].gpus) == 8
"""

from parlaunch_probes import Host, capture, probe  # noqa: E402
from parlaunch_probes.nvml import LibraryNvml, RecordedNvml  # noqa: E402
from tests.fake_nvml import Fake, build  # noqa: E402
from tests.probes import tree  # noqa: E402
from tests.probes.chaos import read_here  # noqa: E402


def timed(part: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and seconds of CPU of this process and its children: the latter does not mind a busy machine."""
    start, before = time.perf_counter(), os.times()
    part()
    return time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4])


def parts(scratch: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by the name it is printed under."""
    fake = Fake(build(scratch), scratch)
    tree.dgx_h100(scratch / "root")
    variables = {**os.environ, **fake.variables("dgx_h100")}
    library = LibraryNvml(variables)
    machine = Path(variables["FAKE_NVML_MACHINE"])
    reading = library.read(30.0)
    assert len(reading.gpus) == 8, reading.error
    assert len(reading.pairs) == 28
    saved = capture.save(
        scratch / "saved.json", capture.take(Host(scratch / "root"), RecordedNvml(reading), environ={})
    )

    def run(*argv: str) -> None:
        subprocess.run(argv, env=variables, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    return {
        "NVML questions, 8 GPUs and 28 pairs, in one process": lambda: read_here(fake.library, machine),
        "NVML through the child process": lambda: library.read(30.0),
        "files of a DGX H100 (PCI, fabric, host)": lambda: probe(
            Host(scratch / "root"), RecordedNvml(reading), environ={}
        ),
        "8 GPUs and 10 NICs: those files, and NVML through the child": lambda: probe(
            Host(scratch / "root"), library, environ={}
        ),
        "the same in a new process, with its imports": lambda: run(sys.executable, "-c", ALONE, str(scratch / "root")),
        "whole probe(), this machine's files": lambda: probe(nvml=library, environ={}),
        "replay of a capture": lambda: capture.read(saved),
        "cold `parlaunch probe`": lambda: run(sys.executable, "-m", "parlaunch", "probe"),
        "cold `parlaunch --version`": lambda: run(sys.executable, "-m", "parlaunch", "--version"),
        "cold `python -c pass`": lambda: run(sys.executable, "-c", "pass"),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--format", choices=("text", "json"), default="text")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = parts(Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
        for _ in range(given.rounds):
            for name, part in measured.items():
                times[name].append(timed(part))
    rows = {
        name: {
            "median_s": statistics.median(wall for wall, _ in t),
            "min_s": min(wall for wall, _ in t),
            "cpu_s": statistics.mean(cpu for _, cpu in t),
        }
        for name, t in times.items()
    }
    whole, cold = rows["whole probe(), this machine's files"], rows["cold `parlaunch probe`"]
    share = {key: whole[key] / cold[key] for key in ("min_s", "cpu_s")}
    if given.format == "json":
        print(json.dumps({"rounds": given.rounds, "parts": rows, "probe_share_of_cold": share}, indent=2))
        return
    for name, row in rows.items():
        median, least, cpu = (row[key] * 1e3 for key in ("median_s", "min_s", "cpu_s"))
        print(f"{median:8.1f} ms median {least:8.1f} ms min {cpu:8.1f} ms CPU  {name}")
    print(
        f"of a cold `parlaunch probe`, {share['min_s']:.0%} is the probe itself (minima); of its CPU time {share['cpu_s']:.0%}"
    )


if __name__ == "__main__":
    main()

"""Probe machines that nobody built: random sysfs trees, NVML error patterns, damaged captures.

    python scripts/fuzz/probe.py --cases 20000 [--seed 0] [--cli 200]

No traceback and no hang may come of it. `--cli N` also runs the command line on N damaged captures, which must end with
a documented exit code. Prints what became of the cases; a failure prints its seed, and `--seed S --cases 1` repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.fake_nvml import build  # noqa: E402
from tests.probes.chaos import SAVED, mutate, one  # noqa: E402


def share(job: tuple[int, int, str, str]) -> tuple[Counter[str], list[str]]:
    """Cases of one worker."""
    first, count, folder, library = job
    told: Counter[str] = Counter()
    failed = []
    for seed in range(first, first + count):
        try:
            told[one(seed, Path(folder), Path(library))] += 1
        except Exception:
            told["FAILED"] += 1
            failed.append(f"seed {seed}:\n{traceback.format_exc()}")
    return told, failed


def command_line(cases: int, seed: int, folder: Path) -> Counter[str]:
    """Exit codes of `parlaunch probe --hardware FILE` on damaged captures."""
    codes: Counter[str] = Counter()
    files = sorted(SAVED.glob("*/capture.json"))
    for at in range(cases):
        rng = random.Random(seed + at)
        path = folder / "damaged.json"
        path.write_bytes(mutate(rng, rng.choice(files).read_bytes()))
        argv = [sys.executable, "-m", "parlaunch", "probe", "--hardware", str(path)]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}
        )
        bad = "Traceback" in done.stderr or done.returncode not in (0, 1, 2)
        codes[f"exit {done.returncode}" + (" with a traceback" if bad else "")] += 1
        if bad:
            print(f"seed {seed + at}: exit {done.returncode}\n{done.stderr[-1500:]}", file=sys.stderr)
    return codes


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options.add_argument("--cli", type=int, default=0)
    given = options.parse_args()
    start = time.monotonic()
    told: Counter[str] = Counter()
    failed: list[str] = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of small trees
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        library = build(Path(folder))
        step = max(1, min(250, given.cases // given.workers or 1))
        jobs = [
            (first, min(step, given.seed + given.cases - first), folder, str(library))
            for first in range(given.seed, given.seed + given.cases, step)
        ]
        with get_context("spawn").Pool(given.workers) as pool:
            for counts, bad in pool.imap_unordered(share, jobs):
                told += counts
                failed += bad
        print(f"{sum(told.values())} cases in {time.monotonic() - start:.0f} s: {dict(told)}")
        if given.cli:
            codes = command_line(given.cli, given.seed, Path(folder))
            print(f"{given.cli} command lines: {dict(codes)}")
            told["FAILED"] += sum(n for name, n in codes.items() if "traceback" in name)
    for text in failed[:5]:
        print(text, file=sys.stderr)
    return 1 if told["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""How wrong predicted peaks are, by source, and how wrong they would be had that source never been seen.

    python scripts/make/memory_accuracy.py [validation/*_memory.jsonl]

Two things of the memory model are settled on measured peaks: the band with the risk (`estimate.memory`), and how many blocks
stay empty where segments do not grow (`estimate.states.FRAGMENTS`). Both are settled anew without each source in turn.
Runs of 2022 and analyses of papers are left out: their band is their own.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from parlaunch.check.measured import Machines, Run, memory_of, readable
from parlaunch.cli.accuracy import rows_of
from parlaunch.estimate import states
from parlaunch.estimate.frameworks import framework_of
from parlaunch.estimate.values import Memory

ROOT = Path(__file__).parents[2]


class Peak:
    """One measured peak beside the prediction of its kind."""

    def __init__(self, run: Run, measured: float) -> None:
        self.run, self.measured = run, measured
        self.memory: Memory = memory_of(run)
        name = str(run.recipe.features.framework or "")
        self.keeping = states.KEEPING[framework_of(name).keeping]

    def off(self, fragments: float | None = None) -> float:
        """Predicted over measured, less one."""
        m = self.memory
        if fragments is not None and self.keeping.fragments:
            m = replace(m, slack=int(m.slack * fragments / self.keeping.fragments))
        size = {"allocated": m.allocated, "reserved": m.reserved, "nvidia-smi": m.peak}[self.run.memory_kind]
        return size / self.measured - 1

    def wanted(self) -> float | None:
        """The fragments that would make a reserved peak right."""
        if self.run.memory_kind != "reserved" or not self.keeping.fragments:
            return None
        return (self.measured - self.memory.allocated) / (self.memory.slack / self.keeping.fragments)


def peaks(files: Iterable[Path], era: str = "today") -> dict[str, list[Peak]]:
    """Measured peaks by source, of one generation of software (a key of `estimate.memory.PEAK_BAND`)."""
    machines, found = Machines(), defaultdict(list)
    for file in files:
        for row, run in readable(rows_of(file), machines):
            measured = run.measured.get("peak_mem") or run.measured.get("peak_memory_gb")
            if measured and not run.oom:
                peak = Peak(run, measured * run.memory_unit)
                if peak.keeping.measured == era:
                    found[str(row["source"]).split()[0]].append(peak)
    return found


def at(share: float, values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "validation").glob("*_memory.jsonl"))
    found = peaks(files)
    print(
        "source | rows | mean | most below | inside the band || had it not been seen: fragments | mean | most below | inside"
    )
    left_out: list[bool] = []
    for source, mine in found.items():
        others = [p for name, rest in found.items() if name != source for p in rest]
        wanted = [w for p in others if (w := p.wanted()) is not None]
        fragments = median(wanted) if wanted else 0.0
        unseen = [p.off(fragments) for p in mine]
        offs = [p.off() for p in mine]
        inside = fmean(abs(o) <= p.memory.error_band for o, p in zip(offs, mine, strict=True))
        within = [abs(u) <= p.memory.error_band for u, p in zip(unseen, mine, strict=True)]
        left_out += within
        print(
            f"{source} | {len(mine)} | {fmean(map(abs, offs)):.1%} | {min(offs):+.1%} | {inside:.0%} || {fragments:.1f} | "
            f"{fmean(map(abs, unseen)):.1%} | {min(unseen):+.1%} | {fmean(within):.0%}"
        )
    every = [p for rest in found.values() for p in rest]
    offs = [p.off() for p in every]
    wanted = [w for p in every if (w := p.wanted()) is not None]
    print(
        f"all | {len(every)} | {fmean(map(abs, offs)):.1%} | {min(offs):+.1%} || not seen, inside the band: {fmean(left_out):.0%}; two of three "
        f"within {at(0.68, [abs(o) for o in offs]):.1%}, one of twenty needs {at(0.95, [-o for o in offs]):.1%} more; "
        f"fragments {min(wanted, default=0):.1f} to {max(wanted, default=0):.1f}"
    )


if __name__ == "__main__":
    main()

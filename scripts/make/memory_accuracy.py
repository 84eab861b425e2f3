#!/usr/bin/env python
"""How wrong predicted peaks are, by source and by model, and how wrong they would be had that source or model never been seen: writes it
into docs/memory.md.

    python scripts/make/memory_accuracy.py              rows of validation/*_memory.jsonl
    python scripts/make/memory_accuracy.py --check      writes nothing; exits 1 where the page has other figures

Two things of the memory model are settled on measured peaks: the band with the risk (`estimate.memory`), and how many blocks
stay empty where segments do not grow (`estimate.states.FRAGMENTS`). The blocks are settled anew without each source, and each model, in turn,
and the band is held against what was left out.
Runs of 2022 and analyses of papers are left out: their band is their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from parlaunch.check.measured import Machines, Run, memory_of, readable
from parlaunch.cli.accuracy import rows_of
from parlaunch.estimate import states
from parlaunch.estimate.frameworks import framework_of
from parlaunch.estimate.memory import PEAK_BAND
from parlaunch.estimate.values import Memory

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "memory.md"
BEGIN = "<!-- Written by `scripts/make/memory_accuracy.py`; a test holds it against the rows. -->\n\n"
END = "\n<!-- So far. -->\n"
NAMES = {
    "NVIDIA-NeMo/Megatron-Bridge": "Megatron Bridge's cards and notes",
    "mlcommons/training_results_v5.0": "MLPerf Training v5.0, NeMo",
    "mlcommons/training_results_v5.1": "MLPerf Training v5.1, NeMo",
    "MooreThreads/SimuMax": "SimuMax on B200, allocated and reserved",
}


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


def by_model(found: Mapping[str, Sequence[Peak]]) -> dict[str, list[Peak]]:
    """The same peaks by model."""
    models = defaultdict(list)
    for peak in (p for rest in found.values() for p in rest):
        recipe = peak.run.recipe
        models[(recipe.model_id or recipe.model).rpartition("/")[2]].append(peak)
    return models


def left_out(found: Mapping[str, Sequence[Peak]], what: str) -> tuple[str, list[bool]]:
    """A table with each group predicted as it is and by what the others leave; and for each peak left out whether its band holds it."""
    lines = [
        f"| {what} | rows | mean error | most below | had it not been seen: mean | most below |",
        "|---|---|---|---|---|---|",
    ]
    held = []
    for name, mine in sorted(found.items(), key=lambda item: NAMES.get(item[0], item[0])):
        wanted = [w for other, rest in found.items() if other != name for p in rest if (w := p.wanted()) is not None]
        offs, unseen = [p.off() for p in mine], [p.off(median(wanted) if wanted else 0.0) for p in mine]
        held += [abs(u) <= p.memory.error_band for u, p in zip(unseen, mine, strict=True)]
        figures = (f"{fmean(map(abs, each)):.1%} | {min(each):+.1%}" for each in (offs, unseen))
        lines.append(f"| {NAMES.get(name, name)} | {len(mine)} | {' | '.join(figures)} |".replace("%", " %"))
    return "\n".join(lines), held


def section(found: Mapping[str, Sequence[Peak]]) -> str:
    """What the page says of these peaks."""
    sources, unseen = left_out(found, "source")
    models, unseen_models = left_out(by_model(found), "model")
    every = [p for rest in found.values() for p in rest]
    offs, wanted = [p.off() for p in every], [w for p in every if (w := p.wanted()) is not None]
    said = (
        f"Over all {len(every)} the mean error is {fmean(map(abs, offs)):.1%}; two of three are within {at(0.68, list(map(abs, offs))):.1%}, and "
        f"one of twenty needs {at(0.95, [-o for o in offs]):.1%} more.\n"
        f"The band (± {PEAK_BAND['today']:.0%}, wider for what few rows have) holds {fmean(unseen):.0%} of runs whose source was not seen, "
        f"{fmean(unseen_models):.0%} of those whose model was not.\n"
        f"The {len(wanted)} runs without growing segments left {min(wanted):.1f} to {max(wanted):.1f} blocks empty, {median(wanted):.1f} in the "
        f"middle; {states.FRAGMENTS} are counted."
    )
    return "\n\n".join((sources, models, said.replace("%", " %"))) + "\n"


def page(old: str, made: str) -> str:
    before, _, rest = old.partition(BEGIN)
    return before + BEGIN + made + END + rest.partition(END)[2]


def main() -> None:
    from written import write_or_check

    made = section(peaks(sorted((ROOT / "validation").glob("*_memory.jsonl"))))
    print(made)
    write_or_check({PAGE: page(PAGE.read_text(encoding="utf-8"), made)})


if __name__ == "__main__":
    main()

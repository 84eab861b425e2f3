"""Write docs/accuracy.md and docs/accuracy.svg: how right time and memory are on tables of published runs.

    python scripts/make/accuracy.py [TABLE ...] [--out docs/accuracy.md]

A table is what `parlaunch validate` reads; without any, those in validation/. Every number on the page comes from this run.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import calibration

from parlaunch.check.calibrate import from_runs
from parlaunch.check.measured import INVENTED, SITES, TIMES, Machines, readable
from parlaunch.check.report import error_table, main_quantity, percent, validation_to_svg
from parlaunch.check.validate import errors_of, validate
from parlaunch.cli.accuracy import rows_of
from parlaunch.data import load
from parlaunch.estimate.timing.bands import settled
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.silicon import GENERATIONS, Silicon
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of

TABLES = Path(__file__).parents[2] / "validation"
PUBLISHED = (
    ("Calculon on the eight Korthikanti runs, with its A100 file", "3.65 %, worst 8.9 %"),
    ("vTrain on its own runs, operators profiled", "8.4 % on one node, 14.7 % on several"),
    ("AMD Primus on four of its configurations", "7.4 %"),
    ("Sailor on 15 plans, layers profiled", "8.9 % time, 5.9 % memory"),
)
"""What others publish about themselves, or was measured of their code; none on the same rows but the first two."""


FAMILIES = (
    ("llama2_70b_lora", "MLPerf, LoRA"), ("mlcommons", "MLPerf, pretraining"), ("SimuMax", "SimuMax on B200"),
    ("dgxc-benchmarking", "DGX Cloud"), ("ModelZoo", "MoE model zoo"), ("nemo-framework", "NeMo's pages"),
    ("NVIDIA-NeMo/Megatron-Bridge", "Megatron Bridge, cards and skills"),
)  # fmt: skip
"""What a source says, and the group that its rows are summed up in."""

OTHER_SITES = ("A100 SXM 80GB",)
"""GPUs whose rows are of other frameworks and slower clusters, with bands of their own."""

DRAWS = 448
"""Calibrations on four runs each, about 34 a site."""

FAST_CELLS = ((1024, 2, 4), (2048, 4, 2))
"""(hidden size, TP, micro batch) of the one-node sweep's two unexplained times."""


def kind(row: Mapping[str, Any]) -> str:
    """The group of rows that a row is summed up in."""
    name, source = str(row.get("framework") or "?"), str(row.get("source") or "")
    found = next((family for mark, family in FAMILIES if mark in source), None)
    if found is not None:
        return found
    if name.startswith("megatron-bridge"):
        return (
            "Megatron Bridge" if row.get("current") is not False else "Megatron Bridge, superseded by a later release"
        )
    if "vTrain" in source:
        return "vTrain, one node" if int(row.get("gpus") or 0) <= 8 else "vTrain, many nodes"
    if "2205.05198" in source:
        return "Korthikanti et al."
    if "bigscience" in source:
        return "BLOOM (bigscience)"
    return name.rsplit(" r", 1)[0]


def share(entry: Mapping[str, Any]) -> float | None:
    """Predicted over measured time, less one; None for a row without a time, and for one that does not count."""
    return _share(entry) if entry.get("scored") else None


def _share(entry: Mapping[str, Any]) -> float | None:
    for name in TIMES:
        if entry["predicted"] and entry["measured"].get(name):
            value = float(entry["predicted"][name] / entry["measured"][name])
            return value - 1 if name == "iteration_time_s" else 1 / value - 1
    return None


def shares(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[float]:
    return [s for _, entry in pairs if (s := share(entry)) is not None and entry["measured"].get("status") != "oom"]


def grouped(pairs: Sequence[Any], key: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for pair in pairs:
        found[key(pair[0])].append(pair)
    return found


def inside(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[bool]:
    """Whether each row's error is within the band that is printed for it."""
    return [abs(s) <= float(e["predicted"]["band"]) for _, e in pairs if (s := share(e)) is not None]


def leave_one_out(pairs: Sequence[Any], what: str, residuals: dict[tuple[str, float], list[float]]) -> list[str]:
    """For each GPU, and each `source` or `model` on it: the constants as they are, and fitted to all others on that GPU, whether
    `parlaunch calibrate` would take that fit or not. `residuals` takes the sizes of the second's errors, by the kind of run that a
    band is settled for."""
    lines = [
        f"| GPU | {what} left out | rows | as shipped | inside the band | fitted to the others | inside the band |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    by_gpu: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    kinds: dict[int, tuple[str, float]] = {}
    current = (
        row
        for row, entry in pairs
        if share(entry) is not None and row.get("current") is not False and entry["measured"].get("status") != "oom"
    )
    for row, run in readable(current, Machines()):
        left = kind(row) if what == "source" else str(row.get("model") or "GPT")
        by_gpu[run.rates.product.name][left].append(row)
        kinds[id(row)] = settled(run.recipe, run.rates)
    shipped, fitted = [], []
    held: tuple[list[bool], list[bool]] = ([], [])
    for gpu, models in sorted(by_gpu.items()):
        if len(models) < 2:
            continue
        for model, rows in sorted(models.items()):
            others = [row for name, more in models.items() if name != model for row in more[:: max(1, len(more) // 3)]]
            file = from_runs(others, doubtful=True)
            now = list(zip(rows, validate(rows)["rows"], strict=True))
            then = list(zip(rows, validate(rows, machine=file)["rows"], strict=True))
            plain, other = errors_of(shares(now)), errors_of(shares(then))
            if plain is None or other is None:
                continue
            shipped.append(plain["mean"])
            fitted.append(other["mean"])
            if gpu not in OTHER_SITES:
                held[0].extend(inside(now))
                held[1].extend(inside(then))
                for row, entry in then:
                    residuals[kinds[id(row)]].extend(abs(s) for s in shares([(row, entry)]))
            lines.append(
                f"| {gpu} | {model} | {len(rows)} | {percent(plain['mean'])} | {percent(fmean(inside(now)))} "
                f"| {percent(other['mean'])} | {percent(fmean(inside(then)))} |"
            )
    lines.append(
        f"| mean over {what}s; rows on Hopper and Blackwell | | {len(held[0])} | {percent(fmean(shipped))} | {percent(fmean(held[0]))} "
        f"| {percent(fmean(fitted))} | {percent(fmean(held[1]))} |"
    )
    return lines


def regrets(pairs: Sequence[Any]) -> list[str]:
    lines = ["| rows | groups | mean regret | worst | rank correlation |", "|---|---:|---:|---:|---:|"]
    for name, found in sorted(grouped(pairs, kind).items()):
        summary = validate([row for row, _ in found])["summary"]
        if summary["regret"]:
            r, rank = summary["regret"], summary["rank_correlation"]
            shown = f"{rank['mean']:.2f}" if rank else "-"
            lines.append(f"| {name} | {r['groups']} | {percent(r['mean'])} | {percent(r['max'])} | {shown} |")
    return lines


def sweep_cells(pairs: Sequence[Any], choices: Mapping[str, Any]) -> str:
    """How much of the one-node sweep's regret its two fast cells cause, in words. `choices`: those of `validate`, by group."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row, entry in pairs:
        if kind(row) == "vTrain, one node" and entry["group"] in choices:
            groups[entry["group"]].append(row)
    fast, rest = [], []
    for name, rows in groups.items():
        best = min(rows, key=lambda r: float(r["iteration_time_s"]))
        cell = (best["arch"]["hidden_size"], best["tp"], best["mbs"])
        (fast if cell in FAST_CELLS else rest).append(choices[name]["regret"])
    if not fast or not rest:
        return ""
    return (
        f"One-node sweep: in {len(fast)} of {len(groups)} groups the best layout is hidden size 1024 with TP 2 and micro batch 4, or 2048 "
        f"with TP 4 and 2; there the regret is {percent(fmean(fast))} on average, in the other {len(rest)} groups {percent(fmean(rest))}, "
        f"{percent(max(rest))} at most. (Parted after the fact: a diagnosis, not a claim.) No mechanism that we know makes these two a fifth "
        "faster than their neighbours. The table's times are composed: for one hidden size, TP and micro batch they follow from one "
        "time a layer to all printed digits, so it holds some thirty independent times, and an odd one is in every group."
    )


def worst(pairs: Sequence[Any], most: int = 15) -> list[str]:
    """The rows that are furthest off, one for each machine, model and layout."""
    found = [(abs(s), s, row, e) for row, e in pairs if (s := share(e)) is not None and row.get("current") is not False]
    lines, seen = ["| row | machine | model | layout | error |", "|---|---|---|---|---:|"], set()
    for _, s, row, entry in sorted(found, key=lambda f: (-f[0], str(f[2].get("id")))):
        key = (entry["machine"], row.get("model"), entry["layout"])
        if key in seen:
            continue
        seen.add(key)
        model = row.get("model") or "GPT"
        lines.append(
            f"| {entry['id']} | {entry['machine']} | {model} | {entry['layout']} | {percent(s, signed=True)} |"
        )
        if len(lines) == most + 2:
            break
    return lines


def bands(pairs: Sequence[Any]) -> list[str]:
    lines = ["| rows | count | band printed | rows inside it |", "|---|---:|---:|---:|"]
    for name, found in sorted(grouped(pairs, kind).items()):
        each = [(abs(s), float(e["predicted"]["band"])) for _, e in found if (s := share(e)) is not None]
        if each:
            low, high = min(b for _, b in each), max(b for _, b in each)
            printed = percent(low) if low == high else f"{percent(low)} to {percent(high)}"
            lines.append(f"| {name} | {len(each)} | {printed} | {percent(fmean(s <= b for s, b in each))} |")
    return lines


def made_up(pairs: Sequence[Any]) -> list[str]:
    """Rows that are shown and do not count: their table leaves out what a prediction needs most."""
    lines = ["| row | error | what was made up |", "|---|---:|---|"]
    for row, entry in pairs:
        if entry.get("scored") is False and (missed := _share(entry)) is not None:
            said = "; ".join(note for note in str(entry["note"]).split("; ") if INVENTED in note)
            lines.append(f"| {row['id']} | {percent(missed, signed=True)} | {said} |")
    return lines


def memory(pairs: Sequence[Any]) -> list[str]:
    found: dict[str, list[float]] = defaultdict(list)
    for row, entry in pairs:
        name = next((n for n in ("peak_memory_gb", "peak_mem") if entry["measured"].get(n)), None)
        if name and entry["predicted"] and entry["scored"]:
            found[kind(row)].append(entry["predicted"][name] / entry["measured"][name] - 1)
    return error_table([(n, e) for n, v in sorted(found.items()) if (e := errors_of(v))], "peak memory")


def operators() -> list[str]:
    """How well the tables of operators meet measured points that they do not hold."""
    lines = [
        "| operator | GPU | format or head size | points | median | p95 | readings apart | p95 |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in load("operators.json")["left_out"]:
        if "median" in row:
            apart = " | ".join(percent(row[name]) if name in row else "" for name in ("apart", "apart_p95"))
            sizes = f"{row['points']} | {percent(row['median'])} | {percent(row['p95'])} | {apart}"
            lines.append(f"| {row['operator']} | {row['gpu']} | {row['form']} | {sizes} |")
    return lines


FORMATS = (("bf16", "bf16"), ("fp8", "fp8"), ("fp4", "nvfp4"))
"""Formats of products, and of the data sheet."""


def kept() -> list[str]:
    """Share of the peak that large products reach in training, from bursts, watts and joules."""
    lines = ["| GPU | 16 bits | FP8 | FP4 |", "|---|---:|---:|---:|"]
    for machine in ("dgx-a100-80g", "dgx-h100", "dgx-h200", "dgx-b200", "dgx-b300", "gb200-nvl72", "gb300-nvl72"):
        kernels = Kernels(rates_of(preset(machine)))
        there = [f"{kernels.reached(f):.2f}" if n in kernels.product.flops else "" for f, n in FORMATS]
        lines.append(f"| {kernels.product.name} | " + " | ".join(there) + " |")
    return lines


def constants() -> list[str]:
    names = [field.name for field in fields(Silicon)]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for generation, silicon in GENERATIONS.items():
        lines.append(f"| {generation} | " + " | ".join(f"{getattr(silicon, n):g}" for n in names) + " |")
    return lines


NOT_MADE = "They were not made anew with the rest of this page (`--quick`)."


def left_out(pairs: Sequence[Any]) -> tuple[str, str]:
    """The two tables of what was left out in turn, and what it says of each band."""
    residuals: dict[tuple[str, float], list[float]] = defaultdict(list)
    tables = "\n\n".join(_join(leave_one_out(pairs, what, residuals)) for what in ("source", "model"))
    lines = [
        "| kind of run | left out | 68 % within | 75 % within | band | inside it |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (name, band), found in sorted(residuals.items()):
        two, three = (sorted(found)[round(q * (len(found) - 1))] for q in (0.68, 0.75))
        held = fmean(one <= band for one in found)
        lines.append(
            f"| {name} | {len(found)} | {percent(two)} | {percent(three)} | {percent(band)} | {percent(held)} |"
        )
    return tables, _join(lines)


def calibrated() -> str:
    """What four runs of a site say of its others, and what no four could."""
    every = calibration.sites()
    done = list(calibration.draws(DRAWS, every=every))
    worse = sum(d.worse for d in done)
    return f"""`parlaunch calibrate` on four runs of a site, drawn {DRAWS} times in all, and the mean error on its other runs: mean, median and 95th
percentile over the draws, and how many draws came out more than a point worse than the tables ({worse}). By
`scripts/bench/calibration.py --draws {DRAWS}`; another seed moves the mean by a tenth of a point. The last two columns are floors, found
from all of a site's runs and not from four: one factor for all of them, and one for each model and precision. What lies between the
two is not of the machine, and runs of other models do not tell it: what the runs of one model in one format have in common is kept for
them alone, and what runs with one split (TP, PP and micro batch) have in common for that split, whatever it trains. What no factor mends is
scatter between layouts and between releases of the software. Tried in place of these or beside them, in equal parts, and no better: context
and expert parallelism in the split, one factor for all formats of a model, one for a release of the software, for CUDA graphs or for a
single layout, and shares of the time (communication, host) in place of machine values.

{_join(calibration.table(done, every))}"""


def page(tables: Mapping[str, Sequence[Mapping[str, Any]]], *, slow: bool = True) -> tuple[str, str]:
    rows = [row for table in tables.values() for row in table]
    result = validate(rows)
    pairs = list(zip(rows, result["rows"], strict=True))
    unread = [(e["id"], e["note"]) for e in result["rows"] if not e["predicted"]]
    every = [(name, e) for name, found in sorted(grouped(pairs, kind).items()) if (e := errors_of(shares(found)))]
    today = [p for p in pairs if kind(p[0]) == "Megatron Bridge"]
    machine = [
        (n, e) for n, f in sorted(grouped(today, lambda r: str(r["hardware"])).items()) if (e := errors_of(shares(f)))
    ]
    model = [
        (n, e) for n, f in sorted(grouped(today, lambda r: str(r["model"])).items()) if (e := errors_of(shares(f)))
    ]
    shown = sum(main_quantity(e) is not None for e in result["rows"])
    said: dict[str, int] = defaultdict(int)
    for _, note in unread:
        said[note] += 1
    tables_left_out, apart = left_out(pairs) if slow else (NOT_MADE, NOT_MADE)
    text = f"""# How right the estimates are

Time and memory of {shown} published runs, predicted from the model's shape, the layout and the data sheet: no profile, no
published measurement, one set of constants for all rows. Written by `scripts/make/accuracy.py` from {len(tables)} tables; your own runs
go through `parlaunch validate FILE` the same way. An error is predicted over measured iteration time, less one: positive is
too slow. Points: [accuracy.svg](accuracy.svg).

## Time

{_join(error_table(every, "rows"))}

Megatron Bridge as it is today, by machine and by model:

{_join(error_table(machine, "machine"))}

{_join(error_table(model, "model"))}

What others publish, for scale:

{_join([f"- {who}: {what}" for who, what in PUBLISHED])}

Rows that a later release of the same software has superseded are predicted too, and shown apart: the same layout has become up
to half as fast again since, and the estimate is about today's software.

Shown and not counted, neither here nor below, as their table leaves out what a prediction needs most:

{_join(made_up(pairs))}

## The choice of a layout

A group is the rows that differ in layout only: same model and shape, machine, count, batch, precision and release. Regret is the measured time
of the layout that the prediction likes best, over the best measured one, less one; a layout that was run several times counts with
its median.

{_join(regrets(pairs))}

{sweep_cells(pairs, result["summary"]["groups"])}

## The operators

Products, attention (whole and in a window) and collectives are measured ones: tables of what GPUs reach by shape, made from public measurements
(`scripts/make/operators.py`; source and licence in NOTICE). Points that the tables do not hold, against what they say of them; in 8 and 4
bits those whose sizes are multiples of 16 and 32, which is what Transformer Engine takes and Megatron Core fills experts' tokens up to.
Beside it how far the source's own readings of one point are apart, the longest over the shortest, where they ought to agree: products
in 16 bits, for which three frameworks call the same cuBLAS, and repeated runs of one NCCL. That is the floor of any table: most of what
is left of products is noise and changes of kernel from one size to the next. What is left of collectives is NCCL's change of protocol,
which no size between two others tells the place of: it counts here with sizes four times apart, and the tables hold twice as many.

{_join(operators())}

A burst on a cool GPU is not a training. What large products keep of the data sheet's peak in training, from the burst, the board's
watts and the joules of a FLOP:

{_join(kept())}

## How much do the constants owe to the rows?

One set for each GPU generation, and a few costs of software; no constant belongs to a model, a machine or a row. Where kernel
benchmarks and papers leave room (joules a FLOP, what a host takes to issue, what an eager layer of experts waits for), they were
settled by looking at these rows as a whole, so the errors above are not those of runs nobody had seen. Two checks: each source,
and each model, is left out in turn; the shares are fitted to *others* on the same GPU (three or four rows of each, as `parlaunch calibrate` does,
within its prior; but all of the change, which it makes only as far as the rows are sure of it, and as if the others were one machine), and
what was left out is predicted with them; costs of software and joules stay as they are. The share inside the band is of the band that a plan prints: meant to be two of three for runs
whose source nobody had seen, and higher where the constants were settled with the row in view.

{tables_left_out}

## After calibration

{calibrated() if slow else NOT_MADE}

## Error bands

The band that a plan prints is meant to hold two of three runs, of models and machines that its constants were not settled on. It
holds two of three to three of four of what was left out in turn, by source and by model, with the others' fit; of experts half, as their rows are
few and far apart. None is under 5 %, where sources disagree it is wider, and by layout (experts over several NVLink domains, FSDP,
many ranks) it is wider still than here:

{apart}

The constants as shipped, with all these rows in view, and the bands with what the layout adds:

{_join(bands(pairs))}

## Memory

{_join(memory(pairs))}

## Where it is wrong

The furthest off, one row for each machine, model and layout:

{_join(worst(pairs))}

Known reasons, most harm first:

- Clusters slower than their data sheet. Runs on other people's A100 clusters took a twelfth (InternEvo), a sixth (BLOOM) and a fifth (GPT-NeoX)
  longer than the same code on NVIDIA's own: nothing in a data sheet says so. `parlaunch calibrate FILE` closes most of the gap.
- Tables whose machine is a preset with another fabric. Used instead of the preset's: {"; ".join(s.why for s in SITES)}.
- InternEvo with one or two micro batches on 512 and 1,024 GPUs, without recomputation: we say 18 to 27 % less than was measured, of its
  other runs 2 to 15 %. On 1,024 the second micro batch costs 1.2 s, the third and fourth 0.8 s each, and a single one no more with
  recomputation than without.
- A host that cannot keep up. CPU time a kernel is one constant; real hosts differ by two, and eager MoE layers wait for token
  counts. Small models at micro batch 1 without CUDA graphs are the least certain time predictions we make.
- The one-node sweep of vTrain says "full recompute"; its fastest rows would then need more than 200 TFLOP/s of an A100. They
  are predicted as they are labelled. Taken apart by the number of layers, its layers are faster than ours and its loss slower, which
  looks like no recomputation; predicted so, with a slower host, the rows as a whole fit no better.
- 16-bit training on Blackwell: SimuMax's B200 keep two thirds of their burst, Bridge's GB200 and GB300 more on experts. One number of
  joules cannot hold both; the band does.
- Routers are taken as balanced in benchmarks (`force_balance`); elsewhere the fullest rank is taken to have 10 to 80 % more than the
  mean, by experts, top-k and sequences in a group. Pairs of runs say so for Qwen3-235B and Mixtral 8x22B on H100; Qwen3-30B asks for less.
- The first software on Blackwell (NeMo's containers up to 25.04) has one factor for all its kernels, 8 %: single runs ask for none (GPT-3)
  to 15 % (LoRA on 512 GB200). LoRA of MLPerf's round 5.1 takes up to a tenth less than we say: the same 512 GB200 became a fifth faster from
  one round to the next. The later code can fuse adapters and MLPs (Transformer Engine's operation fuser), and no row says whether it did.
- Experts' products are held against two sets of measurements and not interpolated from them: the tables of fused experts hold
  permutation and activation in one time, of kernels of inference that differ by half from one another. Where an expert has a
  thousand tokens or more, single products with their power limit are 1.0 to 1.2 of them on H100, B200 and GB200 in 16 bits and FP8.
  Of those that SimuMax measured with Transformer Engine's four streams on B200, single ones are 1.06 in the median and two side by side
  0.99, which is what is taken; weight gradients, one by one, 0.99.
- gpt-oss clamps what its experts' activation reads in steps of their own, has sinks in its attention and biases everywhere: it takes
  longer than we say.
- Attention in FP8 is as cuDNN's own benchmarks have it (H200, GB200 and GB300, 2026): forward half as fast again and more, backward on
  Hopper slower than in 16 bits, in MXFP8 no faster, and with a window as long as without. Releases of cuDNN before them were slower, and runs of 2024 and 2025 had those.
- Tables of Megatron Bridge, NeMo and DGX Cloud name no switches: their rows have what their release's own scripts say (graphs, overlap,
  dispatcher, recomputation), and a row's notes name the file. Where a table and those scripts differ in layout, what else differed is not known.
- Where tokens over the experts' capacity are dropped and what lacks is filled up, the host has no counts to wait for and a graph holds whole
  layers. Predicted so, Qwen3 (Megatron Bridge 25.09) is within 7 %; DeepSeek-V2 and V3 on B200 (SimuMax, Bridge 25.09) and Llama 4 (NeMo)
  take 7 to 17 % longer than we say, for reasons that we have not found: SimuMax, whose operators are measured ones, says 6 to 14 % too
  little of the same DeepSeek-V2 (docs/b200/b200_release_v1.2_summary.json).
- Sparse and compressed attention, hyper-connections and gated delta nets rest on few rows or none.

Rows that could not be predicted: {len(unread)} of {len(rows)}.

{_join([f"- {count} x {note}" for note, count in sorted(said.items(), key=lambda s: -s[1])[:8]]) or "None."}

## The constants

Meaning, unit and source stand beside each in `parlaunch/estimate/timing/silicon.py`.

{_join(constants())}
"""
    return text, validation_to_svg(result)


def _join(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, help="those in validation/ when none is given")
    parser.add_argument("--out", type=Path, default=Path("docs/accuracy.md"))
    parser.add_argument(
        "--quick", action="store_true", help="without the fits to what was not left out, which take most of the time"
    )
    given = parser.parse_args()
    paths = given.tables or [path for path in sorted(TABLES.glob("*.jsonl")) if path.stem != "probes"]
    text, chart = page({path.name: rows_of(path) for path in paths}, slow=not given.quick)
    given.out.write_text(text)
    given.out.with_suffix(".svg").write_text(chart)
    print(f"wrote {given.out} and {given.out.with_suffix('.svg')}")


if __name__ == "__main__":
    main()

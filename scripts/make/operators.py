"""Write parlaunch/data/operators.json: what GPUs reach by shape, from the public silicon tables of `aiconfigurator-core`.

    python -m venv tables && tables/bin/pip install pyarrow && pip download --no-deps aiconfigurator-core==0.12.0
    git clone https://github.com/NVIDIA/cudnn-frontend && git -C cudnn-frontend checkout 3929da2
    PYTHONPATH=. tables/bin/python scripts/make/operators.py aiconfigurator_core-0.12.0-*.whl cudnn-frontend

The package (Apache-2.0, NVIDIA) holds times of single operators measured on GPUs for planning inference. Taken over is what
training also runs: matrix products (cuBLAS in 16 bits; of several FP8 and FP4 kernels the fastest, which is nearest to the
product alone: every row of theirs holds the quantising of its first operand, which shows where columns are few), causal
attention forward, whole and in a window, and NCCL inside a node, of every framework its newest version. Attention in FP8, both ways, is that of
cuDNN's own benchmarks of training (`cudnn-frontend`, MIT). Only shares of the data sheet on a coarse grid are kept. Every
second size stays out of the grid: how well those are met is written beside it, and how far measurements that ought to agree
are apart.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import zipfile
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product as crossed
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet
from tables import write

from parlaunch.estimate.timing.kernels import OPERAND_BYTES
from parlaunch.estimate.timing.operators import Grid, Lines, encode, waves
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.datasheet import product as sheet_of

GPUS = {
    "a100_sxm": "A100 SXM 80GB", "h100_sxm": "H100 SXM", "h200_sxm": "H200 SXM", "b200_sxm": "B200", "b300_sxm": "B300",
    "gb200": "GB200", "gb300": "GB300", "l40s": "L40S", "rtx_pro_6000_server": "RTX PRO 6000 Blackwell Server",
}  # fmt: skip
"""The package's folders and our products."""

FORMATS = {"bf16": ("bfloat16",), "fp8": ("fp8", "fp8_block"), "fp4": ("nvfp4",)}
"""Our formats of a product, and the tables' names for what counts as one."""
PEAKS = {"bf16": "bf16", "fp8": "fp8cs", "fp4": "nvfp4"}
MULTIPLES = {"bf16": 1, "fp8": 16, "fp4": 32}
"""What every size of a product is a multiple of, rows of one pass being another's depth. Transformer Engine refuses other sizes in FP8
(pytorch/utils.py, `assert_dim_for_fp8_exec`), and Megatron Core fills experts' tokens up to them (core/fp8_utils.py, core/fp4_utils.py).
The package has one row more of most sizes too: a tenth slower in FP8 on Hopper, where kernels copy or realign such operands first."""
ROWS = (128, 256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 8192, 16384, 32768)
SIDES = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 65536)
TAILS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much of the rounds of tiles shows (`parlaunch.estimate.timing.operators.tail`): the one that meets the left-out points best."""
SEQUENCES = (1024, 2048, 4096, 8192, 16384, 32768)
HEADS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
NO_TENSOR_CORES = 0.15
"""Share of the peak that attention with tensor cores passes somewhere: a kernel that never does is none that training runs."""
HEAD_SIZES = (64, 128, 256, 512)
NARROW_SEQUENCES = (2048, 4096, 8192, 16384, 32768)
NARROW_MODELS = {"llama3.1": "128", "dsv3": "192,128"}
"""Models of cuDNN's benchmarks that have attention in FP8, and their head sizes."""
NARROW_FORMATS = {"fp8": "fp8", "mxfp8": "mx"}
SIZES = tuple(1 << p for p in range(17, 31))  # bytes of the whole tensor
RANKS = (2, 4, 8)
OPERATIONS = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2, "alltoall": 1}
"""NCCL's operations, and how often each byte passes a rank's links (nccl-tests' bus bandwidth)."""
FEW = 40
"""Least number of points to say how well they are met."""

Row = dict[str, Any]


class Tables:
    """The parquet tables of one wheel."""

    def __init__(self, wheel: Path) -> None:
        self._zip = zipfile.ZipFile(wheel)
        self._names = self._zip.namelist()

    def rows(self, gpu: str, operator: str, table: str) -> Iterator[tuple[str, list[Row]]]:
        """(framework/version, rows) of every table of that operator on a GPU."""
        wanted = re.compile(rf".*/systems/data/{gpu}/{operator}/([^/]+/[^/]+)/{table}\.parquet")
        for name in sorted(self._names):
            if found := wanted.fullmatch(name):
                yield found[1], pyarrow.parquet.read_table(io.BytesIO(self._zip.read(name))).to_pylist()

    def newest(self, gpu: str, operator: str, table: str) -> Iterator[list[Row]]:
        """The same of every framework's newest version: what a later one measured again is not asked twice."""
        latest: dict[str, tuple[tuple[int, ...], list[Row]]] = {}
        for where, rows in self.rows(gpu, operator, table):
            framework, version = where.split("/")
            made = numbered(version)
            if framework not in latest or made > latest[framework][0]:
                latest[framework] = made, rows
        yield from (rows for _, rows in latest.values())


def numbered(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def by_point(rows: Iterable[tuple[Any, float]]) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = defaultdict(list)
    for key, value in rows:
        found[key].append(value)
    return found


def roof(sheet: Product, fmt: str, m: int, n: int, k: int) -> float:
    """Seconds that the data sheet allows for a product."""
    moved = OPERAND_BYTES[fmt] * (m * k + k * n) + 2.0 * m * n
    return max(2.0 * m * n * k / sheet.peak_flops(PEAKS[fmt]), moved / sheet.hbm_bytes_per_s)


def gemm(tables: Tables, gpu: str, sheet: Product) -> tuple[dict[str, bytes], list[Row], dict[str, float]]:
    """Cells and checks by format, and how much of the rounds of tiles a format's products show."""
    cells: dict[str, bytes] = {}
    checks, tails = [], {}
    read = [(where, rows) for where, rows in tables.rows(gpu, "gemm", "gemm_perf")]
    # Some older tables hold powers of two only: one definition has to hold for every point.
    whole = [(where, rows) for where, rows in read if any(row["m"] == 1280 for row in rows)]
    for fmt, names in FORMATS.items():
        if fmt not in ("bf16",) and not any(row["gemm_dtype"] in names for _, rows in whole for row in rows):
            continue
        times: dict[tuple[int, int, int], list[float]] = defaultdict(list)
        for _, rows in whole:
            mine = by_point(
                ((row["m"], row["n"], row["k"]), row["latency"] * 1e-3)
                for row in rows
                if row["gemm_dtype"] in names and runs((row["m"], row["n"], row["k"]), fmt)
            )
            for point, found in mine.items():
                times[point].append(min(found))
        best = {point: median(t) if fmt == "bf16" else min(t) for point, t in times.items()}
        found = [(tail, *gridded(best, sheet, fmt, tail)) for tail in TAILS]
        tails[fmt], cells[fmt], row = min(found, key=lambda one: one[2]["median"] + one[2]["p95"])
        # In 16 bits every framework calls cuBLAS; kernels of other formats are their own.
        checks.append(row | (apart(t for p, t in times.items() if scored(p)) if fmt == "bf16" else {}))
    return cells, checks, {fmt: tail for fmt, tail in tails.items() if tail}


def gridded(best: Mapping[tuple[int, int, int], float], sheet: Product, fmt: str, tail: float) -> tuple[bytes, Row]:
    """Cells of the products' grid, and how well they meet the measured seconds of the points outside it."""
    shares = {p: min(1.0, roof(sheet, fmt, *p) / t * waves(p[0], p[1], sheet.sms, tail)) for p, t in best.items()}
    axes = (ROWS, SIDES, SIDES)
    cells = encode(filled(axes, shares))
    grid = Grid(axes, cells)
    out = [p for p in shares if scored(p) and any(size not in axis for size, axis in zip(p, axes, strict=True))]
    return cells, check("gemm", sheet, fmt, [shares[p] / grid.at(*p) for p in out])


def runs(point: tuple[int, int, int], fmt: str) -> bool:
    """Whether a training may run a product in a format, of no fewer rows, columns and depth than the grid has."""
    return all(size >= 128 and size % MULTIPLES[fmt] == 0 for size in point)


def scored(point: tuple[int, int, int]) -> bool:
    """Whether a product is of a size that trainings run."""
    return point[0] >= 1024 and all(512 <= size <= 16384 for size in point[1:])


def filled(axes: Sequence[Sequence[int]], shares: Mapping[tuple[int, ...], float]) -> list[float]:
    """A share for every point of the grid: the measured one, else that of the measured point nearest along the axes."""
    places = [{size: i for i, size in enumerate(axis)} for axis in axes]
    known = {
        tuple(place[size] for place, size in zip(places, point, strict=True)): share
        for point, share in shares.items()
        if all(size in place for place, size in zip(places, point, strict=True))
    }
    out = []
    for at in crossed(*(range(len(axis)) for axis in axes)):
        if at not in known:
            near = min(known, key=lambda other: sum(abs(a - b) for a, b in zip(at, other, strict=True)))
        out.append(known[at if at in known else near])
    return out


def check(operator: str, sheet: Product, form: str, ratios: Sequence[float]) -> Row:
    """How well points outside the grid are met; a ratio is predicted over measured time."""
    off = sorted(abs(ratio - 1.0) for ratio in ratios)
    if len(off) < FEW:
        return {"operator": operator, "gpu": sheet.name, "form": form, "points": len(off)}
    return {
        "operator": operator, "gpu": sheet.name, "form": form, "points": len(off),
        "median": round(median(off), 4), "p95": round(off[round(0.95 * (len(off) - 1))], 4),
    }  # fmt: skip


def apart(readings: Iterable[Sequence[float]]) -> Row:
    """How far times of one point that ought to agree are apart, the longest over the shortest."""
    spans = sorted(max(times) / min(times) - 1.0 for times in readings if len(times) > 1)
    if len(spans) < FEW:
        return {}
    return {"apart": round(median(spans), 4), "apart_p95": round(spans[round(0.95 * (len(spans) - 1))], 4)}


def attention(tables: Tables, gpu: str, sheet: Product) -> tuple[dict[str, bytes], list[Row]]:
    """Share of the 16-bit peak by head size; of several kernels the fastest, as cuDNN would be."""
    by_kernel: dict[tuple[str, str], dict[tuple[int, int], float]] = defaultdict(dict)
    for operator, table in (("attention", "context_attention_perf"), ("mla", "context_mla_perf")):
        for rows in tables.newest(gpu, operator, table):
            for (form, kernel, point), found in by_point(attention_shares(rows, sheet.peak_flops("bf16"))).items():
                # Rows of one point differ by what inference does beside: page tables of many short queries, keys and values
                # written to the cache. The upper quartile has little of either, and no single reading decides it.
                share = min(1.0, sorted(found)[round(0.75 * (len(found) - 1))])
                by_kernel[form, kernel][point] = max(share, by_kernel[form, kernel].get(point, 0.0))
    best: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for (form, _), points in by_kernel.items():
        if max(points.values()) >= NO_TENSOR_CORES:
            best[form].update({p: max(share, best[form].get(p, 0.0)) for p, share in points.items()})
    cells, checks = {}, []
    for form, points in sorted(best.items()):
        cells[form] = encode(filled((SEQUENCES, HEADS), points))
        grid = Grid((SEQUENCES, HEADS), cells[form])
        out = [p for p in points if not (p[0] in SEQUENCES and p[1] in HEADS) and HEADS[0] <= p[1] <= HEADS[-1]]
        checks.append(check("attention", sheet, form, [points[p] / grid.at(*p) for p in out]))
    return cells, checks


def attention_shares(rows: Iterable[Row], peak: float) -> Iterator[tuple[tuple[str, str, tuple[int, int]], float]]:
    """((head size or sizes, kernel, (sequence, heads in all sequences)), share of the peak) of whole causal attention in 16 bits.
    With a cache in FP8, kernels multiply in FP8 as well, or convert it first: neither is what training runs."""
    for row in rows:
        kind = row.get("attn_dtype") or row.get("mla_dtype")
        if kind != "bfloat16" or row["kv_cache_dtype"] != kind or row.get("window_size") or row.get("step"):
            continue
        sizes = (192, 128) if "mla_dtype" in row else (row["head_dim"], row["head_dim"])
        if row["isl"] >= min(SEQUENCES) and (sizes[0] != sizes[1] or sizes[0] in HEAD_SIZES):
            heads = row["batch_size"] * row["num_heads"]
            flops = heads * float(row["isl"]) ** 2 * sum(sizes)
            form = str(sizes[0]) if sizes[0] == sizes[1] else "192,128"
            yield (form, row["kernel_source"], (row["isl"], heads)), flops / (row["latency"] * 1e-3) / peak


def windows(tables: Tables, gpu: str, sheet: Product, wide: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[Row]]:
    """Share of the 16-bit peak of windowed attention by "head size, window", for the keys that it sees; of several kernels the fastest.
    Of the smallest window of a head size. Sequences are four windows long and more."""
    fastest: dict[tuple[int, int], dict[tuple[int, int], float]] = defaultdict(dict)
    for rows in tables.newest(gpu, "attention", "context_attention_perf"):
        for row in rows:
            size, window, kind, length = row["head_dim"], row.get("window_size"), row["attn_dtype"], row["isl"]
            heads = row["batch_size"] * row["num_heads"]
            usable = (
                window and kind == row["kv_cache_dtype"] == "bfloat16" and not row.get("step") and str(size) in wide
            )
            if usable and length >= max(4 * window, SEQUENCES[0]) and HEADS[0] <= heads <= HEADS[-1]:
                share = windowed_flops(length, heads, size, window) / (row["latency"] * 1e-3) / sheet.peak_flops("bf16")
                known = fastest[size, window]
                known[length, heads] = max(known.get((length, heads), 0.0), min(1.0, share))
    cells, checks = {}, []
    for size, window in sorted((size, min(w for s, w in fastest if s == size)) for size in {s for s, _ in fastest}):
        form, points = f"{size},{window}", fastest[size, window]
        cells[form] = encode(filled((SEQUENCES, HEADS), points))
        grid = Grid((SEQUENCES, HEADS), cells[form])
        out = [p for p in points if not (p[0] in SEQUENCES and p[1] in HEADS)]
        checks.append(check("windowed attention", sheet, form, [points[p] / grid.at(*p) for p in out]))
    return cells, checks


def windowed_flops(length: int, heads: int, size: int, window: int) -> float:
    """Forward, of the keys within the window; the first queries see fewer."""
    return 4.0 * heads * length * size * (window - window**2 / (2.0 * length))


def narrow(checkout: Path, gpu: str, sheet: Product, wide: Mapping[str, bytes]) -> dict[str, bytes]:
    """Attention in FP8 by "head sizes, format, pass, mask": its rate over that of the forward pass in 16 bits that `wide` has for the
    same shape, as a share of the twofold that the data sheet allows. Backward without a fixed order of sums, as trainings run."""
    gains: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted((checkout / "benchmark/sdpa_benchmark_training/results").rglob("*.csv")):
        for row in csv.DictReader(path.open()):
            form, kind, length = NARROW_MODELS.get(row["model_name"]), row["data_type"], int(row["q_seqlen"])
            usable = row["success"] == "True" and row["backend"] == "cudnn" and row["deterministic_bwd"] == "False"
            if row["gpu_name"] != f"NVIDIA {gpu}" or form is None or kind not in NARROW_FORMATS or not usable:
                continue
            whole, heads = row["attn_mask"] != "top_left", int(row["batch_size"]) * int(row["num_q_heads"])
            if row["profile_pass"] == "both":
                found = {"forward": row["fwd_time_ms"], "backward": row["bwd_time_ms"]}
            else:
                found = {"forward" if row["profile_pass"] == "fwd" else "backward": row["time_ms"]}
            flops = (
                heads * float(length) ** 2 * (int(row["head_dim_qk"]) + int(row["head_dim_vo"])) * (2 if whole else 1)
            )
            rate = sheet.peak_flops("bf16") * Grid((SEQUENCES, HEADS), wide[form]).at(length, heads)
            for way, time in found.items():
                name = f"{form} {NARROW_FORMATS[kind]} {way} {'whole' if whole else 'causal'}"
                gains[name][length] = flops * (2.5 if way == "backward" else 1.0) / (float(time) * 1e-3) / rate
    return {
        name: encode([found[length] / 2.0 for length in NARROW_SEQUENCES])
        for name, found in sorted(gains.items())
        if all(length in found for length in NARROW_SEQUENCES)
    }


def nccl(tables: Tables, gpu: str, sheet: Product) -> tuple[dict[str, bytes], list[Row]]:
    """Bus bandwidth over the rate of the links, one direction; the newest NCCL of the package, the median where it ran repeatedly."""
    rate = sheet.nvlink_bytes_per_s
    read = [row for _, rows in tables.rows(gpu, "comm", "nccl_perf") for row in rows if row.get("version")]
    if not read or not rate:
        return {}, []
    newest = max((row["version"] for row in read), key=numbered)
    read = [row for row in read if row["version"] == newest and row["nccl_dtype"] == "half"]
    cells, checks, readings = {}, [], []
    for operation, passes in OPERATIONS.items():
        times = by_point(
            ((2 * row["message_size"], row["num_gpus"]), row["latency"] * 1e-3)
            for row in read
            if row["op_name"] == operation and row["num_gpus"] in RANKS
        )
        readings += [found for (moved, _), found in times.items() if moved in SIZES]
        shares = {
            (moved, n): min(1.0, passes * moved * (n - 1) / n / median(found) / rate)
            for (moved, n), found in times.items()
        }
        cells[operation] = encode(filled((SIZES, RANKS), shares))
        # Every second size from its neighbours: the grid itself keeps all.
        coarse = Lines((SIZES[::2], RANKS), encode(filled((SIZES[::2], RANKS), shares)))
        checks.append([share / coarse.at(*p) for p, share in shares.items() if p[0] in SIZES[1:-1:2]])
    return cells, [check("nccl", sheet, "all", [ratio for some in checks for ratio in some]) | apart(readings)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("cudnn_frontend", type=Path, help="a checkout")
    args = parser.parse_args()
    tables = Tables(args.wheel)
    package = (
        f"aiconfigurator-core {args.wheel.name.split('-')[1]} (NVIDIA, Apache-2.0) and the benchmarks of cudnn-frontend (NVIDIA, MIT; "
        "scripts/make/operators.py)"
    )
    made: dict[str, Any] = {
        "about": f"What GPUs reach of their data sheets by shape, from {package}.",
        "axes": {
            "gemm": (ROWS, SIDES, SIDES),
            "attention": (SEQUENCES, HEADS),
            "window": (SEQUENCES, HEADS),
            "narrow": (NARROW_SEQUENCES,),
            "nccl": (SIZES, RANKS),
        },
        "tails": {},
        "shares": defaultdict(dict),
        "left_out": [],
    }
    for gpu, name in GPUS.items():
        sheet = sheet_of(name)
        assert sheet is not None, name
        products, left_out, tails = gemm(tables, gpu, sheet)
        if tails:
            made["tails"][name] = tails
        attended = attention(tables, gpu, sheet)
        for kind, (cells, checks) in (
            ("gemm", (products, left_out)), ("attention", attended), ("window", windows(tables, gpu, sheet, attended[0])),
            ("narrow", (narrow(args.cudnn_frontend, name.split()[0], sheet, attended[0]), [])), ("nccl", nccl(tables, gpu, sheet)),
        ):  # fmt: skip
            if cells:
                made["shares"][name][kind] = {form: b64encode(c).decode() for form, c in cells.items()}
            made["left_out"] += checks
    print(write("operators", made))
    for row in made["left_out"]:
        print(row)


if __name__ == "__main__":
    main()

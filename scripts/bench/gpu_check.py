"""What one GPU shows of this package's estimates: machine, doctor, operators, and eight small trainings beside their predictions.

    scripts/gpu_check [FOLDER] [--device cuda|cpu] [--only NUMBER …] [--minutes 10]

Writes into FOLDER: `machine/` (a capture for --hardware), `doctor.json`, `operators.json` (what was timed), `machine.json` (for
--machine-file), `gpu_check.jsonl` and `gpu_check_memory.jsonl` (rows as `validation/` has them, to be committed there), `summary.md`.
Rows and summary are written anew after every training. A step that fails says so, leaves its whole story in `failed.log`, and the others
go on; what touches the GPU runs in processes of its own, on the first GPU alone. After `--minutes` no further training starts.
On a CPU models are tiny, predictions are for DGX H100, and no row is written to be kept; nor where Transformer Engine does not load, whose
layers are what rows mean (`gpu_check-alone.jsonl`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from parlaunch.check.calibrate import from_microbenchmarks
from parlaunch.check.measured import Machines, Run, memory_of, run_of
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.shapes import Shapes, shapes_of
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import Product, preset, preset_names
from parlaunch.hardware.derived import sheet_of

ROOM = 0.85
"""Share of the GPU that a training may be predicted to take: a model that does not fit loses layers."""
LIMIT_S = 240
"""Longest a step may hang: a training takes half a minute, imports included."""
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a job's environment says of ranks: what is trained and timed here is alone."""
DENSE: dict[str, Any] = {
    "num_layers": 4, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
    "kv_channels": 128, "vocab_size": 32000, "gated_linear_unit": True, "activation_func": "silu", "normalization": "RMSNorm",
}  # fmt: skip
LATENT = {
    "hidden_size": 2048, "ffn_hidden_size": 10944, "num_attention_heads": 16, "num_query_groups": 16, "multi_latent_attention": True,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_head_dim": 128, "qk_pos_emb_head_dim": 64, "v_head_dim": 128, "qk_layernorm": True,
}  # fmt: skip
EXPERTS = {
    "hidden_size": 2048, "num_attention_heads": 16, "num_query_groups": 4, "num_moe_experts": 16, "moe_router_topk": 4,
    "moe_ffn_hidden_size": 1408,
}  # fmt: skip
PLAIN = {"gated_linear_unit": False, "activation_func": "gelu", "normalization": "LayerNorm", "num_query_groups": 32}
FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dense", {"arch": DENSE}),
    ("dense, two samples, growing segments", {"arch": DENSE, "mbs": 2, "grows": True}),
    ("a plain MLP and LayerNorm, tied", {"arch": DENSE | PLAIN | {"share_embeddings_and_output_weights": True}}),
    ("a wide vocabulary", {"arch": DENSE | {"num_layers": 2, "vocab_size": 128256}}),
    ("four samples, all computed again", {"arch": DENSE, "mbs": 4, "recompute": FULL}),
    ("FP8", {"arch": DENSE, "precision": "fp8cs"}),
    ("latent attention", {"arch": DENSE | LATENT}),
    ("experts, growing segments", {"arch": DENSE | EXPERTS, "grows": True}),
)
ALONE = "low: without Transformer Engine"
SMALL = {
    "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16,
    "vocab_size": 512, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_head_dim": 16, "qk_pos_emb_head_dim": 8, "v_head_dim": 16,
    "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 64,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="trainings to run, of 1 to 8; else all")
    parser.add_argument("--minutes", type=float, default=10.0, help="after so many no further training starts (10)")
    asked = parser.parse_args()
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for i, case in enumerate(CASES, 1) if asked.only is None or i in asked.only]
    steps, device = Steps(folder, time.monotonic() + 60 * asked.minutes), asked.device

    steps.do("capture", lambda: _parlaunch("probe", "--save", str(folder / "machine"), "--redact"))
    here = steps.do("machine", _machine)
    steps.do("doctor", lambda: _doctor(folder))
    sheet = _sheet(here) if device == "cuda" else None
    libraries = steps.do("libraries", lambda: _libraries(steps)) or {} if device == "cuda" else {}
    if sheet is not None and not ("fp8" in sheet.flops and libraries.get("engine")):
        cases = [(name, case) for name, case in cases if "precision" not in case]
    hardware = "dgx-h100" if sheet is None else steps.do("preset", lambda: _preset(sheet))
    rows = [_row(name, case, hardware, sheet, libraries) for name, case in cases] if hardware else []
    predicted = [(row, steps.do(f"prediction of {row['id']}", partial(_fitting, row))) for row in rows]
    runs = [run for _, run in predicted if run is not None]
    steps.do("operators", lambda: _operators(folder, runs, device, sheet, steps))
    took: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for row, run in predicted:
        if run is None:
            continue
        answer = steps.do(f"training {row['id']}", partial(_train, row, device), late=True)
        if answer is not None:
            took.append((row, answer))
            steps.do("rows and summary", lambda: _write(folder, took, device, steps.failed))
    _write(folder, took, device, steps.failed)
    print((folder / "summary.md").read_text())
    return 1 if steps.failed else 0


class Steps:
    """Does one thing after another, and goes on where one fails. `ends`: when no late one starts any more (`time.monotonic`)."""

    def __init__(self, folder: Path, ends: float) -> None:
        self.log, self.ends = folder / "failed.log", ends
        self.failed: list[str] = []
        self.log.unlink(missing_ok=True)

    def do(self, name: str, work: Callable[[], Any], *, late: bool = False) -> Any:
        print(f"-- {name}", flush=True)
        if late and time.monotonic() > self.ends:
            self.fail(name, "not started, the time is over: --minutes gives it more, --only picks some")
            return None
        try:
            return work()
        except Exception as error:  # whatever a library raises: the others go on
            self.fail(name, _first_line(error), traceback.format_exc())
            return None

    def fail(self, name: str, why: str, story: str = "") -> None:
        self.failed.append(f"{name}: {why}")
        print(f"   failed: {self.failed[-1]}", file=sys.stderr, flush=True)
        with self.log.open("a") as log:
            log.write(f"== {self.failed[-1]}\n{story}\n")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _machine() -> Cluster:
    from parlaunch_probes import probe

    return probe(environ=dict(os.environ))


def _doctor(folder: Path) -> None:
    found = _parlaunch("doctor", "--format", "json", may_fail=True)
    (folder / "doctor.json").write_text(found)


def _parlaunch(*words: str, may_fail: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "parlaunch", *words], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode and not may_fail:
        raise RuntimeError(done.stderr.strip() or f"parlaunch {words[0]} ended with {done.returncode}")
    return done.stdout


def _sheet(here: Cluster | None) -> Product:
    """The data sheet of this machine's first GPU."""
    gpus = [gpu for node in here.nodes for gpu in node.gpus] if here else []
    sheet = sheet_of(gpus[0]) if gpus else None
    if sheet is None:
        raise SystemExit(
            "error: no GPU was found here\n  hint: `parlaunch probe` says why; --device cpu tries the steps without one"
        )
    return sheet


def _preset(sheet: Product) -> str:
    """A preset around this GPU: rows name their machine by one, NVIDIA's own before a cloud's."""
    for name in sorted(preset_names(), key=lambda name: not name.startswith("dgx")):
        found = sheet_of(preset(name).nodes[0].gpus[0])
        if found is not None and found.name == sheet.name:
            return name
    raise ParlaunchError(
        f"no preset has the GPU {sheet.name}, and rows name their machine by one: operators alone are timed",
        hint="add one to parlaunch/data/presets.json (docs/adding-a-machine.md)",
    )


def _row(
    name: str, case: Mapping[str, Any], hardware: str, sheet: Product | None, libraries: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of a table of runs, without what is to be measured. `sheet`: None on a CPU."""
    arch, cpu, engine = dict(case["arch"]), sheet is None, libraries.get("engine")
    if cpu:
        arch |= {k: v for k, v in SMALL.items() if k in arch}
    precision = "bf16" if cpu else case.get("precision", "bf16")
    mbs, words = case.get("mbs", 1), name.replace(",", "").replace(" ", "-").lower()
    # Core's own loop has no growing segments unless the environment says so; Bridge always has, which is how rows say it.
    framework = "Megatron-Bridge (Core's loop)" if case.get("grows") else "Megatron-Core"
    return {
        "id": f"gpu-check-{(sheet.name if sheet else 'cpu').replace(' ', '-').lower()}-{words}", "model": name, "arch": arch,
        "task": "pretrain", "hardware": hardware, "gpus": 1, "framework": framework, "software": _software(), "precision": precision,
        "tp": 1, "pp": 1, "mbs": mbs, "gbs": 4 * mbs, "seq": 64 if cpu else 4096, "recompute": case.get("recompute"),
        "features": {
            "grad_reduce_fp32": True, "cross_entropy": "unfused", "force_balance": True,
            "rope_fusion": not arch.get("multi_latent_attention", False), "fused_accumulation": bool(libraries.get("fused")),
        }, "status": "ok",
        "source": "scripts/gpu_check", "licence": "this repository's",
        "confidence": "high" if engine else ALONE,  # rows mean Transformer Engine's layers
    }  # fmt: skip


def _libraries(steps: Steps) -> dict[str, Any]:
    """What trainings will find here; what they will miss is said before they start."""
    found = _one_gpu("--libraries")
    if not found["gpu"]:
        steps.fail("libraries", "torch sees no GPU: is it one for a CPU, or for a newer driver?")
    if not found["engine"]:
        print(
            f"   Transformer Engine: {found['why']}; layers are Megatron Core's own, and nothing is in FP8", flush=True
        )
    return found


def _software() -> str:
    names = {"megatron-core": "Megatron Core", "transformer-engine": "TE", "torch": "PyTorch"}
    found = []
    for package, word in names.items():
        try:
            found.append(f"{word} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {word}")
    return ", ".join(found)


def _fitting(row: dict[str, Any]) -> Run:
    """The row understood, its model with as many layers as the GPU has room for."""
    while True:
        run = run_of(row, Machines())
        memory = memory_of(run)
        if memory.peak <= ROOM * memory.capacity:
            return run
        if row["arch"]["num_layers"] == 1:
            raise ParlaunchError(f"not even one layer of {row['model']} fits this GPU")
        row["arch"] = row["arch"] | {"num_layers": row["arch"]["num_layers"] - 1}


def _operators(folder: Path, runs: Sequence[Run], device: str, sheet: Product | None, steps: Steps) -> None:
    """The trainings' own products (forward and both backward), attention both ways, copies and launches."""
    asked = [shapes_of(run.recipe, run.layout, run.rates) for run in runs]
    shapes = Shapes(*(tuple(dict.fromkeys(x for one in asked for x in one[i])) for i in range(3))) if asked else None
    # Nothing of it stays on the GPU beside the trainings, and a kernel that hangs or faults takes nothing with it.
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_timed, args=(theirs, device, shapes))
    child.start()
    theirs.close()
    try:
        found = mine.recv() if mine.poll(LIMIT_S) else f"not done after {LIMIT_S} s"
    except EOFError:
        found = "it ended without a word"
    finally:
        mine.close()
        child.kill()
        child.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    for sentence in found.pop("failed"):
        steps.fail("operators", sentence)
    (folder / "operators.json").write_text(json.dumps(found, indent=1) + "\n")
    if sheet is not None:
        (folder / "machine.json").write_text(json.dumps(from_microbenchmarks(found, sheet), indent=1) + "\n")


def _timed(answer: Any, device: str, shapes: Shapes | None) -> None:
    """In a process of its own: what was timed, with the sentences of what could not be; or why nothing was."""
    os.environ |= _alone(os.environ)
    for name in RANKS:
        os.environ.pop(name, None)
    from parlaunch_launch.microbench import measure

    failed: list[str] = []
    try:
        found = measure(
            device=device, shapes=shapes, progress=lambda text: print(f"   {text}", flush=True), failed=failed
        )
        answer.send(found | {"failed": failed})
    except Exception as error:
        answer.send(_first_line(error))


def _alone(environ: Mapping[str, str]) -> dict[str, str]:
    """The first GPU, in the order in which the driver lists them, and no network."""
    visible = environ.get("CUDA_VISIBLE_DEVICES") or "0"
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible.split(",")[0],
        "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def _train(row: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What `parlaunch_launch.one_gpu` measures of this row, in a process of its own."""
    # torch has two names for it; a version that does not know the new one reads past it.
    grows = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF") if row["framework"].startswith("Megatron-Bridge") else ()
    question = dict(row) | {"iterations": 4 if device == "cpu" else 12}
    return _one_gpu("--device", device, question=question, more=dict.fromkeys(grows, "expandable_segments:True"))


def _one_gpu(*words: str, question: Mapping[str, Any] | None = None, more: Mapping[str, str] | None = None) -> Any:
    """The answer of `parlaunch_launch.one_gpu`, in a process of its own; `more`: of its environment."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_") and k not in RANKS}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "parlaunch_launch.one_gpu", *words], input=json.dumps(question), capture_output=True, text=True,
            timeout=LIMIT_S, check=False, env={**environ, **_alone(environ), **(more or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stderr.decode(errors="replace") if isinstance(late.stderr, bytes) else late.stderr
        raise RuntimeError(f"not done after {LIMIT_S} s\n{said or ''}") from None
    if done.returncode:
        raise RuntimeError(f"{_blamed(done.stderr)}\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print at their end too
    return json.loads(lines[-1])


def _blamed(stderr: str) -> str:
    """The sentence that ended a training: the last exception, else the last line."""
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line).strip() for line in stderr.splitlines()]
    lines = [line for line in lines if line]
    named = [line for line in lines if re.match(r"error: |[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or ["it ended without a word"])[-1]


def _write(
    folder: Path, took: Sequence[tuple[dict[str, Any], dict[str, Any]]], device: str, failed: Sequence[str]
) -> None:
    """The tables of rows, and predicted beside measured."""
    times, peaks, lines = [], [], []
    machines = Machines()
    for row, answer in took:
        timed = row | {"iteration_time_s": round(answer["iteration_time_s"], 5)}
        times.append(timed)
        run = run_of(timed, machines)
        memory, seconds = memory_of(run), estimate_time(run.recipe, run.layout, run.rates).iteration_time_s
        cells = [f"{1e3 * seconds:.1f} / {1e3 * answer['iteration_time_s']:.1f}"]
        for kind, predicted in (("allocated", memory.allocated), ("reserved", memory.reserved)):
            measured = answer[kind]
            if measured is not None:
                peaks.append(row | {
                    "id": f"mem-{kind}-{row['id']}", "run_id": row["id"], "peak_mem": round(measured / 2**30, 3), "unit": "GiB",
                    "metric": f"torch max_memory_{kind}",
                })  # fmt: skip
            cells.append(_beside(predicted, measured))
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    about = kept = ""
    if device == "cpu":
        kept, about = (
            "-cpu",
            "Tiny models on a CPU, predicted as if on DGX H100: the steps work, the figures say nothing.\n\n",
        )
    elif any(row["confidence"] == ALONE for row, _ in took):
        kept, about = (
            "-alone",
            "Layers are Megatron Core's own, and Transformer Engine's are predicted: no row is to be kept.\n\n",
        )
    for name, rows in (("gpu_check", times), ("gpu_check_memory", peaks)):
        (folder / f"{name}{kept}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "| training | ms an iteration, predicted / measured | GiB allocated | GiB reserved |\n|---|---|---|---|\n"
    wrong = "".join(f"- failed: {sentence}\n" for sentence in failed)
    (folder / "summary.md").write_text(about + head + "\n".join(lines) + "\n" + (f"\n{wrong}" if wrong else ""))


def _beside(predicted: float, measured: int | None) -> str:
    if measured is None:
        return f"{predicted / 2**30:.2f} / -"
    return f"{predicted / 2**30:.2f} / {measured / 2**30:.2f} ({predicted / measured - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())

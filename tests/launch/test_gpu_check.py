"""`scripts/gpu_check` without a GPU: the same steps in small, so that they are known to work before somebody has ten minutes of one."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parlaunch.check.measured import Machines, run_of
from parlaunch.check.validate import validate
from parlaunch.hardware.datasheet import preset, product
from parlaunch.hardware.derived import sheet_of
from tests.conftest import HANGS_S, need

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a check of two of the eight trainings leaves: latent attention, and experts."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    folder = tmp_path_factory.mktemp("gpu") / "check"
    done = subprocess.run(
        [str(ROOT / "scripts" / "gpu_check"), str(folder), "--device", "cpu", "--only", "7", "8", "--minutes", "60"],
        capture_output=True, text=True, timeout=2 * HANGS_S, check=False,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_it_leaves_machine_doctor_operators_rows_and_a_summary(checked: Path) -> None:
    names = {path.name for path in checked.iterdir()}
    assert names == {
        "machine", "doctor.json", "operators.json", "gpu_check-cpu.jsonl", "gpu_check_memory-cpu.jsonl", "summary.md",
    }  # fmt: skip
    assert json.loads((checked / "doctor.json").read_text())["schema"].startswith("parlaunch.doctor/")
    timed = json.loads((checked / "operators.json").read_text())
    assert all(timed[name] for name in ("gemm", "attention", "stream", "launch"))
    assert {row["backward"] for row in timed["attention"]} == {False, True}
    summary = (checked / "summary.md").read_text()
    assert "Tiny models on a CPU" in summary
    assert "| latent attention |" in summary
    assert "failed" not in summary


def test_its_rows_are_rows_of_a_table_of_runs(checked: Path) -> None:
    rows = [json.loads(line) for line in (checked / "gpu_check-cpu.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["latent attention", "experts, growing segments"]
    assert all(row["source"] and row["licence"] and row["iteration_time_s"] > 0 for row in rows)
    runs = [run_of(row, Machines()) for row in rows]
    assert all(run.scored and not run.notes for run in runs)
    # Core's loop as it is counts empty blocks; with growing segments it is counted as Bridge's recipes are.
    assert [run.recipe.features.framework for run in runs] == ["Megatron-Core", "Megatron-Bridge (Core's loop)"]
    assert all(row["predicted"] for row in validate(rows)["rows"])


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "bench" / "gpu_check.py"), run_name="gpu_check")


def test_a_step_that_fails_leaves_its_story_and_the_others_go_on(script: dict[str, Any], tmp_path: Path) -> None:
    steps = script["Steps"](tmp_path, time.monotonic() + HANGS_S)

    def broken() -> None:
        raise AttributeError("module 'torch' has no attribute '_scaled_mm'")

    assert steps.do("operators", broken) is None
    assert steps.do("training", lambda: "went", late=True) == "went"
    assert steps.failed == ["operators: module 'torch' has no attribute '_scaled_mm'"]
    log = (tmp_path / "failed.log").read_text()
    assert "Traceback" in log
    assert ", in broken" in log


def test_no_training_starts_after_the_time_is_over(script: dict[str, Any], tmp_path: Path) -> None:
    steps = script["Steps"](tmp_path, time.monotonic())
    assert steps.do("summary", lambda: "went") == "went"
    assert steps.do("training", lambda: "went", late=True) is None
    assert steps.failed == ["training: not started, the time is over: --minutes gives it more, --only picks some"]


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("error: torch is not installed here; run it\n", "error: torch is not installed here; run it"),
        (
            "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n[rank0]: W NCCL\n",
            "torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (
            '[rank0]:   File "x"\n[rank0]: ValueError: no such recipe\n[rank0]:[W1129 ProcessGroupNCCL.cpp] Warning: not destroyed\n',
            "ValueError: no such recipe",
        ),
        ("Segmentation fault (core dumped)\n", "Segmentation fault (core dumped)"),
        ("", "it ended without a word"),
    ],
)
def test_the_sentence_that_ended_a_training_is_found(script: dict[str, Any], stderr: str, sentence: str) -> None:
    assert script["_blamed"](stderr) == sentence


@pytest.mark.parametrize(("visible", "first"), [(None, "0"), ("2,3", "2"), ("GPU-8f,GPU-9a", "GPU-8f")])
def test_the_first_gpu_alone_is_used(script: dict[str, Any], visible: str | None, first: str) -> None:
    assert script["_alone"]({"CUDA_VISIBLE_DEVICES": visible} if visible else {})["CUDA_VISIBLE_DEVICES"] == first


@pytest.mark.parametrize(("gpu", "name"), [("H200 SXM", "dgx-h200"), ("H100 SXM", "dgx-h100")])
def test_rows_name_the_vendors_machine_before_a_clouds(script: dict[str, Any], gpu: str, name: str) -> None:
    assert sheet_of(preset(script["_preset"](product(gpu))).nodes[0].gpus[0]) == product(gpu)
    assert script["_preset"](product(gpu)) == name


@pytest.mark.parametrize(("engine", "name"), [(True, "gpu_check.jsonl"), (False, "gpu_check-alone.jsonl")])
def test_rows_without_transformer_engine_are_not_kept(
    script: dict[str, Any], tmp_path: Path, engine: bool, name: str
) -> None:
    row = script["_row"]("dense", {"arch": script["DENSE"]}, "dgx-h200", product("H200 SXM"), {"engine": engine})
    answer = {"iteration_time_s": 0.5, "allocated": 20 * 2**30, "reserved": 21 * 2**30}
    script["_write"](tmp_path, [(row, answer)], "cuda", ["training x: out of memory"])
    assert len((tmp_path / name).read_text().splitlines()) == 1
    assert ("no row is to be kept" in (tmp_path / "summary.md").read_text()) is not engine
    assert "- failed: training x: out of memory" in (tmp_path / "summary.md").read_text()


def _in_a_process(code: str, question: Any = None) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=json.dumps(question), capture_output=True, text=True, check=False,
        timeout=HANGS_S, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT}:{ROOT}/launch"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("number", [5, 7, 8])
def test_the_branches_for_a_gpu_run_on_one_that_is_a_cpu(script: dict[str, Any], number: int) -> None:
    """Without Transformer Engine, of which nothing runs here: recomputation, latent attention, experts."""
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    name, case = script["CASES"][number - 1]
    small = case | {"arch": case["arch"] | {k: v for k, v in script["SMALL"].items() if k in case["arch"]}}
    row = script["_row"](name, small, "dgx-h200", product("H200 SXM"), {"engine": False, "fused": False})
    question = row | {"seq": 64, "iterations": 2}
    code = "import tests.fake_cuda; from parlaunch_launch.one_gpu import main; main()"
    answer = json.loads(_in_a_process(code, question).splitlines()[-1])
    assert (answer["allocated"], answer["reserved"]) == (5 * 2**30, 6 * 2**30)
    assert answer["losses"][1] < answer["losses"][0]
    assert not answer["transformer_engine"]


def test_operators_of_a_gpu_are_timed_on_one_that_is_a_cpu() -> None:
    need(importlib.util.find_spec("torch"), "torch")
    code = (
        "import tests.fake_cuda, json; from parlaunch_launch import microbench as m; "
        "from parlaunch.estimate.timing.shapes import Shapes, Product, Attention; "
        "shapes = Shapes((Product(64, 32, 16, 'fp8'), Product(64, 48, 16, 'bf16')), (Attention(64, 2, 24, 16),), ()); "
        "print(json.dumps(m.measure(shapes=shapes)))"
    )
    found = json.loads(_in_a_process(code).splitlines()[-1])
    assert found["gpu"] == "NVIDIA H200"
    assert [row["format"] for row in found["gemm"]] == ["fp8", "bf16"]
    assert not found["nvlink"]


def test_a_product_that_this_torch_lacks_takes_no_other_operator_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("torch"), "torch")
    from parlaunch_launch import microbench

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat2 must be col_major\nException raised from Blas.cpp")

    monkeypatch.setattr(microbench, "product", refused)
    monkeypatch.setattr(microbench, "_spawned", lambda *_: {})
    failed: list[str] = []
    found = microbench.measure(device="cpu", failed=failed)
    assert failed == ["products: mat2 must be col_major"]
    assert "gemm" not in found
    assert all(found[name] for name in ("attention", "stream", "launch"))
    with pytest.raises(RuntimeError, match="col_major"):
        microbench.measure(device="cpu")


def test_a_torch_that_sees_no_gpu_is_said_before_anything_is_trained() -> None:
    need(importlib.util.find_spec("torch") and importlib.util.find_spec("megatron"), "torch and megatron-core")
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False; from parlaunch_launch.one_gpu import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("sees no GPU; `parlaunch doctor` says what is wrong with the machine\n")
    found = json.loads(
        _in_a_process(code.replace("sys, torch;", "sys, torch; sys.argv.append('--libraries');")).splitlines()[-1]
    )
    assert found["gpu"] is None


def test_a_transformer_engine_that_does_not_load_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    from parlaunch_launch import one_gpu

    one_gpu.unloaded.cache_clear()
    assert one_gpu.unloaded() == "libcudart.so.12: cannot open"
    assert not one_gpu.engine()
    assert not one_gpu.fused_accumulation()
    monkeypatch.undo()
    one_gpu.unloaded.cache_clear()


@pytest.mark.parametrize("missing", ["torch", "megatron.core"])
def test_a_training_without_its_libraries_says_which_and_where_to_run_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from parlaunch_launch.one_gpu import main; main()"
    done = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"error: {missing} is not installed here; run it in the container or environment that trains\n"
    )

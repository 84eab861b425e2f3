"""Bad input: one clear message, the exit code of its kind, no traceback."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Said

Run = Callable[..., Said]
LLAMA = ("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:1", "--dry-run")


@pytest.mark.parametrize(
    ("words", "code", "sentences"),
    [
        (("--dry-run",), 2, ["neither --recipe nor --model-config"]),
        (("--recipe", "llama32_1b_pretrain_confg", "--dry-run"), 2, ["unknown recipe", "llama32_1b_pretrain_config"]),
        (("--recipe", "Meta-Llama/Meta-Llama-3-8B", "--dry-run"), 2, ["unknown recipe", " llama3_8b_pretrain_config"]),
        (("--recipe", "LLAMA3-8B-PRETRAIN", "--dry-run"), 2, ["unknown recipe", " llama3_8b_pretrain_config"]),
        (("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h10:2", "--dry-run"), 2, ["dgx-h10", "dgx-h100"]),
        (("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:0", "--dry-run"), 2, ["no node"]),
        (("--recipe", "llama32_1b_pretrain_config", "--hardware", "gone/topo.txt", "--dry-run"), 1, ["gone/topo.txt"]),
        ((*LLAMA, "model.tensor_model_parallel_size=two"), 2, ["'two'", "whole number"]),
        ((*LLAMA, "model.sequence_parallel=maybe"), 2, ["maybe", "True or False"]),
        ((*LLAMA, "nonsense"), 2, ["'nonsense'", "KEY=VALUE"]),
        ((*LLAMA, "--tp", "2", "model.tensor_model_parallel_size=4"), 2, ["--tp 2 contradicts", "4"]),
        ((*LLAMA, "--seq-length", "4096", "dataset.seq_length=8192"), 2, ["--seq-length 4096 contradicts", "8192"]),
        ((*LLAMA, "--tp", "3"), 2, ["3"]),
        ((*LLAMA, "--tp", "8", "--pp", "2"), 2, ["16"]),
        ((*LLAMA, "--format", "yaml"), 2, ["yaml", "json"]),
        ((*LLAMA, "--precision", "int4"), 2, ["int4", "bf16"]),
        ((*LLAMA, "--objective", "beauty"), 2, ["beauty", "memory"]),
        ((*LLAMA, "--recompute", "everything"), 2, ["everything", "selective"]),
        ((*LLAMA, "--device", "tpu"), 2, ["tpu", "cuda"]),
        ((*LLAMA, "--why-not", "tp8"), 2, ["tp8", "tp=8"]),
        ((*LLAMA, "--nproc-per-node", "16"), 1, ["16", "8 GPUs"]),
        ((*LLAMA, "--nnodes", "4"), 2, ["--nnodes 4", "dgx-h100:1"]),
        (("plan", "--recipe", "llama31_405b_pretrain_config", "--hardware", "l4-8:1"), 3, ["GiB"]),
        (("--recipe", "llama3_70b_pretrain_config", "--hardware", "dgx-h100:1", "--tp", "1", "--pp", "1", "--cp", "1",
          "--micro-batch-size", "1", "--recompute", "none", "--dry-run"), 3, ["GiB"]),
        (("plan", "--model-config", "gone.json"), 2, ["gone.json"]),
        (("--plan", "gone.json", "--dry-run"), 2, ["gone.json", "--save-plan"]),
        (("diff", "gone.json", "also.json"), 2, ["gone.json"]),
        (("prob",), 2, ["no command", "probe"]),
        (("recipies", "show"), 2, ["recipes"]),
        ((*LLAMA, "--gpu", "L40S"), 2, ["L40S contradicts", "H100"]),
        ((*LLAMA, "--gpu", "h1000"), 2, ["h1000", "H100"]),
        ((*LLAMA, "--machine-file", "gone.json"), 2, ["gone.json", "calibrate"]),
        (("validate", "gone.json"), 2, ["gone.json", "rows"]),
        (("recipes", "--task", "eat"), 2, ["eat", "pretrain"]),
        ((*LLAMA, "--price", "nan"), 2, ["--price nan"]),
        ((*LLAMA, "--tokens", "1T", "--price", "inf"), 2, ["--price inf"]),
        ((*LLAMA, "--mtbf", "nan"), 2, ["--mtbf nan"]),
        ((*LLAMA, "--seq-length", "9" * 30), 2, ["--seq-length 999"]),
        ((*LLAMA, f"model.hidden_size={'9' * 30}"), 2, ["model.hidden_size=999"]),
        ((*LLAMA, "--tokens", "1e308T"), 2, ["1e308T"]),
        ((*LLAMA, "--why-not", "tp=²"), 2, ["tp=²", "tp=8"]),
        ((*LLAMA, "--nnodes", "²"), 2, ["--nnodes ²", "--nnodes 4"]),
        ((*LLAMA, "--recompute", "full:block:0"), 2, ["full:block:0", "full:block:4"]),
        ((*LLAMA, f"train.train_iters={'9' * 5000}"), 2, ["5000 digits"]),
        ((*LLAMA, "~model.tensor_model_parallel_size"), 2, ["takes back model.tensor_model_parallel_size=1", "leave"]),
        ((*LLAMA, "~model"), 2, ["~model takes back", "leave ~model out"]),
        (("plan", *LLAMA[:2], "--hardware", ""), 2, ["--hardware names nothing", "dgx-h100:4"]),
        (("plan", *LLAMA[:2], "--hardware", "auto:4"), 2, ["what is here", "here.json:4"]),
        (("plan", *LLAMA[:2], "--hardware", "dgx-h100:999999999"), 2, ["no job has so many", "dgx-h100:100000"]),
        (("plan", *LLAMA[:2], "--hardware", f"dgx-h100:{'9' * 5000}"), 2, ["unknown machine"]),
        (("validate", "/dev/null"), 2, ["/dev/null has no rows", "run"]),
        (("diff", "/dev/null", "/dev/null"), 2, ["diff /dev/null"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_to_try(
    parlaunch: Run, words: tuple[str, ...], code: int, sentences: list[str]
) -> None:
    said = parlaunch(*words)
    assert said.code == code, said.err
    assert said.err.splitlines()[0].startswith(("error: ", "note: ")) or "error: " in said.err
    for sentence in sentences:
        assert sentence in said.err
    assert "Traceback" not in said.err


def test_no_gpu_and_no_hardware_says_what_to_do_instead(parlaunch: Run, tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    capture = tmp_path / "empty.json"
    capture.write_text(
        json.dumps({"schema": "parlaunch.probe/1", "hardware": {"source": "probe", "nodes": [{"hostname": "laptop"}]}})
    )
    said = parlaunch("--recipe", "llama32_1b_pretrain_config", "--hardware", str(capture), "--dry-run")
    assert said.code == 1
    assert "no GPU on this machine" in said.err
    assert "--hardware dgx-h100:2" in said.err
    assert "--device cpu" in said.err


@pytest.mark.parametrize("words", [("--seq-length", "0"), ("--global-batch-size", "0"), ("--master-port", "70000")])
def test_a_number_out_of_range_is_named(parlaunch: Run, words: tuple[str, str]) -> None:
    said = parlaunch(*LLAMA, *words)
    assert said.code == 2
    assert words[0] in said.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("plan", *LLAMA[:2], "--hardware", "/shut/machine.json"), 1), (("plan", *LLAMA[:2], "--hardware", "/shut/machine.json:4"), 1),
        (("plan", "--model-config", "/shut/config.json"), 2), ((*LLAMA, "--software", "/shut/machine.json"), 1),
        (("plan", *LLAMA[:4], "--script", "/shut/train.py"), 0), (("config",), 0), (LLAMA, 0),
    ],
)  # fmt: skip
def test_a_folder_that_is_closed_to_us_ends_nothing(
    parlaunch: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    stat = os.stat

    def closed(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(path).startswith("/shut/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *rest, **more)

    monkeypatch.setattr(os, "stat", closed)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "MEGATRON_BRIDGE_HOME"):
        monkeypatch.setenv(name, "/shut/in")
    said = parlaunch(*words)
    assert said.code == code, said.err
    assert code == 0 or "/shut/" in said.err


def test_an_unreadable_capture_is_named(parlaunch: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema": "parlaunch.capture/1", "hardware": ')
    said = parlaunch("probe", "--hardware", str(broken))
    assert said.code == 1
    assert "broken.json" in said.err


def test_a_missing_runner_stops_the_launch_and_says_how_to_get_one(
    parlaunch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGATRON_BRIDGE_HOME", "/nowhere")
    said = parlaunch("--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:1", "--force")
    assert said.code in (1, 2)
    assert "MEGATRON_BRIDGE_HOME" in said.err


def test_data_goes_to_stdout_and_everything_else_to_stderr(parlaunch: Run) -> None:
    said = parlaunch(*LLAMA, "--format", "json")
    assert said.code == 0
    assert json.loads(said.out)["schema"] == "parlaunch.plan/1"


def test_an_evaluation_that_does_not_fit_is_still_reported(parlaunch: Run) -> None:
    said = parlaunch(
        "plan", "--recipe", "llama3_70b_pretrain_config", "--hardware", "dgx-h100:1", "--tp", "8", "--pp", "1", "--cp", "1",
        "--vp", "1", "--ep", "1", "--etp", "1", "--micro-batch-size", "1", "--recompute", "none", "--format", "json",
    )  # fmt: skip
    assert said.code == 3
    assert json.loads(said.out)["memory"]["fits"] is False

"""`parlaunch verify --log`: runs that are over, judged by their logs and remembered."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from parlaunch_launch import history
from tests.cli.conftest import Said

HERE = ("--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:1")


def megatron(*, tp: int = 2, batch: int = 512, loss: str = "1.1E+01", prefix: str = "") -> str:
    lines = [f"using world size: 8, data-parallel size: {8 // tp}, context-parallel size: 1, tensor-model-parallel size: {tp}, "
             "pipeline-model-parallel size: 1"]  # fmt: skip
    lines += [
        f" iteration {n:8d}/      4 | consumed samples: {n * batch} | elapsed time per iteration (ms): 9000.0 | learning rate: 1E-4 |"
        f" global batch size: {batch} | lm loss: {loss} | loss scale: 1.0 | grad norm: 1.0 | number of skipped iterations:   0 |"
        " number of nan iterations:   0 |"
        for n in range(1, 5)
    ]
    return "".join(f"{prefix}{line}\n" for line in lines)


NEMO2 = "".join(
    f"Training epoch 0, iteration {n}/3 | lr: 1e-05 | global_batch_size: 512 | global_step: {n} | reduced_train_loss: 11.2 |"
    f" train_step_timing in s: 9.1 | consumed_samples: {512 * (n + 1)}\n"
    for n in range(4)
)
NEMO1 = "[NeMo I 2024-01-01 10:00:00 megatron_init:269] Rank 0 has tensor model parallel group: [0, 1]\n" + "".join(
    f"Epoch 0: :  50%|#####     | {n}/4 [00:30<00:30, v_num=1, reduced_train_loss=10.90, global_step={n - 1}.000,"
    f" consumed_samples=640.0, train_step_timing in s=9.120]\n"
    for n in range(1, 5)
)


@pytest.mark.parametrize(
    "text",
    [megatron(), megatron(prefix="[default7]:"), megatron(prefix="3: "), NEMO2, NEMO1],
    ids=["Megatron-LM", "torchrun --tee", "srun --label", "NeMo 2", "NeMo 1"],
)
def test_a_log_is_judged_and_remembered(
    parlaunch: Callable[..., Said], tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "run.log").write_text(text)
    said = parlaunch("verify", "--log", str(tmp_path / "run.log"), *HERE, "--format", "json")
    assert said.code == 0, said.err
    (run,) = json.loads(said.out)["runs"]
    assert (run["status"], run["steps"]) == ("ok", 4)
    assert run["iteration_time_s"] == pytest.approx(9.1, rel=0.02)
    (row,) = history.read(history.path(os.environ))
    assert (row["source"], row["status"]) == ("log", "ok")
    if "tp" in run["layout_in_log"]:
        assert run["sizes"]["tp"] == row["tp"] == 2


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "log": lambda text: text.decode().encode("utf-16"),  # as PowerShell saves it
}


@pytest.mark.parametrize("ending", PACKED)
def test_logs_are_read_as_they_are_kept(parlaunch: Callable[..., Said], tmp_path: Path, ending: str) -> None:
    for rank, text in enumerate((CONFIGURED, megatron())):
        (tmp_path / f"rank_{rank}.out.{ending}").write_bytes(PACKED[ending](text.encode()))
    said = parlaunch("verify", "--log", str(tmp_path), *HERE, "--quiet")
    assert [line.split("  ")[1].strip() for line in said.out.splitlines()[1:]] == ["passed"], said.err


def test_a_packed_log_that_is_cut_off_is_read_as_far_as_it_goes(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "run.log.gz").write_bytes(gzip.compress(megatron().encode(), 0)[:-300])
    said = parlaunch("verify", "--log", str(tmp_path / "run.log.gz"), *HERE, "--format", "json")
    assert "run.log.gz is cut off or damaged" in said.err
    assert json.loads(said.out)["runs"][0]["steps"] == 3


def test_a_log_in_a_packing_that_is_not_read_is_told_how_to_unpack(
    parlaunch: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "run.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 40)
    said = parlaunch("verify", "--log", str(tmp_path / "run.zst"), *HERE)
    assert (said.code, "unpack it first: zstd -d" in said.err) == (2, True)


def test_a_folder_of_logs_is_a_table_and_the_worst_decides(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "good.log").write_text(megatron())
    (tmp_path / "bad.log").write_text(megatron(loss="nan"))
    (tmp_path / "notes.txt").write_text("nothing\n")
    said = parlaunch("verify", "--log", str(tmp_path), *HERE, "--quiet")
    assert said.code == 1
    assert [line.split("  ")[1].strip() for line in said.out.splitlines()[1:]] == ["passed", "nan"]
    assert "notes.txt: neither an iteration nor a failure" in said.err


CONFIGURED = (
    "------------------------ arguments ------------------------\n"
    "  recompute_granularity ........................... full\n  recompute_method ................................ uniform\n"
    "  recompute_num_layers ............................ 1\n"
)
FAILED = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
SIZES, ITERATIONS = megatron().splitlines(keepends=True)[0], "".join(megatron().splitlines(keepends=True)[1:])
ENDED_EARLY = "".join(megatron().splitlines(keepends=True)[:-2])
FOLDERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "torchrun's folders": (
        {"none_x/attempt_0/0/stderr.log": FAILED, "none_x/attempt_0/0/stdout.log": CONFIGURED, "none_x/attempt_0/1/stdout.log": ENDED_EARLY},
        ["oom"],
    ),
    "two attempts of torchrun": (
        {"x/attempt_0/0/stdout.log": FAILED, "x/attempt_1/0/stdout.log": CONFIGURED, "x/attempt_1/1/stdout.log": megatron()},
        ["oom", "passed"],
    ),
    "names with a rank": ({"a_rank0.log": CONFIGURED, "a_rank1.log": "", "a_rank10.log": megatron()}, ["passed"]),
    "two runs with ranks": (
        {"a/rank_0.log": CONFIGURED, "a/rank_1.log": megatron(), "b/rank_0.log": CONFIGURED, "b/rank_1.log": megatron(loss="nan")},
        ["passed", "nan"],
    ),
    "Slurm's tasks": ({"job-77-0.out": CONFIGURED + SIZES, "job-77-1.out": ITERATIONS}, ["passed"]),
    "Slurm's tasks with both streams": (
        {"j-0.out": CONFIGURED + SIZES, "j-0.err": "a warning\n", "j-1.out": ITERATIONS, "j-1.err": FAILED}, ["passed"],
    ),
    "Slurm's jobs": ({"slurm-1001.out": FAILED, "slurm-1002.out": megatron(), "slurm-1003.out": megatron()}, ["oom", "passed", "passed"]),
    "runs that are numbered": ({"run-0.log": megatron(), "run-1.log": megatron(loss="nan")}, ["passed", "nan"]),
    "a run that died at once and one that did not": (
        {"run-0.log": SIZES + FAILED, "run-1.log": CONFIGURED + megatron()}, ["oom", "passed"],
    ),
    "a run that passed and one that died at once": (
        {"run-0.log": CONFIGURED + megatron(), "run-1.log": FAILED}, ["passed", "oom"],
    ),
    "runs that both died": ({"run-0.log": SIZES + FAILED, "run-1.log": SIZES + "KeyError: 'lr'\n"}, ["oom", "error"]),
    "runs in folders that are numbered": (
        {"run-0/log.txt": SIZES + FAILED, "run-1/log.txt": CONFIGURED + megatron()}, ["oom", "passed"],
    ),
    "runs on so many GPUs": ({"gpu8.log": CONFIGURED + megatron(), "gpu16.log": SIZES + FAILED}, ["oom", "passed"]),
    "nodes of one run": ({"node1.log": CONFIGURED + SIZES, "node2.log": ITERATIONS}, ["passed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_the_ranks_of_one_run_are_read_together(parlaunch: Callable[..., Said], tmp_path: Path, name: str) -> None:
    files, want = FOLDERS[name]
    for at, text in files.items():
        (tmp_path / "logs" / at).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / at).write_text(text)
    said = parlaunch("verify", "--log", str(tmp_path / "logs"), *HERE, "--format", "json")
    runs = json.loads(said.out)["runs"]
    assert sorted("passed" if r["status"] == "ok" else r["status"] for r in runs) == sorted(want)
    if CONFIGURED in files.values():
        again = [r["sizes"]["recompute"] for r in runs if r["status"] == "ok"]
        assert {r["granularity"] for r in again} <= {"full"}


def test_a_log_of_another_plan_fails(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(megatron(tp=4))
    plan = tmp_path / "plan.json"
    assert parlaunch("plan", *HERE, "--tp", "2", "--save-plan", str(plan), "--quiet").code == 0
    said = parlaunch("verify", "--log", str(tmp_path / "run.log"), "--plan", str(plan))
    assert said.code == 1
    assert "layout: tensor parallel" in said.out


def test_a_log_of_another_length_is_predicted_with_it_and_one_of_another_model_is_refused(
    parlaunch: Callable[..., Said], tmp_path: Path
) -> None:
    """What was measured of one training is no evidence for another."""
    log = tmp_path / "run.log"
    log.write_text("  seq_length ............ 4096\n" + megatron())
    lines = parlaunch("verify", "--log", str(log), *HERE).out.splitlines()
    assert any(
        line.split() == ["ok", "sequence", "length", "predicted", "4,096", "measured", "4,096"] for line in lines
    )
    other = parlaunch("verify", "--log", str(log), *HERE, "--seq-length", "8192", "--quiet")
    assert (other.code, "  batch  " in other.out) == (1, True)
    log.write_text("  num_layers ............ 16\n" + megatron())
    refused = parlaunch("verify", "--log", str(log), *HERE)
    assert (refused.code, "the log is of a model of 16 layers" in refused.err) == (2, True)


def test_a_log_of_another_machine_or_of_nothing_is_said(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(megatron())
    said = parlaunch(
        "verify",
        "--log",
        str(tmp_path / "run.log"),
        "--recipe",
        "llama3_8b_pretrain_config",
        "--hardware",
        "dgx-h100:2",
    )
    assert said.code == 2
    assert "of 8 GPUs, and the machine has 16" in said.err
    assert parlaunch("verify", "--log", str(tmp_path / "none.log"), *HERE).code == 2


def test_a_dry_run_of_verify_runs_nothing_and_prints_the_short_run(parlaunch: Callable[..., Said]) -> None:
    said = parlaunch("verify", *HERE, "--dry-run", "--iterations", "5", "--format", "json")
    assert said.code == 0, said.err
    assert "train.train_iters=5" in json.loads(said.out)["overrides"]
    assert json.loads(said.out)["alternatives"] == []
    three = parlaunch("verify", *HERE, "--dry-run", "--top", "2", "--retries", "1", "--format", "json")
    assert len(json.loads(three.out)["alternatives"]) == 2
    assert parlaunch("verify", *HERE).code == 2  # it would run here
    assert parlaunch("verify", "--recipe", "llama3_8b_pretrain_config", "--format", "shell").code == 2


@pytest.mark.parametrize(
    "words",
    [("--top", "2"), ("--retries", "1"), ("--iterations", "5"), ("--timeout", "9"), ("--dry-run",), ("--save-plan", "p.json"),
     ("--report", "r.html"), ("--why-not", "tp=8"), ("--explain",)],
    ids=lambda words: words[0],
)  # fmt: skip
def test_options_of_a_run_that_is_to_come_are_refused_with_a_log(
    parlaunch: Callable[..., Said], tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "run.log").write_text(megatron())
    said = parlaunch("verify", "--log", str(tmp_path / "run.log"), *HERE, *words)
    assert said.code == 2
    assert f"and {words[0]} is for one that is to come" in said.err


def test_a_loss_that_is_no_number_is_null_in_json(parlaunch: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(megatron(loss="nan"))
    said = parlaunch("verify", "--log", str(tmp_path / "run.log"), *HERE, "--format", "json")

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (run,) = json.loads(said.out, parse_constant=refused)["runs"]
    assert (run["status"], run["loss"]) == ("nan", None)

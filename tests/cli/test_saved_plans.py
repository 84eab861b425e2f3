"""`--save-plan`, `--plan` and `parlaunch diff`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said

Run = Callable[..., Said]
LLAMA = ("--recipe", "llama3_8b_pretrain_config")


@pytest.fixture
def saved(parlaunch: Run, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    assert parlaunch("plan", *LLAMA, "--hardware", "dgx-h100:2", "--tp", "4", "--save-plan", str(file), "-q").code == 0
    return file


def test_a_saved_plan_is_what_a_launch_would_do(parlaunch: Run, saved: Path) -> None:
    again = json.loads(parlaunch("plan", "--plan", str(saved), "--format", "json").out)
    before = json.loads(saved.read_text())
    for part in ("recipe", "layout", "memory", "estimate", "environment", "overrides", "argv", "because"):
        assert again[part] == before[part], part


@pytest.mark.parametrize(
    ("hardware", "difference"),
    [
        ("dgx-h100:4", "nodes: 2 in the plan, 4 here"),
        ("dgx-a100:2", "GPU: NVIDIA H100 80GB HBM3 in the plan, NVIDIA A100"),
        ("l40s-pcie-8:2", "GPUs that share NVLink: 8 in the plan, 1 here"),
    ],
)
def test_on_other_hardware_it_is_refused_with_the_difference(
    parlaunch: Run, saved: Path, hardware: str, difference: str
) -> None:
    said = parlaunch("--plan", str(saved), "--hardware", hardware, "--dry-run")
    assert said.code == 1
    assert "another machine" in said.err
    assert difference in said.err


@pytest.mark.parametrize(
    "words",
    [("--tp", "2"), ("--precision", "fp16"), ("--recompute", "full"), LLAMA, ("--switches", "recipe"), ("--no-evidence",),
     ("--objective", "memory"), ("--software", "bridge-0.6")],
)  # fmt: skip
def test_nothing_may_change_a_saved_plan(parlaunch: Run, saved: Path, words: tuple[str, ...]) -> None:
    said = parlaunch("--plan", str(saved), *words, "--dry-run")
    assert said.code == 2
    assert "contradict each other" in said.err


def test_diff_shows_layout_memory_and_time(parlaunch: Run, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    parlaunch("plan", *LLAMA, "--hardware", "dgx-h100:2", "--tp", "2", "--save-plan", str(other), "-q")
    text = parlaunch("diff", str(saved), str(other)).out
    assert "4 -> 2" in text
    assert {"layout", "memory", "time"} <= set(text.splitlines())
    rows = json.loads(parlaunch("diff", str(saved), str(other), "--format", "json").out)["changes"]
    assert {"part": "layout", "name": "tp", "before": 4, "after": 2} in rows
    assert parlaunch("diff", str(saved), str(saved)).out == "the two plans are the same\n"


def test_diff_against_the_recipes_own_layout(parlaunch: Run, saved: Path) -> None:
    rows = json.loads(parlaunch("diff", "recipe", str(saved), "--format", "json").out)["changes"]
    changed = {row["name"]: row for row in rows if row["part"] == "layout"}
    own = json.loads(saved.read_text())["recipe"]["defaults"]
    assert changed["tp"]["before"] == own["tp"]
    assert changed["tp"]["after"] == 4
    assert not [row for row in rows if row["part"] in ("recipe", "hardware")]
    overrides = {row["name"]: row for row in rows if row["part"] == "override"}
    assert overrides["model.tensor_model_parallel_size"]["before"] == str(own["tp"])
    assert "model.expert_model_parallel_size" not in overrides  # the same in both


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A machine that was measured to compute at 40 % of its data sheet."""
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": 0.4}}))
    return file


OWN = ("plan", *LLAMA, "--hardware", "dgx-h100:2", "--tp", "1", "--pp", "1", "--cp", "2", "--micro-batch-size", "1")


def test_why_not_answers_with_the_rates_of_the_plan(parlaunch: Run, slow: Path) -> None:
    for words in ((), ("--machine-file", str(slow))):
        planned = json.loads(parlaunch(*OWN, *words, "--format", "json").out)["estimate"]["iteration_time_s"]
        said = parlaunch(*OWN, *words, "--why-not", "micro_batch_size=2")
        ours = re.search(r"against ([\d.]+) (m?s)\)", said.out)
        assert ours, said.out
        assert float(ours[1]) * (1e-3 if ours[2] == "ms" else 1) == pytest.approx(planned, rel=0.01)


def test_a_report_draws_layouts_at_the_rates_of_the_plan(parlaunch: Run, slow: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = []
    for words in ((), ("--machine-file", str(slow))):
        assert parlaunch(*OWN, *words, "--report", str(page), "-q").code == 0
        data = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
        assert data is not None
        found.append(min(time for _, time, _ in json.loads(data[1])["frontier"]))
    sheet, measured = found
    assert measured > 1.2 * sheet


def test_diff_times_the_recipes_layout_at_the_rates_of_the_plan(parlaunch: Run, slow: Path, tmp_path: Path) -> None:
    file = tmp_path / "slow.json"
    assert (
        parlaunch(
            "plan", *LLAMA, "--hardware", "dgx-h100:2", "--machine-file", str(slow), "--save-plan", str(file), "-q"
        ).code
        == 0
    )
    rows = {r["name"]: r for r in json.loads(parlaunch("diff", "recipe", str(file), "--format", "json").out)["changes"]}
    before, after = rows["iteration_time_s"]["before"], rows["iteration_time_s"]["after"]
    # What the planner chose is no slower than the recipe's own layout, on the machine that both are for.
    assert 0.5 * before < after <= 1.02 * before


def test_a_saved_plan_keeps_what_was_measured(parlaunch: Run, slow: Path, tmp_path: Path) -> None:
    file, again = tmp_path / "slow.json", tmp_path / "again.json"
    parlaunch(*OWN, "--machine-file", str(slow), "--save-plan", str(file), "-q")
    parlaunch("plan", "--plan", str(file), "--save-plan", str(again), "-q")
    assert json.loads(again.read_text())["rates"]["measured"] == {"gemm_bf16": 0.4}
    assert parlaunch("plan", "--plan", str(file), "--machine-file", str(slow)).code == 2


def test_diff_knows_the_exchange_of_sparse_attention(parlaunch: Run, tmp_path: Path) -> None:
    file, name = tmp_path / "glm.json", "glm52_sft_416gpu_h100_bf16_config"
    # Its own batch of 32 does not go into its own 13 interleaved stages; that one is Megatron's to refuse.
    words = ("--recipe", name, "--hardware", "dgx-h100:52", "--global-batch-size", "104")
    assert parlaunch("plan", *words, "--save-plan", str(file), "-q").code == 0
    assert parlaunch("diff", "recipe", str(file)).code == 0


def test_diff_against_the_recipe_shows_the_switches_that_were_chosen(parlaunch: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    asked = (
        "--recipe",
        "qwen3_30b_a3b_pretrain_config",
        "--hardware",
        "dgx-h100:4",
        "--switches",
        "recipe,ep_overlap=on",
    )
    assert parlaunch("plan", *asked, "--save-plan", str(file)).code == 0
    rows = json.loads(parlaunch("diff", "recipe", str(file), "--format", "json").out)["changes"]
    found = {(row["part"], row["name"]): (row["before"], row["after"]) for row in rows}
    assert found["switches", "ep_overlap"] == ("off", "on")
    assert found["override", "comm_overlap.overlap_moe_expert_parallel_comm"] == (None, "True")

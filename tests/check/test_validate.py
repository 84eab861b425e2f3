"""`parlaunch validate`: rows in, predictions and their errors out."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.check.measured import Machines, run_of
from parlaunch.check.report import validation_to_markdown, validation_to_svg, validation_to_text
from parlaunch.check.validate import spearman, validate

GPT = {"num_layers": 24, "hidden_size": 2048, "num_attention_heads": 16, "ffn_hidden_size": 8192, "vocab_size": 51200}
ROW: dict[str, Any] = {
    "id": "a", "group": "gpt|8", "arch": GPT, "task": "pretrain", "hardware": "dgx-h100", "gpus": 8, "precision": "bf16",
    "seq": 2048, "gbs": 64, "mbs": 2, "tp": 1, "pp": 1, "cp": 1, "ep": 1, "iteration_time_s": 1.0, "framework": "Megatron-LM",
}  # fmt: skip


def rows(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [ROW | {"id": f"r{i}"} | change for i, change in enumerate(changes)]


def test_predicted_has_the_standard_fields_those_that_were_measured_and_a_band() -> None:
    (entry,) = validate(rows({"tokens_per_s_per_gpu": 30_000.0, "peak_memory_gb": 40.0}))["rows"]
    assert set(entry["predicted"]) == {
        "iteration_time_s",
        "tokens_per_s_per_gpu",
        "model_tflops_per_gpu",
        "peak_memory_gb",
        "band",
        "memory_band",
    }
    assert entry["measured"] == {"iteration_time_s": 1.0, "tokens_per_s_per_gpu": 30_000.0, "peak_memory_gb": 40.0}
    assert entry["fits"] is True
    (blind,) = validate([{k: v for k, v in ROW.items() if k != "iteration_time_s"}])["rows"]
    assert set(blind["predicted"]) == set(entry["predicted"])
    assert blind["measured"] == {}
    assert entry["predicted"]["tokens_per_s_per_gpu"] == pytest.approx(
        64 * 2048 / 8 / entry["predicted"]["iteration_time_s"]
    )


def test_what_is_left_of_a_batch_that_does_not_divide_makes_no_run_faster() -> None:
    whole, more = validate(rows({"gbs": 64}, {"gbs": 64 + 7}))["rows"]
    assert "rounded down" in more["note"]
    assert more["predicted"] == whole["predicted"]


def test_the_result_is_json_of_the_promised_schema() -> None:
    result = json.loads(json.dumps(validate(rows({}))))
    assert result["schema"] == "parlaunch.validate/1"
    assert set(result["rows"][0]) >= {"id", "predicted", "measured", "fits", "note"}
    assert result["summary"]["time"]["count"] == 1


def test_both_spellings_of_a_model_are_the_same_model() -> None:
    short = {"layers": 24, "hidden": 2048, "heads": 16, "kv_heads": 16, "ffn": 8192, "gated_mlp": False, "vocab": 51200}
    one, other = validate(rows({}, {"arch": short}))["rows"]
    assert one["predicted"] == other["predicted"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hardware": "dgx-h1000"}, "unknown machine"),
        ({"hardware": None}, "names no hardware"),
        ({"arch": None}, "neither model_id nor arch"),
        ({"arch": {"hidden_size": 2048}}, "lacks num_layers"),
        ({"arch": GPT | {"num_layers": 10**8}}, "100,000,000 layers"),
        ({"gpus": 10**30}, "no job has so many nodes"),
        ({"arch": None, "model_id": "nobody/nothing"}, "unknown model"),
        ({"precision": "int3"}, "precision"),
        ({"task": "distill"}, "task"),
        ({"tp": 3}, "do not divide"),
        ({"seq": "long"}, "missing or wrong"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why_and_stays(change: dict[str, Any], reason: str) -> None:
    result = validate(rows({}, change))
    good, bad = result["rows"]
    assert good["predicted"]
    assert bad["predicted"] is None
    assert reason in bad["note"]
    assert (result["summary"]["rows"], result["summary"]["predicted"]) == (2, 1)
    assert "r1" in validation_to_text(result)


def test_missing_sizes_are_filled_in_and_said() -> None:
    bare = {k: v for k, v in ROW.items() if k not in ("mbs", "cp", "ep", "gbs", "gpus")}
    (entry,) = validate([bare | {"tp": 2, "dp": 4}])["rows"]
    assert entry["predicted"]
    for said in ("8 GPUs", "micro batch 1", "global batch"):
        assert said in entry["note"]


def test_a_run_whose_layers_do_not_divide_was_split_by_hand_and_is_not_refused() -> None:
    (entry,) = validate(rows({"pp": 4, "arch": GPT | {"num_layers": 26}}))["rows"]
    assert entry["predicted"]
    assert "refuses" not in (entry["note"] or "")


def test_a_row_that_megatron_would_refuse_says_so() -> None:
    (entry,) = validate(rows({"ep": 8}))["rows"]
    assert "Megatron refuses this layout" in entry["note"]


def test_a_fully_recomputed_run_that_counts_hardware_flops_is_compared_with_hardware_flops() -> None:
    full = {"recompute": {"granularity": "full", "method": "uniform", "num_layers": 1}, "tflops_per_gpu": 300.0}
    hardware, model = validate(rows(full | {"tflops_kind": "hardware"}, full | {"tflops_kind": "model"}))["rows"]
    assert hardware["predicted"]["tflops_per_gpu"] == pytest.approx(4 / 3 * model["predicted"]["tflops_per_gpu"])


def test_memory_is_compared_in_the_view_and_unit_it_was_read_in() -> None:
    def peak(**change: Any) -> float:
        (entry,) = validate(rows({"iteration_time_s": None, "peak_mem": 30.0, "mbs": 1} | change))["rows"]
        return float(entry["predicted"]["peak_mem"])

    allocated = peak(metric="max allocated", unit="GiB")
    assert peak(metric="max reserved", unit="GiB") > allocated
    assert peak(metric="nvidia-smi", unit="GiB") > peak(metric="max reserved", unit="GiB")
    assert peak(metric="max allocated", unit="GB") == pytest.approx(allocated * 2**30 / 1e9)


def test_an_out_of_memory_run_that_is_called_fitting_is_named() -> None:
    huge = GPT | {"num_layers": 400, "hidden_size": 16384, "num_attention_heads": 128, "ffn_hidden_size": 65536}
    summary = validate(
        rows({"status": "oom", "iteration_time_s": None}, {"status": "oom", "iteration_time_s": None, "arch": huge})
    )["summary"]
    assert summary["oom_rows"] == 2
    assert summary["oom_called_fitting"] == ["r0"]


def test_regret_is_what_the_choice_costs_over_the_best() -> None:
    """We like TP 1 best; the table says TP 8 ran in half the time."""
    result = validate(
        rows({"iteration_time_s": 1.0}, {"tp": 2, "iteration_time_s": 1.2}, {"tp": 8, "iteration_time_s": 0.5})
    )
    (choice,) = result["summary"]["groups"].values()
    assert choice["picked"].startswith("tp=1 ")
    assert choice["best"].startswith("tp=8 ")
    assert choice["regret"] == pytest.approx(1.0)
    assert result["summary"]["regret"] == {"groups": 1, "mean": 1.0, "max": 1.0}


def test_repeated_runs_of_one_layout_count_once_by_their_median() -> None:
    result = validate(rows(*({"iteration_time_s": t} for t in (0.9, 1.0, 5.0)), {"tp": 2, "iteration_time_s": 1.1}))
    (choice,) = result["summary"]["groups"].values()
    assert (choice["layouts"], choice["regret"]) == (2, 0.0)


def test_runs_of_other_releases_batches_or_shapes_are_not_of_one_group() -> None:
    shape = GPT | {"num_attention_heads": 32}
    result = validate(
        rows({}, {"tp": 2, "framework": "Megatron-LM v2"}, {"tp": 4, "gbs": 128}, {"tp": 8, "arch": shape})
    )
    assert result["summary"]["groups"] == {}
    assert result["summary"]["regret"] is None


def test_a_machine_file_changes_the_prediction() -> None:
    slow = {"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": 0.36}}
    plain, measured = validate(rows({})), validate(rows({}), machine=slow)
    assert (
        measured["rows"][0]["predicted"]["iteration_time_s"] > 1.4 * plain["rows"][0]["predicted"]["iteration_time_s"]
    )


def test_superseded_runs_are_summed_up_apart() -> None:
    result = validate(rows({}, {"current": False}))
    assert set(result["summary"]["time_by_source"]) == {"Megatron-LM", "Megatron-LM, superseded"}


def test_the_report_shows_rows_errors_and_choices() -> None:
    result = validate(
        rows({"iteration_time_s": 0.5}, {"tp": 2}, {"hardware": "nothing"}, {"status": "oom", "iteration_time_s": None})
    )
    text, markdown = validation_to_text(result), validation_to_markdown(result)
    for said in ("r0", "regret over 1 groups", "out of memory: 1 rows", "Not predicted", "mean", "p95"):
        assert said in text
    assert markdown.startswith("# Predicted and measured\n")
    assert "| r1 | dgx-h100 | tp=2 pp=1 dp=4 mbs=2 |" in markdown


def test_the_chart_is_well_formed_and_has_a_point_a_row_and_a_colour_a_machine() -> None:
    result = validate(
        rows({}, {"tp": 2}, {"hardware": "dgx-a100-80g", "tokens_per_s_per_gpu": 3000.0, "iteration_time_s": None})
    )
    root = ElementTree.fromstring(validation_to_svg(result))
    space = "{http://www.w3.org/2000/svg}"
    groups = [g for g in root.iter(f"{space}g") if g.get("fill")]
    assert len({g.get("fill") for g in groups}) == 2
    assert sum(len(g.findall(f"{space}circle")) for g in groups) == 3
    assert all(g.findtext(f"{space}circle/{space}title") for g in groups)


def test_nothing_measured_makes_an_empty_chart_not_an_error() -> None:
    ElementTree.fromstring(validation_to_svg(validate([])))
    assert validate([])["summary"]["time"] is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12, unique=True))
def test_rank_correlation_is_one_for_the_same_order_and_minus_one_for_the_opposite(values: list[float]) -> None:
    assert spearman(values, values) == pytest.approx(1.0)
    assert spearman(values, [-v for v in values]) == pytest.approx(-1.0)


def test_ties_share_their_rank() -> None:
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.866, abs=0.001)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2], [1, 2]) is None


def test_a_row_without_features_and_interleaving_has_neither_overlap_nor_graphs_of_whole_iterations() -> None:
    row = {
        "model": "deepseek_v3", "model_id": "deepseek-ai/DeepSeek-V3", "task": "pretrain", "hardware": "dgx-b300", "gpus": 256,
        "precision": "fp8mx", "seq": 4096, "gbs": 4096, "mbs": 1, "tp": 1, "pp": 8, "cp": 1, "ep": 8, "features": None,
        "framework": "megatron-bridge 26.06", "tokens_per_s_per_gpu": 1000,
    }  # fmt: skip
    whole, part = (run_of(row | {"vp": vp}, Machines()).recipe.features for vp in (2, None))
    assert (whole.ep_overlap, whole.cuda_graph) == (True, "full_iteration")
    assert (part.ep_overlap, part.paged_stash, part.cuda_graph) == (False, False, "transformer_engine")


@pytest.mark.parametrize(
    ("release", "machine", "model", "then"),
    [
        ("25.09", "gb200-nvl72", "qwen3_235b_a22b", ("alltoall", "local", False, 1.0)),
        ("25.09", "dgx-b200", "deepseek_v3", ("alltoall", None, False, 1.0)),
        ("25.09", "dgx-h100", "deepseek_v3", ("deepep", None, True, 0.0)),
        ("25.11", "dgx-b200", "qwen3_30b_a3b", ("alltoall", "transformer_engine", False, 0.0)),
        ("25.11", "gb200-nvl72", "qwen3_235b_a22b", ("hybridep", "transformer_engine", False, 0.0)),
        ("26.02.01", "dgx-b300", "qwen3_235b_a22b", ("alltoall", None, False, 0.0)),
        ("26.04", "dgx-b300", "qwen3_235b_a22b", ("hybridep", None, False, 0.0)),
        ("v0.4.2", "dgx-b300", "qwen3_235b_a22b", ("hybridep", None, False, 0.0)),
        ("26.06", "gb200-nvl72", "qwen3_235b_a22b", ("hybridep", "full_iteration", True, 0.0)),
    ],
)
def test_a_benchmark_without_features_sends_tokens_as_its_release_did(
    release: str, machine: str, model: str, then: tuple[object, ...]
) -> None:
    known = {
        "qwen3_235b_a22b": "Qwen/Qwen3-235B-A22B",
        "qwen3_30b_a3b": "Qwen/Qwen3-30B-A3B",
        "deepseek_v3": "deepseek-ai/DeepSeek-V3",
    }
    row = {
        "model": model, "model_id": known[model], "task": "pretrain", "hardware": machine, "gpus": 256,
        "precision": "fp8cs" if machine == "dgx-h100" else "fp8mx", "seq": 4096, "gbs": 4096, "mbs": 1, "tp": 1, "pp": 8, "vp": 2,
        "cp": 1, "ep": 8, "features": None, "framework": f"megatron-bridge {release}", "tokens_per_s_per_gpu": 1000,
    }  # fmt: skip
    run = run_of(row, Machines())
    f = run.recipe.features
    assert (f.dispatcher, f.cuda_graph, f.ep_overlap, f.expert_capacity) == then
    assert any("as its release had it" in note or "its release had none" in note for note in run.notes) == (
        release != "26.06"
    )
    today = run_of(row | {"framework": "megatron-bridge main"}, Machines()).recipe.features
    assert today == replace(
        run_of(row | {"framework": "megatron-bridge 0.7"}, Machines()).recipe.features, framework=today.framework
    )
    # What a row says itself is not changed.
    said = run_of(row | {"features": {"dispatcher": "hybridep"}}, Machines()).recipe.features
    assert (said.dispatcher, said.expert_capacity) == ("hybridep", 0.0)


def test_a_benchmark_that_does_not_say_what_it_recomputes_does_so_as_its_recipe() -> None:
    row = {
        "model": "deepseek_v3", "model_id": "deepseek-ai/DeepSeek-V3", "task": "pretrain", "hardware": "dgx-b300", "gpus": 256,
        "precision": "fp8mx", "seq": 4096, "gbs": 4096, "mbs": 2, "tp": 1, "pp": 8, "cp": 1, "ep": 8, "features": None,
        "recompute": None, "framework": "megatron-bridge 26.06", "tokens_per_s_per_gpu": 1000,
    }  # fmt: skip
    assert run_of(row, Machines()).layout.recompute.modules == ("mla_up_proj",)
    nano = {
        "model": "nemotron_3_nano", "model_id": "explicit:nemotron_3_nano", "hardware": "dgx-h100", "gpus": 16, "precision": "fp8cs",
        "seq": 8192, "gbs": 1024, "mbs": 1, "pp": 1,
    }  # fmt: skip
    then = run_of(row | nano, Machines())
    assert then.layout.recompute.modules == ("moe", "layernorm", "core_attn", "moe_act")
    assert then.recipe.features.cuda_graph_scope == ("mamba",)
    assert run_of(row | nano | {"framework": "megatron-bridge 26.08"}, Machines()).recipe.features.cuda_graph_scope != (
        "mamba",
    )
    for said in ({"recompute": "none"}, {"features": {"dispatcher": "hybridep"}}):
        assert run_of(row | said, Machines()).layout.recompute.granularity is None


def test_a_benchmark_whose_features_leave_out_formats_has_those_of_its_recipe() -> None:
    row = {
        "model": "nemotron_3_super", "model_id": "explicit:nemotron_3_super", "task": "pretrain", "hardware": "gb300-nvl72", "gpus": 64,
        "precision": "nvfp4", "seq": 8192, "gbs": 512, "mbs": 1, "tp": 1, "pp": 1, "cp": 1, "ep": 64,
        "framework": "megatron-bridge 26.04", "tokens_per_s_per_gpu": 1000,
    }  # fmt: skip
    made, said = (
        run_of(row | {"features": {"dispatcher": "hybridep", **more}}, Machines()).recipe.features
        for more in ({}, {"bf16_ends": [0, 2]})
    )
    assert made.bf16_ends == (0, 14)
    assert dict(made.module_formats)["linear_qkv"] == "bf16"
    assert said.bf16_ends == (0, 2)

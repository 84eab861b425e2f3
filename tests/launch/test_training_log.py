"""Logs of several versions of Megatron Bridge and Megatron-LM, read to the numbers a person would read out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch.check.symptoms import CAUSE_FIRST, GENERAL, HARMLESS, Symptom, symptoms
from parlaunch.check.verdict import Measured
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Recompute
from parlaunch_launch.training_log import LONGEST, LogReader, lines_of, read_run, without_prefix
from tests.launch.logs import read

LOGS = Path(__file__).parent.parent / "logs"


def log(name: str) -> Measured:
    return read((LOGS / f"{name}.log").read_text())


LAYOUTS = {
    "bridge-0.6.2-cpu-tp2-pp2": {"world": 4, "tp": 2, "pp": 2, "vp": 2, "cp": 1, "dp": 1, "ep": 1, "etp": 1, "edp": 2},
    "core-0.16.1-cpu-ep2": {"world": 2, "tp": 1, "pp": 1, "cp": 1, "dp": 2, "ep": 2, "etp": 1, "edp": 1},
    "megatron-lm-2022-v100": {"world": 16, "tp": 4, "pp": 2, "dp": 2},
    "megatron-lm-2025-h100-moe": {"world": 16, "tp": 1, "pp": 2, "cp": 1, "dp": 8},
    "bridge-0.3-h100": {"tp": 2, "pp": 1},
}
TIMES = {
    "bridge-0.6.2-cpu-tp2-pp2": (3, 1.1697),
    "core-0.16.1-cpu-ep2": (3, 0.4887),
    "megatron-lm-2022-v100": (4, 1.25),
    "megatron-lm-2025-h100-moe": (4, 5.38),
    "bridge-0.3-h100": (3, 4.0),
}
PEAKS = {"bridge-0.3-h100": (42.75e9, 46.0e9)}
EARLY = {"megatron-lm-2022-v100": 12000.5 * 2**20, "megatron-lm-2025-h100-moe": 58368 * 2**20}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_read(name: str) -> None:
    assert log(name).layout == LAYOUTS[name]


@pytest.mark.parametrize("name", TIMES)
def test_iterations_are_counted_and_the_warm_up_is_left_out_of_the_time(name: str) -> None:
    count, took = TIMES[name]
    measured = log(name)
    assert len(measured.iterations) == count
    assert measured.iteration_time_s == pytest.approx(took)
    assert measured.loss_is_finite


@pytest.mark.parametrize("name", PEAKS)
def test_the_fullest_rank_s_memory_counts_in_the_unit_of_the_log(name: str) -> None:
    measured = log(name)
    assert (measured.peak_allocated, measured.peak_reserved) == pytest.approx(PEAKS[name])


@pytest.mark.parametrize("name", EARLY)
def test_memory_printed_before_the_second_step_is_told_apart(name: str) -> None:
    measured = log(name)
    assert measured.peak_allocated is None
    assert measured.early_allocated == pytest.approx(EARLY[name])


def test_a_cpu_run_tells_resident_memory_and_no_gpu_memory() -> None:
    measured = log("core-0.16.1-cpu-ep2")
    assert measured.host_peak == int(595.6 * 2**20)
    assert measured.peak_allocated is None


def test_bridge_s_own_flops_line_belongs_to_the_iteration_behind_it() -> None:
    assert [i.tflops for i in log("bridge-0.3-h100").iterations] == [210.1, 510.2, 520.4]


def test_exceptions_that_somebody_caught_are_no_failures() -> None:
    text = "INFO: Import of X failed\nAttributeError: module 'm' has no attribute 'X'\nusing world size: 2, data-parallel size: 2\n"
    assert read(text).failures == ()


def test_out_of_memory_is_the_cause_and_the_peers_broken_connections_are_not() -> None:
    measured = log("oom-optimizer")
    assert [f.kind for f in measured.failures] == ["oom", "nccl"]
    oom = measured.out_of_memory
    assert oom is not None
    assert oom.component == "optimizer"
    assert (oom.tried, oom.allocated, oom.unallocated) == (3 * 2**30, 74 * 2**30, int(1.5 * 2**30))


def test_torch_1_s_out_of_memory_is_read_too() -> None:
    oom = read(
        "RuntimeError: CUDA out of memory. Tried to allocate 384.00 MiB (GPU 0; 14.76 GiB total capacity; "
        "11.00 GiB already allocated; 259.75 MiB free; 11.10 GiB reserved in total by PyTorch)"
    ).out_of_memory
    assert oom is not None
    assert (oom.tried, oom.allocated) == (384 * 2**20, 11 * 2**30)


FAILURES = [(s, line) for s in symptoms() if s.kind != HARMLESS for line in s.seen]


@pytest.mark.parametrize(("symptom", "line"), FAILURES, ids=[f"{s.kind}: {line[:50]}" for s, line in FAILURES])
def test_each_failure_is_recognised_and_explained_in_a_sentence(symptom: Symptom, line: str) -> None:
    (failure,) = read(line).failures
    assert failure.kind == symptom.kind
    assert failure.line == without_prefix(line)[0].strip()
    assert len(failure.sentence) > 10
    assert "{" not in failure.sentence
    assert failure.todo or symptom.kind == "error"


def test_bytes_are_cut_into_lines_however_they_come() -> None:
    text = b"\x00first\r\n\r  5%|# |\r 50%|## |\rlatin \xe9\n\n" + b"x" * 40_000 + b"end\rlast"
    for step in (1, 7, len(text)):
        lines = list(lines_of(text[at : at + step] for at in range(0, len(text), step)))
        assert [*lines[:4], lines[5]] == ["\x00first", "  5%|# |", " 50%|## |", "latin \ufffd", "last"]
        assert len(lines[4]) == LONGEST
        assert (lines[4][0], lines[4][-4:]) == ("x", "xend")


def test_a_size_that_was_cut_in_two_is_no_other_size() -> None:
    groups = b"Rank 0 has data parallel group: [" + b", ".join(b"%d" % n for n in range(10_000)) + b"]\n"
    assert "dp" not in read_run([lines_of([groups])]).layout


def test_an_iteration_behind_a_progress_bar_is_read() -> None:
    bar = b"Loading: 50%|#####     | 1/2 [00:01<00:01]\r"
    said = b" iteration        1/      10 | elapsed time per iteration (ms): 100.0 | lm loss: 1.0E+01 |\r"
    assert [i.seconds for i in read_run([lines_of([bar * 3 + said + bar])]).iterations] == [0.1]


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "1.1 GiB ", "Epoch 1: | 3/4 [x", "Epoch 1: 3it ", "iteration 1/ 2 | ", "RuntimeError: ", "Rank 3]."],
)
def test_a_long_line_is_read_and_says_nothing(unit: str) -> None:
    """Some patterns began anew at every letter, and took minutes."""
    reader = LogReader()
    reader.feed(unit * (LONGEST // len(unit)))
    assert not reader.measured().iterations


@pytest.mark.parametrize("line", [line for s in symptoms() if s.kind == HARMLESS for line in s.seen])
def test_what_looks_bad_and_is_not_is_no_failure(line: str) -> None:
    assert read(line).failures == ()


@pytest.mark.parametrize("prefix", ["", "[default3]:", "3: ", "[rank3]: ", "[1,3]<stderr>:", "0: [default3]:"])
def test_a_failure_is_recognised_behind_every_launcher_s_prefix(prefix: str) -> None:
    assert [
        f.kind
        for f in read(f"{prefix}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.").failures
    ] == ["oom"]


def test_a_socket_that_is_tried_again_does_not_mean_that_the_ranks_did_not_meet() -> None:
    text = "RuntimeError: Connection refused\nusing world size: 2, data-parallel size: 2\n"
    assert read(text).failures == ()


def test_the_refused_override_is_named() -> None:
    (failure,) = read("omegaconf.errors.ConfigAttributeError: Key 'tensor_parallel' is not in struct").failures
    assert "Key 'tensor_parallel' is not in struct" in failure.sentence


REPORTS = {
    "torch 2": """
[rank1]: RuntimeError: boom
E1203 10:00:00.1 500 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: -11) local_rank: 1 (pid: 23)
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_10:00:02
  host      : n2
  rank      : 3 (local_rank: 1)
  exitcode  : -15 (pid: 24)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 24
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_10:00:01
  host      : n1
  rank      : 1 (local_rank: 1)
  exitcode  : -11 (pid: 23)
  error_file: <N/A>
  traceback : Signal 11 (SIGSEGV) received by PID 23
============================================================
""",
    "torch 1.9": """
***************************************
            train.py FAILED
=======================================
Root Cause:
[0]:
  time: 2021-10-01_10:00:01
  host: n1
  rank: 1 (local_rank: 1)
  exitcode: -11 (pid: 23)
  error_file: <N/A>
  msg: "Signal 11 (SIGSEGV) received by PID 23"
=======================================
""",
}


@pytest.mark.parametrize("release", REPORTS)
def test_the_rank_that_failed_first_is_read_from_torchrun_s_report(release: str) -> None:
    measured = read(REPORTS[release])
    rank = measured.failed_rank
    assert rank is not None
    assert (rank.rank, rank.local_rank, rank.status) == (1, 1, -11)
    assert "crash" in [f.kind for f in measured.failures]


def watchdog(rank: int, more: str = "") -> str:
    return (
        f"[rank{rank}]:[E1203 10:00:00.1 ProcessGroupNCCL.cpp:632] [PG ID 0 PG GUID 0(default_pg) Rank {rank}] Watchdog caught "
        f"collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600012 milliseconds{more}"
    )


def test_a_hang_names_the_rank_that_did_not_come() -> None:
    text = "using world size: 4, data-parallel size: 4\n" + "\n".join(map(watchdog, (0, 1, 3)))
    assert "rank 2 reported no time-out" in read(text).failures[0].sentence


def test_a_hang_names_the_rank_that_is_behind() -> None:
    late = "[rank{0}]:[E ProcessGroupNCCL.cpp:1] [PG 0 Rank {0}] Timeout at NCCL work: 7, last enqueued NCCL work: {1}, last completed NCCL work: 6."
    text = "\n".join([*map(watchdog, (0, 1)), late.format(0, 8), late.format(1, 7)])
    assert "rank 1 came only to collective 7 of 8" in read(text).failures[0].sentence


def test_a_loss_that_is_not_a_number_is_known_by_its_count_since_megatron_leaves_it_out() -> None:
    line = (
        " iteration        3/      10 | consumed samples: 24 | elapsed time per iteration (ms): 4.0 | learning rate: 1E-4 |"
        " global batch size:     8 | loss scale: 1.0 | number of skipped iterations:   0 | number of nan iterations:   1 |"
    )
    measured = read(line)
    assert measured.loss is None
    assert measured.loss_is_finite is False


def test_two_ranks_in_one_line_are_both_read() -> None:
    reader = LogReader()
    reader.feed(
        "[Rank 1] (after 2 iterations) memory (GB) | mem-max-allocated-gigabytes: 1.5 [2025-12-01 10:00:18] iteration 2/ 3 |"
        " elapsed time per iteration (ms): 500.0 | lm loss: 1.0E+00 | number of nan iterations:   0 |"
    )
    assert reader.measured().peak_allocated == int(1.5e9)
    assert reader.last_iteration is not None
    assert reader.last_iteration.seconds == 0.5


def test_every_kind_of_failure_has_its_place_among_the_causes() -> None:
    kinds = {s.kind for s in symptoms()} - {HARMLESS}
    assert kinds == set(CAUSE_FIRST)
    assert len(CAUSE_FIRST) == len(kinds)
    assert set(GENERAL) <= kinds


def test_batch_and_precision_are_read_from_the_configuration() -> None:
    bridge = log("bridge-0.6.2-cpu-tp2-pp2")
    assert (bridge.precision, bridge.global_batch, bridge.micro_batch, bridge.seq_length) == ("bf16", 8, 1, 64)
    text = "  bf16 ............ True\n  fp8 ............. hybrid\n  micro_batch_size ... 2\n  tensor_model_parallel_size ... 4\n"
    lm = read(text)
    assert (lm.precision, lm.micro_batch, lm.layout["tp"]) == ("bf16+fp8", 2, 4)


def test_a_list_of_arguments_that_begins_in_its_middle_says_nothing_of_what_stood_before() -> None:
    assert read("  micro_batch_size ... 2\n").precision is None
    assert read("  bf16 ... False\n  fp16 ... False\n  micro_batch_size ... 2\n").precision == "fp32"


def test_the_models_sizes_are_those_of_the_language_model() -> None:
    nested = "model:\n  hf_config:\n    hidden_size: 9\n  hidden_size: 64\n  num_layers: 4\n  vision_config:\n    num_layers: 27\n"
    assert (read(nested).num_layers, read(nested).hidden_size) == (4, 64)
    bridge = log("bridge-0.6.2-cpu-tp2-pp2")
    assert (bridge.num_layers, bridge.hidden_size) == (4, 64)


def _begun(tp: int, numbers: range, seconds: float) -> str:
    said = f"using world size: 8, data-parallel size: {8 // tp}, context-parallel size: 1, tensor-model-parallel size: {tp}, \n"
    return said + "".join(
        f" iteration {n}/ 100 | elapsed time per iteration (ms): {seconds * 1000} | global batch size: 8 | lm loss: 1.1E+01 |\n"
        for n in numbers
    )


ENDED = "slurmstepd: error: *** JOB 12 ON gpu01 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n"


def test_of_runs_that_follow_each_other_in_one_log_the_last_counts_with_those_before_it_that_ran_alike() -> None:
    """A requeued job appends to its log; what ended the run before is over, and its layout may have been another."""
    first = _begun(2, range(1, 10), 9.0) + ENDED
    other = read(first + _begun(4, range(6, 9), 5.0))
    assert [i.seconds for i in other.iterations] == [5.0] * 3
    assert (other.layout["tp"], other.failures) == (4, ())
    alike = read(first + _begun(2, range(6, 13), 8.0))
    assert [i.seconds for i in alike.iterations] == [9.0] * 5 + [8.0] * 7
    assert alike.failures == ()
    for tp, seen in ((2, 9), (4, 0)):
        died = read(first + _begun(tp, range(0), 0.0) + "torch.OutOfMemoryError: CUDA out of memory.\n")
        assert (died.layout["tp"], len(died.iterations), [f.kind for f in died.failures]) == (tp, seen, ["oom"])
    assert [f.kind for f in read(first + _begun(2, range(0), 0.0)).failures] == [f.kind for f in read(first).failures]


def test_a_line_that_is_cut_off_before_its_loss_is_no_iteration_without_one() -> None:
    whole = _begun(2, range(1, 4), 9.0)
    assert [i.number for i in read(whole[: whole.rindex("1.1E+01") + 3]).iterations] == [1, 2]


NEMO = {
    # As users published them; https://docs.nvidia.com/nemo-framework and NeMo's progress_printer.py have the formats.
    "2, from 0": (
        "Training epoch 0, iteration 45/99 | lr: 6.897e-06 | global_batch_size: 128 | global_step: 45 | max_memory_reserved:"
        " 127785762816 | max_memory_allocated: 115792977920 | reduced_train_loss: 11.96 | train_step_timing in s: 6.08 |"
        " TFLOPS_per_GPU: 1.249e+03 | consumed_samples: 5888",
        (46, 100, 6.08, 11.96, 1249.0),
    ),
    "2, from 1": (
        "Training epoch 0, iteration 46/100 | lr: 6.8e-06 | global_step: 45 | reduced_train_loss: 11.96 | train_step_timing in s: 6.08",
        (46, 100, 6.08, 11.96, None),
    ),
    "2, a prefix of a batch system": (
        "[2025-11-20T14:55:23+08:00] pretraining/0 Training epoch 0, iteration 97/99 | lr: 1.4e-05 | global_batch_size: 128 |"
        " global_step: 97 | reduced_train_loss: 6.265 | train_step_timing in s: 12.22 | tokens_per_sec_per_gpu: 1.073e+04",
        (98, 100, 12.22, 6.265, None),
    ),
    "1, a bar": (
        "Epoch 0: :  60%|██████    | 6024/10000 [4:26:54<2:56:09, v_num=0, reduced_train_loss=0.0252, global_step=6023.0,"
        " consumed_samples=96384.0, train_step_timing in s=2.590, val_loss=0.0917][rank: 1] Monitored metric val_loss",
        (6024, 10000, 2.59, 0.0252, None),
    ),
    "1, steps rounded": (
        "Epoch 0: : 100%|██████████| 2000/2000 [43:24:54<00:00, reduced_train_loss=0.139, global_step=2e+3,"
        " consumed_samples=2.56e+5, train_step_timing in s=68.70, val_loss=0.212][NeMo I 2024-06-17 08:36:41 x:480] Removing",
        (2000, 2000, 68.7, 0.139, None),
    ),
    "1, without a total": (
        "Epoch 1: : 1it [00:04,  4.36s/it, v_num=d3c7, reduced_train_loss=0.674, global_step=1.000, consumed_samples=128.0,"
        " train_step_timing in s=3.370, batch_time=4.400, samples/sec=14.60]",
        (2, 2, 3.37, 0.674, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", NEMO)
def test_lines_of_nemo_are_read_as_it_prints_them(form: str) -> None:
    line, want = NEMO[form]
    (i,) = read(line).iterations
    assert (i.number, i.of, i.seconds, i.loss, i.tflops) == want


def test_nemo_2_says_its_memory_in_the_line_of_the_iteration() -> None:
    measured = read(NEMO["2, from 0"][0])
    assert (measured.peak_allocated, measured.peak_reserved) == (115792977920, 127785762816)


RECOMPUTED = {
    "Megatron-LM, full": (
        "  recompute_granularity ........................... full\n  recompute_method ................................ block\n"
        "  recompute_num_layers ............................ 4\n",
        Recompute(granularity="full", method="block", num_layers=4),
    ),
    "Megatron-LM, selective": (
        "  recompute_granularity ........................... selective\n  recompute_method ................ None\n"
        "  recompute_modules ............................... ['core_attn', 'mlp']\n",
        Recompute(granularity="selective", modules=("core_attn", "mlp")),
    ),
    "Megatron-LM, nothing": ("  recompute_granularity ........................... None\n", NO_RECOMPUTE),
    "Megatron-LM of 2021": (
        "  activations_checkpoint_method ................... uniform\n  activations_checkpoint_num_layers ............... 1\n",
        FULL_RECOMPUTE,
    ),
    "Bridge, what differs": (
        "[model] Non-default values (MegatronProvider vs Mcore TransformerConfig):\n"
        "  recompute_granularity: 'full'  (Mcore default: None)\n  recompute_method: 'uniform'  (Mcore default: None)\n"
        "  recompute_num_layers: 1  (Mcore default: None)\n",
        FULL_RECOMPUTE,
    ),
    "Bridge, YAML": (
        "model:\n  recompute_granularity: selective\n  recompute_method: null\n  recompute_modules:\n  - core_attn\n  - moe_act\n"
        "  rotary_base: 10000\n",
        Recompute(granularity="selective", modules=("core_attn", "moe_act")),
    ),
    "nothing said": ("using world size: 8, data-parallel size: 8\n", None),
}


@pytest.mark.parametrize("form", RECOMPUTED)
def test_what_is_computed_again_is_read_from_the_configuration(form: str) -> None:
    text, want = RECOMPUTED[form]
    assert read(text).recompute == want


def report(rank: int, *, code: int, at: str) -> str:
    """What torchrun says of the rank that failed first on its node."""
    return (
        "Root Cause (first observed failure):\n[0]:\n"
        f"  time      : 2026-01-31_12:00:{at}\n  host      : node{rank // 8}\n  rank      : {rank} (local_rank: {rank % 8})\n"
        f"  exitcode  : {code} (pid: 7)\n"
    )


def logs_of_one_run(*texts: str) -> Measured:
    return read_run(text.splitlines() for text in texts)


def test_what_goes_well_in_one_node_s_log_forgives_nothing_in_another_s() -> None:
    failed = "Traceback (most recent call last):\nValueError: the tokenizer has no padding\n"
    well = "using world size: 16, data-parallel size: 16, context-parallel size: 1, tensor-model-parallel size: 1, pipeline-model-parallel size: 1\n"
    for texts in ((failed, well), (well, failed)):
        measured = logs_of_one_run(*texts)
        assert measured.layout["world"] == 16
        assert "the tokenizer has no padding" in measured.failures[0].line


@pytest.mark.parametrize(
    ("reports", "rank"),
    [
        ((report(3, code=1, at="05"), report(9, code=-15, at="20")), 3),  # the second was ended because of the first
        ((report(9, code=-15, at="20"), report(3, code=1, at="05")), 3),
        (
            (report(3, code=1, at="05"), report(9, code=-9, at="06")),
            9,
        ),  # in one moment an exception is the echo of a death
    ],
)
def test_of_several_nodes_reports_the_first_cause_names_the_rank(reports: tuple[str, ...], rank: int) -> None:
    found = logs_of_one_run(*reports).failed_rank
    assert found is not None
    assert (found.rank, found.host) == (rank, f"node{rank // 8}")


def test_a_switch_s_message_that_somebody_caught_is_forgotten_when_training_goes_on() -> None:
    caught = "ImportError: libcudart.so.12: deep_ep cannot be opened\n"
    iteration = (
        " iteration        1/       3 | elapsed time per iteration (ms): 100.0 | lm loss: 1.0E+01 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |\n"
    )
    assert [f.kind for f in read(caught + iteration + "KeyError: 'lr'\n").failures] == ["error"]
    assert [f.kind for f in read(iteration + caught).failures] == ["switch"]

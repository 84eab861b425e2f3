"""Logs of several versions of Megatron Bridge and Megatron-LM, read to the numbers a person would read out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch.verdict import Measured
from parlaunch_launch.training_log import LogReader, read

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
PEAKS = {
    "megatron-lm-2022-v100": (12000.5 * 2**20, 15000 * 2**20),
    "megatron-lm-2025-h100-moe": (58368 * 2**20, 66560 * 2**20),
    "bridge-0.3-h100": (42.75e9, 46.0e9),
}


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


LINES = {
    "oom": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "host-oom": "  exitcode  : -9 (pid: 23652)  (SIGKILL)",
    "nan": "RuntimeError: Rank 3: found NaN in local grad norm for bucket #0 in backward pass before data-parallel communication",
    "hang": "[rank0]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=600000)",
    "cuda": "RuntimeError: CUDA error: an illegal memory access was encountered",
    "nccl": "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2093, unhandled system error",
    "network": "The server socket has failed to listen on any local network address. port: 12341, code: -98, name: EADDRINUSE",
    "hub": "huggingface_hub.errors.GatedRepoError: 401 Client Error.",
    "checkpoint": "Finetuning requires loading from an available pretrained checkpoint or resuming from a checkpoint",
    "package": "ModuleNotFoundError: No module named 'transformer_engine'",
    "override": "omegaconf.errors.ConfigAttributeError: Key 'tensor_parallel' is not in struct",
    "assertion": "AssertionError: num_moe_experts (4) should be divisible by moe_router_num_groups (8).",
    "error": "KeyError: 'lm_head.weight'",
}


@pytest.mark.parametrize("kind", LINES)
def test_each_failure_is_recognised_and_explained_in_a_sentence(kind: str) -> None:
    (failure,) = read(LINES[kind]).failures
    assert failure.kind == kind
    assert failure.line == LINES[kind].strip()
    assert len(failure.sentence) > 10
    assert "{" not in failure.sentence


def test_the_assertion_s_own_words_are_in_the_sentence() -> None:
    (failure,) = read(LINES["assertion"]).failures
    assert "num_moe_experts (4) should be divisible" in failure.sentence


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

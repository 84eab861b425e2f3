"""Calibration by a plan: what it asks of the machine is written down, timed as it is, or said not to be."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parlaunch.check.calibrate import SENDERS, from_microbenchmarks
from parlaunch.check.measured import Machines, run_of
from parlaunch.errors import ParlaunchError
from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.shapes import Attention, Collective, Product, Shapes, shapes_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from tests.conftest import need

H100 = "NVIDIA H100 80GB HBM3"
ROW: dict[str, Any] = {
    "id": "x", "model_id": "meta-llama/Meta-Llama-3-8B", "hardware": "dgx-h100", "gpus": 8, "precision": "bf16", "seq": 4096, "gbs": 64,
    "mbs": 1, "tp": 1, "pp": 1,
}  # fmt: skip
EXPERTS = {"model_id": "Qwen/Qwen3-30B-A3B"}


def asked(dispatcher: str | None = None, **row: Any) -> Shapes:
    run = run_of(ROW | row, Machines())
    recipe = replace(run.recipe, features=replace(run.recipe.features, dispatcher=dispatcher))
    return shapes_of(recipe, run.layout, run.rates)


def sent(shapes: Shapes) -> set[tuple[str, int, int]]:
    return {(c.operation, c.ranks, c.inside) for c in shapes.collectives}


def over(ranks: int, inside: int) -> set[tuple[str, int, int]]:
    """Gradients and weights of data parallelism."""
    return {("all_gather", ranks, inside), ("reduce_scatter", ranks, inside)}


def test_a_plans_own_shapes_are_those_of_its_layers() -> None:
    """Llama 3 8B on two tensor ranks: every projection forward, by its inputs and by its weights, in the format of the recipe."""
    shapes = asked(tp=2, precision="fp8cs")
    m, n, k = 4096, 6144 // 2, 4096  # queries, keys and values
    for product in (Product(m, n, k, "fp8"), Product(m, k, n, "fp8"), Product(n, k, m, "fp8", accumulate=True)):
        assert product in shapes.products
    assert Product(n, k, m, "fp8") not in shapes.products
    assert Product(4096, 128256 // 2, 4096, "bf16") in shapes.products
    assert shapes.attention == (Attention(4096, 16, 128, 128),)
    sizes = [p.m * p.n * p.k for p in shapes.products]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("row", "groups"),
    [
        ({}, over(8, 8)),
        ({"gpus": 16, "pp": 2}, over(8, 8) | {("send", 2, 1)}),
        ({"tp": 2}, over(4, 4) | over(2, 2)),
        ({"cp": 2}, over(8, 8) | {("send", 2, 2)}),
        ({"gpus": 32, "tp": 4}, over(8, 2) | over(4, 4)),
        # Experts' own gradients are summed over the ranks that have the same.
        (EXPERTS | {"ep": 4}, over(8, 8) | over(2, 2) | {("alltoall", 4, 4)}),
        (EXPERTS | {"ep": 4, "dispatcher": "hybridep"}, over(8, 8) | over(2, 2) | {("alltoall", 4, 4)}),
        # A token crosses the network once to each node, and goes to its ranks there.
        (EXPERTS | {"gpus": 16, "ep": 16, "dispatcher": "deepep"}, over(16, 8) | {("alltoall", 2, 1), ("alltoall", 8, 8)}),
    ],
)  # fmt: skip
def test_all_traffic_of_a_plan_is_written_down(row: dict[str, Any], groups: set[tuple[str, int, int]]) -> None:
    assert sent(asked(**row)) == groups


def test_traffic_has_the_bytes_that_are_sent() -> None:
    shapes = asked("deepep", **EXPERTS, gpus=16, ep=16)
    all_to_all = {c.ranks: c.bytes for c in shapes.collectives if c.operation == "alltoall"}
    token = 2 * 2048
    ranks = 16 * (1 - (1 - 1 / 16) ** 8)  # that each token is sent to
    assert all_to_all[8] == pytest.approx(4096 * token * ranks, rel=1e-6)
    assert all_to_all[2] == pytest.approx(4096 * token * 2 * (1 - 0.5**8), rel=1e-6)
    (send,) = [c for c in asked(gpus=16, pp=2).collectives if c.operation == "send"]
    assert send.bytes == 4096 * 4096 * 2


def grouped(shapes: Shapes | None, local: int, nodes: int) -> tuple[dict[tuple[str, int, int], Any], list[str]]:
    need(find_spec("torch"), "torch")
    from parlaunch_launch.microbench import _groups

    missing: list[str] = []
    found = _groups(shapes, "cuda", local, nodes, missing)
    return {(g.link, g.ranks, g.inside): g.sent for g in found}, missing


GATHERS = tuple(("all_gather", size * 2**20) for size in (16, 128, 512))


def test_a_link_without_gathers_of_the_plan_keeps_those_of_no_plan() -> None:
    without, missing = grouped(None, 8, 2)
    assert without == {("nvlink", 8, 8): GATHERS, ("fabric", 2, 1): GATHERS}
    pipeline, missing = grouped(asked(gpus=16, pp=2), 8, 2)
    assert pipeline["fabric", 2, 1] == (("send", 2**25), *GATHERS)
    assert {operation for operation, _ in pipeline["nvlink", 8, 8]} == {"all_gather", "reduce_scatter"}
    assert not missing
    nothing, missing = grouped(Shapes((), (), ()), 8, 1)
    assert nothing == {("nvlink", 8, 8): GATHERS}


def test_groups_that_these_gpus_do_not_make_are_named() -> None:
    found, missing = grouped(asked("alltoall", **EXPERTS, gpus=32, ep=16), 8, 2)
    assert {operation for operation, _ in found["fabric", 16, 8]} == {"alltoall"}
    assert found["fabric", 2, 1]  # experts' gradients
    assert missing == [
        f"{operation} among 32 GPUs, 8 in each NVLink domain or node: here are 2 nodes with 8"
        for operation in ("all_gather", "reduce_scatter")
    ]
    found, missing = grouped(asked(tp=2), 2, 1)
    assert list(found) == [("nvlink", 2, 2)]
    assert missing[0] == "all_gather among 4 GPUs, in one NVLink domain or node: here is 1 node with 2"


def test_groups_of_a_kind_take_every_node_and_all_of_it() -> None:
    need(find_spec("torch"), "torch")
    from parlaunch_launch.microbench import _Group, _members

    made = [list(_members(_Group("", ranks, inside, ()), 4, 2)) for ranks, inside in ((4, 4), (2, 2), (2, 1), (4, 2))]
    assert made[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert made[1] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert made[2] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert made[3] == [[0, 1, 4, 5], [2, 3, 6, 7]]


OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "alltoall", "send")


def test_a_plans_shapes_are_timed_by_the_same_steps() -> None:
    """In small, on the CPU: its products, its attention both ways, whatever its groups send."""
    need(find_spec("torch"), "torch")
    from parlaunch_launch.microbench import measure

    shapes = asked("alltoall", **EXPERTS, tp=2, ep=2)
    more = tuple(Collective(operation, 2**20, 2, 2) for operation in OPERATIONS)
    results = measure(device="cpu", shapes=shapes._replace(collectives=(*shapes.collectives, *more)))
    assert 1 < len(results["gemm"]) <= 24
    assert {row["backward"] for row in results["attention"]} == {False, True}
    assert {row["operation"] for row in results["nvlink"]} == {*OPERATIONS}
    assert any(sentence.startswith("all_gather among 4 GPUs") for sentence in results["unmeasured"])
    file = from_microbenchmarks(results | {"gpu": H100})
    assert {"gemm_bf16", "flash", "flash_backward"} < {*file["measured"]}
    assert file["fit"]["notes"] == [f"not measured: {sentence}" for sentence in results["unmeasured"]]


def _rank(rank: int, store: str, shapes: Shapes, answers: Any) -> None:
    """One of two on each of two nodes."""
    import os

    import torch
    import torch.distributed as dist

    from parlaunch_launch.microbench import _collectives

    os.environ["LOCAL_WORLD_SIZE"] = "2"
    dist.init_process_group("gloo", store=dist.FileStore(store, 4), rank=rank, world_size=4)
    answers.put(_collectives(torch, "cpu", shapes, []))
    dist.barrier()
    dist.destroy_process_group()


def test_groups_across_nodes_are_timed_and_all_ranks_have_one_answer(tmp_path: Path) -> None:
    need(find_spec("torch"), "torch")
    import torch.multiprocessing as mp

    sizes = [("reduce_scatter", 2, 2), ("alltoall", 4, 2), ("send", 2, 1)]
    shapes = Shapes((), (), tuple(Collective(operation, 2**20, *group) for operation, *group in sizes))
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(str(tmp_path / "store"), shapes, answers), nprocs=4, join=True)
    first, *others = [answers.get() for _ in range(4)]
    assert others == [first] * 3
    groups = {link: {(r["operation"], r["ranks"], r["inside"]) for r in rows} for link, rows in first.items()}
    assert groups == {
        "nvlink": {("reduce_scatter", 2, 2)},
        "fabric": {("alltoall", 4, 2), ("send", 2, 1), ("all_gather", 2, 1)},
    }


def test_what_nothing_here_multiplies_is_said_and_stands_for_no_other_format(monkeypatch: pytest.MonkeyPatch) -> None:
    need(find_spec("torch"), "torch")
    from parlaunch_launch import microbench

    for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.cpp_extensions"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(microbench, "_spawned", lambda *_: {"nvlink": [], "fabric": []})
    formats = ("mx", "fp4", "block", "fp32", "vector", "bf16", "fp16")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    products = (*(Product(512, 256, 128, f) for f in formats), Product(512, 256, 128, "fp8", accumulate=True))
    results = microbench.measure(device="cpu", shapes=Shapes(products, (), ()))
    assert [row["format"] for row in results["gemm"]] == ["bf16", "fp16"]
    none = "Transformer Engine is not installed here"
    assert results["unmeasured"] == [
        *(f"products in {f}: {none}" for f in formats[:3]),
        *(f"products in {f}: a machine file has no value for them" for f in formats[3:5]),
        f"products in fp8 that are added to fp32: {none}",
    ]
    assert results["attention"]  # as without a plan


def _engine(monkeypatch: pytest.MonkeyPatch, *, old: bool) -> list[dict[str, Any]]:
    """A Transformer Engine that takes down what it is asked to multiply."""
    done: list[dict[str, Any]] = []

    def now(a: Any, b: Any, out_dtype: Any = None, layout: str = "TN", **how: Any) -> None:
        done.append({"a": a, "b": b, "out_dtype": out_dtype, "layout": layout, **how})

    def before(a: Any, b: Any, workspace: Any, **how: Any) -> None:
        now(a, b, workspace=workspace, **how)

    def quantiser(kind: str) -> Any:
        return lambda *_, **how: lambda x: (kind, tuple(x.shape), how.get("block_scaling_dim"))

    te = "transformer_engine.pytorch"
    modules: dict[str, dict[str, Any]] = {
        "transformer_engine": {}, te: {}, f"{te}.module": {}, f"{te}.tensor": {},
        f"{te}.cpp_extensions": {"general_gemm": before if old else now},
        f"{te}.module.base": {"get_workspace": lambda: "workspace"},
        f"{te}.tensor.float8_blockwise_tensor": {"Float8BlockQuantizer": quantiser("block")},
        f"{te}.tensor.float8_tensor": {"Float8CurrentScalingQuantizer": quantiser("fp8")},
        f"{te}.tensor.mxfp8_tensor": {"MXFP8Quantizer": quantiser("mx")},
        f"{te}.tensor.nvfp4_tensor": {"NVFP4Quantizer": quantiser("fp4")},
        "transformer_engine_torch": {"DType": type("DType", (), {"kFloat8E4M3": 8, "kFloat4E2M1": 4})},
    }  # fmt: skip
    for name, inside in modules.items():
        made = ModuleType(name)
        vars(made).update(inside)
        monkeypatch.setitem(sys.modules, name, made)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, made)
    return done


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("fmt", ["fp8", "block", "mx", "fp4"])
def test_transformer_engine_multiplies_each_format_as_itself(
    monkeypatch: pytest.MonkeyPatch, fmt: str, old: bool
) -> None:
    need(find_spec("torch"), "torch")
    import torch

    from parlaunch_launch.products import product

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    done = _engine(monkeypatch, old=old)
    product(torch, "cpu", 64, 48, 32, fmt, accumulate=True)()
    assert (done[0]["a"], done[0]["b"]) == (
        (fmt, (32, 48), 1 if fmt == "block" else None),
        (fmt, (32, 64), 1 if fmt == "block" else None),
    )
    assert (done[0]["layout"], done[0]["accumulate"], done[0]["out"].dtype) == ("NT", True, torch.float32)
    assert done[0]["out"].shape == (64, 48)
    assert ("workspace" in done[0]) is old
    if fmt != "fp8":  # which torch multiplies
        product(torch, "cpu", 64, 48, 32, fmt)()
        assert [done[1][x][:2] for x in "ab"] == [(fmt, (48, 32)), (fmt, (64, 32))]
        assert (done[1]["layout"], done[1]["out_dtype"]) == ("TN", torch.bfloat16)
        assert "out" not in done[1]


def test_blocks_that_blackwell_has_in_another_format_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need(find_spec("torch"), "torch")
    import torch

    from parlaunch_launch.products import product

    _engine(monkeypatch, old=False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (10, 0))
    with pytest.raises(ParlaunchError, match="MXFP8"):
        product(torch, "cpu", 128, 128, 128, "block")


def here(measured: dict[str, float], name: str = "dgx-h100") -> Rates:
    return replace(rates_of(preset(name)), measured=measured)


@pytest.mark.parametrize(
    ("name", "gpu", "fmt", "share"),
    [
        ("dgx-h100", H100, "bf16", "gemm_bf16"),
        ("dgx-h100", H100, "block", "gemm_fp8"),
        ("dgx-b200", "NVIDIA B200", "mx", "gemm_fp8"),
        ("dgx-b200", "NVIDIA B200", "fp4", "gemm_fp4"),
    ],
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_products_of_each_format_give_its_rate_back(
    name: str, gpu: str, fmt: str, share: str, accumulate: bool
) -> None:
    slowed = Kernels(here({share: 0.45}, name))
    seconds = slowed.gemm(8192, 8192, 8192, fmt, accumulate=accumulate)
    row = {"m": 8192, "n": 8192, "k": 8192, "format": fmt, "accumulate": accumulate, "seconds": seconds}
    assert from_microbenchmarks({"gpu": gpu, "gemm": [row]})["measured"] == {share: pytest.approx(0.45, rel=0.01)}


@pytest.mark.parametrize(
    ("link", "group", "bus"),
    [
        ("nvlink", Group(8, 8), 200e9),
        ("nvlink", Group(2, 2), 200e9),
        ("fabric", Group(2, 1), 30e9),
        ("fabric", Group(16, 8), 30e9),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_gives_the_rate_of_its_link_back(link: str, group: Group, bus: float, operation: str) -> None:
    """Also all to all over EFA, whose share of the links is known by the kind of network."""
    name = f"{link}_bus_bytes_per_s"
    links = Links(replace(here({name: bus}), fabric_kind="efa"))
    shape = {"operation": operation, "bytes": 2**28, "ranks": group.size, "inside": group.inside}
    row = shape | {"seconds": SENDERS[operation](links, 2.0**28, group)}
    file = from_microbenchmarks({"gpu": H100, link: [row]}, fabric_kind="efa")
    assert file["measured"] == {name: pytest.approx(bus, rel=0.01)}


def test_a_collective_that_another_link_holds_up_says_nothing_of_this_one() -> None:
    row = {"operation": "all_gather", "bytes": 2**28, "ranks": 16, "inside": 8, "seconds": 1e-5}
    stream = [{"bytes": 2**31, "seconds": 2**31 / 2e12}]
    assert set(from_microbenchmarks({"gpu": H100, "stream": stream, "fabric": [row]})["measured"]) == {"hbm"}

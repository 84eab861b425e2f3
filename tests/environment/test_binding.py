"""Which CPUs a rank runs on: right, or silent."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.environment.binding import VARIABLE, Binding, decide, numa_option, read, spell, variable
from parlaunch.hardware.cluster import Gpu, Node
from parlaunch_launch.bind import bind_here


def machine(numa: tuple[int | None, ...], numa_cpus: dict[int, range], **more: object) -> Node:
    gpus = tuple(Gpu(index=i, name="NVIDIA H100 80GB HBM3", numa=n, nvlink_domain=0) for i, n in enumerate(numa))
    every = tuple(cpu for cpus in numa_cpus.values() for cpu in cpus)
    known: dict[str, object] = {"cpus_allowed": every, "sockets": 2} | more
    return Node(
        hostname="n", gpus=gpus, numa_cpus=tuple((n, tuple(c)) for n, c in numa_cpus.items()), **known,  # type: ignore[arg-type]
    )  # fmt: skip


DGX = machine((0, 0, 0, 0, 1, 1, 1, 1), {0: range(56), 1: range(56, 112)})


@pytest.mark.parametrize(
    ("torch", "option"),
    [("2.9.0", "node"), ("2.13.0+cpu", "node"), ("2.8.1", None), ("2.10.0a0+git", "node"), (None, None), ("odd", None)],
)
def test_torchrun_binds_from_two_nine_on(torch: str | None, option: str | None) -> None:
    assert numa_option(torch) == option


def test_torchrun_is_asked_where_it_cannot_stop_the_launch() -> None:
    assert decide(DGX, torch_version="2.10", numactl=True).option == "node"
    # Without the numactl command torchrun raises; without the option it does not start.
    for old in (decide(DGX, torch_version="2.10"), decide(DGX, torch_version="2.8", numactl=True)):
        assert old.option is None
        assert old.cpus == (tuple(range(56)),) * 4 + (tuple(range(56, 112)),) * 4


def test_no_numa_is_heard() -> None:
    assert decide(DGX, torch_version="2.10", numactl=True, wanted=False) == Binding(
        reason="not wanted (--no-numa)", roams=True
    )


@pytest.mark.parametrize(
    ("node", "wanted", "roams"),
    [
        (DGX, True, False),
        (DGX, False, True),
        (machine((0, 0), {0: range(16)}, sockets=1), False, False),
        (machine((0, 0), {}, cpus_allowed=None), True, False),  # planned from elsewhere: the launch sees its CPUs
        (machine((0, 0), {}, cpus_allowed=None), False, True),
        (machine((-1, None), {0: range(8), 1: range(8, 16)}), True, True),
        (machine((0, 1, None), {0: range(8), 1: range(8, 16)}), True, True),
        (replace(DGX, cpus_allowed=(0, *range(56, 112))), True, True),  # one CPU beside four GPUs
    ],
)
def test_ranks_roam_where_they_could_be_bound_and_are_not(node: Node, wanted: bool, roams: bool) -> None:
    assert decide(node, wanted=wanted).roams == roams


def test_a_gpu_of_unknown_numa_roams_and_torchrun_is_not_asked() -> None:
    # torchrun takes -1 for node 0, which is wrong on a machine with two.
    odd = machine((0, 0, -1, None), {0: range(8), 1: range(8, 16)})
    made = decide(odd, torch_version="2.10", numactl=True)
    assert made.option is None
    assert made.cpus == (tuple(range(8)), tuple(range(8)), None, None)
    assert not decide(machine((-1, None), {0: range(8), 1: range(8, 16)})).cpus


def test_a_single_numa_node_needs_no_binding() -> None:
    made = decide(machine((0, 0), {0: range(16)}, sockets=1), torch_version="2.10", numactl=True)
    assert made == Binding(reason="every CPU is as near as any other")


def test_a_cpuset_smaller_than_the_node_is_kept_to() -> None:
    small = replace(DGX, cpus_allowed=(*range(8), *range(56, 64)))
    assert decide(small).cpus == (tuple(range(8)),) * 4 + (tuple(range(56, 64)),) * 4


def test_a_cpuset_on_the_other_socket_leaves_ranks_unbound() -> None:
    other = replace(DGX, cpus_allowed=tuple(range(56, 112)))
    made = decide(other, torch_version="2.10", numactl=True)
    assert made.option is None  # torchrun would stop: "Must bind to a non-empty set"
    assert not any(made.cpus)


def test_too_few_cpus_beside_a_gpu_bind_nothing() -> None:
    lopsided = replace(DGX, cpus_allowed=(0, *range(56, 112)))
    made = decide(lopsided)
    assert not made.cpus
    assert "too few" in made.reason


def test_sub_numa_clustering_takes_the_whole_socket() -> None:
    # NPS4: eight NUMA nodes on two sockets, GPUs on every other one. A NUMA node alone would leave half the CPUs idle.
    nps4 = machine((1, 1, 3, 3, 5, 5, 7, 7), {n: range(n * 16, n * 16 + 16) for n in range(8)})
    assert decide(nps4).cpus == (tuple(range(64)),) * 4 + (tuple(range(64, 128)),) * 4
    assert decide(nps4, torch_version="2.10", numactl=True).option == "socket"
    even = machine((0, 1, 2, 3), {n: range(n * 16, n * 16 + 16) for n in range(4)})
    assert decide(even).cpus[1] == tuple(range(16, 32))


def test_graces_gpu_memory_is_no_place_for_a_rank() -> None:
    grace = machine((0, 0, 1, 1), {0: range(72), 1: range(72, 144)}, numa_nodes=34)
    assert decide(grace).cpus == (tuple(range(72)),) * 2 + (tuple(range(72, 144)),) * 2
    wrong = replace(grace, gpus=tuple(replace(g, numa=2 + g.index) for g in grace.gpus))
    assert not decide(wrong).cpus  # NUMA nodes that have no CPUs


def test_local_ranks_follow_the_order_of_the_gpus() -> None:
    pairs = machine((0, 1, 0, 1), {0: range(8), 1: range(8, 16)})
    crossed = replace(
        pairs,
        nvlinks=((0, 2, 12), (1, 3, 12)),
        gpus=tuple(replace(g, nvlink_domain=None) for g in pairs.gpus),
    )
    assert decide(crossed).cpus == (tuple(range(8)),) * 2 + (tuple(range(8, 16)),) * 2


@given(st.lists(st.one_of(st.none(), st.sets(st.integers(0, 300), min_size=1)), min_size=1, max_size=9))
def test_what_is_written_for_the_runner_is_read_back(lists: list[set[int] | None]) -> None:
    wanted = tuple(None if c is None else tuple(sorted(c)) for c in lists)
    made = variable(Binding(cpus=wanted, reason="near"))
    assert (made is None) == (not any(wanted))
    assert made is None or read(made.value) == wanted


@given(st.lists(st.integers(0, 1), min_size=1, max_size=8), st.sets(st.integers(0, 31)))
def test_no_rank_is_ever_bound_outside_the_cgroup_or_its_numa_node(numa: list[int], allowed: set[int]) -> None:
    node = machine(tuple(numa), {0: range(16), 1: range(16, 32)}, cpus_allowed=tuple(sorted(allowed)))
    for where, cpus in zip(numa, decide(node).cpus, strict=False):
        assert cpus is None or (set(cpus) <= allowed and all(cpu // 16 == where for cpu in cpus) and cpus)


# --- Acting -----------------------------------------------------------------------------------------------------------


class Kernel:
    """Affinities as the kernel would keep them."""

    def __init__(self, allowed: Collection[int], refuses: bool = False) -> None:
        self.allowed, self.refuses = set(allowed), refuses
        self.bound: dict[int, Collection[int]] = {}

    def bind(self, thread: int, cpus: Collection[int]) -> None:
        if self.refuses:
            raise PermissionError(1, "Operation not permitted")
        self.bound[thread] = cpus

    def __call__(self, value: str, rank: str = "0") -> str | None:
        environ = {VARIABLE: value, "LOCAL_RANK": rank}
        return bind_here(environ, allowed=lambda _: self.allowed, bind=self.bind, threads=lambda: [7, 8])


def test_a_rank_binds_all_its_threads() -> None:
    kernel = Kernel(range(16))
    assert kernel("0-3;4-7", "1") == "4-7"
    assert kernel.bound == {0: [4, 5, 6, 7], 7: [4, 5, 6, 7], 8: [4, 5, 6, 7]}


def test_cpus_that_are_not_ours_are_left_out_or_leave_the_rank_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert Kernel(range(2))("0-3") == "0-1"
    assert Kernel([9])("0-3") is None
    assert "not ours" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "x", "3-1", "0-99999999", ";;"])
def test_an_odd_list_never_stops_a_rank(value: str) -> None:
    kernel = Kernel(range(16))
    assert kernel(value) is None
    assert not kernel.bound


def test_a_kernel_that_refuses_does_not_stop_a_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert Kernel(range(16), refuses=True)("0-3") is None
    assert "cannot be bound" in capsys.readouterr().err


def test_a_rank_outside_torchrun_is_not_touched() -> None:
    assert bind_here({VARIABLE: "0"}) is None
    assert bind_here({"LOCAL_RANK": "0"}) is None


def test_torchruns_option_is_taken_only_where_its_numactl_is() -> None:
    assert decide(DGX, torch_version="2.10").option is None
    assert decide(DGX, torch_version="2.10", numactl=True).option == "node"


def test_the_real_kernel_takes_it() -> None:
    before = os.sched_getaffinity(0)
    try:
        first = min(before)
        assert bind_here({VARIABLE: spell([first]), "LOCAL_RANK": "0"}) == str(first)
        assert os.sched_getaffinity(0) == {first}
    finally:
        os.sched_setaffinity(0, before)

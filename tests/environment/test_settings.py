"""The environment of a plan: values, reasons, what is kept, and what a user's value would do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.environment.settings import node_settings, problems, settings
from parlaunch.environment.user_variables import DANGERS
from parlaunch.environment.variables import ENTRIES, TUNED
from parlaunch.hardware.cluster import UNKNOWN, Cluster, Gpu, Nic, Node
from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, Layout
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Variable
from parlaunch.show.scripts import exports

DENSE = catalog.recipe("llama32_1b_pretrain_config")
MOE = replace(
    catalog.recipe("qwen3_235b_a22b_pretrain_256gpu_b200_fp8mx_config"), benchmark=True
)  # HybridEP, EP overlap, full-iteration graph


def with_features(recipe: Recipe, **features: Any) -> Recipe:
    return replace(recipe, features=replace(recipe.features, **features))


def environment(
    machine: str, nodes: int = 1, recipe: Recipe = DENSE, current: dict[str, str] | None = None, **more: Any
) -> dict[str, Variable]:
    cluster = preset(machine, nodes)
    torch = more.pop("torch_version", None)
    sizes = {"world": cluster.world_size, "global_batch_size": 512} | more
    made = settings(cluster, recipe, Layout(**sizes), current or {}, torch_version=torch)
    return {v.name: v for v in made}


def value(name: str, *args: Any, **more: Any) -> str | None:
    found = environment(*args, **more).get(name)
    return found.value if found else None


# --- The table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_entry_has_a_reason_and_a_source(entry: Any) -> None:
    assert len(entry.reason) > 20
    assert re.search(r"[A-Z]/|guide|Guide|issues|recipes|pytorch|torch/", entry.source)


def test_no_variable_has_two_entries_and_single_settings_speak_of_known_ones() -> None:
    names = [r.name for r in ENTRIES]
    assert len(names) == len(set(names))
    assert {n for t in TUNED for n in t.names} <= set(names)
    assert all(d.source for d in DANGERS)


@pytest.mark.parametrize(
    ("machine", "sizes", "wanted"),
    [
        ("dgx-h100", {}, "32"),
        ("dgx-h100", {"tp": 2}, "1"),
        ("dgx-h100", {"cp": 2}, "1"),
        ("dgx-h100", {"tp": 2, "fsdp": True}, "32"),
        ("dgx-a100-80g", {"tp": 8}, "1"),
        ("dgx-b200", {"tp": 2}, "32"),
        ("gb300-nvl72", {"cp": 2}, "32"),
    ],
)
def test_hardware_queues_follow_generation_and_layout(machine: str, sizes: dict[str, Any], wanted: str) -> None:
    assert value("CUDA_DEVICE_MAX_CONNECTIONS", machine, **sizes) == wanted


def test_expert_overlap_keeps_its_queues_only_where_the_layout_lets_it_run() -> None:
    overlapping = with_features(MOE, dispatcher="alltoall", ep_overlap=True)
    assert value("CUDA_DEVICE_MAX_CONNECTIONS", "dgx-h100", 4, overlapping, tp=2, ep=8) == "8"
    # Full recomputation switches the overlap off: launch order matters again.
    assert value("CUDA_DEVICE_MAX_CONNECTIONS", "dgx-h100", 4, overlapping, tp=2, ep=8, recompute=FULL_RECOMPUTE) == "1"


def test_the_same_layout_on_other_hardware_changes_what_must_change() -> None:
    board = environment("dgx-b200", 8, MOE, ep=32)
    rack = environment("gb200-nvl72", 16, MOE, ep=32)
    changed = {n: (board[n].value, rack[n].value) for n in board if n in rack and board[n].value != rack[n].value}
    assert changed == {
        "USE_MNNVL": ("0", "1"),
        "NVLINK_DOMAIN_SIZE": ("8", "72"),
        "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN": ("8", "32"),
    }
    assert set(rack) - set(board) == {"NCCL_NET_GDR_C2C", "NCCL_NET_GDR_LEVEL"}
    assert set(board) <= set(rack)


def test_hybridep_never_counts_ranks_that_nvlink_does_not_join() -> None:
    for nodes, ep, wanted in ((2, 8, "8"), (8, 32, "32"), (16, 64, "64"), (3, 6, "6")):
        assert value("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", "gb200-nvl72", nodes, MOE, ep=ep) == wanted
    assert value("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", "dgx-h100", 8, MOE, ep=64) == "8"


def test_a_rack_without_imex_is_a_board() -> None:
    blind = preset("gb200-nvl72", 4)
    nodes = tuple(replace(n, imex_channels=0) for n in blind.nodes)
    blind = replace(blind, nodes=nodes)
    made = {v.name: v.value for v in settings(blind, MOE, Layout(world=16, ep=16, global_batch_size=512), {})}
    assert (made["USE_MNNVL"], made["NVLINK_DOMAIN_SIZE"]) == ("0", "4")
    assert made["NCCL_MNNVL_ENABLE"] == "0"


def test_user_buffers_turn_the_allocator_and_nvlink_sharp_round() -> None:
    buffers = with_features(DENSE, nccl_ub=True)
    made = environment("dgx-h100", recipe=buffers)
    assert made["NCCL_NVLS_ENABLE"].value == "1"
    # The recipe's own default would break the run, and is set later by setdefault: it has to be undone.
    assert made["PYTORCH_CUDA_ALLOC_CONF"].value == "expandable_segments:False"


@pytest.mark.parametrize(
    ("torch", "names"),
    [
        (None, {"PYTORCH_CUDA_ALLOC_CONF"}),
        ("2.8.0", {"PYTORCH_CUDA_ALLOC_CONF"}),
        ("2.9.1", {"PYTORCH_CUDA_ALLOC_CONF"}),  # reads the new name in part only
        ("2.13.0+cu130", {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}),
    ],
)
def test_the_allocator_is_told_under_names_that_this_torch_reads(torch: str | None, names: set[str]) -> None:
    made = environment("dgx-h100", torch_version=torch)
    assert {n for n in made if n.endswith("ALLOC_CONF")} == names
    assert {made[n].value for n in names} == {"expandable_segments:True"}


def test_a_cpu_run_gets_threads_and_nothing_of_cuda() -> None:
    node = Node(hostname="n", gpus=tuple(Gpu(index=i, name="CPU rank") for i in range(4)), cores=16)
    made = settings(Cluster(source="probe", nodes=(node,)), DENSE, Layout(world=4), {}, device="cpu")
    assert [(v.name, v.value) for v in made] == [("OMP_NUM_THREADS", "4")]


def test_threads_share_the_smallest_nodes_cores() -> None:
    big, small = (replace(preset("dgx-h100").nodes[0], hostname=h, cores=c) for h, c in (("a", 112), ("b", 16)))
    both = replace(preset("dgx-h100", 2), nodes=(big, small))
    layout = Layout(world=16, global_batch_size=512)
    assert {v.name: v.value for v in settings(both, DENSE, layout, {})}["OMP_NUM_THREADS"] == "2"
    offloaded = with_features(DENSE, optimizer_offload=1.0)
    alone = replace(both, nodes=(big,))
    layout = Layout(world=8, global_batch_size=512)
    assert {v.name: v.value for v in settings(alone, offloaded, layout, {})}["OMP_NUM_THREADS"] == "14"


def test_nvidias_tuned_environments_come_out_as_nvidia_set_them() -> None:
    here = Path(__file__).parents[1]
    command = [
        sys.executable,
        str(here.parent / "scripts" / "bench" / "tuned_environments.py"),
        str(here / "data" / "tuned_environments.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # below 98 % of the cells
    assert "no rule found" not in done.stdout


# --- The recipe's own variables ---------------------------------------------------------------------------------------


def test_a_librarys_recipe_keeps_its_own_variables_on_its_own_machine_and_layout() -> None:
    for name in catalog.recipe_names():
        recipe = catalog.recipe(name)
        d = recipe.defaults
        if not recipe.env or recipe.hardware != "h100" or None in (d.tp, d.pp, d.cp) or not recipe.gpus:
            continue
        layout = Layout(
            world=recipe.gpus, tp=d.tp or 1, pp=d.pp or 1, vp=d.vp, cp=d.cp or 1, ep=d.ep or 1, fsdp=recipe.features.fsdp,
            global_batch_size=recipe.global_batch_size, recompute=d.recompute or FULL_RECOMPUTE,
        )  # fmt: skip
        nodes = -(-recipe.gpus // 8)
        made = {v.name: v.value for v in settings(preset("dgx-h100", nodes), recipe, layout, {})}
        assert {n: made.get(n) for n in recipe.env} == dict(recipe.env), name


def test_where_the_layout_asks_for_another_value_the_reason_names_the_recipes() -> None:
    recipe = replace(DENSE, env={**DENSE.env, "CUDA_DEVICE_MAX_CONNECTIONS": "32", "SITE_SETTING": "7"})
    made = environment("dgx-h100", recipe=recipe, tp=4)
    assert made["CUDA_DEVICE_MAX_CONNECTIONS"].value == "1"
    assert "the recipe's 32" in made["CUDA_DEVICE_MAX_CONNECTIONS"].reason
    assert made["SITE_SETTING"].value == "7"


# --- The user's -------------------------------------------------------------------------------------------------------


def test_a_value_that_is_set_stands_and_is_shown_as_kept() -> None:
    made = environment("dgx-h100", current={"NCCL_NVLS_ENABLE": "1", "TORCH_NCCL_HIGH_PRIORITY": "1", "HOME": "/root"})
    assert made["NCCL_NVLS_ENABLE"].kept
    assert made["NCCL_NVLS_ENABLE"].value == "1"
    assert "parlaunch would set 0" in made["NCCL_NVLS_ENABLE"].reason
    assert made["TORCH_NCCL_HIGH_PRIORITY"].kept
    assert made["NCCL_NVLS_ENABLE"].warning is None
    assert "HOME" not in made


@pytest.mark.parametrize(
    ("name", "given", "machine", "nodes", "recipe", "sizes", "said"),
    [
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1", "dgx-h100", 1, DENSE, {"fsdp": True}, "Megatron-FSDP stops"),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "8", "dgx-h100", 1, DENSE, {"tp": 2}, "Megatron-LM stops"),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "many", "dgx-h100", 1, DENSE, {}, "whole number"),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1", "dgx-b200", 1, DENSE, {"tp": 2}, "Blackwell"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "dgx-h100", 1, with_features(DENSE, nccl_ub=True), {}, "refuses"),
        ("NCCL_GRAPH_REGISTER", "1", "dgx-h100", 1, with_features(DENSE, cuda_graph="transformer_engine"), {}, "captures"),
        ("NVTE_CPU_OFFLOAD_V1", "0", "dgx-h100", 1, with_features(DENSE, offload_modules=("core_attn",)), {}, "stops"),
        ("CUDA_LAUNCH_BLOCKING", "1", "dgx-h100", 1, DENSE, {}, "no overlap"),
        ("NCCL_P2P_DISABLE", "1", "dgx-h100", 1, DENSE, {}, "host memory"),
        ("NCCL_IB_DISABLE", "1", "dgx-h100", 2, DENSE, {}, "TCP"),
        ("NCCL_NET", "Socket", "dgx-h100", 2, DENSE, {}, "TCP"),
        ("NCCL_P2P_LEVEL", "LOC", "dgx-h100", 1, DENSE, {}, "host memory"),
        ("NCCL_SHM_DISABLE", "1", "l40s-pcie-8", 1, DENSE, {}, "through the network"),
        ("NCCL_NET_GDR_LEVEL", "0", "dgx-h100", 2, DENSE, {}, "no GPUDirect"),
        ("NCCL_MAX_CTAS", "2", "dgx-h100", 1, DENSE, {}, "2 blocks at most"),
        ("NCCL_MAX_NCHANNELS", "1", "dgx-h100", 1, DENSE, {}, "1 blocks at most"),
        ("NCCL_CUMEM_ENABLE", "0", "gb200-nvl72", 4, DENSE, {"tp": 8}, "reaches over nodes"),
        ("NCCL_ALGO", "Tree", "dgx-h100", 1, DENSE, {}, "held to Tree"),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "dgx-h100", 1, DENSE, {}, "compares every collective"),
        ("TORCH_NCCL_BLOCKING_WAIT", "true", "dgx-h100", 1, DENSE, {}, "nothing overlaps"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "0", "dgx-h100", 1, DENSE, {}, "allocated and freed by the driver"),
        ("TORCHDYNAMO_DISABLE", "1", "dgx-h100", 1, DENSE, {}, "kernel of its own"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0", "dgx-h100", 1, DENSE, {}, "no fixed order"),
        ("USE_MNNVL", "1", "dgx-h100", 4, MOE, {"ep": 8}, "ends at the node"),
        ("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", "3", "dgx-h100", 4, MOE, {"ep": 8}, "HybridEP splits"),
        ("NCCL_MNNVL_ENABLE", "0", "gb200-nvl72", 4, DENSE, {"tp": 8}, "reaches over nodes"),
        ("NVTE_FUSED_ATTN", "0", "dgx-h100", 1, DENSE, {}, "attention_backend"),
        ("OMP_NUM_THREADS", "auto", "dgx-h100", 1, DENSE, {}, "whole number"),
    ],
)  # fmt: skip
def test_a_value_that_breaks_the_run_says_how(
    name: str, given: str, machine: str, nodes: int, recipe: Recipe, sizes: dict[str, Any], said: str
) -> None:
    made = environment(machine, nodes, recipe, {name: given}, **sizes)[name]
    assert made.kept
    assert made.value == given
    assert said in (made.warning or "")
    assert problems((made,)) == (f"{name}={given}: {made.warning}",)


@pytest.mark.parametrize(
    ("name", "given", "machine", "nodes"),
    [
        ("NCCL_ALGO", "^NVLS", "dgx-h100", 1), ("NCCL_NET", "IB", "dgx-h100", 2), ("NCCL_NET", "Socket", "dgx-h100", 1),
        ("NCCL_P2P_LEVEL", "NVL", "dgx-h100", 1), ("NCCL_SHM_DISABLE", "1", "dgx-h100", 1), ("NCCL_MAX_CTAS", "32", "dgx-h100", 1),
        ("NCCL_NET_GDR_LEVEL", "PHB", "dgx-h100", 2), ("NCCL_CUMEM_ENABLE", "0", "dgx-h100", 2), ("TORCH_NCCL_BLOCKING_WAIT", "0", "dgx-h100", 1),
        ("TORCH_DISTRIBUTED_DEBUG", "INFO", "dgx-h100", 1), ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1", "dgx-h100", 1),
    ],
)  # fmt: skip
def test_the_same_variables_pass_where_they_change_nothing(name: str, given: str, machine: str, nodes: int) -> None:
    assert problems(tuple(environment(machine, nodes, DENSE, {name: given}).values())) == ()


@pytest.mark.parametrize("machine", ["dgx-h100", "dgx-b200", "gb200-nvl72", "dgx-a100-80g", "l40s-pcie-8"])
@pytest.mark.parametrize("sizes", [{}, {"tp": 4}, {"tp": 2, "fsdp": True}, {"cp": 2}])
def test_our_own_values_never_break_the_run(machine: str, sizes: dict[str, Any]) -> None:
    for recipe in (DENSE, MOE, with_features(DENSE, nccl_ub=True)):
        ep: dict[str, Any] = {"ep": 4} if recipe is MOE else {}
        ours = environment(machine, 2, recipe, **sizes, **ep)
        again = environment(machine, 2, recipe, {n: v.value for n, v in ours.items()}, **sizes, **ep)
        assert problems(tuple(again.values())) == ()
        assert all(v.kept for v in again.values())


def test_the_users_new_name_of_the_allocators_variable_is_heard() -> None:
    made = environment("dgx-h100", current={"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, torch_version="2.13")
    assert made["PYTORCH_ALLOC_CONF"].kept
    assert "PYTORCH_CUDA_ALLOC_CONF" not in made


def test_gpus_picked_by_number_in_cudas_own_order_keep_that_order() -> None:
    node = Node(hostname="n", gpus=(Gpu(index=0, name="NVIDIA A100-SXM4-80GB"), Gpu(index=1, name="NVIDIA L40S")))
    mixed, layout = Cluster(source="probe", nodes=(node,)), Layout(world=2, global_batch_size=512)
    assert "CUDA_DEVICE_ORDER" in {v.name for v in settings(mixed, DENSE, layout, {})}
    assert "CUDA_DEVICE_ORDER" not in {v.name for v in settings(mixed, DENSE, layout, {"CUDA_VISIBLE_DEVICES": "1,0"})}


# --- One node ---------------------------------------------------------------------------------------------------------


def nic(name: str, kind: str = "infiniband", *, rail: bool = False, up: bool = True, **more: Any) -> Nic:
    return Nic(name=name, kind=kind, port=1 if kind != "ethernet" else None, rail=rail, up=up, **more)


def job(*nics_of_nodes: tuple[Nic, ...], kind: str = "infiniband", **more: Any) -> Cluster:
    made = preset("dgx-h100", len(nics_of_nodes))
    nodes = tuple(
        replace(n, hostname=f"n{at}", nics=nics, **more)
        for at, (n, nics) in enumerate(zip(made.nodes, nics_of_nodes, strict=True))
    )
    return replace(made, nodes=nodes, fabric=replace(made.fabric, kind=kind))


def of_node(cluster: Cluster, index: int = 0, current: dict[str, str] | None = None) -> dict[str, Variable]:
    return {v.name: v for v in node_settings(cluster, index, current or {})}


RAILS = (nic("mlx5_0", rail=True), nic("mlx5_1", rail=True))


def test_rails_are_named_only_where_other_ports_are_up() -> None:
    assert of_node(job(RAILS, RAILS)) == {}
    assert of_node(job((*RAILS, nic("mlx5_2", up=False)), RAILS)) == {}
    storage = nic("mlx5_2", why_not="200 Gb/s where the rails run at 400 Gb/s")
    made = of_node(job((*RAILS, storage), RAILS))["NCCL_IB_HCA"]
    assert made.value == "=mlx5_0:1,mlx5_1:1"
    assert "mlx5_2 (200 Gb/s" in made.reason
    assert of_node(job((*RAILS, storage))) == {}  # one node asks no network


def test_rails_of_a_list_are_named_as_nccl_knows_them() -> None:
    """`nvidia-smi topo -m` has the names without the fabric, lspci the fabric without the names."""
    front = nic("mlx5_2", UNKNOWN, why_not="a storage or front-end port")
    listed = (nic("mlx5_0", UNKNOWN, rail=True), nic("mlx5_1", UNKNOWN, rail=True), front)
    assert of_node(job(listed, listed))["NCCL_IB_HCA"].value == "=mlx5_0:1,mlx5_1:1"
    bare = tuple(replace(n, name=f"0000:0{at}:00.0", pci=f"0000:0{at}:00.0") for at, n in enumerate((*RAILS, front)))
    assert "NCCL_IB_HCA" not in of_node(job(bare, bare))


def test_the_interface_is_named_where_nccl_might_take_another() -> None:
    def two(host: int) -> tuple[Nic, ...]:
        return (
            nic("eth0", "ethernet", netdev="eth0", addresses=(f"192.168.{host}.9",)),
            nic(f"ens{host}", "ethernet", netdev=f"ens{host}", addresses=(f"10.0.0.{host}",)),
        )

    cluster = job(two(1), two(2), kind="ethernet")
    assert of_node(cluster, 0)["NCCL_SOCKET_IFNAME"].value == "=ens1"
    assert of_node(cluster, 1)["NCCL_SOCKET_IFNAME"].value == "=ens2"
    one = (nic("eth0", "ethernet", netdev="eth0", addresses=("10.0.0.1",)),)
    assert of_node(job(one, one, kind="ethernet")) == {}


def test_a_bridge_that_nccl_would_take_is_kept_out() -> None:
    made = (
        nic("eth0", "ethernet", netdev="eth0", addresses=("10.0.0.1",)),
        nic("virbr0", "ethernet", netdev="virbr0", addresses=("192.168.122.1",), why_not="made by software"),
    )
    assert of_node(job(made, made, kind="ethernet"))["NCCL_SOCKET_IFNAME"].value == "=eth0"


def test_gloo_is_helped_where_the_own_name_is_loopback() -> None:
    one = (nic("eth0", "ethernet", netdev="eth0", addresses=("10.0.0.1",)),)
    made = of_node(job(one, one, kind="ethernet", hostname_loopback=True))
    assert made["GLOO_SOCKET_IFNAME"].value == "eth0"
    assert "NCCL_SOCKET_IFNAME" not in made


def test_nothing_is_said_about_networks_that_are_not_known() -> None:
    for name in ("dgx-h100", "gb200-nvl72", "l40s-pcie-8"):
        assert node_settings(preset(name, 4), 2, {}) == ()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("NCCL_SOCKET_IFNAME", "bond0", "no such interface"),
        ("NCCL_SOCKET_IFNAME", "lo", "loopback"),
        ("NCCL_SOCKET_IFNAME", "eth", None),
        ("NCCL_SOCKET_IFNAME", "^docker", None),
        ("GLOO_SOCKET_IFNAME", "^docker", "plain names"),
        ("NCCL_IB_HCA", "mlx4", "TCP"),
        ("NCCL_IB_HCA", "mlx5", None),
        ("NCCL_IB_HCA", "=mlx5_9", "down"),
        ("CUDA_VISIBLE_DEVICES", "", "no GPU"),
    ],
)
def test_a_users_network_is_kept_and_checked(name: str, given: str, said: str | None) -> None:
    nics = (*RAILS, nic("mlx5_9", up=False), nic("eth0", "ethernet", netdev="eth0", addresses=("10.0.0.1",)))
    made = of_node(job(nics, nics), 0, {name: given})[name]
    assert made.kept
    assert made.value == given
    assert (said or "") in (made.warning or "") if said else made.warning is None


def test_reordered_gpus_are_given_by_uuid_and_a_users_choice_is_kept() -> None:
    gpus = tuple(Gpu(index=i, name="NVIDIA A100 80GB PCIe", uuid=f"GPU-{i}") for i in range(4))
    pairs = Cluster(source="probe", nodes=(Node(hostname="n", gpus=gpus, nvlinks=((0, 2, 12), (1, 3, 12))),))
    assert of_node(pairs)["CUDA_VISIBLE_DEVICES"].value == "GPU-0,GPU-2,GPU-1,GPU-3"
    kept = of_node(pairs, 0, {"CUDA_VISIBLE_DEVICES": "0,1"})["CUDA_VISIBLE_DEVICES"]
    assert kept.kept
    assert kept.value == "0,1"


def test_slurms_plain_list_of_gpus_may_be_put_in_order_and_no_other() -> None:
    gpus = tuple(Gpu(index=i, name="NVIDIA A100 80GB PCIe", uuid=f"GPU-{i}") for i in range(4))
    pairs = Cluster(source="probe", nodes=(Node(hostname="n", gpus=gpus, nvlinks=((0, 2, 12), (1, 3, 12))),))
    slurm = {"SLURM_STEP_GPUS": "4,5,6,7", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    made = of_node(pairs, 0, slurm)["CUDA_VISIBLE_DEVICES"]
    assert not made.kept
    assert made.value == "GPU-0,GPU-2,GPU-1,GPU-3"
    assert of_node(pairs, 0, slurm | {"CUDA_VISIBLE_DEVICES": "3,2,1,0"})["CUDA_VISIBLE_DEVICES"].kept


# --- As text ----------------------------------------------------------------------------------------------------------

MACHINES: tuple[tuple[str, int, str, dict[str, Any]], ...] = (
    ("dgx-h100", 2, "llama31_70b_pretrain_config", {"tp": 8, "pp": 2}),
    ("dgx-a100-80g", 1, "llama32_1b_pretrain_config", {"tp": 2}),
    ("dgx-b200", 32, "qwen3_235b_a22b_pretrain_256gpu_b200_fp8mx_config", {"ep": 32}),
    ("dgx-b300", 32, "deepseek_v3_pretrain_256gpu_b300_fp8mx_config", {"pp": 8, "vp": 2, "ep": 8}),
    ("gb200-nvl72", 16, "nemotron_3_super_pretrain_64gpu_gb200_fp8mx_config", {"tp": 2, "ep": 64}),
    ("gb300-nvl72", 18, "llama3_70b_pretrain_64gpu_gb300_fp8cs_config", {"fsdp": True}),
    ("l40s-pcie-8", 1, "llama3_8b_sft_config", {"tp": 2, "pp": 2}),
    ("h100-pcie-8", 2, "qwen3_30b_a3b_pretrain_config", {"ep": 2, "pp": 2}),
)


@pytest.mark.parametrize(("machine", "nodes", "recipe", "sizes"), MACHINES, ids=[m[0] for m in MACHINES])
def test_the_whole_environment(
    machine: str, nodes: int, recipe: str, sizes: dict[str, Any], golden: Callable[[str, str], None]
) -> None:
    made = environment(machine, nodes, catalog.recipe(recipe), torch_version="2.10", **sizes)
    golden(f"environment/{machine}.txt", "\n".join(exports(made.values())) + "\n")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "ksh"])
def test_a_shell_takes_the_text_and_keeps_what_is_set(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    odd = Variable(name="SITE", value='it\'s {a} "b"; $HOME `x` \\', reason="an odd value", source="here")
    kept = Variable(name="KEPT", value="1", reason="set already", source="here", kept=True, warning="it breaks")
    lines = exports((odd, kept))
    assert lines == [
        "# an odd value", f'[ -n "${{SITE+set}}" ] || export SITE={shlex.quote(odd.value)}', "# KEPT=1 is yours and stays: it breaks",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    environ = {k: v for k, v in os.environ.items() if k != "SITE"}
    for set_before in ({}, {"SITE": "mine"}, {"SITE": ""}):
        out = subprocess.run(
            [shell, "-c", text + 'printf %s "$SITE"'],
            env=environ | set_before,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout == set_before.get("SITE", odd.value)

"""Every row of the two data files is complete and plausible, and presets make consistent clusters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.catalog import load
from parlaunch.datasheet import (
    nvml_name,
    preset,
    preset_names,
    preset_of,
    product,
    product_names,
    product_of_pci,
)
from parlaunch.errors import UsageError
from parlaunch.machine import cluster_from_json, cluster_to_json, domains_of

PRODUCTS = load("products.json")["products"]
PRESETS = load("presets.json")["presets"]
BOARDS = {"nvswitch", "nvswitch_mnnvl", "sxm2", "grace", "pairs", "bridge", "pcie"}
FORMATS = {"fp32", "tf32", "fp16", "bf16", "fp8", "nvfp4"}
# Field -> lowest and highest value that a training GPU can have, in the unit of the file.
RANGES = {
    "memory_bytes": (4 * 2**30, 400 * 2**30),
    "hbm_bytes_per_s": (1e11, 3e13),
    "sms": (8, 300),
    "boost_clock_hz": (1.0e9, 3.2e9),
    "l2_bytes": (2**20, 512 * 2**20),
    "power_w": (40, 2500),
    "pcie_bytes_per_s": (8e9, 256e9),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_has_every_field_with_a_plausible_value(name: str) -> None:
    row: dict[str, Any] = PRODUCTS[name]
    assert set(row) == {
        *RANGES, "match", "pci", "board", "arch", "compute_capability", "flops", "nvlinks", "nvlink_bytes_per_s",
        "source", "assumed",
    }  # fmt: skip
    for field, (low, high) in RANGES.items():
        assert low <= row[field] <= high, f"{field} of {name}: {row[field]}"
    assert row["board"] in BOARDS
    assert len(row["source"]) > 10
    assert set(row["assumed"]) <= set(row)
    assert row["match"], f"{name} has no name as NVML gives it"
    assert all(len(device) == 4 and int(device, 16) for device in row["pci"])


@pytest.mark.parametrize("name", PRODUCTS)
def test_peaks_are_ordered_by_width_and_fit_the_silicon(name: str) -> None:
    row = PRODUCTS[name]
    flops = row["flops"]
    assert set(flops) <= FORMATS
    assert {"fp16", "fp32"} <= set(flops)
    if "bf16" in flops:
        assert flops["bf16"] == flops["fp16"]
        assert flops["fp32"] <= flops["tf32"] * 1.01 <= flops["bf16"] * 1.01
    if "fp8" in flops:
        assert flops["fp8"] == pytest.approx(2 * flops["bf16"], rel=0.03) or row["arch"] == "rubin"
    if "nvfp4" in flops:
        assert flops["nvfp4"] >= 1.9 * flops["fp8"]
    # fp16 operations of one SM in one clock: 128 without tensor cores (Pascal 256), up to 16384 on Blackwell and Rubin
    each = flops["fp16"] / row["sms"] / row["boost_clock_hz"]
    assert 200 <= each <= 16384 * 1.1, each


@pytest.mark.parametrize("name", PRODUCTS)
def test_nvlink_is_links_times_the_rate_of_their_generation(name: str) -> None:
    row = PRODUCTS[name]
    if not row["nvlinks"]:
        assert row["nvlink_bytes_per_s"] is None
        return
    each = row["nvlink_bytes_per_s"] / row["nvlinks"]
    assert each in (14.0625e9, 20e9, 25e9, 50e9), f"{name}: {each} a link"
    assert row["board"] != "pcie"


def test_names_of_drivers_old_and_new_find_their_product() -> None:
    for given_name, name in {
        "NVIDIA A100-SXM4-80GB": "A100 SXM 80GB",
        "A100-SXM4-40GB": "A100 SXM 40GB",
        "Tesla V100-SXM2-32GB": "V100 SXM2 32GB",
        "NVIDIA H100 80GB HBM3": "H100 SXM",
        "NVIDIA GH200 120GB": "GH200 96GB",
        "GeForce RTX 3090": "RTX 3090",
        "NVIDIA T4": "T4",
    }.items():
        found = product(given_name)
        assert found is not None, given_name
        assert found.name == name, given_name


def test_a_name_that_only_resembles_gets_no_other_products_numbers() -> None:
    a4000, a40 = product("NVIDIA RTX A4000"), product("NVIDIA A40")
    assert a4000 is not None
    assert a40 is not None
    assert a4000.memory_bytes < a40.memory_bytes
    for name in ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA RTX A400", "NVIDIA H100", "GRID A100X-10C", "", "A4"):
        assert product(name) is None, name


def test_no_two_products_answer_to_one_name_and_every_name_leads_home() -> None:
    for name, row in PRODUCTS.items():
        for spelling in (name, *row["match"]):
            found = product(spelling)
            assert found is not None
            assert found.name == name, spelling
    assert [nvml_name(p) for n in product_names() if (p := product(n))] == [r["match"][0] for r in PRODUCTS.values()]


def test_pci_devices_find_their_product_unless_two_share_one() -> None:
    h100 = product_of_pci("0x2330")
    assert h100 is not None
    assert h100.name == "H100 SXM"
    assert product_of_pci("25B6") is None, "A2 and A16 share it"
    assert product_of_pci("ffff") is None


def test_the_nearest_wider_format_stands_in_for_a_missing_one() -> None:
    h100, v100, b200 = product("H100 SXM"), product("V100 SXM2 16GB"), product("B200")
    assert h100 is not None
    assert v100 is not None
    assert b200 is not None
    assert h100.peak_flops("nvfp4") == h100.flops["fp8"]
    assert v100.peak_flops("bf16") == v100.flops["fp16"]
    assert b200.peak_flops("fp8mx") == b200.flops["fp8"]
    assert h100.peak_flops("fp32") == h100.flops["tf32"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_every_field_with_a_plausible_value(name: str) -> None:
    row = PRESETS[name]
    assert set(row) == {
        "gpu", "gpus_per_node", "link_type", "nvlink_group", "nvlink_domain_nodes", "fabric", "cpu", "source", "assumed",
    }  # fmt: skip
    assert row["gpu"] in PRODUCTS
    assert 1 <= row["gpus_per_node"] <= 16
    assert row["gpus_per_node"] % row["nvlink_group"] == 0
    assert row["link_type"] in {"nvswitch", "nvswitch_mnnvl", "mesh", "cube_mesh", "pairs", "none"}
    assert (row["link_type"] == "none") == (row["nvlink_group"] == 1)
    assert (row["link_type"] == "nvswitch_mnnvl") == (row["nvlink_domain_nodes"] > 1)
    fabric = row["fabric"]
    assert fabric["kind"] in {"infiniband", "roce", "efa", "ethernet"}
    assert 1 <= fabric["ports_per_node"] <= 32
    assert 2e9 <= fabric["bytes_per_s_per_port"] <= 4e11
    cpu = row["cpu"]
    assert set(cpu) == {"model", "sockets", "cores", "memory_bytes"}
    assert cpu["cores"] is None or 8 <= cpu["cores"] <= 400
    assert cpu["memory_bytes"] is None or 100e9 <= cpu["memory_bytes"] <= 6e12
    assert len(row["source"]) > 10
    assert set(row["assumed"]) <= set(row)


@pytest.mark.parametrize("name", PRESETS)
def test_links_of_a_preset_suit_its_gpus(name: str) -> None:
    row = PRESETS[name]
    board = PRODUCTS[row["gpu"]]["board"]
    allowed = {
        "nvswitch": {"nvswitch", "mesh"}, "nvswitch_mnnvl": {"nvswitch_mnnvl"}, "sxm2": {"cube_mesh", "pairs", "mesh"},
        "grace": {"none", "mesh"}, "pairs": {"pairs", "none"}, "bridge": {"pairs", "none", "mesh"}, "pcie": {"none"},
    }[board]  # fmt: skip
    assert row["link_type"] in allowed


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_makes_a_consistent_cluster_of_one_and_of_several_nodes(name: str) -> None:
    for nodes in (1, 3):
        cluster = preset(name, nodes)
        assert len({n.hostname for n in cluster.nodes}) == nodes
        assert cluster.world_size == nodes * cluster.gpus_per_node
        assert cluster.nvlink_domains == domains_of(cluster.nodes)
        assert product(cluster.gpu.name) is not None
        assert cluster.fabric.rails == len(cluster.nodes[0].nics)
        assert cluster_from_json(cluster_to_json(cluster)) == cluster


def test_every_alias_and_every_spelling_leads_to_a_preset() -> None:
    data = load("presets.json")
    assert set(data["aliases"].values()) <= set(PRESETS)
    assert set(data["dmi"].values()) | set(data["pci_addresses"]) <= set(PRESETS)
    for short, name in (("h100", "dgx-h100"), ("gb200", "gb200-nvl72"), ("B200", "dgx-b200"), ("r100", "dgx-r100")):
        assert preset_of(short) == name
    assert preset_of("nd96asr_v4") == preset_of("Standard_ND96asr_v4") == "Standard_ND96asr_v4"
    assert preset_of("P5.48XLARGE") == "p5.48xlarge"
    assert preset_of("bm.gpu.h100.8") == "BM.GPU.H100.8"


def test_a_rack_is_one_domain_and_a_larger_job_takes_equal_parts_of_racks() -> None:
    whole = preset("gb200-nvl72", 18)
    assert whole.nvlink_domains == (tuple(range(72)),)
    assert whole.nvlink_domain_size == 72
    assert [len(d) for d in preset("gb200-nvl72", 36).nvlink_domains] == [72, 72]
    assert [len(d) for d in preset("gb200-nvl72", 32).nvlink_domains] == [64, 64]
    assert preset("gb200-nvl36", 18).nvlink_domain_size == 36
    assert preset("gb200-nvl72", 1).nvlink_domain_size == 4


def test_where_no_equal_parts_fit_the_last_rack_is_a_part() -> None:
    part = preset("gb200-nvl72", 19)
    assert [len(d) for d in part.nvlink_domains] == [72, 4]
    assert part.nvlink_domain_size == 4, "what every rank can count on"


@given(
    nodes=st.integers(1, 60), name=st.sampled_from(["gb200-nvl72", "gb200-nvl36", "dgx-h100", "a100-pcie-8", "l4-8"])
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_the_domain_size_never_leave_a_domain(nodes: int, name: str) -> None:
    cluster = preset(name, nodes)
    size = cluster.nvlink_domain_size
    home = {gpu: n for n, domain in enumerate(cluster.nvlink_domains) for gpu in domain}
    assert cluster.world_size % size == 0
    if size > 1:
        for start in range(0, cluster.world_size, size):
            assert len({home[g] for g in range(start, start + size)}) == 1


def test_an_unknown_machine_names_the_nearest_and_no_node_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown machine 'dgx-h101'") as caught:
        preset("dgx-h101")
    assert "dgx-h100" in caught.value.hint
    with pytest.raises(UsageError, match="has no node"):
        preset("dgx-h100", 0)

"""Every row of the two data files is complete and plausible, and presets make consistent clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.data import load
from parlaunch.errors import UsageError
from parlaunch.estimate.timing.silicon import GENERATIONS as SILICON
from parlaunch.hardware.cluster import cluster_from_json, cluster_to_json, domains_of
from parlaunch.hardware.datasheet import (
    nvml_name,
    preset,
    preset_names,
    preset_of,
    product,
    product_names,
    product_of_pci,
)

PRODUCTS = load("products.json")["products"]
PRESETS = load("presets.json")["presets"]
GENERATIONS = load("products.json")["generations"]


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_a_product_assumes_is_among_its_fields(name: str) -> None:
    assert set(PRODUCTS[name]["assumed"]) <= set(PRODUCTS[name])


FUSED = ("tf32", "fp16", "bf16", "fp8")  # formats that a product can be sold with a share of


def impossible(name: str, row: Mapping[str, Any]) -> str | None:
    """What is wrong with a product's peaks: against its SMs and clock, its bandwidth, and each other."""
    flops, major_minor = row["flops"], ".".join(map(str, row["compute_capability"]))
    rates = GENERATIONS[major_minor]["flop_per_sm_clock"]
    tensor_cores = row["compute_capability"][0] >= 7
    if set(flops) != set(rates):
        return f"formats {sorted(flops)} where its generation has {sorted(rates)}"
    share = row.get("tensor_share", 1.0)
    if any("GeForce" in n for n in row["match"]) and share > 0.5:
        return "GeForce accumulates in float32 at half the rate"
    for fmt, peak in flops.items():
        made = rates[fmt] * (share if fmt in FUSED and tensor_cores else 1.0) * row["sms"] * row["boost_clock_hz"]
        if not 0.7 < peak / made < 1.3:  # clocks of tensor cores are below the boost clock, assumed ones are rounded
            return f"{fmt}: {peak:.3g} FLOP/s, and its SMs make {made:.3g}"
    balance = flops["fp16"] / row["hbm_bytes_per_s"]
    if not 20 < balance < (1000 if row.get("unified_memory") else 500):  # LPDDR beside a data centre's tensor cores
        return f"{balance:.0f} operations a byte of memory traffic"
    if "bf16" in flops and not (flops["bf16"] == flops["fp16"] and 0.45 < flops["tf32"] / flops["bf16"] < 0.55):
        return "bf16 is fp16's rate and twice tf32's"
    return None


@pytest.mark.parametrize("name", PRODUCTS)
def test_peaks_fit_the_silicon(name: str) -> None:
    assert impossible(name, PRODUCTS[name]) is None


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_doubled_peak_is_caught(name: str) -> None:
    """What a data sheet prints in large type is the rate with sparsity, twice the dense one."""
    row = PRODUCTS[name]
    for fmt, peak in row["flops"].items():
        assert impossible(name, {**row, "flops": {**row["flops"], fmt: 2 * peak}}), fmt
    doubled = {f: v if f == "fp32" else 2 * v for f, v in row["flops"].items()}
    assert impossible(name, {**row, "flops": doubled}), "all of them"


@pytest.mark.parametrize("capability", GENERATIONS)
def test_a_generation_is_known_to_the_time_model(capability: str) -> None:
    assert GENERATIONS[capability]["silicon"] in {*SILICON, "pascal"}, (
        "Pascal has no tensor cores and is not planned for"
    )


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
def test_the_numbers_of_a_preset_agree_with_each_other(name: str) -> None:
    row = PRESETS[name]
    assert row["gpu"] in PRODUCTS
    assert row["gpus_per_node"] % row["nvlink_group"] == 0
    assert (row["link_type"] == "none") == (row["nvlink_group"] == 1)
    assert (row["link_type"] == "nvswitch_mnnvl") == (row["nvlink_domain_nodes"] > 1)
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
@settings(max_examples=60)
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

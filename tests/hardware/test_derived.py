"""Any GPU gets a data sheet: from its generation, from what NVML says, from the product that it is a part of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.errors import ProbeError
from parlaunch.estimate.timing.bands import DERIVED, error_band
from parlaunch.hardware.cluster import UNKNOWN, Cluster, Gpu, Node
from parlaunch.hardware.datasheet import Product, product, product_names
from parlaunch.hardware.derived import cores_of, sheet_of
from parlaunch.hardware.rates import SYSTEM_BYTES, rates_from_json, rates_of, rates_to_json
from parlaunch.model.catalog import recipe
from parlaunch.model.layout import Layout

GIB = 1 << 30
LEONARDO = Gpu(
    index=0, name="NVIDIA A100-SXM-64GB", compute_capability=(8, 0), memory_bytes=64 * GIB, clock_sm_max_hz=1_410_000_000,
    nvlinks=12, nvlink_bytes_per_s=300e9,
)  # fmt: skip


def sheet(**told: Any) -> Product:
    found = sheet_of(Gpu(index=0, **told))
    assert found is not None
    return found


def of(*gpus: Gpu, memory: int | None = None) -> Cluster:
    numbered = tuple(replace(g, index=at) for at, g in enumerate(gpus))
    return Cluster(source="test", nodes=(Node(hostname="n", gpus=numbered, memory_bytes=memory),))


def test_a_custom_product_keeps_its_memory_and_has_the_rates_of_its_family() -> None:
    made, family = sheet_of(LEONARDO), product("A100 SXM 80GB")
    assert made is not None
    assert family is not None
    assert (made.name, made.memory_bytes) == (LEONARDO.name, 64 * GIB)
    assert made.flops["bf16"] == pytest.approx(family.flops["bf16"], rel=0.01)
    assert set(made.assumed) >= {"flops", "sms", "hbm_bytes_per_s"}
    rates = rates_of(of(*[LEONARDO] * 4))
    assert rates.memory_bytes == 64 * GIB
    assert any("108 SMs" in a and "derived, as A100 SXM 80GB" in a for a in rates.assumed)


def test_what_nvml_measures_goes_before_the_family() -> None:
    told = replace(
        LEONARDO, cores=7936, memory_bus_bits=4096, clock_memory_max_hz=1_600_000_000, pcie_gen_max=4, pcie_width_max=16
    )
    made = sheet_of(told)
    assert made is not None
    assert (made.sms, made.hbm_bytes_per_s, made.pcie_bytes_per_s) == (124, 1638.4e9, 32e9)
    assert not {"sms", "hbm_bytes_per_s", "pcie_bytes_per_s"} & set(made.assumed)


MEASURED = ["A100 SXM 80GB", "H100 SXM", "L40S", "V100 SXM2 32GB", "RTX PRO 6000 Blackwell"]


@pytest.mark.parametrize("name", MEASURED)
def test_a_known_product_under_a_strange_name_comes_out_as_itself(name: str) -> None:
    """What NVML says of it, under a name that no table has."""
    real = product(name)
    assert real is not None
    made = sheet(
        name="NVIDIA Graphics Device", compute_capability=real.compute_capability, memory_bytes=real.memory_bytes,
        cores=real.sms * cores_of(real.compute_capability), clock_sm_max_hz=int(real.boost_clock_hz), nvlinks=real.nvlinks,
        memory_bus_bits=1024, clock_memory_max_hz=int(real.hbm_bytes_per_s * 8 / 1024 / 2),
    )  # fmt: skip
    for fmt, peak in real.flops.items():
        assert made.flops[fmt] == pytest.approx(peak, rel=0.25), fmt
    assert made.hbm_bytes_per_s == pytest.approx(real.hbm_bytes_per_s, rel=0.01)
    assert made.memory_bytes == real.memory_bytes


def test_only_a_geforce_stands_in_for_a_geforce() -> None:
    """They run their tensor cores at half the rate of the same silicon on other boards."""
    made, ada = (
        sheet(name="NVIDIA GeForce RTX 4070 Ti SUPER", cores=8448, clock_sm_max_hz=2_610_000_000),
        product("RTX 4090"),
    )
    assert ada is not None
    assert made.flops["bf16"] / (made.sms * made.boost_clock_hz) == pytest.approx(
        ada.flops["bf16"] / (ada.sms * ada.boost_clock_hz), rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "of_family"),
    [
        ("NVIDIA RTX PRO 4000 Blackwell", (12, 0)),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", (8, 9)),
        ("NVIDIA GeForce RTX 3070", (8, 6)),
        ("NVIDIA A100-SXM4-40GB-LC", (8, 0)),
        ("NVIDIA B100", (10, 0)),
        ("NVIDIA H20 NVL16", (9, 0)),
        ("NVIDIA GeForce RTX 5070 Laptop GPU", (12, 0)),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5)),
        ("Tesla P40", (6, 1)),
        ("NVIDIA DGX Display", (7, 5)),
        ("NVIDIA PG506-232", (8, 0)),
        ("NVIDIA Jetson AGX Thor", (11, 0)),
    ],
)
def test_a_name_alone_tells_the_generation(name: str, of_family: tuple[int, int]) -> None:
    assert sheet(name=name).compute_capability == of_family


@pytest.mark.parametrize(
    ("name", "whole", "memory", "part"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "A100 SXM 40GB", 20 * GIB, 3 / 8),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100 SXM", 10 * GIB, 1 / 8),
        ("NVIDIA L40S-24Q", "L40S", 24 * GIB, 1.0),
        ("GRID A100D-80C", "A100 PCIe 80GB", 80 * GIB, 1.0),
        ("GRID A100DX-80C", "A100 SXM 80GB", 80 * GIB, 1.0),
        ("GRID A100X-40C", "A100 SXM 40GB", 40 * GIB, 1.0),
        ("NVIDIA H100-80C", "H100 PCIe", 80 * GIB, 1.0),
        ("NVIDIA H100L-94C", "H100 NVL", 94 * GIB, 1.0),
        ("NVIDIA H200X-141C", "H200 SXM", 141 * GIB, 1.0),
        ("GRID RTX8000-48Q", "Quadro RTX 8000", 48 * GIB, 1.0),
        ("NVIDIA RTX Pro 6000 Blackwell DC-96Q", "RTX PRO 6000 Blackwell Server", 96 * GIB, 1.0),
        ("GRID T4-16Q", "T4", 16 * GIB, 1.0),
        ("GRID A100-3-20C", "A100 PCIe 40GB", 20 * GIB, 3 / 8),
    ],
)
def test_a_slice_and_a_virtual_gpu_are_shares_of_a_product(name: str, whole: str, memory: int, part: float) -> None:
    made, parent = sheet(name=name, memory_bytes=memory), product(whole)
    assert parent is not None
    assert made.memory_bytes == memory
    assert made.sms == int(parent.sms * part)
    assert made.nvlinks == 0
    assert made.derived is not None
    assert made.derived.endswith(parent.name) or made.derived.split(" of ")[-1].split()[0] == parent.name.split()[0]


def test_a_gpu_that_resembles_nothing_is_refused_with_a_way_on() -> None:
    with pytest.raises(ProbeError) as caught:
        rates_of(of(Gpu(index=0, name="NVIDIA DRIVE-PG199-PROD")))
    assert "neither its data sheet nor its generation" in caught.value.problem
    assert "--gpu" in caught.value.hint
    assert sheet_of(Gpu(index=0, name=UNKNOWN, compute_capability=(9, 0))) is None, "nobody said what it is: ask"


@pytest.mark.parametrize(("name", "capability"), [("Tesla K80", None), ("Tesla M40", (5, 2)), ("GRID M60-8Q", None)])
def test_a_gpu_older_than_the_libraries_is_refused_for_its_age(name: str, capability: tuple[int, int] | None) -> None:
    """Not taken for one that is newer than the table."""
    with pytest.raises(ProbeError, match="older than every GPU"):
        rates_of(of(Gpu(index=0, name=name, compute_capability=capability, memory_bytes=12 * GIB)))


def test_a_name_that_several_products_begin_with_asks_which() -> None:
    with pytest.raises(ProbeError) as caught:
        rates_of(of(Gpu(index=0, name="NVIDIA H100")))
    assert "may be H100 NVL, H100 PCIe, H100 SXM" in caught.value.problem
    assert "--gpu H100-NVL" in caught.value.hint
    told = Gpu(index=0, name="NVIDIA H100", memory_bytes=80 * GIB, nvlinks=18, compute_capability=(9, 0))
    assert rates_of(of(told)).product.nvlinks == 18, "a live driver says the rest"


def test_a_laptop_is_no_desktop_of_the_same_number() -> None:
    laptop, desktop = sheet(name="NVIDIA GeForce RTX 4090 Laptop GPU"), sheet(name="NVIDIA GeForce RTX 4090")
    assert laptop.memory_bytes < 0.7 * desktop.memory_bytes
    assert laptop.flops["bf16"] < 0.6 * desktop.flops["bf16"]


def test_a_generation_without_a_product_of_its_own_has_its_own_rates() -> None:
    """A P40 has no fast float16, and twice the P100's cores in an SM."""
    made = sheet(
        name="Tesla P40", compute_capability=(6, 1), cores=3840, clock_sm_max_hz=1_531_000_000, memory_bytes=24 * GIB
    )
    assert made.sms == 30
    assert made.peak_flops("bf16") == pytest.approx(11.8e12, rel=0.02)


@given(
    st.tuples(st.integers(6, 14), st.integers(0, 9)),
    st.integers(1 << 30, 1 << 39) | st.none(),
    st.integers(1, 40_000) | st.none(),
    st.integers(0, 36) | st.none(),
    st.text(max_size=30),
)
def test_every_generation_gets_a_complete_sheet(
    capability: tuple[int, int], memory: int | None, cores: int | None, links: int | None, name: str
) -> None:
    made = sheet_of(
        Gpu(index=0, name=name or "x", compute_capability=capability, memory_bytes=memory, cores=cores, nvlinks=links)
    )
    assert made is not None
    assert made.memory_bytes == memory or memory is None
    assert made.sms > 0
    assert all(peak > 0 for peak in made.flops.values())
    assert made.hbm_bytes_per_s > 0
    assert made.peak_flops("bf16") > 0


def test_a_named_product_is_its_own_sheet() -> None:
    for name in product_names():
        assert sheet_of(Gpu(index=0, name=name)) is product(name)


def test_the_user_may_name_the_sheet_of_a_product_that_has_none() -> None:
    rates = rates_of(of(replace(LEONARDO, sheet="A100 SXM 80GB")))
    assert rates.product is product("A100 SXM 80GB")
    assert rates.memory_bytes == 64 * GIB
    assert any("NVIDIA A100-SXM-64GB is planned with the data sheet of A100 SXM 80GB" in a for a in rates.assumed)


def test_a_derived_sheet_widens_the_band_and_survives_a_saved_plan() -> None:
    rates = rates_of(of(*[LEONARDO] * 4))
    known = rates_of(of(*[replace(LEONARDO, name="NVIDIA A100-SXM4-80GB")] * 4))
    layout = Layout(world=4, tp=1, pp=1)
    dense = recipe("llama3_8b_pretrain_config")
    assert error_band(dense, layout, known) < DERIVED <= error_band(dense, layout, rates)
    assert rates_from_json(rates_to_json(rates), where="here") == rates


def test_a_memory_that_cpu_and_gpu_share_leaves_the_system_its_part() -> None:
    rates = rates_of(of(Gpu(index=0, name="NVIDIA GB10"), memory=120 * GIB))
    assert rates.memory_bytes == 120 * GIB - SYSTEM_BYTES
    assert any("CPU and GPU share 120 GiB of memory: 12 GiB are left to the system" in a for a in rates.assumed)


def test_gpus_that_mig_has_cut_up_are_refused_and_a_slice_is_planned_for() -> None:
    cut = Gpu(
        index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-0", mig=True, mig_devices=(("MIG-1", "MIG 3g.40gb", 40 * GIB),)
    )
    with pytest.raises(ProbeError, match="MIG is on for GPU 0"):
        rates_of(of(cut))
    alone = replace(cut, uuid="MIG-1", name="NVIDIA H100 80GB HBM3 MIG 3g.40gb", memory_bytes=40 * GIB)
    assert rates_of(of(alone)).memory_bytes == 40 * GIB

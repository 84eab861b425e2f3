"""What today's code concludes of machines of every kind: rails, fabric, NVLink, what can be planned for, what stops a job."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.environment.network import node_rules
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.mixed import even
from parlaunch.hardware.rates import rates_of
from parlaunch_probes import capture
from parlaunch_probes.files import replicate
from tests.probes.chaos import SAVED


@dataclass(frozen=True)
class Seen:
    """What is right about a machine."""

    rails: tuple[str, ...]
    fabric: str
    gigabytes: float | None  # a GPU, from all rails
    domains: tuple[int, ...] = ()  # GPUs of each NVLink domain
    sheet: str = ""  # the data sheet it is planned with
    gib: float | None = None  # of memory that a rank may have
    fails: frozenset[str] = field(default_factory=frozenset)


def numbered(name: str, count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"{name}{n}" for n in range(first, first + count))


B300 = ("mlx5_0", "mlx5_1", "mlx5_6", "mlx5_7", "mlx5_8", "mlx5_9", "mlx5_10", "mlx5_11")
SEEN = {
    "nvml-hgx-b200-switch-ports": Seen(("mlx5_0", "mlx5_1", "mlx5_6", "mlx5_7"), "infiniband", 25.0, (8,), "B200"),
    "nvml-hgx-b300-rails-down": Seen(B300, "infiniband", None, (8,), "B300", fails=frozenset({"port-down"})),
    "nvml-b200-one-roce": Seen(("mlx5_20",), "roce", 6.25, (8,), "B200"),
    "nvml-dgx-spark": Seen(("roceP2p1s0f1", "rocep1s0f1"), "roce", 25.0, (), "GB10", 108.0),
    "nvml-jetson-thor": Seen(("enP1p1s0",), "ethernet", 0.125, (), "Jetson T5000", 110.0),
    "nvml-slingshot": Seen(numbered("hsn", 4), "slingshot", 25.0, (4,), "A100 SXM 40GB", 40.0),
    "nvml-omnipath": Seen(("hfi1_0",), "omnipath", 3.125, (2, 2), "A100 PCIe 80GB"),
    "nvml-h20-bonds": Seen(numbered("mlx5_bond_", 8), "roce", 50.0, (8,), "H20"),
    "nvml-a100-64gb": Seen(numbered("mlx5_", 4), "infiniband", 12.5, (4,), "NVIDIA A100-SXM-64GB", 64.0),
    "nvml-h200-nvl-pairs": Seen((), "none", None, (2, 2), "H200 NVL"),
    "nvml-azure-nd-h100": Seen(numbered("mlx5_ib", 8), "infiniband", 50.0, (8,), "H100 SXM"),
    "nvml-aws-p6": Seen(tuple(f"rdmap{n}s0" for n in (21, 61, 76, 91, 151, 189, 203, 217)), "efa", 50.0, (8,), "B200"),
    "nvml-roce-two-ports": Seen(numbered("mlx5_", 16), "roce", 50.0, (8,), "H100 SXM"),
    "nvml-gcp-a3-ultra": Seen(numbered("mlx5_", 8), "roce", 50.0, (8,), "H100 SXM"),
    "nvml-gcp-a3-tcpx": Seen(numbered("eth", 4, 1), "ethernet", 12.5, (8,), "H100 SXM"),
    "nvml-wsl2": Seen(("eth0",), "ethernet", 0.625, (), "RTX 4090"),
    "nvml-vgpu": Seen(("eth0",), "ethernet", None, (), "NVIDIA L40S-24Q", 24.0),
    "nvml-h100-seven": Seen((), "none", None, (7,), "H100 SXM"),
    "nvml-h100-mig": Seen((), "none", None, (), "NVIDIA H100 80GB HBM3 MIG 3g.40gb", 39.5, frozenset({"mig"})),
    "nvml-mixed": Seen((), "none", None, (), "A100 PCIe 40GB", 40.0),
}


def machine(name: str) -> Cluster:
    return even(capture.read(SAVED / name))


@pytest.mark.parametrize("name", SEEN)
def test_a_machine_is_what_it_is(name: str) -> None:
    seen, cluster = SEEN[name], machine(name)
    node = cluster.nodes[0]
    assert tuple(n.name for n in node.nics if n.rail) == seen.rails
    each = cluster.fabric.bytes_per_s_per_gpu
    assert (cluster.fabric.kind, each and each / 1e9) == (seen.fabric, seen.gigabytes)
    assert tuple(len(d) for d in cluster.nvlink_domains) == seen.domains
    assert {f.check for f in examine(cluster) if f.severity == "FAIL"} == seen.fails
    rates = rates_of(cluster)
    assert rates.product.name == seen.sheet
    assert seen.gib is None or rates.memory_bytes / 2**30 == seen.gib


@pytest.mark.parametrize("name", [n for n in SEEN if "b200" in n or "b300" in n])
def test_nccl_is_never_sent_over_the_functions_that_manage_nvswitches(name: str) -> None:
    cluster = replicate(machine(name), 2)
    hcas = next(v.value for v, _ in node_rules(cluster, 0, {}) if v.name == "NCCL_IB_HCA")
    assert hcas.startswith("=")
    assert not set(hcas[1:].replace(":1", "").split(",")) & {"mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5"}
    managed = [n for n in cluster.nodes[0].nics if n.manages_switches]
    assert [n.name for n in managed] == ["mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5"]
    assert all("management function of the board's NVSwitches" in (n.why_not or "") for n in managed)


def test_two_sparks_on_one_cable_have_one_ports_rate_and_nothing_to_fail_for() -> None:
    cluster = replicate(machine("nvml-dgx-spark"), 2)
    assert rates_of(cluster).fabric_bytes_per_s == 25e9
    found = examine(cluster)
    assert not [f for f in found if f.severity == "FAIL"]
    assert not [f for f in found if f.check == "nic-distance"]
    assert {n.twin for n in cluster.nodes[0].nics if n.rail} == {"roceP2p1s0f1"}

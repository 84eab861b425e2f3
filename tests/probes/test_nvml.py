"""NVML is asked in a process of its own, within a time, and every answer is optional."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.hardware.cluster import Cluster, Node
from parlaunch_probes import Host, capture, probe
from parlaunch_probes.nvml import LibraryNvml, NvmlReading
from tests.conftest import HANGS_S
from tests.fake_nvml import Fake, build


@pytest.fixture
def nothing(tmp_path: Path) -> Host:
    """A host whose files say nothing: NVML is all there is."""
    (tmp_path / "root").mkdir()
    return Host(tmp_path / "root")


def node_of(host: Host, *, timeout_s: float = HANGS_S, environ: dict[str, str] | None = None) -> Node:
    return whole(host, timeout_s=timeout_s, environ=environ).nodes[0]


def whole(host: Host, *, timeout_s: float = HANGS_S, environ: dict[str, str] | None = None) -> Cluster:
    return probe(host, LibraryNvml(), environ=environ or {}, timeout_s=timeout_s)


MACHINES = [
    ("dgx_h100", 8, "nvswitch", [tuple(range(8))], 450e9),
    ("gb200_tray", 4, "nvswitch_mnnvl", [(0, 1, 2, 3)], 900e9),
    ("a100_pcie_pairs", 4, "pairs", [(0, 1), (2, 3)], 300e9),
    ("l40s", 4, "none", [], None),
    ("dgx1_v100", 8, "cube_mesh", [tuple(range(8))], 150e9),
    ("hgx_a100_4", 4, "mesh", [(0, 1, 2, 3)], 300e9),
]


@pytest.mark.parametrize(("name", "count", "kind", "domains", "rate"), MACHINES)
def test_the_nvlink_picture_of_a_healthy_machine(
    fake_nvml: Fake, nothing: Host, name: str, count: int, kind: str, domains: list[tuple[int, ...]], rate: float | None
) -> None:
    fake_nvml.use(name)
    cluster = whole(nothing)
    (node,) = cluster.nodes
    assert len(node.gpus) == count
    assert node.link_type == kind
    assert list(cluster.nvlink_domains) == domains
    assert {g.nvlink_bytes_per_s for g in node.gpus} == {rate}
    assert node.nvml_error is None
    assert not node.gpus_unusable
    assert all(not n.startswith("GPU") for n in cluster.notes), cluster.notes


def test_every_reading_of_an_h100_arrives_in_plain_units(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("dgx_h100", "x_busy", extra="set 0 vbios=96.00.89.00.01")
    gpu = node_of(nothing).gpus[0]
    assert (gpu.name, gpu.uuid) == ("NVIDIA H100 80GB HBM3", "GPU-11000000-0000-4a5b-8c9d-110011000000")
    assert (gpu.pci, gpu.numa, gpu.minor) == ("0000:1b:00.0", 0, 0)
    assert (gpu.memory_bytes, gpu.memory_reserved_bytes, gpu.memory_used_bytes) == (81559 << 20, 551 << 20, 61440 << 20)
    assert gpu.processes == ((4711, 61400 << 20),)
    assert gpu.compute_capability == (9, 0)
    assert (gpu.clock_sm_hz, gpu.clock_sm_max_hz, gpu.clock_memory_max_hz) == (
        345_000_000,
        1_980_000_000,
        2_619_000_000,
    )
    assert (gpu.power_w, gpu.power_limit_w, gpu.power_default_w, gpu.power_max_w) == (71.0, 700.0, 700.0, 700.0)
    assert (gpu.ecc, gpu.ecc_pending, gpu.mig, gpu.persistence) == (True, True, False, True)
    assert (gpu.pcie_gen, gpu.pcie_gen_max, gpu.pcie_width, gpu.pcie_width_max) == (5, 5, 16, 16)
    assert (gpu.remapped_rows, gpu.recovery_action, gpu.temperature_c) == ((0, 0, 0, 0), 0, 28)
    assert (gpu.fabric_state, gpu.fabric_status, gpu.fabric_id) == ("completed", 0, None)
    assert gpu.fabric_cluster == "00000000-0000-0000-0000-000000000000"
    assert gpu.vbios == "96.00.89.00.01"
    assert gpu.cpus == (*range(56), *range(112, 168))


def test_a_grace_gpu_keeps_its_own_memory_node_apart(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("gb200_tray")
    gpu = node_of(nothing).gpus[1]
    assert (gpu.numa, gpu.numa_memory) == (0, 10)
    assert (gpu.pci, gpu.fabric_id) == ("0009:01:00.0", ("9c6f5af3-53bf-49b5-a436-b66766c413c3", 4026))
    assert (gpu.fabric_summary, gpu.fabric_health) == ("healthy", ())


@pytest.mark.parametrize("overlay", ["x_driver_mismatch", "x_no_driver"])
def test_a_library_that_does_not_start_is_a_reason(fake_nvml: Fake, nothing: Host, overlay: str) -> None:
    fake_nvml.use("dgx_h100", overlay)
    want = {"x_driver_mismatch": "LIB_RM_VERSION_MISMATCH", "x_no_driver": "DRIVER_NOT_LOADED"}[overlay]
    cluster = whole(nothing)
    assert cluster.nodes[0].nvml_error == want
    assert f"NVML: {want}" in cluster.notes
    assert cluster.nodes[0].gpus == ()


def test_no_library_at_all_is_a_reason(nothing: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    reading = LibraryNvml().read(HANGS_S)
    if reading.error is None:
        pytest.skip("this machine has an NVIDIA driver")
    assert reading.error == "LIBRARY_NOT_FOUND"


def test_a_lost_gpu_does_not_hide_the_others(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("dgx_h100", "x_gpu_lost")
    cluster = whole(nothing)
    (node,) = cluster.nodes
    assert [g.index for g in node.gpus] == [0, 1, 2, 4, 5, 6, 7]
    assert [(g.index, g.error) for g in node.gpus_unusable] == [(3, "GPU_IS_LOST")]
    assert "GPU 3 left out: GPU_IS_LOST" in cluster.notes
    assert list(cluster.nvlink_domains) == [(0, 1, 2, 3, 4, 5, 6)]  # global numbers count the GPUs that are left


@pytest.mark.parametrize("after", [1, 5, 20, 40, 70, 110])
def test_a_gpu_lost_in_mid_probe_is_lost(fake_nvml: Fake, nothing: Host, after: int) -> None:
    fake_nvml.use("dgx_h100", extra=f"fail 3 GPU_IS_LOST * after={after}")
    node = node_of(nothing)
    assert [g.index for g in node.gpus_unusable] == [3]
    assert len(node.gpus) == 7


def test_a_gpu_without_permission_is_left_out(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("hgx_a100_4", "x_no_permission")
    node = node_of(nothing)
    assert [(g.index, g.error) for g in node.gpus_unusable] == [(1, "NO_PERMISSION")]
    assert node.link_type == "mesh"


def test_an_old_driver_answers_what_it_can(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("dgx_h100", "x_old_driver_470")
    node = node_of(nothing)
    assert len(node.gpus) == 8
    gpu = node.gpus[0]
    assert gpu.memory_bytes == 81559 << 20
    assert gpu.memory_reserved_bytes is None
    assert gpu.memory_used_bytes == (551 + 4) << 20  # version 1 counts the driver's own
    assert (gpu.processes, gpu.fabric_state) == (None, None)
    assert node.link_type == "nvswitch"


def test_symbols_that_are_really_absent_are_survived(fake_nvml: Fake, nothing: Host, tmp_path: Path) -> None:
    gone = (
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetNumaNodeId",
    )
    (tmp_path / "old").mkdir()
    library = build(tmp_path / "old", gone)
    variables = {**os.environ, **fake_nvml.variables("dgx_h100"), "LD_LIBRARY_PATH": str(library.parent)}
    reading = LibraryNvml(variables).read(10.0)
    assert len(reading.gpus) == 8
    assert reading.gpus[0]["reasons"]["fabric"] == "FUNCTION_NOT_FOUND"


def test_a_driver_that_knows_only_an_older_struct_is_asked_with_it(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("gb200_tray", extra="set * fabmax=2")
    gpu = node_of(nothing).gpus[0]
    assert gpu.fabric_id is not None
    assert gpu.fabric_summary is None


def test_bytes_that_are_no_utf8_are_a_reason_not_a_crash(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("l40s", extra="set 1 name=%FF%FEbad")
    cluster = whole(nothing)
    assert [g.name for g in cluster.nodes[0].gpus] == ["NVIDIA L40S", "unknown", "NVIDIA L40S", "NVIDIA L40S"]
    assert any("name of GPU 1 is not known" in n for n in cluster.notes)


def test_one_hanging_gpu_is_named_and_the_others_are_read(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("l40s", extra="delay nvmlDeviceGetMemoryInfo* 3600000 2")
    cluster = whole(nothing, timeout_s=16.0)  # half of it for a GPU that is silent
    (node,) = cluster.nodes
    assert [g.index for g in node.gpus] == [0, 1, 3]
    assert [(g.index, g.error) for g in node.gpus_unusable] == [(2, "TIMEOUT")]
    assert "GPU 2: NVML did not answer within 16 s" in cluster.notes


def test_an_init_that_hangs_ends_in_time(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("l40s", extra="delay nvmlInit* 3600000")
    node = node_of(nothing, timeout_s=8.0)
    assert node.nvml_error == "TIMEOUT: no answer to nvmlInit within 8 s"


def test_a_library_that_crashes_takes_only_its_own_process(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("l40s", extra="crash nvmlDeviceGetMemoryInfo* 1")
    node = node_of(nothing)
    assert [g.index for g in node.gpus] == [0, 2, 3]
    assert [(g.index, g.error) for g in node.gpus_unusable] == [(1, "CRASH")]


def test_a_probe_that_hangs_does_not_keep_the_process_from_exiting(fake_nvml: Fake) -> None:
    variables = fake_nvml.variables("l40s", extra="delay nvmlInit* 3600000")
    code = "import threading, parlaunch_probes as p; p.probe(timeout_s=0.5); print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=True,
    )
    assert done.stdout == "1\n"
    assert done.stderr == ""


def test_slow_answers_within_the_time_are_taken(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("l40s", "x_slow")  # 0.2 s a GPU
    node = node_of(nothing)
    assert len(node.gpus) == 4
    assert not node.gpus_unusable


def test_the_library_is_shut_down_as_often_as_started(fake_nvml: Fake, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    fake_nvml.use("l40s", log=log)
    LibraryNvml().read(HANGS_S)
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    assert calls.count("nvmlInitWithFlags") == 1
    assert "nvmlDeviceGetP2PStatus" in calls


def test_a_cgroup_view_is_renumbered_and_its_hidden_peers_are_kept_apart(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("hgx_a100_4", visible="1,3")
    cluster = whole(nothing)
    (node,) = cluster.nodes
    assert [(g.index, g.minor) for g in node.gpus] == [(0, 2), (1, 0)]
    assert node.nvlinks == ((0, 1, 4),)
    assert {g.nvlinks_hidden for g in node.gpus} == {8}
    assert "GPU 0: 8 NVLinks lead to GPUs that are not shown to us" in cluster.notes


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("2,0", [2, 0]),
        ("GPU-11000000-0005", [5]),
        ("", []),
        ("-1", []),
        ("0,1,9,2", [0, 1]),
        ("0,0", []),
        (None, list(range(8))),
    ],
)
def test_cuda_visible_devices_decides_which_gpus_count(
    fake_nvml: Fake, nothing: Host, value: str | None, want: list[int]
) -> None:
    fake_nvml.use("dgx_h100")
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    node = node_of(nothing, environ=environ)
    assert [g.index for g in node.gpus] == want
    assert sorted([*want, *(g.index for g in node.gpus_invisible)]) == list(range(8))


def test_a_mig_device_is_a_small_gpu_without_links(fake_nvml: Fake, nothing: Host) -> None:
    fake_nvml.use("a100_mig")
    uuid = "MIG-5f2f6e2c-9d2b-5b1e-8a5c-3f6a1c2b0d02"
    (gpu,) = node_of(nothing, environ={"CUDA_VISIBLE_DEVICES": uuid}).gpus
    assert (gpu.uuid, gpu.name, gpu.memory_bytes) == (uuid, "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728 << 20)
    assert (gpu.mig, gpu.nvlink_domain) == (True, None)
    (whole_gpu,) = node_of(nothing, environ={"CUDA_VISIBLE_DEVICES": "1"}).gpus
    assert (whole_gpu.index, whole_gpu.mig) == (1, False)


def test_bindings_of_another_age_are_named_with_the_way_out(fake_nvml: Fake, nothing: Host, tmp_path: Path) -> None:
    import pynvml

    text = Path(pynvml.__file__).read_text()
    (tmp_path / "pynvml.py").write_text(text.replace("def nvmlDeviceGetGpuFabricInfoV(", "def gone("))
    fake_nvml.use("l40s")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import parlaunch_probes as p; c = p.probe()\n"
        "print(len(c.nodes[0].gpus), [n for n in c.notes if 'too old' in n])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_S, check=True)
    assert (
        done.stdout
        == f"4 ['{tmp_path}/pynvml.py is too old to ask for the NVSwitch fabric: pip install -U nvidia-ml-py']\n"
    )


def test_a_reading_survives_its_json(fake_nvml: Fake) -> None:
    fake_nvml.use("gb200_tray")
    reading = LibraryNvml().read(HANGS_S)
    assert NvmlReading.from_json(reading.to_json()) == reading


@pytest.mark.parametrize(("peers", "domains"), [(0, ()), (1, (tuple(range(8)),)), (None, (tuple(range(8)),))])
def test_confidential_gpus_have_nvlink_only_in_a_mode_for_several(
    tmp_path: Path, peers: int | None, domains: tuple[tuple[int, ...], ...]
) -> None:
    saved = json.loads((Path(__file__).parents[1] / "machines" / "nvml-dgx-h100" / "capture.json").read_text())
    told = {"confidential": 1} | ({} if peers is None else {"confidential_peers": peers})
    saved["nvml"]["system"]["answers"] |= told
    (tmp_path / "capture.json").write_text(json.dumps(saved))
    found = capture.read(tmp_path / "capture.json")
    assert found.nodes[0].confidential is True
    assert found.nvlink_domains == domains
    assert any("without a mode for several GPUs" in n for n in found.notes) is (peers == 0)
    said = next(f.saw for f in examine(found) if f.check == "gpu-shared")
    assert ("GPUs reach each other over NVLink, and GPUDirect RDMA is closed" in said) is bool(domains)
    assert ("peers and GPUDirect RDMA are closed" in said) is not bool(domains)

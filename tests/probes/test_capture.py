"""A saved machine replays to the cluster that was seen, tells nobody whose it is, and may be damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlaunch.errors import ProbeError
from parlaunch.hardware.cluster import Cluster, cluster_to_json
from parlaunch_probes import Host, capture, node
from parlaunch_probes.nvml import NoNvml, NvmlReading
from tests.conftest import HANGS_S
from tests.fake_nvml import Fake
from tests.probes import machines, tree
from tests.probes.chaos import SAVED, mutate, one
from tests.probes.tree import Tree


@pytest.mark.parametrize("name", machines.MACHINES)
def test_a_machine_on_disk_is_what_a_probe_of_it_saves_and_replays(name: str, fake_nvml: Fake, tmp_path: Path) -> None:
    taken = machines.capture(name, fake_nvml, tmp_path / "root")
    path = capture.save(tmp_path / name, taken, about=machines.MACHINES[name].about)
    kept = SAVED / name
    assert path.read_text() == (kept / "capture.json").read_text(), "run scripts/make/machines.py and read the diff"
    assert (kept / "about").read_text() == machines.MACHINES[name].about + "\n"
    again = capture.read(kept)
    assert again.source == f"file {name}"
    assert replace(again, source="probe") == taken.cluster


def test_every_saved_machine_can_be_read() -> None:
    folders = [p for p in SAVED.iterdir() if p.is_dir()]
    assert len(folders) >= 20
    for folder in folders:
        assert capture.is_capture(folder), folder
        assert capture.read(folder).nodes, folder
        assert (folder / "about").read_text().count("\n") == 1, folder


def test_the_recorded_values_of_a_capture_are_those_that_it_replays_to() -> None:
    for folder in SAVED.glob("nvml-*"):
        stored = capture.load(folder)
        assert cluster_to_json(stored.replay()) == cluster_to_json(stored.cluster), folder


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_machines_that_nobody_built_are_probed_saved_and_shown(
    fake_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    assert one(seed, tmp_path_factory.mktemp("chaos"), fake_nvml_library, seconds=HANGS_S) in (
        "probed",
        "read",
        "refused",
    )


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_a_damaged_capture_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("damaged") / "x.json"
    path.write_bytes(
        mutate(rng, (SAVED / rng.choice(["nvml-l40s", "nvml-mixed", "nvml-a100-mig"]) / "capture.json").read_bytes())
    )
    try:
        assert isinstance(capture.read(path), Cluster)
    except ProbeError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@pytest.fixture
def secret(tmp_path: Path) -> tuple[capture.Capture, list[str]]:
    """A machine full of names, and the names."""
    t = tree.a100_pairs(tmp_path / "root")
    t.put("proc/sys/kernel/hostname", "gpu-cluster-42.secret.example")
    t.put("proc/self/cgroup", "0::/slurm/uid_31337/job_8675309/step_0")
    t.put("sys/fs/cgroup/slurm/uid_31337/memory.max", 64 << 30)
    t.put("sys/class/infiniband/mlx5_0/node_guid", "9803:9b03:00de:adbe")
    uuid = "GPU-deadbeef-1111-4222-8333-444455556666"
    t.put(
        "proc/driver/nvidia/gpus/0000:17:00.0/information",
        f"Model: \t\t NVIDIA A100 80GB PCIe\nGPU UUID: \t {uuid}\nBus Location: \t 0000:17:00.0",
    )
    taken = capture.take(
        Host(tmp_path / "root"),
        NoNvml("LIB_RM_VERSION_MISMATCH"),
        environ={"CUDA_VISIBLE_DEVICES": "GPU-dead", "KUBERNETES_SERVICE_HOST": "10.9.8.7"},
    )
    assert taken.files is not None
    files = {**taken.files, "live": {"addresses": {"ens1f0np0": ["10.11.12.13", "fe80::1234"]}, "xids": None}}
    return replace(taken, files=files), [
        "gpu-cluster-42",
        "31337",
        "8675309",
        "00de:adbe",
        "deadbeef",
        "10.9.8.7",
        "10.11.12.13",
        "fe80::1234",
    ]


def test_a_redacted_capture_names_nothing_of_its_owner(
    secret: tuple[capture.Capture, list[str]], tmp_path: Path
) -> None:
    taken, names = secret
    plain = capture.save(tmp_path / "plain.json", taken).read_text()
    hidden = capture.save(tmp_path / "hidden.json", taken, redact=True).read_text()
    for name in names:
        assert name in plain, name
        assert name not in hidden, name
    assert json.loads(hidden)["redacted"] is True


def test_a_redacted_capture_is_the_same_machine(secret: tuple[capture.Capture, list[str]]) -> None:
    taken, _ = secret
    before, after = taken.replay().nodes[0], capture.redacted(taken).cluster.nodes[0]
    assert [g.pci for g in after.gpus] == [g.pci for g in before.gpus] == ["0000:17:00.0"]
    assert after.gpus[0].uuid is not None
    assert after.gpus[0].uuid != before.gpus[0].uuid
    assert after.memory_limit_bytes == before.memory_limit_bytes == 64 << 30
    assert [(n.name, n.rail, n.why_not) for n in after.nics] == [(n.name, n.rail, n.why_not) for n in before.nics]
    assert after.container == before.container == "kubernetes"


@pytest.mark.parametrize("name", ["nvml-dgx-h100", "nvml-gb200-tray", "nvml-a100-mig", "nvml-slurm-cgroup"])
def test_redaction_keeps_the_nvlink_picture(name: str) -> None:
    taken = capture.load(SAVED / name)
    hidden = capture.redacted(taken)
    assert hidden.cluster.nvlink_domains == taken.cluster.nvlink_domains
    assert hidden.cluster.nodes[0].nvlinks == taken.cluster.nodes[0].nvlinks
    assert hidden.cluster.fabric == taken.cluster.fabric
    ids = {g.fabric_id for g in hidden.cluster.nodes[0].gpus}
    assert len(ids) == len({g.fabric_id for g in taken.cluster.nodes[0].gpus})
    assert not ids & {g.fabric_id for g in taken.cluster.nodes[0].gpus} - {None}


def test_redacting_twice_two_nodes_of_a_rack_keeps_them_in_one_domain() -> None:
    taken = capture.load(SAVED / "nvml-gb200-tray")
    assert (
        capture.redacted(taken).cluster.nodes[0].gpus[0].fabric_id
        == capture.redacted(taken).cluster.nodes[0].gpus[1].fabric_id
    )


def test_a_cluster_without_a_recording_is_kept_as_values(tmp_path: Path) -> None:
    cluster = capture.read(SAVED / "nvml-dgx-h100")
    path = capture.save(tmp_path / "values.json", capture.Capture(cluster), redact=True)
    again = capture.read(path)
    assert again.nodes[0].hostname == "node0"
    assert again.nvlink_domains == cluster.nvlink_domains
    assert again.nodes[0].gpus[0].uuid != cluster.nodes[0].gpus[0].uuid


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        ("", "is not JSON"),
        ("[]", "is not a capture: its schema is 'list'"),
        ('{"schema": "parlaunch.plan/1"}', "is not a capture: its schema is 'parlaunch.plan/1'"),
        ('{"schema": "parlaunch.capture/1"}', "is damaged"),
        ('{"schema": "parlaunch.capture/1", "hardware": {"nodes": 3}}', "is not a machine as parlaunch writes it"),
        (
            '{"schema": "parlaunch.capture/1", "hardware": {"source": "x", "nodes": []}, "nvml": [], "files": []}',
            "is damaged",
        ),
    ],
)
def test_a_file_that_is_no_capture_is_refused_by_name(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "box.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ProbeError, match=r"box\.json") as refusal:
        capture.read(path)
    assert words in str(refusal.value)
    assert refusal.value.exit_code == 1


def test_a_place_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    taken = capture.Capture(Cluster(source="probe", nodes=()))
    with pytest.raises(ProbeError, match="cannot write the capture"):
        capture.save(tmp_path / "file" / "x.json", taken)


def test_only_the_variables_that_matter_are_kept(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    taken = capture.take(
        Host(tmp_path / "root"), NoNvml(), environ={"AWS_SECRET_ACCESS_KEY": "x", "CUDA_VISIBLE_DEVICES": "0"}
    )
    assert dict(taken.environ) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_what_is_a_capture_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"schema": "parlaunch.capture/1"}')
    (tmp_path / "b.json").write_text('{"schema": "parlaunch.plan/1"}')
    (tmp_path / "c.txt").write_text("GPU0 GPU1\nparlaunch.capture/1")
    assert capture.is_capture(tmp_path / "a.json")
    assert not any(capture.is_capture(tmp_path / n) for n in ("b.json", "c.txt", "gone", "."))


class HalfBlind(Host):
    """A machine half of whose files cannot be read, the same half every time."""

    seed = 0

    def _answer(self, kind: str, path: str, ask: Any) -> Any:
        blind = random.Random(f"{self.seed}{kind}{path}").random() < 0.5
        return super()._answer(kind, path, (lambda _: None) if blind else ask)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_a_capture_is_saved_and_redacted_when_half_of_the_reads_fail(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("half")
    builds: list[Callable[[Path], Tree]] = [tree.hgx_b200, tree.spark, tree.slingshot, tree.a100_pairs]
    build = random.Random(seed).choice(builds)
    build(folder / "root")
    host = HalfBlind(folder / "root", record=True)
    host.seed = seed
    reading = NvmlReading(error="UNKNOWN")
    cluster = node.cluster_of(host, reading, {})
    taken = capture.Capture(cluster, host.kept(), reading.to_json(), {})
    saved = capture.save(folder / "m.json", taken, redact=True)
    again = capture.read(saved)
    mine = cluster.nodes[0]
    assert [n.name for n in again.nodes[0].nics] == [n.name for n in mine.nics]
    assert [n.rail for n in again.nodes[0].nics] == [n.rail for n in mine.nics]
    assert mine.hostname == "localhost" or mine.hostname not in saved.read_text()
    assert "4cbb:4703" not in saved.read_text(), "the chip's GUID tells whose it is"

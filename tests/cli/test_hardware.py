"""What the user says about a machine that its file or data sheet does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said

Run = Callable[..., Said]
TOPOLOGY = """\
\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV12\t0-15\t0
GPU1\tNV12\t X \t0-15\t0
"""
PLAN = ("plan", "--recipe", "llama32_1b_pretrain_config")


@pytest.fixture
def topology(tmp_path: Path) -> str:
    """What `nvidia-smi topo -m` prints: who is linked to whom, but not what they are."""
    (tmp_path / "topo.txt").write_text(TOPOLOGY)
    return str(tmp_path / "topo.txt")


def test_without_the_product_there_is_no_plan_and_with_it_there_is(parlaunch: Run, topology: str) -> None:
    assert parlaunch(*PLAN, "--hardware", topology).code == 1
    said = parlaunch(*PLAN, "--hardware", topology, "--gpu", "a100-sxm-80gb", "--format", "json")
    assert said.code == 0
    assert {g["name"] for g in json.loads(said.out)["hardware"]["nodes"][0]["gpus"]} == {"NVIDIA A100-SXM4-80GB"}
    assert "A100" in parlaunch("probe", "--hardware", topology, "--gpu", "A100-SXM-80GB").out


def test_a_name_that_several_products_have_is_made_plain_by_the_user(parlaunch: Run, tmp_path: Path) -> None:
    machine = tmp_path / "jetson.txt"
    machine.write_text("GPU 0: Orin (nvgpu) (UUID: 54bd8a2c-0000-0000-0000-000000000000)\n")
    plain = parlaunch(*PLAN, "--hardware", f"{machine}:2", "-v")
    assert "others have its name: --gpu says which" in " ".join(plain.out.split())
    said = parlaunch("probe", "--hardware", machine, "--gpu", "Jetson AGX Orin 32GB")
    assert (said.code, "Jetson AGX Orin 32GB" in said.out) == (0, True)
    assert parlaunch("probe", "--hardware", machine, "--gpu", "H100-SXM").code == 2


def test_a_fabric_that_the_file_does_not_name_is_called_unknown(parlaunch: Run, tmp_path: Path, topology: str) -> None:
    two = parlaunch(*PLAN, "--hardware", f"{topology}:2", "--gpu", "a100-sxm-80gb")
    assert "fabric unknown" in two.out
    named = tmp_path / "nics.txt"
    named.write_text("GPU 0: NVIDIA H200 (UUID: GPU-00000000-0001)\nCA 'mlx5_0'\n\tPort 1:\nCA 'mlx5_1'\n\tPort 1:\n")
    assert "2 rails of an unknown fabric" in " ".join(parlaunch(*PLAN, "--hardware", f"{named}:2").out.split())


def test_an_unknown_product_gets_the_nearest(parlaunch: Run, topology: str) -> None:
    for command in (PLAN, ("probe",), ("doctor",)):
        said = parlaunch(*command, "--hardware", topology, "--gpu", "A100")
        assert said.code == 2
        assert "A100-SXM-80GB" in said.err


def test_measured_rates_change_the_estimate(parlaunch: Run, tmp_path: Path) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"schema": "parlaunch.machine/1", "gpu": "H100 SXM", "measured": {"gemm_bf16": 0.4}}))
    words = (*PLAN, "--hardware", "dgx-h100:1", "--tp", "1", "--pp", "1", "--format", "json")
    sheet, measured = (json.loads(parlaunch(*words, *more).out) for more in ((), ("--machine-file", str(machine))))
    assert measured["estimate"]["iteration_time_s"] > 1.2 * sheet["estimate"]["iteration_time_s"]


def test_slower_nodes_are_left_out_unless_the_user_counts_on_them(parlaunch: Run, tmp_path: Path) -> None:
    node = "NodeName={} CoresPerSocket=56\n   Gres=gpu:{}:8\n   Sockets=2\n   State=IDLE\n"
    names = ("nvidia_h100_80gb_hbm3", "nvidia_h100_80gb_hbm3", "nvidia_a100-sxm4-80gb")
    (tmp_path / "nodes.txt").write_text("".join(node.format(f"n{at}", name) for at, name in enumerate(names)))
    words = (*PLAN, "--hardware", str(tmp_path / "nodes.txt"), "--format", "json")
    made = json.loads(parlaunch(*words).out)
    assert [n["hostname"] for n in made["hardware"]["nodes"]] == ["n0", "n1"]
    assert any(w.startswith("n2 left out: the 2 nodes with NVIDIA H100") for w in made["warnings"])
    whole = json.loads(parlaunch(*words, "--tp", "8", "--pp", "3").out)
    assert len(whole["hardware"]["nodes"]) == 3
    assert any("go" in w and "pace of NVIDIA A100" in w for w in whole["warnings"])


def test_a_file_of_ports_alone_is_refused_with_what_to_add(parlaunch: Run, tmp_path: Path) -> None:
    (tmp_path / "ports.txt").write_text("mlx5_0 port 1 ==> ibs10 (Up)\n")
    said = parlaunch(*PLAN, "--hardware", str(tmp_path / "ports.txt"))
    assert said.code == 1
    assert "append the output of `nvidia-smi -L` to the file" in said.err
    assert parlaunch("doctor", "--hardware", str(tmp_path / "ports.txt")).code == 0


def test_a_folder_that_has_a_machines_name_is_not_in_its_way(
    parlaunch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dgx-h100").mkdir()
    said = parlaunch("probe", "--hardware", "dgx-h100:2", "--format", "json")
    assert said.code == 0, said.err
    assert '"source": "preset dgx-h100:2"' in said.out
    (tmp_path / "dgx-h100" / "capture.json").write_text("{}")
    assert parlaunch("probe", "--hardware", "dgx-h100:2").code == 1


def test_a_rack_with_a_tray_that_lost_a_gpu_is_a_rack_and_the_tray_is_named(parlaunch: Run, tmp_path: Path) -> None:
    path = tmp_path / "rack.txt"
    lines = [
        f"t{t}: GPU {i}: NVIDIA GB200 (UUID: GPU-{t}{i})" for t in range(10, 28) for i in range(3 if t == 17 else 4)
    ]
    path.write_text("\n".join(lines))
    said = parlaunch("plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", str(path))
    text = " ".join(said.out.split())
    assert "18 nodes × 3 NVIDIA GB200 = 54 · one rack of 18 trays" in text
    assert "without t17 there are 68 in place of 54" in text

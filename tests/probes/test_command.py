"""The command line on a machine with GPUs: what it prints, saves, replays, and the codes that it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import HANGS_S
from tests.fake_nvml import Fake


def parlaunch(*argv: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", **(variables or {})}
    done = subprocess.run(
        [sys.executable, "-m", "parlaunch", *argv],
        capture_output=True,
        text=True,
        env=env,
        timeout=HANGS_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def hardware(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["schema"] == "parlaunch.probe/1"
    found = data["hardware"]
    assert isinstance(found, dict)
    return found


def test_a_probe_is_saved_and_replayed_to_the_same_hardware(fake_nvml: Fake, tmp_path: Path) -> None:
    variables = fake_nvml.variables("a100_pcie_pairs", "x_gpu_lost")
    live = hardware(parlaunch("probe", "--format", "json", "--save", str(tmp_path / "box.json"), variables=variables))
    again = hardware(parlaunch("probe", "--format", "json", "--hardware", str(tmp_path / "box.json")))
    assert live.pop("source") == "probe"
    assert again.pop("source") == "file box.json"
    assert again == live
    assert [g["index"] for g in live["nodes"][0]["gpus"]] == [0, 1, 2]


def test_a_redacted_probe_shows_and_saves_no_uuid(fake_nvml: Fake, tmp_path: Path) -> None:
    variables = fake_nvml.variables("l40s")
    done = parlaunch("probe", "--format", "json", "--save", str(tmp_path / "box"), "--redact", variables=variables)
    assert "GPU-15000000-0000" not in done.stdout + (tmp_path / "box" / "capture.json").read_text()
    assert len(hardware(done)["nodes"][0]["gpus"]) == 4


def test_doctor_ends_with_1_on_a_fail_and_with_0_without(fake_nvml: Fake) -> None:
    sick = parlaunch("doctor", "--format", "json", variables=fake_nvml.variables("dgx_h100", "x_gpu_lost"))
    found = json.loads(sick.stdout)
    assert (sick.returncode, found["ok"], found["schema"]) == (1, False, "parlaunch.doctor/1")
    assert any(f["check"] == "gpu-lost" and f["severity"] == "FAIL" for f in found["findings"])
    well = parlaunch("doctor", variables=fake_nvml.variables("l40s"))
    assert well.returncode == 0
    assert "FAIL" not in well.stdout


def test_a_cut_capture_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"schema": "parlaunch.capture/1", "hardware": {"nodes": [')
    done = parlaunch("probe", "--hardware", str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "cut.json looks like JSON and is not" in done.stderr
    assert "hint:" in done.stderr


def test_gpus_that_a_variable_hides_are_found_again_by_what_the_hint_says(fake_nvml: Fake) -> None:
    variables = fake_nvml.variables("rtx4090_x2") | {"CUDA_VISIBLE_DEVICES": ""}
    done = parlaunch("plan", "--recipe", "qwen3_600m_peft_config", "--quiet", variables=variables)
    assert done.returncode == 1
    assert "hint: unset CUDA_VISIBLE_DEVICES" in done.stderr
    del variables["CUDA_VISIBLE_DEVICES"]
    assert parlaunch("plan", "--recipe", "qwen3_600m_peft_config", "--quiet", variables=variables).returncode == 0

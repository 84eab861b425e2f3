"""A training repository's own `launch.py` and `probes/` change nothing, in the current folder or on PYTHONPATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch_launch.become import installed
from tests.conftest import HANGS_S, need

WORDS = ("plan", "--recipe", "llama32_1b_pretrain_config", "--hardware", "dgx-h100:1", "--quiet")


@pytest.mark.parametrize("on_path", [False, True], ids=["current folder", "PYTHONPATH"])
@pytest.mark.parametrize("start", ["module", "script"])
def test_names_of_a_users_repository_are_not_ours(tmp_path: Path, on_path: bool, start: str) -> None:
    for name in ("launch.py", "probes/__init__.py", "launch_utils.py", "cli.py", "plan.py", "recipe.py", "layout.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise SystemExit('the wrong module was imported')\n")
    script = Path(sys.executable).parent / "parlaunch"
    if start == "script" and not script.exists():
        pytest.skip("parlaunch is not installed beside this interpreter")
    argv = [sys.executable, "-m", "parlaunch"] if start == "module" else [str(script)]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)} if on_path else dict(os.environ)
    done = subprocess.run(
        [*argv, *WORDS], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tp=")


def test_modules_of_the_standard_librarys_names_in_the_working_directory_are_trainings(tmp_path: Path) -> None:
    """Planner, supervisor and torchrun do not see them; the rank finds the folder's modules, as with torchrun."""
    pytest.importorskip("torch")
    for name in ("selectors", "queue", "hmac", "zlib", "secrets", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working directory was imported')\n")
    (tmp_path / "helper.py").write_text("NAME = 'seen'\n")
    (tmp_path / "training.py").write_text("from helper import NAME\nopen('said', 'w').write(NAME)\n")
    argv = [sys.executable, "-P", "-m", "parlaunch", "--recipe", "llama32_1b_pretrain_config", "--device", "cpu"]
    argv += ["--nproc-per-node", "1", "--module", "training"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "seen"


def test_a_script_finds_what_torchrun_would_let_it_find(tmp_path: Path) -> None:
    """The folder of the script in front, the working directory not, and no variable of ours in a rank's way."""
    pytest.importorskip("torch")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "beside.py").write_text("NAME = 'beside'\n")
    (folder / "train.py").write_text(
        "import json, os, sys\nfrom beside import NAME\n"
        "said = [NAME, os.environ.get('PYTHONSAFEPATH'), sys.path[0], os.getcwd() in sys.path]\n"
        "open(os.environ['SAID'], 'w').write(json.dumps(said))\n"
    )
    ours = [sys.executable, "-P", "-m", "parlaunch", "--recipe", "llama32_1b_pretrain_config", "--device", "cpu"]
    ours += ["--nproc-per-node", "1", "--script", "repository/train.py"]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "repository/train.py"]
    said = []
    for name, argv in (("ours", ours), ("torchrun", torchrun)):
        env = {**os.environ, "SAID": str(tmp_path / name)}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANGS_S, check=False)
        assert done.returncode == 0, done.stderr
        said.append(json.loads((tmp_path / name).read_text()))
    assert said[0] == said[1] == ["beside", None, str(folder), False]


def test_a_rank_of_our_own_runner_does_not_import_the_working_directory(tmp_path: Path) -> None:
    """Where parlaunch itself is the rank's program, a `types.py` of the folder is not its to import."""
    pytest.importorskip("torch")
    need(installed("megatron.core"), "megatron-core")
    for name in ("types", "random", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working directory was imported')\n")
    argv = [sys.executable, "-P", "-m", "parlaunch", "--recipe", "llama32_1b_pretrain_config", "--device", "cpu"]
    argv += ["--nproc-per-node", "1", "train.train_iters=1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "lm loss" in done.stdout

"""A training repository's own `launch.py` and `probes/` change nothing, in the current folder or on PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        [*argv, *WORDS], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tp=")

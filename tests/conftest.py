"""What every test gets: a clean environment and whole-text goldens."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

TESTS = count()

HANGS_S = 600.0
"""What a test waits for at most: a bound for what hangs, never for what is slow."""

# A loaded machine is slow, not wrong: speed is shown by benchmarks.
settings.register_profile("parlaunch", deadline=None)
settings.load_profile("parlaunch")

pytest_plugins = ("tests.fake_nvml",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; read the diff")


def pytest_configure() -> None:
    """Under nohup, or behind a script's `&`, SIGHUP and SIGINT are ignored, by children too: what tests start must hear them."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variable of the machine that runs the tests decides anything, and no run that it has measured."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / f"state-{next(TESTS)}"))
    for name in list(os.environ):
        if name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR") or name.startswith(
            ("SLURM", "PMI", "OMPI", "CUDA", "NCCL", "NVTE", "TORCH", "MASTER_", "PARLAUNCH", "PET_")
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("name.txt", text)`: the whole text must match. A missing file fails."""

    def check(name: str, text: str) -> None:
        path = HERE / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run pytest --update-golden and read the diff"
        assert text == path.read_text()

    return check


NAMED = os.environ.get("BRIDGE_PYTHON")  # read before the tests' environment is cleaned


def bridge_python() -> str:
    """The interpreter that has Bridge: the one named by `BRIDGE_PYTHON`, or this one."""
    have = importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.bridge") is not None
    python = NAMED or (sys.executable if have else None)
    need(python, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    return str(python)


def need(present: object, what: str) -> None:
    """Skip with a reason where `what` is absent; fail in CI, where everything must be there."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not here")

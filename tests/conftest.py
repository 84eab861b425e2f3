"""What every test gets: a clean environment and whole-text goldens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytest_plugins = ("tests.fake_nvml",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; read the diff")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine that runs the tests decides anything."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "PMI", "OMPI", "CUDA", "NCCL", "NVTE", "TORCH", "MASTER_", "PARLAUNCH", "PET_")):
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


def need(present: object, what: str) -> None:
    """Skip with a reason where `what` is absent; fail in CI, where everything must be there."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is not here")

"""The torch that will run says its version without being imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from parlaunch.cli import job


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("__all__ = ['__version__']\n__version__ = '2.9.1+cu130'\ndebug = False\n", "2.9.1+cu130"),
        ('__version__ = "2.10.0a0+b558c986e8.nv25.11"\n', "2.10.0a0+b558c986e8.nv25.11"),
        ("from a import b\n", None),
        (None, None),
    ],
)
def test_the_version_is_read_from_its_file(
    text: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    if text is not None:
        (package / "version.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert job._torch_version.__wrapped__() == version

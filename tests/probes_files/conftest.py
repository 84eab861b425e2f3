"""`read(text)`: the cluster that a file with this content describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parlaunch.hardware.cluster import Cluster
from parlaunch_probes.files import read_hardware

Read = Callable[[str | bytes], Cluster]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes the content under a name that says nothing, and reads it."""

    def reader(content: str | bytes) -> Cluster:
        path = tmp_path / "anything"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_hardware(path)

    return reader

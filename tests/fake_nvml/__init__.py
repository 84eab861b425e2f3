"""A libnvidia-ml.so.1 for machines without a GPU: built from `fake_nvml.c` once a session, told what to be by text.

`fake_nvml` (a fixture) is a `Fake`: `fake_nvml.use("dgx_h100", "x_gpu_lost")` makes this process and the children it
starts see that machine. Descriptions lie in `machines/`; `extra=` adds lines of one's own. A base machine and an
`x_*` overlay make a fault.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MACHINES = HERE / "machines"


def build(into: Path, missing: tuple[str, ...] = ()) -> Path:
    """Compile the library; `missing` names functions that are really absent, as from an old driver."""
    library = into / "libnvidia-ml.so.1"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    if missing:
        script = into / "old.map"
        local = " ".join(f"{name};" for name in (*missing, "*"))
        script.write_text(f"{{ global: nvml*; local: {local} }};")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run([*command, "-o", str(library), str(HERE / "fake_nvml.c")], check=True)
    return library


@dataclass
class Fake:
    """The built library, and the variables that turn it into a machine."""

    library: Path
    scratch: Path
    patch: pytest.MonkeyPatch | None = None

    def variables(
        self, *machines: str, extra: str = "", visible: str | None = None, log: Path | None = None
    ) -> dict[str, str]:
        """What a subprocess needs in its environment to see the machine."""
        files = [MACHINES / f"{name}.txt" for name in machines]
        for path in files:
            assert path.exists(), (
                f"no such machine: {path.name}; there are {sorted(p.stem for p in MACHINES.iterdir())}"
            )
        if extra:
            files.append(self.scratch / f"extra{len(list(self.scratch.iterdir()))}.txt")
            files[-1].write_text(extra + "\n")
        found = {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKE_NVML_MACHINE": ":".join(map(str, files)),
        }
        if visible is not None:
            found["FAKE_NVML_VISIBLE"] = visible
        if log is not None:
            found["FAKE_NVML_LOG"] = str(log)
        return found

    def use(
        self, *machines: str, extra: str = "", visible: str | None = None, log: Path | None = None
    ) -> dict[str, str]:
        """See the machine from here on, until the test ends; the variables are returned too."""
        assert self.patch is not None
        found = self.variables(*machines, extra=extra, visible=visible, log=log)
        for name in ("FAKE_NVML_VISIBLE", "FAKE_NVML_LOG"):
            self.patch.delenv(name, raising=False)
        for name, value in found.items():
            self.patch.setenv(name, value)
        return found


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built once."""
    from shutil import which

    from tests.conftest import need

    need(which("gcc"), "gcc (to build the fake NVML)")
    return build(tmp_path_factory.mktemp("fake_nvml"))


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A machine with GPUs of your choice: `fake_nvml.use("dgx_h100")`."""
    scratch = tmp_path / "nvml"
    scratch.mkdir()
    return Fake(fake_nvml_library, scratch, monkeypatch)

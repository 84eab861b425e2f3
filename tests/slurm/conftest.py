"""A real Slurm of four nodes for the session, and parlaunch in front of small jobs on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANGS_S, need
from tests.fake_nvml import MACHINES, fake_nvml_library  # noqa: F401  (a fixture)

SCRIPT = Path(__file__).parent.parent / "cluster" / "slurm_cluster.sh"
RECIPE = "llama32_1b_pretrain_config"
PATIENCE_S = HANGS_S
"""What is not there after so long hangs: a bound for a machine with one busy core, and no statement on speed. Workers that
nobody ends stay for twice as long."""

NODES = ("gpu01", "gpu02", "gpu03", "gpu04")

APART = "--error=err-%t.txt"
"""For srun, when a task is killed: after that it stops listening as soon as the last task has ended, and that one's last lines
are lost (Slurm's step_launch.c). What each task writes into a file of its own is not."""

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
"""States that a job does not leave. Others have many names: one that is being signalled is SIGNALING."""

# A busy machine: a node that answers late is not down, a job that starts late is not lost, a save takes its time.
PATIENT = (
    "SlurmdTimeout=600",
    "BatchStartTimeout=120",
    "MessageTimeout=100",
    "KillWait=60",
    "TopologyPlugin=topology/tree",
)

# Every second node hangs below the same switch: the order of names is the wrong one.
TOPOLOGY = """\
SwitchName=leaf1 Nodes=gpu01,gpu03
SwitchName=leaf2 Nodes=gpu02,gpu04
SwitchName=spine Switches=leaf[1-2]
"""

# Each node sees its own folder at one path, so that one environment variable names another machine on every node.
HOOK = """\
#!/bin/sh
mkdir -p "$3/machines/$1" "$3/machine" && mount --bind "$3/machines/$1" "$3/machine"
"""


@dataclass
class Done:
    code: int
    text: str  # stdout and stderr of all nodes
    place: Path
    out: str = ""  # stdout alone, into which no other node's stderr is mixed

    @property
    def workers(self) -> list[dict[str, Any]]:
        """What the workers said, by rank."""
        said = [json.loads(path.read_text()) for path in self.place.glob("said-*.json")]
        return sorted(said, key=lambda w: int(w["rank"]))


@dataclass
class Cluster:
    folder: Path
    environ: dict[str, str]
    nvml: Path
    jobs: Path
    number: int = 0
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    # --- the machine

    def gpus(self, node: str, *, machine: str = "rtx4090_x2", count: int = 2, extra: str = "") -> None:
        """Which GPUs a node has from here on."""
        text = (MACHINES / f"{machine}.txt").read_text()
        number = 0
        lines = []
        for line in text.splitlines():
            if line.startswith("gpu "):
                number += 1
                if number > count:
                    continue
            lines.append(re.sub("uuid=GPU-..", f"uuid=GPU-{node[-2:]}", line))
        (self.folder / "machines" / node / "gpu.txt").write_text("\n".join([*lines, extra]) + "\n")

    def heal(self) -> None:
        for node in NODES:
            self.gpus(node)

    # --- jobs

    def parlaunch(self, *words: str, device: str = "cpu", script: bool = True) -> list[str]:
        """The command line of a small job. Its processes can be told by the folder in it."""
        self.number += 1
        place = self.jobs / f"j{self.number}"
        place.mkdir()
        shutil.copy(Path(__file__).parent / "worker.py", place / "worker.py")
        argv = [sys.executable, "-m", "parlaunch", "--recipe", RECIPE]
        argv += ["--device", "cpu", "--nproc-per-node", "1"] if device == "cpu" else []
        argv += ["--script", str(place / "worker.py")] if script else []
        return [*argv, *words]

    @property
    def place(self) -> Path:
        return self.jobs / f"j{self.number}"

    def start(self, argv: list[str], **environ: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.place,
            env={**self.environ, "SLURM_JOB_NAME": self.place.name, **environ}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.running.append(started)
        return started

    def finish(self, started: subprocess.Popen[str]) -> Done:
        """Wait for the end of a command; it is killed, and the test fails, when it hangs."""
        try:
            out, err = started.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.call("scancel", "--user=root", "--signal=KILL")
            out, err = started.communicate(timeout=PATIENCE_S)
            pytest.fail(f"{shlex.join(started.args)} ran longer than {PATIENCE_S} s:\n{out}{err}")  # type: ignore[arg-type]
        err += "".join(path.read_text() for path in sorted(self.place.glob("err-*.txt")))
        return Done(started.returncode, out + err, self.place, out)

    def srun(self, *options: str, argv: list[str], **environ: str) -> Done:
        """Run one task a node, as a user's own srun does, to the end."""
        return self.finish(self.start(["srun", *options, *argv], **environ))

    def sbatch(self, *options: str, body: str, **environ: str) -> str:
        """Submit a batch script; its job id. Its output is `text(job)`."""
        (self.place / "job.sh").write_text(f"#!/bin/bash\n{body}\n")
        command = ["sbatch", "--parsable", "--open-mode=append", f"--output={self.place}/out.txt", *options, "job.sh"]
        job = self.call(*command, **environ).strip()
        assert job.isdigit(), f"no job: {shlex.join(command)}"
        return job

    def wait(self, job: str) -> Done:
        """The end of a job: 0 or not, and its output."""
        began = time.monotonic()
        while (state := self.state(job)) not in ENDS:
            if time.monotonic() - began > PATIENCE_S:
                self.call("scancel", "--signal=KILL", job)
                pytest.fail(f"job {job} is {state} after {PATIENCE_S} s:\n{self.text()}")
            time.sleep(0.2)
        code = re.search(r"ExitCode=(\d+):(\d+)", self.call("scontrol", "show", "job", job))
        assert code is not None
        return Done(int(code[1]) or int(code[2]), self.text(), self.place)

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))
        return found[1] if found else "GONE"

    def text(self) -> str:
        out = self.place / "out.txt"
        return out.read_text() if out.exists() else ""

    def call(self, *argv: str, **environ: str) -> str:
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=self.place, env={**self.environ, **environ}, timeout=PATIENCE_S
        )
        return done.stdout

    # --- processes

    def processes(self, words: str = "", node: str = "", *, without: str = "") -> list[int]:
        """Live processes of the newest job, with and without these words in the command line, on that node."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{self.place}/" not in command or words not in command or "srun" in command.split(" ")[0]:
                continue
            if without and without in command:
                continue
            if not node or f"SLURMD_NODENAME={node}".encode() in environ.split(b"\0"):
                found.append(int(entry.name))
        return found

    @property
    def job(self) -> str:
        """The id of the newest `start`ed job, once it runs. Jobs of earlier tests may still be on their way out."""
        found: str = self.until(lambda: self.call("squeue", "-h", "-t", "R", "-n", self.place.name, "-o", "%i").strip())
        return found

    def go(self) -> None:
        """Workers that wait (`WORKER=until`) end."""
        (self.place / "go").touch()

    def until(self, ready: Any) -> Any:
        """Wait until a callable says something true, and return that."""
        end = time.monotonic() + PATIENCE_S
        while not (said := ready()):
            assert time.monotonic() < end, f"nothing happened in {PATIENCE_S} s: {self.text()}"
            time.sleep(0.1)
        return said

    def kill(self, pids: list[int]) -> None:
        """End all of them as at one time: none lives to see the end of another."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def nothing_left(self) -> None:
        """No process of the newest job is there any more, a moment after its end."""
        self.until(lambda: not self.processes())


@pytest.fixture(scope="session")
def started_cluster(tmp_path_factory: pytest.TempPathFactory, fake_nvml_library: Path) -> Iterator[Cluster]:  # noqa: F811
    need(all(map(shutil.which, ("slurmctld", "slurmd", "munged", "srun", "ip"))), "Slurm (Debian's packages)")
    need(os.geteuid() == 0, "root, to give each node its own network")
    # Slurm's sockets must fit into 108 bytes, and pytest's folders are long.
    folder = Path(tempfile.mkdtemp(prefix="parlaunch-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "hook").write_text(HOOK)
    (folder / "hook").chmod(0o755)
    (folder / "topology").write_text(TOPOLOGY)
    base = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "FAKE_NVML"))}
    command = [
        str(SCRIPT),
        "start",
        "-w",
        f"{folder}/c",
        "-n",
        str(len(NODES)),
        "-H",
        f"{folder}/hook",
        "-T",
        f"{folder}/topology",
        "-t",
        f"{PATIENCE_S:.0f}",
        *(word for setting in PATIENT for word in ("-x", setting)),
    ]
    try:
        made = subprocess.run(command, capture_output=True, text=True, env=base, timeout=2 * PATIENCE_S)
        if made.returncode:
            need(False, f"a cluster on this machine ({made.stderr.strip()[-400:]})")
        for name, value in re.findall(r"export (\w+)=(.*)", made.stdout):
            base[name] = value.replace("$PATH", base["PATH"])
        base |= {"LD_LIBRARY_PATH": str(fake_nvml_library.parent), "FAKE_NVML_MACHINE": f"{folder}/c/machine/gpu.txt"}
        base |= {"OMP_NUM_THREADS": "1", "PARLAUNCH_AGREE_TIMEOUT": f"{PATIENCE_S}"}
        yield Cluster(folder / "c", base, fake_nvml_library, tmp_path_factory.mktemp("jobs"))
    finally:
        subprocess.run([str(SCRIPT), "stop", "-w", f"{folder}/c"], capture_output=True, timeout=PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with healthy nodes and nothing running."""
    started_cluster.heal()
    yield started_cluster
    for process in started_cluster.running:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    started_cluster.running.clear()
    started_cluster.call("scancel", "--user=root", "--signal=KILL")
    started_cluster.until(lambda: not started_cluster.call("squeue", "-h").strip())


def lines_with(text: str, words: str) -> list[str]:
    return [line for line in text.splitlines() if words in line]


__all__ = ["APART", "NODES", "Cluster", "Done", "Mapping", "lines_with"]

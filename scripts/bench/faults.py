#!/usr/bin/env python3
"""What torchrun alone does with the faults of docs/faults.md, on four Slurm nodes of this machine.

    scripts/bench/faults.py                all that torchrun can meet, several at once (some ten minutes); a row each
    scripts/bench/faults.py 36 40          those of these numbers
    scripts/bench/faults.py --ours 36      parlaunch in torchrun's place
    scripts/bench/faults.py --write        put what was measured into the page's columns

Two nodes with one rank each, started by srun as torchrun's documentation has it. The ranks do not communicate, so that what is
seen is torchrun's own doing and not NCCL's. Seconds are from the fault to the end of srun; who has not ended after
WATCHED_S is ended by us. Needs root, and Debian's Slurm (`tests/cluster/slurm_cluster.sh`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER, PAGE = ROOT / "tests/cluster/slurm_cluster.sh", ROOT / "docs/faults.md"

RECIPE = "llama32_1b_pretrain_config"
WATCHED_S = 330.0
"""torchrun's exit barrier is 300 s."""

WORKER = """
import os, signal, sys, time
from pathlib import Path
here, rank, last = Path({folder!r}), int(os.environ["RANK"]), int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
def say(what): (here / f"{{what}}-{{rank}}").write_text(str(os.getpid()))
def until(name):
    while not (here / name).exists(): time.sleep(0.05)
def save_at(seconds):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    say("ready")
    while not told: time.sleep(0.05)
    time.sleep(seconds)
    say("saved")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
{code}
"""
STAYS = 'say("ready"); time.sleep(3600)'
ENDS = 'say("ready"); until("go")'
FAILS = 'say("ready"); until("go")\nif last: {end}\ntime.sleep(3600)'
NODE = "$SLURM_NODEID"


@dataclass
class Job:
    """One running torchrun job."""

    folder: Path
    port: int
    environ: dict[str, str]
    ours: bool = False
    started: subprocess.Popen[str] | None = None
    fault: float = field(default_factory=time.monotonic)

    def until(self, ready: Callable[[], object]) -> None:
        end = time.monotonic() + 240
        while not ready():
            if time.monotonic() > end or (self.started is not None and self.started.poll() is not None):
                raise RuntimeError(f"did not come so far: {(self.folder / 'out').read_text()[-1500:]}")
            time.sleep(0.1)

    def have(self, what: str, number: int = 2) -> bool:
        return len(list(self.folder.glob(f"{what}-*"))) >= number

    def training(self) -> None:
        """Wait until both ranks run. The fault is now."""
        self.until(lambda: self.have("ready"))
        self.fault = time.monotonic()

    def go(self) -> None:
        (self.folder / "go").touch()
        self.fault = time.monotonic()

    def call(self, *argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, env=self.environ, timeout=120, check=False).stdout

    def id(self) -> str:
        return self.call("squeue", "-h", "-n", self.folder.name, "-o", "%i").strip()

    def pids(self, words: str, node: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{self.folder}/" not in command or words not in command or command.startswith(("srun", "bash")):
                    continue
                if f"SLURMD_NODENAME={node}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def agents(self, node: str = "gpu02") -> list[int]:
        return self.pids("parlaunch_launch.elastic" if self.ours else "bin/torchrun", node)

    def signal(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, number)
        self.fault = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Fault:
    row: int  # of docs/faults.md
    code: str = STAYS  # what a rank does
    act: Callable[[Job], object] = Job.training
    nodes: str = "gpu[01-02]"
    options: tuple[str, ...] = ()
    master: str = "gpu01"
    before: str = ""  # shell, in front of torchrun in each task
    torchrun: str = ""  # its options, in place of those of two nodes
    redirect: str = ""
    batch: bool = False
    seconds: bool = True  # False: the job goes on to its own end, and how long that is says nothing
    also: Callable[[Job], str] = lambda job: ""

    @property
    def count(self) -> int:
        first, _, last = self.nodes.partition("[")[2].rstrip("]").partition("-")
        return 1 + int(last) - int(first) if last else 1


def _then(*steps: Callable[[Job], object]) -> Callable[[Job], None]:
    def act(job: Job) -> None:
        job.training()
        for step in steps:
            step(job)

    return act


def _slurm(verb: str, pause: float) -> Callable[[Job], None]:
    def act(job: Job) -> None:
        job.call("scontrol", verb, job.id())
        time.sleep(pause)

    return act


def _network(job: Job) -> None:
    for verb, pause in (("netdown", 6), ("netup", 1)):
        job.call(str(CLUSTER), verb, "-w", job.environ["SLURM_CLUSTER_DIR"], "gpu04")
        time.sleep(pause)


def _frozen(job: Job) -> None:
    job.signal(signal.SIGSTOP, job.agents())
    time.sleep(20)
    job.signal(signal.SIGCONT, job.agents())


def _scan(job: Job) -> None:
    knock = (
        "import socket\nfor _ in range(300):\n  try:\n"
        f"    with socket.create_connection(('gpu01', {job.port}), timeout=1) as made: made.sendall(b'{{}}\\n')\n"
        "  except OSError: pass\n"
    )
    job.call(str(CLUSTER), "exec", "-w", job.environ["SLURM_CLUSTER_DIR"], "--", sys.executable, "-c", knock)


def _saved(job: Job) -> str:
    return f", {len(list(job.folder.glob('saved-*')))} of 2 saves written"


def _left(job: Job) -> str:
    return ", its rank lives on" if job.pids("worker.py", "gpu02") else ""


def _waiting(node: str) -> Callable[[Job], None]:
    """Kill the agent of a node while it waits for the others."""

    def act(job: Job) -> None:
        job.until(lambda: job.agents(node))
        time.sleep(15)
        job.signal(signal.SIGKILL, job.agents(node))

    return act


def _both_started(job: Job) -> None:
    time.sleep(1)


CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() - 600\n"

FAULTS = (
    Fault(row=1, nodes="gpu01", act=_both_started),
    Fault(row=3, nodes="gpu02", torchrun="--nnodes=2 --node-rank=1", act=_both_started),
    Fault(row=4, master="gpu99", act=_both_started),
    Fault(row=5, master="127.0.0.1", act=_both_started),
    Fault(row=6, nodes="gpu[01-03]", torchrun=f"--nnodes=3 --node-rank={NODE}", before=f"[ {NODE} = 2 ] && exec sleep 3600;", act=_waiting("gpu02")),
    Fault(row=7, before=f"[ {NODE} = 1 ] && sleep 40;", act=_waiting("gpu01")),
    Fault(row=17, torchrun="--nnodes=2 --node-rank=0", act=_both_started),
    Fault(row=19, before="[ $SLURM_NODEID = 0 ] && { PYTHON -m http.server PORT & sleep 3; };", act=_both_started),
    Fault(row=27, code=ENDS, act=_then(_scan, Job.go), seconds=False),
    Fault(row=32, options=("--ntasks-per-node=8",), act=_both_started),
    Fault(row=36, code=FAILS.format(end="sys.exit(42)"), act=_then(Job.go)),
    Fault(row=37, code=FAILS.format(end="os.kill(os.getpid(), signal.SIGSEGV)"), act=_then(Job.go)),
    Fault(row=38, code=FAILS.format(end="os.kill(os.getpid(), signal.SIGKILL)"), act=_then(Job.go)),
    Fault(row=40, act=_then(lambda job: job.signal(signal.SIGKILL, job.agents())), also=_left),
    Fault(row=43, nodes="gpu01", torchrun="--nnodes=1 --nproc-per-node=2", act=_then(Job.go),
          code='say("ready"); until("go")\nif last: sys.exit(42)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)'),
    Fault(row=44, code='say("ready"); until("go"); time.sleep(40 * last)', act=_then(Job.go), seconds=False),
    Fault(row=45, code='say("ready"); until("go"); time.sleep(10 * last); sys.exit(7 * last)', act=_then(Job.go)),
    Fault(row=46, code=ENDS, act=_then(_slurm("suspend", 5), _slurm("resume", 1), _slurm("suspend", 3), _slurm("resume", 1), Job.go), seconds=False),
    Fault(row=48, nodes="gpu[03-04]", master="gpu03", code=ENDS, act=_then(_network, Job.go), seconds=False),
    Fault(row=49, code=ENDS, act=_then(_frozen, Job.go), seconds=False),
    Fault(row=51, code=ENDS, before=f"[ {NODE} = 1 ] && export PYTHONPATH=FOLDER/clock;", act=_then(Job.go), seconds=False),
    Fault(row=52, act=_then(lambda job: job.call("scancel", job.id()))),
    Fault(row=53, code="save_at(36 * rank)", act=_then(lambda job: job.call("scancel", "-s", "TERM", f"{job.id()}.0")), also=_saved),
    Fault(row=54, code="save_at(rank)", act=_then(lambda job: job.call("scancel", "-s", "USR1", f"{job.id()}.0")), also=_saved),
    Fault(row=55, code="save_at(rank)", batch=True, act=_then(lambda job: job.call("scancel", "--batch", "-s", "USR1", job.id())), seconds=False,
        also=_saved),
    Fault(row=57, code=ENDS, before="export LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0;", act=_then(Job.go), seconds=False),
    Fault(row=58, code=ENDS, redirect="<&- >&- 2>&-", act=_then(Job.go), seconds=False),
    Fault(row=64, code=ENDS, before="cd FOLDER/shadow;", act=_then(Job.go), seconds=False),
)  # fmt: skip
PORTS = count(21000)


def measured(fault: Fault, folder: Path, environ: dict[str, str], *, ours: bool) -> str:
    """What torchrun did, or parlaunch, in a few words."""
    folder.mkdir()
    port = next(PORTS)
    (folder / "clock").mkdir()
    (folder / "clock/sitecustomize.py").write_text(CLOCK)
    (folder / "shadow").mkdir()
    (folder / "shadow/types.py").write_text("raise SystemExit('a file of the working directory was imported')\n")
    (folder / "worker.py").write_text(WORKER.format(folder=str(folder), code=fault.code))
    options = fault.torchrun or f"--nnodes=2 --node-rank={NODE}"
    options += "" if "--nproc" in options else " --nproc-per-node=1"
    own = f"{Path(sys.executable).parent}/torchrun {options} --master-addr={fault.master} --master-port={port}"
    if ours:
        own = f"{sys.executable} -P -m parlaunch --recipe {RECIPE} --device cpu --nproc-per-node 1 --script"
    before = (
        fault.before.replace("PYTHON ", f"{sys.executable} ").replace("PORT", str(port)).replace("FOLDER", str(folder))
    )
    script = f"{before} exec {own} {folder}/worker.py {fault.redirect}"
    tasks = () if any("ntasks" in o for o in fault.options) else ("--ntasks-per-node=1",)
    argv = ["srun", f"-N{fault.count}", "-w", fault.nodes, *tasks, *fault.options, "bash", "-c", script]
    if fault.batch:
        (folder / "job.sh").write_text(f"#!/bin/bash\nexec {shlex.join(argv)}\n")
        argv = [
            "sbatch",
            "--wait",
            f"-N{fault.count}",
            "-w",
            fault.nodes,
            *tasks,
            "-o",
            str(folder / "out.txt"),
            str(folder / "job.sh"),
        ]
    environ = environ | {"SLURM_JOB_NAME": folder.name, "SBATCH_JOB_NAME": folder.name, "OMP_NUM_THREADS": "1"}
    job = Job(folder, port, environ, ours)
    with (folder / "out").open("w") as out:
        job.started = subprocess.Popen(
            argv, env=environ, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=folder, text=True
        )
        try:
            fault.act(job)
            code = job.started.wait(WATCHED_S)
            took = f" after {max(0, time.monotonic() - job.fault):.0f} s" if fault.seconds else ""
            return f"code {code}{took}{fault.also(job)}"
        except subprocess.TimeoutExpired:
            return f"not over after {WATCHED_S:.0f} s{fault.also(job)}"
        except RuntimeError as error:
            return f"not measured: {error}"
        finally:
            job.call("scancel", "--signal=KILL", job.id())
            job.started.kill()
            job.started.wait()


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which a Slurm of four nodes is there."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp") as folder:
        words = [
            str(CLUSTER),
            "start",
            "-w",
            f"{folder}/c",
            "-n",
            "4",
            "-c",
            "64",
            "-t",
            "120",
            "-x",
            "SlurmdTimeout=600",
            "-x",
            "MessageTimeout=100",
        ]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        made = subprocess.run(words, capture_output=True, text=True, env=environ, check=False)
        if made.returncode:
            sys.exit(made.stderr)
        for name, value in re.findall(r"export (\w+)=(.*)", made.stdout):
            environ[name] = value.replace("$PATH", environ["PATH"])
        try:
            yield environ
        finally:
            subprocess.run([str(CLUSTER), "stop", "-w", f"{folder}/c"], capture_output=True, check=False)


def write(found: dict[int, str], *, ours: bool) -> None:
    """Put what was measured into the page: torchrun's column, or how long ours took."""
    lines = PAGE.read_text().splitlines()
    for at, line in enumerate(lines):
        cells = line.split(" | ")
        number = cells[0].removeprefix("| ")
        if number.isdigit() and (text := found.get(int(number))) and not text.startswith("not measured"):
            if not ours:
                cells[-2] = text
            elif seconds := re.search(r"after (\d+ s)", text):
                cells[3] = seconds[1]
            lines[at] = " | ".join(cells)
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of docs/faults.md; all that can be measured without")
    parser.add_argument(
        "--ours", action="store_true", help="parlaunch, where the fault is not one of torchrun's options"
    )
    parser.add_argument("--write", action="store_true", help="into docs/faults.md")
    parser.add_argument("--at-once", type=int, default=5)
    given = parser.parse_args()
    chosen = [f for f in FAULTS if not given.rows or f.row in given.rows]
    chosen = [
        f
        for f in chosen
        if not given.ours or (f.seconds and f.act is not _both_started and not (f.torchrun or f.before))
    ]
    found: dict[int, str] = {}
    with (
        cluster() as environ,
        tempfile.TemporaryDirectory(prefix="faults-jobs-") as folder,
        ThreadPoolExecutor(given.at_once) as pool,
    ):

        def one(fault: Fault) -> None:
            found[fault.row] = measured(fault, Path(folder, f"row-{fault.row}"), environ, ours=given.ours)
            print(f"{fault.row:3}  {found[fault.row]}", flush=True)

        list(pool.map(one, chosen))
    if given.write:
        write(found, ours=given.ours)


if __name__ == "__main__":
    main()

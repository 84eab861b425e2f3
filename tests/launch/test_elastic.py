"""What the exit code of a training is made of."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parlaunch_launch import addresses, elastic
from parlaunch_launch.ends import Failure, code_of, first
from tests.conftest import HANGS_S, need


@pytest.mark.parametrize(("status", "code"), [(42, 42), (1, 1), (-9, 137), (-11, 139), (0, 1)])
def test_codes_are_a_shells_and_a_failure_is_never_0(status: int, code: int) -> None:
    assert code_of(status) == code


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([Failure(1, 100.0, 0), Failure(42, 100.5, 3)], 3),  # in one second: the exception is the echo
        ([Failure(42, 110.0, 0), Failure(1, 100.0, 3)], 3),  # ten seconds later nothing is a cause
        ([Failure(134, 101.0, 0), Failure(1, 100.0, 1)], 1),  # NCCL's watchdog is an echo too
        ([Failure(137, 101.0, 0), Failure(143, 100.0, 1)], 0),
    ],
)
def test_the_first_cause_is_told_from_its_echoes(ends: list[Failure], rank: int) -> None:
    assert first(ends).rank == rank
    assert first(ends[::-1]).rank == rank


V2 = {
    "proc/self/cgroup": "0::/job_7/step_0\n",
    "proc/vmstat": "oom_kill 3\n",
    "sys/fs/cgroup/job_7/memory.events": "oom 5\noom_kill 5\n",
    "sys/fs/cgroup/job_7/step_0/memory.events": "low 0\noom 0\noom_kill 0\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/slurm/job_7\n0::/\n",
    "proc/vmstat": "oom_kill 3\n",
    "sys/fs/cgroup/memory/slurm/job_7/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill 9\n",
}
IN_CONTAINER = {
    "proc/self/cgroup": "4:memory:/docker/4f2a\n",
    "proc/vmstat": "oom_kill 3\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill 0\n",
}
IN_NAMESPACE = {
    "proc/self/cgroup": "0::/\n",
    "proc/vmstat": "oom_kill 3\n",
    "sys/fs/cgroup/memory.events": "oom 0\noom_kill 0\n",
}
BARE = {"proc/self/cgroup": "0::/\n", "proc/vmstat": "oom_kill 3\n"}
OLD_KERNEL = {"proc/self/cgroup": "0::/\n", "proc/vmstat": "nr_free_pages 3\n"}
NODE = {"proc/vmstat": "oom_kill 4\n"}  # somebody was killed somewhere on this machine
LEAF = {"sys/fs/cgroup/job_7/step_0/memory.events": "oom 0\noom_kill 1\n"}
ABOVE = {"sys/fs/cgroup/job_7/memory.events": "oom 6\noom_kill 6\n"}
LEAF_V1 = {"sys/fs/cgroup/memory/slurm/job_7/memory.oom_control": "oom_kill 1\n"}


def _written(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("there", "then", "said"),
    [
        (V2, {}, "and not by the kernel"),
        (V2, NODE, "and not by the kernel"),  # another job's or container's
        (V2, NODE | LEAF, "killed by the kernel: this node ran out of memory"),
        (V2, NODE | LEAF | ABOVE, "killed by the kernel: this job's memory limit ran out of memory"),
        (V1, NODE, "and not by the kernel"),
        (V1, NODE | LEAF_V1, "killed by the kernel: this job's memory limit, or this node, ran out of memory"),
        (IN_CONTAINER, NODE, "and not by the kernel"),
        (IN_CONTAINER, {"sys/fs/cgroup/memory/memory.oom_control": "oom_kill 1\n"}, "limit, or this node, ran out"),
        (IN_NAMESPACE, NODE, "and not by the kernel"),
        (IN_NAMESPACE, {"sys/fs/cgroup/memory.events": "oom 0\noom_kill 1\n"}, "limit, or this node, ran out"),
        (IN_NAMESPACE, {"sys/fs/cgroup/memory.events": "oom 1\noom_kill 1\n"}, "limit ran out"),
        (BARE, {}, "and not by the kernel"),
        (BARE, NODE, "or by somebody who sent it (it has killed on this node meanwhile"),
        (OLD_KERNEL, {}, "or by somebody who sent it (the kernel's counts are not to be read here)"),
        ({}, {}, "or by somebody who sent it (the kernel's counts are not to be read here)"),
    ],
)  # fmt: skip
def test_the_kernels_memory_killer_is_told_apart_by_this_cgroups_own_count(
    tmp_path: Path, there: dict[str, str], then: dict[str, str], said: str
) -> None:
    _written(tmp_path, there)
    before = elastic.oom_kills(tmp_path)
    _written(tmp_path, then)
    assert said in elastic._killed(-signal.SIGKILL, before, tmp_path)
    assert elastic._killed(-signal.SIGSEGV, before, tmp_path) == ""


def test_the_command_that_is_printed_runs_through_ours() -> None:
    printed = ["/venv/python", "-m", "torch.distributed.run", "--standalone", "train.py"]
    assert elastic.command(printed) == [
        "/venv/python", "-P", "-m", "parlaunch_launch.elastic", "--", "--standalone", "train.py",
    ]  # fmt: skip
    assert elastic.command(["sh", "-c", "true"]) == ["sh", "-c", "true"]


UNEVEN = """
import os, sys, time
from pathlib import Path
here, rank = Path(sys.argv[1]), os.environ["RANK"]
(here / f"up-{rank}").write_text(str(os.getpid()))
while not (here / f"go-{rank}").exists(): time.sleep(0.05)
"""


@pytest.mark.training
def test_sigterm_to_a_node_whose_ranks_have_ended_is_no_failure_of_it(tmp_path: Path) -> None:
    """The launcher ends the job: the first node's ranks have saved and are gone before its torchrun hears of it."""
    need(importlib.util.find_spec("torch"), "torch")
    script = tmp_path / "rank.py"
    script.write_text(UNEVEN)
    # Bound and not listening: nobody is given the port, and who asks for it by name gets it (SO_REUSEADDR).
    with addresses._bind(0, "127.0.0.1") as held:
        _uneven(tmp_path, script, held.getsockname()[1])


def _uneven(tmp_path: Path, script: Path, port: int) -> None:
    words = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "parlaunch_launch.elastic", "--", *words, f"--node-rank={n}", script, tmp_path],
            env=env,
        )
        for n in (0, 1)
    ]  # fmt: skip
    try:
        end = time.monotonic() + HANGS_S
        while not all((tmp_path / f"up-{n}").exists() for n in (0, 1)):
            assert time.monotonic() < end
            time.sleep(0.1)
        (tmp_path / "go-0").touch()
        while elastic.children(agents[0].pid):
            assert time.monotonic() < end
            time.sleep(0.02)
        agents[0].terminate()
        time.sleep(0.5)
        (tmp_path / "go-1").touch()
        assert [agent.wait(HANGS_S) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_sigterm_before_there_are_ranks_ends_torchrun_as_any_process() -> None:
    script = "import os, signal; from parlaunch_launch import elastic\n"
    script += "elastic._patient([]); os.kill(os.getpid(), signal.SIGTERM)"
    need(importlib.util.find_spec("torch"), "torch")
    done = subprocess.run([sys.executable, "-c", script], timeout=HANGS_S, check=False)
    assert done.returncode == -signal.SIGTERM

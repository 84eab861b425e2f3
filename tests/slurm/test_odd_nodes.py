"""Nodes that nobody expects on a real Slurm: another clock, another parlaunch."""

from __future__ import annotations

import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster, lines_with

pytestmark = pytest.mark.slurm

TWO = ("-N2", "-w", "gpu[01-02]", "--ntasks-per-node=1")

# Every Python of the node reads it: parlaunch, its supervisor, torchrun and the rank.
CLOCK = """\
import time
seconds, nanoseconds = time.time, time.time_ns
time.time = lambda: seconds() + {ahead}
time.time_ns = lambda: nanoseconds() + {ahead} * 10**9
"""


def second_node(cluster: Cluster, own: list[str], folder: Path) -> list[str]:
    """A command that is `own` on every node, and sees the modules in `folder` first on the second one."""
    words = shlex.join(own)
    return ["bash", "-c", f"[ $SLURM_NODEID = 1 ] && export PYTHONPATH={shlex.quote(str(folder))}; exec {words}"]


@pytest.mark.parametrize("ahead", [600, -600])
def test_a_clock_that_is_off_on_one_node_changes_neither_the_job_nor_which_rank_failed_first(
    cluster: Cluster, ahead: int
) -> None:
    """Nothing that waits reads the wall clock. The second node fails first, the first one some seconds later, on its own."""
    own = cluster.parlaunch()
    folder = cluster.place / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK.format(ahead=ahead))
    done = cluster.srun(*TWO, argv=second_node(cluster, own, folder), WORKER="follow:42")
    assert [bool(w["ahead"]) for w in done.workers] == [False, ahead > 0]
    assert done.code == 42, done.text


def test_a_second_parlaunch_on_one_node_is_named_once(cluster: Cluster) -> None:
    own = cluster.parlaunch()
    folder = cluster.place / "other"
    for name in ("parlaunch", "parlaunch_probes", "parlaunch_launch"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        shutil.copytree(next(iter(spec.submodule_search_locations)), folder / name)
    (folder / "parlaunch/version.py").write_text('__version__ = "9.9.9"\n')
    done = cluster.srun(*TWO, argv=second_node(cluster, own, folder))
    assert done.code == 2, done.text
    assert len(lines_with(done.text, "gpu02 runs parlaunch 9.9.9, gpu01 runs ")) == 1, done.text
    assert done.workers == []

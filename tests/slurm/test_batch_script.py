"""`--format sbatch`: a real sbatch takes the script as it is, and the job inside it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch.hardware.cpu import with_cpu_ranks
from parlaunch.hardware.datasheet import preset
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.planning.planner import plan
from parlaunch.show.formats import Page
from parlaunch.show.sbatch import render
from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture
def two_nodes() -> Plan:
    """Two nodes without GPUs, as this Slurm has them."""
    from parlaunch.model.tiny import shrink

    machine = with_cpu_ranks(preset("dgx-h100", 2), 1)
    return plan(machine, shrink(recipe("llama32_1b_pretrain_config"), machine.world_size, keep={}), Wishes(top=0))


def test_a_real_sbatch_takes_the_script_of_a_gpu_plan(cluster: Cluster) -> None:
    cluster.parlaunch()
    made = plan(preset("dgx-h100", 2), recipe("llama32_1b_pretrain_config"), Wishes(top=0))
    script = render(made, Page(command=("true",), options=("--comment=two words", "--time=00:01:00")))
    assert "--gpus-per-node=8" in script
    file = Path(cluster.place, "script.sh")
    file.write_text(script)
    done = cluster.finish(cluster.start(["sbatch", "--test-only", str(file)]))
    assert done.code == 0, done.text
    assert "to start at" in done.text


def test_the_script_brings_the_job_to_its_end(cluster: Cluster, two_nodes: Plan) -> None:
    command = cluster.parlaunch()
    script = render(two_nodes, Page(command=tuple(command), options=(f"--output={cluster.place}/out.txt",)))
    file = Path(cluster.place, "script.sh")
    file.write_text(script)
    job = cluster.call("sbatch", "--parsable", str(file)).strip()
    done = cluster.wait(job)
    assert done.code == 0, done.text
    assert [int(worker["rank"]) for worker in done.workers] == [0, 1]

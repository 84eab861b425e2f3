"""Two hosts without Slurm and without IPv4, whose names have dots and capitals, and 1 MiB of shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parlaunch_launch.become import installed
from tests.cluster.two_hosts import NAMES, inside, two_hosts
from tests.conftest import need
from tests.slurm.conftest import PATIENCE_S

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("master", [NAMES[0], "fd77::1"], ids=["name", "address"])
def test_two_hosts_reached_by_ipv6_alone_train(tmp_path: Path, master: str) -> None:
    need(
        os.geteuid() == 0 and all(map(shutil.which, ("ip", "unshare", "nsenter"))), "root and iproute2, for namespaces"
    )
    need(installed("torch") and installed("megatron.core"), "torch and megatron-core")
    own = [sys.executable, "-P", "-m", "parlaunch", "--recipe", "llama32_1b_pretrain_config", "--device", "cpu"]
    own += ["--nproc-per-node", "1", "--nnodes", "2", "--explain", "--master-addr", master, "train.train_iters=2"]
    env = {**os.environ, "PARLAUNCH_SECRET": os.urandom(16).hex(), "OMP_NUM_THREADS": "1"}
    with two_hosts(tmp_path) as hosts, (tmp_path / "log").open("w+") as log:
        nodes = [
            subprocess.Popen(
                inside(host, *own, "--node-rank", str(rank)),
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
            )
            for rank, host in enumerate(hosts)
        ]
        try:
            codes = [node.wait(PATIENCE_S) for node in nodes]
        finally:
            for node in nodes:
                node.kill()
        log.seek(0)
        said = log.read()
    assert codes == [0, 0], said
    assert "2 of 2 nodes agreed on one plan" in said
    assert len(re.findall(r"lm loss: ", said)) == 2, said
    assert f"host: {NAMES[0]}" in said

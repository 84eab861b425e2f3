"""torchrun's argv, word by word, and understood by torchrun's own parser."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from parlaunch.environment import torchrun
from tests.conftest import HANGS_S, need

RUNNER = ["-m", "trainer", "--recipe", "r", "model.x=1"]


def command(**given: Any) -> list[str]:
    names = {f.name for f in fields(torchrun.Rendezvous)}
    met = torchrun.Rendezvous(**{k: v for k, v in given.items() if k in names})
    words = {k: v for k, v in given.items() if k not in names}
    return torchrun.command(RUNNER, **{"python": "py", "nnodes": 1, "nproc_per_node": 8, "rendezvous": met, **words})


def test_one_node_meets_on_a_free_port_of_the_loopback_address() -> None:
    assert command() == [
        *("py", "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=8"),
        *RUNNER,
    ]


def test_several_nodes_meet_at_the_master() -> None:
    argv = command(nnodes=4, node_rank=2, master_addr="gpu01", master_port=23456)
    assert argv[3:-5] == [
        *("--nnodes=4", "--nproc-per-node=8", "--node-rank", "2"),
        *("--master-addr", "gpu01", "--master-port", "23456"),
    ]


def test_what_depends_on_the_node_stays_a_variable_of_its_shell() -> None:
    argv = command(nnodes=2)
    assert [word for word in argv if word.startswith("$")] == [
        "${NODE_RANK}",
        "${MASTER_ADDR}",
        "${MASTER_PORT:-29500}",
    ]


def test_a_named_rendezvous_numbers_the_nodes_itself() -> None:
    argv = command(nnodes=2, rdzv_backend="c10d", rdzv_endpoint="gpu01:29400", rdzv_id="77", node_rank=1)
    assert argv[3:-5] == [
        *("--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=gpu01:29400", "--rdzv-id=77"),
    ]


def test_the_static_rendezvous_at_an_endpoint_wants_the_node_s_rank_and_no_master() -> None:
    argv = command(nnodes=2, rdzv_endpoint="gpu01:29400", node_rank=1)
    assert argv[3:-5] == ["--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=gpu01:29400", "--node-rank", "1"]


def test_options_of_torchrun_stand_before_the_runner() -> None:
    argv = command(max_restarts=1, numa_binding="node", extra=("--log-dir", "logs"))
    assert argv[6:-5] == ["--max-restarts=1", "--numa-binding=node", "--log-dir", "logs"]


@pytest.mark.training
def test_torchrun_s_own_parser_takes_every_form() -> None:
    need(importlib.util.find_spec("torch"), "torch")
    forms: list[dict[str, Any]] = [
        {},
        {"nnodes": 2, "node_rank": 0, "master_addr": "127.0.0.1", "master_port": 29511, "max_restarts": 0},
        {"nnodes": 2, "rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:29400", "rdzv_id": "1"},
        {"master_port": 29512},
        {"numa_binding": "node"},
    ]
    program = (
        "import json, sys; from torch.distributed.run import get_args_parser\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    args = get_args_parser().parse_args(argv)\n"
        "    print(args.module, args.training_script, args.training_script_args, args.nproc_per_node)"
    )
    given = json.dumps([command(**form)[3:] for form in forms])
    argv = [sys.executable, "-c", program, given]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.stdout == len(forms) * "True trainer ['--recipe', 'r', 'model.x=1'] 8\n", done.stderr[-2000:]

"""The first iterations verified inside a Slurm step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from parlaunch_launch.become import installed
from tests.conftest import need
from tests.slurm.conftest import APART, NODES, RECIPE, Cluster, Done

pytestmark = pytest.mark.slurm

TWO = ("-N2", "--ntasks-per-node=1")


def test_one_node_of_a_job_is_verified_and_remembered(cluster: Cluster) -> None:
    need(installed("torch") and installed("megatron.core"), "torch and megatron-core")
    words = cluster.parlaunch("--iterations", "3", "--tp", "1", "--format", "json", script=False)
    words.insert(words.index("parlaunch") + 1, "verify")
    done = cluster.srun("-N1", "-n1", argv=words, XDG_STATE_HOME=state(cluster))
    assert done.code == 0, done.text
    assert said(done)["schema"] == "parlaunch.verify/1"
    (run,) = said(done)["runs"]
    ok = {check["name"]: check["ok"] for check in run["checks"]}
    assert ok["finished"]
    assert ok["finite loss"]
    assert ok["layout"]
    assert run["iteration_time_s"] > 0
    history = Path(state(cluster), "parlaunch", "history.jsonl")
    (row,) = (json.loads(line) for line in history.read_text().splitlines())
    assert row["status"] == "ok"
    cluster.nothing_left()


def test_two_nodes_are_verified_through_the_supervisor(cluster: Cluster) -> None:
    need(installed("torch") and installed("megatron.core"), "torch and megatron-core")
    words = cluster.parlaunch("--iterations", "3", "--tp", "1", "--pp", "2", "--format", "json", script=False)
    words.insert(words.index("parlaunch") + 1, "verify")
    done = cluster.srun(*TWO, argv=words, XDG_STATE_HOME=state(cluster))
    assert done.code == 0, done.text
    (run,) = said(done)["runs"]
    assert (run["status"], run["layout_in_log"]["world"], run["layout_in_log"]["pp"]) == ("ok", 2, 2)
    history = Path(state(cluster), "parlaunch", "history.jsonl")
    (row,) = (json.loads(line) for line in history.read_text().splitlines())
    assert (row["status"], len(row["nodes"]), row["pp"]) == ("ok", 2, 2)
    cluster.nothing_left()


def verifying(cluster: Cluster, *words: str) -> list[str]:
    """`parlaunch verify` of a script that logs as a training does, three iterations a plan."""
    own = cluster.parlaunch("--iterations", "3", *words)
    own.insert(own.index("parlaunch") + 1, "verify")
    return own


def said(done: Done) -> dict[str, Any]:
    """The JSON that the first node printed."""
    found: dict[str, Any] = json.loads(done.out)
    return found


def table(cluster: Cluster) -> list[dict[str, Any]]:
    """The runs of the table that is kept beside the logs."""
    (kept,) = (cluster.place / "state" / "parlaunch" / "verify").glob("*/verify.json")
    runs: list[dict[str, Any]] = json.loads(kept.read_text())["runs"]
    return runs


def state(cluster: Cluster) -> str:
    return str(cluster.place / "state")


def test_two_nodes_measure_the_best_plans_and_keep_the_fastest(cluster: Cluster) -> None:
    words = verifying(cluster, "--top", "2", "--format", "json")
    done = cluster.srun(*TWO, argv=words, WORKER="train", XDG_STATE_HOME=state(cluster))
    assert done.code == 0, done.text
    runs = said(done)["runs"]
    assert [run["status"] for run in runs] == ["ok", "ok"]
    assert len({run["layout"] for run in runs}) == 2
    assert said(done)["winner"] == 1  # each training is faster than the one before
    assert [run["layout"] for run in table(cluster)] == [run["layout"] for run in runs]
    kept = json.loads((cluster.place / "verified-plan.json").read_text())
    assert {k: v for k, v in kept["layout"].items() if k in ("tp", "pp", "dp")} == {
        k: v for k, v in runs[1]["sizes"].items() if k in ("tp", "pp", "dp")
    }
    assert "train.train_iters=3" not in kept["overrides"]  # as a user launches it
    cluster.nothing_left()


def test_out_of_memory_on_one_node_is_everybodys_and_the_next_plan_is_tried(cluster: Cluster) -> None:
    """The last node, whose log has the iterations, sees nothing of it."""
    words = verifying(cluster, "--retries", "1", "--format", "json")
    done = cluster.srun(*TWO, argv=words, WORKER="train:oom", XDG_STATE_HOME=state(cluster))
    assert done.code == 0, done.text
    first, second = said(done)["runs"]
    assert (first["status"], second["status"]) == ("oom", "ok")
    assert "a GPU ran out of memory" in first["sentences"][0]
    assert first["failed_rank"]["rank"] == 0
    assert "Tried to allocate 3.00 GiB" in Path(first["rank_log"]).read_text()
    assert first["layout"] != second["layout"]
    assert [run["status"] for run in table(cluster)] == ["oom", "ok"]
    cluster.nothing_left()


def test_a_switch_that_fails_on_one_node_is_dropped_on_all(cluster: Cluster) -> None:
    for node in NODES:
        cluster.gpus(node, machine="dgx_h100", count=4)
    own = cluster.parlaunch("--iterations", "3", "--ep", "4", "--retries", "1", "--format", "json", device="cuda")
    own[own.index(RECIPE)] = "olmoe_7b_pretrain_config"
    own += ["--software", "bridge-0.6"]  # that HybridEP is there, which is the lie
    own.insert(own.index("parlaunch") + 1, "verify")
    done = cluster.srun(*TWO, argv=own, WORKER="train:switch", XDG_STATE_HOME=state(cluster))
    assert done.code == 0, done.text
    first, second = said(done)["runs"]
    assert (first["status"], second["status"]) == ("switch", "ok"), done.text
    assert "--switches dispatcher=alltoall goes without it" in first["sentences"][0]
    for rank in range(8):
        heard = [" ".join(w["argv"]) for w in done.workers if w["rank"] == rank]
        assert len(heard) == 2
        assert sum("moe_flex_dispatcher_backend=hybridep" in words for words in heard) == 1
        assert sum("moe_token_dispatcher_type=alltoall" in words for words in heard) == 1
    cluster.nothing_left()


def test_without_retries_the_first_failure_on_any_node_is_the_answer(cluster: Cluster) -> None:
    done = cluster.srun(*TWO, argv=verifying(cluster), WORKER="train:oom", XDG_STATE_HOME=state(cluster))
    assert done.code == 1, done.text
    assert "a GPU ran out of memory" in done.text
    assert [run["status"] for run in table(cluster)] == ["oom"]
    cluster.nothing_left()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_dies_in_the_middle_ends_all_and_the_table_is_kept(cluster: Cluster, victim: int) -> None:
    words = verifying(cluster, "--top", "2")
    started = cluster.start(["srun", *TWO, APART, *words], WORKER="train:stays", XDG_STATE_HOME=state(cluster))
    cluster.until(lambda: len(list(cluster.place.glob("ready-*"))) == 2)
    nodes = sorted({node for node in NODES if cluster.processes("-m parlaunch verify", node)})
    cluster.kill(cluster.processes(node=nodes[victim]))
    done = cluster.finish(started)
    assert done.code == 137, done.text  # srun's, of the node that was killed
    runs = table(cluster)
    if victim:
        assert [run["status"] for run in runs] == ["ok", "gone"]
        assert f"node {nodes[victim]} went away while plan 2 was measured" in done.text, done.text
    else:
        assert [run["status"] for run in runs] == ["ok"]
        assert f"the first node, {nodes[0]}, went away" in done.text, done.text
        assert "what was measured until then is in" in done.text, done.text
    cluster.nothing_left()


def test_told_to_end_between_and_in_the_runs_every_node_leaves_and_the_table_is_kept(cluster: Cluster) -> None:
    words = verifying(cluster, "--top", "2")
    started = cluster.start(["srun", *TWO, *words], WORKER="train:stays", XDG_STATE_HOME=state(cluster))
    cluster.until(lambda: len(list(cluster.place.glob("ready-*"))) == 2)
    # The first node first: it would take the end of another, which was told before it, for one that went away.
    for pid in [pid for node in NODES for pid in cluster.processes("-m parlaunch verify", node)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    done = cluster.finish(started)
    assert done.code == 143, done.text
    assert [run["status"] for run in table(cluster)] == ["ok", "interrupted"]
    cluster.nothing_left()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_second_interrupt_ends_ranks_that_hear_nothing_at_once(cluster: Cluster, nodes: int) -> None:
    """Twice Ctrl-C: the supervisors, their torchruns and the ranks are gone, though no rank heeds a signal."""
    words = cluster.parlaunch("--iterations", "3")
    words.insert(words.index("parlaunch") + 1, "verify")
    started = cluster.start(
        ["srun", f"-N{nodes}", "--ntasks-per-node=1", *words], WORKER="deaf", XDG_STATE_HOME=state(cluster)
    )
    cluster.until(lambda: len(list(cluster.place.glob("ready-*"))) == nodes)
    own = [pid for pid in cluster.processes("parlaunch verify")]
    assert len(own) == nodes
    for _ in range(2):
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.5)
    done = cluster.finish(started)
    assert done.code == 130, done.text
    cluster.nothing_left()


def test_a_first_node_that_is_sick_is_spared_and_judges_all_the_same(cluster: Cluster) -> None:
    cluster.gpus("gpu01", extra="set 0 remap=1,2,0,1")  # a row remap that failed
    own = cluster.parlaunch("--iterations", "3", "--spares", "1", "--top", "2", "--format", "json", device="cuda")
    own.insert(own.index("parlaunch") + 1, "verify")
    done = cluster.srun(
        "-N3", "--ntasks-per-node=1", "-w", "gpu[01-03]", argv=own, WORKER="train", XDG_STATE_HOME=state(cluster)
    )
    assert done.code == 0, done.text
    assert [run["status"] for run in said(done)["runs"]] == ["ok", "ok"]
    assert {worker["host"] for worker in done.workers} == {"gpu02", "gpu03"}
    cluster.nothing_left()


def test_a_layout_of_the_user_s_that_does_not_fit_runs_nowhere(cluster: Cluster) -> None:
    """On one node it never did."""
    sizes = ("--tp", "1", "--pp", "1", "--cp", "1", "--micro-batch-size", "8", "--recompute", "none")
    for verb in ("verify", "launch"):
        own = cluster.parlaunch(*sizes, device="cuda")
        if verb == "verify":
            own.insert(own.index("parlaunch") + 1, verb)
        done = cluster.srun(*TWO, argv=own, WORKER="train", XDG_STATE_HOME=state(cluster))
        assert done.code == 3, done.text
        assert done.text.count("the layout that you fixed needs") == 1
        assert done.workers == []
        cluster.nothing_left()

"""Nodes that agree, and every way in which they cannot: all of them hear the same, and none waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses, first_node, meeting, wire
from parlaunch_launch.agreement import agree
from parlaunch_launch.door import Event
from parlaunch_launch.party import Agreement
from parlaunch_launch.secret import Keys, Secret
from tests.conftest import HANGS_S

# Ports follow from the job's number. Two workers of one run never share any, and two runs hardly.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
JOBS = count(1000 * 1439 + WORKER % 2 * 700 + os.getpid() % 500)

SECRET = Secret(value=b"known to this job alone", source="a test")


@dataclass
class Gathering:
    """Nodes as threads of this process. What differs between them is given by their number."""

    nodes: int
    job: str = field(default_factory=lambda: str(next(JOBS)))
    results: dict[int, Agreement | BaseException] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def situation(self, number: int, **changes: Any) -> Situation:
        made = Situation(
            kind="slurm-step", why="a test", hostname=f"n{number}", node_rank=number, nnodes=self.nodes,
            nodelist=tuple(f"n{k}" for k in range(self.nodes)), master="127.0.0.1", job_id=self.job,
        )  # fmt: skip
        return replace(made, **changes)

    def meet(
        self,
        plan: Callable[[list[dict[str, Any]]], Any] = lambda everyone: b"the plan",
        *,
        absent: tuple[int, ...] = (),
        mine: Callable[[int], Mapping[str, Any]] = lambda number: {},
        change: Callable[[int], Mapping[str, Any]] = lambda number: {},
        refuses: Callable[[int], ParlaunchError | None] = lambda number: None,
        secret: Callable[[int], Secret] = lambda number: SECRET,
        timeout_s: float = HANGS_S,
        **options: Any,
    ) -> dict[int, Any]:
        """Every node's Agreement, or what it raised."""

        def node(number: int) -> None:
            probe: dict[str, Any] = {
                "version": "1",
                "command": ["--recipe", "r"],
                "hardware": {"nodes": [{"hostname": f"n{number}"}]},
            }
            try:
                self.results[number] = agree(
                    self.situation(number, **change(number)), refuses(number) or {**probe, **mine(number)}, plan,
                    secret=secret(number), timeout_s=timeout_s, say=self.said.append, **options,
                )  # fmt: skip
            except BaseException as error:
                self.results[number] = error

        threads = [threading.Thread(target=node, args=(n,)) for n in range(self.nodes) if n not in absent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * HANGS_S)
            assert not thread.is_alive(), "a node hangs"
        return self.results


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All these nodes meet on a loopback address, and on a busy machine not soon."""
    monkeypatch.setattr(meeting, "LOOPBACK_PATIENCE_S", HANGS_S)
    monkeypatch.setattr(first_node, "LOOPBACK_PATIENCE_S", HANGS_S)


@pytest.fixture
def nodes() -> Iterator[Callable[[int], Gathering]]:
    made: list[Gathering] = []

    def gather(number: int) -> Gathering:
        made.append(Gathering(number))
        return made[-1]

    yield gather
    for gathering in made:
        for result in gathering.results.values():
            if isinstance(result, Agreement) and result.watch_socket is not None:
                result.watch_socket.close()


Nodes = Callable[[int], Gathering]


def all_say(results: Mapping[int, Any], kind: type[ParlaunchError], words: str) -> str:
    """Every node raised the one kind with the one text, which has the words in it."""
    assert {type(r) for r in results.values()} == {kind}, results
    [text] = {str(r) for r in results.values()}
    assert words in text
    return text


def test_every_node_gets_the_same_bytes_and_a_rank_by_the_plans_order(nodes: Nodes) -> None:
    order = ["n2", "n0", "n3", "n1"]
    results = nodes(4).meet(lambda everyone: json.dumps({"rank_order": order}).encode())
    assert {r.plan_bytes for r in results.values()} == {json.dumps({"rank_order": order}).encode()}
    assert [results[n].node_rank for n in range(4)] == [1, 3, 0, 2]
    assert {r.order for r in results.values()} == {tuple(order)}
    assert len({(r.master, r.port) for r in results.values()}) == 1


def test_the_planner_sees_every_probe_in_the_launchers_order(nodes: Nodes) -> None:
    seen: list[dict[str, Any]] = []

    def plan(everyone: list[dict[str, Any]]) -> bytes:
        seen.extend(everyone)
        return b"{}"

    nodes(3).meet(plan, mine=lambda n: {"gpus": 8 - n})
    assert [(m["gpus"], m["agreement"]["hostname"], m["agreement"]["seat"]) for m in seen] == [
        (8, "n0", 0), (7, "n1", 1), (6, "n2", 2),
    ]  # fmt: skip
    assert {m["agreement"]["address"] for m in seen} == {"127.0.0.1"}


def test_one_clear_report_is_given_by_the_first_node_alone(nodes: Nodes) -> None:
    gathering = nodes(3)
    gathering.meet(lambda everyone: b'{"rank_order": ["n1", "n0", "n2"]}')
    [report] = gathering.said
    assert report.startswith("parlaunch: 3 of 3 nodes agreed on one plan in ")
    assert report.endswith("node ranks are ours: n1, n0, n2")


def test_training_gets_a_free_port_of_the_job_on_the_new_node_0(nodes: Nodes) -> None:
    gathering = nodes(2)
    wanted = addresses.ports(gathering.situation(0)).training
    with socket.create_server(("0.0.0.0", wanted[0])):
        results = gathering.meet()
    assert {r.port for r in results.values()} == {wanted[1]}


def test_a_taken_port_gets_a_second_try(nodes: Nodes) -> None:
    gathering = nodes(3)
    with socket.create_server(("0.0.0.0", addresses.ports(gathering.situation(0)).meeting[0])):
        results = gathering.meet()
    assert all(isinstance(r, Agreement) for r in results.values()), results


def test_another_jobs_meeting_on_our_port_is_not_joined(nodes: Nodes) -> None:
    gathering = nodes(2)
    first = addresses.ports(gathering.situation(0)).meeting[0]
    other = gathering.situation(0, job_id=None, master="127.0.0.1", port=first - 1)
    stranger = meeting.open_meeting(other, Keys(SECRET, other), timeout_s=HANGS_S)
    assert stranger.door is not None
    door, stop = stranger.door, threading.Event()
    came: list[Event] = []

    def turn() -> None:
        while not stop.is_set():
            came.extend(door.turn(0.05))

    turning = threading.Thread(target=turn)
    turning.start()
    results = gathering.meet()
    stop.set()
    turning.join()
    assert all(isinstance(r, Agreement) for r in results.values()), results
    assert came == []
    stranger.close()


def test_a_node_that_does_not_come_is_named_by_all_others(nodes: Nodes) -> None:
    results = nodes(4).meet(absent=(2,), timeout_s=6)
    all_say(results, ParlaunchError, "node n2 did not answer in 6 s; 3 of 4 did")


def test_many_that_do_not_come_are_counted(nodes: Nodes) -> None:
    results = nodes(12).meet(absent=tuple(range(2, 12)), timeout_s=6)
    all_say(results, ParlaunchError, "nodes n2, n3, n4, n5, n6 and 5 more did not answer in 6 s; 2 of 12 did")


def test_a_first_node_that_does_not_come_is_named_with_what_was_tried(nodes: Nodes) -> None:
    def elsewhere(number: int) -> dict[str, Any]:
        # 127/8 aside, the one address that every host has and nobody listens on for this job is its own.
        return {"master": socket.gethostbyname(socket.gethostname())}

    gathering = nodes(2)
    master = elsewhere(1)["master"]
    results = gathering.meet(absent=(0,), timeout_s=2, change=elsewhere)
    first, last = addresses.ports(gathering.situation(1, master=master)).meeting[::4]
    if addresses.loopback(master):
        all_say(results, UsageError, "resolves to a loopback address")
    else:
        all_say(
            results, ParlaunchError, f"the first node did not answer in 2 s: {master} ({master}), ports {first}-{last}"
        )


def test_a_name_that_does_not_resolve_is_said_so(nodes: Nodes) -> None:
    results = nodes(2).meet(absent=(0,), timeout_s=1, change=lambda n: {"master": "gpu01.invalid"})
    all_say(results, ParlaunchError, "the name of the first node, gpu01.invalid, does not resolve on n1")


def test_with_spares_a_node_may_be_missing(nodes: Nodes) -> None:
    gathering = nodes(4)
    results = gathering.meet(absent=(2,), timeout_s=6, spares=1)
    assert {n: r.node_rank for n, r in results.items()} == {0: 0, 1: 1, 3: 2}
    assert "did not come, and are spared: n2" in gathering.said[0]


def test_a_node_that_the_plan_leaves_out_is_a_spare(nodes: Nodes) -> None:
    gathering = nodes(3)
    results = gathering.meet(lambda everyone: b'{"rank_order": ["n0", "n2"]}', spares=1)
    assert {n: r.node_rank for n, r in results.items()} == {0: 0, 1: None, 2: 1}
    assert "spares, not used: n1" in gathering.said[0]
    assert results[1].watch_socket is None


def test_the_first_node_itself_may_be_the_one_that_the_plan_leaves_out(nodes: Nodes) -> None:
    """It holds the meeting and makes the plan, and the others train without it."""
    gathering = nodes(3)
    results = gathering.meet(lambda everyone: b'{"rank_order": ["n1", "n2"]}')
    assert {n: r.node_rank for n, r in results.items()} == {0: None, 1: 0, 2: 1}
    assert results[0].watch_socket is None
    assert len({(r.master, r.port) for r in results.values()}) == 1


def test_a_node_that_came_and_went_away_is_named(nodes: Nodes) -> None:
    gathering = nodes(3)

    def die(number: int) -> None:
        here = gathering.situation(number)
        joined = meeting.open_meeting(here, Keys(SECRET, here), timeout_s=HANGS_S)
        assert joined.channel is not None
        brought = {"here": "127.0.0.1", "there": "127.0.0.1", "watch": 1}
        joined.channel.send(wire.packed(wire.brings(here, {}) | brought))
        time.sleep(0.5)
        joined.close()

    dying = threading.Thread(target=die, args=(1,))
    dying.start()
    results = gathering.meet(absent=(1, 2))
    dying.join()
    all_say(results, ParlaunchError, "node n1 came and then went away")


def test_who_does_not_know_the_secret_is_neither_told_nor_counted(nodes: Nodes) -> None:
    gathering = nodes(3)
    other = Secret(value=b"the secret of some other job", source="a test")
    results = gathering.meet(timeout_s=8, secret=lambda n: other if n == 2 else SECRET)
    refused = results.pop(2)
    assert "a parlaunch answered for the first node and is not of this job as far as it can prove" in str(refused)
    assert "hint: give every node the same PARLAUNCH_SECRET" in str(refused)
    all_say(results, ParlaunchError, "node n2 did not answer in 8 s; 2 of 3 did")


def test_without_a_secret_the_report_says_who_may_join(nodes: Nodes) -> None:
    gathering = nodes(2)
    gathering.meet(secret=lambda n: Secret(value=None, source="nothing"))
    assert "no secret: any process that reaches this job's ports may join it" in gathering.said[0]


@pytest.mark.parametrize("refusing", [(0,), (1,), (0, 1, 2)], ids=["the first", "another", "all"])
def test_what_a_node_refuses_before_the_meeting_all_refuse(nodes: Nodes, refusing: tuple[int, ...]) -> None:
    refusal = UsageError("no recipe 'x'", hint="nearest: y")
    results = nodes(3).meet(refuses=lambda n: refusal if n in refusing else None)
    who = "" if len(refusing) == 3 else f"n{refusing[0]}: "
    all_say(results, UsageError, f"{who}no recipe 'x'\n  hint: nearest: y")
    assert [results[n].told for n in range(3)] == [False, True, True]


def test_hundreds_of_strangers_at_the_door_change_nothing(nodes: Nodes) -> None:
    gathering = nodes(4)
    port = addresses.ports(gathering.situation(0)).meeting[0]
    stop = threading.Event()

    def bother(number: int) -> None:
        said = (b"", b"\n", b"GET / HTTP/1.0\r\n\r\n", b"x" * 5000, b"\0" * 98, os.urandom(98))[number % 6]
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as made:
                made.sendall(said)
                if number % 2:
                    made.settimeout(0.2)
                    made.recv(100)

    strangers = [threading.Thread(target=bother, args=(n,)) for n in range(12)]
    for thread in strangers:
        thread.start()
    results = gathering.meet()
    stop.set()
    for thread in strangers:
        thread.join()
    assert sorted(r.node_rank for r in results.values()) == [0, 1, 2, 3]


def test_a_first_node_that_is_killed_while_planning_stops_the_others(nodes: Nodes) -> None:
    gathering = nodes(3)
    script = (
        "import os, sys\n"
        "from parlaunch.where.situation import Situation\n"
        "from parlaunch_launch.agreement import agree\n"
        "here = Situation(kind='slurm-step', why='', hostname='n0', node_rank=0, nnodes=3, master='127.0.0.1', job_id=sys.argv[1])\n"
        "from parlaunch_launch.secret import Secret\n"
        "agree(here, {'version': '1', 'command': ['--recipe', 'r']}, lambda everyone: os._exit(9),\n"
        "      secret=Secret(value=b'known to this job alone', source=''))\n"
    )
    first = subprocess.Popen([sys.executable, "-c", script, gathering.job])
    results = gathering.meet(absent=(0,))
    assert first.wait(HANGS_S) == 9
    all_say(results, ParlaunchError, "the first node, 127.0.0.1, went away during the agreement")


@pytest.mark.parametrize(
    ("mine", "change", "words"),
    [
        (lambda n: {"version": "2" if n == 2 else "1"}, lambda n: {}, "n2 runs parlaunch 2, n0, n1 runs 1"),
        (
            lambda n: {"command": ["--recipe", "b" if n == 1 else "a"]},
            lambda n: {},
            "the command lines differ: n1 has b where n0, n2 has a",
        ),
        (
            lambda n: {},
            lambda n: {"nnodes": 4, "nodelist": ()} if n == 1 else {},
            "n1 was told of 4 nodes, n0, n2 of 3",
        ),
        (lambda n: {}, lambda n: {"node_rank": 1} if n == 2 else {}, "two nodes have rank 1: "),
        (
            lambda n: {"hardware": {"nodes": [{"hostname": "n", "gpus": [{"uuid": f"GPU-{n // 2}"}]}]}},
            lambda n: {},
            "two launchers hold one GPU (GPU-0): n0 and n1",
        ),
    ],
    ids=["versions", "recipes", "node counts", "one rank twice", "one machine's GPUs twice"],
)
def test_nodes_that_differ_are_named_and_all_stop_with_the_same_words(
    nodes: Nodes, mine: Callable[[int], Any], change: Callable[[int], Any], words: str
) -> None:
    text = all_say(nodes(3).meet(mine=mine, change=change), UsageError, words)
    assert "hint: " in text


def test_options_that_rightly_differ_between_nodes_are_no_difference(nodes: Nodes) -> None:
    commands = [["--node-rank", "0", "--x"], ["--node-rank=1", "--master-addr", "a", "--x"]]
    results = nodes(2).meet(mine=lambda n: {"command": commands[n]})
    assert all(isinstance(r, Agreement) for r in results.values()), results


def test_what_the_planner_refuses_all_refuse(nodes: Nodes) -> None:
    def refuse(everyone: list[dict[str, Any]]) -> bytes:
        raise NoLayoutError("no layout of 3 GPUs fits", hint="use more")

    all_say(nodes(3).meet(refuse), NoLayoutError, "no layout of 3 GPUs fits\n  hint: use more")


def test_a_planner_that_breaks_keeps_its_traceback_on_the_first_node_and_stops_the_others(nodes: Nodes) -> None:
    def break_down(everyone: list[dict[str, Any]]) -> bytes:
        raise KeyError("tp")

    results = nodes(3).meet(break_down)
    assert isinstance(results.pop(0), KeyError)
    all_say(results, ParlaunchError, "planning failed on the first node, n0: KeyError: 'tp'")


def test_a_plan_that_does_not_suit_one_node_stops_all_with_its_name(nodes: Nodes) -> None:
    def check(data: bytes, rank: int) -> str | None:
        return "it wants 8 GPUs and 7 are here" if rank == 1 else None

    results = nodes(3).meet(check=check)
    all_say(results, ParlaunchError, "the plan does not suit node n1: it wants 8 GPUs and 7 are here")


def test_a_plan_of_any_length_arrives_whole(nodes: Nodes) -> None:
    plan = os.urandom(3_000_001)
    assert {r.plan_bytes for r in nodes(2).meet(lambda everyone: plan).values()} == {plan}


@pytest.mark.parametrize("absent", [(0,), (1, 2)], ids=["each meets itself", "node 0 waits alone"])
def test_a_master_address_that_leads_nowhere_is_named(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, absent: tuple[int, ...]
) -> None:
    monkeypatch.setattr(meeting, "LOOPBACK_PATIENCE_S", 1.0)
    monkeypatch.setattr(first_node, "LOOPBACK_PATIENCE_S", 1.0)
    results = nodes(3).meet(absent=absent, change=lambda n: {"kind": "torchrun", "master": "localhost"})
    all_say(
        results, UsageError, "localhost resolves to a loopback address, so each of the 3 nodes would meet only itself"
    )


def test_a_rendezvous_numbers_nodes_that_have_no_rank(nodes: Nodes) -> None:
    results = nodes(3).meet(change=lambda n: {"kind": "torchrun", "node_rank": None, "nodelist": ()})
    assert sorted(r.node_rank for r in results.values()) == [0, 1, 2]


def test_a_list_and_a_count_that_contradict_each_other_are_refused(nodes: Nodes) -> None:
    results = nodes(2).meet(change=lambda n: {"nodelist": ("a", "b", "c")})
    all_say(results, UsageError, "the node list names 3 nodes and the launcher counts 2")


def test_hundreds_of_nodes_agree() -> None:
    """`scripts/bench/agreement.py 1024` says how long a thousand take, which is no test's affair on a machine with other work."""
    script = os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "bench", "agreement.py")
    command = [sys.executable, script, "--limit", str(HANGS_S), "256"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * HANGS_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nodes_of_which_none_is_named_are_told_what_to_give() -> None:
    error = meeting.loopback_error(Situation(kind="count", why="--nnodes", hostname="n0", nnodes=2))
    assert "None" not in error.problem
    assert "--master-addr" in error.hint

#!/usr/bin/env python3
"""How long N nodes take to agree, all on this machine, each with connections of its own over loopback.

    scripts/bench/agreement.py            growth curve, 16 to 1,024 nodes
    scripts/bench/agreement.py 1024       one point; exit 1 when it takes 10 s or more (--limit SECONDS)

Every node brings the probe of a DGX H100 (JSON), the first one answers with a plan of that size, all check it. The nodes
are threads of a few processes: a thousand processes would be a test of memory. Each proves to know the job's secret. What real nodes do side by side,
this machine does on its few cores, so the figures are an upper bound.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from typing import Any

# One machine resolves a thousand names; a name server that is slow to refuse would be all that is measured.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

from parlaunch.hardware.cluster import cluster_to_json
from parlaunch.hardware.datasheet import preset
from parlaunch.where.situation import Situation
from parlaunch_launch import meeting
from parlaunch_launch.agreement import agree
from parlaunch_launch.secret import Secret

SIZES = (16, 64, 256, 512, 1024)
A_PROCESS = 64  # nodes; with many more, threads wait for Python's lock and not for each other's messages

PATIENCE_S = 600.0
"""How long nodes wait for each other: what is too slow is for `--limit` to say."""

SECRET = Secret(value=b"proved by every node of the benchmark", source="the benchmark")
PROBE = cluster_to_json(preset("dgx-h100", 1))


def mine(number: int) -> dict[str, Any]:
    [node] = PROBE["nodes"]
    return {"version": "1", "command": ["--recipe", "x"], "hardware": {"nodes": [node | {"hostname": f"n{number}"}]}}


def plan(everyone: list[dict[str, Any]]) -> bytes:
    order = [f"n{number}" for number in reversed(range(len(everyone)))]
    return json.dumps({"rank_order": order, "plan": PROBE}).encode()


def node(number: int, nodes: int, job: str) -> str:
    """One node's part: its rank and the digest of its plan, or what went wrong."""
    situation = Situation(
        kind="torchrun", why="a benchmark", hostname=f"n{number}", node_rank=number, nnodes=nodes, master="127.0.0.1",
        job_id=job,
    )  # fmt: skip
    try:
        made = agree(
            situation, mine(number), plan, secret=SECRET, timeout_s=PATIENCE_S, check=lambda data, rank: None, say=lambda line: None
        )  # fmt: skip
    except BaseException as error:
        return f"failed: {error}"
    if made.watch_socket is not None:
        made.watch_socket.close()
    return f"{made.node_rank} {hashlib.sha256(made.plan_bytes).hexdigest()}"


def several(numbers: range, nodes: int, job: str) -> list[str]:
    """A process's nodes, one thread each."""
    results: list[str] = []
    threads = [threading.Thread(target=lambda n=n: results.append(node(n, nodes, job))) for n in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def measure(nodes: int) -> float:
    """Seconds until the last node has its plan."""
    job = str(os.getpid() * 7 + nodes)
    parts = [range(at, min(nodes, at + A_PROCESS)) for at in range(0, nodes, A_PROCESS)]
    with multiprocessing.get_context("fork").Pool(len(parts)) as pool:
        began = time.monotonic()
        told = [line for part in pool.starmap(several, [(p, nodes, job) for p in parts], chunksize=1) for line in part]
        seconds = time.monotonic() - began
    wrong = [line for line in told if line.startswith("failed")]
    if wrong or len(told) != nodes:
        raise SystemExit(f"{len(wrong)} of {nodes} nodes failed; {wrong[0] if wrong else 'some said nothing'}")
    assert sorted(int(line.split()[0]) for line in told) == list(range(nodes))
    assert len({line.split()[1] for line in told}) == 1
    return seconds


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # five descriptors a node
    meeting.LOOPBACK_PATIENCE_S = PATIENCE_S  # on one address, since on one machine, and not by mistake
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, help="numbers of nodes")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that are too many")
    given = parser.parse_args()
    print(f"each brings {len(json.dumps(mine(0))) / 1024:.0f} KiB of JSON")
    print(f"{'nodes':>6} {'seconds':>8} {'ms a node':>10}   load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    slow = False
    for nodes in given.sizes or SIZES:
        seconds = measure(nodes)
        slow |= seconds >= given.limit
        print(f"{nodes:6} {seconds:8.2f} {1000 * seconds / nodes:10.2f}", flush=True)
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()

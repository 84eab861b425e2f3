#!/usr/bin/env python3
"""A thousand bad clients at both doors of a job on two nodes, while it meets and while it trains: it ends with code 0.

    scripts/fuzz/strangers.py              1,000 clients, two nodes of one CPU rank, real Megatron Core training
    scripts/fuzz/strangers.py 100 --quick  a worker that sleeps in training's place (no torch training)

Both nodes are this machine, over loopback alone. The doors are that of the meeting (node 0, before the plan) and that of the
watch (node 0, until all supervisors are in). The clients connect and close, send nothing, garbage, HTTP, TLS, frames of a
later protocol, right greetings with wrong proofs, replays of a proof, and gigabytes announced; some hold the connection.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

RECIPE = "llama32_1b_pretrain_config"
SLEEPER = "import os, time; time.sleep(6); print('rank', os.environ['RANK'], 'done')\n"


def shout(number: int, address: tuple[str, int], rng: random.Random) -> str:
    """One bad client. What it was."""
    kinds = ("scan", "silent", "garbage", "http", "tls", "long", "frame", "proof", "replay", "slow")
    kind = kinds[number % len(kinds)]
    with socket.create_connection(address, timeout=2) as made:
        made.settimeout(1.0)
        if kind == "silent":
            time.sleep(rng.random())
        elif kind == "garbage":
            made.sendall(rng.randbytes(rng.randrange(1, 400)))
        elif kind == "http":
            made.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        elif kind == "tls":
            made.sendall(bytes.fromhex("16030100c5010000c10303") + rng.randbytes(180))
        elif kind == "long":
            made.sendall(b"a" * 1_000_000)
        elif kind == "frame":
            made.sendall(b"\xff\xff\xff\xff" + rng.randbytes(16) + b'{"ended": 9}')
        elif kind in ("proof", "replay"):
            nonce = made.recv(4096).split()[1]
            mine = nonce if kind == "replay" else rng.randbytes(16).hex().encode()
            made.sendall(mine + b" " + rng.randbytes(32).hex().encode() + b"\n")
            made.sendall(b"\0\0\0\x0c" + rng.randbytes(16) + b'{"ended": 9}')
            made.recv(100)
        elif kind == "slow":
            for _ in range(5):
                made.sendall(b"x")
                time.sleep(0.2)
    return kind


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses that processes listen on, from /proc."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            host, port = words[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)))
    return found


def ours(folder: str) -> set[int]:
    """Live processes of parlaunch itself that belong to this run; torchrun's and training's are not asked."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if folder.encode() in b" ".join(words) and (
                    b"parlaunch" in words or b"parlaunch_launch.supervise" in words
                ):
                    found.add(int(entry))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="?", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a sleeping worker in training's place")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strangers-") as folder:
        worker = Path(folder, "worker.py")
        worker.write_text(SLEEPER)
        port = 20000 + os.getpid() % 9000
        argv = [sys.executable, "-P", "-m", "parlaunch", "--recipe", RECIPE, "--device", "cpu", "--nproc-per-node", "1"]
        argv += ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--rdzv-id", folder]
        argv += ["--script", str(worker)] if given.quick else []
        env = {**os.environ, "PARLAUNCH_SECRET": os.urandom(32).hex(), "OMP_NUM_THREADS": "1"}
        stop, told, started = threading.Event(), Counter[str](), time.monotonic()
        doors: list[tuple[str, int]] = []

        def look() -> None:
            while not stop.is_set():
                doors[:] = [address for address in listening(ours(folder)) if address[1] != port]
                time.sleep(0.03)

        def bother(first: int) -> None:
            rng, number = random.Random(given.seed + first), first
            while not stop.is_set():
                if not doors:
                    time.sleep(0.01)
                    continue
                with contextlib.suppress(OSError, IndexError):
                    address = rng.choice(doors)
                    told[f"{'meeting' if port < address[1] < port + 6 else 'watch'} {shout(number, address, rng)}"] += 1
                number += 1

        crowd = [threading.Thread(target=bother, args=(n,), daemon=True) for n in range(48)]
        crowd.append(threading.Thread(target=look, daemon=True))
        with tempfile.TemporaryFile("w+") as log:
            first = subprocess.Popen([*argv, "--node-rank", "0"], env=env, stdout=log, stderr=log, cwd=folder)
            for thread in crowd:
                thread.start()
            # The second node is late: the first door stays open for the crowd. (Not for long: nodes that meet on a loopback
            # address are refused after 20 s.)
            while sum(told.values()) < given.clients and time.monotonic() - started < 14 and first.poll() is None:
                time.sleep(0.1)
            nodes = [first, subprocess.Popen([*argv, "--node-rank", "1"], env=env, stdout=log, stderr=log, cwd=folder)]
            codes = [node.wait(300) for node in nodes]
            stop.set()
            for thread in crowd:
                thread.join(10)
            log.seek(0)
            text = log.read()
    by_door = Counter[str]()
    for name, count in told.items():
        by_door[name.split()[0]] += count
    losses = re.findall(r"lm loss: (\S+)", text)
    print(
        f"{sum(told.values())} clients: {dict(by_door)}; {len(told)} kinds; last loss {losses[-1] if losses else 'none'}"
    )
    print(f"exit codes {codes} after {time.monotonic() - started:.0f} s")
    if codes != [0, 0] or "Traceback" in text:
        sys.exit(text)
    if sum(told.values()) < given.clients:
        sys.exit(f"only {sum(told.values())} of {given.clients} clients came so far: this machine is busy")


if __name__ == "__main__":
    main()

"""Two hosts on this machine that are reached by IPv6 alone: namespaces of their own, a cable between them, names as some sites
give them, and a shared memory of 1 MiB. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = ("GPU-Node01.Rack-A.Example.ORG", "GPU-Node02.Rack-A.Example.ORG")
ADDRESSES = ("fd77::1", "fd77::2")

HOST = (
    'hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs -o size=1m,mode=1777 tmpfs /dev/shm && ip link set lo up '
    "&& touch $3 && exec sleep 3600"
)


def inside(host: int, *words: str) -> list[str]:
    """The command that runs `words` on a host, which is the process that holds it."""
    here = ["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", os.getcwd(), *words]
    return ["nsenter", "-t", str(host), "-u", "-m", "-n", "--", *here]


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[int, int]]:
    """The processes that hold the two hosts, for `inside`."""
    hosts = folder / "hosts"
    rows = [f"{a} {n} {n.split('.')[0]}" for a, n in zip(ADDRESSES, NAMES, strict=True)]
    hosts.write_text("\n".join(["::1 localhost", *rows, ""]))
    held: list[subprocess.Popen[bytes]] = []
    try:
        for name in NAMES:
            up = folder / f"{name}.up"
            words = [
                "unshare",
                "-u",
                "-m",
                "-n",
                "--propagation",
                "slave",
                "sh",
                "-c",
                HOST,
                "sh",
                name,
                str(hosts),
                str(up),
            ]
            held.append(subprocess.Popen(words))
            while not up.exists():
                if held[-1].poll() is not None:
                    raise OSError("no namespaces on this machine")
                time.sleep(0.02)
        first, second = (process.pid for process in held)
        cable = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(second)]
        subprocess.run(inside(first, *cable), check=True)
        for pid, address in zip((first, second), ADDRESSES, strict=True):
            # No wait for duplicate addresses: there are two.
            subprocess.run(inside(pid, "ip", "addr", "add", f"{address}/64", "dev", "eth0", "nodad"), check=True)
            subprocess.run(inside(pid, "ip", "link", "set", "eth0", "up"), check=True)
        yield first, second
    finally:
        for process in held:
            process.kill()
            process.wait()

"""The process we are: its host's name and the commands it descends from. Slurm's step daemon among them tells the truth
where inherited variables do not."""

from __future__ import annotations

import os
from collections.abc import Mapping

from parlaunch_probes.host import Host

DEPTH = 64  # no real chain is longer; a captured tree may have a loop


def hostname() -> str:
    """The name of this host."""
    return os.uname().nodename


def ancestors(host: Host | None = None, pid: int | None = None) -> tuple[str, ...]:
    """Command lines of our parents, nearest first: ("bash", "slurmstepd: [7.batch]", …). Stops where /proc does."""
    host, pid = host or Host(), os.getppid() if pid is None else pid
    found: list[str] = []
    while pid > 0 and len(found) < DEPTH:
        command = host.read(f"/proc/{pid}/cmdline")
        status = host.read(f"/proc/{pid}/status")
        if status is None:
            break
        fields = dict(line.partition(":")[::2] for line in status.splitlines())
        found.append((command or fields.get("Name", "")).replace("\0", " ").strip())
        parent = fields.get("PPid", "0").strip()
        pid = int(parent) if parent.isdigit() else 0
    return tuple(found)


HOST_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE", "COBALT_NODEFILE")
"""Variables by which PBS, LSF, Grid Engine and Cobalt name a file of the job's hosts: each line begins with one."""


def hosts(environ: Mapping[str, str], host: Host | None = None) -> tuple[str, ...]:
    """The hosts of this job, each once, as the file of its batch system lists them; empty where there is none to read."""
    files = ((host or Host()).read(environ[name]) for name in HOST_FILES if environ.get(name))
    return tuple(dict.fromkeys(line.split()[0] for text in files if text for line in text.splitlines() if line.strip()))

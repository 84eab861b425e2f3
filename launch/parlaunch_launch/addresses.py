"""Addresses that other nodes can reach, and ports that two jobs do not fight about.

A name is not an address: `/etc/hosts` of Debian maps a host's own name to 127.0.1.1, several hosts may each resolve one
name to themselves, and a node of a cluster has several interfaces of which one leads to the others. What counts is the
connection that was made: its two ends are addresses that work.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import zlib
from collections.abc import Iterable, Sequence

from parlaunch.errors import ParlaunchError
from parlaunch.frozen import dataclass
from parlaunch.where.situation import Situation

FIRST_PORT, LAST_PORT = 15000, 29390
"""Below Linux's ephemeral ports (32768-60999), below torchrun's own 29400 and 29500, above well-known services."""

PER_JOB = 10
"""Ports a job may use: the first half for the agreement, the second for training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports to try, in order; the same on every node."""

    meeting: tuple[int, ...]
    training: tuple[int, ...]


def ports(situation: Situation) -> Ports:
    """From the user's port, or from the job: jobs with neighbouring ids stand PER_JOB apart."""
    if situation.port is not None:
        step = 1 if situation.port < 65000 else -1
        # The user's port is training's. The agreement keeps off it: a closed port may linger.
        return Ports(
            meeting=tuple(situation.port + step * k for k in range(1, PER_JOB // 2 + 1)), training=(situation.port,)
        )
    job = situation.job_id or ""
    number = int(job) if job.isdigit() else zlib.crc32(f"{job}{situation.master}".encode())
    # A requeued job keeps its id, and its predecessor's connections may still linger on the same hosts.
    number = number + 7 * situation.restart_count + 13 * _step(situation)
    base = FIRST_PORT + PER_JOB * (number % ((LAST_PORT - FIRST_PORT) // PER_JOB))
    half = PER_JOB // 2
    return Ports(meeting=tuple(range(base, base + half)), training=tuple(range(base + half, base + PER_JOB)))


def _step(situation: Situation) -> int:
    text = situation.step_id or ""
    return int(text) if text.isdigit() and len(text) < 7 else 0


def bind(candidates: Sequence[int], hosts: Sequence[str] = ()) -> list[socket.socket]:
    """Sockets on these addresses of this host (none given: on all), on the first of the ports that is free there (0: any).
    They do not listen yet.

    Raises ParlaunchError when none is free.
    """
    for port in candidates:
        made: list[socket.socket] = []
        try:
            for host in hosts or (None,):
                made.append(_bind(port, host))
            return made
        except OSError as error:
            for left in made:
                left.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise no_port(candidates)


def no_port(candidates: Sequence[int], host: str | None = None) -> ParlaunchError:
    """The error for a host where every candidate is taken."""
    return ParlaunchError(
        f"no free port among {', '.join(map(str, candidates))} on {host or socket.gethostname()}",
        hint="give one with --master-port",
    )


def listen(host: str | None = None, backlog: int = 4096) -> socket.socket:
    """A socket that listens on a port that the kernel chose, on one address or on all."""
    [made] = bind((0,), (host,) if host is not None else ())
    made.listen(backlog)
    return made


def _bind(port: int, host: str | None = None) -> socket.socket:
    if host is not None:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return _bound(socket.socket(family, kind), address)
    try:
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:  # a kernel without IPv6
        return _bound(socket.socket(socket.AF_INET, socket.SOCK_STREAM), ("0.0.0.0", port))
    try:
        return _bound(made, ("::", port))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        # IPv6 is compiled in and switched off (net.ipv6.conf.all.disable_ipv6)
        return _bound(socket.socket(socket.AF_INET, socket.SOCK_STREAM), ("0.0.0.0", port))


def _bound(made: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        # Without it a port stays unusable for a minute after a job that ended; it does not share one that listens.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def free(candidates: Sequence[int]) -> int | None:
    """The first of the ports that nothing listens on here, or None."""
    for port in candidates:
        with contextlib.suppress(OSError), _bind(port):
            return port
    return None


def resolve(host: str) -> tuple[str, ...]:
    """The addresses of a name as this node sees it, those that lead away from it first, IPv4 before IPv6. Empty: none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return tuple(sorted(addresses, key=lambda a: (loopback(a), ":" in a)))


def loopback(address: str) -> bool:
    """Whether an address never leaves its host."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def plain(address: str) -> str:
    """An IPv4 address that a dual-stack socket shows as `::ffff:10.0.0.1`, without the prefix."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def local(address: str) -> bool:
    """Whether an address is one of this host's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def of_the_job(situation: Situation) -> tuple[str, ...]:
    """This host's addresses by which the others look for it; empty where that cannot be known here (Debian's /etc/hosts
    tells a host its own name as 127.0.1.1, and a service's address is no host's)."""
    found = [a for name in names_of(situation) for a in resolve(name)]
    literal = found == [situation.master]
    return tuple(dict.fromkeys(a for a in found if (literal or not loopback(a)) and local(a)))


def names_of(situation: Situation) -> tuple[str, ...]:
    """What the meeting node may be called, the likeliest first.

    A container may not know the cluster's short names; the domain of the submitting host is then worth a try, and so is
    the address where srun was called, when that was the first node. Whoever answers has to show the job's token.
    """
    master = situation.master or "127.0.0.1"
    names = [master]
    if "." not in master and "." in situation.hostname:
        names.append(f"{master}.{situation.hostname.partition('.')[2]}")
    if situation.launch_address is not None:
        names.append(situation.launch_address)
    return tuple(dict.fromkeys(names))


def commonest(addresses: Iterable[str]) -> str | None:
    """The address most of the others reached a node by."""
    votes: dict[str, int] = {}
    for address in addresses:
        votes[address] = votes.get(address, 0) + 1
    return max(votes, key=lambda a: (votes[a], not loopback(a)), default=None)

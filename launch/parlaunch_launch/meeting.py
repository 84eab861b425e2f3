"""Finding the meeting: a TCPStore on the first node, a door to it on the job's port, and every other node at that door."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.where import Situation
from parlaunch_launch import addresses

if TYPE_CHECKING:
    from torch.distributed import TCPStore

CHUNK = 4 * 2**20  # TCPStore refuses values over 8 MiB
BATCH = 64  # keys asked for at once
LOOPBACK_PATIENCE_S = 20.0
"""How long a meeting on a loopback address may take to come about. Nodes of one machine (a test) start within it; nodes of
several machines would each wait for itself."""


@dataclass(slots=True, kw_only=True)
class Meeting:
    """A seat at the store. `here` and `there` are the two ends of the connection that worked."""

    store: TCPStore
    seat: int | None
    door: Door | None = None  # on the node that hosts the meeting
    here: str | None = None
    there: str | None = None

    @property
    def host(self) -> bool:
        return self.door is not None

    def close(self) -> None:
        if self.door is not None:
            self.door.close()

    def put(self, key: str, value: bytes) -> None:
        """Store bytes of any length. The key itself appears last: as a count of parts when there are several."""
        if len(value) <= CHUNK:
            self.store.set(key, b"=" + value)
            return
        parts = [value[at : at + CHUNK] for at in range(0, len(value), CHUNK)]
        for number, part in enumerate(parts):
            self.store.set(f"{key}/{number}", part)
        self.store.set(key, str(len(parts)))

    def take(self, key: str) -> bytes:
        """What `put` stored under a key that is there."""
        return self._whole(key, self.store.get(key))

    def take_all(self, keys: Sequence[str]) -> list[bytes]:
        """What `put` stored under keys that are all there, many at a time."""
        return [self._whole(key, first) for key, first in zip(keys, self.numbers(keys), strict=True)]

    def numbers(self, keys: Sequence[str]) -> list[bytes]:
        """The plain values of keys that are all there."""
        found: list[bytes] = []
        for at in range(0, len(keys), BATCH):
            found += self.store.multi_get(list(keys[at : at + BATCH]))
        return found

    def _whole(self, key: str, first: bytes) -> bytes:
        if first.startswith(b"="):
            return first[1:]
        return b"".join(self.store.get(f"{key}/{number}") for number in range(int(first)))

    def has(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def wait(self, key: str, *, seconds: float) -> bool:
        """Whether the key is there, or came within so many seconds."""
        try:
            self.store.wait([key], timedelta(seconds=seconds))
        except RuntimeError as error:
            # torch's DistStoreError is the time-out; a broken connection is a DistNetworkError.
            if type(error).__name__ != "DistStoreError":
                raise
            return False
        return True

    def count(self, key: str, more: int = 0) -> int:
        return int(self.store.add(key, more))


CALM = {
    # torch writes C++ backtraces to stderr for every connection that is refused; we say what matters ourselves.
    "TORCH_CPP_LOG_LEVEL": "FATAL",
    # torch looks up the name behind every connection, for its log. Where no name server answers that takes 10 s.
    "RES_OPTIONS": "timeout:1 attempts:1",
}
"""Variables that libraries read when they are loaded, or when a thread first resolves a name."""

_calm_lock = threading.Lock()
_calm_depth: dict[str, int] = {}


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """CALM, for as long as the meeting takes to be found. What the user set stays, and training sees none of it."""
    with _calm_lock:
        names = [name for name in CALM if name not in os.environ or name in _calm_depth]
        for name in names:
            _calm_depth[name] = _calm_depth.get(name, 0) + 1
            os.environ[name] = CALM[name]
    try:
        yield
    finally:
        with _calm_lock:
            for name in names:
                _calm_depth[name] -= 1
                if not _calm_depth[name]:
                    del _calm_depth[name], os.environ[name]


def _torch() -> Any:
    try:
        import torch.distributed as distributed
    except ImportError as error:
        raise ParlaunchError(
            "torch is not installed here, and nodes meet at its TCPStore",
            hint="install parlaunch into the environment you train in",
        ) from error
    return distributed


def open_meeting(situation: Situation, *, timeout_s: float) -> Meeting:
    """The meeting of this job's nodes: hosted here when this is the first node, else joined.

    Raises ParlaunchError when the meeting cannot be found in time, saying where it was looked for.
    """
    with calm():
        return _opened(situation, _torch(), timeout_s)


def _opened(situation: Situation, distributed: Any, timeout_s: float) -> Meeting:
    ports = addresses.ports(situation).meeting
    _room_for((situation.nnodes or 1) + 256)
    if not _ours_to_host(situation, distributed, ports):
        return _join(situation, distributed, ports, timeout_s)
    here = "127.0.0.1" if addresses.local("127.0.0.1") else "::1"
    store = distributed.TCPStore(here, 0, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    words = {"parlaunch": situation.token, "port": store.port}
    if situation.node_rank is not None:
        return Meeting(store=store, door=Door(ports, words), seat=situation.node_rank)
    # Two nodes of one host may both have found nobody: the one with the first port is the host.
    try:
        door = Door(ports, words, elsewhere=lambda: _knock(situation, distributed, ports, patience=3.0) is not None)
    except Elsewhere:
        return _join(situation, distributed, ports, timeout_s)
    return Meeting(store=store, door=door, seat=store.add("seats", 1) - 1)


def _room_for(connections: int) -> None:
    """Slurm hands down the submitting shell's limit of open files, often 1024: too few for a thousand nodes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(connections, hard), hard))


class Elsewhere(Exception):
    """The meeting is open at another port already."""


class Door(threading.Thread):
    """Tells whoever knocks on the job's port which job meets here, and where its store is.

    The store itself takes a port that the kernel chose: a client of TCPStore that reaches somebody else's service on a
    port of ours would wait for its answer without end.
    """

    def __init__(
        self, ports: Sequence[int], words: Mapping[str, object], *, elsewhere: Callable[[], bool] | None = None
    ) -> None:
        """Open at the first free port. Where it is not the first of all, `elsewhere` may say, before anybody can come in,
        that the meeting is open already; then this raises `Elsewhere`."""
        super().__init__(daemon=True, name="parlaunch-door")
        self.words = json.dumps(words).encode() + b"\n"
        left = list(ports)
        while True:
            self.socket = addresses.bind(left)
            port = self.socket.getsockname()[1]
            del left[: left.index(port) + 1]
            if port != ports[0] and elsewhere is not None and elsewhere():
                self.socket.close()
                raise Elsewhere
            try:
                self.socket.listen(4096)
                break
            except OSError:  # somebody bound the port in the same moment, and listened first
                self.socket.close()
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self.socket.accept()
                with guest, contextlib.suppress(OSError):
                    guest.sendall(self.words)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.join(1)


def _ours_to_host(situation: Situation, distributed: Any, ports: tuple[int, ...]) -> bool:
    """Whether the others look for the meeting here: Slurm says which node is first; elsewhere the address decides when
    two nodes may believe the same of themselves."""
    if situation.kind == "slurm-step":
        return situation.node_rank == 0
    found = [a for name in addresses.names_of(situation) for a in addresses.resolve(name)]
    mine = any(addresses.local(a) for a in found)
    if situation.node_rank is None:  # a rendezvous that numbers the nodes: its endpoint is on one of them
        return mine and _knock(situation, distributed, ports, patience=0.5) is None
    if situation.node_rank != 0:
        return False
    if mine:
        return True
    # Node 0 by its number, but not the node that the others were told of: a service's address (Kubernetes), or a
    # second node 0. The true one answers at once if it is there already.
    return _knock(situation, distributed, ports, patience=3.0) is None


def _join(situation: Situation, distributed: Any, ports: tuple[int, ...], timeout_s: float) -> Meeting:
    found = _knock(situation, distributed, ports, patience=timeout_s)
    if found is None:
        raise _not_found(situation, ports, timeout_s)
    if found.seat is None:
        found.seat = found.count("seats", 1) - 1
    return found


def _knock(situation: Situation, distributed: Any, ports: tuple[int, ...], *, patience: float) -> Meeting | None:
    """Try every address and port until one shows our token, or patience ends."""
    end = time.monotonic() + patience
    names = addresses.names_of(situation)
    pause = 0.05
    while True:
        every = list(dict.fromkeys(a for name in names for a in addresses.resolve(name)))
        away = [a for a in every if not addresses.loopback(a)]
        if every and not away and (situation.nnodes or 1) > 1:
            end = min(end, time.monotonic() + LOOPBACK_PATIENCE_S) if pause == 0.05 else end
        for address in every:
            for port in ports:
                if (found := _try(situation, distributed, address, port)) is not None:
                    return found
                if time.monotonic() > end:
                    return None
        if time.monotonic() + pause > end:
            return None
        time.sleep(pause)
        pause = min(1.0, pause * 1.6)


def _try(situation: Situation, distributed: Any, address: str, port: int) -> Meeting | None:
    try:
        with socket.create_connection((address, port), timeout=2.0) as knock:
            here, there = (addresses.plain(end[0]) for end in (knock.getsockname(), knock.getpeername()))
            said = json.loads(knock.makefile("rb").readline(4096))
        if said["parlaunch"] != situation.token:
            return None
        store = distributed.TCPStore(
            address, int(said["port"]), None, False, timedelta(seconds=8), wait_for_workers=False
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None  # nobody, or somebody else's service
    except RuntimeError:
        return None  # torch's DistError: the meeting ended in this moment
    return Meeting(store=store, seat=situation.node_rank, here=here, there=there)


def _not_found(situation: Situation, ports: tuple[int, ...], timeout_s: float) -> ParlaunchError:
    names = addresses.names_of(situation)
    found = [a for name in names for a in addresses.resolve(name)]
    if not found:
        return ParlaunchError(
            f"the name of the first node, {names[0]}, does not resolve on {situation.hostname}",
            hint="give an address that every node can reach: --master-addr 10.0.0.1",
        )
    if all(addresses.loopback(a) for a in found):
        return loopback_error(situation)
    where = f"{names[0]} ({', '.join(found)}), ports {ports[0]}-{ports[-1]}"
    return ParlaunchError(
        f"the first node did not answer in {timeout_s:.0f} s: {where}",
        hint="is parlaunch running there, and may these ports pass between the nodes?",
    )


def loopback_error(situation: Situation) -> UsageError:
    """The same words on every node, so without this node's name."""
    return UsageError(
        f"{situation.master} resolves to a loopback address, so each of the {situation.nnodes} nodes would meet only itself",
        hint="give an address that every node can reach: --master-addr 10.0.0.1, or mend /etc/hosts",
    )

"""Finding the meeting: a door on the first node, at one of the job's ports, and every other node before it."""

from __future__ import annotations

import contextlib
import functools
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.where.schedulers import place_of
from parlaunch.where.situation import Situation
from parlaunch_launch import addresses
from parlaunch_launch.awake import Awake
from parlaunch_launch.channel import KNOCK_S, Channel, OtherVersion, Refused, knock
from parlaunch_launch.door import Door
from parlaunch_launch.secret import Keys

LOOPBACK_PATIENCE_S = 20.0
"""How long a meeting on a loopback address may take to come about. Nodes of one machine (a test) start within it; nodes of
several machines would each wait for itself."""


@dataclass(slots=True, kw_only=True)
class Meeting:
    """Where this node stands: at the door of the meeting, or in front of it with a connection that is proved."""

    door: Door | None = None
    channel: Channel | None = None
    widen: Callable[[], None] = lambda: None
    """Listen on all addresses: those by which the others should have come did not bring all of them."""

    def close(self) -> None:
        if self.door is not None:
            self.door.close()
        if self.channel is not None:
            self.channel.close()


def open_meeting(situation: Situation, keys: Keys, *, timeout_s: float) -> Meeting:
    """The meeting of this job's nodes: hosted here when this is the first node, else joined.

    Raises ParlaunchError when the meeting cannot be found in time, saying where it was looked for.
    """
    ports = addresses.ports(situation).meeting
    _room_for((situation.nnodes or 1) + 256)
    if not _ours_to_host(situation, keys, ports):
        return _join(situation, keys, ports, timeout_s)
    elsewhere = None
    if situation.node_rank is None:
        # Two nodes of one host may both have found nobody: the one with the first port is the host, once it answers.
        elsewhere = functools.partial(_there, situation, keys, ports, patience=10.0)
    try:
        listeners = _listen(ports, addresses.of_the_job(situation), elsewhere)
    except Elsewhere:
        return _join(situation, keys, ports, timeout_s)
    keys.host()
    door = Door(listeners, keys.of("meeting"), expected=situation.nnodes or 1, sealed=keys.sealed)
    return Meeting(door=door, widen=lambda: _widen(door))


def _room_for(connections: int) -> None:
    """Slurm hands down the submitting shell's limit of open files, often 1024: too few for a thousand nodes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < connections:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(connections, hard), hard))


class Elsewhere(Exception):
    """The meeting is open at another port already."""


def _listen(
    ports: tuple[int, ...], hosts: tuple[str, ...], elsewhere: Callable[[], bool] | None = None
) -> list[socket.socket]:
    """Listen at the first free port. Where it is not the first of all, `elsewhere` may say, before anybody can come in, that
    the meeting is open already; then this raises `Elsewhere`."""
    left = list(ports)
    while True:
        made = addresses.bind(left, hosts)
        port = made[0].getsockname()[1]
        del left[: left.index(port) + 1]
        try:
            if port != ports[0] and elsewhere is not None and elsewhere():
                raise Elsewhere
            for listener in made:
                listener.listen(4096)
            return made
        except OSError:  # somebody bound the port in the same moment, and listened first
            _close(made)
        except BaseException:
            _close(made)
            raise


def _close(sockets: list[socket.socket]) -> None:
    for made in sockets:
        made.close()


def _widen(door: Door) -> None:
    port = door.listeners[0].getsockname()[1] if door.listeners else 0
    if port:
        door.shut()
        with contextlib.suppress(OSError, ParlaunchError):
            door.listen(_listen((port,), ()))


def _ours_to_host(situation: Situation, keys: Keys, ports: tuple[int, ...]) -> bool:
    """Whether the others look for the meeting here: Slurm says which node is first; elsewhere the address decides when
    two nodes may believe the same of themselves."""
    if place_of(situation).first_by_list:
        return situation.node_rank == 0
    found = [a for name in addresses.names_of(situation) for a in addresses.resolve(name)]
    mine = any(addresses.local(a) for a in found)
    if situation.node_rank is None:  # a rendezvous that numbers the nodes: its endpoint is on one of them
        return mine and not _there(situation, keys, ports, patience=0.5)
    if situation.node_rank != 0:
        return False
    if mine:
        return True
    # Node 0 by its number, but not the node that the others were told of: a service's address (Kubernetes), or a
    # second node 0. The true one answers at once if it is there already.
    return not _there(situation, keys, ports, patience=3.0)


def _there(situation: Situation, keys: Keys, ports: tuple[int, ...], *, patience: float) -> bool:
    """Whether the meeting is open already."""
    found = _knock(situation, keys, ports, patience=patience)
    if found is not None:
        found.close()
    return found is not None


def _join(situation: Situation, keys: Keys, ports: tuple[int, ...], timeout_s: float) -> Meeting:
    strangers: dict[str, Refused] = {}
    found = _knock(situation, keys, ports, patience=timeout_s, strangers=strangers)
    if found is None:
        raise _not_found(situation, ports, timeout_s, strangers)
    return Meeting(channel=found)


def _knock(
    situation: Situation,
    keys: Keys,
    ports: tuple[int, ...],
    *,
    patience: float,
    strangers: dict[str, Refused] | None = None,
) -> Channel | None:
    """Try every address and port until one proves to be the meeting, or patience ends."""
    awake = Awake()
    end, pause, answer = patience, 0.05, 1.0
    names = addresses.names_of(situation)
    while True:
        every = list(dict.fromkeys(a for name in names for a in addresses.resolve(name)))
        away = [a for a in every if not addresses.loopback(a)]
        if every and not away and (situation.nnodes or 1) > 1:
            end = min(end, awake() + LOOPBACK_PATIENCE_S) if pause == 0.05 else end
        for address in every:
            for port in ports:
                try:
                    return knock(address, port, keys.open, seconds=answer)
                except Refused as error:
                    if strangers is not None:
                        strangers[f"{address} port {port}: {error}"] = error
                except OSError:
                    pass  # nobody, or somebody else's service
                if awake() > end:
                    return None
        if awake() + pause > end:
            return None
        time.sleep(pause)
        # Somebody else's service may take a connection and say nothing; a first node that is busy answers late.
        pause, answer = min(1.0, pause * 1.6), min(KNOCK_S, answer + 0.5)


def _not_found(
    situation: Situation, ports: tuple[int, ...], timeout_s: float, strangers: dict[str, Refused]
) -> ParlaunchError:
    names = addresses.names_of(situation)
    found = [a for name in names for a in addresses.resolve(name)]
    if not found:
        return ParlaunchError(
            f"the name of the first node, {names[0]}, does not resolve on {situation.hostname}",
            hint="give an address that every node can reach: --master-addr 10.0.0.1",
        )
    if strangers:
        said = min(strangers)
        if isinstance(strangers[said], OtherVersion):
            return ParlaunchError(
                f"another version of parlaunch answered for the first node ({said})",
                hint="install one version of parlaunch everywhere",
            )
        return ParlaunchError(
            f"a parlaunch answered for the first node and is not of this job as far as it can prove ({said})",
            hint="give every node the same PARLAUNCH_SECRET, made before the tasks start",
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
    if situation.master is None:
        return UsageError(
            f"{situation.nnodes} nodes are to meet, and nothing says where",
            hint="give every node --master-addr with the first one's name, and --node-rank with its own number",
        )
    return UsageError(
        f"{situation.master} resolves to a loopback address, so each of the {situation.nnodes} nodes would meet only itself",
        hint="give an address that every node can reach: --master-addr 10.0.0.1, or mend /etc/hosts",
    )

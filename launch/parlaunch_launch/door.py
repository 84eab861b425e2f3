"""A listening door that strangers cannot open, wear out or hold: it lets in who proves to know the secret, and hears them.

One thread turns it. A connection that proves nothing costs a socket and a hundred bytes, for HANDSHAKE_S seconds at most; when
too many of them wait, one of them goes by lot, so that a flood cannot choose whom it drives out. Who belongs here tries again.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import random
import selectors
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parlaunch_launch.awake import Awake
from parlaunch_launch.channel import BANNER, HANDSHAKE_S, REPLY, Channel, nonce, proof, session

STRANGERS = 64
"""Connections that may wait to prove themselves, beside one of each node that is still to come."""

A_TURN = 32
"""Connections taken in one turn: those who came before have time to answer, and those who are in to be heard."""


@dataclass(slots=True, eq=False)
class Guest:
    """Somebody who has proved nothing yet."""

    sock: socket.socket
    nonce: bytes
    since: float
    said: bytes = b""


@dataclass(frozen=True, slots=True)
class Event:
    """Somebody came in (`said` and `gone` are None), said something, or is gone. Signs of life are events with `b""`."""

    channel: Channel
    said: bytes | None = None
    gone: str | None = None


class Door:
    """`expected` nodes may come; `sealed` gives the secret, wrapped so that only this user's processes can open it."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        made_with: bytes,
        *,
        expected: int,
        sealed: bytes | None = None,
    ) -> None:
        self.made_with, self.sealed = made_with, sealed
        self.most_waiting = expected + STRANGERS
        self.channels: dict[int, Channel] = {}
        self._guests: dict[int, Guest] = {}
        self._awake, self._deaf_until = Awake(), 0.0
        self._selector = selectors.DefaultSelector()
        self.listeners: list[socket.socket] = []
        self.listen(listeners)

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Take in who comes to these sockets, which listen."""
        for listener in listeners:
            listener.setblocking(False)
            self.listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ)

    @property
    def open(self) -> bool:
        return bool(self.listeners)

    def turn(self, wait_s: float) -> list[Event]:
        """Wait for something to happen, at most so long, and say what did."""
        now = self._awake()
        if self._deaf_until and now > self._deaf_until:
            self._deaf_until = 0.0
            self._listen(True)
        events: list[Event] = []
        for chosen, mask in self._selector.select(wait_s):
            fd = chosen.fd
            if fd in self.channels:
                channel = self.channels[fd]
                if mask & selectors.EVENT_WRITE:
                    channel.flush()
                    self._interest(channel)
                events += self._hear(channel)
            elif fd in self._guests:
                if (made := self._prove(self._guests[fd])) is not None:
                    events.append(Event(made))
                    events += self._hear(made)
            elif chosen.fileobj in self.listeners:
                self._accept(chosen.fileobj)
        now = self._awake()
        for guest in [g for g in self._guests.values() if now - g.since > HANDSHAKE_S]:
            self._drop(guest)
        return events

    def send(self, channel: Channel, payload: bytes = b"") -> None:
        """Send to one who is in."""
        channel.send(payload)
        self._interest(channel)

    def shut(self) -> None:
        """Take nobody in any more: the listeners close, who has proved nothing goes. Those who are in stay."""
        self._listen(False)
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()
        for guest in list(self._guests.values()):
            self._drop(guest)

    def dismiss(self, channel: Channel) -> None:
        """Close one connection."""
        if self.channels.pop(channel.fileno(), None) is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(channel.sock)
        channel.close()

    def flushed(self) -> bool:
        """Whether all that was said has left this process."""
        return not any(c.waiting and c.broken is None for c in self.channels.values())

    def close(self) -> None:
        self.shut()
        for channel in list(self.channels.values()):
            self.dismiss(channel)
        self._selector.close()

    def sockets(self) -> Iterator[socket.socket]:
        """Everything that is open, for a child that must not hold it."""
        yield from self.listeners
        yield from (g.sock for g in self._guests.values())
        yield from (c.sock for c in self.channels.values())

    # --- who is not in yet

    def _listen(self, on: bool) -> None:
        for listener in self.listeners:
            if on:
                self._selector.register(listener, selectors.EVENT_READ)
            else:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(listener)

    def _accept(self, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        for _ in range(A_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._breathe()
                    return
                continue  # it went away in the queue
            self._greet(sock)

    def _breathe(self) -> None:
        """No descriptor is left: half of those who wait go, and for a moment nobody is taken in."""
        for guest in list(self._guests.values())[: 1 + len(self._guests) // 2]:
            self._drop(guest)
        self._listen(False)
        self._deaf_until = self._awake() + 0.2

    def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        guest = Guest(sock, nonce(), self._awake())
        while len(self._guests) >= self.most_waiting:
            self._drop(random.choice(list(self._guests.values())))
        words = [BANNER, guest.nonce, *([self.sealed] if self.sealed is not None else [])]
        try:
            sock.send(b" ".join(words) + b"\n")
        except OSError:
            sock.close()
            return
        self._guests[sock.fileno()] = guest
        self._selector.register(sock, selectors.EVENT_READ)

    def _prove(self, guest: Guest) -> Channel | None:
        try:
            data = guest.sock.recv(REPLY - len(guest.said))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        guest.said += data
        if data and len(guest.said) < REPLY:
            return None
        theirs, _, shown = guest.said.rstrip(b"\n").partition(b" ")
        right = proof(self.made_with, b"client", guest.nonce, theirs)
        if not data or len(theirs) != 32 or not hmac.compare_digest(shown, right):
            self._drop(guest)
            return None
        try:
            guest.sock.send(proof(self.made_with, b"server", guest.nonce, theirs) + b"\n")
        except OSError:
            self._drop(guest)
            return None
        del self._guests[guest.sock.fileno()]
        made = Channel(guest.sock, session(self.made_with, guest.nonce, theirs), server=True)
        self.channels[made.fileno()] = made
        return made

    def _drop(self, guest: Guest) -> None:
        del self._guests[guest.sock.fileno()]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(guest.sock)
        guest.sock.close()

    # --- who is in

    def _hear(self, channel: Channel) -> list[Event]:
        events = [Event(channel, said) for said in channel.receive()]
        if channel.broken is not None:
            events.append(Event(channel, gone=channel.broken))
            if self.channels.pop(channel.fileno(), None) is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(channel.sock)
            channel.close()
        return events

    def _interest(self, channel: Channel) -> None:
        if channel.fileno() in self.channels:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.waiting and channel.broken is None else 0)
            self._selector.modify(channel.sock, wanted)

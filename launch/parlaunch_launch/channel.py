"""A connection between two nodes of one job. Each proves that it knows the job's secret before anything is told or counted.

    server: parlaunch/1 NONCE [SEALED]        client: NONCE PROOF        server: PROOF

A proof is a keyed hash (HMAC-SHA256) over both nonces and the role, so that it cannot be used twice or turned round. What
follows are frames, each with its length and a keyed hash over its number and its bytes; an empty one is a sign of life. Sizes
and times are bounded on both sides. Nothing here is encrypted: a probe and a plan are no secrets, who may change them is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from parlaunch_launch import addresses

BANNER = b"parlaunch/1"
GREETING = 4096
"""Bytes of the longest first line: banner, nonce, and a secret that is sealed for this user (munge)."""

REPLY = 32 + 1 + 64 + 1
"""Bytes of the client's line, and the most that somebody who has proved nothing can make us read."""

MOST = 256 * 2**20
"""Bytes of the longest frame, and of all that waits to be sent to one that does not read."""

HANDSHAKE_S, KNOCK_S = 10.0, 5.0
"""How long a door lets somebody try, and how long who knocks waits for its answer."""

NO_WORDS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading raises of one who has proved itself and speaks otherwise: another version, or a stranger where there is no secret."""

_HEAD = struct.Struct("!I16s")

LOST = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
"""What the kernel says of a network that is cut. It says nothing about who is at the other end."""


def key(secret: bytes, *purpose: str) -> bytes:
    """The key for one purpose (`meeting`, `watch`) of one run of a job, from the job's secret."""
    return hmac.digest(secret, "\0".join(("parlaunch", *purpose)).encode(), "sha256")


def nonce() -> bytes:
    """A word that nobody has used before."""
    return secrets.token_hex(16).encode()


def proof(made_with: bytes, role: bytes, server: bytes, client: bytes) -> bytes:
    """What `role` (server or client) says to show that it knows the key."""
    return hmac.digest(made_with, b" ".join((role, server, client)), "sha256").hex().encode()


class Refused(Exception):
    """A parlaunch answered that does not know our secret, or whose secret we do not know."""


class OtherVersion(Refused):
    """A parlaunch answered that speaks otherwise than this one."""


@dataclass(slots=True, eq=False)
class Channel:
    """One proved connection. Nothing here waits: `send` queues what does not go at once, `receive` takes what came."""

    sock: socket.socket
    session: bytes  # both directions' key
    server: bool
    broken: str | None = None  # why no more will come
    lost: bool = False  # it is the network that broke, which says nothing about the other end
    _in: bytearray = field(default_factory=bytearray)
    _out: bytearray = field(default_factory=bytearray)
    _received: int = 0
    _sent: int = 0

    def __post_init__(self) -> None:
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def here(self) -> str:
        """This end's address."""
        return addresses.plain(str(self.sock.getsockname()[0]))

    @property
    def there(self) -> str:
        return addresses.plain(str(self.sock.getpeername()[0]))

    @property
    def waiting(self) -> bool:
        """Whether something is left to be sent."""
        return bool(self._out)

    def fileno(self) -> int:
        return self.sock.fileno()

    def bear(self, seconds: float) -> None:
        """Let the kernel hold the connection through a cut of the network of so many seconds; by itself it gives up
        after some 15 minutes."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(seconds * 1000), 2**31 - 1))

    def send(self, payload: bytes = b"") -> None:
        if self.broken is not None:
            return
        number, self._sent = self._sent, self._sent + 1
        self._out += _HEAD.pack(len(payload), self._tag(not self.server, number, payload)) + payload
        if len(self._out) > MOST:
            self.broken = "reads nothing"
        self.flush()

    def flush(self) -> None:
        """Send what goes without waiting."""
        while self._out and self.broken is None:
            try:
                del self._out[: self.sock.send(memoryview(self._out)[: 1 << 20])]
            except BlockingIOError:
                return
            except OSError as error:
                self._broke(error)

    def receive(self) -> list[bytes]:
        """The frames that came, signs of life (empty ones) among them. Sets `broken` when no more will come."""
        while self.broken is None:
            try:
                data = self.sock.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError as error:
                self._broke(error)
                break
            if not data:
                self.broken = "went away"
                break
            self._in += data
            if len(self._in) > 2 * MOST:
                self.broken = "sends without end"
        return self._frames()

    def take(self, seconds: float) -> bytes | None:
        """The next frame that is no sign of life, waiting for it; None when there is none in time. For a client."""
        import select

        end = time.monotonic() + seconds
        while True:
            if (frame := self._frame()) is not None:
                if frame:
                    return frame
                continue
            if self.broken is not None:
                raise ConnectionError(self.broken)
            if (left := end - time.monotonic()) <= 0:
                return None
            wanted = select.POLLIN | (select.POLLOUT if self._out else 0)
            poll = select.poll()
            poll.register(self.sock, wanted)
            poll.poll(left * 1000)
            self.flush()
            self._pull()

    def close(self) -> None:
        self.sock.close()

    def _pull(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            return self._broke(error)
        if data:
            self._in += data
        else:
            self.broken = "went away"

    def _broke(self, error: OSError) -> None:
        self.broken, self.lost = "went away", error.errno in LOST

    def _frames(self) -> list[bytes]:
        found = []
        while (frame := self._frame()) is not None:
            found.append(frame)
        return found

    def _frame(self) -> bytes | None:
        if len(self._in) < _HEAD.size:
            return None
        length, tag = _HEAD.unpack_from(self._in)
        if length > MOST:
            self.broken = "sent what is not ours"
            self._in.clear()
            return None
        if len(self._in) < _HEAD.size + length:
            return None
        payload = bytes(memoryview(self._in)[_HEAD.size : _HEAD.size + length])
        if not hmac.compare_digest(tag, self._tag(self.server, self._received, payload)):
            self.broken = "sent what is not ours"
            self._in.clear()
            return None
        del self._in[: _HEAD.size + length]
        self._received += 1
        return payload

    def _tag(self, by_client: bool, number: int, payload: bytes) -> bytes:
        head = b"%c%d " % (b"c" if by_client else b"s", number)
        return hmac.new(self.session, head + payload, hashlib.sha256).digest()[:16]


def session(made_with: bytes, server: bytes, client: bytes) -> bytes:
    """The key of one connection."""
    return hmac.digest(made_with, b" ".join((b"session", server, client)), "sha256")


KeyOf = Callable[[bytes | None], bytes | None]
"""The key, given what the greeting carried sealed; None when it cannot be opened."""


class Knock:
    """A client's half of the handshake on a connection that stands, a step at a time, for who may not wait."""

    def __init__(self, sock: socket.socket, key_of: KeyOf) -> None:
        sock.setblocking(False)
        self.sock, self.key_of, self.made_with, self.mine = sock, key_of, b"", nonce()
        self.theirs = b""
        self._line = bytearray()

    def turn(self) -> Channel | None:
        """The channel when both have proved themselves, None while it is not. Raises OSError, or Refused."""
        while (line := self._next()) is not None:
            if not self.theirs:
                self._answer(line)
            elif hmac.compare_digest(line, proof(self.made_with, b"server", self.theirs, self.mine)):
                return Channel(self.sock, session(self.made_with, self.theirs, self.mine), server=False)
            else:
                raise Refused("it does not know this job's secret")
        return None

    def _answer(self, line: bytes) -> None:
        words = line.split(b" ")
        name, _, version = words[0].partition(b"/")
        if words[0] != BANNER and name == BANNER.partition(b"/")[0] and version.isdigit():
            raise OtherVersion(
                f"it speaks version {int(version[:9])} of what nodes say to each other, and this node {BANNER.partition(b'/')[2].decode()}"
            )
        if words[0] != BANNER or len(words) not in (2, 3) or len(words[1]) != 32:
            raise ConnectionError("somebody else's service")
        made_with = self.key_of(words[2] if len(words) == 3 else None)
        if made_with is None:
            raise Refused("it holds a secret that is not known here")
        self.theirs, self.made_with = words[1], made_with
        self.sock.send(self.mine + b" " + proof(made_with, b"client", self.theirs, self.mine) + b"\n")

    def _next(self) -> bytes | None:
        """One line. Nothing behind it is read: frames begin there."""
        while True:
            try:
                byte = self.sock.recv(1)
            except BlockingIOError:
                return None
            if not byte:
                if self.theirs:
                    raise Refused("it does not take our proof")
                raise ConnectionError("closed at once")
            if byte == b"\n":
                line = bytes(self._line)
                self._line.clear()
                return line
            self._line += byte
            if len(self._line) > GREETING:
                raise ConnectionError("somebody else's service")


def knock(address: str, port: int, key_of: KeyOf, *, seconds: float = KNOCK_S) -> Channel:
    """Connect and prove, waiting at most so long. Raises OSError when nobody (or somebody else's service) is there, Refused
    when it is a parlaunch of another secret."""
    import select

    end = time.monotonic() + seconds
    sock = socket.create_connection((address, port), timeout=min(2.0, seconds))
    try:
        half = Knock(sock, key_of)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while (made := half.turn()) is None:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError("no answer")
            poll.poll(left * 1000)
        return made
    except BaseException:
        sock.close()
        raise

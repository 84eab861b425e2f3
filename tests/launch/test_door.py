"""The door of a job among strangers: a small part of `scripts/fuzz/strangers.py`, and what needs an eavesdropper."""

from __future__ import annotations

import contextlib
import random
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from parlaunch_launch import addresses
from parlaunch_launch.channel import Refused, key, knock
from parlaunch_launch.door import Door
from tests.conftest import HANGS_S

KEY = key(b"known to this job alone", "test")
STRANGERS = Path(__file__).parents[2] / "scripts/fuzz/strangers.py"


class Turning:
    """A door that a thread turns, and who came in."""

    def __init__(self, expected: int = 3) -> None:
        listener = addresses.listen("127.0.0.1")
        self.port = listener.getsockname()[1]
        self.door = Door([listener], KEY, expected=expected)
        self.said: list[bytes] = []
        self.came = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()

    def _turn(self) -> None:
        while not self._stop.is_set():
            for event in self.door.turn(0.05):
                self.came += event.said is None and event.gone is None
                if event.said:
                    self.said.append(event.said)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.door.close()

    def honest(self, words: bytes) -> None:
        """A node of the job: knocks until it is in, and says something."""
        end = time.monotonic() + HANGS_S
        while True:
            try:
                made = knock("127.0.0.1", self.port, lambda _: KEY, seconds=HANGS_S)
                break
            except (OSError, Refused):  # driven out by the crowd
                assert time.monotonic() < end
                time.sleep(0.05)
        made.send(words)
        made.flush()
        while words not in self.said:
            assert time.monotonic() < end
            time.sleep(0.02)
        made.close()


@pytest.fixture
def turning() -> Iterator[Turning]:
    made = Turning()
    yield made
    made.close()


@pytest.mark.checkout
def test_bad_clients_of_every_kind_neither_come_in_nor_keep_the_nodes_out(turning: Turning) -> None:
    shout = runpy.run_path(str(STRANGERS))["shout"]
    stop = threading.Event()

    def bother(first: int) -> None:
        number, rng = first, random.Random(first)
        while not stop.is_set():
            with contextlib.suppress(OSError, IndexError):
                shout(number, ("127.0.0.1", turning.port), rng)
            number += 1

    crowd = [threading.Thread(target=bother, args=(n,)) for n in range(20)]
    for thread in crowd:
        thread.start()
    for words in (b"one", b"two", b"three"):
        turning.honest(words)
    stop.set()
    for thread in crowd:
        thread.join()
    assert turning.said == [b"one", b"two", b"three"]
    assert turning.came == 3


def test_hundreds_of_connections_that_say_nothing_keep_no_node_out(turning: Turning) -> None:
    held = []
    for _ in range(400):  # beside the limit of open files of a usual shell
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", turning.port), timeout=5))
    turning.honest(b"here")
    for made in held:
        made.close()
    assert turning.came == 1


def test_who_overheard_a_proof_cannot_use_it(turning: Turning) -> None:
    """A relay between a node and the door writes down what passes, and says it again on a connection of its own."""
    relay = addresses.listen("127.0.0.1")
    overheard = bytearray()

    def pass_on() -> None:
        there, _ = relay.accept()
        with there, socket.create_connection(("127.0.0.1", turning.port)) as here:
            there.sendall(here.recv(4096))
            while data := there.recv(4096):
                overheard.extend(data)
                here.sendall(data)
                if len(overheard) < 200:
                    there.sendall(here.recv(4096))

    between = threading.Thread(target=pass_on, daemon=True)
    between.start()
    made = knock("127.0.0.1", relay.getsockname()[1], lambda _: KEY, seconds=HANGS_S)
    made.send(b"a word of the job" * 20)
    made.flush()
    end = time.monotonic() + HANGS_S
    while not turning.said:
        assert time.monotonic() < end
        time.sleep(0.02)
    made.close()
    between.join(HANGS_S)
    with socket.create_connection(("127.0.0.1", turning.port), timeout=HANGS_S) as again:
        again.recv(4096)
        with contextlib.suppress(OSError):
            again.sendall(bytes(overheard))
            while again.recv(4096):
                pass
    relay.close()
    assert len(turning.said) == 1
    assert turning.came == 1


def test_who_knows_the_secret_and_then_speaks_otherwise_is_out_and_nobody_else(turning: Turning) -> None:
    """A frame that was changed on its way, and one that announces gigabytes."""
    for shape in (b"\xff\xff\xff\xff" + b"x" * 16, b"\0\0\0\x02" + b"x" * 16 + b"{}"):
        made = knock("127.0.0.1", turning.port, lambda _: KEY, seconds=HANGS_S)
        made.sock.setblocking(True)
        made.sock.sendall(shape)
        made.sock.settimeout(HANGS_S)
        with contextlib.suppress(ConnectionError):
            assert made.sock.recv(100) == b""
        made.close()
    turning.honest(b"still open")
    assert turning.said == [b"still open"]

"""What only this job's tasks know, and by which they know each other.

Made before srun and handed on in the environment, which /proc shows to the user alone; given by hand, by a Kubernetes Secret
or in a file; carried by MUNGE where a user's own srun started the tasks; `--rdzv-id` where nothing else is given.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import field
from pathlib import Path

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.where.situation import Situation
from parlaunch_launch import channel, munge

VARIABLE, FILE_VARIABLE = "PARLAUNCH_SECRET", "PARLAUNCH_SECRET_FILE"

SHORTEST = 16
"""Characters: what is shorter could be tried out by a process that watched one handshake."""

LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """`value` None: nothing was given, so the first node may seal one for this user (MUNGE)."""

    value: bytes | None = field(repr=False)
    source: str


def add(environ: MutableMapping[str, str]) -> None:
    """Make the secret of the tasks that are about to be started, unless the user has given one."""
    if VARIABLE not in environ and FILE_VARIABLE not in environ:
        environ[VARIABLE] = secrets.token_hex(32)


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for training, which has no use for it and may print what it has."""
    return {name: value for name, value in environ.items() if name != VARIABLE}


def of(environ: Mapping[str, str], *, rdzv_id: str | None = None) -> Secret:
    """The job's secret as this process was told it. Raises UsageError for a file that others can read, or too short a word."""
    if VARIABLE in environ:
        return Secret(value=_long_enough(environ[VARIABLE].encode(), VARIABLE), source=VARIABLE)
    if FILE_VARIABLE in environ:
        return Secret(value=_read(Path(environ[FILE_VARIABLE])), source=FILE_VARIABLE)
    if rdzv_id is not None:
        return Secret(value=rdzv_id.encode(), source="--rdzv-id")
    return Secret(value=None, source="nothing")


def _read(file: Path) -> bytes:
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{FILE_VARIABLE} {file} is no regular file", hint="name a file of mode 0600")
            # Kubernetes mounts a Secret as root's file and opens it to the pod's group; others must not read it.
            if found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
                raise UsageError(f"{FILE_VARIABLE} {file} is open to other users", hint=f"chmod 600 {file}")
            text = opened.read(LONGEST).strip()
    except OSError as error:
        raise UsageError(f"{FILE_VARIABLE} {file}: {error.strerror}", hint="name a file of mode 0600") from error
    return _long_enough(text, f"{FILE_VARIABLE} {file}")


def _long_enough(text: bytes, name: str) -> bytes:
    if len(text) < SHORTEST:
        raise UsageError(
            f"{name} has {len(text)} characters, and {SHORTEST} are the least that is not guessed",
            hint=f'make one before the tasks start: export {VARIABLE}="$(openssl rand -hex 32)"',
        )
    return text


class Keys:
    """The keys of one run of a job. The first node's process makes what the others are told sealed."""

    def __init__(self, secret: Secret, situation: Situation, environ: Mapping[str, str] = os.environ) -> None:
        self._secret, self._token, self._environ = secret, situation.token, environ
        self._value = secret.value
        self.sealed: bytes | None = None  # for the greeting of who hosts the meeting
        self._by_munge = False

    @property
    def proven(self) -> bool:
        """Whether strangers are kept out."""
        return self._value is not None

    @property
    def source(self) -> str:
        return "MUNGE" if self._by_munge else self._secret.source

    def host(self) -> None:
        """This process hosts the meeting: without a secret it makes one, if MUNGE can carry it to this user's tasks."""
        if self._value is None:
            made = secrets.token_bytes(32)
            self.sealed = munge.seal(made, self._environ)
            if self.sealed is not None:
                self._value, self._by_munge = made, True

    def open(self, sealed: bytes | None) -> bytes | None:
        """The key of the meeting for a greeting that carried this; None when it is not for us."""
        if sealed is not None and self._secret.value is None:
            if (value := munge.unseal(sealed, self._environ)) is None:
                return None
            self._value, self._by_munge = value, True
        elif sealed is not None:
            return None
        return self.of("meeting")

    def of(self, purpose: str) -> bytes:
        """The key for one purpose. Without a secret it is made of what anybody may know: no proof, but no mistake either."""
        return channel.key(self._value or b"", purpose, self._token)

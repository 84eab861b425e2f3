"""MUNGE, which every Slurm cluster runs: it tells which user of the cluster made a message, and lets only one user read it.

It carries the job's secret where nothing could be handed to the tasks before they started: a user's own `srun parlaunch`.
Through libmunge.so.2, which Slurm's own plugin needs on every node; in a container that has neither library nor socket
there is no MUNGE, and everything here says None.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SOCKET, UID_RESTRICTION = 8, 9
"""MUNGE_OPT_SOCKET and MUNGE_OPT_UID_RESTRICTION of munge.h."""

SUCCESS, STALE = 0, (15, 16, 17)
"""EMUNGE_SUCCESS; EMUNGE_CRED_EXPIRED, _REWOUND and _REPLAYED: read well and old, from a node whose clock is off, or seen
before. A secret does not age, and who holds it proves so afresh, so these are taken."""


@cache
def _library() -> Any:
    try:
        found = ctypes.CDLL("libmunge.so.2")
        found.munge_ctx_create.restype = ctypes.c_void_p
        found.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return found


def socket_of(environ: Mapping[str, str]) -> str | None:
    """The socket that slurm.conf names (AuthInfo); None: munge's own default."""
    try:
        text = Path(environ.get("SLURM_CONF") or "/etc/slurm/slurm.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^\s*AuthInfo\s*=.*?\bsocket=([^,\s]+)", text, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else None


def seal(secret: bytes, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret so that only this user's processes can open it, on any node of the cluster. None: no MUNGE here."""
    library = _library()
    if library is None:
        return None
    context = _context(library, environ)
    made = ctypes.c_char_p()
    try:
        library.munge_ctx_set(context, UID_RESTRICTION, ctypes.c_uint(os.geteuid()))
        if library.munge_encode(ctypes.byref(made), context, secret, len(secret)) != SUCCESS:
            return None
        return made.value
    finally:
        _free(made)
        library.munge_ctx_destroy(context)


def unseal(sealed: bytes, environ: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret, when a process of this same user sealed it; else None."""
    library = _library()
    if library is None:
        return None
    context = _context(library, environ)
    data, length, uid, gid = ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_uint(2**32 - 1), ctypes.c_uint(0)
    try:
        said = library.munge_decode(
            sealed, context, *(ctypes.byref(x) for x in (data, length, uid, gid))
        )  # fmt: skip
        if said not in (SUCCESS, *STALE) or uid.value != os.geteuid() or not data.value:
            return None
        return ctypes.string_at(data.value, length.value)
    finally:
        _free(data)
        library.munge_ctx_destroy(context)


def _context(library: Any, environ: Mapping[str, str]) -> ctypes.c_void_p:
    context = ctypes.c_void_p(library.munge_ctx_create())
    if (path := socket_of(environ)) is not None:
        library.munge_ctx_set(context, SOCKET, ctypes.c_char_p(path.encode()))
    return context


def _free(memory: ctypes.c_char_p | ctypes.c_void_p) -> None:
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free(ctypes.cast(memory, ctypes.c_void_p))

"""One rank of torchrun: what it runs, and how it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable

from parlaunch.errors import ParlaunchError
from parlaunch_launch.bind import bind_here


def run_rank(train: Callable[[], None]) -> None:
    """Train; a failure's traceback goes into torchrun's report, our own refusals are one message and an exit code."""
    bind_here()  # before torch is imported: what allocates later allocates near
    from torch.distributed.elastic.multiprocessing.errors import record

    def refusing() -> None:
        try:
            train()
        except ParlaunchError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from None

    record(refusing)()

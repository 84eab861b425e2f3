"""Which constants of the memory and time models only pinned predictions hold: each is multiplied, and the tests of physics are run.

    python scripts/bench/sensitivity.py [--factor 1.3] [--room memory|timing|model|states] [tests …]

Pinned predictions (tests/golden/memory.json, validation/accepted.json) notice every constant that moves, by whatever it moves; they cannot
say whether it was right. This prints the constants that none of the given tests notices: where evidence is still missing. Some 10 s each.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PHYSICS = (
    "tests/estimate/test_memory_sources.py", "tests/estimate/test_memory.py", "tests/estimate/timing", "tests/model",
    "tests/check/test_validate.py",
)  # fmt: skip
SLOW = "not autograd and not bridges and not over_ranks and not megatron and not tenth_of_a_second and not logit"
"""Tests that build torch's modules in another process, where nothing is multiplied, or that watch the clock."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.3)
    parser.add_argument("--room", default="", help="a part of the module's name")
    parser.add_argument("tests", nargs="*", default=PHYSICS)
    asked = parser.parse_args()
    os.chdir(ROOT)
    from tests.check import test_accepted as accepted

    accepted.FACTOR = asked.factor
    tried, free = 0, []
    for module in accepted.MODULES:
        if not module.__name__.startswith(("parlaunch.estimate", "parlaunch.model.activations")):
            continue
        for name, path in _constants(module, accepted) if asked.room in module.__name__ else ():
            tried += 1
            if not _noticed(module, name, path, accepted, asked.tests):
                free.append(f"{module.__name__.removeprefix('parlaunch.')}.{name}{''.join(f'.{p}' for p in path)}")
                print(free[-1], flush=True)
    print(f"{len(free)} of {tried} are held by pinned predictions alone")


def _constants(module: ModuleType, accepted: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Numbers in constants that this module is the first to name, bands too, which are settled on rows."""
    free = {name for name, why in accepted.FREE.items() if "band" not in why}
    before = accepted.MODULES[: accepted.MODULES.index(module)]
    return [
        (name, path)
        for name, value in vars(module).items()
        if name.strip("_").isupper()
        and name not in free
        and not any(vars(other).get(name) is value for other in before)
        for path, _ in accepted.leaves(value)
        if not accepted.idle(name, path)
    ]


def _noticed(module: ModuleType, name: str, path: tuple[Any, ...], accepted: Any, tests: Any) -> bool:
    """Whether a test fails in a process of its own where the constant is another one."""
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        words = ["-x", "-q", "--assert=plain", "-W", "ignore", "-p", "no:cacheprovider", "-n", "0", "-k", SLOW]
        try:
            with accepted.larger(module, name, path):
                os._exit(int(pytest.main([*words, *tests])))
        except BaseException:
            os._exit(1)  # a constant that cannot be another one is held by its type
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code > 1:
        raise SystemExit(f"error: pytest ended with {code}\n  hint: {' '.join(tests)} are files of this checkout?")
    return code == 1


if __name__ == "__main__":
    main()

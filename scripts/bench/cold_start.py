#!/usr/bin/env python3
"""Cold start of the dry run and of completion against `import typer, rich`: medians of the CPU time of processes run in turn."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

DRY_RUNS = {
    "Llama 3.2 1B on 2 DGX H100": ("llama32_1b_pretrain_config", "dgx-h100:2"),
    "Llama 3 70B on 8 DGX H100": ("llama3_70b_pretrain_config", "dgx-h100:8"),
    "Qwen3 30B A3B on 4 DGX H100": ("qwen3_30b_a3b_pretrain_config", "dgx-h100:4"),
}
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer, rich": ["-c", "import typer, rich"],
    "parlaunch --version": ["-m", "parlaunch", "--version"],
    **{
        f"dry run, {what}": ["-m", "parlaunch", "--recipe", recipe, "--hardware", hardware, "--dry-run"]
        for what, (recipe, hardware) in DRY_RUNS.items()
    },
}
COMPLETION = {
    "_PARLAUNCH_COMPLETE": "complete_bash", "COMP_WORDS": "parlaunch --recipe llama3_8b_pre", "COMP_CWORD": "2",
}  # fmt: skip
COMMANDS["completion of a recipe"] = ["-m", "parlaunch"]
BASE = "import typer, rich"
ROUNDS = 11


def main() -> None:
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    # As installed: Python keeps what it compiled. The first round writes it, and does not count.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for round_ in range(ROUNDS + 1):
        for name, words in COMMANDS.items():
            more = COMPLETION if name.startswith("completion") else {}
            before = _children_s()
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=kept | more)
            if round_:
                spent[name].append(_children_s() - before)
    for name, taken in spent.items():
        ratio = statistics.median(mine / base for mine, base in zip(taken, spent[BASE], strict=True))
        print(f"{name:<40} {statistics.median(taken) * 1000:7.0f} ms  {ratio:5.1f} x")


def _children_s() -> float:
    """CPU seconds of all processes that have ended: what other work on this machine does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

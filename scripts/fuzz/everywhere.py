"""Every recipe on every kind of machine: a plan, or one sentence on why there is none; never wrong usage.

    python scripts/fuzz/everywhere.py [--part 1/8] [--share 0.05] [--seed 1] [--only llama3] [--objective time]

Each recipe of the catalog is planned on enough nodes of each machine below (as many GPUs as the recipe was written for, and
whole racks), as `parlaunch plan` does with no pins. Allowed are a plan, "no layout fits", and a rule's sentence about the
model itself. Every hint that names something to type (an override, an option, a number of nodes) is followed once, and has
to bring a plan. Prints what else came, by kind, and exits 1 if anything did.

Whether there is a plan at all does not depend on what it is to be best at, so the leanest is asked for: all pairs take some
25 minutes on one core. `--objective time` asks for the fastest, as a launch does, and takes about ten times as long.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from math import ceil
from typing import Any

from parlaunch.errors import NoLayoutError, ParlaunchError, UsageError
from parlaunch.front import plan
from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog

MACHINES = (
    "dgx-a100-40g", "dgx-a100-80g", "dgx-h100", "dgx-h200", "dgx-b200", "dgx-b300", "gb200-nvl72", "gb300-nvl72", "l40s-pcie-8",
    "h100-pcie-8", "rtx4090", "dgx1-v100", "rtxpro6000-8",
)  # fmt: skip


def nodes_for(recipe: str, machine: str) -> int:
    """Enough of them for what the recipe was written for; racks whole."""
    one = preset(machine, 1)
    nodes = max(1, ceil((catalog.recipe(recipe).gpus or 8) / one.gpus_per_node))
    rack = max(1, one.nvlink_domain_size // one.gpus_per_node) if machine.startswith("gb") else 1
    return ceil(nodes / rack) * rack


def answer(recipe: str, machine: str, nodes: int, **options: Any) -> ParlaunchError | None:
    """What came of it: None is a plan."""
    try:
        plan(recipe, f"{machine}:{nodes}", evidence=False, **options)
    except ParlaunchError as error:
        return error
    return None


def to_type(hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a hint names that can be typed, and the arguments of `plan` that it is; each way of several by itself."""
    for way in hint.split("; "):
        if said := re.search(r"(?:model|train|dataset|comm_overlap|mixed_precision|ddp)\.[\w.]+=[\w\[\],]+", way):
            yield said[0], {"overrides": (said[0],)}
        elif said := re.search(r"--precision (\w+)", way):
            yield said[0], {"precision": said[1]}
        elif said := re.search(r"--headroom ([\d.]+)", way):
            yield said[0], {"headroom": float(said[1])}
        elif said := re.search(r"--switches ([\w=,]+)", way):
            yield said[0], {"switches": said[1]}
        elif "--fsdp" in way:
            yield "--fsdp", {"fsdp": True}
        elif said := re.match(r"(\d+) nodes \(\d+ GPUs\) are enough", way):
            yield said[0], {"nodes": int(said[1])}


def unhelpful(recipe: str, machine: str, error: ParlaunchError, **options: Any) -> str | None:
    """What following the error's hints comes to, where one of them does not lead to a plan; another trouble that it brings out
    (the model does not fit, now that it may run) is an answer too."""
    given = {"nodes": nodes_for(recipe, machine), **options}
    for said, arguments in to_type(error.hint):
        again = answer(recipe, machine, **{**given, **arguments})
        if again is None or (isinstance(again, NoLayoutError) and not isinstance(error, NoLayoutError)):
            continue
        return f"following {said!r}: {again.problem}"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the pairs, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the recipes")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--objective", default="memory", choices=("memory", "time"))
    args = parser.parse_args(argv)
    dice = random.Random(args.seed)
    part, parts = map(int, args.part.split("/"))
    # Recipes of one model beside each other: most of what is counted of a model is then counted once.
    recipes = sorted(catalog.all_recipes(), key=lambda r: (r.model_id or "", r.gpus or 0, r.name))
    recipes = [r for r in recipes if args.only in r.name][part - 1 :: parts]
    pairs = [(r.name, m) for r in recipes for m in MACHINES if dice.random() < args.share]
    done: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    example: dict[str, str] = {}
    started = time.monotonic()
    for recipe, machine in pairs:
        error = answer(recipe, machine, nodes_for(recipe, machine), objective=args.objective)
        kind = "a plan" if error is None else "no layout fits" if isinstance(error, NoLayoutError) else "a sentence"
        done[kind] += 1
        problem = None
        if isinstance(error, UsageError):
            problem = f"wrong usage: {error.problem}"
        elif error is not None:
            problem = unhelpful(recipe, machine, error, objective=args.objective)
        if problem is not None:
            text = re.sub(r"\d+", "N", problem.replace(recipe, "RECIPE"))[:160]
            wrong[text] += 1
            example.setdefault(text, f"{recipe} on {machine}: {problem}")
    print(
        f"{len(pairs)} pairs in {time.monotonic() - started:.0f} s: " + ", ".join(f"{n} {k}" for k, n in done.items())
    )
    for kind, count in wrong.most_common():
        print(f"{count:6} {kind}\n         {example[kind]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

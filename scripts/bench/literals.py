"""Which numbers inside the estimate's code no prediction in validation/ depends on: each is made 30 % larger, and all rows are predicted.

    python scripts/bench/literals.py [--factor 1.3] [FILE …]        default: parlaunch/estimate/ and parlaunch/model/activations.py

`tests/check/test_accepted.py` tries the named constants; this tries what stands in formulas as well, sizes of 0 and 1 and indices left out.
What it prints is a default, a limit that nothing reaches, or a number that may be anything: a row for `validation/probes.jsonl` is missing.
Some minutes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
SAME = 1e-4


class Numbers(ast.NodeVisitor):
    """The numbers of a module that are neither 0, 1 nor an index."""

    def __init__(self) -> None:
        self.found: list[ast.Constant] = []

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) in (int, float) and node.value not in (0, 1):
            self.found.append(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        if not isinstance(node.slice, ast.Constant):
            self.visit(node.slice)


def numbers(tree: ast.AST) -> list[ast.Constant]:
    visitor = Numbers()
    visitor.visit(tree)
    return visitor.found


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with one of its numbers larger."""

    def __init__(self, path: Path, number: int, factor: float) -> None:
        self.path, self.number, self.factor = path, number, factor
        self.module = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(self.path.read_text())
        node = numbers(tree)[self.number]
        assert isinstance(node.value, (int, float))
        larger = node.value * self.factor
        node.value = larger if isinstance(node.value, float) else max(node.value + 1, round(larger))
        exec(compile(tree, str(self.path), "exec"), vars(module))


def in_a_child(work: Callable[[], Any]) -> Any:
    """What `work` answers in a process that has imported nothing of ours yet; None where it raises, which is noticed too."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else None


def predictions(order: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Time and memory of every row, those of `order` first."""
    from parlaunch.check.measured import Machines, readable
    from parlaunch.cli.accuracy import rows_of
    from parlaunch.estimate.memory import estimate_memory
    from parlaunch.estimate.timing import estimate_time

    rows = {f"{path.stem} {row['id']}": row for path in (ROOT / "validation").glob("*.jsonl") for row in rows_of(path)}
    machines = Machines()
    for name in [*order, *sorted(rows.keys() - set(order), key=lambda name: not name.startswith("probes"))]:
        for _, run in readable([rows[name]], machines):
            memory = estimate_memory(run.recipe, run.layout, run.rates, headroom=0.0)
            seconds = estimate_time(run.recipe, run.layout, run.rates).iteration_time_s
            yield name, [seconds, memory.allocated, memory.peak]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.3)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    asked = parser.parse_args()
    files = [path.resolve() for path in asked.files] or [
        *sorted((ROOT / "parlaunch" / "estimate").rglob("[a-z]*.py")), ROOT / "parlaunch" / "model" / "activations.py",
    ]  # fmt: skip
    before = dict(_all())
    tried, free, order = 0, 0, []
    for path in files:
        text = path.read_text()
        for at, node in enumerate(numbers(ast.parse(text))):
            tried += 1
            changed = Changed(path, at, asked.factor)
            moved = in_a_child(partial(_first_that_moves, changed, order, before))
            if moved:
                order = [moved, *(name for name in order if name != moved)][:40]
            elif moved == "":
                free += 1
                print(
                    f"{path.relative_to(ROOT)}:{node.lineno}: {node.value} in {text.splitlines()[node.lineno - 1].strip()}",
                    flush=True,
                )
    print(f"{free} of {tried} move no prediction")


def _all() -> list[tuple[str, list[float]]]:
    found: list[tuple[str, list[float]]] = in_a_child(lambda: list(predictions([])))
    return found


def _first_that_moves(changed: Changed, order: list[str], before: dict[str, list[float]]) -> str:
    """The first row with another prediction under the change; empty where none has."""
    sys.meta_path.insert(0, changed)
    for name, values in predictions(order):
        if any(abs(b - a) > SAME * abs(a) for a, b in zip(before[name], values, strict=True)):
            return name
    return ""


if __name__ == "__main__":
    main()

"""Predictions are the accepted ones; a source gets worse only with a reason; no constant of the estimate is free to drift."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import parlaunch.estimate
import parlaunch.model
from parlaunch.check.accepted import SAME, accept, moved, record, summary, unexplained, worse
from parlaunch.check.measured import Machines, Run, readable, run_of
from parlaunch.cli.accuracy import rows_of
from parlaunch.errors import UsageError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time

ROOT = Path(__file__).parents[2]
HERE = ROOT / "validation"
ACCEPTED = json.loads((HERE / "accepted.json").read_text())
TABLES = {path.stem: rows_of(path) for path in sorted(HERE.glob("*.jsonl"))}


def test_every_prediction_is_the_accepted_one() -> None:
    changes = moved(ACCEPTED, record(TABLES))
    assert not changes, f"{summary(changes)}\naccept them with: python scripts/make/accepted.py"


def test_no_source_is_worse_than_the_best_that_was_accepted() -> None:
    found = [str(w) for w in worse(ACCEPTED, record(TABLES))]
    assert not found, 'accept it with: python scripts/make/accepted.py --because "…"'


def test_every_rise_of_an_error_has_a_reason() -> None:
    assert all(rise["what"] and rise["because"] for rise in ACCEPTED["rises"])


BACK = 10
"""Versions of the file that it is compared with: more than one, as a branch may change it several times."""


@pytest.mark.checkout
def test_nothing_that_was_accepted_before_is_lost_without_a_reason() -> None:
    """Made anew from nothing the file would hold any estimate to itself: git remembers what it held."""

    def git(*args: str) -> str:
        found = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        return found.stdout if found.returncode == 0 else ""

    file = "validation/accepted.json"
    commits = git("log", f"-{BACK + 1}", "--diff-filter=AM", "--format=%H", "--", file).split()
    if not git("ls-files", file):
        pytest.skip("not a checkout by git")
    if git("rev-parse", "--is-shallow-repository").strip() == "true" and len(commits) < 2:
        pytest.skip("a shallow clone without an earlier version")
    assert commits
    earlier = [json.loads(git("show", f"{commit}:./{file}")) for commit in commits]
    for commit, version in zip(commits, earlier, strict=True):
        assert not unexplained(version, ACCEPTED), f"since {commit}"


def test_every_row_says_where_it_is_from_and_under_which_licence() -> None:
    for name, rows in TABLES.items():
        assert all(row["id"] and row["source"] and row["licence"] for row in rows), name
        assert len({row["id"] for row in rows}) == len(rows), name


def test_what_was_timed_had_room() -> None:
    """No time was measured of a layout that we say does not fit: rows beyond their GPUs lacked a switch of their recipes (offloading,
    recomputation, weights in FP8) whenever there were any."""
    machines = Machines()
    short = {}
    for name in TABLES.keys() - {"probes"}:
        for row, run in () if name.endswith("_memory") else readable(TABLES[name], machines):
            memory = estimate_memory(run.recipe, run.layout, run.rates)
            if run.scored and not run.oom and memory.peak > memory.capacity:
                short[row["id"]] = round(memory.peak / memory.capacity, 3)
    assert not short


def test_what_moved_and_what_got_worse_is_told() -> None:
    old, new = (
        {"s": {"time": 0.05}, "other": {"time": 0.05}},
        {"s": {"time": 0.06}, "other": {"time": 0.01, "memory": 0.1}},
    )
    before = {"tables": {"t": {"sources": old, "rows": {"a": [1.0, 100], "b": [2.0, 100]}}}}
    after = {"tables": {"t": {"sources": new, "rows": {"a": [1.1, 100], "c": [3.0, 100]}}}}
    changes = moved(before, after)
    assert {(c.row, c.quantity) for c in changes} == {
        ("a", "time"),
        *((r, q) for r in "bc" for q in ("time", "memory")),
    }
    assert "t a: time 1 -> 1.1 (+10.0%)" in summary(changes)
    assert [str(w) for w in worse(before, after)] == [
        "t, s: the mean error of time rises from 5.00% to 6.00%",
        "t: b is gone",
    ]
    assert summary(moved(before, before)) == "no prediction moved"


def held(mean: float, *rises: dict[str, str], source: str = "s") -> dict[str, Any]:
    return {"tables": {"t": {"sources": {source: {"time": mean}}, "rows": {"a": [1.0, 100]}}}, "rises": list(rises)}


def test_small_rises_do_not_add_up_and_a_reason_starts_anew() -> None:
    accepted = held(0.05)
    for mean in (0.0502, 0.0504):
        assert not worse(accepted, held(mean))
        accepted = accept(accepted, held(mean), "")
    assert accepted == held(0.05)
    assert [str(w) for w in worse(accepted, held(0.0506))] == ["t, s: the mean error of time rises from 5.00% to 5.06%"]
    rise = {"what": "t, s: the mean error of time rises from 5.00% to 5.06%", "because": "why"}
    assert accept(accepted, held(0.0506), "why") == held(0.0506, rise)
    assert accept(held(0.0506, rise), held(0.04), "") == held(0.04, rise)


def test_what_was_accepted_goes_only_with_a_reason() -> None:
    old = {"what": "t, s: the mean error of time rises from 4.00% to 5.00%", "because": "old"}
    new = {"what": "t, s: the mean error of time rises from 5.00% to 7.00%", "because": "new"}
    before = held(0.05, old)
    for fine in (before, held(0.04, old), held(0.07, old, new), held(0.06, old, new)):
        assert not unexplained(before, fine)
    risen = ["t, s: the mean error of time rises from 5.00% to 6.00%"]
    assert unexplained(before, held(0.06, old)) == risen
    assert unexplained(before, held(0.06, new)) == [f"rises: {old['what']!r} is gone", *risen]
    assert unexplained(before, held(0.05)) == [f"rises: {old['what']!r} is gone"]
    assert unexplained(before, held(0.0701, old, new))
    gone = "t, s: the mean error of time is gone"
    assert unexplained(before, held(0.01, old, source="other")) == [gone]
    assert not unexplained(before, held(0.01, old, {"what": gone, "because": "renamed"}, source="other"))


# --- no constant may drift ----------------------------------------------------------------------------------------

ROOMS = (parlaunch.estimate, parlaunch.model)
FACTOR = 1.3
FREE = {
    "HEADROOM": "what is left free, not what is predicted",
    "MIB": "a unit",
    "PEAK_BAND": "a band", "WIDER": "a band", "RISK": "a band", "FRAMEWORKS": "bands", "BRIDGE": "bands", "OTHER": "a band",
    "MEGATRON_2021": "what rows of `SOFTWARE` are made from, each of which is tried",
    "LEAST_MEASURED": "an edge of a table", "MOST_MEASURED": "an edge of a table", "_HEAD_SIZES": "keys of a table",
    "ACROSS": "of ranks that roam: published runs are bound", "SOCKET_LINK": "the same (tests/estimate/timing/test_roaming.py)",
}  # fmt: skip
"""Constants that no prediction depends on, and why."""
ELSEWHERE = {
    "parlaunch.estimate.timing.operators": "a table's format and names, and tiles, which tests/estimate/timing/test_operators.py holds",
    "parlaunch.estimate.traffic": "counts for showing, not the estimate",
    "parlaunch.estimate.values": "names",
    "parlaunch.estimate.training": "days and costs of the whole run",
    "parlaunch.estimate.timing.bands": "each decides a band in tests/estimate/timing/test_bands.py, those of frameworks too",
    **{
        f"parlaunch.estimate.{name}": "each is moved both ways in tests/estimate/test_memory_constants.py, the bands as well"
        for name in ("memory", "stages", "micro_batches", "allocator", "cross_entropy", "states")
    },
}
"""Modules whose constants are none of the two models' or are moved elsewhere, and why."""


def modules() -> list[ModuleType]:
    found = []
    for room in ROOMS:
        for info in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
            found.append(importlib.import_module(info.name))
    return found


MODULES = modules()


def leaves(value: Any) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Every number inside a constant, with the path to it."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        if value:
            yield (), float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ((((key, *path)), number) for path, number in leaves(inner))
    elif isinstance(value, tuple):
        for key, inner in enumerate(value):
            yield from (((key, *path), number) for path, number in leaves(inner))
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from (((field.name, *path), number) for path, number in leaves(getattr(value, field.name)))


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy of a constant with one number inside it larger by `FACTOR`."""
    if not path:
        return value * FACTOR
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        return value | {key: changed(value[key], rest)}
    if isinstance(value, tuple):
        items = [changed(v, rest) if i == key else v for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return replace(value, **{key: changed(getattr(value, key), rest)})


def idle(name: str, path: tuple[Any, ...]) -> bool:
    """Numbers that nothing reads or that never decide: formats that a generation has not, links that a table knows, fabrics that no
    preset has, GPUs that came after the software, latencies of a protocol that carries only what is large, launches and scans that something slower hides, watts whose limit
    lies above the burst already."""
    if name == "GENERATIONS":
        return (
            (path[1] == "sustained_fp8" and path[0] in ("volta", "turing", "ampere"))
            or (path[1] == "joules_fp4" and not path[0].startswith(("blackwell", "rubin")))
            or (path[1] == "nvlink" and path[0] in ("turing", "ada", "ampere", "rubin"))
            or path in (("ada", "scan"), ("ampere", "watts_bf16"))
        )
    if name == "SOFTWARE":
        older = path[0].startswith(("megatron-lm", "internevo"))
        return (path[1] == "blackwell" and older) or (
            path[1] == "softmax_batch"
            and path[0] in ("megatron-bridge", "megatron-core", "nemo-2025", "internevo", "pytorch")
        )
    return (name, *path) in {
        ("_PROTOCOLS", 2, 0), ("_PROTOCOLS", 2, 1), ("_PROTOCOLS", 2, 2), ("FABRIC_SHARE", "slingshot"), ("FABRIC_SHARE", "none"), ("OPERAND_BYTES", "vector"), ("UNFUSED_SOFTMAX",),
    }  # fmt: skip


CONSTANTS = [
    pytest.param(
        module, name, path, id=f"{module.__name__.removeprefix('parlaunch.')}.{name}{''.join(f'.{p}' for p in path)}"
    )
    for module in MODULES
    if module.__name__.startswith("parlaunch.estimate") and module.__name__ not in ELSEWHERE
    for name, value in vars(module).items()
    if name.strip("_").isupper()
    and name not in FREE
    and not any(vars(other).get(name) is value for other in MODULES[: MODULES.index(module)])
    for path, _ in leaves(value)
    if not idle(name, path)
]


def forget() -> None:
    """Empty every cache of the two rooms."""
    for module in MODULES:
        for value in vars(module).values():
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()


@contextmanager
def larger(module: ModuleType, name: str, path: tuple[Any, ...]) -> Iterator[None]:
    """The constant under its new value, wherever it has been imported to."""
    old = vars(module)[name]
    new = changed(old, path)
    places = [other for other in MODULES if vars(other).get(name) is old]
    if isinstance(old, dict):  # others may hold on to the same dictionary under another name
        saved = dict(old)
        old.update(new)
    else:
        for place in places:
            setattr(place, name, new)
    forget()
    try:
        yield
    finally:
        if isinstance(old, dict):
            old.clear()
            old.update(saved)
        for place in places:
            setattr(place, name, old)
        forget()


def predict(run: Run) -> tuple[float, float, float]:
    memory = estimate_memory(run.recipe, run.layout, run.rates, headroom=0.0)
    return estimate_time(run.recipe, run.layout, run.rates).iteration_time_s, memory.allocated, memory.peak


@pytest.fixture(scope="session")
def plain() -> list[tuple[Run, tuple[float, float, float]]]:
    """One row of every kind, with its predictions."""
    machines, found, kinds = Machines(), [], set()
    for name, rows in TABLES.items():
        for row in rows:
            try:
                run = run_of(row, machines)
            except UsageError:
                continue
            f, r = run.recipe.features, run.recipe
            mixers = frozenset((k.mixer, k.mlp) for k in r.architecture.layers())
            graphed, fsdp = bool(f.cuda_graph), run.layout.fsdp
            many = run.layout.dp > 500  # where what grows with the ranks is all there is
            kind = (mixers, r.precision, r.task, run.rates.product.name, f.framework, f.dispatcher, graphed, fsdp, many)
            if name == "probes" or kind not in kinds:
                kinds.add(kind)
                found.append((run, predict(run)))
    return found


LAST: list[int] = [0]


@pytest.mark.parametrize(("module", "name", "path"), CONSTANTS)
def test_a_constant_that_is_larger_by_30_percent_moves_a_prediction(
    module: ModuleType, name: str, path: tuple[Any, ...], plain: list[tuple[Run, tuple[float, float, float]]]
) -> None:
    """What moves is seen by `test_every_prediction_is_the_accepted_one`."""
    with larger(module, name, path):
        order = [*plain[LAST[0] :], *plain[: LAST[0]]]
        for at, (run, before) in enumerate(order):
            if any(abs(b - a) > SAME * a for a, b in zip(before, predict(run), strict=True)):
                LAST[0] = (LAST[0] + at) % len(plain)
                return
    pytest.fail(f"{name} may be 30 % larger and no prediction in validation/ moves: add a row that depends on it")

"""What does each key of Megatron Bridge's configuration do to a plan? Every key with every plausible value, one at a time.

    python scripts/fuzz/bridge_hub.py HUB
    python scripts/fuzz/keys.py --hub HUB [--share 0.1] [--seed 1] [--jobs 2] [--only deepseek] [--keys 'ddp.*'] [--kinds planned,harmless]

Keys and types are those of the dataclasses that a recipe is made of, the values of a word those that Megatron's own source
compares the field with: a new Megatron Bridge is swept without a change here. Each is typed beside a recipe on a machine fit
for it, with the layout that the planner chooses there, and the plan is held against what Bridge builds, as
`scripts/fuzz/bridge.py` does it.

`--kinds`: keys that are planned with, keys said to leave the plan alone (which may change no quantity of it), and the others, of
which a plan says that it is not made with them. Prints what differs, what Bridge refuses, and what is no clean error of
ours, by kind, and exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import functools
import gc
import itertools
import os
import random
import sys
import tempfile
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import bridge
from bridge import Bridge, Case, Outcome, pinned, planned, theirs
from overrides import kind_of

from parlaunch.cli.request import Request
from parlaunch.environment.override_grammar import hydra
from parlaunch.environment.override_keys import harmless
from parlaunch.environment.user_overrides import PINS, STAGES, planned_keys
from parlaunch.errors import NoLayoutError, ParlaunchError
from parlaunch.model import catalog
from parlaunch.planning.plan import Plan

SPREAD = {
    "llama3_8b_pretrain_config": "dgx-h100:1",
    "qwen3_30b_a3b_pretrain_config": "dgx-h100:2",
    "qwen3_next_80b_a3b_pretrain_config": "dgx-h100:4",
    "gemma3_vl_12b_sft_config": "dgx-h100:1",
    "qwen3_vl_30b_a3b_pretrain_8gpu_gb200_fp8mx_config": "gb200-nvl72:2",
    "llama3_70b_pretrain_64gpu_h100_fp8cs_config": "dgx-h100:8",
    "llama3_70b_pretrain_64gpu_gb200_bf16_config": "gb200-nvl72:16",
    "deepseek_v3_pretrain_256gpu_gb200_fp8mx_config": "gb200-nvl72:64",
    "deepseek_v3_pretrain_64gpu_gb300_fp8mx_fsdp_config": "gb300-nvl72:16",
    "nemotron_3_nano_pretrain_16gpu_h100_bf16_config": "dgx-h100:2",
    "deepseek_v4_flash_pretrain_64gpu_gb200_bf16_config": "gb200-nvl72:16",
    "gpt_oss_20b_sft_config": "dgx-h100:1",
    "llama3_70b_peft_config": "dgx-h100:1",
    "wan_1_3b_pretrain_config": "dgx-h100:1",
}
"""A recipe of each kind: dense, experts, vision, benchmarks with TP overlap, FSDP and graphs, hybrid, MLA and sparse attention,
fine-tuning and adapters, diffusion."""

FREE = tempfile.gettempdir()
"""What is said where any text would do: it is also a folder that is there."""

# --- Values -----------------------------------------------------------------------------------------------------------


@functools.cache
def compared() -> Mapping[str, frozenset[str]]:
    """The words that Megatron's source compares a field of each name with."""
    import megatron.bridge
    import megatron.core

    found: defaultdict[str, set[str]] = defaultdict(set)
    for package in (megatron.bridge, megatron.core):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    sides = (node.left, *node.comparators)
                    for name in (s.attr for s in sides if isinstance(s, ast.Attribute)):
                        found[name].update(itertools.chain.from_iterable(map(words, sides)))
    return {name: frozenset(values) for name, values in found.items()}


def words(side: ast.expr) -> Iterator[str]:
    if isinstance(side, ast.Constant) and isinstance(side.value, str) and side.value:
        yield side.value
    elif isinstance(side, ast.List | ast.Tuple | ast.Set):
        for part in side.elts:
            yield from words(part)


def values(name: str, hint: Any, has: object) -> list[object]:
    """Plausible values of a field of that name and type, beside the one it has."""
    found = [v for v in _values(name, hint, has) if type(v) is not type(has) or v != has]
    return list({repr(v): v for v in found}.values())


def _values(name: str, hint: Any, has: object) -> Iterator[object]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for part in args:
            yield from _values(name, part, has)
    elif origin is typing.Literal:
        yield from args
    elif origin is list:
        sample = has[0] if isinstance(has, list) and has else None
        yield from ([v] for v in _values(name, args[0] if args else str, sample) if v is not None)
    elif isinstance(hint, type) and origin is None:
        yield from _of_class(name, hint, has)


def _of_class(name: str, hint: type, has: object) -> Iterator[object]:
    if hint is type(None):
        yield None
    elif issubclass(hint, enum.Enum):
        yield from (member.name for member in hint)
    elif issubclass(hint, bool):
        yield from (True, False)
    elif issubclass(hint, int):
        own = has if isinstance(has, int) and not isinstance(has, bool) else 0
        yield from {1, 2, max(1, own // 2), own * 2 or 4}
    elif issubclass(hint, float):
        own = has if isinstance(has, float) else 0.0
        yield from {0.0, 0.5, own * 2 or 1.0}
    elif issubclass(hint, str):
        yield from sorted(compared().get(name, ())) or [FREE]
    elif f"{hint.__module__}.{hint.__name__}" == "torch.dtype":
        yield from ("torch.float32", "torch.bfloat16")


def typed(config: Any) -> Iterator[tuple[str, list[object]]]:
    """Every key of a configuration that an override may set, with values for it."""
    from parlaunch_probes import bridge_child

    known = frozenset(bridge_child.keys(config))
    for key, holder, field in _fields(config, ""):
        if key in known:
            has = getattr(holder, field.name, None)
            yield key, values(field.name, _hints(type(holder)).get(field.name, field.type), has)


def _fields(config: Any, at: str) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(config):
        inner = getattr(config, field.name, None)
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            yield from _fields(inner, at if f"{at}{field.name}" == "model.transformer" else f"{at}{field.name}.")
        else:
            yield f"{at}{field.name}", config, field


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):  # a type that is imported for the checker alone
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            for name, text in vars(base).get("__annotations__", {}).items():
                try:
                    found[name] = eval(text, vars(sys.modules[base.__module__])) if isinstance(text, str) else text
                except (NameError, TypeError, AttributeError):
                    found.pop(name, None)
        return found


# --- Cases ------------------------------------------------------------------------------------------------------------


def kind(key: str, recipe: str) -> str:
    """What we say of a key: planned, harmless or other."""
    return "planned" if key in planned_keys(catalog.recipe(recipe)) else "harmless" if harmless(key) else "other"


def asked(recipe: str, *typed: str) -> Request:
    """The command line without pins."""
    return Request(
        command="plan", recipe=recipe, hardware=SPREAD[recipe], evidence=False, overrides=(*typed, *theirs(recipe))
    )


def cases(recipes: list[str], keys: str, kinds: list[str]) -> Iterator[tuple[str, str]]:
    """Recipe and KEY=VALUE."""
    from parlaunch_launch.bridge_runner import found

    for recipe in recipes:
        for key, choices in typed(found(recipe)[0]):
            if fnmatchcase(key, keys) and kind(key, recipe) in kinds:
                yield from ((recipe, f"{key}={hydra(v)}") for v in choices)


def outcome(plans: Mapping[str, Plan], drawn: tuple[str, str]) -> Outcome:
    """Plan, build and compare; what the planner refuses with its first layout it may find another for."""
    recipe, pair = drawn
    key = pair.partition("=")[0]
    what = f"{kind(key, recipe)}: {pair}"
    case = Case(
        asked(recipe, pair) if key in PINS or key in STAGES else pinned(asked(recipe, pair), plans[recipe].layout)
    )
    line = str(case)
    try:
        try:
            plan = planned(case)
        except NoLayoutError:
            case = Case(asked(recipe, pair))
            line = str(case)
            plan = planned(case)
    except ParlaunchError as error:
        return Outcome(line, (), ("refused by us", f"  {pair}: {kind_of(error)}"), ())
    except Exception as error:
        return Outcome(line, (f"traceback of ours: {what}: {kind_of(error)}",), (), ())
    return Outcome(line, tuple(f"{what}: {fault}" for fault in bridge.wrong(plan)), ("compared",), ())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub", type=Path, required=True, help="a hub cache written by bridge_hub.py")
    parser.add_argument("--bridge", type=Path, help="a checkout of Megatron-Bridge: its script in place of our runner")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases, drawn by chance")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--keys", default="*", help="keys like this")
    parser.add_argument("--kinds", default="planned,harmless", help="planned, harmless, other")
    parser.add_argument("--why", action="store_true", help="what we refuse, too")
    args = parser.parse_args(argv)
    bridge.BRIDGE = Bridge(args.hub, args.bridge)
    os.environ["XDG_CACHE_HOME"] = str(args.hub)
    recipes = [name for name in SPREAD if args.only in name]
    for name in recipes:
        if not bridge.BRIDGE.loads(name):
            sys.exit(f"{name} does not load: {bridge.BRIDGE.missing[name]}")
    plans = {name: planned(Case(asked(name))) for name in recipes}
    dice = random.Random(args.seed)
    drawn = [c for c in cases(recipes, args.keys, args.kinds.split(",")) if dice.random() < args.share]
    gc.freeze()
    return bridge.count(functools.partial(outcome, plans), drawn, args.jobs).show(why=args.why)


if __name__ == "__main__":
    sys.exit(main())

"""Write parlaunch/data/bridge_fields.json: the keys that Megatron Bridge's configuration has, by version, and the values they take.

    python scripts/make/bridge_fields.py 0.5.1=/checkouts/v0.5.1 0.6.2 0.7.0=/checkouts/main

Each word is a version, and behind `=` a checkout of it; without one it is the installed package. Needs the environment
that has megatron-bridge: each version is asked in a process of its own, on the Megatron Core that is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from tables import write

ASK = """
import dataclasses, enum, importlib, json, pkgutil, sys, types, typing
from parlaunch_launch.cpu.bridge_runner import importable
importable()
import megatron.bridge, torch
from megatron.bridge.training.config import ConfigContainer
for found in pkgutil.walk_packages(megatron.bridge.__path__, "megatron.bridge.", onerror=lambda _: None):
    if any(part in found.name for part in (".models.", ".data.", ".training.", ".diffusion.", ".peft.")):
        try:
            importlib.import_module(found.name)
        except Exception:
            pass

def below(cls):
    return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

def classes(hint):
    if isinstance(hint, type):
        return {c for c in below(hint) if dataclasses.is_dataclass(c)} if hint.__module__ != "builtins" else set()
    return set().union(*(classes(part) for part in typing.get_args(hint))) if typing.get_args(hint) else set()

def hints(cls):
    # The types of its fields; one that names what is imported for type checkers only is left out.
    found = {}
    for base in reversed(cls.__mro__):
        for name, hint in vars(base).get("__annotations__", {}).items():
            found.pop(name, None)
            try:
                found[name] = eval(hint, vars(sys.modules[base.__module__])) if isinstance(hint, str) else hint
            except Exception:
                pass
    return found

def kind(hint):
    # bool, int, float, str, list, dtype, the words of an enumeration; None: anything else.
    if hint in (bool, int, float, str, torch.dtype):
        return hint.__name__
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "|".join(hint.__members__)
    origin, parts = typing.get_origin(hint), [p for p in typing.get_args(hint) if p not in (type(None), None)]
    if origin is typing.Literal:
        return "|".join(parts) if all(isinstance(p, str) for p in parts) else None
    if hint in (list, tuple) or origin in (list, tuple):
        return "list"
    kinds = {kind(p) for p in parts} if origin in (typing.Union, types.UnionType) else {None}
    return "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else None

def names(found, depth):
    keys = {}
    for cls in found:
        known = hints(cls)
        for field in dataclasses.fields(cls):
            if field.name.startswith("_"):
                continue
            keys.setdefault(field.name, set()).update({kind(known[field.name])} if field.name in known else ())
            for key, kinds in names(classes(known.get(field.name)), depth - 1).items() if depth else ():
                keys.setdefault(f"{field.name}.{key}", set()).update(kinds)
    return keys

sections = {}
for name, hint in typing.get_type_hints(ConfigContainer).items():
    if not name.startswith("_"):
        sections[name] = {key: list(kinds) for key, kinds in sorted(names(classes(hint), 1).items())}
print(json.dumps(sections))
"""


Answer = dict[str, dict[str, list[str | None]]]
"""Section: field: what its classes say that it is."""


def asked(checkout: str) -> Answer:
    env = {**os.environ, "PYTHONPATH": f"{checkout}/src"} if checkout else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK], capture_output=True, text=True, check=True, env=env
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def main(words: list[str]) -> None:
    versions = [word.partition("=")[0] for word in words]
    answers = [asked(word.partition("=")[2]) for word in words]
    found: dict[str, list[str]] = {}
    for version, answer in zip(versions, answers, strict=True):
        for section, names in answer.items():
            for key in (section, *(f"{section}.{name}" for name in names)):
                found.setdefault(key, []).append(version)
    values = values_of(answers)
    about = (
        "Keys of Megatron Bridge's ConfigContainer (training/config.py), of all model providers and data sets together, and "
        "the versions that have them; an empty list: all. What versions inherit from Megatron Core is as in Core 0.19.2. "
        "`values`: what fields take that are of one simple type in all of them, by that type or the words of an enumeration, and by "
        "section. Made by scripts/make/bridge_fields.py."
    )
    keys = {key: [] if has == versions else has for key, has in sorted(found.items())}
    made = {"about": about, "versions": versions, "values": values, "keys": keys}
    print(write("bridge_fields", made), len(keys), "keys")


def values_of(answers: Sequence[Answer]) -> dict[str, dict[str, str]]:
    """What a value has to be: section: its fields, in one line. A field of several kinds, or of none that is simple, is left out."""
    said: dict[tuple[str, str], set[str | None]] = {}
    for answer in answers:
        for section, fields in answer.items():
            for field, kinds in fields.items():
                if "." not in field or section != "model":
                    said.setdefault((section, field), set()).update(kinds)
    found: dict[str, dict[str, list[str]]] = {}
    for (section, field), kinds in sorted(said.items()):
        if (one := one_of(kinds)) is not None:
            found.setdefault(one, {}).setdefault(section, []).append(field)
    return {one: {section: " ".join(names) for section, names in at.items()} for one, at in sorted(found.items())}


def one_of(kinds: set[str | None]) -> str | None:
    """The kind that all agree on; enumerations of different versions together, and of what others call a word. None: there is
    nothing to hold a value against."""
    words = [kind.split("|") for kind in kinds if kind and "|" in kind]
    if words and len(words) == len(kinds - {"str"}):
        return "|".join(dict.fromkeys(word for some in sorted(words) for word in some))
    if len(kinds) == 1:
        return next(iter(kinds - {"str"}), None)
    return "float" if kinds == {"int", "float"} else None


if __name__ == "__main__":
    main(sys.argv[1:])

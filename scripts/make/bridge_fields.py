"""Write parlaunch/data/bridge_fields.json: the keys that Megatron Bridge's configuration has, by version.

    python scripts/make/bridge_fields.py 0.5.1=/checkouts/v0.5.1 0.6.2 0.7.0=/checkouts/main

Each word is a version, and behind `=` a checkout of it; without one it is the installed package. Needs the environment
that has megatron-bridge: each version is asked in a process of its own, on the Megatron Core that is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tables import write

ASK = """
import dataclasses, importlib, json, pkgutil, typing
from parlaunch_launch.cpu.bridge_runner import importable
importable()
import megatron.bridge
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
    try:
        return typing.get_type_hints(cls)
    except Exception:
        return {}

def names(found, depth):
    keys = set()
    for cls in found:
        known = hints(cls)
        for field in dataclasses.fields(cls):
            if field.name.startswith("_"):
                continue
            keys.add(field.name)
            inner = classes(known.get(field.name)) if depth else ()
            keys |= {f"{field.name}.{key}" for key in names(inner, depth - 1)} if inner else set()
    return keys

sections = {}
for name, hint in typing.get_type_hints(ConfigContainer).items():
    if not name.startswith("_"):
        sections[name] = sorted(names(classes(hint), 1))
print(json.dumps(sections))
"""


def asked(checkout: str) -> dict[str, list[str]]:
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
    about = (
        "Keys of Megatron Bridge's ConfigContainer (training/config.py), of all model providers and data sets together, and "
        "the versions that have them; an empty list: all. What versions inherit from Megatron Core is as in Core 0.19.2. "
        "Made by scripts/make/bridge_fields.py."
    )
    keys = {key: [] if has == versions else has for key, has in sorted(found.items())}
    print(write("bridge_fields", {"about": about, "versions": versions, "keys": keys}), len(keys), "keys")


if __name__ == "__main__":
    main(sys.argv[1:])

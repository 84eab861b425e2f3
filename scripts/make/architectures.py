"""Bring parlaunch/data/architectures.json up to Hugging Face configurations, those of a hub cache or files by name.

    python scripts/make/architectures.py                       the cache of $HF_HOME: what differs, a line each; exit 1 then
    python scripts/make/architectures.py ORG/NAME=config.json  this model, from a file
    python scripts/make/architectures.py --write [...]         takes the configurations' word into the table, new models too

A configuration is read as `--model-config` reads it. Fields that no config.json has stay as the table has them: `params` as model
cards count them, `vision`, `kind`, what only Bridge's provider sets (`make_vocab_size_divisible_by`, `moe_layer_pattern` of
some families), and the sources. Models whose configuration is not at hand are left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from tables import DATA, write

from parlaunch.errors import ParlaunchError
from parlaunch.model.architecture import Architecture, architecture_from_json
from parlaunch.model.hf_config import architecture_from_hf
from parlaunch.model.parameters import active_params, total_params

PROVIDERS = ("kind", "encoder", "make_vocab_size_divisible_by")
"""Fields that Megatron Bridge's provider decides, or that the table knows better than one file."""


def cached(home: Path) -> Iterator[tuple[str, Path]]:
    """Model and configuration of every model in a hub cache."""
    for path in sorted(home.glob("hub/models--*--*/snapshots/*/config.json")):
        _, org, name = path.parents[2].name.split("--", 2)
        yield f"{org}/{name}", path


def row_of(model: str, found: Architecture) -> dict[str, Any]:
    """A new row: what is not Megatron's default."""
    defaults = {f.name: f.default for f in fields(Architecture) if f.default is not MISSING}
    shape = {k: v for k, v in found.shape().items() if k not in PROVIDERS and v != defaults.get(k, MISSING)}
    counted = {"formula_language_model": total_params(found), "active_language_model": active_params(found)}
    return {"kind": found.kind, "source": f"config.json of {model}", **shape, "params": counted}


def differences(row: dict[str, Any], found: Architecture) -> dict[str, tuple[Any, Any]]:
    """Field, what the table says, what the configuration says."""
    ours, theirs = architecture_from_json(row).shape(), found.shape()
    return {k: (ours[k], theirs[k]) for k in ours if k not in PROVIDERS and ours[k] != theirs[k]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="ORG/NAME=FILE")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    wanted = [(m.partition("=")[0], Path(m.partition("=")[2])) for m in given.models] or list(cached(home))
    table = json.loads((DATA / "architectures.json").read_text(encoding="utf-8"))
    differ = False
    for model, path in wanted:
        try:
            found = architecture_from_hf(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ParlaunchError) as error:
            print(f"{model}: not read: {str(error).splitlines()[0]}")
            continue
        if model not in table:
            differ = True
            print(f"{model}: new")
            table[model] = row_of(model, found)
            continue
        for name, (ours, theirs) in differences(table[model], found).items():
            differ = True
            print(f"{model}: {name}: {ours} in the table, {theirs} in the configuration")
            table[model][name] = theirs
    if given.write:
        print(write("architectures", table))
        return 0
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

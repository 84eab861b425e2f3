"""Hold our environment against a table of tuned layouts, cell by cell: one cell is one variable of one row.

    python scripts/bench/tuned_environments.py TABLE.json [--all]

TABLE has `rows` with `name`, `hardware`, `gpus`, `layout`, `features` and `env`. A variable that neither sets is a cell only
for rows of tables in which some row sets it. Exit 1 below 98 %. `--all` prints every cell that differs, not each kind once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parlaunch.environment.settings import settings
from parlaunch.errors import UsageError
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import preset
from parlaunch.model import catalog
from parlaunch.model.layout import Layout, recompute_from_json
from parlaunch.model.recipe import Recipe, features_from_json

WANTED = 0.98

REASONS: tuple[tuple[str, str, str], ...] = (
    # variable, beginning of the recipe's name, why NVIDIA's value follows no rule
    ("NCCL_IGNORE_CPU_AFFINITY", "llama31_405b_pretrain_256gpu_b300", "a name for the GB300 function, whose variables it keeps"),
    ("NVTE_DPA_FP8_RECIPE", "llama3_8b", "one recipe of 438 chooses an FP8 recipe for attention by variable"),
    ("NUM_OF_TOKENS_PER_CHUNK_DISPATCH_API", "qwen35_vl_35b", "one recipe of 438 sets it"),
    ("NUM_OF_TOKENS_PER_CHUNK_PREPROCESSING_API", "qwen35_vl_35b", "one recipe of 438 sets it"),
    ("NVTE_NORM_FWD_USE_CUDNN", "", "chosen by measurement, recipe by recipe: siblings with the same features differ"),
    ("NVTE_NORM_BWD_USE_CUDNN", "", "chosen by measurement, recipe by recipe: siblings with the same features differ"),
)  # fmt: skip


def recipe_of(row: Mapping[str, Any]) -> Recipe:
    """The catalog's recipe of that name; a row whose name it does not know is read as it stands."""
    try:
        return catalog.recipe(row["name"])
    except UsageError:
        return Recipe(
            name=row["name"], source="catalog", task=row["task"], model=row["model"], model_id=row["model_id"],
            architecture=catalog.architecture(row["model_id"]), seq_length=row["seq"], global_batch_size=row["gbs"],
            precision=row["precision"], gpus=row["gpus"], hardware=row["hardware"],
            features=features_from_json(row.get("features")), benchmark=row.get("kind") == "benchmark",
        )  # fmt: skip


def layout_of(row: Mapping[str, Any], recipe: Recipe) -> Layout:
    given = row["layout"]
    chunks = given.get("layers_per_chunk")
    return Layout(
        world=row["gpus"], tp=given["tp"], pp=given["pp"], vp=given.get("vp"), cp=given["cp"], ep=given["ep"] or 1,
        etp=given.get("etp") or 1, micro_batch_size=given.get("mbs") or 1, global_batch_size=row["gbs"],
        recompute=recompute_from_json(given.get("recompute")), fsdp=recipe.features.fsdp,
        layers_per_chunk=None if chunks is None else tuple(chunks),
    )  # fmt: skip


def machine(hardware: str, gpus: int) -> Cluster:
    """As many nodes of that machine as hold the GPUs."""
    size = preset(hardware).gpus_per_node
    return preset(hardware, max(1, -(-gpus // size)))


def why(variable: str, recipe: Recipe) -> str:
    if not recipe.benchmark:
        return "the library has a recipe of the same name, whose own variables stand"
    found = (text for v, begin, text in REASONS if v == variable and recipe.name.startswith(begin))
    return next(found, "no rule found")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--all", action="store_true", help="every cell that differs")
    args = parser.parse_args(argv)
    rows = [r for r in json.loads(args.table.read_text())["rows"] if r.get("env")]
    names = sorted({name for row in rows for name in row["env"]})
    wrong: list[tuple[str, Recipe, str | None, str | None]] = []
    for row in rows:
        recipe = recipe_of(row)
        made = settings(machine(row["hardware"], row["gpus"]), recipe, layout_of(row, recipe), {})
        ours = {v.name: v.value for v in made}
        theirs = {k: str(v) for k, v in row["env"].items()}
        wrong += [(n, recipe, theirs.get(n), ours.get(n)) for n in names if ours.get(n) != theirs.get(n)]
    cells = len(rows) * len(names)
    kinds = Counter(name for name, *_ in wrong)
    for name, recipe, theirs_value, ours_value in wrong if args.all else ():
        print(f"{name:45} {recipe.name}: {theirs_value} by NVIDIA, {ours_value} by us: {why(name, recipe)}")
    print(
        f"{len(rows)} rows x {len(names)} variables: {cells} cells, {cells - len(wrong)} agree ({1 - len(wrong) / cells:.2%})"
    )
    written = sum(len(row["env"]) for row in rows)
    missed = sum(1 for _, _, t, _ in wrong if t is not None)
    print(f"cells that NVIDIA sets: {written}, {written - missed} agree ({1 - missed / written:.2%})")
    for name, count in kinds.most_common():
        reasons = sorted({why(n, r) for n, r, *_ in wrong if n == name})
        print(f"  {count:3} {name}: {'; '.join(reasons)}")
    return 0 if len(wrong) <= (1 - WANTED) * cells else 1


if __name__ == "__main__":
    sys.exit(main())

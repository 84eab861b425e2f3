"""Write parlaunch/data/evidence.json: the layouts that Megatron Bridge publishes, and what was measured of today's software.

    python scripts/make/evidence.py              measured rows from validation/, published ones as the table has them
    python scripts/make/evidence.py --bridge     with the Python of a Megatron Bridge: its benchmark recipes' layouts, too
    python scripts/make/evidence.py --check      writes nothing; prints what differs and exits 1

Kept are facts: who ran what with which sizes, and what was measured. A recipe that this Bridge does not have, or whose Hugging
Face configuration is not at hand (`scripts/fuzz/bridge_hub.py` makes a cache of our own table), keeps its row. `feasible` and
`violations` are our rules' verdict on a layout as it was published, and stay with it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables import DATA, write

from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.datasheet import product as sheet_of
from parlaunch.model.catalog import catalog_row

VALIDATION = Path(__file__).parents[2] / "validation"
SIZES = ("tp", "pp", "vp", "cp", "ep", "etp", "mbs", "recompute", "layers_per_chunk",
         "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")  # fmt: skip
PLAIN = {"vp": None, "cp": 1, "ep": 1, "etp": 1, "recompute": None, "layers_per_chunk": None}


def sizes(row: dict[str, Any]) -> dict[str, Any]:
    """The layout without what is at its default."""
    return {
        k: row[k]
        for k in SIZES
        if row.get(k) is not None and row[k] is not False and (k not in PLAIN or row[k] != PLAIN[k])
    }


def product(hardware: str) -> str:
    """Our name of the GPU in a machine."""
    sheet = sheet_of(preset(hardware).gpu.name)
    assert sheet is not None
    return sheet.name


def measured() -> Iterator[dict[str, Any]]:
    """Runs of today's Megatron Bridge whose layout and tokens a second are known."""
    for path in sorted(VALIDATION.glob("*.jsonl")):
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if all(row.get(k) for k in ("model_id", "current", "tokens_per_s_per_gpu", "mbs")):
                yield {
                    "name": row["id"], "source": row["source"], "model_id": row["model_id"],
                    "product": product(row["hardware"]), "gpus": row["gpus"], "precision": row["precision"],
                    "task": row["task"].split("_")[0], "seq": row["seq"], "gbs": row["gbs"], "layout": sizes(row),
                    "tokens": row["tokens_per_s_per_gpu"], "tflops": row.get("model_tflops_per_gpu"),
                    "framework": row["framework"],
                    **({"fsdp": True} if (row.get("features") or {}).get("fsdp") else {}),
                }  # fmt: skip


def as_bridge_has_it(row: dict[str, Any]) -> dict[str, Any]:
    """A published row with the sizes, batch and precision of this Bridge's recipe; as it is where that cannot be built."""
    from parlaunch_launch.bridge_runner import found
    from parlaunch_probes.bridge_child import describe

    try:
        said = describe(*found(row["name"]))
    except Exception as error:
        print(f"{row['name']}: kept: {str(error).splitlines()[0][:100]}", file=sys.stderr)
        return row
    layout = said["layout"] | {"mbs": said["layout"]["micro_batch_size"]}
    if not layout["recompute"]["granularity"]:
        layout["recompute"] = None
    else:
        layout["recompute"] = {k: v for k, v in layout["recompute"].items() if v}
    kept = {k: v for k, v in row["layout"].items() if k.startswith("account_for") or k == "layers_per_chunk"}
    known = catalog_row(row["name"])
    made = {k: v for k, v in row.items() if k != "fsdp"} | {
        # A recipe that leaves its length to the data names a placeholder.
        "seq": known["seq"] if known.get("mock_tokens") else said["seq_length"], "gbs": said["global_batch_size"], "precision": said["precision"],
        "layout": sizes(layout) | kept,
    }  # fmt: skip
    return made | ({"fsdp": True} if said["features"]["fsdp"] else {})


def main() -> int:
    table = json.loads((DATA / "evidence.json").read_text(encoding="utf-8"))
    published = [row for row in table["rows"] if "tokens" not in row]
    if "--bridge" in sys.argv:
        from parlaunch_launch.cpu.bridge_runner import importable

        logging.disable(logging.CRITICAL)
        importable()
        published = [as_bridge_has_it(row) for row in published]
    before = {row["name"]: row for row in table["rows"]}
    rows = [*published, *measured()]
    after = {row["name"]: row for row in rows}
    different = sorted(name for name in before | after if before.get(name) != after.get(name))
    print("\n".join(different))
    if "--check" in sys.argv:
        return 1 if different else 0
    print(write("evidence", table | {"rows": rows}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

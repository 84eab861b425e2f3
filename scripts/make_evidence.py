"""Write parlaunch/data/evidence.json from tables of published layouts and of measured runs.

    python scripts/make_evidence.py LAYOUTS.json RUNS.json > parlaunch/data/evidence.json

Kept are facts: who ran what with which sizes, and what was measured. Rows of today's software only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from parlaunch.datasheet import preset

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


def published(row: dict[str, Any]) -> dict[str, Any]:
    out = {
        "name": row["name"], "source": "Megatron Bridge benchmark recipes", "model_id": row["model_id"],
        "product": product(row["hardware"]), "gpus": row["gpus"],
        "precision": row["precision"], "task": row["task"], "seq": row["seq"], "gbs": row["gbs"],
        "layout": sizes(row["layout"]),
    }  # fmt: skip
    if row["features"].get("fsdp"):
        out["fsdp"] = True
    if not row["feasible"]:
        out |= {"feasible": False, "violations": row["violations"]}
    return out


def measured(row: dict[str, Any]) -> dict[str, Any]:
    out = {
        "name": row["id"], "source": row["source"], "model_id": row["model_id"], "product": product(row["hardware"]),
        "gpus": row["gpus"], "precision": row["precision"], "task": row["task"].split("_")[0], "seq": row["seq"],
        "gbs": row["gbs"], "layout": sizes(row), "tokens": row.get("tokens_per_s_per_gpu"), "tflops": row.get("model_tflops_per_gpu"),
        "framework": row["framework"],
    }  # fmt: skip
    if (row.get("features") or {}).get("fsdp"):
        out["fsdp"] = True
    return out


def product(hardware: str) -> str:
    """Our name of the GPU in a machine."""
    from parlaunch.datasheet import product as sheet_of

    sheet = sheet_of(preset(hardware).gpu.name)
    assert sheet is not None
    return sheet.name


def main() -> None:
    layouts, runs = (json.loads(Path(path).read_text(encoding="utf-8"))["rows"] for path in sys.argv[1:3])
    rows = [published(r) for r in layouts]
    rows += [
        measured(r)
        for r in runs
        if r.get("model_id") and r.get("current") and r.get("tokens_per_s_per_gpu") and r.get("mbs")
    ]
    lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
    print('{"about":"Published layouts and measured runs: facts, each with its source.","rows":[\n' + lines + "\n]}")


if __name__ == "__main__":
    main()

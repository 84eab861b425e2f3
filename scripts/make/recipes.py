"""Bring parlaunch/data/recipes.json up to an installed Megatron Bridge: run with that Bridge's Python.

    python scripts/make/recipes.py               what differs, a line each; exit 1 when something does
    python scripts/make/recipes.py --write       takes Bridge's word into the table, new names too
    python scripts/make/recipes.py NAME ...      these recipes only

Every recipe function of `megatron.bridge.recipes`, or each named one as Bridge's script finds it (a benchmark, whose layout is
evidence.json's), is built and described by the probe's own child (`parlaunch_probes.bridge_child`), so a row says what a plan with
Bridge installed would be told. Recipes whose Hugging Face
configuration is not at hand (no network, no cache: `scripts/fuzz/bridge_hub.py` makes one of our own table) are named and
left alone.

Not to be had from Bridge, and kept as the table has them: `model_id` and `model` (our names), `mock_tokens` (defaults of two
data modules), what of `unsettled` releases differ in, `feasible` and `violations` (our rules' verdict on the published
layout), `aliases`. New rows take `gpus`, `hardware` and `precision` from the function's name, where Bridge writes them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from typing import Any

from tables import DATA, write

from parlaunch_launch.cpu.bridge_runner import importable

FIELDS = {"seq": "seq_length", "gbs": "global_batch_size", "precision": "precision"}
SIZES = ("tp", "pp", "vp", "cp", "ep", "etp", "sequence_parallel")
FACTS = ("folder", "packing", "loader", "train_iters")
SWITCHED = (
    "cross_entropy", "frozen_language_model", "frozen_encoder", "external_cuda_graph", "precision_aware_optimizer",
    "grad_reduce_fp32", "fp4_param_gather", "no_distributed_optimizer", "no_dp_overlap", "no_reduce_overlap", "no_gather_overlap",
    "router_padding", "fp8_attention", "fp8_output",
    "fp8_param_gather", "bf16_ends", "module_formats", "adapter_rank", "adapter_targets", "adapter_dropout", "adapter_a2a",
    "tp_overlap", "transpose_cache", "fused_accumulation", "router_fusion", "activation_fusion", "rope_fusion", "transformer_impl",
    "cpu_offload_layers", "optimizer_offload", "expert_capacity",
)  # fmt: skip
USUAL = {
    "transpose_cache": True, "cross_entropy": "native", "fused_accumulation": True, "router_fusion": True, "activation_fusion": True,
    "rope_fusion": True,
    "transformer_impl": "transformer_engine",
}  # fmt: skip
"""What a switch is where a library recipe's row does not say it; else off."""
NAMED = re.compile(
    r"(?P<model>.+?)_(?P<task>pretrain|sft|peft)_(?P<gpus>\d+)gpu_(?P<hardware>[a-z0-9]+)_(?P<precision>[a-z0-9]+)"
)


def names() -> list[str]:
    """Every recipe function that Bridge exports under its full name."""
    importable()
    module = importlib.import_module("megatron.bridge.recipes")
    return sorted(n for n in dir(module) if n.endswith("_config") and NAMED.match(n))


def described(name: str) -> dict[str, Any]:
    """What the probe's child says of a recipe."""
    words = [sys.executable, "-W", "ignore", "-m", "parlaunch_probes.bridge_child", name]
    words += ["parlaunch_launch.bridge_runner:found", "parlaunch_launch.cpu.bridge_runner:importable"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    line = next((x for x in reversed(done.stdout.splitlines()) if x.startswith("{")), None)
    return dict(json.loads(line)) if line else {"error": (done.stderr.splitlines() or ["no answer"])[-1]}


def row_of(name: str, said: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    """The row as Bridge has it, on top of the old one."""
    found = NAMED.match(name)
    row = dict(old or {"name": name, "kind": "library"})
    if old is None and found:
        row |= {k: found[k] for k in ("task", "model", "hardware")} | {
            "gpus": int(found["gpus"]),
            "model_id": found["model"],
        }
    for ours, theirs in FIELDS.items():
        if said[theirs] is not None and not (ours == "seq" and row.get("mock_tokens")):
            row[ours] = said[theirs]
    row["kind"] = "benchmark" if ".perf_recipes." in said["facts"]["module"] else "library"
    if row["kind"] == "library":
        layout = dict(row.get("layout") or {})
        layout |= {k: said["layout"][k] for k in SIZES} | {"mbs": said["layout"]["micro_batch_size"]}
        row["layout"] = layout
    for field in FACTS:
        row.pop(field, None)
        if said["facts"][field] and not (field == "train_iters" and row["kind"] == "benchmark"):
            row[field] = said["facts"][field]
    row |= {"unsettled": sorted({*row.get("unsettled", ()), *said["unsettled"]}), "bare": said["bare"]}
    row["optimizer"] = said["facts"]["optimizer"]
    for field, usual in (("unsettled", []), ("bare", []), ("optimizer", "adam")):
        if row[field] == usual:
            del row[field]
    features = dict(row.get("features") or {})
    for field in SWITCHED:
        features.pop(field, None)
        value = said["features"].get(field) or False
        if value != USUAL.get(field, False) or (field == "cross_entropy" and row["kind"] == "benchmark"):
            features[field] = value
    row.pop("added_mtp_layers", None)
    if added := _added_layers(said["model"], row["model_id"]):
        row["added_mtp_layers"] = added
    return row | ({"features": features} if features else {})


def _added_layers(model: dict[str, Any], model_id: str) -> int:
    """Multi-token prediction layers that the recipe has beyond its model's, below 0 where it trains without them."""
    known = json.loads((DATA / "architectures.json").read_text(encoding="utf-8")).get(model_id)
    if known is None or known.get("provider", known).get("hybrid_layer_pattern") or "mtp_num_layers" not in model:
        return 0  # a hybrid's pattern says it
    return (model["mtp_num_layers"] or 0) - (known.get("provider", known).get("mtp_num_layers") or 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    table = json.loads((DATA / "recipes.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in table["recipes"]}
    stale = 0
    for name in asked.names or names():
        full = table["aliases"].get(name, name)
        said = described(name)
        if "error" in said:
            print(f"{name}: not built: {said['error']}")
            continue
        made = row_of(full, said, rows.get(full))
        changes = [f"{k} {rows.get(full, {}).get(k)} -> {v}" for k, v in made.items() if rows.get(full, {}).get(k) != v]
        if changes:
            stale += 1
            print(f"{full}: {'; '.join(changes)}")
            rows[full] = made
    if asked.write:
        write("recipes", table | {"recipes": list(rows.values())})
    return int(stale > 0 and not asked.write)


if __name__ == "__main__":
    sys.exit(main())

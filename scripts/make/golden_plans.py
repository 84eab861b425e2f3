#!/usr/bin/env python3
"""Write the eight saved plans in tests/golden/plans that the screen is tested with. Read the diff afterwards.

The nodes of a preset are left out: the test puts them back. So a plan of 16,384 GPUs is a small file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "tests" / "golden" / "plans"
PLANS = {
    "one-gpu": "--recipe llama32_1b_peft_config --hardware rtx4090:1 --nproc-per-node 1",
    "dense": "--recipe llama3_70b_pretrain_config --hardware dgx-h100:8",
    "moe": "--recipe qwen3_30b_a3b_pretrain_config --hardware dgx-h100:2",
    "long-context": "--recipe llama3_8b_128k_pretrain_config --hardware dgx-h200:4",
    "does-not-fit": "--recipe llama3_70b_pretrain_config --hardware dgx-h100:1 "
    "--tp 8 --pp 1 --cp 1 --micro-batch-size 1 --recompute none",
    "ethernet": "--recipe llama3_8b_pretrain_config --hardware l40s-pcie-8:4",
    "nvl72": "--recipe deepseek_v3_pretrain_config --hardware gb200-nvl72:4096 --global-batch-size 32768",
    "cpu": "--recipe llama32_1b_pretrain_config --device cpu --nproc-per-node 4 --tp 2 --pp 2",
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in PLANS.items():
            file = Path(scratch, "plan.json")
            command = [sys.executable, "-m", "parlaunch", "plan", *words.split(), "--save-plan", str(file), "--quiet"]
            subprocess.run(command, check=name != "does-not-fit", cwd=scratch)
            plan = json.loads(file.read_text(encoding="utf-8"))
            plan["argv"] = ["python" if word == sys.executable else word for word in plan["argv"]]
            plan["rank_order"], hardware = [], plan["hardware"]
            if hardware["source"].startswith("preset"):
                per_node = len(hardware["nodes"][0]["gpus"])
                plan["hardware"] = {"preset": hardware["source"].removeprefix("preset "), "gpus_per_node": per_node}
            else:
                hardware["nodes"] = [
                    {"hostname": "node0", "gpus": [{"index": g["index"], "name": g["name"]} for g in n["gpus"]]}
                    for n in hardware["nodes"]
                ]
                hardware["notes"] = []
            (FOLDER / f"{name}.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

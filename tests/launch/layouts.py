"""Run by every rank of torchrun: several trainings one after another in the same processes, each in its own layout.

    torchrun … tests/launch/layouts.py CASES.json     [["recipe", ["KEY=VALUE", …]], …]

Starting four ranks takes longer than training them: this way one start serves all layouts. What runs is the runner's own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from parlaunch_launch.cpu import core_runner
from parlaunch_launch.cpu.missing import fill_in
from parlaunch_launch.cpu.report import say


def main(cases: Path) -> None:
    fill_in()
    from parlaunch_launch.cpu.stand_ins import train_on_cpu

    train_on_cpu()
    dist.init_process_group("gloo")
    for number, (recipe, overrides) in enumerate(json.loads(cases.read_text())):
        dist.barrier()
        if dist.get_rank() == 0:
            say(f"== case {number}")
        dist.barrier()
        said, _ = core_runner.settings(recipe, overrides, int(os.environ["WORLD_SIZE"]))
        core_runner.run(said)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

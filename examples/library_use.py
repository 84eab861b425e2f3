#!/usr/bin/env python3
"""Plan from Python: how many DGX H100 does Llama 3 70B want, if an iteration may take 20 seconds?

The library decides and touches nothing: no GPU, no torch, no network. Run it with `python examples/library_use.py`.
"""

from __future__ import annotations

from parlaunch.catalog import recipe
from parlaunch.datasheet import preset
from parlaunch.errors import NoLayoutError
from parlaunch.plan import Plan, Wishes
from parlaunch.planner import plan
from parlaunch.units import gib, seconds

GOAL_S = 20.0


def plans(name: str, machine: str) -> list[Plan]:
    """The best plan for each count of nodes, doubling, until the goal is met."""
    found: list[Plan] = []
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        try:
            found.append(plan(preset(machine, nodes), recipe(name), Wishes(top=0)))
        except NoLayoutError as error:
            print(f"{nodes:>3} nodes: {error.problem.partition(':')[0]}")
            continue
        if found[-1].chosen.estimate.iteration_time_s <= GOAL_S:
            break
    return found


def main() -> None:
    for made in plans("llama3_70b_pretrain_config", "dgx-h100"):
        estimate, memory = made.chosen.estimate, made.chosen.memory
        low, high = (estimate.iteration_time_s * (1 + sign * estimate.error_band) for sign in (-1, 1))
        print(
            f"{len(made.cluster.nodes):>3} nodes: {made.layout}, {gib(memory.peak)} a GPU, "
            f"{seconds(low)} to {seconds(high)} an iteration"
        )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Plan from Python: how many DGX H100 does Llama 3 70B want, if an iteration may take 20 seconds?

Planning for a preset needs no GPU, no torch and no network. Run it with `python examples/library_use.py`.
"""

from __future__ import annotations

from parlaunch import NoLayoutError, Plan, plan

GOAL_S = 20.0


def plans(recipe: str, machine: str) -> list[Plan]:
    """The best plan for each count of nodes, doubling, until the goal is met."""
    found: list[Plan] = []
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        try:
            found.append(plan(recipe, f"{machine}:{nodes}", top=0))
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
            f"{len(made.cluster.nodes):>3} nodes: {made.layout}, {memory.peak / 2**30:.1f} GiB a GPU, "
            f"{low:.1f} to {high:.1f} s an iteration"
        )


if __name__ == "__main__":
    main()

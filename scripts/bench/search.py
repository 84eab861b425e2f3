"""How long planning takes, and how that grows with the machine and the model.

    python scripts/bench/search.py            the table
    python scripts/bench/search.py --check    exit 1 when a limit is passed

Each row is planned in a process of its own: CPU seconds of the search alone, of a whole plan with `--switches auto` (the default of a
launch), memory the peak of the process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

ROWS = (
    # recipe, machine, nodes, limit in seconds
    ("llama3_8b_pretrain_8gpu_h100_bf16_config", "dgx-h100", 1, 0.03),
    ("llama3_8b_pretrain_8gpu_h100_bf16_config", "dgx-h100", 16, None),
    ("llama3_70b_pretrain_64gpu_h100_bf16_config", "dgx-h100", 8, None),
    ("llama3_70b_pretrain_64gpu_h100_bf16_config", "dgx-h100", 32, None),
    ("llama31_405b_pretrain_512gpu_h100_bf16_config", "dgx-h100", 64, None),
    ("qwen3_30b_a3b_pretrain_8gpu_gb200_bf16_config", "gb200-nvl72", 2, None),
    ("qwen3_235b_a22b_pretrain_256gpu_gb200_bf16_config", "gb200-nvl72", 64, None),
    ("deepseek_v3_pretrain_256gpu_gb200_bf16_config", "gb200-nvl72", 64, None),
    ("deepseek_v3_pretrain_256gpu_gb200_bf16_config", "gb200-nvl72", 512, None),
    ("deepseek_v3_pretrain_256gpu_gb200_bf16_config", "gb200-nvl72", 4096, 1.0),
)
MOST_MIB = 300


def one(name: str, machine: str, nodes: int) -> None:
    """Plan one row three times in this process and print the best time: the first warms the interpreter up."""
    import gc
    from dataclasses import replace

    from parlaunch.cli import COLLECTED
    from parlaunch.hardware.datasheet import preset
    from parlaunch.hardware.rates import rates_of
    from parlaunch.model import catalog
    from parlaunch.planning.plan import Wishes
    from parlaunch.planning.planner import plan
    from parlaunch.planning.search import Search
    from parlaunch.switches.wanted import Wanted

    gc.set_threshold(*COLLECTED)  # as the command line does
    recipe, cluster = catalog.recipe(name), preset(machine, nodes)
    times = []
    for number in range(3):
        # Unlike the last ones: nothing that was estimated for those is known.
        rates = replace(rates_of(cluster), assumed=(f"measurement {number}",))
        search = Search(recipe, rates, Wishes())
        started = time.process_time()
        found = search.run()
        times.append(time.process_time() - started)
    whole = []
    for number in range(2):
        rates = replace(rates_of(cluster), assumed=(f"switches {number}",))
        started = time.process_time()
        plan(cluster, recipe, Wishes(switches=Wanted(auto=True)), rates=rates)
        whole.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(times[0], min(times), min(whole), found.legal, peak, found.ranked[0].layout, sep="\t")


def main() -> int:
    print(f"{'recipe':<50} {'GPUs':>6} {'first':>8} {'best':>8} {'auto':>8} {'visited':>8} {'MiB':>5}  first choice")
    failed = False
    for name, machine, nodes, limit in ROWS:
        command = [sys.executable, __file__, "one", name, machine, str(nodes)]
        first, best, auto, visited, peak, layout = subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.strip().split("\t")  # fmt: skip
        gpus = nodes * (4 if machine.startswith("gb") else 8)
        over = (limit is not None and float(best) > limit) or float(peak) > MOST_MIB
        failed |= over
        print(
            f"{name:<50} {gpus:>6} {float(first):>7.3f}s {float(best):>7.3f}s {float(auto):>7.3f}s {visited:>8} {float(peak):>5.0f}  {layout}"
            + (f"  OVER {limit} s, {MOST_MIB} MiB" if over else "")
        )
    return int(failed and "--check" in sys.argv)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())

"""Write the captures under tests/machines/ anew, from the machines of tests/probes/machines.py.

    python scripts/make/machines.py [NAME ...]

Run it after a change in what a capture holds, and read the diff.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from parlaunch_probes.capture import save  # noqa: E402
from tests.fake_nvml import Fake, build  # noqa: E402
from tests.probes.machines import MACHINES, capture  # noqa: E402


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "texts").mkdir()
        fake = Fake(build(scratch), scratch / "texts")
        for name in names or MACHINES:
            taken = capture(name, fake, scratch / name)
            path = save(ROOT / "tests" / "machines" / name, taken, about=MACHINES[name].about)
            node = taken.cluster.nodes[0]
            print(f"{name}: {len(node.gpus)} GPUs, {node.link_type}, {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])

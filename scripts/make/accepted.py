"""Write validation/accepted.json: the predictions for every table in validation/, as a change of the estimate leaves them.

    python scripts/make/accepted.py [--because "why the error of a source may rise"]

Prints what moved since the last time. A source whose mean error rises above the best that it was accepted with, or that is gone, is
refused without a reason, and the reason stays in the file: the tests hold every prediction against it, and the file against git's history.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from parlaunch.check.accepted import accept, moved, record, summary, worse
from parlaunch.cli.accuracy import rows_of

HERE = Path(__file__).parents[2] / "validation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--because", help="why the error of a source may rise")
    args = parser.parse_args()
    file = HERE / "accepted.json"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing, and with it the best that each source was accepted with: git checkout -- {file}"
        )
    now = record({path.stem: rows_of(path) for path in sorted(HERE.glob("*.jsonl"))})
    accepted = json.loads(file.read_text())
    print(summary(moved(accepted, now)))
    risen = worse(accepted, now)
    for each in risen:
        print(each)
    if risen and not args.because:
        raise SystemExit('not accepted: say why with --because "…", or leave the estimate as it was')
    now = accept(accepted, now, args.because)
    file.write_text(json.dumps(now, separators=(",", ": "), indent=None).replace('"rows"', '\n"rows"') + "\n")


if __name__ == "__main__":
    main()

"""Write validation/accepted.json: the predictions for every table in validation/, as a change of the estimate leaves them.

    python scripts/make/accepted.py [--because "why the error of a table may rise"]

Prints what moved since the last time. A table whose mean error rises is refused without a reason, and the reason stays in the
file: the tests hold every prediction against it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from parlaunch.check.accepted import moved, record, risen, summary
from parlaunch.cli.accuracy import rows_of

HERE = Path(__file__).parents[2] / "validation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--because", help="why the error of a table may rise")
    args = parser.parse_args()
    file = HERE / "accepted.json"
    now = record({path.stem: rows_of(path) for path in sorted(HERE.glob("*.jsonl"))})
    accepted = json.loads(file.read_text()) if file.exists() else {"tables": {}, "rises": []}
    print(summary(moved(accepted, now)))
    worse = risen(accepted, now)
    for sentence in worse:
        print(sentence)
    if worse and not args.because:
        raise SystemExit('not accepted: say why with --because "…", or leave the estimate as it was')
    now["rises"] = accepted["rises"] + [{"what": sentence, "because": args.because} for sentence in worse]
    file.write_text(json.dumps(now, separators=(",", ": "), indent=None).replace('"rows"', '\n"rows"') + "\n")


if __name__ == "__main__":
    main()

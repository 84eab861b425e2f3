"""What torchrun starts in most of these tests: says who it is, and then does what the variable WORKER asks for."""

import json
import os
import sys
import time

rank = int(os.environ["RANK"])
host = os.environ.get("SLURMD_NODENAME", "")
print(
    "WORKER " + json.dumps({"rank": rank, "world": int(os.environ["WORLD_SIZE"]), "host": host, "argv": sys.argv[1:]}),
    flush=True,
)
what, _, seconds = os.environ.get("WORKER", "ok").partition(":")
if what == "sleep":
    time.sleep(float(seconds))
elif what == "fail" and rank == int(os.environ["WORLD_SIZE"]) - 1:
    sys.exit(3)

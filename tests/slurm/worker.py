"""What torchrun starts in most of these tests: says who it is, and then does what the variable WORKER asks for."""

import json
import os
import sys
import time
from pathlib import Path

rank = int(os.environ["RANK"])
host = os.environ.get("SLURMD_NODENAME", "")
# Into a file of its own: srun mixes the lines of different tasks once they are longer than 1,024 bytes.
said = {"rank": rank, "world": int(os.environ["WORLD_SIZE"]), "host": host, "argv": sys.argv[1:]}
Path(__file__).with_name(f"said-{host}-{os.getpid()}-{time.time_ns()}.json").write_text(json.dumps(said))
what, _, seconds = os.environ.get("WORKER", "ok").partition(":")
if what == "sleep":
    time.sleep(float(seconds))
elif what == "fail" and rank == int(os.environ["WORLD_SIZE"]) - 1:
    sys.exit(3)

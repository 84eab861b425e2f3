"""What torchrun starts in most of these tests: says who it is, and then does what the variable WORKER asks for."""

import json
import os
import signal
import sys
import time
from pathlib import Path

# The machine's own clock, whatever this process is told of it: a file that was written just now.
START = Path(__file__).stat().st_mtime
rank = int(os.environ["RANK"])
host = os.environ.get("SLURMD_NODENAME", "")
# Into a file of its own: srun mixes the lines of different tasks once they are longer than 1,024 bytes.
said = {"rank": rank, "world": int(os.environ["WORLD_SIZE"]), "host": host, "argv": sys.argv[1:]}
said["ahead"] = time.time() > START + 300
said["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
Path(__file__).with_name(f"said-{host}-{os.getpid()}-{time.time_ns()}.json").write_text(json.dumps(said))
what, _, much = os.environ.get("WORKER", "ok").partition(":")
last = rank == int(os.environ["WORLD_SIZE"]) - 1
here = Path(__file__).parent


def save_at(number: int, seconds: float) -> None:
    """As Megatron's exit-signal handler does: take note, finish what is running, write, and end well."""
    told = []
    signal.signal(number, lambda *_: told.append(True))
    (here / f"ready-{rank}").touch()
    while not told:
        time.sleep(0.05)
    time.sleep(seconds)
    (here / f"saved-{rank}").touch()
    # Slurm's own signal and torchrun's both come: an ending Python, which has no handlers any more, would die of the second.
    signal.signal(number, signal.SIG_IGN)


def train(trouble: str) -> None:
    """As many iterations as the command says, logged on the last rank as Megatron does; each training takes less than the one
    before. `trouble` is what the first, or the second, training meets: oom on the first rank, a switch, or nothing ends it."""
    number = sum(path.name.startswith(f"trained-{rank}-") for path in here.iterdir())
    (here / f"trained-{rank}-{number}").touch()
    if number == 0 and rank == 0 and trouble in ("oom", "switch"):
        # A rank that is ended before it could count this training would take the next one for it.
        while len(list(here.glob("trained-*-0"))) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.05)
    if (trouble, number, rank) == ("oom", 0, 0):
        print(OUT_OF_MEMORY, file=sys.stderr, flush=True)
        sys.exit(1)
    if (trouble, number, rank) == ("switch", 0, 0):
        print("ImportError: HybridEP is not installed. Please install it.", file=sys.stderr, flush=True)
        sys.exit(1)
    if (trouble, number) in (("stays", 1), ("oom", 0), ("switch", 0)):
        (here / f"ready-{rank}").touch()
        time.sleep(LONG_S)
    iterations = int(next(w.partition("=")[2] for w in sys.argv if w.startswith("train.train_iters=")))
    for n in range(1, iterations + 1) if last else ():
        print(
            f" [2026-01-01 00:00:00] iteration {n:8d}/{iterations:8d} | elapsed time per iteration (ms): "
            f"{1000.0 / (number + 1):.1f} | lm loss: {12.0 - n:.6E} | number of skipped iterations:   0 | "
            "number of nan iterations:   0 |",
            flush=True,
        )


OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
)
LONG_S = 1200
"""Of workers that nobody ends: twice what a test waits."""

if what == "sleep":
    time.sleep(float(much or LONG_S))
elif what == "deaf":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    (here / f"ready-{rank}").touch()
    time.sleep(LONG_S)
elif what == "until":
    end = time.monotonic() + LONG_S
    while not (here / "go").exists() and time.monotonic() < end:
        time.sleep(0.05)
elif what == "fail" and last:
    sys.exit(3)
elif what == "exit" and last:
    sys.exit(int(much))
elif what == "signal" and last:
    os.kill(os.getpid(), int(much))
    time.sleep(LONG_S)
elif what in ("exit", "signal"):
    time.sleep(LONG_S)  # no communication: nobody would notice
elif what == "follow" and last:
    (here / "going").write_text(str(os.getppid()))
    (here / "going").rename(here / "gone")
    sys.exit(int(much))
elif what == "follow":
    while not (here / "gone").exists():
        time.sleep(0.05)
    while Path("/proc", (here / "gone").read_text()).exists():  # its torchrun, which notes when it ended
        time.sleep(0.05)
    time.sleep(4)  # more than what torchrun's whole seconds hide, less than the grace until the others are ended
    sys.exit(1)
elif what == "save":
    save_at(signal.SIGTERM, rank * float(much))
elif what == "train":
    train(much)
elif what == "resume" and not (here / f"saved-{rank}").exists():
    save_at(signal.SIGTERM, 0.5)

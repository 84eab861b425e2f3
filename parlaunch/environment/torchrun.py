"""The command line of `python -m torch.distributed.run` for one node. Pure: what is returned here is what is executed."""

from __future__ import annotations

from collections.abc import Sequence

from parlaunch.frozen import dataclass

NODE_RANK, MASTER_ADDR, MASTER_PORT = "${NODE_RANK}", "${MASTER_ADDR}", "${MASTER_PORT:-29500}"
"""Words that a shell fills in on each node, where the command is printed before the nodes are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the nodes meet, in torchrun's own words, and how often it may start the ranks anew. None: not said."""

    master_addr: str | None = None
    master_port: int | None = None
    rdzv_backend: str | None = None  # c10d, static, …
    rdzv_endpoint: str | None = None  # HOST:PORT
    rdzv_id: str | None = None
    max_restarts: int | None = None

    @property
    def named(self) -> bool:
        """Whether anything is said about where to meet."""
        said = (self.master_addr, self.master_port, self.rdzv_backend, self.rdzv_endpoint, self.rdzv_id)
        return any(value is not None for value in said)


NOT_SAID = Rendezvous()


def command(
    runner: Sequence[str],
    *,
    python: str,
    nnodes: int,
    nproc_per_node: int,
    node_rank: int | None = None,
    rendezvous: Rendezvous = NOT_SAID,
    numa_binding: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """torchrun's argv with `runner` (a script, or `-m MODULE`, and its arguments) behind it.

    One node with nothing said about the rendezvous gets a store on a free port of this host, so that two jobs on one
    machine never meet on port 29500. Several nodes meet at `master_addr:master_port` (static), or at the rendezvous named.
    `numa_binding` is torchrun's own (torch 2.9 and newer); `extra` are further torchrun options.
    """
    argv = [python, "-m", "torch.distributed.run"]
    if nnodes == 1 and not rendezvous.named:
        # A host's own name need not resolve (containers): ranks meet on the loopback address instead.
        argv += ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={nproc_per_node}"]
    else:
        argv += [f"--nnodes={nnodes}", f"--nproc-per-node={nproc_per_node}"]
        argv += _meeting(nnodes, node_rank, rendezvous)
    if rendezvous.max_restarts is not None:
        argv.append(f"--max-restarts={rendezvous.max_restarts}")
    if numa_binding is not None:
        argv.append(f"--numa-binding={numa_binding}")
    return [*argv, *extra, *runner]


def _meeting(nnodes: int, node_rank: int | None, at: Rendezvous) -> list[str]:
    """Where the nodes meet and which one this is. What depends on the node and is not known stays a shell variable."""
    words: list[str] = []
    if at.rdzv_backend is not None:
        words.append(f"--rdzv-backend={at.rdzv_backend}")
    if at.rdzv_endpoint is not None:
        words.append(f"--rdzv-endpoint={at.rdzv_endpoint}")
    if at.rdzv_id is not None:
        words.append(f"--rdzv-id={at.rdzv_id}")
    if at.rdzv_backend not in (None, "static"):  # c10d and etcd number the nodes themselves
        return words
    if nnodes == 1:
        words.append(f"--node-rank={node_rank or 0}")
    else:
        words += ["--node-rank", NODE_RANK if node_rank is None else str(node_rank)]
    if at.rdzv_endpoint is None:  # torchrun reads master address and port only where no endpoint is named
        if at.master_addr is not None or nnodes > 1:
            words += ["--master-addr", MASTER_ADDR if at.master_addr is None else at.master_addr]
        if at.master_port is not None:
            words += ["--master-port", str(at.master_port)]
        elif nnodes > 1:
            words += ["--master-port", MASTER_PORT]
    return words

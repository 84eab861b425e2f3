"""The command line of `python -m torch.distributed.run` for one node. Pure: what is returned here is what is executed."""

from __future__ import annotations

from collections.abc import Sequence

NODE_RANK, MASTER_ADDR, MASTER_PORT = "${NODE_RANK}", "${MASTER_ADDR}", "${MASTER_PORT:-29500}"
"""Words that a shell fills in on each node, where the command is printed before the nodes are known."""


def command(
    runner: Sequence[str],
    *,
    python: str,
    nnodes: int,
    nproc_per_node: int,
    node_rank: int | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    rdzv_backend: str | None = None,
    rdzv_endpoint: str | None = None,
    rdzv_id: str | None = None,
    max_restarts: int | None = None,
    numa_binding: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """torchrun's argv with `runner` (a script, or `-m MODULE`, and its arguments) behind it.

    One node with nothing said about the rendezvous gets a store on a free port of this host, so that two jobs on one
    machine never meet on port 29500. Several nodes meet at `master_addr:master_port` (static), or at the rendezvous named.
    `numa_binding` is torchrun's own (torch 2.9 and newer); `extra` are further torchrun options.
    """
    named = [rdzv_backend, rdzv_endpoint, rdzv_id, master_addr, master_port]
    argv = [python, "-m", "torch.distributed.run"]
    if nnodes == 1 and all(value is None for value in named):
        # A host's own name need not resolve (containers): ranks meet on the loopback address instead.
        argv += ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={nproc_per_node}"]
    else:
        argv += [f"--nnodes={nnodes}", f"--nproc-per-node={nproc_per_node}"]
        argv += _meeting(nnodes, node_rank, master_addr, master_port, rdzv_backend, rdzv_endpoint, rdzv_id)
    if max_restarts is not None:
        argv.append(f"--max-restarts={max_restarts}")
    if numa_binding is not None:
        argv.append(f"--numa-binding={numa_binding}")
    return [*argv, *extra, *runner]


def _meeting(
    nnodes: int,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int | None,
    rdzv_backend: str | None,
    rdzv_endpoint: str | None,
    rdzv_id: str | None,
) -> list[str]:
    """Where the nodes meet and which one this is. What depends on the node and is not known stays a shell variable."""
    words: list[str] = []
    static = rdzv_backend in (None, "static")
    if rdzv_backend is not None:
        words.append(f"--rdzv-backend={rdzv_backend}")
    if rdzv_endpoint is not None:
        words.append(f"--rdzv-endpoint={rdzv_endpoint}")
    if rdzv_id is not None:
        words.append(f"--rdzv-id={rdzv_id}")
    if not static:  # c10d and etcd number the nodes themselves
        return words
    if nnodes == 1:
        words.append(f"--node-rank={node_rank or 0}")
    else:
        words += ["--node-rank", NODE_RANK if node_rank is None else str(node_rank)]
    if rdzv_endpoint is None:  # torchrun reads master address and port only where no endpoint is named
        if master_addr is not None or nnodes > 1:
            words += ["--master-addr", MASTER_ADDR if master_addr is None else master_addr]
        if master_port is not None:
            words += ["--master-port", str(master_port)]
        elif nnodes > 1:
            words += ["--master-port", MASTER_PORT]
    return words

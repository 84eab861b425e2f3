"""What a process holds beside the tensors of its stage: context and communicators, buffers that GPUs write into, and what torch's
caching allocator reserves and cannot use."""

from __future__ import annotations

from parlaunch.estimate.states import FRAGMENTS, Keeping
from parlaunch.model.activations import WIDE
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe

GIB = 2**30
MIB = 2**20


CONTEXT = {"volta": 0.5, "turing": 0.4, "ampere": 0.55, "ada": 0.5, "hopper": 0.75, "blackwell": 0.9, "rubin": 0.9}
"""GiB of a CUDA context with the kernels of torch, cuBLAS, cuDNN and Transformer Engine loaded (lazy loading)."""

COMMUNICATOR = 256 * MIB
"""Device memory of one NCCL communicator: 16 to 32 channels, about 10 MiB of protocol buffers a channel and peer."""

WORKSPACE = {"hopper": 32 * MIB, "blackwell": 32 * MIB, "rubin": 32 * MIB}
"""cuBLASLt workspace as Transformer Engine sizes it; 4 MiB before Hopper. Torch holds one of its own, grouped GEMMs four."""

GRAPH = 2 * GIB
"""Kernel nodes, their parameters and static inputs of captured CUDA graphs: "a few GB" for scoped graphs in Megatron
Bridge's notes on them."""

GRAPH_POOL = {"full_iteration": 0.20}
"""Share of what comes and goes that a graph's private pool holds on top, because nothing is freed into it while it is
captured. The same notes say up to half the peak and more; NVIDIA's tuned layouts with such graphs leave room for a quarter."""

CROWDED = 1 * GIB
"""What has to stay free beside all that the caching allocator reserves: a run that filled the last GiB took six times as long."""
HOLES = 0.8
"""Of the largest tensor that comes and goes, what growing segments leave empty at most (`scripts/bench/segments.py`): what of it `slack`
does not hold has to be free as well."""
OVERLAP_POOLS = 3.0
"""Times what the backward pass of one layer needs that the allocator holds on top where expert traffic overlaps: two micro batches
run in turn, on two streams, and a block that one stream freed is never the other's: four times instead of once. DeepSeek-V3 with 14
layers on 64 H100 reserved 5.8 GB more with it, and allocated 0.2 GB more (NVIDIA/Megatron-LM PR #6429); this says 5.6."""

DEEPEP_BUFFER = 1 * GIB
"""NVLink and RDMA buffers of DeepEP's normal kernels for hidden sizes around 7,168."""


def written(recipe: Recipe, layout: Layout) -> float:
    """Bytes a token of buffers that GPUs write into each other's: their owners allocate them beside torch (`cudaMalloc` or `cuMemCreate`
    in Transformer Engine's `userbuffers-host.cpp` and in HybridEP's `allocator.cuh`)."""
    a, f, h, size = recipe.architecture, recipe.features, recipe.architecture.hidden_size, 0.0
    if layout.tp > 1 and f.tp_overlap:
        size += 6 * WIDE * h  # user buffers of four layers' forward and two of their backward
    if layout.ep > 1 and f.dispatcher == "hybridep":
        # Receive buffers for dispatch and combine, sized for every rank of the group sending everything here.
        width = a.moe_latent_size or h
        size += 2 * WIDE * width * layout.ep / layout.tp
    return size


def outside(gpu: str, keeping: Keeping, communicators: int) -> float:
    """Bytes of a process on a GPU of this generation that torch does not hand out: context, kernels, communicators."""
    return (CONTEXT.get(gpu, 0.6) + keeping.loading) * GIB + communicators * COMMUNICATOR


def workspace(gpu: str, *, experts: bool) -> float:
    """Bytes of cuBLASLt's workspaces."""
    return WORKSPACE.get(gpu, 4 * MIB) * (2 + (4 if experts else 0))


def unused(comes_and_goes: float, largest: float, keeping: Keeping, f: Features) -> int:
    """Bytes that the allocator reserved and cannot use again. `largest`: of the tensors that come and go."""
    return int(keeping.slack * comes_and_goes + _fragments(keeping, f) * largest)


def _fragments(keeping: Keeping, f: Features) -> float:
    """Times the largest tensor."""
    return FRAGMENTS if f.nccl_ub else keeping.fragments  # registered buffers exclude growing segments


def graph_pool(comes_and_goes: float, f: Features) -> int:
    """Bytes that a graph's pool holds on top."""
    return int(_pooled(f) * comes_and_goes)


def _pooled(f: Features) -> float:
    """Share of what comes and goes."""
    return GRAPH_POOL.get(f.cuda_graph or "", 0.0)


def reserved_beyond(keeping: Keeping, f: Features) -> tuple[float, float]:
    """What both come to: a share of what comes and goes, and times the largest tensor."""
    return keeping.slack + _pooled(f), _fragments(keeping, f)


def kept_free(slack: int, largest: float, transient: float, *, overlapped: bool) -> float:
    """Bytes that have to stay free beside all this for a run at speed. `transient`: what the backward pass of one layer needs."""
    return max(CROWDED, HOLES * largest - slack) + (OVERLAP_POOLS * transient if overlapped else 0.0)
